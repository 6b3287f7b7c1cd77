"""E5M6 against numbers written out as fractions, and its tiles against a loop."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.reference import e5m6
from tests.ops.quantiser_model import random_values

CODES = torch.arange(4096, dtype=torch.int16)


def value(code: int) -> Fraction:
    """Of a finite code, from the bits."""
    sign, exponent, fraction = code >> 11, (code >> 6) & 31, code & 63
    if exponent == 0:
        magnitude = Fraction(fraction, 64) / 2**14
    else:
        magnitude = (1 + Fraction(fraction, 64)) * Fraction(2) ** (exponent - 15)
    return -magnitude if sign else magnitude


POSITIVE = [value(code) for code in range(31 * 64)]


def nearest(x: float) -> int:
    """The code of a finite number by comparison with all of them; ties go to the even code."""
    magnitude = min(Fraction(abs(x)), POSITIVE[-1])
    distances = [abs(magnitude - p) for p in POSITIVE]
    best = min(distances)
    found = [code for code, distance in enumerate(distances) if distance == best]
    code = found[0] if len(found) == 1 or found[0] % 2 == 0 else found[1]
    return code | (0x800 if math.copysign(1, x) < 0 else 0)


def test_every_code_decodes_to_its_value():
    values = e5m6.decode(CODES)
    for code in range(4096):
        got, exponent, fraction = float(values[code]), (code >> 6) & 31, code & 63
        if exponent < 31:
            assert Fraction(got) == value(code)
            assert math.copysign(1, got) == (-1 if code >> 11 else 1)
        elif fraction:
            assert math.isnan(got)
        else:
            assert got == (-math.inf if code >> 11 else math.inf)
    assert float(values[0x7BF]) == e5m6.E5M6_MAX == 65024


def test_every_finite_code_comes_back():
    finite = CODES[(CODES >> 6 & 31) < 31]
    assert torch.equal(e5m6.encode(e5m6.decode(finite)), finite)


def test_ties_go_to_even_and_their_neighbours_to_the_nearer():
    middles = np.array([float((a + b) / 2) for a, b in itertools.pairwise(POSITIVE)])
    low = np.arange(len(middles))
    ties = torch.from_numpy(middles.astype(np.float32))
    assert (ties.double().numpy() == middles).all(), "float32 holds them"
    even = torch.from_numpy(low + low % 2).short()
    assert torch.equal(e5m6.encode(ties), even)
    assert torch.equal(e5m6.encode(-ties), even | -0x800 & 0xFFF)
    up = torch.nextafter(ties, torch.tensor(torch.inf))
    down = torch.nextafter(ties, torch.tensor(0.0))
    assert torch.equal(e5m6.encode(up), torch.from_numpy(low + 1).short())
    assert torch.equal(e5m6.encode(down), torch.from_numpy(low).short())


@settings(max_examples=200, deadline=None)
@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_any_number_goes_to_the_nearest_code(x):
    assert int(e5m6.encode(torch.tensor([x]))[0]) == nearest(x)


def test_special_numbers():
    numbers = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40])
    expected = [0x7FF, 0x7FF, 0x7BF, 0xFBF, 0, 0x800, 0]
    assert e5m6.encode(numbers).tolist() == expected


def test_layout_of_bytes():
    codes = torch.tensor([[0x123, 0xABC, 0xFFF, 0x000]], dtype=torch.int16)
    packed = e5m6.pack(codes)
    assert packed.tolist() == [[0x23, 0xC1, 0xAB, 0xFF, 0x0F, 0x00]]
    assert packed.dtype == torch.uint8
    assert torch.equal(e5m6.unpack(packed), codes)
    everything = CODES.view(2, -1)
    assert torch.equal(e5m6.unpack(e5m6.pack(everything)), everything)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 2), (3, 130), (5, 256), (2, 16384), (0, 128), (4, 0)])
def test_tiles_against_a_loop(shape, dtype):
    x = random_values(shape, dtype, "cpu")
    packed, scale = e5m6.quantize_1x128_e5m6(x)
    rows, columns = shape
    assert packed.shape == (rows, columns * 3 // 2) and scale.shape == (rows, -(-columns // 128))
    values, codes = x.double(), e5m6.unpack(packed)
    for tile in range(scale.shape[1]):
        part = values[:, 128 * tile : 128 * tile + 128]
        amax = part.abs().amax(1)
        exponent = torch.ceil(torch.log2(amax.clamp_min(65024 * 2.0**-126) / 65024))
        expected = torch.where(amax == 0, 1.0, torch.exp2(exponent))
        assert torch.equal(scale[:, tile].double(), expected)
        assert torch.equal(
            codes[:, 128 * tile : 128 * tile + 128],
            e5m6.encode((part / expected[:, None]).float()),
        )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), octaves=st.integers(-140, 110), spread=st.integers(0, 40))
def test_error_bound(seed, octaves, spread):
    """2^-7 of a value, or 2^-21 of its scale; and what is decoded is encoded to itself."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 200, generator=generator)
    x = torch.ldexp(x, octaves - torch.randint(0, spread + 1, x.shape, generator=generator))
    packed, scale = e5m6.quantize_1x128_e5m6(x)
    back = e5m6.dequantize_1x128_e5m6(packed, scale)
    error = (back.double() - x.double()).abs()
    wide = scale.double().repeat_interleave(128, 1)[:, :200]
    assert (error <= torch.maximum(x.double().abs() * 2.0**-7, wide * 2.0**-21)).all()
    again = e5m6.quantize_1x128_e5m6(back)
    assert torch.equal(e5m6.dequantize_1x128_e5m6(*again), back)


