"""Weight gradients in FP8 on every backend: dense, and grouped by ranges of tokens."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.tiles import scale_strides_1x128
from tests.ops.gemm_cases import activations, assert_right, expected, generator, same_bits

DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def transposed(channels, rows, seed, device):
    """[channels, T'], and each group's own part of it. What belongs to no group is NaN."""
    offsets = [sum(rows[:group]) for group in range(len(rows) + 1)]
    blocks = offsets[-1] // 128 + len(rows)
    data = torch.full((channels, 128 * blocks), 0x7F, dtype=torch.uint8)
    strides = scale_strides_1x128(channels)
    scale = torch.empty_strided((channels, blocks), strides).fill_(float("nan"))
    parts = []
    for group, count in enumerate(rows):
        if not count:
            parts.append(None)
            continue
        first = offsets[group] // 128 + group
        own = activations(channels, -(-count // 128) * 128, seed + group)
        codes = own.data.view(torch.uint8)
        codes[:, count:] = 0
        data[:, 128 * first : 128 * first + codes.shape[1]] = codes
        scale[:, first : first + own.scale.shape[1]] = own.scale
        parts.append(own)
    data = data.view(torch.float8_e4m3fn).to(device)
    on_device = torch.empty_strided(scale.shape, strides, device=device).copy_(scale)
    return BlockScaled(data, on_device, (1, 128)), parts


def offsets_of(rows, device):
    return torch.tensor([0, *rows]).cumsum(0).to(device, torch.int32)


def run_groups(rows, n, k, backend, device, *, dtype=torch.float32, beta=0):
    dy, dy_parts = transposed(n, rows, 100, device)
    x, x_parts = transposed(k, rows, 200, device)
    out = torch.full((len(rows), n, k), float("nan"), dtype=dtype, device=device)
    if beta:
        out.copy_(torch.randn(len(rows), n, k, generator=generator(6)))
    before = out.clone()
    assert ops.fp8_wgrad(dy, x, offsets_of(rows, device), out=out, beta=beta) is out
    for group, count in enumerate(rows):
        c = before[group] if beta else None
        if not count:
            same_bits(out[group], torch.zeros(n, k, dtype=dtype) if c is None else c.cpu())
        elif backend == "reference":
            assert_right(out[group], dy_parts[group], x_parts[group], backend, c)
        else:
            same_bits(out[group], expected(dy_parts[group], x_parts[group], c, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize(
    "rows",
    [[100, 0, 3, 250], [128, 128], [0, 0, 5], [129], [1, 1, 1], [0, 0]],
    ids=lambda rows: "-".join(map(str, rows)),
)
def test_groups(rows, beta, dtype, backend, device):
    run_groups(rows, 264, 136, backend, device, dtype=dtype, beta=beta)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.one_of(st.just(0), st.integers(0, 300)), min_size=1, max_size=6),
    n=st.integers(1, 300),
    k=st.integers(1, 30),
    dtype=st.sampled_from(DTYPES),
    beta=st.integers(0, 1),
)
def test_random_groups(backend, device, rows, n, k, dtype, beta):
    run_groups(rows, n, 8 * k, backend, device, dtype=dtype, beta=beta)


@pytest.mark.parametrize(("n", "k"), [(512, 896), (896, 256), (2112, 112), (576, 896)])
def test_shapes_of_deepseek_v3(n, k, backend, device):
    """The experts' and the ragged matrices, cut for the emulator's sake; 300 tokens."""
    run_groups([300], n, k, backend, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0, 1])
def test_dense(beta, dtype, backend, device):
    n, k, tokens = 200, 72, 384
    dy = activations(n, tokens, 1, device=device)
    x = activations(k, tokens, 2, device=device)
    out = torch.full((n, k), float("nan"), dtype=dtype, device=device)
    if beta:
        out.copy_(torch.randn(n, k, generator=generator(6)))
    before = out.clone()
    ops.fp8_wgrad(dy, x, out=out, beta=beta)
    assert_right(out, dy, x, backend, before if beta else None)


def test_no_tokens(device):
    def nothing(channels):
        data = torch.empty(channels, 0, device=device).to(torch.float8_e4m3fn)
        return BlockScaled(data, torch.empty(channels, 0, device=device), (1, 128))

    dy, x = nothing(16), nothing(24)
    assert (ops.fp8_wgrad(dy, x) == 0).all()
    out = torch.full((16, 24), 3.0, device=device)
    assert (ops.fp8_wgrad(dy, x, out=out, beta=1) == 3).all()


def test_gradients_add_up_over_micro_batches(backend, device):
    """Two calls with beta 1 are c + first + second, each rounded once."""
    dy = [activations(72, 256, seed, device=device) for seed in (1, 2)]
    x = [activations(40, 256, seed, device=device) for seed in (3, 4)]
    out = torch.zeros(72, 40, device=device)
    for pair in zip(dy, x, strict=True):
        ops.fp8_wgrad(*pair, out=out, beta=1)
    first, second = (ops.fp8_wgrad(*pair) for pair in zip(dy, x, strict=True))
    same_bits(out, (first + second).cpu())


def test_compiles_into_one_graph(device):
    dy, _ = transposed(16, [100, 30], 1, device)
    x, _ = transposed(24, [100, 30], 2, device)
    offsets = offsets_of([100, 30], device)

    def gradient(dy, x, offsets):
        return ops.fp8_wgrad(dy, x, offsets) * 2

    compiled = torch.compile(gradient, fullgraph=True)
    same_bits(compiled(dy, x, offsets), gradient(dy, x, offsets).cpu())


DY, X = activations(16, 256, 1), activations(24, 256, 2)
OFFSETS = torch.tensor([0, 1, 4], dtype=torch.int32)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"dy_t": activations(16, 240, 1), "x_t": activations(24, 240, 1)}, "a multiple of 128"),
        ({"x_t": activations(24, 128, 1)}, "x_t must have 256 columns, as dy_t"),
        ({"x_t": activations(20, 256, 1)}, "x_t must have a multiple of 8 rows"),
        ({"offsets": OFFSETS.long()}, "offsets must be int32"),
        ({"offsets": OFFSETS[:1]}, r"offsets must be int32 \[2\]"),
        ({"offsets": torch.zeros(5, dtype=torch.int32)}, "dy_t must have room for 4 groups"),
        ({"offsets": OFFSETS, "out": torch.zeros(16, 24)}, r"out must be .* \[2, 16, 24\]"),
    ],
)
def test_refuses(wrong, sentence, backend):
    if backend == "cuda":
        pytest.skip("the checks are those of CPU tensors")
    arguments = {"dy_t": DY, "x_t": X, **wrong}
    with pytest.raises(InputError, match=sentence):
        ops.fp8_wgrad(arguments.pop("dy_t"), arguments.pop("x_t"), **arguments)
