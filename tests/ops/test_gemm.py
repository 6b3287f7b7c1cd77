"""The dense FP8 GEMM on every backend: numerics, shapes, layouts, refusals."""

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
    on_cpu,
    row_error,
    same_bits,
    weight,
)

DTYPES = [torch.bfloat16, torch.float32]
# (N, K) of DeepSeek-V3's matrices (gate_up fused), large ones divided as tensor parallelism
# would, and what dgrad makes of them. The ragged ones are whole.
SHAPES = [
    (1536, 7168),
    (576, 7168),
    (2112, 7168),
    (3072, 1536),
    (4096, 512),
    (896, 16384),
    (4608, 896),
    (896, 2304),
    (512, 7168),
    (896, 2048),
    (256, 7168),
    (1792, 2112),
    (1024, 576),
]


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_shapes_of_deepseek_v3(n, k, backend, device):
    a, b = activations(5, k, seed=n, device=device), weight(n, k, seed=k, device=device)
    out = torch.full((5, n), float("nan"), device=device, dtype=torch.bfloat16)
    assert ops.fp8_gemm(a, b, out=out) is out
    assert_right(out, a, b, backend)


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 8, 16), (64, 64, 128), (65, 72, 144), (130, 200, 272), (257, 136, 640)]
)
def test_small_shapes(m, n, k, beta, dtype, square, backend, device):
    a = activations(m, k, seed=m, device=device)
    b = weight(n, k, seed=n, square=square, device=device)
    out = torch.full((m, n), float("nan"), dtype=dtype, device=device)
    if beta:
        out.copy_(torch.randn(m, n, generator=generator(3)) * 100)
    before = out.clone()
    ops.fp8_gemm(a, b, out=out, beta=beta)
    assert_right(out, a, b, backend, before if beta else None)
    if not beta:
        same_bits(ops.fp8_gemm(a, b, out_dtype=dtype), out.cpu())


# The fixtures only name the backend, which stays.
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    m=st.integers(0, 300),
    n=st.integers(1, 40),
    k=st.integers(1, 45),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    square=st.booleans(),
    beta=st.integers(0, 1),
)
def test_random_shapes(backend, device, m, n, k, seed, dtype, square, beta):
    a = activations(m, 16 * k, seed, device=device)
    b = weight(8 * n, 16 * k, seed + 1, square=square, device=device)
    out = torch.randn(m, 8 * n, generator=generator(seed)).to(device, dtype)
    before = out.clone()
    ops.fp8_gemm(a, b, out=out, beta=beta)
    assert_right(out, a, b, backend, before if beta else None)


