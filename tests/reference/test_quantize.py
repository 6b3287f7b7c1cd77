"""The 128x128 quantiser against numpy arithmetic and a table of the E4M3 values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.reference.quantize import (
    AMAX_FLOOR,
    quantize_128x128,
    round_up_to_power_of_two,
)

# The value of each code from 0 to 0x7E: 4 exponent bits of bias 7, 3 fraction bits.
POSITIVE = np.array(
    [(c & 7) * 2.0**-9 if c < 8 else (1 + (c & 7) / 8) * 2.0 ** ((c >> 3) - 7) for c in range(0x7F)]
)


def encode(values: np.ndarray) -> np.ndarray:
    """Nearest E4M3 code of float32 values within +-448, ties to the even code."""
    middle = (POSITIVE[1:] + POSITIVE[:-1]) / 2
    magnitude = np.abs(values).astype(np.float64)
    below = np.searchsorted(middle, magnitude, side="left")
    above = np.searchsorted(middle, magnitude, side="right")
    code = np.where(below % 2 == 0, below, above)
    return (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def quantize_by_loops(weight: np.ndarray, pow2: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = weight.shape
    codes = np.zeros((rows, columns), np.uint8)
    scale = np.zeros((-(-rows // 128), -(-columns // 128)), np.float32)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            amax = np.abs(weight[part]).max()
            s = np.float32(max(amax, np.float32(AMAX_FLOOR))) / np.float32(448)
            if pow2:
                s = np.float32(2.0 ** np.ceil(np.log2(np.float64(s))))
            s = np.float32(1) if amax == 0 else s
            scaled = weight[part] * (np.float32(1) / s)
            codes[part] = encode(np.clip(scaled, np.float32(-448), np.float32(448)))
            scale[i, j] = s
    return codes, scale


def as_bytes(codes: torch.Tensor) -> np.ndarray:
    return codes.view(torch.uint8).numpy()


shapes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@settings(max_examples=25, deadline=None)
@given(shape=shapes, octave=st.integers(-146, 120), pow2=st.booleans(), seed=st.integers(0, 2**31))
def test_equals_numpy_bitwise(shape, octave, pow2, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.ldexp(torch.randn(shape, generator=generator), torch.tensor(octave))
    weight[torch.rand(shape, generator=generator) < 0.1] = 0.0
    codes, scale = quantize_128x128(weight, pow2=pow2)
    expected_codes, expected_scale = quantize_by_loops(weight.numpy(), pow2)
    np.testing.assert_array_equal(scale.numpy().view(np.uint32), expected_scale.view(np.uint32))
    np.testing.assert_array_equal(as_bytes(codes), expected_codes)


def test_bf16_input_equals_its_fp32_value():
    weight = torch.randn(130, 257).bfloat16()
    for got, expected in zip(
        quantize_128x128(weight), quantize_128x128(weight.float()), strict=True
    ):
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))


def test_ragged_edges_count_as_zeros():
    weight = torch.full((576, 7168), 1e-3)
    weight[512:] = 2.0
    codes, scale = quantize_128x128(weight)
    assert scale.shape == (5, 56) and codes.shape == (576, 7168)
    assert (scale[4] == np.float32(2.0) / np.float32(448)).all()
    assert (scale[:4] == np.float32(1e-3) / np.float32(448)).all()
    assert (as_bytes(codes) == 0x7E).all()


def test_zero_tile_has_scale_one_and_tiny_tile_the_floor():
    weight = torch.zeros(128, 256)
    weight[0, 200] = 2.0**-140
    codes, scale = quantize_128x128(weight)
    assert scale.tolist() == [[1.0, 2.0**-126]]
    assert as_bytes(codes).sum() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tile_with_inf_or_nan_is_nan_throughout_and_no_other(value):
    weight = torch.randn(256, 130)
    weight[140, 129] = value
    codes, scale = quantize_128x128(weight)
    assert scale.isnan().tolist() == [[False, False], [False, True]]
    nan = as_bytes(codes) == 0x7F
    assert nan[128:, 128:].all() and nan.sum() == 128 * 2


@settings(max_examples=50, deadline=None)
@given(st.floats(2.0**-126, 2.0**120, width=32))
def test_power_of_two_is_the_smallest_not_below(value):
    got = round_up_to_power_of_two(torch.tensor([value])).item()
    assert np.log2(got) == np.round(np.log2(got))
    assert got >= value > got / 2
