"""What only a GPU can show of the 1x128 quantiser: streams, graphs, threads, sizes."""

import multiprocessing
import subprocess
import sys
import threading

import pytest
import torch

import abyssal
from abyssal import ops

pytestmark = pytest.mark.gpu


def same(a, b):
    codes = torch.equal(a.data.view(torch.uint8), b.data.view(torch.uint8))
    return codes and torch.equal(a.scale, b.scale)


def reference(x):
    with abyssal.backend("reference"):
        return ops.quantize_1x128(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large(dtype):
    x = torch.randn(16384, 7168, dtype=dtype, device="cuda")
    assert same(ops.quantize_1x128(x), reference(x))


def test_offsets_beyond_32_bits():
    x = torch.randn(70_000, 32_768, dtype=torch.bfloat16, device="cuda")  # 2.3e9 values
    result = ops.quantize_1x128(x)
    tail = slice(-64, None)
    expected = reference(x[tail])
    assert torch.equal(result.data[tail].view(torch.uint8), expected.data.view(torch.uint8))
    assert torch.equal(result.scale[tail], expected.scale)


def test_runs_on_the_current_stream():
    x = torch.randn(4096, 7168, device="cuda")
    expected = reference(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        y = x * 1  # ready on this stream only, and late
        result = ops.quantize_1x128(y)
    stream.synchronize()
    assert same(result, expected)


def test_in_a_graph():
    x = torch.randn(256, 1024, device="cuda")
    out = ops.quantize_1x128(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.quantize_1x128(x, out=out)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert same(out, reference(x))


FIRST_LAUNCH_IN_A_GRAPH = """
import torch, abyssal
from abyssal import ops
x = torch.randn(256, 1024, device="cuda")
with abyssal.backend("reference"):
    out = ops.quantize_1x128(x)
expected = out.data.clone(), out.scale.clone()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    ops.quantize_1x128(x, out=out)
out.scale.zero_()
graph.replay()
torch.cuda.synchronize()
assert torch.equal(out.data.view(torch.uint8), expected[0].view(torch.uint8))
assert torch.equal(out.scale, expected[1])
"""


def test_first_launch_of_a_process_in_a_graph():
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LAUNCH_IN_A_GRAPH], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_in_a_thread_without_a_context():
    x = torch.randn(64, 512, device="cuda")
    expected = reference(x)
    torch.cuda.synchronize()
    results = []
    thread = threading.Thread(target=lambda: results.append(ops.quantize_1x128(x)))
    thread.start()
    thread.join()
    assert same(results[0], expected)


def test_allocates_nothing_behind_the_callers_back():
    x = torch.randn(1024, 1024, device="cuda")
    out = ops.quantize_1x128(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    ops.quantize_1x128(x, out=out)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def _quantize_in_child(queue):
    try:
        from abyssal.runtime import extension

        extension().load_kernels(0)
        queue.put("loaded")
    except RuntimeError as error:
        queue.put(str(error))


def test_after_a_fork_one_sentence():
    ops.quantize_1x128(torch.zeros(1, 128, device="cuda"))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_quantize_in_child, args=(queue,))
    child.start()
    assert "forked" in queue.get(timeout=60)
    child.join()


def test_warmup():
    ops.warmup()
    ops.warmup("cuda:0")
