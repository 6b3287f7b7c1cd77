"""What the quantisers ask of their arguments. Each check raises InputError, one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled
from abyssal.reference.quantize import AMAX_FLOOR

# Beyond, an index of a row or column would not fit the kernel's 32 bits.
MOST_ROWS = 2**31 - 1
MOST_COLUMNS = 2**30


def check_x(x: Tensor) -> None:
    """Activations [M, K]."""
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a tensor, not {type(x).__name__}")
    if x.dim() != 2 or x.shape[0] > MOST_ROWS or not 1 <= x.shape[1] <= MOST_COLUMNS:
        raise InputError(
            f"x must be [M, K] with M below 2**31 and K from 1 to 2**30, not {list(x.shape)}"
        )
    check_values("x", x)


def check_values(name: str, x: Tensor) -> None:
    """A type that is quantised, and rows of neighbouring values."""
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise InputError(f"{name} must be bfloat16 or float32, not {x.dtype}")
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise InputError(
            f"{name} must be contiguous along its last dimension, and its strides are {x.stride()}"
        )


def check_options(pow2: bool, amax_floor: float) -> None:
    if not isinstance(pow2, bool):
        raise InputError(f"pow2 must be True or False, not {pow2!r}")
    if not isinstance(amax_floor, (int, float)) or isinstance(amax_floor, bool):
        raise InputError(f"amax_floor must be a number, not {amax_floor!r}")
    if not AMAX_FLOOR <= amax_floor <= torch.finfo(torch.float32).max:
        raise InputError(
            f"amax_floor must be a finite number of at least 448 * 2**-126, not {amax_floor}"
        )


def check_offsets(offsets: Tensor | None, device: torch.device) -> None:
    """Where groups begin. What they hold stays on the device, unread."""
    if offsets is None:
        return
    if not isinstance(offsets, Tensor):
        raise InputError(f"offsets must be a tensor or None, not {type(offsets).__name__}")
    if offsets.dim() != 1 or offsets.shape[0] < 2 or offsets.dtype != torch.int32:
        raise InputError(
            "offsets must be int32 [G + 1] with G of at least 1, not "
            f"{offsets.dtype} {list(offsets.shape)}"
        )
    if not offsets.is_contiguous():
        raise InputError(f"offsets must be contiguous, and its stride is {offsets.stride(0)}")
    if offsets.device != device:
        raise InputError(f"offsets is on {offsets.device} and must be on {device}")


def check_block_scaled(
    name: str, matrix: object, block: tuple[int, int], device: torch.device | None = None
) -> BlockScaled:
    if not isinstance(matrix, BlockScaled):
        raise InputError(f"{name} must be a BlockScaled, not {type(matrix).__name__}")
    if matrix.block != block or matrix.axis != 1:
        raise InputError(f"{name} must have block {block} and axis 1, and is {matrix}")
    if device is not None and matrix.device != device:
        raise InputError(f"{name} is on {matrix.device} and must be on {device}")
    return matrix


def check_contiguous(
    name: str, tensor: object, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """A plain tensor that has exactly this form."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype or not tensor.is_contiguous():
        raise InputError(
            f"{name} must be {dtype} {list(shape)}, contiguous, not {tensor.dtype} "
            f"{list(tensor.shape)} with strides {tensor.stride()}"
        )
    if tensor.device != device:
        raise InputError(f"{name} is on {tensor.device} and must be on {device}")


def check_layout(
    name: str, tensor: Tensor, shape: Sequence[int], strides: Sequence[int] | None = None
) -> None:
    """Of a part of a BlockScaled, whose type and device are known to be right. Strides: contiguous,
    unless they are given."""
    if strides is None:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    # Strides of dimensions with one entry say nothing, nor do those of no values.
    same = tuple(tensor.shape) == tuple(shape) and all(
        extent <= 1 or given == wanted or tensor.numel() == 0
        for extent, given, wanted in zip(shape, tensor.stride(), strides, strict=True)
    )
    if not same:
        raise InputError(
            f"{name} must be {tensor.dtype} {list(shape)} with strides {tuple(strides)}, not "
            f"{list(tensor.shape)} with strides {tensor.stride()}"
        )
