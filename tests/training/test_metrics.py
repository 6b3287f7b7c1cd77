"""Metrics: the log line, metrics.jsonl, peaks, validation arithmetic, the picture."""

import json
import math

import pytest
import torch

from abyssal.errors import InputError
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from abyssal.model.presets import PRESETS
from abyssal.training.evaluation import evaluate
from abyssal.training.metrics import (
    MetricsLog,
    StepMetrics,
    format_duration,
    format_log_line,
    peak_flops,
)
from abyssal.training.plot import plot_curves

STEP = StepMetrics(
    step=120,
    tokens=983_040,
    loss=2.5,
    mtp_loss=2.75,
    balance_loss=1.125,
    grad_norm=0.5,
    learning_rate=3e-3,
    mtp_weight=0.3,
    bias_update_speed=0.001,
    expert_load=[1.25, 1.5],
)


def test_the_log_line_says_everything_once():
    line = format_log_line(
        STEP, loss=2.4, mtp_loss=2.6, tokens_per_second=12_345, utilisation=0.25, seconds_left=192
    )
    assert line == (
        "step    120  tokens 983.04K  loss  2.4000  mtp  2.6000  balance 1.125  grad  0.500  "
        "lr 3.00e-03  12.35K tok/s  mfu 25.0%  load  1.50  left 3:12"
    )


def test_what_is_not_there_is_left_out_of_the_line():
    import dataclasses

    bare = dataclasses.replace(STEP, mtp_loss=None, balance_loss=None, expert_load=[])
    line = format_log_line(
        bare, loss=2.4, mtp_loss=None, tokens_per_second=9, utilisation=None, seconds_left=None
    )
    for word in ("mtp", "balance", "mfu", "load", "left", "None"):
        assert word not in line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3700, "1:01:40")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_records_are_lines_of_json_and_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("train", {"step": 1, "loss": 0.1 + 0.2})
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"kind": "train", "step": 1, "loss": 0.30000000000000004}
    log.close()


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"ki\n{"kind": "train", "step": 2}\n')
    with pytest.raises(InputError, match="metrics.jsonl, line 2 is not JSON"):
        MetricsLog(path, resume_step=2)


def test_the_peak_of_a_cpu_is_measured():
    for precision in ("float32", "bf16"):
        flops, source = peak_flops(torch.device("cpu"), precision)
        assert 1e8 < flops < 1e14
        assert precision in source


def test_validation_is_the_sum_over_all_tokens_and_bytes():
    """Windows of unequal size and bytes, against the model's own logits."""
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(
        PRESETS["tiny"].replace(vocab_size=50, hidden_size=32, initializer_range=0.2)
    )
    windows = [(torch.randint(0, 50, (3, 9)), 40), (torch.randint(0, 50, (1, 5)), 11)]
    nats, tokens = 0.0, 0
    for window, _ in windows:
        log_p = model(window[:, :-1]).logits.double().log_softmax(-1)
        nats -= log_p.gather(-1, window[:, 1:, None]).sum().item()
        tokens += window[:, 1:].numel()
    result = evaluate(model, windows)
    assert result.tokens_measured == tokens == 28
    assert result.loss == pytest.approx(nats / 28, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 51, rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_curves_are_drawn_from_any_run(tmp_path):
    import dataclasses

    train = {"kind": "train", **dataclasses.asdict(STEP)}
    check = {"kind": "validation", "step": 0, "tokens": 0, "loss": 5.5, "bits_per_byte": 8.0}
    bare = train | {"mtp_loss": None, "expert_load": []}
    # The MTP module stops in the second record.
    runs = ([check, train, train | {"expert_load": [1.0], "mtp_loss": None}], [bare], [check], [])
    for number, records in enumerate(runs):
        path = tmp_path / f"{number}.png"
        plot_curves(records, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert len(list(tmp_path.iterdir())) == len(runs)


@pytest.mark.parametrize(("resume_step", "purge_step"), [(0, None), (7, 8)])
def test_tensorboard_forgets_the_steps_that_are_made_again(
    tmp_path, monkeypatch, resume_step, purge_step
):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    asked = []

    class Writer(tensorboard.SummaryWriter):
        def __init__(self, *arguments, **named):
            asked.append(named["purge_step"])
            super().__init__(*arguments, **named)

    monkeypatch.setattr(tensorboard, "SummaryWriter", Writer)
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    MetricsLog(path, resume_step=resume_step, tensorboard=True).close()
    assert asked == [purge_step]
