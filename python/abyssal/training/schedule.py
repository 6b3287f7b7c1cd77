"""Schedules over the tokens of a run (report, section 4.2): learning rate, lambda, gamma.

Everything here is a pure function of the number of tokens trained on, never of time or steps, so
that a run which stops and resumes goes on exactly where it was.
"""

from __future__ import annotations

import dataclasses
import math

from abyssal.training.config import DEFAULT_WARMUP_STEPS, LONGEST_DEFAULT_WARMUP, TrainConfig


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What the schedule gives one optimiser step."""

    learning_rate: float
    mtp_weight: float  # lambda
    bias_update_speed: float  # gamma


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The report's schedule in the proportions of a run of `total_tokens`.

    The learning rate rises linearly over the warm-up, is constant until `decay_start` of the run,
    falls along half a cosine until `decay_end`, is constant again and drops to its last value at
    `final_start`. Lambda and gamma drop once. `total_tokens` is None while a run with a time budget
    has not been planned yet: until then nothing has begun to fall.
    """

    config: TrainConfig
    total_tokens: int | None

    @property
    def warmup_tokens(self) -> int:
        """Tokens until the learning rate is at its peak."""
        if self.config.warmup_tokens is not None:
            return self.config.warmup_tokens
        warmup = DEFAULT_WARMUP_STEPS * self.config.tokens_per_step
        # Not the planned tokens of a time budget: they are unknown when the warm-up happens.
        if self.config.total_tokens is not None:
            warmup = min(warmup, int(LONGEST_DEFAULT_WARMUP * self.config.total_tokens))
        return warmup

    def at(self, tokens: int) -> StepSettings:
        """The settings of the step that brings the run to `tokens` tokens."""
        config = self.config
        progress = 0.0 if self.total_tokens is None else tokens / self.total_tokens
        dropped = progress > config.mtp_drop
        return StepSettings(
            learning_rate=config.learning_rate * self._warmup(tokens) * self._decay(progress),
            mtp_weight=config.mtp_weight_final if dropped else config.mtp_weight,
            bias_update_speed=0.0 if progress > config.bias_freeze else config.bias_update_speed,
        )

    def _warmup(self, tokens: int) -> float:
        return min(1.0, tokens / self.warmup_tokens) if self.warmup_tokens else 1.0

    def _decay(self, progress: float) -> float:
        """From 1 to `decay_lr_ratio` along half a cosine; then the last step down."""
        config = self.config
        if progress <= config.decay_start:
            return 1.0
        if progress > config.final_start:
            return config.final_lr_ratio
        if progress >= config.decay_end:
            return config.decay_lr_ratio
        along = (progress - config.decay_start) / (config.decay_end - config.decay_start)
        fall = (1 + math.cos(math.pi * along)) / 2
        return config.decay_lr_ratio + (1 - config.decay_lr_ratio) * fall
