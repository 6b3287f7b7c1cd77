"""What only a GPU can show of the FP8 GEMMs: full shapes, streams, graphs, threads, devices."""

import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import abyssal
from abyssal import ops
from abyssal.ops.block_scaled import BlockScaled
from tests.ops.gemm_cases import chosen_split, expected, generator, row_error, same_bits

pytestmark = pytest.mark.gpu


def operands(m, n, k, seed=0):
    x, w = (
        torch.randn(rows, k, device="cuda", generator=torch.Generator("cuda").manual_seed(seed + i))
        for i, rows in enumerate((m, n))
    )
    return ops.quantize_1x128(x.bfloat16()), ops.quantize_128x128(w.bfloat16())


@pytest.mark.parametrize("m", [1, 128, 4096])
@pytest.mark.parametrize(
    ("n", "k"),
    [(2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168)],
)
def test_shapes_of_deepseek_v3(m, n, k):
    """All of D against FP64 of the dequantised operands; its first rows bit for bit."""
    a, b = operands(m, n, k)
    result = ops.fp8_gemm(a, b, out_dtype=torch.float32)
    exact = a.dequantize(torch.float64) @ b.dequantize(torch.float64).T
    assert row_error(result, exact.cpu()) <= 4e-4
    rows = slice(0, 4)
    part = BlockScaled(a.data[rows], a.scale[rows], a.block)
    split_k = chosen_split(a, b, None, torch.float32)
    same_bits(result[rows], expected(part, b, None, torch.float32, split_k))


def test_same_bits_every_time():
    a, b = operands(4096, 7168, 2048)
    first = ops.fp8_gemm(a, b)
    for _ in range(200):
        assert torch.equal(ops.fp8_gemm(a, b), first)


def test_grouped_weight_gradients_of_full_size():
    """Sixteen groups of uneven length, many times: a public peer's race showed here."""
    rows = torch.randint(0, 3000, (16,), generator=generator(1)).tolist()
    offsets = torch.tensor([0, *rows]).cumsum(0).to("cuda", torch.int32)
    x = torch.randn(sum(rows), 2048, device="cuda").bfloat16()
    dy = torch.randn(sum(rows), 7168, device="cuda").bfloat16()
    x_t, dy_t = (ops.quantize_1x128_both(t, offsets)[1] for t in (x, dy))
    first = ops.fp8_wgrad(dy_t, x_t, offsets)
    for _ in range(100):
        assert torch.equal(ops.fp8_wgrad(dy_t, x_t, offsets), first)
    begin = 0
    for group, count in enumerate(rows):
        part = slice(begin, begin + count)
        exact = dy[part].double().T @ x[part].double()
        assert row_error(first[group], exact.cpu()) < 0.06 or count == 0
        begin += count


def test_runs_on_the_current_stream():
    a, b = operands(512, 1024, 2048)
    wanted = ops.fp8_gemm(a, b)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        codes = a.data.view(torch.uint8).clone()  # ready on this stream only, and late
        late = BlockScaled(codes.view(torch.float8_e4m3fn), a.scale, a.block)
        result = ops.fp8_gemm(late, b)
    stream.synchronize()
    assert torch.equal(result, wanted)


def test_dependent_launches_follow_one_another():
    """A chain in which each product reads what the one before it wrote, launched early."""
    x = torch.randn(256, 1024, device="cuda").bfloat16()
    w = ops.quantize_128x128(torch.randn(1024, 1024, device="cuda").bfloat16() / 32)

    def chain(y, wait):
        for _ in range(20):
            y = ops.fp8_gemm(ops.quantize_1x128(y), w)
            if wait:
                torch.cuda.synchronize()
        return y

    assert torch.equal(chain(x, wait=False), chain(x, wait=True))


def test_in_a_graph():
    a, b = operands(300, 1024, 2048)
    wanted = ops.fp8_gemm(a, b)
    out = torch.zeros_like(wanted)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.fp8_gemm(a, b, out=out)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, wanted)


PRELUDE = """
    import torch
    from abyssal import ops
    x = torch.randn(64, 512, device=DEVICE, requires_grad=True)
    w = torch.randn(256, 512, device=DEVICE, requires_grad=True)
"""
FIRST_LAUNCHES = {
    "from backward": """
        import abyssal
        with abyssal.backend("reference"):
            y = ops.fp8_linear(x, w)

        class Kernels(torch.autograd.Function):
            @staticmethod
            def forward(ctx, y):
                return y.clone()
            @staticmethod
            def backward(ctx, dy):
                q = ops.quantize_1x128(dy.contiguous())
                ops.fp8_gemm(q, ops.quantize_1x128(torch.ones(8, 256, device=DEVICE)))
                return dy

        Kernels.apply(y).sum().backward()
    """,
    "from a thread": """
        import threading
        results = []
        def run():
            results.append(ops.fp8_linear(x, w))
        thread = threading.Thread(target=run)
        thread.start(); thread.join()
        assert results[0].isfinite().all()
    """,
    "in a graph": """
        with torch.no_grad():
            from abyssal.reference import quantize
            from abyssal.ops import BlockScaled
            codes, scale = quantize.quantize_128x128(w)
            b = BlockScaled(codes, scale, (128, 128))
            codes, scale = quantize.quantize_1x128(x)
            columns = torch.empty_strided(scale.shape, (1, 64), device=DEVICE).copy_(scale)
            a = BlockScaled(codes, columns, (1, 128))
            out = torch.zeros(64, 256, device=DEVICE)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                ops.fp8_gemm(a, b, out=out)
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(out, ops.fp8_gemm(a, b, out_dtype=torch.float32))
    """,
}


def first_launch(code, device):
    text = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
    text = f"DEVICE = {device!r}\n" + text
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", FIRST_LAUNCHES)
def test_first_launch_of_a_process(how):
    first_launch(FIRST_LAUNCHES[how], "cuda:0")


def test_first_launch_on_another_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    code = "assert torch.cuda.current_device() == 0\nops.fp8_linear(x, w).sum().backward()"
    first_launch(code, "cuda:1")


def test_in_a_thread_without_a_context():
    a, b = operands(64, 256, 512)
    wanted = ops.fp8_gemm(a, b)
    torch.cuda.synchronize()
    results = []
    thread = threading.Thread(target=lambda: results.append(ops.fp8_gemm(a, b)))
    thread.start()
    thread.join()
    assert torch.equal(results[0], wanted)


def test_allocates_nothing_behind_the_callers_back():
    a, b = operands(1024, 1024, 1024)
    out = ops.fp8_gemm(a, b)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    ops.fp8_gemm(a, b, out=out)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_the_reference_on_the_gpu_is_near():
    a, b = operands(100, 512, 1024)
    with abyssal.backend("reference"):
        wanted = ops.fp8_gemm(a, b, out_dtype=torch.float32)
    result = ops.fp8_gemm(a, b, out_dtype=torch.float32)
    assert row_error(result, wanted.double().cpu()) <= 4e-4
