"""Loading kernels ahead of their first launch."""

from __future__ import annotations

import torch

from abyssal import runtime
from abyssal.errors import InputError


def warmup(device: torch.device | str | int | None = None) -> None:
    """Load every kernel on a GPU now (default: torch's current one), not at its first launch.

    Useful before a measurement or a service. Raises InputError where kernels cannot run.
    """
    chosen = torch.device("cuda" if device is None else device)
    if chosen.type != "cuda":
        raise InputError(f"device must be a CUDA device, not {chosen}")
    reason = runtime.why_not_cuda(chosen.index)
    if reason is not None:
        raise InputError(f"kernels cannot be loaded: {reason}")
    index = torch.cuda.current_device() if chosen.index is None else chosen.index
    runtime.extension().load_kernels(index)
