"""The reference of the FP8 GEMMs: against rational numbers, and against tensor cores' bits."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal import runtime
from abyssal.ops.block_scaled import BlockScaled
from abyssal.reference import gemm as reference
from abyssal.reference import quantize
from tests.emulator import tensor_core_model as model
from tests.ops.gemm_cases import activations, generator, row_error, same_bits, weight


def rounded(value: Fraction) -> np.float32:
    """To the nearest FP32 number, ties to even, from an exact rational number."""
    if value == 0:
        return np.float32(0)
    magnitude = abs(value)
    exponent = max(magnitude.numerator.bit_length() - magnitude.denominator.bit_length(), -126)
    while Fraction(2) ** exponent > magnitude and exponent > -126:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    # round() of a Fraction takes ties to even.
    result = round(magnitude / unit) * unit
    result = np.float32(float(result)) if result < Fraction(2) ** 128 else np.float32(np.inf)
    return -result if value < 0 else result


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(FLOATS, FLOATS, FLOATS)
def test_fma_rounds_once(x, y, z):
    check_fma(x, y, z)


def check_fma(x, y, z):
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    got = reference.fma(*(torch.tensor(v, dtype=torch.float32) for v in (x, y, z))).numpy()
    assert got == rounded(exact), (x, y, z)


def test_fma_where_double_rounding_shows():
    """Sums that are a hair from a tie of FP32, on either side, also of subnormal numbers."""
    differs = 0
    for sign in (1, -1):
        for last in (0.0, 2.0**-23, 2.0**-22):
            for direction in (1, -1):
                # x * y = half a unit of z's last place, less 2^-46 of that, which FP64 drops.
                x, y = 2.0**-12 * (1 + 2.0**-23), direction * 2.0**-12 * (1 - 2.0**-23)
                check_fma(sign * x, y, sign * (1 + last))
                exact = Fraction(x) * Fraction(y) + Fraction(1 + last)
                differs += np.float32(x * y + (1 + last)) != rounded(exact)
        for tiny in (2.0**-149, 3 * 2.0**-149, 2.0**-126):
            check_fma(sign * tiny, 0.5, sign * 2.0**-149)
            check_fma(sign * tiny, 0.5 + 2.0**-24, sign * 2.0**-126)
    assert differs, "rounding twice would do"


def test_fma_keeps_infinity_and_nan():
    inf, nan = float("inf"), float("nan")
    x, y, z = (torch.tensor(v) for v in ([inf, 1.0, nan, 0.0], [1.0, 2.0, 1.0, inf], [1.0] * 4))
    got = reference.fma(x, y, z)
    assert got[0] == inf and got[1] == 3 and got[2].isnan() and got[3].isnan()


def codes_of(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    random = generator(seed)
    if kind == "all codes":
        codes = torch.randint(0, 256, (rows, columns), generator=random, dtype=torch.uint8)
        if seed % 2:  # without NaN
            codes[(codes & 0x7F) == 0x7F] = 0x80
        return codes.view(torch.float8_e4m3fn)
    values = torch.randn(rows, columns, generator=random) * 50
    if kind == "octaves":
        exponents = torch.randint(-14, 4, values.shape, generator=random)
        values = torch.ldexp(values, exponents)
    return values.clamp(-448, 448).to(torch.float8_e4m3fn)


KINDS = st.sampled_from(["normal", "octaves", "all codes"])


@settings(max_examples=40, deadline=None)
@given(KINDS, st.integers(1, 20), st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**31))
def test_partial_sums_are_the_emulators(kind, m, n, steps, seed):
    if runtime.why_not_emulator() is not None:
        pytest.skip(runtime.why_not_emulator())
    from abyssal.emulator import tensor_core

    a, b = codes_of(kind, m, 32 * steps, seed), codes_of(kind, n, 32 * steps, seed + 1)
    chain = torch.zeros(m, n)
    for k in range(0, 32 * steps, 32):
        part_a, part_b = (t[:, k : k + 32].contiguous() for t in (a, b))
        chain = tensor_core(part_a[:, None], part_b[None], chain)
    same_bits(reference.partial_sums(a, b), chain)


@pytest.mark.parametrize("kind", ["normal", "octaves", "all codes"])
def test_partial_sums_are_the_slow_models(kind):
    """The model in Python's integers shares nothing with the emulator."""
    a, b = codes_of(kind, 3, 128, 1), codes_of(kind, 4, 128, 3)
    got = reference.partial_sums(a, b)
    for i in range(3):
        for j in range(4):
            bits = 0
            for k in range(0, 128, 32):
                codes = [t.view(torch.uint8)[k : k + 32].tolist() for t in (a[i], b[j])]
                bits = model.dot("e4m3", "e4m3", *codes, bits, model.F32)
            expected = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
            same_bits(got[i, j], expected)


