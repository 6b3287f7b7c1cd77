"""The 128x128 weight quantiser in plain PyTorch: the definition of its numerics.

One FP32 scale for each 128x128 tile, E4M3 codes, value = code * scale (DeepSeek-V3 report,
section 3.3.2). Ragged edges count as if they were padded with zeros.
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


def quantize_128x128(
    weight: Tensor, *, pow2: bool = False, amax_floor: float = AMAX_FLOOR
) -> tuple[Tensor, Tensor]:
    """Quantise weight [N, K], FP32 or BF16, to (codes, scale).

    codes: float8_e4m3fn [N, K]; scale: float32 [ceil(N / 128), ceil(K / 128)].

        amax  = max |w| over the tile
        scale = fl32(max(amax, amax_floor) / 448), 1 where amax is 0; with pow2 the smallest
                power of two that is not below it
        code  = round to nearest even of clamp(w * fl32(1 / scale), -448, 448)

    A tile that holds Inf or NaN gets scale NaN and all codes 0x7F (NaN), so that nothing that
    reads it looks healthy.
    """
    assert weight.dim() == 2 and weight.dtype in (torch.float32, torch.bfloat16)
    rows, columns = weight.shape
    padding = (0, -columns % TILE, 0, -rows % TILE)
    padded = F.pad(weight.float(), padding)
    tiles = padded.unflatten(0, (-1, TILE)).unflatten(2, (-1, TILE))  # [n, 128, k, 128]
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


def round_up_to_power_of_two(scale: Tensor) -> Tensor:
    """The smallest power of two not below each positive, normal FP32 number, by exponent bits."""
    bits = scale.contiguous().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    return (exponent << 23).view(torch.float32)
