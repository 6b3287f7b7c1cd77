"""The FP8 matrix products in plain PyTorch: the definition of their numerics.

D = C + A B^T of E4M3 codes with a scale for each 128 of K (DeepSeek-V3 report, section 3.3.2):

    partial = the sum of 128 products of codes (K is padded with zeros)
    sums    = fma(partial, fl32(scale_a * scale_b), sums), in FP32, in the order of K, from 0
    D       = sums, or fl32(C + sums); BF16 rounds once more, to nearest even

`accumulate` says how a partial sum is formed: "fp32" in FP32, in any order; "hopper" as four
instructions of Hopper's tensor cores do, bit for bit, each of which adds 32 products to what there
is. Of these 33 terms, magnitudes are cut to 13 bits behind the leading one of the largest term (a
product counts as 2^(sum of its exponents)), added up exactly, and cut to 14 significant bits.

`split_k` divides K as several blocks of a cluster do: each has a run of ceil(blocks / split_k)
blocks of K and sums of its own; these are added in FP32, in the order of the runs.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

TILE = 128
# K of one instruction.
_STEP = 32
_FRACTION_BITS = 13
_ROWS, _SQUARE = (1, TILE), (TILE, TILE)
# Elements of the largest temporary.
_MOST_PRODUCTS = 2**22


def gemm(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    block_b: tuple[int, int] = _SQUARE,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    c: Tensor | None = None,
    accumulate: str = "fp32",
    split_k: int = 1,
) -> Tensor:
    """D [M, N] = C + A B^T.

    a: E4M3 [M, K] with scale_a [M, ceil(K / 128)]. b: E4M3 [N, K] with scale_b [ceil(N / 128),
    ceil(K / 128)] where block_b is (128, 128), [N, ceil(K / 128)] where it is (1, 128). c: [M, N]
    of out_dtype, or None for 0.
    """
    assert accumulate in ("fp32", "hopper") and block_b in (_ROWS, _SQUARE)
    blocks = math.ceil(a.shape[1] / TILE)
    share = max(1, math.ceil(blocks / split_k))
    sums = a.new_zeros((a.shape[0], b.shape[0]), dtype=torch.float32)
    for run in range(split_k):
        begin, end = min(run * share, blocks), min((run + 1) * share, blocks)
        part = _sum_blocks(a, scale_a, b, scale_b, block_b, range(begin, end), accumulate)
        sums = part if run == 0 else sums + part
    return (sums if c is None else c.float() + sums).to(out_dtype)


def grouped_gemm(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    block_b: tuple[int, int],
    offsets: Tensor,
    *,
    out: Tensor,
    beta: int = 0,
    accumulate: str = "fp32",
) -> Tensor:
    """Rows offsets[g] .. offsets[g + 1] of out = (beta * themselves) + those of a x b[g]^T.

    a [M, K], b [G, N, K] as in `gemm`, out [M, N]; offsets are cut to 0 .. M, and other rows left.
    """
    ends = offsets.clamp(0, a.shape[0]).tolist()
    for group, (begin, end) in enumerate(itertools.pairwise(ends)):
        if begin < end:
            rows = slice(begin, end)
            out[rows] = gemm(
                a[rows],
                scale_a[rows],
                b[group],
                scale_b[group],
                block_b,
                out_dtype=out.dtype,
                c=out[rows] if beta else None,
                accumulate=accumulate,
            )
    return out


def grouped_gemm_masked(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    block_b: tuple[int, int],
    counts: Tensor,
    *,
    out: Tensor,
    beta: int = 0,
    accumulate: str = "fp32",
) -> Tensor:
    """Row i < counts[g] of out[g] = (beta * itself) + a[g] x b[g]^T; other rows are left.

    a [G, M, K], b [G, N, K], out [G, M, N].
    """
    for group, count in enumerate(counts.clamp(0, a.shape[1]).tolist()):
        offsets = torch.tensor([0, count])
        operands = (a[group], scale_a[group], b[group, None], scale_b[group, None])
        grouped_gemm(*operands, block_b, offsets, out=out[group], beta=beta, accumulate=accumulate)
    return out


def wgrad(
    dy_t: Tensor,
    scale_dy: Tensor,
    x_t: Tensor,
    scale_x: Tensor,
    offsets: Tensor,
    *,
    out_dtype: torch.dtype = torch.float32,
    c: Tensor | None = None,
    accumulate: str = "fp32",
) -> Tensor:
    """D [G, N, K]: of group g, C + the product over its tokens, dy_t [N, T'] x_t [K, T']^T.

    Group g has the blocks of 128 tokens from offsets[g] // 128 + g on, as many as its
    offsets[g + 1] - offsets[g] tokens need.
    """
    ends = offsets.tolist()
    parts = []
    for group, (begin, end) in enumerate(itertools.pairwise(ends)):
        first = begin // TILE + group
        blocks = slice(first, first + math.ceil((end - begin) / TILE))
        tokens = slice(TILE * blocks.start, TILE * blocks.stop)
        operands = (dy_t[:, tokens], scale_dy[:, blocks], x_t[:, tokens], scale_x[:, blocks])
        of_c = None if c is None else c[group]
        parts.append(gemm(*operands, _ROWS, out_dtype=out_dtype, c=of_c, accumulate=accumulate))
    return torch.stack(parts)


def partial_sums(a: Tensor, b: Tensor) -> Tensor:
    """A B^T [M, N] as Hopper's tensor cores add up: a chain of instructions of K = 32, from 0.

    a [M, K] and b [N, K] are E4M3, K is a multiple of 32; the sums are FP32.
    """
    sums = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    rows = max(1, _MOST_PRODUCTS // (b.shape[0] * _STEP))
    for begin in range(0, a.shape[0], rows):
        part = slice(begin, begin + rows)
        for k in range(0, a.shape[1], _STEP):
            sums[part] = _instruction(a[part, k : k + _STEP], b[:, k : k + _STEP], sums[part])
    return sums


def fma(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """FP32 x * y + z, rounded once.

    In FP64 the product is exact. Its sum with z is rounded to odd (an inexact result gets a last
    bit of 1), from which rounding to FP32 is as if it were the only one (Boldo, Melquiond 2008).
    """
    product, z = x.double() * y.double(), z.double()
    total = product + z
    # What the addition lost (Knuth's TwoSum).
    z_in_total = total - product
    lost = (product - (total - z_in_total)) + (z - z_in_total)
    bits = total.view(torch.int64)
    inexact = (lost != 0) & lost.isfinite() & ((bits & 1) == 0)
    away = torch.where((lost > 0) == (total > 0), 1, -1)
    return torch.where(inexact, bits + away, bits).view(torch.float64).float()


def _sum_blocks(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    block_b: tuple[int, int],
    blocks: range,
    accumulate: str,
) -> Tensor:
    sums = a.new_zeros((a.shape[0], b.shape[0]), dtype=torch.float32)
    for block in blocks:
        k = slice(block * TILE, (block + 1) * TILE)
        if accumulate == "hopper":
            partial = partial_sums(_padded(a[:, k]), _padded(b[:, k]))
        else:
            partial = a[:, k].float() @ b[:, k].float().t()
        of_columns = scale_b[:, block]
        if block_b == _SQUARE:
            of_columns = of_columns.repeat_interleave(TILE)[: b.shape[0]]
        sums = fma(partial, scale_a[:, block, None] * of_columns[None], sums)
    return sums


def _padded(codes: Tensor) -> Tensor:
    """With code 0 up to a multiple of the instruction's K."""
    missing = -codes.shape[1] % _STEP
    if not missing:
        return codes
    raw = torch.nn.functional.pad(codes.view(torch.uint8), (0, missing))
    return raw.view(codes.dtype)


