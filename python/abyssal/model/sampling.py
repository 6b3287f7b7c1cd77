"""Choosing the next token: greedy, temperature, top-k, top-p, with one random stream per row.

Filters apply in this order: suppressed tokens, temperature, top-k, top-p over what top-k left,
renormalised. Probabilities are FP32.

A row draws one uniform number per step from its own generator, on the CPU whatever the model's
device, and looks it up in the cumulative distribution. So what a row draws depends on its logits
and its seed alone, not on its batch mates or on the vocabulary size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from abyssal.errors import InputError

# Row seeds are seed + row index and must fit torch's 64-bit generator.
MAX_SEED = 2**62


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. Raises InputError for values outside their range.

    temperature: 0 takes the most probable token (the lowest id among equals) and makes the other
    options idle; 1 samples what the model says; above flattens, below sharpens. top_k: keep the k
    most probable tokens (the lower id among equals). top_p: keep the fewest most probable tokens
    that together reach this probability, in (0, 1]. None switches a filter off. seed: row b draws
    from its own stream of seed + b, the same as alone with that seed; None takes a fresh seed from
    torch's global CPU generator. suppress_tokens: ids that are never chosen.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    suppress_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(
                f"temperature must be 0 (greedy) or positive and finite, not {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1 (None: no limit), not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1] (None: no limit), not {self.top_p}")
        if self.seed is not None and not 0 <= self.seed < MAX_SEED:
            raise InputError(f"seed must be between 0 and 2**62 - 1, not {self.seed}")


class Sampler:
    """Chooses tokens for the rows of one batch, step after step."""

    def __init__(self, options: SamplingOptions, batch_size: int) -> None:
        self.options = options
        self.generators: list[torch.Generator] = []
        if options.temperature > 0:
            seed = options.seed
            if seed is None:
                seed = int(torch.randint(MAX_SEED, ()))
            self.generators = [
                torch.Generator().manual_seed(seed + row) for row in range(batch_size)
            ]

    def choose(self, logits: Tensor) -> Tensor:
        """logits [B, vocab_size] of any float type -> token ids, int64 [B].

        Raises InputError when a row holds NaN or +inf, or nothing but -inf, or when all that it
        allows is suppressed.
        """
        check_logits(logits)
        if self.options.suppress_tokens:
            suppressed = torch.tensor(self.options.suppress_tokens, device=logits.device)
            logits = logits.index_fill(-1, suppressed, float("-inf"))
            if (logits.amax(dim=-1) == float("-inf")).any():
                raise InputError("suppress_tokens leaves a row without any token to choose")
        if self.options.temperature == 0:
            return logits.argmax(dim=-1)
        probability = probabilities(
            logits,
            temperature=self.options.temperature,
            top_k=self.options.top_k,
            top_p=self.options.top_p,
        )
        draws = [torch.rand((), dtype=torch.float64, generator=each) for each in self.generators]
        return pick(probability, torch.stack(draws).to(logits.device))


def probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The distribution that is sampled from: logits [B, V] -> FP32 [B, V], rows summing to 1.

    Tokens that a filter drops get exactly 0. `temperature` must be positive.
    """
    logits = logits.float()
    # The maximum goes first: a small temperature may then underflow to -inf, never overflow.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    top_k = None if top_k is None or top_k >= logits.shape[-1] else top_k
    top_p = None if top_p is None or top_p >= 1 else top_p
    if top_k is None and top_p is None:
        return logits.softmax(dim=-1)
    # Stable, so that the lower id comes first among equals.
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = float("-inf")
    if top_p is not None:
        reached = ordered.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
        # A token goes when those before it already reach top_p; the first always stays.
        ordered[:, 1:] = ordered[:, 1:].masked_fill(reached[:, :-1] >= top_p, float("-inf"))
    return torch.zeros_like(logits).scatter(-1, order, ordered.softmax(dim=-1))


def pick(probability: Tensor, uniform: Tensor) -> Tensor:
    """Inverse of the cumulative distribution: probability [B, V], uniform [B] in [0, 1) -> [B].

    Never picks a token of probability 0.
    """
    cumulative = probability.double().cumsum(dim=-1)
    # An FP64 uniform is at most 1 - 2^-53, and its product with the total rounds to less than the
    # total: there is always a token whose sum lies above the target.
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def check_logits(logits: Tensor) -> None:
    """Raise InputError when a row of logits [B, V] gives no distribution."""
    # The maximum of a row is NaN if any value is, and infinite in the two other cases.
    wrong = ~logits.amax(dim=-1).isfinite()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"the logits of row {row} are not finite (NaN, +inf, or all -inf): the weights are "
            "damaged or the computation overflowed"
        )
