"""Loading kernels ahead of their first launch."""

from __future__ import annotations

import torch

from abyssal import runtime
from abyssal.errors import InputError


def warmup(device: torch.device | str | int | None = None) -> None:
    """Load every kernel on a GPU now (default: torch's current one), not at its first launch.

    Useful before a measurement or a service. Raises InputError where kernels cannot run.
    """
    index = _index(device)
    if index is None and runtime.why_not_cuda() is None:
        index = torch.cuda.current_device()
    reason = runtime.why_not_cuda(index)
    if reason is not None:
        raise InputError(f"kernels cannot be loaded: {reason}")
    runtime.extension().load_kernels(index)


def _index(device: torch.device | str | int | None) -> int | None:
    """Of the GPU that `device` names; None for the current one."""
    if device is None:
        return None
    try:
        # By itself, a number would be a GPU only where torch has one.
        chosen = torch.device("cuda", device) if type(device) is int else torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type != "cuda":
        raise InputError(
            f"device must be a CUDA device (as 'cuda', 'cuda:1' or 1), not {str(device)!r}"
        )
    return chosen.index
