"""The schedule against values worked out by hand."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.training.config import TrainConfig
from abyssal.training.schedule import Schedule

CONFIG = TrainConfig(
    data=Path("unused"),
    total_tokens=1000,
    sequence_length=10,
    batch_size=1,
    learning_rate=0.8,
    warmup_tokens=200,
    decay_start=0.5,
    decay_end=0.9,
    decay_lr_ratio=0.25,
    final_start=0.95,
    final_lr_ratio=0.125,
    mtp_drop=0.6,
    bias_freeze=0.7,
)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (10, 0.04),  # a twentieth of the warm-up
        (100, 0.4),
        (200, 0.8),
        (350, 0.8),
        (500, 0.8),
        (600, 0.8 * (0.25 + 0.75 * (1 + math.sqrt(0.5)) / 2)),  # a quarter along the cosine
        (700, 0.5),  # half-way, between 0.8 and 0.2
        (800, 0.8 * (0.25 + 0.75 * (1 - math.sqrt(0.5)) / 2)),
        (900, 0.2),
        (950, 0.2),
        (960, 0.1),
        (1000, 0.1),
        (1010, 0.1),  # the last step may reach beyond the budget
    ],
)
def test_learning_rate(tokens, expected):
    assert Schedule(CONFIG, 1000).at(tokens).learning_rate == pytest.approx(expected, rel=1e-12)


def test_lambda_and_gamma_drop_once():
    schedule = Schedule(CONFIG, 1000)
    assert [schedule.at(tokens).mtp_weight for tokens in (10, 600, 601, 1000)] == [
        0.3,
        0.3,
        0.1,
        0.1,
    ]
    speeds = [schedule.at(tokens).bias_update_speed for tokens in (10, 700, 701, 1000)]
    assert speeds == [0.001, 0.001, 0.0, 0.0]


def test_the_reports_own_run():
    """10T tokens at 2.2e-4, 2.2e-5 from 14.3T on, 7.3e-6 for the last 167B.

    The defaults are these landmarks, rounded; the 100-step warm-up is not the report's.
    """
    report = dataclasses.replace(
        CONFIG,
        total_tokens=14_800_000_000_000,
        learning_rate=2.2e-4,
        warmup_tokens=2000 * 3072 * 4096,
        decay_start=10 / 14.8,
        decay_end=14.3 / 14.8,
        decay_lr_ratio=0.1,
        final_start=(14.8 - 0.167) / 14.8,
        final_lr_ratio=7.3 / 220,
        mtp_drop=10 / 14.8,
        bias_freeze=14.3 / 14.8,
    )
    schedule = Schedule(report, report.total_tokens)
    at = {trillions: schedule.at(int(trillions * 1e12)) for trillions in (9.9, 12.15, 14.4, 14.7)}
    assert at[9.9].learning_rate == 2.2e-4
    assert at[12.15].learning_rate == pytest.approx((2.2e-4 + 2.2e-5) / 2)
    assert at[14.4].learning_rate == pytest.approx(2.2e-5)
    assert at[14.7].learning_rate == pytest.approx(7.3e-6)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name in ("decay_start", "decay_end", "final_start", "decay_lr_ratio", "final_lr_ratio"):
        assert defaults[name] == pytest.approx(getattr(report, name), rel=2e-3)
    assert (at[9.9].mtp_weight, at[12.15].mtp_weight) == (0.3, 0.1)
    assert (at[12.15].bias_update_speed, at[14.4].bias_update_speed) == (0.001, 0.0)


def test_warmup_by_default():
    automatic = dataclasses.replace(CONFIG, warmup_tokens=None)
    assert Schedule(automatic, 1000).warmup_tokens == 100  # a tenth of the run
    long = dataclasses.replace(automatic, total_tokens=10**6)
    assert Schedule(long, 10**6).warmup_tokens == 1000  # 100 steps
    # A time budget's plan must not change what has been: the same with and without it.
    timed = dataclasses.replace(automatic, total_tokens=None, max_minutes=1.0)
    assert Schedule(timed, None).warmup_tokens == Schedule(timed, 1000).warmup_tokens == 1000
    none = dataclasses.replace(CONFIG, warmup_tokens=0)
    assert Schedule(none, 1000).at(10).learning_rate == 0.8


@given(total=st.integers(1, 10**15), fraction=st.floats(0, 1))
def test_planning_a_time_budget_changes_nothing_before_the_first_landmark(total, fraction):
    timed = dataclasses.replace(CONFIG, total_tokens=None, max_minutes=1.0)
    tokens = int(total * fraction * timed.plan_fraction)
    assert Schedule(timed, None).at(tokens) == Schedule(timed, total).at(tokens)


@given(total=st.integers(1, 10**15), tokens=st.integers(1, 2 * 10**15))
def test_the_learning_rate_stays_in_its_bounds(total, tokens):
    rate = Schedule(CONFIG, total).at(tokens).learning_rate
    assert 0 < rate <= CONFIG.learning_rate
    if tokens > total:
        ramp = min(1.0, tokens / 200)
        assert rate == pytest.approx(CONFIG.learning_rate * CONFIG.final_lr_ratio * ramp)
