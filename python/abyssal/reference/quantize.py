"""The FP8 quantisers in plain PyTorch: the definition of their numerics.

E4M3 codes and one FP32 scale for each tile, value = code * scale (DeepSeek-V3 report, section
3.3.2). For a tile, with ragged edges counted as if they were padded with zeros:

    amax  = max |x|
    scale = fl32(max(amax, amax_floor) / 448), 1 where amax is 0; with pow2 the smallest power of
            two that is not below it
    code  = round to nearest even of clamp(x * fl32(1 / scale), -448, 448)

A tile that holds Inf or NaN gets scale NaN and all codes 0x7F (NaN), so that nothing that reads it
looks healthy.

Weight gradients sum over tokens. Their operands are *transposed*: [K, Tp], with tiles of 128
neighbouring tokens of one group (the tokens of an expert, rows offsets[g] to offsets[g + 1]). Group
g begins at column `transposed_group_start(offsets)[g]`; what its last tile lacks counts as zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128
E4M3_MAX = 448.0
# The smallest scale is then 2^-126, the smallest normal FP32 number, whose inverse is exact.
AMAX_FLOOR = E4M3_MAX * 2.0**-126
E4M3_NAN_CODE = 0x7F


def quantize_1x128(
    x: Tensor, *, pow2: bool = False, amax_floor: float = AMAX_FLOOR
) -> tuple[Tensor, Tensor]:
    """Quantise activations [M, K], FP32 or BF16, in tiles along K, to (codes, scale).

    codes: float8_e4m3fn [M, K]; scale: float32 [M, ceil(K / 128)].
    """
    return _quantize(x, 1, pow2, amax_floor)


def quantize_128x128(
    weight: Tensor, *, pow2: bool = False, amax_floor: float = AMAX_FLOOR
) -> tuple[Tensor, Tensor]:
    """Quantise a weight [N, K], FP32 or BF16, in square tiles, to (codes, scale).

    codes: float8_e4m3fn [N, K]; scale: float32 [ceil(N / 128), ceil(K / 128)]. Or a stack of
    weights, [G, N, K], to a stack of both.
    """
    if weight.dim() == 3:
        groups, rows, columns = weight.shape
        # Each begins at a multiple of whole tiles, then no tile has values of two.
        padded = F.pad(weight, (0, 0, 0, -rows % TILE))
        codes, scale = _quantize(padded.flatten(0, 1), TILE, pow2, amax_floor)
        codes = codes.view(torch.uint8).view(groups, padded.shape[1], columns)
        scale = scale.view(groups, padded.shape[1] // TILE, scale.shape[1])
        return codes[:, :rows].contiguous().view(torch.float8_e4m3fn), scale
    return _quantize(weight, TILE, pow2, amax_floor)


def quantize_1x128_both(
    x: Tensor,
    offsets: Tensor | None = None,
    *,
    pow2: bool = False,
    amax_floor: float = AMAX_FLOOR,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Quantise activations [T, K], FP32 or BF16, as `quantize_1x128`, and transposed.

    Returns (codes, scale) of both: float8_e4m3fn [T, K] and float32 [T, ceil(K / 128)];
    float8_e4m3fn [K, Tp] and float32 [K, Tp / 128]. Tiles of no group are zeros here.
    """
    transposed = pad_groups(x, offsets).t()
    return (
        quantize_1x128(x, pow2=pow2, amax_floor=amax_floor),
        quantize_1x128(transposed, pow2=pow2, amax_floor=amax_floor),
    )


