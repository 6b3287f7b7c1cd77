"""E5M6 in tiles of 1x128: a 12-bit format for activations that FP8 is too coarse for.

The report keeps the input of the projection after attention (o_proj) in a "customized E5M6 data
format" with scales that are integral powers of two (DeepSeek-V3 report, section 3.3.3), since the
gradient of attention reads it, too. It gives neither the layout nor the bias; those here are ours
and follow E5M2 and IEEE 754:

    bit   11     10 ... 6     5 ... 0
          sign   exponent     fraction

    exponent 1 to 30    (-1)^sign * 2^(exponent - 15) * (1 + fraction / 64)
    exponent 0          (-1)^sign * 2^-14 * fraction / 64
    exponent 31         Inf (fraction 0) or NaN

Two codes are three bytes, the first in the lower 12 bits, little-endian: 1.5 bytes a value, plus a
float32 scale for each 128 values of a row. For a tile, ragged edges as if padded with zeros:

    amax  = max |x|
    scale = the smallest power of two from 2^-126 to 2^112 that is not below amax / 65024 (2^112
            where none is), 1 where amax is 0
    code  = round to nearest even of clamp(x / scale, -65024, 65024)

As scales are powers of two, x / scale is exact (what FP32 cannot hold of it is far below the
smallest code) and a value is rounded once: its error is at most 2^-7 of it, or 2^-21 of the scale
where that is more (values below 2^-29 of the tile's largest). A tile that holds Inf or NaN gets
scale NaN and codes 0x7FF, as FP8's tiles do; codes of exponent 31 do not occur otherwise. Every
other tile decodes to finite numbers: only magnitudes from 2^128 (1 - 2^-8) on, BF16's largest
number among them, saturate, since the nearest, 2^128, is beyond FP32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.errors import InputError
from abyssal.reference.quantize import TILE, round_up_to_power_of_two

E5M6_MAX = 65024.0  # (2 - 1/64) * 2^15
SCALE_MAX = 2.0**112  # 65024 times it is finite in FP32, and 65024 times the next is not
NAN_CODE = 0x7FF

_SMALLEST_NORMAL_EXPONENT = -14
_FRACTION_BITS = 6


def quantize_1x128_e5m6(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise activations [T, K], FP32 or BF16, K even, in tiles along K, to (packed, scale).

    packed: uint8 [T, 3 K / 2], as this module describes; scale: float32 [T, ceil(K / 128)].

    Raises InputError for another type or shape.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a tensor, not {type(x).__name__}")
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise InputError(f"x must be bfloat16 or float32, not {x.dtype}")
    if x.dim() != 2 or x.shape[1] % 2:
        raise InputError(f"x must be [T, K] with K even, not {list(x.shape)}")
    columns = x.shape[1]
    tiles = F.pad(x.detach().float(), (0, -columns % TILE)).unflatten(1, (-1, TILE))
    # amax propagates NaN, so one test finds both Inf and NaN.
    amax = tiles.abs().amax(dim=2)
    scale = amax.clamp_min(E5M6_MAX * 2.0**-126) / torch.full_like(amax, E5M6_MAX)
    scale = round_up_to_power_of_two(scale).clamp_max(SCALE_MAX)
    scale = torch.where(amax == 0, torch.ones_like(scale), scale)
    scale = torch.where(amax.isfinite(), scale, torch.full_like(scale, float("nan")))
    codes = encode(tiles * scale.reciprocal()[:, :, None])
    return pack(codes.flatten(1)[:, :columns]), scale


def dequantize_1x128_e5m6(packed: Tensor, scale: Tensor) -> Tensor:
    """The values, float32 [T, K], exactly, of what `quantize_1x128_e5m6` gives.

    Raises InputError for another type or shape.
    """
    for name, tensor, dtype in (("packed", packed, torch.uint8), ("scale", scale, torch.float32)):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.dtype != dtype or tensor.dim() != 2:
            raise InputError(
                f"{name} must be {dtype} with 2 dimensions, not {tensor.dtype} {list(tensor.shape)}"
            )
    rows, size = packed.shape
    if size % 3:
        raise InputError(f"packed must be [T, 3 K / 2] with K even, not {list(packed.shape)}")
    columns = size // 3 * 2
    if tuple(scale.shape) != (rows, (columns + TILE - 1) // TILE):
        raise InputError(
            f"scale must be {[rows, (columns + TILE - 1) // TILE]} for packed {[rows, size]}, not "
            f"{list(scale.shape)}"
        )
    # By whole tiles: compiled for CPUs, an index_select of one row's scales by arange // 128 reads
    # past their end (torch 2.13).
    values = F.pad(decode(unpack(packed)), (0, -columns % TILE)).unflatten(1, (-1, TILE))
    return (values * scale[:, :, None]).flatten(1)[:, :columns].contiguous()


def encode(x: Tensor) -> Tensor:
    """Codes, int16, of float32 numbers: to nearest even, clamped to +-65024; NaN to 0x7FF."""
    magnitude = x.abs().clamp_max(E5M6_MAX)
    # Of numbers below, and of 0, whose exponent frexp calls 0: the smallest normal number's.
    normal = magnitude.clamp_min(2.0**_SMALLEST_NORMAL_EXPONENT)
    exponent = torch.frexp(normal).exponent - 1
    # In units of the last place: at most 128, which carries into the exponent.
    units = torch.ldexp(magnitude, _FRACTION_BITS - exponent).round()
    below = (exponent - _SMALLEST_NORMAL_EXPONENT) << _FRACTION_BITS
    code = below + units.nan_to_num(0).to(torch.int32)
    code = code | (x.signbit().to(torch.int32) << 11)
    return torch.where(x.isnan(), NAN_CODE, code).to(torch.int16)


def decode(codes: Tensor) -> Tensor:
    """Values, float32, of codes from 0 to 0xFFF."""
    wide = codes.to(torch.int32)
    exponent, fraction = (wide >> _FRACTION_BITS) & 31, wide & 63
    normal = torch.where(exponent > 0, 64, 0)
    units = (normal + fraction).float()
    value = torch.ldexp(units, exponent.clamp_min(1) - 15 - _FRACTION_BITS)
    special = torch.where(fraction == 0, float("inf"), float("nan"))
    value = torch.where(exponent == 31, special, value)
    return torch.where(wide >> 11 != 0, -value, value)


def pack(codes: Tensor) -> Tensor:
    """Codes [..., K], K even, to bytes, uint8 [..., 3 K / 2]."""
    first, second = codes.to(torch.int32).unflatten(-1, (-1, 2)).unbind(-1)
    word = first | second << 12
    return torch.stack([word & 255, word >> 8 & 255, word >> 16], dim=-1).flatten(-2).byte()


def unpack(packed: Tensor) -> Tensor:
    """Bytes, uint8 [..., 3 K / 2], to codes, int16 [..., K]."""
    low, middle, high = packed.to(torch.int32).unflatten(-1, (-1, 3)).unbind(-1)
    word = low | middle << 8 | high << 16
    return torch.stack([word & 0xFFF, word >> 12], dim=-1).flatten(-2).short()
