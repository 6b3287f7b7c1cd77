"""Producers with a quantiser behind them, in plain PyTorch: the definition of their numerics.

RMSNorm, SwiGLU and SwiGLU's gradient compute in FP32, round their results to the type of their
input, and quantise these as `abyssal.reference.quantize`. So a fused op gives what its two parts
give one after the other. Every operation here is rounded to nearest even and sums have one order,
so that kernels can give the same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.reference.quantize import TILE

# RMSNorm: how many sums a row's squares are added to, and up to which width the first applies.
FEW_LANES, MANY_LANES = 256, 1024
FEW_LANES_COLUMNS = 2048

# SwiGLU: 2^r is nearly 1 + c1 r + ... + c5 r^5 for |r| <= 1/2, relative error 1.1e-7. The lower
# powers first.
EXP2_COEFFICIENTS = tuple(
    float.fromhex(c)
    for c in ("0x1.62e42ap-1", "0x1.ebf9bcp-3", "0x1.c6b752p-5", "0x1.3cea88p-7", "0x1.5bba14p-10")
)
LOG2_E = float.fromhex("0x1.715476p+0")

# SwiGLU's gradient: columns are summed in squares of 128, which so many blocks share.
MOST_BLOCKS = 8


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of x [T, K], BF16 or FP32; weight [K] of x's type or FP32.

    normalized = x / sqrt(mean of x^2 + eps) * weight, [T, K] of x's type. BF16 times BF16: the
    first factor is rounded to BF16 before the product is, as in the model's RMSNorm.
    Returns it and 1 / sqrt(...), FP32 [T].

    The sum: lane j adds the squares of columns j, j + L, j + 2 L, ... with L = 256 up to 2048
    columns and 1024 beyond; then neighbouring lanes are added in pairs, and so on.
    """
    columns = x.shape[1]
    lanes = FEW_LANES if columns <= FEW_LANES_COLUMNS else MANY_LANES
    wide = x.float()
    squares = F.pad(wide * wide, (0, -columns % lanes)).unflatten(1, (-1, lanes))
    total = squares[:, 0]
    for step in range(1, squares.shape[1]):
        total = total + squares[:, step]
    mean = sum_neighbours(total) / torch.full_like(total[:, 0], columns)
    # Through float64, whose root rounds to the nearest float32 even if it is itself a unit of the
    # last place off: torch's float32 roots on CPUs are not always the nearest (torch 2.13, MKL).
    root = (mean + torch.full_like(mean, eps)).double().sqrt().float()
    inverse_rms = root.reciprocal()
    normalized = wide * inverse_rms[:, None]
    if weight.dtype == x.dtype:
        normalized = normalized.to(x.dtype).float()
    return (weight.float() * normalized).to(x.dtype), inverse_rms


def swiglu(gate_up: Tensor, row_weight: Tensor | None = None) -> Tensor:
    """silu(gate) * up * row_weight: BF16 [T, 2 I] (gates, then ups) and FP32 [T] to BF16 [T, I]."""
    gate, up = gate_up.float().chunk(2, dim=1)
    return _weighted(gate * sigmoid(gate) * up, row_weight).to(gate_up.dtype)


def swiglu_backward(
    dy: Tensor, gate_up: Tensor, row_weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient dy of `swiglu`'s result, BF16 [T, I], I a multiple of 128.

    Returns d_gate_up, BF16 [T, 2 I]; what `swiglu` gives, BF16 [T, I]; d_row_weight, FP32 [T].

    The sum of d_row_weight: eight neighbouring columns one after the other, 16 such eights in pairs
    of neighbours, and so on. Of these squares of 128 columns, block b of min(8, I / 128) adds up
    squares b, b + 8, ..., and then the blocks are added, each one after the other.
    """
    gate, up = gate_up.float().chunk(2, dim=1)
    sigma = sigmoid(gate)
    silu = gate * sigma
    weighted = _weighted(dy.float(), row_weight)
    d_gate = weighted * up * (sigma + silu * (1 - sigma))
    d_up = weighted * silu
    product = silu * up
    d_gate_up = torch.cat([d_gate, d_up], dim=1).to(gate_up.dtype)
    h = _weighted(product, row_weight).to(gate_up.dtype)
    return d_gate_up, h, _sum_columns(dy.float() * product)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) of FP32, relative error below 1e-7 (3 + |x|) from -86.5 on.

    Below, it stays what it is there. Of NaN it is some number: callers multiply by x.
    """
    # e^-x = 2^t = 2^n 2^r, n the integer next to t.
    t = torch.fmax(x, torch.full_like(x, -86.5)).clamp(max=41.5) * -LOG2_E
    n = t.round()
    r = t - n
    power = torch.full_like(r, EXP2_COEFFICIENTS[-1])
    for coefficient in (*EXP2_COEFFICIENTS[-2::-1], 1.0):
        power = power * r + coefficient
    bits = power.view(torch.int32) + n.to(torch.int32) * 2**23
    return (bits.view(torch.float32) + 1).reciprocal()


def sum_neighbours(x: Tensor) -> Tensor:
    """The sum over the last dimension, a power of two: neighbours in pairs, pairs in pairs, ..."""
    while x.shape[-1] > 1:
        x = x[..., 0::2] + x[..., 1::2]
    return x[..., 0]


def _weighted(x: Tensor, row_weight: Tensor | None) -> Tensor:
    return x if row_weight is None else x * row_weight[:, None]


def _sum_columns(x: Tensor) -> Tensor:
    eights = x.unflatten(1, (-1, TILE // 8, 8))
    squares = sum_neighbours(_add_up(eights.unbind(3)))
    blocks = min(MOST_BLOCKS, squares.shape[1])
    return _add_up([_add_up(squares[:, b::blocks].unbind(1)) for b in range(blocks)])


def _add_up(terms: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total