def retile_128x1(
    codes: Tensor, scale: Tensor, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Change the tiles of a matrix [T, K] from 1x128 to 128x1: transposed codes and scale.

    The values, code * scale, are quantised anew with power-of-two scales. They are formed as halves
    in FP32,

        half   = fl32(code * fl32(scale / 2))
        amax   = max |half|
        scale' = the smallest power of two not below fl32(max(amax, 224 * 2^-126) / 224), 1 where
                 amax is 0
        code'  = round to nearest even of clamp(half * (2 / scale'), -448, 448)

    since a value may reach 2^128 (the largest FP32 numbers have scale 2^120 and codes of 256). So
    no result of the quantisers overflows; values of 2^129 and more, which they cannot make, count
    as Inf. Where scales are powers of two from 2^-126 on, every product is exact, and so is code'
    unless |value| < 2^-6 scale'. A tile that holds NaN: scale' NaN and all codes NaN.
    """
    assert codes.dim() == 2 and codes.dtype == torch.float8_e4m3fn
    tile = torch.arange(codes.shape[1], device=codes.device) // TILE
    half_scale = (scale * 0.5).index_select(1, tile)
    halves = pad_groups(codes.float() * half_scale, offsets).t().unflatten(1, (-1, TILE))
    amax = halves.abs().amax(dim=2)
    half_max = torch.full_like(amax, E4M3_MAX / 2)
    new_scale = round_up_to_power_of_two(amax.clamp_min(AMAX_FLOOR / 2) / half_max)
    new_scale = torch.where(amax == 0, torch.ones_like(amax), new_scale)
    new_scale = torch.where(amax.isfinite(), new_scale, torch.full_like(amax, float("nan")))
    scaled = halves * (2.0 / new_scale)[:, :, None]
    return _encode(scaled, new_scale[:, :, None]).flatten(1), new_scale


def transposed_group_start(offsets: Tensor) -> Tensor:
    """The first column of each group of the transposed layout: int64, as many as offsets.

    The last is where another group would begin. From offsets[g] and g alone: nobody has to add up
    the padded lengths of the groups before.
    """
    index = torch.arange(offsets.shape[0], device=offsets.device)
    return TILE * (offsets.long() // TILE + index)


def transposed_columns(rows: int, offsets: Tensor | None) -> int:
    """Columns of the transposed layout, Tp, from shapes alone."""
    if offsets is None:
        return TILE * ((rows + TILE - 1) // TILE)
    return TILE * (rows // TILE + offsets.shape[0] - 1)


def transposed_rows(rows: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """For each column of the transposed layout: the row that lies there, or -1; its group, or -1.

    A column that pads a group has a group and no row.
    """
    columns = torch.arange(transposed_columns(rows, offsets), device=offsets.device)
    start, wide = transposed_group_start(offsets), offsets.long()
    group = torch.searchsorted(start, columns, right=True) - 1
    after_last = group >= offsets.shape[0] - 1
    group = group.clamp(max=offsets.shape[0] - 2)
    row = wide[group] + columns - start[group]
    end = wide[group + 1]
    # The last tile of a group: whole, if it has any row.
    first_of_tile = row - columns % TILE
    outside = after_last | (first_of_tile >= end)
    row = torch.where(outside | (row >= end), -1, row)
    return row, torch.where(outside, -1, group)


def pad_groups(x: Tensor, offsets: Tensor | None) -> Tensor:
    """The rows of x [T, K] where the transposed layout has them, [Tp, K]; zeros between."""
    if offsets is None:
        return F.pad(x, (0, 0, 0, -x.shape[0] % TILE))
    row, _ = transposed_rows(x.shape[0], offsets)
    if x.shape[0] == 0:
        return x.new_zeros(row.shape[0], x.shape[1])
    return torch.where((row >= 0)[:, None], x[row.clamp_min(0)], torch.zeros_like(x[:1]))


def round_up_to_power_of_two(scale: Tensor) -> Tensor:
    """The smallest power of two not below each positive, normal FP32 number, by exponent bits."""
    bits = scale.contiguous().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    return (exponent << 23).view(torch.float32)


def _quantize(x: Tensor, tile_rows: int, pow2: bool, amax_floor: float) -> tuple[Tensor, Tensor]:
    assert x.dim() == 2 and x.dtype in (torch.float32, torch.bfloat16)
    rows, columns = x.shape
    padded = F.pad(x.float(), (0, -columns % TILE, 0, -rows % tile_rows))
    # [row of tiles, row in the tile, column of tiles, column in the tile]
    tiles = padded.unflatten(0, (-1, tile_rows)).unflatten(2, (-1, TILE))
    # amax propagates NaN, so one test finds both Inf and NaN.
    amax = tiles.abs().amax(dim=(1, 3))
    # A tensor, not a Python number: some devices divide by a number as a product with 1/448.
    scale = amax.clamp_min(amax_floor) / torch.full_like(amax, E4M3_MAX)
    if pow2:
        scale = round_up_to_power_of_two(scale)
    scale = torch.where(amax == 0, torch.ones_like(scale), scale)
    scale = torch.where(amax.isfinite(), scale, torch.full_like(scale, float("nan")))

    scaled = tiles * scale.reciprocal()[:, None, :, None]
    codes = _encode(scaled, scale[:, None, :, None])
    codes = codes.view(torch.uint8).flatten(2, 3).flatten(0, 1)[:rows, :columns].contiguous()
    return codes.view(torch.float8_e4m3fn), scale


def _encode(scaled: Tensor, scale: Tensor) -> Tensor:
    """Values in units of their tile's scale to E4M3; all NaN where the scale is."""
    # Casts of out-of-range values differ between torch versions and devices: clamp first.
    codes = scaled.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    codes = torch.where(scale.isnan(), E4M3_NAN_CODE, codes)
    return codes.view(torch.float8_e4m3fn)
