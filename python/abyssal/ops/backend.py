"""Which implementation of an op runs: `reference` or `cuda`.

reference   plain PyTorch, on any device: the definition of the numerics; CPU tensors' default
cuda        our kernels, on GPUs of compute capability 9.0; CUDA tensors' default
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError

BACKENDS = ("reference", "cuda")

# One for the process: torch.compile cannot trace a context variable. None: the tensor decides.
_forced: str | None = os.environ.get("ABYSSAL_BACKEND")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the ops in this block on `name`, "reference" or "cuda", whatever their tensors' device.

    `ABYSSAL_BACKEND` in the environment does the same from the beginning of a process. The choice
    is the whole process's, all threads included. An op keeps the backend of its forward for its
    backward. Raises InputError for another name; ops raise it for tensors that the backend cannot
    take.
    """
    global _forced
    before, _forced = _forced, _checked(name, "backend")
    try:
        yield
    finally:
        _forced = before


def choose_backend(tensor: Tensor) -> str:
    """The backend for an op on `tensor`. Raises InputError if ABYSSAL_BACKEND is none."""
    if _forced is not None:
        return _checked(_forced, "ABYSSAL_BACKEND")
    return "cuda" if tensor.is_cuda else "reference"


def require_cuda(device: torch.device) -> None:
    """Raise InputError, with the reason, unless kernels can run on `device`."""
    if device.type != "cuda":
        raise InputError(f"backend cuda takes CUDA tensors, and this one is on {device}")
    reason = _why_not_cuda(device.index)
    if reason is not None:
        raise InputError(
            f"backend cuda cannot run on {device}: {reason}; `with abyssal.backend('reference')` "
            "computes the same in plain PyTorch"
        )


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"{source} must be one of {', '.join(BACKENDS)}, not {name!r}")
    return name


# Asked once for each GPU: what a machine has does not change while a process runs.
_why_not_cuda = functools.cache(runtime.why_not_cuda)
