"""The grouped FP8 GEMMs on every backend: by offsets, and masked."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled
from tests.ops.gemm_cases import (
    activations,
    assert_right,
    expected,
    generator,
    same_bits,
    stack,
    weight,
)

DTYPES = [torch.bfloat16, torch.float32]
# What no group owns must keep this.
UNTOUCHED = -7.0


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def weights(groups, n, k, square, device):
    return stack([weight(n, k, seed, square=square, device=device) for seed in range(groups)])


def matrix(x: BlockScaled, index) -> BlockScaled:
    return BlockScaled(x.data[index], x.scale[index], x.block)


def offsets_of(rows, device):
    offsets = torch.tensor([0, *rows]).cumsum(0)
    return offsets.to(device, torch.int32)


def check_groups(out, before, a, b, rows, backend, beta):
    """Each group's rows against its own product; the rows behind the last group untouched."""
    begin = 0
    for group, count in enumerate(rows):
        part = slice(begin, begin + count)
        if count:
            c = before[part] if beta else None
            own = matrix(a, part)
            if backend == "reference":
                assert_right(out[part], own, matrix(b, group), backend, c)
            else:
                # Groups never divide K.
                same_bits(out[part], expected(own, matrix(b, group), c, out.dtype))
        begin += count
    same_bits(out[begin:], before[begin:].cpu())


def run_grouped(rows, n, k, backend, device, *, dtype=torch.bfloat16, square=True, beta=0, spare=3):
    m = sum(rows) + spare
    a, b = activations(m, k, 5, device=device), weights(len(rows), n, k, square, device)
    out = torch.full((m, n), UNTOUCHED, dtype=dtype, device=device)
    if beta:
        out.copy_(torch.randn(m, n, generator=generator(6)))
    before = out.clone()
    result = ops.fp8_grouped_gemm(a, b, offsets_of(rows, device), out=out, beta=beta)
    assert result is out
    check_groups(out, before, a, b, rows, backend, beta)


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize(
    "rows",
    [[100, 0, 3, 130, 67], [0, 0, 5], [257], [1, 1, 1, 1], [0, 0]],
    ids=lambda rows: "-".join(map(str, rows)),
)
def test_groups(rows, beta, dtype, square, backend, device):
    run_grouped(rows, 136, 272, backend, device, dtype=dtype, square=square, beta=beta)


@pytest.mark.parametrize(("n", "k"), [(4096, 7168), (7168, 2048)])
def test_shapes_of_deepseek_v3(n, k, backend, device):
    """The experts' matrices, N divided by 8 for the emulator's sake, all of K."""
    run_grouped([3, 0, 70], n // 8, k, backend, device)


def test_many_groups(backend, device):
    """More than the 32 that are looked at in one step, many of them empty."""
    rows = [3 if group % 5 == 1 else 0 for group in range(70)]
    run_grouped(rows, 24, 144, backend, device)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.one_of(st.just(0), st.integers(0, 150)), min_size=1, max_size=8),
    n=st.integers(1, 30),
    k=st.integers(1, 25),
    spare=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
    square=st.booleans(),
)
def test_random_groups(backend, device, rows, n, k, spare, dtype, square):
    run_grouped(rows, 8 * n, 16 * k, backend, device, dtype=dtype, square=square, spare=spare)


def test_rows_of_other_groups_do_not_matter(device):
    """A group's result is that of its rows alone, bit for bit, wherever it begins."""
    k, n = 256, 72
    a, b = activations(200, k, 1, device=device), weights(3, n, k, True, device)
    whole = ops.fp8_grouped_gemm(a, b, offsets_of([40, 91, 69], device))
    spoiled = a.data.view(torch.uint8).clone()
    spoiled[:40], spoiled[131:] = 0x7F, 0x7F
    a = BlockScaled(spoiled.view(torch.float8_e4m3fn), a.scale, a.block)
    again = ops.fp8_grouped_gemm(a, b, offsets_of([40, 91, 69], device))
    same_bits(again[40:131], whole[40:131].cpu())
    assert again[:40].isnan().all()


