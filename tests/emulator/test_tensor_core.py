"""The tensor core's arithmetic: recorded outputs of an H100, cases by hand, and a slow model."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abyssal import emulator
from abyssal.emulator.tensor_core import accumulate_into, paths
from abyssal.errors import InputError
from tests.emulator import tensor_core_model as model

TYPES = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
}
ACCUMULATORS = {"f32": (torch.float32, model.F32), "f16": (torch.float16, model.F16)}
PAIRS = [
    *itertools.product(("e4m3", "e5m2"), repeat=2),
    ("f16", "f16"),
    ("bf16", "bf16"),
    ("tf32", "tf32"),
]
# (type of a, type of b, accumulators)
INSTRUCTIONS = [
    (a, b, accumulators)
    for a, b in PAIRS
    for accumulators in ACCUMULATORS
    if accumulators == "f32" or a not in ("bf16", "tf32")
]
instructions = pytest.mark.parametrize(
    "instruction", INSTRUCTIONS, ids=lambda instruction: "-".join(instruction)
)
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def from_codes(codes: np.ndarray, dtype: torch.dtype) -> Tensor:
    unsigned = UNSIGNED[dtype.itemsize]
    contiguous = np.array(codes, dtype=unsigned, order="C")
    return torch.from_numpy(contiguous).view(dtype)


def to_codes(values: Tensor) -> np.ndarray:
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32}[values.dtype.itemsize]
    return values.contiguous().view(signed).numpy().view(UNSIGNED[values.dtype.itemsize])


def run(instruction, a: np.ndarray, b: np.ndarray, c: np.ndarray, path=None) -> np.ndarray:
    """Codes of the results of one path from codes of the operands."""
    a_type, b_type, accumulators = instruction
    operands = from_codes(a, TYPES[a_type]), from_codes(b, TYPES[b_type])
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in operands), c.shape)
    d = from_codes(c, ACCUMULATORS[accumulators][0]).expand(shape).clone()
    accumulate_into(d, *operands, (a_type, b_type), path=path)
    return to_codes(d)


def expected(instruction, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """What the slow model gives for a [rows, K], b [columns, K], c [rows, columns]."""
    a_type, b_type, accumulators = instruction
    output = ACCUMULATORS[accumulators][1]
    a_rows, b_rows = a.tolist(), b.tolist()
    return np.array(
        [
            [model.dot(a_type, b_type, x, y, int(c[i, j]), output) for j, y in enumerate(b_rows)]
            for i, x in enumerate(a_rows)
        ],
        dtype=np.uint32,
    )


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    different = np.argwhere(got != wanted)
    if len(different):
        at = tuple(different[0])
        raise AssertionError(
            f"{len(different)} of {got.size} differ; the first at {at}: "
            f"{int(got[at]):#x} instead of {int(wanted[at]):#x}"
        )


# ---- random operands ----


def random_codes(rng, format_: model.Format, kind: str, shape) -> np.ndarray:
    """Codes by kind: `any` of them; exponents `near` each other or `wide`; `subnormal`; ..."""
    top = 2**format_.exponent_bits - 1 - format_.infinity
    span = {
        "near": (format_.bias - 2, format_.bias + 2),
        "wide": (0, top),
        "subnormal": (0, 1),
        "tiny": (format_.bias // 4, format_.bias // 2),
        "huge": (top - 1, top),
    }.get(kind, (format_.bias - 6, format_.bias + 6))
    fields = rng.integers(span[0], span[1] + 1, shape)
    fractions = rng.integers(0, 2**format_.fraction_bits, shape)
    if not format_.infinity:  # no NaN, where that is a fraction of the top exponent
        fractions = np.where(fields == top, np.minimum(fractions, 6), fractions)
    signs = rng.integers(0, 2, shape)
    codes = (signs * format_.sign_bit) + (fields << format_.fraction_bits) + fractions
    codes = (codes << format_.unread) + rng.integers(0, 2**format_.unread, shape)
    zero = signs * format_.sign_bit << format_.unread
    if kind == "zeros":
        codes = np.where(rng.random(shape) < 0.7, zero, codes)
    if kind == "cancelling":  # a second half that is mostly the first with the other sign
        half = shape[-1] // 2
        negated = codes[..., :half] ^ (format_.sign_bit << format_.unread)
        keep = rng.random(negated.shape) < 0.9
        codes[..., -half:] = np.where(keep, negated, codes[..., -half:])
    if kind == "special":
        all_codes = rng.integers(0, 2 * format_.sign_bit << format_.unread, shape)
        infinite = (2**format_.exponent_bits - 1 << format_.fraction_bits) << format_.unread
        some = np.where(rng.random(shape) < 0.5, zero + infinite, all_codes)
        codes = np.where(rng.random(shape) < 0.05, some, codes)
    if kind == "any":
        codes = rng.integers(0, 2 * format_.sign_bit << format_.unread, shape)
    return codes


KINDS = ["any", "near", "wide", "subnormal", "tiny", "huge", "zeros", "cancelling", "special"]


def random_operands(rng, instruction, kind: str, rows: int, columns: int):
    a_type, b_type, accumulators = instruction
    depth = model.DEPTHS[a_type]
    a = random_codes(rng, model.FORMATS[a_type], kind, (rows, depth))
    b_kind = kind
    if kind == "cancelling":  # the same factors for both halves, so that products cancel
        b_kind = "near"
    b = random_codes(rng, model.FORMATS[b_type], b_kind, (columns, depth))
    if kind == "cancelling":
        b[:, depth // 2 :] = b[:, : depth // 2]
    c_kind = rng.choice(["zeros", "near", kind])  # of the output's format
    c = random_codes(rng, ACCUMULATORS[accumulators][1], c_kind, (rows, columns))
    return a, b, c


@instructions
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_gives_the_slow_models_bits(instruction, kind):
    rng = np.random.default_rng()
    for rows, columns in ((7, 11), (1, 66)):
        a, b, c = random_operands(rng, instruction, kind, rows, columns)
        wanted = expected(instruction, a, b, c)
        for path in paths():
            assert_same(run(instruction, a[:, None], b[None], c, path), wanted)


@instructions
def test_the_slow_model_on_any_codes(instruction):
    """Single products of codes that hypothesis shrinks when they fail."""
    a_type, b_type, accumulators = instruction
    depth = model.DEPTHS[a_type]

    def row(type_):
        format_ = model.FORMATS[type_]
        code = st.integers(0, (2 * format_.sign_bit << format_.unread) - 1)
        few = st.lists(st.tuples(st.integers(0, depth - 1), code), max_size=4)
        return st.one_of(st.lists(code, min_size=depth, max_size=depth), few.map(sparse))

    def sparse(elements):
        codes = [0] * depth
        for position, code in elements:
            codes[position] = code
        return codes

    output = ACCUMULATORS[accumulators][1]

    @settings(max_examples=60, deadline=None)
    @given(row(a_type), row(b_type), st.integers(0, 2 * output.sign_bit - 1))
    def check(a, b, c):
        wanted = model.dot(a_type, b_type, a, b, c, output)
        for path in paths():
            got = run(instruction, np.array([a]), np.array([b]), np.array([c]), path)
            assert int(got[0]) == wanted

    check()


@instructions
@pytest.mark.parametrize("kind", ["any", "near", "wide", "special"])
@pytest.mark.parametrize("shape", [(64, 256), (64, 8), (5, 300), (130, 65), (1, 1), (0, 8), (8, 0)])
def test_paths_agree_on_matrices_of_any_shape(instruction, kind, shape):
    rng = np.random.default_rng()
    a, b, c = random_operands(rng, instruction, kind, *shape)
    results = [run(instruction, a[:, None], b[None], c, path) for path in paths()]
    for result in results[1:]:
        assert_same(result, results[0])
    # Row by row and column by column, the code takes other ways through blocks and transposes.
    for i in range(0, shape[0], 17):
        assert_same(run(instruction, a[i], b, c[i]), results[0][i])
    for j in range(0, shape[1], 29):
        assert_same(run(instruction, a, b[j], c[:, j]), results[0][:, j])


@instructions
def test_without_accumulation_the_old_accumulator_is_not_read(instruction):
    a_type, b_type, accumulators = instruction
    rng = np.random.default_rng()
    a, b, _ = random_operands(rng, instruction, "special", 20, 30)
    wanted = run(instruction, a[:, None], b[None], np.zeros((20, 30), np.int64))
    d = torch.full((20, 30), float("nan"), dtype=ACCUMULATORS[accumulators][0])
    operands = from_codes(a[:, None], TYPES[a_type]), from_codes(b[None], TYPES[b_type])
    accumulate_into(d, *operands, (a_type, b_type), accumulate=False)
    assert_same(to_codes(d), wanted)


@instructions
def test_strides_of_operands_and_accumulators(instruction):
    """Rows further apart than they are long, and a D whose neighbours must not change."""
    a_type, b_type, accumulators = instruction
    rng = np.random.default_rng()
    a, b, c = random_operands(rng, instruction, "near", 10, 12)
    wanted = run(instruction, a[:, None], b[None], c)
    depth = a.shape[1]
    wide = [np.pad(x, ((0, 0), (depth, 3 * depth))) for x in (a, b)]
    operands = [
        from_codes(x, TYPES[type_])[:, depth : 2 * depth]
        for x, type_ in zip(wide, (a_type, b_type), strict=True)
    ]
    dtype = ACCUMULATORS[accumulators][0]
    for dimensions in (0, 1), (1, 0):  # row-major and column-major
        storage = torch.full((20, 20), 7.0, dtype=dtype)
        d = storage[3:13, 4:16] if dimensions == (0, 1) else storage[3:15, 4:14].T
        d.copy_(from_codes(c, dtype))
        accumulate_into(d, operands[0][:, None], operands[1][None], (a_type, b_type))
        assert_same(to_codes(d), wanted)
        assert (storage == 7).sum() >= 400 - 120


# ---- cases by hand ----

F32_ONE = 0x3F800000


def code_of(value: float, dtype: torch.dtype) -> int:
    tensor = torch.tensor([value], dtype=torch.float64).to(dtype)
    assert tensor.double().item() == value or value != value, f"{value} is not a {dtype}"
    return int(to_codes(tensor)[0])


def products(pairs, type_: str):
    """Codes of rows whose first elements are the factors of the given pairs, the others 0."""
    depth = model.DEPTHS[type_]
    a, b = np.zeros(depth, np.int64), np.zeros(depth, np.int64)
    for k, (x, y) in enumerate(pairs):
        a[k], b[k] = code_of(x, TYPES[type_]), code_of(y, TYPES[type_])
    return a, b


INF, NAN = float("inf"), float("nan")
P = (2.0).__pow__  # P(-13) is 2**-13

# (what it shows, type, accumulators, pairs of factors, c, the result's code)
BY_HAND = [
    # 1 has exponent 0, so terms are cut at 2**-13. That is kept: 1 + 2**-13 has 13 fraction bits.
    ("fp8 keeps 13 bits", "e4m3", "f32", [(1, 1)], P(-13), F32_ONE + 2**10),
    # 2**-14 is below the cut. Below zero, cutting toward zero gives 1 and not 1 - 2**-13.
    ("fp8 cuts the 14th bit", "e4m3", "f32", [(1, 1)], P(-14), F32_ONE),
    ("fp8 cuts toward zero", "e4m3", "f32", [(1, 1)], -P(-14), F32_ONE),
    # 1.5 x 1.5 = 2.25 still has exponent 0 + 0, so 2**-13 survives the cut, and it is all that is
    # left of 2.25 - 2.25 + 2**-13. With the exponent 1 of 2.25 the cut would be at 2**-12.
    ("products are not normalised", "e4m3", "f32", [(1.5, 1.5), (-1.5, 1.5)], P(-13), 0x39000000),
    # 2.25 + 3 x 2**-13 has exponent 1, so 13 fraction bits end at 2**-12: 2.25 + 2**-12.
    ("the sum is cut once more", "e4m3", "f32", [(1.5, 1.5)], 3 * P(-13), 0x40100400),
    # c = 1024 sets the cut at 2**-3: 32 products of 2**-4 vanish one by one, though they sum to 2.
    ("c takes part in alignment", "e4m3", "f32", [(1, P(-4))] * 32, 1024.0, 0x44800000),
    # 32 products of (1.75 x 2**8)**2 = 3.0625 x 2**16: their sum 98 x 2**16 = 1.53125 x 2**22.
    ("all at their largest", "e4m3", "f32", [(448, 448)] * 32, 0.0, 0x4AC40000),
    # 2**-9 is subnormal and counts as exponent -6, so the cut is at 2**-19 and c = 2**-20 is lost.
    # At the exponent -9 that 2**-9 would have as a normal number, c would be kept.
    ("subnormal factors keep -6", "e4m3", "f32", [(P(-9), 1)], P(-20), 0x3B000000),
    # E5M2: 2**-16 is the smallest subnormal; squared it is 2**-32, at exponent -28.
    ("e5m2 subnormals", "e5m2", "f32", [(P(-16), P(-16))], 0.0, 0x2F800000),
    # With nothing else, c passes, cut to 13 fraction bits; a subnormal one to multiples of 2**-139.
    ("c alone", "e4m3", "f32", [], 1 + P(-13) + P(-14), F32_ONE + 2**10),
    ("a subnormal c alone", "e4m3", "f32", [], -(P(-139) + P(-149)), 0x80000400),
    # Aligned to itself, at exponent -126, it is cut before the sum: what is left is a sum of zero.
    ("a smaller one is cut", "e4m3", "f32", [], -P(-140), 0),
    # 0 x 8 is no term, so c is not aligned to exponent 3 or to anything.
    ("a zero product has no exponent", "e5m2", "f32", [(0, 8)], P(-139), 0x00000400),
    ("nor in bf16", "bf16", "f32", [(0, P(127))], P(-149), 0x00000001),
    ("cancellation gives +0", "e4m3", "f32", [(1, 2), (-2, 1)], 0.0, 0),
    ("-0 and -0 give +0", "e4m3", "f32", [(-0.0, 1)] * 32, -0.0, 0),
    # Four products of 2**-25 are just not cut, and sum to 2**-23: 1's last bit.
    ("bf16 keeps 25 bits", "bf16", "f32", [(1, 1)] + [(P(-25), 1)] * 4, 0.0, F32_ONE + 1),
    ("bf16 cuts the 26th", "bf16", "f32", [(1, 1)] + [(P(-26), 1)] * 15, 0.0, F32_ONE),
    ("the result is truncated", "bf16", "f32", [(1, 1)] + [(P(-25), 1)] * 3, 0.0, F32_ONE),
    ("the same below zero", "bf16", "f32", [(-1, 1)] + [(P(-25), -1)] * 3, 0.0, 0xBF800000),
    # 16 products of (255/128)**2 and c = 2 - 2**-23 are more than 2**31 units of 2**-25. Their sum
    # 67073/1024 - 2**-23 is cut to multiples of 2**-17, so to 67073/1024 - 2**-17:
    # 67073 x 128 - 1 = 8585343 = 2**23 + 0x3007f units of 2**-17, of exponent 6.
    ("the longest sum", "bf16", "f32", [(255 / 128, 255 / 128)] * 16, 2 - P(-23), 0x4283007F),
    # 2 x 2**127 is an overflow, but terms beyond FP32's range may cancel.
    ("overflow", "bf16", "f32", [(P(127), 2)], 0.0, 0x7F800000),
    ("overflow below zero", "bf16", "f32", [(P(127), -2)], 0.0, 0xFF800000),
    ("terms may overflow", "bf16", "f32", [(P(127), P(127)), (P(127), -P(127))], 0.0, 0),
    # The largest FP32 number ends at 2**104. Half of that is truncated; twice the half is 2**128.
    ("truncated, no overflow", "bf16", "f32", [(P(103), 1)], (2 - P(-23)) * P(127), 0x7F7FFFFF),
    ("carried to infinity", "bf16", "f32", [(P(103), 1)] * 2, (2 - P(-23)) * P(127), 0x7F800000),
    ("subnormal result", "bf16", "f32", [(P(-126), 0.5)], 0.0, 0x00400000),
    ("the smallest one", "bf16", "f32", [(P(-75), P(-74))], 0.0, 1),
    ("underflow", "bf16", "f32", [(P(-75), P(-75))], 0.0, 0),
    ("underflow keeps the sign", "bf16", "f32", [(-P(-75), P(-75))], 0.0, 0x80000000),
    # 2**-126 - 2**-127 + 1.5 x 2**-149, of which the nearest subnormals are a tie: not rounded.
    (
        "subnormals are truncated",
        "bf16",
        "f32",
        [(-P(-63), P(-64)), (1.5 * P(-75), P(-74))],
        P(-126),
        0x00400001,
    ),
    # The same from the next exponent: 2**-125 - 1.5 x 2**-126 + 1.5 x 2**-149.
    (
        "subnormals are truncated, again",
        "bf16",
        "f32",
        [(-1.5 * P(-63), P(-63)), (1.5 * P(-75), P(-74))],
        P(-125),
        0x00400001,
    ),
    # No alignment below 2**-133: terms are cut at 2**-158. 2**-149 - 2**-158 is below the smallest
    # FP32 number; 2**-160 is cut away before it could make a difference.
    ("not cut", "bf16", "f32", [(P(-75), P(-74)), (-P(-79), P(-79))], 0.0, 0),
    ("cut", "bf16", "f32", [(P(-75), P(-74)), (-P(-80), P(-80))], 0.0, 1),
    ("tf32 has 10 bits", "tf32", "f32", [(1 + P(-10), 1)], 0.0, F32_ONE + 2**13),
    ("tf32 does not read more", "tf32", "f32", [(1 + P(-11), 1 + P(-23))], 0.0, F32_ONE),
    ("f16's product", "f16", "f32", [(1 + P(-10), 1 + P(-10))], 0.0, F32_ONE + 2**14 + 2**3),
    ("f16's subnormals", "f16", "f32", [(P(-24), P(-24))], 0.0, 0x27800000),
    # FP16 accumulators: 1 + 2**-11 is a tie, to the even 1; 1 + 3 x 2**-11 one to 1 + 2 x 2**-10.
    ("ties to even, down", "f16", "f16", [(1, 1), (P(-11), 1)], 0.0, 0x3C00),
    ("ties to even, up", "f16", "f16", [(1, 1), (P(-11), 3)], 0.0, 0x3C02),
    ("above a tie", "f16", "f16", [(1, 1), (P(-11), 1), (P(-13), P(-12))], 0.0, 0x3C01),
    # 2**-26 below the leading 1 is cut, and the tie is one again.
    ("cut to a tie", "f16", "f16", [(1, 1), (P(-11), 1), (P(-13), P(-13))], 0.0, 0x3C00),
    # 65504 is FP16's largest number, and 65520 half way to 65536.
    ("f16 overflow", "f16", "f16", [(255.875, 256)], 16.0, 0x7C00),
    ("no f16 overflow", "f16", "f16", [(255.875, 256)], 15.9921875, 0x7BFF),
    ("f16 overflow below zero", "f16", "f16", [(-256, 256)], 0.0, 0xFC00),
    ("f16 subnormal result", "f16", "f16", [(P(-12), 3 * P(-12))], 0.0, 3),
    ("f16 subnormal tie", "f16", "f16", [(P(-12), 3 * P(-13))], 0.0, 2),
    ("f16 underflow", "f16", "f16", [(-P(-13), P(-12))], 0.0, 0x8000),
    # FP8 into FP16: cut at 2**-13, then rounded from the exact sum: 1 + 2**-11 + 2**-13 is above
    # the tie, and c = 2**-14 has no say.
    ("fp8 into f16", "e4m3", "f16", [(1, 1), (P(-6), P(-5)), (P(-6), P(-7))], 0.0, 0x3C01),
    ("fp8 into f16, cut", "e4m3", "f16", [(1, 1), (P(-6), P(-5))], P(-14), 0x3C00),
    ("inf", "e5m2", "f32", [(INF, 1), (1, 1)], -1.0, 0x7F800000),
    ("-inf", "bf16", "f32", [(INF, -1)] * 2, 1.0, 0xFF800000),
    ("c is inf", "e4m3", "f32", [(-448, 448)], INF, 0x7F800000),
    ("inf - inf", "e5m2", "f32", [(INF, 1), (-INF, 1)], 0.0, 0x7FFFFFFF),
    ("inf - c", "f16", "f32", [(INF, 1)], -INF, 0x7FFFFFFF),
    ("0 x inf", "e5m2", "f32", [(INF, 0)], 0.0, 0x7FFFFFFF),
    ("nan", "e4m3", "f32", [(NAN, 0)], 0.0, 0x7FFFFFFF),
    ("c is nan", "bf16", "f32", [], NAN, 0x7FFFFFFF),
    ("nan in f16", "f16", "f16", [(NAN, 1)], INF, 0x7FFF),
    ("-inf in f16", "e5m2", "f16", [(INF, -1)], 0.0, 0xFC00),
]


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: f"{case[1]}-{case[2]}-{case[0]}")
def test_by_hand(case):
    _, type_, accumulators, pairs, c, wanted = case
    a, b = products(pairs, type_)
    dtype, output = ACCUMULATORS[accumulators]
    c_code = code_of(c, dtype)
    assert model.dot(type_, type_, a.tolist(), b.tolist(), c_code, output) == wanted
    for path in paths():
        got = run((type_, type_, accumulators), a, b, np.array(c_code), path)
        assert int(got) == wanted, path
        # In whole vectors, too: the columns that fill up a block are all zero.
        got = run((type_, type_, accumulators), a, np.tile(b, (128, 1)), np.array(c_code), path)
        assert set(got.tolist()) == {wanted}, path


def test_the_codes_that_are_not_numbers():
    """E4M3 has NaN at 0x7f and 0xff only. TF32's NaNs with low bits alone are read as infinity."""
    one_e4m3, one_tf32 = 0x38, F32_ONE
    for type_, code, one, wanted in (
        ("e4m3", 0x7F, one_e4m3, 0x7FFFFFFF),
        ("e4m3", 0xFF, one_e4m3, 0x7FFFFFFF),
        ("e4m3", 0x7E, one_e4m3, 0x43E00000),  # 448
        ("e4m3", 0xFE, one_e4m3, 0xC3E00000),
        ("e5m2", 0x7D, 0x3C, 0x7FFFFFFF),
        ("e5m2", 0xFC, 0x3C, 0xFF800000),
        ("tf32", 0x7F800001, one_tf32, 0x7F800000),
        ("tf32", 0xFF801FFF, one_tf32, 0xFF800000),
        ("tf32", 0x7F802000, one_tf32, 0x7FFFFFFF),
    ):
        a, b = np.zeros((2, model.DEPTHS[type_]), np.int64)
        a[-1], b[-1] = code, one
        for path in paths():
            got = run((type_, type_, "f32"), a, b, np.array(0), path)
            assert int(got) == wanted, (type_, hex(code), path)


