"""The FP8 GEMMs beside cuBLASLt's block-scaled ones (torch's scaled_mm) and BF16 products.

Shapes are DeepSeek-V3's: all linears of a layer forward for few and many tokens, input gradients,
experts by offsets and masked, weight gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal import ops
from abyssal.ops.block_scaled import BlockScaled
from abyssal.reference import gemm as reference
from benchmarks.harness import OURS, Case, Inputs

OP = "fp8_gemm"

# (N, K): q_a with kv_a, kv_a, q_b, kv_b, o, an expert's gate_up and down, a dense layer's.
LINEARS = [
    (2112, 7168),
    (576, 7168),
    (24576, 1536),
    (32768, 512),
    (7168, 16384),
    (4096, 7168),
    (7168, 2048),
    (36864, 7168),
    (7168, 18432),
]
TOKENS = (1, 64, 128, 4096)
# Groups and rows of each; (N, K) of the experts.
EXPERTS = [(4, 8192), (8, 4096), (32, 256)]
EXPERT_LINEARS = [(4096, 7168), (7168, 2048)]


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    if quick:
        yield dense(64, 576, 512, device)
        yield grouped(2, 64, 256, 256, device)
        yield weight_gradient(2, 128, 128, 256, device)
        return
    for n, k in LINEARS:
        for tokens in TOKENS:
            yield dense(tokens, n, k, device)
        yield dense(4096, k, n, device)  # the input's gradient
    for groups, rows in EXPERTS:
        for n, k in EXPERT_LINEARS:
            yield grouped(groups, rows, n, k, device)
            yield weight_gradient(groups, rows, n, k, device)
    for n, k in EXPERT_LINEARS:
        yield masked(32, 192, 20, n, k, device)


def dense(m: int, n: int, k: int, device: torch.device) -> Case:
    def make_inputs(seed: int) -> Inputs:
        x, w = _random((m, k), seed, device), _random((n, k), seed + 1, device)
        out = torch.empty(m, n, dtype=torch.bfloat16, device=device)
        # As cuBLASLt has scales: [M, K / 128] with M contiguous, [K / 128, N / 128] padded to 4.
        a, b = ops.quantize_1x128(x), ops.quantize_128x128(w)
        peer_a = a.scale.t().contiguous().t()
        blocks = b.scale.shape[1]
        peer_b = F.pad(b.scale, (0, -blocks % 4))
        return a, b, out, x, w, peer_a, peer_b

    def ours(a: BlockScaled, b: BlockScaled, out: Tensor, *_: Tensor) -> Tensor:
        return ops.fp8_gemm(a, b, out=out)

    def bf16(
        a: BlockScaled, b: BlockScaled, out: Tensor, x: Tensor, w: Tensor, *_: Tensor
    ) -> Tensor:
        return torch.mm(x, w.t(), out=out)

    def cublas(
        a: BlockScaled, b: BlockScaled, out: Tensor, x: Tensor, w: Tensor, sa: Tensor, sb: Tensor
    ) -> Tensor:
        recipes = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
        return F.scaled_mm(a.data, b.data.t(), sa, recipes[0], sb.t(), recipes[1])

    def check(a: BlockScaled, b: BlockScaled, out: Tensor, *_: Tensor) -> None:
        part = BlockScaled(a.data[:64], a.scale[:64], a.block)
        _assert_near(ours(a, b, out)[:64], _product(part, b))

    return Case(
        label=f"{m} x {n} x {k}",
        make_inputs=make_inputs,
        bytes_moved=m * k + n * k + 2 * m * n,
        operations=2 * m * n * k,
        contenders={OURS: ours, "scaled_mm": cublas, "torch bf16": bf16},
        check=check,
    )


def grouped(groups: int, rows: int, n: int, k: int, device: torch.device) -> Case:
    """Groups of about `rows` rows, 0.7 to 1.3 times as many, as routing makes them."""
    ends = _offsets(groups, rows)
    m = ends[-1]

    def make_inputs(seed: int) -> Inputs:
        a = ops.quantize_1x128(_random((m, k), seed, device))
        b = ops.quantize_128x128(_random((groups, n, k), seed + 1, device))
        out = torch.empty(m, n, dtype=torch.bfloat16, device=device)
        return a, b, torch.tensor(ends, dtype=torch.int32, device=device), out

    def ours(a: BlockScaled, b: BlockScaled, offsets: Tensor, out: Tensor) -> Tensor:
        return ops.fp8_grouped_gemm(a, b, offsets, out=out)

    def check(a: BlockScaled, b: BlockScaled, offsets: Tensor, out: Tensor) -> None:
        result = ours(a, b, offsets, out)
        part = BlockScaled(a.data[: min(64, ends[1])], a.scale[: min(64, ends[1])], a.block)
        of_first = BlockScaled(b.data[0], b.scale[0], b.block)
        _assert_near(result[: part.shape[0]], _product(part, of_first))

    return Case(
        label=f"{groups} groups of {rows} x {n} x {k}",
        make_inputs=make_inputs,
        bytes_moved=m * k + groups * n * k + 2 * m * n,
        operations=2 * m * n * k,
        contenders={OURS: ours},
        check=check,
    )


def masked(groups: int, room: int, rows: int, n: int, k: int, device: torch.device) -> Case:
    def make_inputs(seed: int) -> Inputs:
        flat = ops.quantize_1x128(_random((groups * room, k), seed, device))
        data = flat.data.view(groups, room, k)
        scale = flat.scale.unflatten(0, (groups, room))
        a = BlockScaled(data, scale, flat.block)
        b = ops.quantize_128x128(_random((groups, n, k), seed + 1, device))
        counts = torch.full((groups,), rows, dtype=torch.int32, device=device)
        return a, b, counts, torch.empty(groups, room, n, dtype=torch.bfloat16, device=device)

    def ours(a: BlockScaled, b: BlockScaled, counts: Tensor, out: Tensor) -> Tensor:
        return ops.fp8_grouped_gemm_masked(a, b, counts, out=out)

    def check(a: BlockScaled, b: BlockScaled, counts: Tensor, out: Tensor) -> None:
        result = ours(a, b, counts, out)
        part = BlockScaled(a.data[-1, :rows], a.scale[-1, :rows], a.block)
        of_last = BlockScaled(b.data[-1], b.scale[-1], b.block)
        _assert_near(result[-1, :rows], _product(part, of_last))

    m = groups * rows
    return Case(
        label=f"{groups} masked of {rows} x {n} x {k}",
        make_inputs=make_inputs,
        bytes_moved=m * k + groups * n * k + 2 * m * n,
        operations=2 * m * n * k,
        contenders={OURS: ours},
        check=check,
    )


def weight_gradient(groups: int, rows: int, n: int, k: int, device: torch.device) -> Case:
    ends = _offsets(groups, rows)

    def make_inputs(seed: int) -> Inputs:
        offsets = torch.tensor(ends, dtype=torch.int32, device=device)
        dy_t = ops.quantize_1x128_both(_random((ends[-1], n), seed, device), offsets)[1]
        x_t = ops.quantize_1x128_both(_random((ends[-1], k), seed + 1, device), offsets)[1]
        return dy_t, x_t, offsets, torch.empty(groups, n, k, device=device)

    def ours(dy_t: BlockScaled, x_t: BlockScaled, offsets: Tensor, out: Tensor) -> Tensor:
        return ops.fp8_wgrad(dy_t, x_t, offsets, out=out)

    def check(dy_t: BlockScaled, x_t: BlockScaled, offsets: Tensor, out: Tensor) -> None:
        result = ours(dy_t, x_t, offsets, out)
        blocks = math.ceil(ends[1] / 128)
        parts = [
            BlockScaled(t.data[:rows, : 128 * blocks], t.scale[:rows, :blocks], t.block)
            for t, rows in ((dy_t, 64), (x_t, k))
        ]
        _assert_near(result[0, :64], _product(*parts))

    return Case(
        label=f"wgrad {groups} of {rows}: {n} x {k}",
        make_inputs=make_inputs,
        bytes_moved=ends[-1] * (n + k) + 4 * groups * n * k,
        operations=2 * ends[-1] * n * k,
        contenders={OURS: ours},
        check=check,
    )


def _random(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(shape, device=device, generator=generator).bfloat16()


def _offsets(groups: int, rows: int) -> list[int]:
    generator = torch.Generator().manual_seed(groups)
    factors = 0.7 + 0.6 * torch.rand(groups, generator=generator)
    ends = [0]
    for factor in factors.tolist():
        ends.append(ends[-1] + round(rows * factor))
    return ends


def _product(a: BlockScaled, b: BlockScaled) -> Tensor:
    return reference.gemm(a.data, a.scale, b.data, b.scale, b.block, out_dtype=torch.float32)


def _assert_near(result: Tensor, wanted: Tensor) -> None:
    """Within the tensor cores' 14 bits and BF16's rounding, in each row."""
    difference = (result.float() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert float(difference.max()) < 5e-3
