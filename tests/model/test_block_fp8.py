"""FP8 blocks: decoding against numpy bit arithmetic, encoding that gives back what was read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model import block_fp8
from abyssal.model.block_fp8 import block_size, dequantize_into, quantize, scale_grid
from tests.model.checkpoint_cases import FINITE, decode


def random_fp8(shape, block, seed, octaves=(-20, 10)):
    """Any finite codes under any scales: nothing here comes from a quantiser."""
    random = np.random.default_rng(seed)
    codes = random.choice(FINITE, shape)
    grid = scale_grid(shape, block)
    scale = np.exp2(random.uniform(*octaves, grid)).astype(np.float32)
    return codes, scale


def as_codes(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn)


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    block=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    band=st.sampled_from([1, 5000, 4 << 20]),
    seed=st.integers(0, 2**31),
)
def test_decoding_equals_numpy_bitwise(shape, block, band, seed):
    codes, scale = random_fp8(shape, block, seed)
    destination = torch.full(shape, float("nan"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_fp8, "_BAND_VALUES", band)
        dequantize_into(destination, as_codes(codes), torch.from_numpy(scale), block)
    expected = decode(codes, scale, block)
    np.testing.assert_array_equal(destination.numpy().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("shape", [(576, 7168), (130, 257), (1, 1), (128, 128)])
def test_official_block_size_decodes_ragged_weights(shape):
    codes, scale = random_fp8(shape, (128, 128), seed=shape[0])
    if shape == (576, 7168):
        assert scale.shape == (5, 56)
    destination = torch.full(shape, float("nan"), dtype=torch.bfloat16)
    dequantize_into(destination, as_codes(codes), torch.from_numpy(scale))
    expected = torch.from_numpy(decode(codes, scale, (128, 128))).bfloat16()
    assert_same_bits(destination, expected)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    octave=st.integers(-125, 118),
    seed=st.integers(0, 2**31),
)
def test_our_own_encoding_is_a_fixed_point_in_float32(shape, octave, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight = torch.ldexp(weight, torch.tensor(octave))
    codes, scale = quantize(weight)
    decoded = torch.empty(shape)
    dequantize_into(decoded, codes, scale)
    again = quantize(decoded)
    assert_same_bits(again[0], codes)
    assert_same_bits(again[1], scale)


def test_scales_are_a_fixed_point_for_every_fraction():
    # amax -> scale -> amax of the decoded tile (448 * scale) -> scale. Both roundings depend on
    # the fraction of amax alone, and here are all 2^23 of them.
    amax = torch.arange(2**23, dtype=torch.int32).add_(127 << 23).view(torch.float32)
    scale = amax / torch.full_like(amax, 448.0)
    again = (scale * 448.0) / torch.full_like(amax, 448.0)
    assert torch.equal(scale, again)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_any_fp8_weight_is_given_back_with_its_scales(shape, dtype, seed):
    codes, scale = random_fp8(shape, (128, 128), seed, octaves=(-100, 100))
    weight = torch.empty(shape, dtype=dtype)
    dequantize_into(weight, as_codes(codes), torch.from_numpy(scale))
    got_codes, got_scale = quantize(weight, torch.from_numpy(scale))
    assert_same_bits(got_codes, as_codes(codes))
    assert_same_bits(got_scale, torch.from_numpy(scale))


def test_without_its_scale_a_foreign_tie_is_not_given_back():
    # 448 * scale lies half-way between two FP32 numbers, so amax / 448 gives a neighbour. This is
    # why scales that were read are remembered.
    scale = torch.tensor([[(2**23 + 2**22 + 4) * 2.0**-30]])
    weight = torch.full((4, 4), 448.0) * scale
    assert quantize(weight)[1] != scale
    assert quantize(weight, scale)[1] == scale


def test_a_changed_block_is_quantised_anew_and_its_neighbours_are_not():
    codes, scale = random_fp8((300, 300), (128, 128), seed=5)
    weight = torch.empty(300, 300)
    dequantize_into(weight, as_codes(codes), torch.from_numpy(scale))
    weight[140, 290] = 1000.0
    got_codes, got_scale = quantize(weight, torch.from_numpy(scale))
    changed = got_scale.numpy() != scale
    assert changed.tolist() == [[False] * 3, [False, False, True], [False] * 3]
    assert got_scale[1, 2] == np.float32(1000) / np.float32(448)
    fresh_codes, _ = quantize(weight)
    expected = codes.copy()
    expected[128:256, 256:] = fresh_codes.view(torch.uint8).numpy()[128:256, 256:]
    np.testing.assert_array_equal(got_codes.view(torch.uint8).numpy(), expected)


def test_a_zero_scale_decodes_to_zero_and_is_not_kept():
    codes, _ = random_fp8((8, 8), (128, 128), seed=1)
    zero = torch.zeros(1, 1)
    weight = torch.empty(8, 8)
    dequantize_into(weight, as_codes(codes), zero)
    assert (weight == 0).all()
    assert quantize(weight, zero)[1] == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inf_and_nan_cannot_be_encoded(value):
    weight = torch.zeros(300, 300)
    weight[299, 299] = value
    with pytest.raises(InputError, match="Inf or NaN"):
        quantize(weight)


RELEASED = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def test_released_and_later_configurations_are_read():
    assert block_size(RELEASED) == (128, 128)
    assert block_size({**RELEASED, "scale_fmt": "ue8m0"}) == (128, 128)
    assert block_size({**RELEASED, "weight_block_size": [64, 256]}) == (64, 256)


@pytest.mark.parametrize(
    "change",
    [
        {"fmt": "e5m2"},
        {"quant_method": "awq"},
        {"weight_block_size": None},
        {"weight_block_size": [128]},
        {"weight_block_size": [128, 0]},
        {"weight_block_size": [128, 1.5]},
        {"zero_point": True},
    ],
)
def test_other_formats_are_refused_by_name(change):
    with pytest.raises(InputError, match=next(iter(change))):
        block_size({**RELEASED, **change})


def test_quantization_config_must_be_an_object():
    with pytest.raises(InputError, match="must be an object"):
        block_size("fp8")
