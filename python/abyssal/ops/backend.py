"""Which implementation of an op runs: `reference`, `cuda` or `emulator`.

reference   plain PyTorch, on any device: the definition of the numerics; CPU tensors' default
cuda        our kernels, on GPUs of compute capability 9.0; CUDA tensors' default
emulator    our kernels' PTX, on CPU tensors: slow, and it finds what is wrong with them
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError

BACKENDS = ("reference", "cuda", "emulator")

# One for the process: torch.compile cannot trace a context variable. None: the tensor decides.
_forced: str | None = os.environ.get("ABYSSAL_BACKEND")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the ops in this block on `name`, whatever their tensors' device: one of BACKENDS.

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


@dataclass(frozen=True)
class Target:
    """Where the compiled launchers send a kernel."""

    device: int  # the GPU's index, or the extension's `emulated_device`
    stream: int  # the stream's handle


def launch_target(backend: str, *tensors: torch.Tensor) -> Target:
    """Where a kernel that uses `tensors` goes: their GPU's current stream, or the emulator.

    Raises InputError, with the reason, if `backend` cannot run there.
    """
    device = tensors[0].device
    if backend == "emulator":
        if device.type != "cpu":
            raise InputError(f"backend emulator takes CPU tensors, and this one is on {device}")
        reason = runtime.why_not_emulator()
        if reason is not None:
            raise InputError(f"backend emulator cannot run: {reason}")
        # Imports the extension, which other backends do without.
        from abyssal.emulator.device import keep_for_group

        keep_for_group(tensors)
        return Target(runtime.extension().emulated_device, 0)
    if device.type != "cuda":
        raise InputError(f"backend cuda takes CUDA tensors, and this one is on {device}")
    reason = _why_not_cuda(device.index)
    if reason is not None:
        raise InputError(
            f"backend cuda cannot run on {device}: {reason}; `with abyssal.backend('reference')` "
            "computes the same in plain PyTorch"
        )
    return Target(device.index, torch.cuda.current_stream(device).cuda_stream)


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"{source} must be one of {', '.join(BACKENDS)}, not {name!r}")
    return name


# Asked once for each GPU: what a machine has does not change while a process runs.
_why_not_cuda = functools.cache(runtime.why_not_cuda)