def test_errors_of_normal_and_of_positive_data(backend, device):
    """DESIGN's tolerances, against float64 of the dequantised inputs."""
    for positive, limit in [(False, 4e-4), (True, 1e-3)]:
        random = generator(5)
        x, w = (torch.randn(rows, 4096, generator=random) for rows in (48, 64))
        if positive:
            x, w = x.abs(), w.abs()
        a = ops.quantize_1x128(x.to(device))
        b = ops.quantize_1x128(w.to(device))
        exact = on_cpu(a).dequantize(torch.float64) @ on_cpu(b).dequantize(torch.float64).T
        result = ops.fp8_gemm(a, b, out_dtype=torch.float32)
        assert row_error(result, exact) <= (1e-5 if backend == "reference" else limit)
        rounded = ops.fp8_gemm(a, b)
        same_bits(rounded, result.bfloat16().cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_far_apart(dtype, backend, device):
    """2^-20 to 2^20, tiles of subnormal codes, tiles of zeros."""
    random = generator(7)
    m, n, k = 70, 136, 384
    codes_a = torch.randint(0, 256, (m, k), generator=random, dtype=torch.uint8)
    codes_b = torch.randint(0, 256, (n, k), generator=random, dtype=torch.uint8)
    for codes in (codes_a, codes_b):
        codes[(codes & 0x7F) == 0x7F] = 0x7E
        codes[3:9, 128:256] &= 0x87  # subnormal
        codes[11, :128] = 0
    scale_a = torch.empty_strided((m, 3), (1, 72))
    scale_a.copy_(torch.exp2(torch.randint(-20, 21, (m, 3), generator=random).float()))
    scale_b = torch.exp2(20 * torch.randn(2, 3, generator=random)).clamp(2**-20, 2**20)
    a = BlockScaled(codes_a.view(torch.float8_e4m3fn).to(device), scale_a.to(device), (1, 128))
    b = BlockScaled(codes_b.view(torch.float8_e4m3fn).to(device), scale_b.to(device), (128, 128))
    assert_right(ops.fp8_gemm(a, b, out_dtype=dtype), a, b, backend)


def test_nan_tiles_spoil_their_rows_and_columns_alone(backend, device):
    x, w = torch.randn(40, 256, generator=generator(8)), torch.randn(144, 256)
    x[7, 130], x[9, 3] = float("nan"), float("inf")
    a, b = ops.quantize_1x128(x.to(device)), weight(144, 256, 9, device=device)
    result = ops.fp8_gemm(a, b).cpu()
    spoiled = torch.zeros(40, dtype=torch.bool)
    spoiled[[7, 9]] = True
    assert result[spoiled].isnan().all() and result[~spoiled].isfinite().all()
    w[130, 5] = float("nan")
    of_rows = ops.quantize_1x128(w.to(device))
    result = ops.fp8_gemm(a, of_rows).cpu()
    assert result[:, 130].isnan().all()
    assert result[~spoiled][:, torch.arange(144) != 130].isfinite().all()


def test_what_lies_around_the_operands_is_not_read(backend, device):
    """NaN behind the last column and the last row, in the codes and in the scales."""
    m, n, k = 67, 72, 208
    a, b = activations(m, k, 1, device=device), weight(n, k, 2, device=device)
    clean = ops.fp8_gemm(a, b)

    def surrounded(codes, rows, columns):
        room = torch.full((rows + 200, columns + 48), 0x7F, dtype=torch.uint8, device=device)
        room[:rows, :columns] = codes.view(torch.uint8)
        return room.view(torch.float8_e4m3fn)[:rows, :columns]

    room = torch.full((4, 128), float("nan"), device=device).t()
    room[:m, :2] = a.scale
    a = BlockScaled(surrounded(a.data, m, k), room[:m, :2], (1, 128))
    room = torch.full((5, 7), float("nan"), device=device)
    room[:1, :2] = b.scale
    b = BlockScaled(surrounded(b.data, n, k), room[:1, :2], (128, 128))
    same_bits(ops.fp8_gemm(a, b), clean.cpu())


@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_nothing_around_out(dtype, beta, backend, device):
    m, n = 77, 200
    a, b = activations(m, 256, 1, device=device), weight(n, 256, 2, device=device)
    room = torch.full((m + 60, n + 24), -7.0, dtype=dtype, device=device)
    out = room[20 : 20 + m, 8 : 8 + n]
    before = out.clone()
    ops.fp8_gemm(a, b, out=out, beta=beta)
    assert_right(out.contiguous(), a, b, backend, before if beta else None)
    out.fill_(-7)
    assert (room == -7).all()


def test_same_bits_every_time(device):
    a, b = activations(200, 1024, 1, device=device), weight(264, 1024, 2, device=device)
    first = ops.fp8_gemm(a, b, out_dtype=torch.float32).cpu()
    for _ in range(3):
        out = torch.full((200, 264), float("nan"), device=device)
        same_bits(ops.fp8_gemm(a, b, out=out), first)


def test_no_rows(device):
    a, b = activations(0, 256, 1, device=device), weight(64, 256, 2, device=device)
    assert ops.fp8_gemm(a, b).shape == (0, 64)


def test_weights_may_be_transposed_scales(device):
    """128x128 scales of any strides: a transposed weight shares those of the weight."""
    a, b = activations(33, 272, 1, device=device), weight(272, 400, 2, device=device)
    turned = BlockScaled(b.data.t().contiguous(), b.scale.t(), (128, 128))
    copied = BlockScaled(turned.data, turned.scale.contiguous(), (128, 128))
    same_bits(ops.fp8_gemm(a, turned), ops.fp8_gemm(a, copied).cpu())


def test_no_gradient_flows(device):
    a, b = activations(3, 128, 1, device=device), weight(8, 128, 2, device=device)
    assert not ops.fp8_gemm(a, b).requires_grad


def test_opcheck(backend, device):
    # 12 rows: opcheck copies tensors without the gaps that other scales have.
    a, b = activations(12, 256, 1, device=device), weight(40, 256, 2, device=device)
    operands = (a.data, a.scale, b.data, b.scale, None)
    tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.abyssal.fp8_product.default,
        (*operands, "none", True, (12, 40), torch.float32, backend),
        test_utils=tests,  # the schema's test compares tensors with allclose, which FP8 lacks
    )
    out = torch.zeros(12, 40, device=device)
    torch.library.opcheck(
        torch.ops.abyssal.fp8_product_out.default,
        (*operands, out, "none", True, 0, backend),  # it runs several times
        test_utils=tests,
    )


