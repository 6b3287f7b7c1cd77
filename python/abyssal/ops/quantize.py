"""FP8 quantisers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError
from abyssal.ops.backend import choose_backend, launch_target
from abyssal.ops.block_scaled import BlockScaled, unchecked
from abyssal.ops.registration import define
from abyssal.reference import quantize as reference
from abyssal.reference.quantize import AMAX_FLOOR, TILE

BLOCK_1X128 = (1, TILE)
# Beyond, an index of a row or column would not fit the kernel's 32 bits.
_MOST_ROWS = 2**31 - 1
_MOST_COLUMNS = 2**30


def quantize_1x128(
    x: Tensor,
    *,
    pow2: bool = False,
    amax_floor: float = AMAX_FLOOR,
    out: BlockScaled | None = None,
) -> BlockScaled:
    """Quantise activations to E4M3 with one scale for each token and 128 channels.

    Report, section 3.3.2 (fine-grained quantisation). The numerics are those of
    `abyssal.reference.quantize`; every backend gives the same bits.

    Args:
        x: [M, K], bfloat16 or float32, contiguous along K; rows may be further apart. M may be 0.
            K need not be a multiple of 128, and is fastest as a multiple of 8.
        pow2: round scales up to powers of two, which makes a later change of tiles exact.
        amax_floor: the amax that a tile is taken to have at least. 1e-4 is what public code
            uses; gradients need the default, which is as small as FP32 scales can go.
        out: a result of the same shape to overwrite; it is returned.

    Returns:
        BlockScaled with data [M, K], scale [M, ceil(K / 128)] of strides (1, 4 ceil(M / 4)),
        block (1, 128), axis 1. No gradient flows through it.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    _check_x(x)
    _check_options(pow2, amax_floor)
    backend = choose_backend(x)
    if out is None:
        data, scale = torch.ops.abyssal.quantize_1x128(x.detach(), pow2, amax_floor, backend)
        return unchecked(data, scale, BLOCK_1X128, axis=1)
    _check_out(out, x)
    torch.ops.abyssal.quantize_1x128_out(x.detach(), out.data, out.scale, pow2, amax_floor, backend)
    return out


def scale_strides_1x128(rows: int) -> tuple[int, int]:
    """Strides of a scale [rows, tiles]: columns begin at multiples of 16 bytes, as TMA needs."""
    return 1, math.ceil(rows / 4) * 4


def _check_x(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a tensor, not {type(x).__name__}")
    if x.dim() != 2 or x.shape[0] > _MOST_ROWS or not 1 <= x.shape[1] <= _MOST_COLUMNS:
        raise InputError(
            f"x must be [M, K] with M below 2**31 and K from 1 to 2**30, not {list(x.shape)}"
        )
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise InputError(f"x must be bfloat16 or float32, not {x.dtype}")
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise InputError(
            f"x must be contiguous along its last dimension, and its strides are {x.stride()}"
        )


def _check_options(pow2: bool, amax_floor: float) -> None:
    if not isinstance(pow2, bool):
        raise InputError(f"pow2 must be True or False, not {pow2!r}")
    if not isinstance(amax_floor, (int, float)) or isinstance(amax_floor, bool):
        raise InputError(f"amax_floor must be a number, not {amax_floor!r}")
    if not AMAX_FLOOR <= amax_floor <= torch.finfo(torch.float32).max:
        raise InputError(
            f"amax_floor must be a finite number of at least 448 * 2**-126, not {amax_floor}"
        )


def _check_out(out: BlockScaled, x: Tensor) -> None:
    if not isinstance(out, BlockScaled):
        raise InputError(f"out must be a BlockScaled, not {type(out).__name__}")
    rows, columns = x.shape
    wanted = {
        "data": ((rows, columns), (columns, 1), torch.float8_e4m3fn),
        "scale": (_scale_shape(x), scale_strides_1x128(rows), torch.float32),
    }
    if out.block != BLOCK_1X128 or out.axis != 1:
        raise InputError(f"out must have block (1, 128) and axis 1, and is {out}")
    for name, (shape, strides, dtype) in wanted.items():
        tensor: Tensor = getattr(out, name)
        given = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
        # Strides of dimensions with one entry say nothing.
        same_layout = all(
            extent <= 1 or a == b for extent, a, b in zip(shape, given[1], strides, strict=False)
        )
        if given[0] != shape or not same_layout or given[2] != dtype:
            raise InputError(
                f"out.{name} must be {dtype} {list(shape)} with strides {strides}, not "
                f"{given[2]} {list(given[0])} with strides {given[1]}"
            )
        if tensor.device != x.device:
            raise InputError(f"out.{name} is on {tensor.device} and x on {x.device}")


def _scale_shape(x: Tensor) -> tuple[int, int]:
    rows, columns = x.shape
    return rows, (columns + TILE - 1) // TILE


def _empty_like_result(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    data = x.new_empty((rows, columns), dtype=torch.float8_e4m3fn)
    scale = x.new_empty_strided(_scale_shape(x), scale_strides_1x128(rows), dtype=torch.float32)
    return data, scale


def _functional(x: Tensor, pow2: bool, amax_floor: float, backend: str) -> tuple[Tensor, Tensor]:
    data, scale = _empty_like_result(x)
    _into(x, data, scale, pow2, amax_floor, backend)
    return data, scale


def _into(
    x: Tensor, data: Tensor, scale: Tensor, pow2: bool, amax_floor: float, backend: str
) -> None:
    if backend == "reference":
        result = reference.quantize_1x128(x, pow2=pow2, amax_floor=amax_floor)
        data.copy_(result[0])
        scale.copy_(result[1])
        return
    target = launch_target(backend, x, data, scale)
    rows, columns = x.shape
    runtime.extension().quantize_1x128(
        target.device,
        target.stream,
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        data.data_ptr(),
        scale.data_ptr(),
        x.stride(0),
        scale.stride(1),
        rows,
        columns,
        amax_floor,
        pow2,
    )


def _fake(x: Tensor, pow2: bool, amax_floor: float, backend: str) -> tuple[Tensor, Tensor]:
    return _empty_like_result(x)


define(
    "quantize_1x128(Tensor x, bool pow2, float amax_floor, str backend) -> (Tensor, Tensor)",
    _functional,
    fake=_fake,
)
define(
    "quantize_1x128_out(Tensor x, Tensor(a!) data, Tensor(b!) scale, bool pow2, "
    "float amax_floor, str backend) -> ()",
    _into,
    fake=lambda *arguments: None,
)