# ---- recorded outputs ----

DATA = os.environ.get("ABYSSAL_TENSOR_CORE_DATA")


@pytest.mark.parametrize(
    ("type_", "accumulators"), [*((type_, "f32") for type_ in TYPES), ("f16", "f16")]
)
def test_recorded_h100_outputs(type_, accumulators):
    """Every output of the recording, bit by bit.

    The file has <type>_a and <type>_b [n, K], <type>_c and <type>_d [n] (<type>_d_f16 for FP16
    accumulators, of which c is the nearest FP16 number), all as bits of FP32 numbers. FP8 was
    recorded with c = 0.
    """
    key = f"{type_}_d" if accumulators == "f32" else f"{type_}_d_f16"
    a, b, c, wanted = recorded(type_, key)
    c = c.to(ACCUMULATORS[accumulators][0])
    if type_ in ("e4m3", "e5m2"):
        c = torch.zeros_like(c)
    for path in paths():
        d = c.clone()
        accumulate_into(d, a, b, (type_, type_), path=path)
        assert_same(to_codes(d), to_codes(wanted.to(c.dtype)))


@pytest.mark.parametrize("type_", ["e4m3", "e5m2"])
def test_recorded_h100_outputs_of_mma_sync_with_fp8(type_):
    """Hopper has `mma.sync` of FP8 as two FP16 instructions and, with FP16 accumulators, c last.

    That is what the recording of FP8 with FP16 accumulators shows; so it says nothing of `wgmma`,
    but more of FP16. Of each four elements, the first instruction takes two and the second two.
    """
    a, b, c, wanted = recorded(type_, f"{type_}_d_f16")
    first = torch.arange(32) % 4 < 2
    for path in paths():
        d = torch.zeros(len(c), dtype=torch.float16)
        for half in (first, ~first):
            accumulate_into(d, a.half()[:, half], b.half()[:, half], ("f16", "f16"), path=path)
        assert_same(to_codes(d + c.half()), to_codes(wanted.half()))


