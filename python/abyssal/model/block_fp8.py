"""FP8 weights as checkpoints hold them: E4M3 codes and one FP32 scale for each block.

A weight [N, K] is stored as `X.weight`, float8_e4m3fn [N, K], and `X.weight_scale_inv`, float32
[ceil(N / rows), ceil(K / columns)], where value = code * scale; blocks at the lower and right
edge are cut off where the weight ends. The block size stands in config.json
(`quantization_config.weight_block_size`). It cannot be told from the shapes: 576 rows in 5 blocks
may be blocks of 116 to 143 rows, and are blocks of 128 with a last one of 64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.errors import InputError
from abyssal.reference.quantize import E4M3_MAX, TILE, quantize_128x128

SCALE_SUFFIX = "_scale_inv"
BLOCK = (TILE, TILE)

# What a released FP8 config.json says, and what we write.
QUANTIZATION_CONFIG: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": list(BLOCK),
}

# How many values are widened at once: the temporaries stay within a few MB, and in the cache.
_BAND_VALUES = 1 << 18

# Fields that say how to run the model or how the scales were rounded when it was written. They do
# not change what the stored numbers mean.
_INFORMATIVE = {
    "activation_scheme",
    "dequantize",
    "expert_dtype",
    "ignored_layers",
    "modules_to_convert",
    "modules_to_not_convert",
    "scale_fmt",
}


def block_size(quantization_config: Any) -> tuple[int, int]:
    """The (rows, columns) of a block, from config.json's `quantization_config`.

    Raises InputError for another format than block-wise E4M3.
    """
    if not isinstance(quantization_config, Mapping):
        raise InputError(f"quantization_config must be an object, not {quantization_config!r}")
    unknown = sorted(set(quantization_config) - _INFORMATIVE - set(QUANTIZATION_CONFIG))
    if unknown:
        raise InputError(
            f"quantization_config has unknown field(s) {', '.join(map(repr, unknown))}"
        )
    for name, accepted in (("quant_method", "fp8"), ("fmt", "e4m3")):
        given = quantization_config.get(name, accepted)
        if given != accepted:
            raise InputError(f"quantization_config.{name} must be {accepted!r}, not {given!r}")
    size = quantization_config.get("weight_block_size")
    if (
        not isinstance(size, (list, tuple))
        or len(size) != 2
        or not all(type(extent) is int and extent > 0 for extent in size)
    ):
        raise InputError(
            "quantization_config.weight_block_size must be two positive integers, such as "
            f"[128, 128], not {size!r}"
        )
    return size[0], size[1]


def scale_grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks cover a weight of `shape` [N, K], downwards and across."""
    return math.ceil(shape[0] / block[0]), math.ceil(shape[1] / block[1])


def dequantize_into(
    destination: Tensor, codes: Tensor, scale: Tensor, block: tuple[int, int] = BLOCK
) -> None:
    """destination[n, k] = fl32(code * scale of its block), then rounded to destination's dtype.

    destination: floating [N, K]; codes: float8_e4m3fn [N, K]; scale: float32, on one device.
    """
    assert tuple(scale.shape) == scale_grid(tuple(codes.shape), block)
    for rows, blocks in _bands(codes.shape, block):
        destination[rows].copy_(_widen(codes[rows], scale[blocks], block))


def quantize(weight: Tensor, stored_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Encode weight [N, K] in blocks of 128x128: (codes float8_e4m3fn, scale float32).

    A block that `stored_scale` (the scales it was read with) represents without any loss keeps
    that scale, and so gets back the very codes it was read from; every other block is quantised
    anew (`abyssal.reference.quantize`). FP64 weights are rounded to FP32 first.

    Raises InputError where the weight holds Inf or NaN: such a block has no finite scale.
    """
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    scale = torch.empty(scale_grid(tuple(weight.shape), BLOCK), device=weight.device)
    for rows, blocks in _bands(weight.shape, BLOCK):
        band = weight[rows]
        band_codes, band_scale = quantize_128x128(band.float())
        if stored_scale is not None:
            kept = stored_scale[blocks].to(weight.device)
            _keep_lossless(band, band_codes, band_scale, kept)
        codes[rows], scale[blocks] = band_codes, band_scale
    if not scale.isfinite().all():
        raise InputError("an FP8 weight cannot hold Inf or NaN")
    return codes, scale


def _keep_lossless(band: Tensor, codes: Tensor, scale: Tensor, stored: Tensor) -> None:
    """Put `stored` scales and their codes into `codes` and `scale` wherever they lose nothing."""
    # Division, because 1 / scale overflows for the smallest scales. A scale of 0 gives NaN or
    # Inf here, which equals no value, so its block is quantised anew.
    ratio = band.float() / _spread(stored, band.shape, BLOCK)
    candidate = ratio.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    same = _widen(candidate, stored, BLOCK).to(band.dtype) == band
    padding = (0, -band.shape[1] % TILE, 0, -band.shape[0] % TILE)
    tiles = F.pad(same, padding, value=True).unflatten(0, (-1, TILE)).unflatten(2, (-1, TILE))
    lossless = tiles.all(dim=3).all(dim=1)
    keep = _spread(lossless, band.shape, BLOCK)
    as_bytes = codes.view(torch.uint8)
    as_bytes[keep] = candidate.view(torch.uint8)[keep]
    scale[lossless] = stored[lossless]


def _bands(
    shape: tuple[int, ...] | torch.Size, block: tuple[int, int]
) -> Iterator[tuple[slice, slice]]:
    """Bands of whole block rows: (the rows of the weight, the rows of the scale grid)."""
    height = max(1, _BAND_VALUES // (block[0] * max(1, shape[1])))
    for first in range(0, math.ceil(shape[0] / block[0]), height):
        last = first + height
        yield slice(first * block[0], last * block[0]), slice(first, last)


def _spread(grid: Tensor, shape: tuple[int, ...] | torch.Size, block: tuple[int, int]) -> Tensor:
    """Repeat one number for each block over the values of the block: [N, K]."""
    rows = grid.repeat_interleave(block[0], 0)[: shape[0]]
    return rows.repeat_interleave(block[1], 1)[:, : shape[1]]


def _widen(codes: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """fl32(code * scale): float32 [N, K]."""
    return codes.float() * _spread(scale, codes.shape, block)
