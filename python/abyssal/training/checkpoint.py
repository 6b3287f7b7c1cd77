"""Checkpoints of a run: whole or not there.

A run keeps `RUN/checkpoints/step-00001000/`, a model directory like any other (`from_pretrained`,
`abyssal generate` and `abyssal export` read it) with the trainer's state in one more file. It is
written under a hidden name, flushed to disk and then renamed, so that a crash at any point leaves
the previous checkpoint and never half of a new one.
"""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from abyssal.errors import InputError
from abyssal.training.files import flush, flush_tree

STATE_FILE = "trainer_state.pt"
STATE_FORMAT = 1

_NAME = re.compile(r"step-(\d{8,})")
# Names with this prefix are being written or removed, and are never read.
_HIDDEN = ".partial-"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    folder = run_dir / "checkpoints"
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def latest_checkpoint(run_dir: Path) -> Path:
    """The run's newest checkpoint. Raises FileNotFoundError if there is none."""
    found = list_checkpoints(run_dir)
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {run_dir / 'checkpoints'}")
    return found[-1]


def save_checkpoint(
    run_dir: Path, step: int, state: dict[str, Any], write_model: Callable[[Path], None], keep: int
) -> Path:
    """Publish the checkpoint of `step` atomically, then remove all but the newest `keep`.

    `write_model(directory)` writes model and tokenizer; `state` holds tensors and plain values. A
    step that is published already is left as it is. Returns the checkpoint's directory.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    final = folder / f"step-{step:08d}"
    if not final.exists():
        partial = folder / f"{_HIDDEN}{final.name}"
        partial.mkdir()
        write_model(partial)
        torch.save({"format": STATE_FORMAT, **state}, partial / STATE_FILE)
        flush_tree(partial)
        partial.rename(final)
        flush(folder)
    for old in list_checkpoints(run_dir)[:-keep]:
        # Renamed first: a crash while the files go must not leave half a checkpoint in sight.
        hidden = old.rename(folder / f"{_HIDDEN}{old.name}")
        shutil.rmtree(hidden)
    return final


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's state. Raises InputError for what is not a whole checkpoint of a run."""
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise InputError(
            f"{checkpoint} is not a checkpoint of `abyssal train`: it has no {STATE_FILE}"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        raise InputError(f"{path} is truncated, damaged or not trainer state") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != STATE_FORMAT:
        raise InputError(
            f"{path} has trainer state of format {found}; this version reads {STATE_FORMAT}"
        )
    return state


def _sweep(folder: Path) -> None:
    """Remove what a crash left half-written or half-removed."""
    for path in folder.glob(f"{_HIDDEN}*"):
        shutil.rmtree(path)