def test_compiles_into_one_graph(device):
    b = weight(72, 256, 2, device=device)

    def layer(x):
        return ops.fp8_gemm(ops.quantize_1x128(x), b).float() * 2

    x = torch.randn(19, 256, generator=generator(1)).to(device)
    same_bits(torch.compile(layer, fullgraph=True)(x), layer(x).cpu())


A = activations(4, 256, 1)
B = weight(16, 256, 2)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"a": "text"}, "a must be a BlockScaled, not str"),
        ({"a": B}, r"a must have blocks of \(1, 128\)"),
        ({"a": A.t()}, r"a must have blocks of \(1, 128\) and be summed along axis 1"),
        ({"a": BlockScaled(A.data[None], A.scale[None], (1, 128))}, r"a must be \[rows, K\]"),
        ({"b": weight(16, 128, 1)}, "b must have 256 columns, as a .* has"),
        ({"b": weight(12, 256, 1)}, "b must have a multiple of 8 rows"),
        ({"a": activations(4, 248, 1)}, "a must have a multiple of 16 columns"),
        ({"out_dtype": torch.float16}, "out_dtype must be bfloat16 or float32"),
        ({"beta": 1}, "beta is 1 and there is no out"),
        ({"beta": 0.5}, "beta must be 0 or 1, not 0.5"),
        ({"out": torch.zeros(4, 8)}, r"out must be bfloat16 or float32 \[4, 16\]"),
        ({"out": torch.zeros(4, 16).half()}, "out must be bfloat16 or float32"),
        ({"out": torch.zeros(16, 4).t()}, "out must be contiguous along dimension -1"),
        ({"out": torch.zeros(4, 17)[:, :16]}, "out must .* multiples of 16 bytes"),
        ({"out": torch.zeros(4, 20)[:, 1:17]}, "out must begin at a multiple of 16 bytes"),
        (
            {"a": BlockScaled(A.data, A.scale.contiguous(), (1, 128))},
            "a.scale must be contiguous along dimension -2",
        ),
        (
            {"b": BlockScaled(B.data.t().contiguous().t(), B.scale, (128, 128))},
            "b.data must be contiguous along dimension -1",
        ),
    ],
)
def test_refuses(wrong, sentence, backend):
    if backend == "cuda":
        pytest.skip("the checks are those of CPU tensors")
    arguments = {"a": A, "b": B, **wrong}
    with pytest.raises(InputError, match=sentence):
        ops.fp8_gemm(arguments.pop("a"), arguments.pop("b"), **arguments)


def test_the_bit_exact_reference_is_what_kernels_are_held_to():
    """`expected` tells wrong scales, a lost block and a wrong order from the right product."""
    a, b = activations(9, 384, 1), weight(16, 384, 2)
    right = expected(a, b, None, torch.float32)
    swapped = BlockScaled(b.data, b.scale[:, [1, 0, 2]], b.block)
    shorter = BlockScaled(a.data[:, :256], a.scale[:, :2], a.block)
    for wrong in (
        expected(a, swapped, None, torch.float32),
        expected(shorter, BlockScaled(b.data[:, :256], b.scale[:, :2], b.block), None, right.dtype),
        expected(a, b, None, torch.float32, split_k=2),
    ):
        with pytest.raises(AssertionError, match="values differ"):
            same_bits(wrong, right)