def _instruction(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """One instruction: c [M, N] + a [M, 32] b [N, 32]^T, cut as the module says.

    Everything is a float that is a small integer times a power of two, and exact.
    """
    products = a.float()[:, None] * b.float()[None]
    exponents = _exponents(a)[:, None] + _exponents(b)[None]
    # frexp's fraction is in [1/2, 1).
    exponent_c = torch.where(c == 0, _NO_EXPONENT, torch.frexp(c).exponent - 1)
    largest = torch.maximum(exponents.amax(-1), exponent_c)
    largest = largest.clamp_min(_NO_EXPONENT // 2)  # all terms are 0: any unit will do
    unit = torch.ldexp(torch.ones_like(c), _FRACTION_BITS - largest)
    # + 0.0: of nothing but negative zeros, too, the sum is +0.
    total = (products * unit[..., None]).trunc().sum(-1) + (c * unit).trunc() + 0.0
    excess = (torch.frexp(total).exponent - (_FRACTION_BITS + 1)).clamp_min(0)
    kept = torch.ldexp(torch.ldexp(total, -excess).trunc(), excess)
    return torch.where(total.isnan(), total, kept) / unit


_NO_EXPONENT = -100


def _exponents(codes: Tensor) -> Tensor:
    """int32, of E4M3 codes: that of normal numbers, -6 for subnormal ones, very low for zeros."""
    magnitude = codes.view(torch.uint8).int() & 0x7F
    exponent = (magnitude >> 3).clamp_min(1) - 7
    return torch.where(magnitude == 0, _NO_EXPONENT, exponent)