@pytest.mark.parametrize("accumulate", ["fp32", "hopper"])
@pytest.mark.parametrize("square", [True, False])
def test_scales_promotion_and_order(accumulate, square):
    """Against a loop over rows, columns and blocks of K, with sums in rational numbers."""
    m, n, k = 3, 136, 304
    a, b = activations(m, k, 1), weight(n, k, 2, square=square)
    got = reference.gemm(
        a.data, a.scale, b.data, b.scale, b.block, out_dtype=torch.float32, accumulate=accumulate
    )
    codes_a, codes_b = a.data.double(), b.data.double()
    for i in range(m):
        for j in range(0, n, 9):
            total = np.float32(0)
            for block in range(3):
                part = slice(128 * block, min(128 * block + 128, k))
                if accumulate == "hopper":
                    partial = reference.partial_sums(
                        *(reference._padded(x[None, part]) for x in (a.data[i], b.data[j]))
                    )
                else:
                    partial = (codes_a[i, part] * codes_b[j, part]).sum()
                row = j // 128 if square else j
                scale = (a.scale[i, block] * b.scale[row, block]).numpy()
                exact = Fraction(float(partial)) * Fraction(float(scale)) + Fraction(float(total))
                total = rounded(exact)
            if accumulate == "hopper":
                assert got[i, j].numpy() == total
            else:
                assert abs(float(got[i, j]) - total) <= 1e-5 * row_scale(a, b, i, j)


def row_scale(a, b, i, j):
    """The sum of the products' magnitudes."""
    return float((a.dequantize()[i] * b.dequantize()[j]).abs().sum())


@pytest.mark.parametrize(
    ("accumulate", "positive", "limit"),
    [("fp32", False, 1e-5), ("hopper", False, 4e-4), ("hopper", True, 1e-3)],
)
@pytest.mark.parametrize("k", [512, 7168])
def test_errors_against_float64(k, accumulate, positive, limit):
    random = generator(k)
    x, w = torch.randn(16, k, generator=random), torch.randn(96, k, generator=random)
    if positive:
        x, w = x.abs(), w.abs()
    a = BlockScaled(*quantize.quantize_1x128(x), (1, 128))
    b = BlockScaled(*quantize.quantize_128x128(w), (128, 128))
    exact = a.dequantize(torch.float64) @ b.dequantize(torch.float64).T
    got = reference.gemm(
        a.data, a.scale, b.data, b.scale, out_dtype=torch.float32, accumulate=accumulate
    )
    assert row_error(got, exact) <= limit


def test_shares_of_k():
    """Runs of ceil(blocks / split_k) blocks, each from 0, added in order; some may be empty."""
    a, b = activations(5, 640, 1), weight(24, 640, 2)

    def product(first, last):
        columns, blocks = slice(128 * first, 128 * last), slice(first, last)
        return reference.gemm(
            a.data[:, columns],
            a.scale[:, blocks],
            b.data[:, columns],
            b.scale[:, blocks],
            out_dtype=torch.float32,
            accumulate="hopper",
        )

    def split(parts):
        return reference.gemm(
            a.data,
            a.scale,
            b.data,
            b.scale,
            out_dtype=torch.float32,
            accumulate="hopper",
            split_k=parts,
        )

    same_bits(split(2), product(0, 3) + product(3, 5))
    same_bits(split(4), product(0, 2) + product(2, 4) + product(4, 5))
    same_bits(split(8), sum((product(i, i + 1) for i in range(1, 5)), product(0, 1)))


def test_what_is_added_to():
    a, b = activations(5, 128, 1), weight(24, 128, 2)
    operands = (a.data, a.scale, b.data, b.scale)
    plain = reference.gemm(*operands, out_dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        c = torch.randn(5, 24, generator=generator(3)).to(dtype)
        got = reference.gemm(*operands, out_dtype=dtype, c=c)
        same_bits(got, (c.float() + plain).to(dtype))
