"""The expected results themselves: formats, the tensor core, layouts, and that a check can fail."""

import os
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.hopper import case as cases_module
from tests.hopper import layouts, numerics
from tests.hopper.cases import CASES, make_case

TORCH_TYPES = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}


def as_torch(codes, kind):
    return torch.from_numpy(codes.copy()).view(TORCH_TYPES[kind])


@pytest.mark.parametrize("kind", TORCH_TYPES)
def test_decoding_every_code(kind):
    form = numerics.FORMATS[kind]
    codes = np.arange(2 ** (8 * np.dtype(form.storage).itemsize)).astype(form.storage)
    expected = as_torch(codes, kind).double().numpy()
    np.testing.assert_array_equal(form.decode(codes), expected)
    np.testing.assert_array_equal(numerics.is_nan(codes, kind), np.isnan(expected))
    finite = codes[np.isfinite(expected)]
    np.testing.assert_array_equal(form.encode(form.decode(finite)), finite)


@pytest.mark.parametrize("kind", TORCH_TYPES)
def test_encoding_rounds_to_nearest_even(kind):
    form = numerics.FORMATS[kind]
    random = np.random.default_rng()
    exponents = random.integers(-2 - form.bias - form.fraction_bits, form.bias, 20000)
    values = np.ldexp(random.uniform(-1, 1, 20000), exponents).astype(np.float32)
    codes = form.encode(values.astype(np.float64))
    expected = torch.from_numpy(values).to(TORCH_TYPES[kind]).view(torch.uint8).numpy()
    np.testing.assert_array_equal(codes.view(np.uint8), expected)


def test_encoding_saturates():
    for form, largest in ((numerics.E4M3, 448), (numerics.E5M2, 57344)):
        values = np.array([1e30, -1e30, np.inf, -np.inf, largest])
        codes = form.decode(form.encode(values, saturate=True))
        np.testing.assert_array_equal(codes, np.array([1, -1, 1, -1, 1]) * largest)
        assert np.isnan(form.decode(form.encode(np.array(np.nan), saturate=True)))


def recorded_data():
    path = os.environ.get("ABYSSAL_TENSOR_CORE_DATA")
    if not path or not Path(path).is_file():
        pytest.skip("ABYSSAL_TENSOR_CORE_DATA does not name the recorded data of an H100")
    return np.load(path)


@pytest.mark.parametrize("kind", ["e4m3", "e5m2", "bf16"])
def test_the_tensor_core_equals_recorded_data(kind):
    data = recorded_data()
    values = {name: data[f"{kind}_{name}"].view(np.float32) for name in "abcd"}
    a, b = (numerics.FORMATS[kind].encode(values[name].astype(np.float64)) for name in "ab")
    rows = np.isfinite(values["d"])
    c = values["c"] if kind == "bf16" else np.zeros_like(values["c"])
    for i in np.flatnonzero(rows)[:1000]:
        d = numerics.mma(a[i : i + 1], b[i : i + 1], c[i : i + 1, None], kind, kind)
        assert d.view(np.uint32) == data[f"{kind}_d"][i], i


def test_the_tensor_core_cuts_where_it_should():
    """By hand: products 1 and 2^-13 in FP8 keep 13 fraction bits below the largest exponent."""
    one, tiny = (numerics.E4M3.encode(np.array(v)) for v in (1.0, 2.0**-7))
    a = np.zeros((1, 32), np.uint8)
    b = np.zeros((1, 32), np.uint8)
    a[0, :2] = [one, tiny]
    b[0, :2] = [one, tiny]  # 2^-14: cut
    none = np.zeros((1, 1), np.float32)
    assert numerics.mma(a, b, none, "e4m3", "e4m3")[0, 0] == 1
    b[0, 1] = numerics.E4M3.encode(np.array(2.0**-6))  # 2^-13: kept
    assert numerics.mma(a, b, none, "e4m3", "e4m3")[0, 0] == 1 + 2.0**-13
    large = np.full((1, 1), 2.0**13, np.float32)  # C takes part in the largest exponent
    assert numerics.mma(a, b, large, "e4m3", "e4m3")[0, 0] == 2.0**13 + 1
    assert numerics.mma(a, b, 2 * large, "e4m3", "e4m3")[0, 0] == 2.0**14


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0, 32, 64, 128]), st.integers(1, 8), st.integers(1, 4))
def test_panels_put_every_16_bytes_where_the_swizzle_says(span, groups, count):
    """Against the definition of a swizzled row: piece p of row r is at p xor a part of r."""
    rows, width = 8 * groups, count * (span or 16)
    tile = np.random.default_rng().integers(0, 256, (rows, width), np.uint8)
    image = layouts.panels(tile, span)
    width_of_panel = span or 16
    for row in (0, 1, rows // 2, rows - 1):
        for piece in range(width // 16):
            panel, inside = divmod(piece * 16, width_of_panel)
            # 128-byte lines of a panel hold 8, 4, 2 (or 1) rows; the line's number is exchanged.
            line = row * width_of_panel // 128
            moved = inside // 16 ^ (line & {0: 0, 32: 1, 64: 3, 128: 7}[span])
            start = panel * rows * width_of_panel + row * width_of_panel + moved * 16
            if rows * width_of_panel % 1024 == 0 or panel == 0:
                np.testing.assert_array_equal(
                    image[start : start + 16], tile[row, piece * 16 : piece * 16 + 16]
                )


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_boxes_across_edges(data):
    """Against a tensor with a margin of fill on every side."""
    rank = data.draw(st.integers(1, 4))
    shape, box = (
        tuple(data.draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank)))
        for _ in range(2)
    )
    at = tuple(data.draw(st.integers(-6, size + 6)) for size in shape)
    tensor = np.random.default_rng().integers(0, 1000, shape)
    margin = np.pad(tensor, 16, constant_values=-1)
    part = tuple(slice(a + 16, a + 16 + b) for a, b in zip(at, box, strict=True))
    np.testing.assert_array_equal(layouts.read_box(tensor, at, box, -1), margin[part])
    margin[part] = values = np.random.default_rng().integers(1000, 2000, box)
    layouts.write_box(tensor, at, values)
    np.testing.assert_array_equal(tensor, margin[(slice(16, -16),) * rank])


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_whole_and_can_fail(name):
    """What is expected passes; one wrong element does not."""
    case = make_case(name)
    expected = cases_module.expected_of(case)
    cases_module.check(case, expected)
    known = set(case.arrays) | set(case.maps)
    for launch in case.launches:
        for argument in launch.arguments:
            assert isinstance(argument, np.generic) or argument in known
    for array in expected:
        wrong = {k: v.copy() for k, v in expected.items()}
        flat = wrong[array].reshape(-1)
        usable = ~numerics.is_nan(flat, case.arrays[array].kind)
        if flat.dtype.kind == "f":
            usable &= np.abs(flat) < 1e30
        at = int(np.flatnonzero(usable)[-1])
        if flat.dtype.kind == "f":
            flat[at] = flat[at] * 1.01 + 1
        else:
            flat[at] ^= 1
        with pytest.raises(AssertionError, match=f"{array}: "):
            cases_module.check(case, wrong)


def test_numbers_are_the_same_for_everybody_or_fresh():
    first, second = (make_case("wgmma_e4m3_n64/with_c") for _ in range(2))
    np.testing.assert_array_equal(first.arrays["a"].values, second.arrays["a"].values)
    fresh = make_case("wgmma_e4m3_n64/with_c", seed=1)
    assert (first.arrays["a"].values != fresh.arrays["a"].values).any()
