"""What only a GPU can show of the fused producers: full sizes, graphs, threads."""

import threading

import pytest
import torch

import abyssal
from abyssal import ops

pytestmark = pytest.mark.gpu
EPS = 1e-6


def norm(rows=4096, columns=7168):
    x = torch.randn(rows, columns, device="cuda").bfloat16()
    weight = torch.rand(columns, device="cuda").bfloat16()
    return lambda out=None: ops.rms_norm_quantize(x, weight, EPS, return_normalized=True, out=out)


def swiglu(rows=8192, columns=2048):
    gate_up = torch.randn(rows, 2 * columns, device="cuda").bfloat16()
    row_weight = torch.rand(rows, device="cuda")
    return lambda out=None: ops.swiglu_quantize(gate_up, row_weight, out=out)


def swiglu_backward(rows=8192, columns=2048):
    dy = torch.randn(rows, columns, device="cuda").bfloat16()
    gate_up = torch.randn(rows, 2 * columns, device="cuda").bfloat16()
    row_weight = torch.rand(rows, device="cuda")
    return lambda out=None: ops.swiglu_quantize_backward(dy, gate_up, row_weight, out=out)


def parts(result):
    """The tensors of a result, codes as bytes."""
    if isinstance(result, ops.BlockScaled):
        return [result.data.view(torch.uint8), result.scale]
    if isinstance(result, tuple):
        return [part for member in result for part in parts(member)]
    return [result]


def same(a, b):
    pairs = zip(parts(a), parts(b), strict=True)
    return all(torch.equal(mine, other) for mine, other in pairs)


OPS = pytest.mark.parametrize("make", [norm, swiglu, swiglu_backward])


@OPS
def test_of_full_size_as_the_reference(make):
    op = make()
    with abyssal.backend("reference"):
        expected = op()
    assert same(op(), expected)


@OPS
def test_the_same_bits_every_time(make):
    op = make()
    first = op()
    for _ in range(100):
        assert same(op(), first)


@OPS
def test_in_a_graph_and_without_allocations(make):
    op = make(256, 1024)
    expected, out = op(), op()
    for part in parts(out):
        part.zero_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(out)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert not same(out, expected)
    graph.replay()
    torch.cuda.synchronize()
    assert same(out, expected)


@OPS
def test_in_another_thread(make):
    op = make(256, 1024)
    expected = op()
    torch.cuda.synchronize()
    results = []
    thread = threading.Thread(target=lambda: results.append(op()))
    thread.start()
    thread.join()
    assert same(results[0], expected)
