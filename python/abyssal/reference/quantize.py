"""The FP8 quantisers in plain PyTorch: the definition of their numerics.

E4M3 codes and one FP32 scale for each tile, value = code * scale (DeepSeek-V3 report, section
3.3.2). For a tile, with ragged edges counted as if they were padded with zeros:

    amax  = max |x|
    scale = fl32(max(amax, amax_floor) / 448), 1 where amax is 0; with pow2 the smallest power of
            two that is not below it
    code  = round to nearest even of clamp(x * fl32(1 / scale), -448, 448)

A tile that holds Inf or NaN gets scale NaN and all codes 0x7F (NaN), so that nothing that reads it
looks healthy.
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

    codes: float8_e4m3fn [N, K]; scale: float32 [ceil(N / 128), ceil(K / 128)].
    """
    return _quantize(weight, TILE, pow2, amax_floor)


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

    # Casts of out-of-range values differ between torch versions and devices: clamp first.
    scaled = tiles * scale.reciprocal()[:, None, :, None]
    codes = scaled.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    codes = torch.where(scale.isnan()[:, None, :, None], E4M3_NAN_CODE, codes)
    codes = codes.flatten(2, 3).flatten(0, 1)[:rows, :columns].contiguous()
    return codes.view(torch.float8_e4m3fn), scale
