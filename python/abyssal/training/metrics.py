"""What a run reports: records of metrics.jsonl, the log line, utilisation, TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abyssal.errors import InputError

# Dense peaks of the data sheets, SXM form, in FLOP/s. FP32 is without tensor cores (no TF32).
GPU_PEAKS = {
    "H100": {"bf16": 989e12, "float32": 67e12},
    "H200": {"bf16": 989e12, "float32": 67e12},
    "H800": {"bf16": 989e12, "float32": 67e12},
    "GH200": {"bf16": 989e12, "float32": 67e12},
}


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """One optimiser step. Losses are means over its tokens, in nats."""

    step: int
    tokens: int  # trained on so far, this step included
    loss: float  # of the main model's next token
    mtp_loss: float | None  # mean over the MTP modules; None if none ran
    balance_loss: float | None  # sequence-wise, without alpha: 1 is perfect; None if weight is 0
    grad_norm: float  # before clipping
    learning_rate: float
    mtp_weight: float
    bias_update_speed: float
    expert_load: list[float]  # per gate: tokens of the fullest expert over the mean


def load_imbalance(counts: Tensor | None) -> list[float]:
    """Fullest expert over mean expert, of every gate. counts: int64 [gates, experts]."""
    if counts is None:
        return []
    load = counts.double()
    return (load.amax(-1) / load.mean(-1)).tolist()


class MetricsLog:
    """RUN/metrics.jsonl: one JSON object a line, `kind` "train", "validation" or "sample".

    A record is on its way to disk when `write` returns (line-buffered). Resuming drops the records
    of steps after the checkpoint, which will be made again.
    """

    def __init__(self, path: Path, *, resume_step: int = 0, tensorboard: bool = False) -> None:
        self.path = path
        self.records = _read_records(path, resume_step) if resume_step else []
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(map(_line, self.records)), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._tensorboard = _open_tensorboard(path.parent, resume_step) if tensorboard else None

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Add a record; values need `step`. Numbers go to TensorBoard too."""
        record = {"kind": kind, **values}
        self.records.append(record)
        self._file.write(_line(record))
        if self._tensorboard is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, values["step"])
            for gate, load in enumerate(values.get("expert_load", ())):
                self._tensorboard.add_scalar(f"{kind}/expert_load/{gate}", load, values["step"])

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def format_log_line(
    metrics: StepMetrics,
    *,
    loss: float,
    mtp_loss: float | None,
    tokens_per_second: float,
    utilisation: float | None,
    seconds_left: float | None,
) -> str:
    """One aligned line. `loss` and `mtp_loss` are means since the last line."""
    parts = [
        f"step {metrics.step:>6}",
        f"tokens {_short(metrics.tokens):>6}",
        f"loss {loss:7.4f}",
        f"mtp {mtp_loss:7.4f}" if mtp_loss is not None else "",
        f"balance {metrics.balance_loss:5.3f}" if metrics.balance_loss is not None else "",
        f"grad {metrics.grad_norm:6.3f}",
        f"lr {metrics.learning_rate:.2e}",
        f"{_short(tokens_per_second):>6} tok/s",
        f"mfu {utilisation:5.1%}" if utilisation is not None else "",
        f"load {max(metrics.expert_load):5.2f}" if metrics.expert_load else "",
        f"left {format_duration(seconds_left)}" if seconds_left is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def format_duration(seconds: float) -> str:
    """7 -> 0:07; 3700 -> 1:01:40."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def peak_flops(device: torch.device, precision: str) -> tuple[float | None, str]:
    """The FLOP/s that utilisation is measured against, and where they come from.

    A GPU: the dense peak of its data sheet (None for one not in our table). A CPU: the best of a
    few 1024 x 1024 x 1024 products of the compute type, timed now, with torch's current threads.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peaks in sorted(GPU_PEAKS.items(), key=lambda item: -len(item[0])):
            if known in name:
                return peaks[precision], f"data sheet of {known}, dense {precision}"
        return None, f"{name}: no known peak"
    size = 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"{size}^3 {precision} product on {torch.get_num_threads()} threads"


def _short(value: float) -> str:
    """12345678 -> 12.35M."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.2f}{suffix}"
    return f"{value:.0f}"


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _read_records(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The records up to `last_step`. The last line may have been cut off by a crash."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise InputError(f"{path}, line {number} is not JSON") from None
            break
        if record["step"] <= last_step:
            records.append(record)
    return records


def require_tensorboard() -> None:
    """Raises InputError if TensorBoard's files cannot be written."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise InputError(
            "tensorboard=true needs the tensorboard package: pip install tensorboard"
        ) from None


def _open_tensorboard(directory: Path, resume_step: int) -> Any:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    purge_step = resume_step + 1 if resume_step else None
    return SummaryWriter(directory / "tensorboard", purge_step=purge_step)
