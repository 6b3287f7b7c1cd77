"""A step of the trainer is the report's recipe, computed here by hand."""

import math

import pytest
import torch

from abyssal.training.batches import validation_batches
from abyssal.training.evaluation import evaluate
from abyssal.training.trainer import TrainingDiverged
from tests.training.test_trainer import corpus, make  # noqa: F401  (fixtures)

PEAK = 3e-3
STEPS = 8
# Landmarks after steps 2 (warm-up), 4, 6 and 7 of 8.
SCHEDULE = {
    "learning_rate": PEAK,
    "warmup_tokens": 2 * 4 * 16,
    "decay_start": 0.5,
    "decay_end": 0.75,
    "decay_lr_ratio": 0.2,
    "final_start": 0.875,
    "final_lr_ratio": 0.05,
    "mtp_drop": 0.5,
}
LEARNING_RATES = [
    PEAK / 2,  # half of the warm-up
    PEAK,
    PEAK,
    PEAK,
    PEAK * (0.2 + 0.8 / 2),  # half of the cosine
    PEAK * 0.2,
    PEAK * 0.2,
    PEAK * 0.05,
]


@pytest.fixture
def spied(make):  # noqa: F811
    """A trainer whose gradients, as they are before clipping, are kept."""

    def build(**changes):
        trainer = make(**SCHEDULE, **changes)
        accumulate = trainer._accumulate_gradients

        def keep(mtp_weight):
            batch = accumulate(mtp_weight)
            trainer.gradients = [
                None if p.grad is None else p.grad.double() for p in trainer.model.parameters()
            ]
            return batch

        trainer._accumulate_gradients = keep
        return trainer

    return build


class HandWritten:
    """AdamW in float64 (Loshchilov and Hutter, algorithm 2), after clipping to a global norm."""

    def __init__(self, config):
        self.config = config
        self.moments = {}

    def step(self, weights, gradients, learning_rate):
        config = self.config
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None))
        scale = min(1.0, config.max_grad_norm / norm)
        results = []
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            if gradient is None:
                results.append(weight)
                continue
            count, first, second = self.moments.get(index, (0, 0.0, 0.0))
            count += 1
            first = config.adam_beta1 * first + (1 - config.adam_beta1) * scale * gradient
            second = config.adam_beta2 * second + (1 - config.adam_beta2) * (scale * gradient) ** 2
            self.moments[index] = count, first, second
            direction = (first / (1 - config.adam_beta1**count)) / (
                (second / (1 - config.adam_beta2**count)).sqrt() + config.adam_eps
            )
            decay = config.weight_decay if weight.dim() >= 2 else 0.0
            results.append(weight - learning_rate * (direction + decay * weight))
        return results, norm


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e6])
def test_steps_by_hand(spied, max_grad_norm):
    trainer = spied(max_grad_norm=max_grad_norm)
    expected = HandWritten(trainer.config)
    clipped = 0
    for learning_rate in LEARNING_RATES:
        before = [p.detach().double() for p in trainer.model.parameters()]
        metrics = trainer.train_step()
        weights, norm = expected.step(before, trainer.gradients, learning_rate)
        clipped += norm > max_grad_norm
        assert metrics.learning_rate == pytest.approx(learning_rate)
        assert metrics.grad_norm == pytest.approx(norm, rel=1e-4)
        # Float32 rounds; a step of another size would be off by whole learning rates.
        for ours, theirs in zip(trainer.model.parameters(), weights, strict=True):
            assert (ours.double() - theirs).abs().max() < 0.02 * learning_rate
    assert clipped == (STEPS if max_grad_norm < 1 else 0)


def test_lambda_drops(spied):
    trainer = spied(mtp_weight=0.4, mtp_weight_final=0.15)
    weights = []
    forward = trainer.model.forward
    trainer.model.forward = lambda *args, **named: (
        weights.append(named["mtp_loss_weight"]) or forward(*args, **named)
    )
    for _ in range(STEPS):
        trainer.train_step()
    assert weights == [0.4] * 4 + [0.15] * 4


def test_it_validates_on_what_it_does_not_train_on(make):  # noqa: F811
    trainer = make(validation_tokens=4096)
    for _ in range(4):
        trainer.train_step()
    losses = {}
    for name in ("validation", "train"):
        windows = validation_batches(
            getattr(trainer.dataset, name),
            sequence_length=16,
            batch_size=4,
            tokenizer=trainer.tokenizer,
            max_tokens=4096,
        )
        losses[name] = evaluate(trainer.model, windows)
    assert trainer.validate() == losses["validation"]
    assert losses["validation"].loss != losses["train"].loss


def test_samples_hold_no_control_tokens(make):  # noqa: F811
    trainer = make()
    asked = {}
    generate = trainer.model.generate
    trainer.model.generate = lambda *args, **named: asked.update(named) or generate(*args, **named)
    trainer.sample()
    tokenizer = trainer.tokenizer
    assert set(asked["suppress_tokens"]) == tokenizer.control_ids - {tokenizer.eos_id}


def test_a_step_after_one_that_diverged_is_whole(make):  # noqa: F811
    trainer = make()
    weight = trainer.model.model.layers[0].mlp.gate_proj.weight
    good = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(math.nan)
    with pytest.raises(TrainingDiverged):
        trainer.train_step()
    with torch.no_grad():
        weight.copy_(good)
    assert math.isfinite(trainer.train_step().grad_norm)


def test_resuming_a_finished_run_records_nothing_twice(make, tmp_path):  # noqa: F811
    first = make()
    first.run()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = make(resume=True)
    assert again.seconds >= first._seconds_before
    assert again._seconds_before > 0
    again.run()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


def test_the_log_says_what_mfu_counts(make):  # noqa: F811
    from abyssal.model.statistics import flops_per_token

    lines = []
    trainer = make(log=lines.append)
    trainer.run()
    flops = flops_per_token(trainer.model.config, 16)
    with_mtp = flops_per_token(trainer.model.config, 16, mtp=True)
    assert f"{flops / 1e6:.1f} MFLOP a token (mfu: three forwards, causal" in lines[0]
    assert trainer._flops == flops < with_mtp