@pytest.mark.nightly  # 12 seconds where nothing was compiled before
def test_compiled_gives_the_same_values():
    """One row: there compiled code once read scales past their end."""
    packed, scale = e5m6.quantize_1x128_e5m6(random_values((1, 300), torch.bfloat16, "cpu"))
    compiled = torch.compile(e5m6.dequantize_1x128_e5m6, fullgraph=True)
    assert torch.equal(compiled(packed, scale), e5m6.dequantize_1x128_e5m6(packed, scale))


@pytest.mark.parametrize("value", [2.0**-149, 2.0**-126, 65024.0, 65025.0, 3.38e38])
def test_extremes(value):
    x = torch.tensor([[value, -value, value / 2, 0.0]])
    packed, scale = e5m6.quantize_1x128_e5m6(x)
    back = e5m6.dequantize_1x128_e5m6(packed, scale)
    assert torch.isfinite(back).all()
    # The smallest scale is 2^-126: values below are multiples of 2^-146 only.
    assert ((back - x).abs() <= torch.clamp_min(x.abs() * 2.0**-7, 2.0**-147)).all()


@pytest.mark.parametrize("largest", [torch.finfo(t).max for t in (torch.bfloat16, torch.float32)])
def test_the_largest_numbers_stay_finite(largest):
    """Their nearest, 2^128, is Inf in FP32: they become the largest number below."""
    x = torch.tensor([[largest, -largest, 1e38, 0.0]])
    packed, scale = e5m6.quantize_1x128_e5m6(x)
    back = e5m6.dequantize_1x128_e5m6(packed, scale)
    assert scale.item() == 2.0**112
    assert back[0, :2].double().tolist() == [65024 * 2.0**112, -65024 * 2.0**112]
    assert ((back.double() - x.double()).abs() <= x.double().abs() * 2.0**-7).all()
    assert torch.equal(e5m6.quantize_1x128_e5m6(back)[0], packed)


def test_zeros_nan_and_inf():
    x = torch.ones(3, 260)
    x[0, :128] = 0
    x[1, 5], x[2, 200] = math.nan, -math.inf
    packed, scale = e5m6.quantize_1x128_e5m6(x)
    codes = e5m6.unpack(packed)
    assert scale[0, 0] == 1 and (codes[0, :128] == 0).all()
    assert scale.isnan().nonzero().tolist() == [[1, 0], [2, 1]]
    assert (codes[1, :128] == e5m6.NAN_CODE).all() and (codes[2, 128:256] == e5m6.NAN_CODE).all()
    back = e5m6.dequantize_1x128_e5m6(packed, scale)
    assert back[1, :128].isnan().all() and (back[1, 128:] == 1).all()


def test_a_change_of_tiles_rounds_once_to_e4m3():
    """What the weight gradient of o_proj does: decoded values are exact, so only E4M3 rounds."""
    from abyssal import ops

    x = random_values((128, 256), torch.bfloat16, "cpu")
    values = e5m6.dequantize_1x128_e5m6(*e5m6.quantize_1x128_e5m6(x))
    tiles = ops.quantize_1x128_both(values, pow2=True)[1]
    error = (tiles.dequantize(torch.float64) - values.t().double()).abs()
    smallest = tiles.scale.double().repeat_interleave(128, 1) * 2.0**-10
    assert (error <= torch.maximum(values.t().double().abs() * 2.0**-4, smallest)).all()


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (1, "x must be a tensor, not int"),
        (torch.zeros(2, 128).half(), "x must be bfloat16 or float32, not torch.float16"),
        (torch.zeros(128), r"x must be \[T, K\] with K even, not \[128\]"),
        (torch.zeros(2, 3), r"x must be \[T, K\] with K even, not \[2, 3\]"),
    ],
)
def test_quantize_refuses(x, sentence):
    with pytest.raises(InputError, match=sentence):
        e5m6.quantize_1x128_e5m6(x)


@pytest.mark.parametrize(
    ("packed", "scale", "sentence"),
    [
        (1, torch.ones(2, 1), "packed must be a tensor, not int"),
        (torch.zeros(2, 3), torch.ones(2, 1), "packed must be torch.uint8 with 2 dimensions"),
        (torch.zeros(2, 3).byte(), torch.ones(2), "scale must be torch.float32 with 2 dimensions"),
        (torch.zeros(2, 4).byte(), torch.ones(2, 1), r"packed must be \[T, 3 K / 2\]"),
        (torch.zeros(2, 3).byte(), torch.ones(2, 2), r"scale must be \[2, 1\] for packed \[2, 3\]"),
    ],
)
def test_dequantize_refuses(packed, scale, sentence):
    with pytest.raises(InputError, match=sentence):
        e5m6.dequantize_1x128_e5m6(packed, scale)