def recorded(type_: str, key: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, c and the output called `key`; skips where they are not to be had."""
    if DATA is None:
        pytest.skip("ABYSSAL_TENSOR_CORE_DATA does not name a recording of an H100")
    if not Path(DATA).is_file():
        pytest.skip(f"ABYSSAL_TENSOR_CORE_DATA names {DATA}, which is not there")
    recording = np.load(DATA)
    if key not in recording:
        pytest.skip(f"{Path(DATA).name} has no {key}")
    a, b, c, d = (
        torch.from_numpy(recording[name].view(np.float32))
        for name in (f"{type_}_a", f"{type_}_b", f"{type_}_c", key)
    )
    assert len(a) == len(d) > 1000
    missing = (0, model.DEPTHS[type_] - a.shape[1])
    a, b = (torch.nn.functional.pad(x, missing).to(TYPES[type_]) for x in (a, b))
    return a, b, c, d


# ---- the public function ----


def random_tensors(type_="e4m3", rows=6, columns=10):
    depth = model.DEPTHS[type_]
    a = torch.randn(rows, 1, depth).to(TYPES[type_])
    b = torch.randn(1, columns, depth).to(TYPES[type_])
    return a, b, torch.randn(rows, columns)


@pytest.mark.parametrize("type_", TYPES)
def test_the_public_function_broadcasts(type_):
    a, b, c = random_tensors(type_)
    dtype = "tf32" if type_ == "tf32" else None
    d = emulator.tensor_core(a, b, c, dtype)
    assert d.shape == c.shape and d.dtype == torch.float32
    reference = (a.double() * b.double()).sum(-1) + c
    # 2**-12 for the sums of FP8, and nearly nothing else for the others.
    torch.testing.assert_close(d.double(), reference, atol=32 * 2**-10, rtol=2**-9)
    everywhere = [x.expand(*c.shape, x.shape[-1]).contiguous() for x in (a, b)]
    assert torch.equal(emulator.tensor_core(*everywhere, c, dtype), d)
    transposed = emulator.tensor_core(b, a, c, dtype)
    assert torch.equal(transposed, d)
    stacked = emulator.tensor_core(a.expand(3, *a.shape), b, c, dtype)
    assert torch.equal(stacked, d.expand(3, *d.shape))
    zero = torch.zeros(())
    assert emulator.tensor_core(a[0, 0], b[0, 0], zero, dtype).shape == ()


def test_operands_of_any_strides_and_no_gradient():
    a, b, c = random_tensors("f16")
    d = emulator.tensor_core(a, b, c)
    for view in (a.transpose(0, 2).contiguous().transpose(0, 2), a.repeat(1, 1, 2)[..., :16]):
        assert torch.equal(emulator.tensor_core(view, b, c), d)
    assert torch.equal(emulator.tensor_core(a, b, c.T.contiguous().T), d)
    before = c.clone()
    assert not emulator.tensor_core(a.requires_grad_(), b, c.requires_grad_()).requires_grad
    assert torch.equal(c, before)
    f16 = emulator.tensor_core(a, b, c.half())
    assert f16.dtype == torch.float16
    assert emulator.tensor_core(a[:0], b, c[:0]).shape == (0, 10)


def test_the_threads_floating_point_settings_do_not_matter():
    a, b, _ = random_tensors("bf16")
    a, c = a * 2.0**-100, torch.full((6, 10), 2.0**-149)
    b = b * 2.0**-30
    wanted = emulator.tensor_core(a, b, c)
    assert 0 < wanted.abs().max() < 2.0**-120
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        got = emulator.tensor_core(a, b, c)
        still_flushes = (torch.tensor([2.0**-149]) * 1.0).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert_same(to_codes(got), to_codes(wanted))
    assert still_flushes


FP8 = torch.zeros(32, dtype=torch.float8_e4m3fn)
F16 = torch.zeros(16, dtype=torch.float16)
BF16 = torch.zeros(16, dtype=torch.bfloat16)
F32 = torch.zeros(8)
C = torch.zeros(())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((F32.int(), F32.int(), C), "a must be one of .*float8_e4m3fn.*, not torch.int32"),
        ((FP8, F16, C), "a is torch.float8_e4m3fn and b torch.float16"),
        ((BF16, F16, C), "they must be the same, or any two FP8 types"),
        ((F32, F32, C), 'a is torch.float32 and dtype is None: dtype="tf32" goes with'),
        ((BF16, BF16, C, "tf32"), "a is torch.bfloat16 and dtype is 'tf32'"),
        ((BF16, BF16, C, "bf16"), "dtype must be \"tf32\" .*, not 'bf16'"),
        ((FP8, FP8, C.double()), "c must be float32 or float16, not torch.float64"),
        ((BF16, BF16, C.half()), "c must be float32 for torch.bfloat16 operands"),
        ((F32, F32, C.half(), "tf32"), "c must be float32 for torch.float32 operands"),
        ((FP8[:16], FP8[:16], C), r"a must be \[..., 32\], .*, not \[16\]"),
        ((BF16, BF16.repeat(2), C), r"b must be \[..., 16\], .*, not \[32\]"),
        ((FP8[0], FP8[0], C), r"a must be \[..., 32\], .*, not \[\]"),
        ((FP8.expand(3, 32), FP8.expand(2, 32), C), r"a \[3, 32\] and b \[2, 32\] .* c \[\]"),
        ((FP8.to("meta"), FP8, C), "a must be on the CPU, not on meta"),
    ],
    ids=range(14),
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        emulator.tensor_core(*arguments)


def test_the_extension_rejects_types_that_do_not_mix():
    module = sys.modules["abyssal.emulator.tensor_core"]
    d = torch.zeros(1)
    with pytest.raises(ValueError, match="a is bf16 and b f16: only e4m3 and e5m2 can be mixed"):
        module.accumulate_into(d, BF16[None], F16[None], ("bf16", "f16"))
    with pytest.raises(ValueError, match="FP16 accumulators need operands of e4m3, e5m2 or f16"):
        module.accumulate_into(d.half(), BF16[None], BF16[None], ("bf16", "bf16"))
