"""Experts' FFNs from the ops alone, forward and backward, as docs/ops/swiglu_quantize.md has it."""

import itertools

import torch
import torch.nn.functional as F

import abyssal
from abyssal import ops

OFFSETS = [0, 100, 100, 180, 300]
HIDDEN, WIDTH = 256, 128


def ffn(x, gate_and_up, down, row_weight, dy, offsets):
    """(y, dx, gradients of both weights and of row_weight)"""
    x8, x8_t = ops.quantize_1x128_both(x, offsets)
    first, first_t = ops.quantize_128x128(gate_and_up, transpose="both")
    second, second_t = ops.quantize_128x128(down, transpose="both")
    gate_up = ops.fp8_grouped_gemm(x8, first, offsets)
    y = ops.fp8_grouped_gemm(ops.swiglu_quantize(gate_up, row_weight, offsets), second, offsets)

    dy8, dy8_t = ops.quantize_1x128_both(dy, offsets)
    dh = ops.fp8_grouped_gemm(dy8, second_t, offsets)
    d = ops.swiglu_quantize_backward(dh, gate_up, row_weight, offsets)
    dx = ops.fp8_grouped_gemm(d.d_gate_up, first_t, offsets)
    d_first = ops.fp8_wgrad(d.d_gate_up_t, x8_t, offsets)
    return y, dx, d_first, ops.fp8_wgrad(dy8_t, d.h_t, offsets), d.d_row_weight


def exact(x, gate_and_up, down, row_weight, dy, offsets):
    leaves = [t.double().requires_grad_() for t in (x, gate_and_up, down, row_weight)]
    x, gate_and_up, down, row_weight = leaves
    results = []
    for group, (begin, end) in enumerate(itertools.pairwise(offsets)):
        gate, up = (x[begin:end] @ gate_and_up[group].T).chunk(2, dim=1)
        h = F.silu(gate) * up * row_weight[begin:end, None]
        results.append(h @ down[group].T)
    y = torch.cat(results)
    y.backward(dy.double())
    return y.detach(), *(leaf.grad for leaf in leaves)


def test_gradients_are_those_of_float64_but_for_fp8(backend, device):
    generator = torch.Generator().manual_seed(0)
    groups, rows = len(OFFSETS) - 1, OFFSETS[-1]

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    x, dy = random(rows, HIDDEN).bfloat16(), random(rows, HIDDEN).bfloat16()
    gate_and_up = random(groups, 2 * WIDTH, HIDDEN) / HIDDEN**0.5
    down = random(groups, HIDDEN, WIDTH) / WIDTH**0.5
    row_weight = torch.rand(rows, generator=generator).to(device)
    inputs = (x, gate_and_up, down, row_weight, dy)
    with abyssal.backend(backend):
        got = ffn(*inputs, torch.tensor(OFFSETS, dtype=torch.int32, device=device))
    y, dx, d_first, d_second, d_row_weight = exact(*inputs, OFFSETS)
    for name, ours, theirs in zip(
        ("y", "dx", "d_gate_and_up", "d_down", "d_row_weight"),
        got,
        (y, dx, d_first, d_second, d_row_weight),
        strict=True,
    ):
        # E4M3 rounds to 2^-4 at most, to about 2^-5 in the mean of squares.
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 0.08, (name, error)
        # Rounding scatters, it does not shrink: the gradient's length is right.
        projection = (ours.double() * theirs).sum() / theirs.square().sum()
        assert abs(projection - 1) < 0.01, (name, projection)
    assert (got[2][1] == 0).all(), "a group without rows"
