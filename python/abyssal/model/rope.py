"""Rotary position embedding, plain and YaRN (Peng et al., arXiv 2309.00071; report, section 4.3).

Legend of shape suffixes: B batch, T tokens, H heads, R rotary width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abyssal.model.config import BETA_FAST, BETA_SLOW, DeepseekV3Config


def magnitude_scale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's growth of attention temperature, 0.1 * mscale * ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(config: DeepseekV3Config) -> float:
    """What attention scores are multiplied by: 1/sqrt(qk_head_dim), times YaRN's temperature."""
    scale = config.qk_head_dim**-0.5
    scaling = config.rope_scaling
    if scaling and scaling.get("mscale_all_dim"):
        scale *= magnitude_scale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
    return scale


def inverse_frequencies(config: DeepseekV3Config) -> Tensor:
    """Radians a position of each rotary pair. Returns float32 [R / 2].

    YaRN keeps the pairs that turn at least `beta_fast` times over the original context, divides
    the frequency of those that turn less than `beta_slow` times by `factor`, and blends between.
    """
    width = config.qk_rope_head_dim
    # On the CPU whatever the default device is: the table is a constant of the configuration, and
    # a model built on "meta" needs it as well.
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
    frequencies = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies

    def pair_that_turns(turns: float) -> float:
        context = scaling["original_max_position_embeddings"]
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = pair_that_turns(scaling.get("beta_fast") or BETA_FAST)
    high = pair_that_turns(scaling.get("beta_slow") or BETA_SLOW)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    # The same small width that the public implementations use where the ramp would be empty.
    span = high - low if high != low else 0.001
    pair = torch.arange(width // 2, dtype=torch.float32, device="cpu")
    interpolated = ((pair - low) / span).clamp(0, 1)
    return frequencies / scaling["factor"] * interpolated + frequencies * (1 - interpolated)


def cos_sin_factor(config: DeepseekV3Config) -> float:
    """What YaRN multiplies cos and sin by (1.0 for the released model)."""
    scaling = config.rope_scaling
    if scaling is None:
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = scaling["factor"]
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and all_dim:
        return magnitude_scale(factor, mscale) / magnitude_scale(factor, all_dim)
    return magnitude_scale(factor)


def rotation(position_ids: Tensor, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """position_ids [B, T] -> (cos, sin), each float32 [B, T, 1, R / 2] (1 for the heads)."""
    angles = position_ids[..., None].float() * frequencies.to(position_ids.device)
    return (angles.cos() * factor).unsqueeze(2), (angles.sin() * factor).unsqueeze(2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleave: bool) -> Tensor:
    """Turn the rotary part x [B, T, H, R] by its position; the result holds the pairs as halves.

    With `interleave` a pair is (x[2i], x[2i + 1]), else (x[i], x[i + R/2]). The output order is the
    same for both: queries and keys only meet each other, so any common order will do.

    The products are formed in FP32 (cos and sin are), and the result has the dtype of x.
    """
    first, second = (x[..., 0::2], x[..., 1::2]) if interleave else x.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