def test_offsets_beyond_the_rows_are_cut_off(backend, device):
    a, b = activations(20, 128, 1, device=device), weights(2, 16, 128, True, device)
    out = torch.full((20, 16), UNTOUCHED, device=device)
    offsets = torch.tensor([5, 12, 1000], dtype=torch.int32, device=device)
    ops.fp8_grouped_gemm(a, b, offsets, out=out)
    same_bits(out[:5], torch.full((5, 16), UNTOUCHED))
    assert_right(out[5:12], matrix(a, slice(5, 12)), matrix(b, 0), backend)
    assert_right(out[12:], matrix(a, slice(12, 20)), matrix(b, 1), backend)


def run_masked(counts, m, n, k, backend, device, *, dtype=torch.bfloat16, square=True, beta=0):
    groups = len(counts)
    a = stack([activations(m, k, 10 + group, device=device) for group in range(groups)])
    b = weights(groups, n, k, square, device)
    out = torch.full((groups, m, n), UNTOUCHED, dtype=dtype, device=device)
    if beta:
        out.copy_(torch.randn(groups, m, n, generator=generator(6)))
    before = out.clone()
    counts_there = torch.tensor(counts, dtype=torch.int32, device=device)
    assert ops.fp8_grouped_gemm_masked(a, b, counts_there, out=out, beta=beta) is out
    for group, count in enumerate(counts):
        own = matrix(a, group)
        check_groups(out[group], before[group], own, b_of(b, group), [count], backend, beta)


def b_of(b: BlockScaled, group: int) -> BlockScaled:
    return matrix(b, slice(group, group + 1))


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0, 1])
def test_masked(beta, dtype, square, backend, device):
    run_masked(
        [100, 0, 3, 150], 150, 136, 272, backend, device, dtype=dtype, square=square, beta=beta
    )


@pytest.mark.parametrize("counts", [[0, 0, 0], [1] * 40, [64, 1]], ids=["none", "ones", "full"])
def test_masked_counts(counts, backend, device):
    run_masked(counts, 64, 24, 144, backend, device)


def test_without_out_the_result_is_new(backend, device):
    a, b = activations(9, 128, 1, device=device), weights(2, 16, 128, True, device)
    result = ops.fp8_grouped_gemm(a, b, offsets_of([4, 5], device), out_dtype=torch.float32)
    check_groups(result, result, a, b, [4, 5], backend, 0)


def test_no_room(device):
    a, b = activations(0, 128, 1, device=device), weights(2, 16, 128, True, device)
    assert ops.fp8_grouped_gemm(a, b, offsets_of([0, 0], device)).shape == (0, 16)


def test_compiles_into_one_graph(device):
    b = weights(2, 16, 128, True, device)
    offsets = offsets_of([4, 5], device)

    def layer(x, offsets):
        return ops.fp8_grouped_gemm(ops.quantize_1x128(x), b, offsets) * 2

    x = torch.randn(9, 128, generator=generator(1)).to(device)
    same_bits(torch.compile(layer, fullgraph=True)(x, offsets), layer(x, offsets).cpu())


A, B = activations(4, 256, 1), weights(2, 16, 256, True, "cpu")
OFFSETS = torch.tensor([0, 1, 4], dtype=torch.int32)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"b": matrix(B, 0)}, r"b must be \[groups, rows, K\]"),
        ({"offsets": [0, 1, 4]}, "offsets must be a tensor, not list"),
        ({"offsets": OFFSETS.long()}, r"offsets must be int32 \[3\], not torch.int64 \[3\]"),
        ({"offsets": OFFSETS[:2]}, r"offsets must be int32 \[3\], not torch.int32 \[2\]"),
        ({"offsets": OFFSETS.repeat(2)[::2]}, "offsets must be contiguous"),
        ({"out": torch.zeros(2, 4, 16)}, r"out must be bfloat16 or float32 \[4, 16\]"),
    ],
)
def test_refuses(wrong, sentence, backend):
    if backend == "cuda":
        pytest.skip("the checks are those of CPU tensors")
    arguments = {"a": A, "b": B, "offsets": OFFSETS, **wrong}
    with pytest.raises(InputError, match=sentence):
        ops.fp8_grouped_gemm(**arguments)


def test_masked_refuses(backend):
    if backend == "cuda":
        pytest.skip("the checks are those of CPU tensors")
    a = stack([A, A, A])
    with pytest.raises(InputError, match="they must have as many groups"):
        ops.fp8_grouped_gemm_masked(a, B, OFFSETS)
    a = stack([A, A])
    with pytest.raises(InputError, match=r"counts must be int32 \[2\]"):
        ops.fp8_grouped_gemm_masked(a, B, OFFSETS)
