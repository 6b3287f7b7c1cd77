"""Floating-point instructions, against exact rational arithmetic rounded once."""

import math
import operator
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.emulator.lane_kernels import run_lanes

COUNT = 256

# exponent bits, mantissa bits
FORMATS = {"f32": (8, 23), "f16": (5, 10), "bf16": (8, 7), "tf32": (8, 10), "e5m2": (5, 2)}


@pytest.fixture
def rng(request):
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def words(name):
    exponent, mantissa = FORMATS[name]
    return np.dtype(f"u{(1 + exponent + mantissa + 7) // 8}")


def decode(bits: int, name: str) -> Fraction | float:
    """The value of a code; infinities and NaN as floats."""
    exponent_bits, mantissa_bits = FORMATS[name]
    bias = (1 << exponent_bits - 1) - 1
    sign = -1 if bits >> exponent_bits + mantissa_bits & 1 else 1
    exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = bits & (1 << mantissa_bits) - 1
    if exponent == (1 << exponent_bits) - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * Fraction(mantissa) * Fraction(2) ** (1 - bias - mantissa_bits)
    significand = Fraction(mantissa + (1 << mantissa_bits), 1 << mantissa_bits)
    return sign * significand * Fraction(2) ** (exponent - bias)


def encode(value: Fraction | float, name: str, rounding="rn", negative_zero=False) -> int:
    """One rounding, from the definition: the two neighbours, and which of them."""
    exponent_bits, mantissa_bits = FORMATS[name]
    bias = (1 << exponent_bits - 1) - 1
    sign_bit = 1 << exponent_bits + mantissa_bits
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    if isinstance(value, float) and math.isnan(value):
        return sign_bit - 1
    negative = value < 0 or (value == 0 and negative_zero)
    sign = sign_bit if negative else 0
    if isinstance(value, float) and math.isinf(value):
        return sign | infinity
    magnitude = abs(Fraction(value))
    if magnitude == 0:
        return sign
    exponent = max(math.floor(math.log2(magnitude)) - 1, 1 - bias)
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - mantissa_bits)
    below = magnitude // unit
    rest = magnitude / unit - below
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1),
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
        "rna": rest >= Fraction(1, 2),
    }[rounding]
    count = int(below) + up
    code = count if exponent == 1 - bias else ((exponent + bias - 1) << mantissa_bits) + count
    if code >= infinity:
        stays = (
            rounding == "rz"
            or (rounding == "rm" and not negative)
            or (rounding == "rp" and negative)
        )
        code = infinity - 1 if stays else infinity
    return sign | code


def operands(rng, name, count=COUNT):
    """Codes: any bits, values near 1, and the special ones."""
    exponent_bits, mantissa_bits = FORMATS[name]
    dtype = words(name)
    bits = rng.integers(0, 1 << 1 + exponent_bits + mantissa_bits, count, dtype=np.uint64)
    bias = (1 << exponent_bits - 1) - 1
    near = rng.integers(bias - 3, bias + 4, count) << mantissa_bits
    near |= rng.integers(0, 1 << mantissa_bits, count)
    near |= rng.integers(0, 2, count) << exponent_bits + mantissa_bits
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    sign = 1 << exponent_bits + mantissa_bits
    special = [
        0,
        sign,
        infinity,
        sign | infinity,
        infinity + 1,
        1,
        infinity - 1,
        1 << mantissa_bits,
    ]
    kind = rng.random(count)
    bits = np.where(kind < 0.5, near, bits)
    return np.where(kind > 0.9, rng.choice(special, count), bits).astype(dtype)


def arithmetic(function, a, *rest):
    """Of exact values, with IEEE's rules for infinities and NaN; and whether a zero is negative."""
    if any(isinstance(v, float) for v in (a, *rest)):
        with np.errstate(all="ignore"):
            small = [float(v) if isinstance(v, float) else float(np.sign(v)) for v in (a, *rest)]
            return float(function(*map(np.float64, small))), False
    return function(a, *rest), False


def check_codes(result, expected, name):
    """Equal codes; a zero's sign is checked by the caller."""
    wrong = result != expected
    assert not wrong.any(), [
        (i, hex(int(result[i])), hex(int(expected[i]))) for i in np.flatnonzero(wrong)[:5]
    ]


SUMS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def zero_sign(operation, a_code, b_code, name, rounding):
    """The sign of an exact zero result (IEEE 754, 6.3)."""
    exponent, mantissa = FORMATS[name]
    sign = lambda code: bool(code >> exponent + mantissa & 1)  # noqa: E731
    a, b = sign(a_code), sign(b_code)
    if operation == "mul":
        return a != b
    b = b != (operation == "sub")
    return a if a == b else rounding == "rm"


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("operation", SUMS)
def test_f32(rng, operation, rounding):
    a, b = operands(rng, "f32"), operands(rng, "f32")
    result = run_lanes(f"{operation}.{rounding}.f32 %x, %a, %b;", [a, b], [np.uint32])[0]
    expected = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        value, _ = arithmetic(SUMS[operation], decode(x, "f32"), decode(y, "f32"))
        negative = zero_sign(operation, x, y, "f32", rounding)
        expected.append(encode(value, "f32", rounding, negative))
    check_codes(result, np.array(expected, np.uint32), "f32")


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
def test_f32_fma(rng, rounding):
    a, b, c = (operands(rng, "f32") for _ in range(3))
    # Cancellation: c near -a b, and far below it.
    with np.errstate(all="ignore"):
        near = (-(a.view(np.float32) * b.view(np.float32))).view(np.uint32)
    c = np.where(rng.random(COUNT) < 0.3, near, c)
    result = run_lanes(f"fma.{rounding}.f32 %x, %a, %b, %c;", [a, b, c], [np.uint32])[0]
    expected = []
    for codes in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        values = [decode(code, "f32") for code in codes]
        if any(isinstance(v, float) for v in values):
            with np.errstate(all="ignore"):
                x, y, z = (
                    np.float64(v) if isinstance(v, float) else np.float64(np.sign(v))
                    for v in values
                )
                expected.append(encode(float(x * y + z), "f32"))
            continue
        expected.append(encode(values[0] * values[1] + values[2], "f32", rounding))
    expected = np.array(expected, np.uint32)
    zeros = (expected & 0x7FFFFFFF) == 0
    assert ((result[zeros] & 0x7FFFFFFF) == 0).all()
    check_codes(result[~zeros], expected[~zeros], "f32")


@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize("operation", [*SUMS, "fma"])
def test_halves_and_pairs(rng, name, operation):
    operation_of = {**SUMS, "fma": lambda a, b, c: a * b + c}[operation]
    count = 3 if operation == "fma" else 2
    inputs = [operands(rng, name) for _ in range(count)]
    names = ", ".join(f"%{n}" for n in "abc"[:count])
    result = run_lanes(f"{operation}.rn.{name} %x, {names};", inputs, [np.uint16])[0]
    expected = []
    for codes in zip(*(i.tolist() for i in inputs), strict=True):
        value, _ = arithmetic(operation_of, *(decode(code, name) for code in codes))
        expected.append(encode(value, name))
    expected = np.array(expected, np.uint16)
    zeros = (expected & 0x7FFF) == 0
    assert ((result[zeros] & 0x7FFF) == 0).all()
    check_codes(result[~zeros], expected[~zeros], name)
    # Pairs compute each half as the single instruction does.
    pairs = [i.view(np.uint32) for i in inputs]
    padded = [np.concatenate([p, p]) for p in pairs]
    packed = run_lanes(f"{operation}.rn.{name}x2 %x, {names};", padded, [np.uint32])[0]
    np.testing.assert_array_equal(packed[: COUNT // 2].view(np.uint16), result)


def test_saturation(rng):
    """To [+0, 1]: what is not above 0, -0 and NaN too, becomes +0."""
    a, b = operands(rng, "f32"), operands(rng, "f32")
    a[:4] = [0x80000000, 0x7FC00000, 0xBF800000, 0x7F800000]
    b[:4] = 0x3F800000
    plain = run_lanes("mul.f32 %x, %a, %b;", [a, b], [np.float32])[0]
    expected = np.where(plain > 0, np.minimum(plain, 1), np.float32(0))
    result = run_lanes("mul.sat.f32 %x, %a, %b;", [a, b], [np.uint32])[0]
    np.testing.assert_array_equal(result, expected.astype(np.float32).view(np.uint32))


def test_flushing(rng):
    a, b = operands(rng, "f32"), operands(rng, "f32")
    a[::2] &= 0x807FFFFF  # subnormal
    flush = lambda bits: np.where(bits & 0x7F800000 == 0, bits & 0x80000000, bits)  # noqa: E731
    for operation in SUMS:
        result = run_lanes(f"{operation}.ftz.f32 %x, %a, %b;", [a, b], [np.uint32])[0]
        plain = run_lanes(f"{operation}.f32 %x, %a, %b;", [flush(a), flush(b)], [np.uint32])[0]
        np.testing.assert_array_equal(result, flush(plain))


def test_extremes(rng):
    """The number wins over a NaN, unless .NaN; -0 is below +0."""
    a, b = operands(rng, "f32"), operands(rng, "f32")
    x, y = a.view(np.float32), b.view(np.float32)
    for name, function in (("min", np.fmin), ("max", np.fmax)):
        result = run_lanes(f"{name}.f32 %x, %a, %b;", [a, b], [np.float32])[0]
        np.testing.assert_array_equal(result, function(x, y))
        strict = run_lanes(f"{name}.NaN.f32 %x, %a, %b;", [a, b], [np.float32])[0]
        nan = np.isnan(x) | np.isnan(y)
        np.testing.assert_array_equal(strict, np.where(nan, np.nan, function(x, y)))
    zeros = np.array([0, 0x80000000] * 16, np.uint32)
    other = np.array([0x80000000, 0] * 16, np.uint32)
    assert (run_lanes("max.f32 %x, %a, %b;", [zeros, other], [np.uint32])[0] == 0).all()
    assert (run_lanes("min.f32 %x, %a, %b;", [zeros, other], [np.uint32])[0] == 0x80000000).all()


@pytest.mark.parametrize("name", ["div.rn", "rcp.rn", "sqrt.rn"])
def test_correctly_rounded(rng, name):
    a, b = operands(rng, "f32"), operands(rng, "f32")
    with np.errstate(all="ignore"):
        x, y = a.view(np.float32), b.view(np.float32)
        expected = {"div.rn": x / y, "rcp.rn": np.float32(1) / x, "sqrt.rn": np.sqrt(x)}[name]
    code = "div.rn.f32 %x, %a, %b;" if name == "div.rn" else f"{name}.f32 %x, %a;"
    result = run_lanes(code, [a, b], [np.float32])[0]
    np.testing.assert_array_equal(result.view(np.uint32)[~np.isnan(expected)],
                                  expected.view(np.uint32)[~np.isnan(expected)])  # fmt: skip
    assert np.isnan(result[np.isnan(expected)]).all()


# Largest errors that the PTX ISA allows: relative (2^n), or absolute where it says so.
APPROXIMATE = {
    "rcp.approx.f32": (lambda x: 1 / x, 2**-23, 0, (0.01, 1e6)),
    "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(x), 2**-22.9, 0, (0.01, 1e6)),
    "sqrt.approx.f32": (np.sqrt, 2**-23, 0, (0.01, 1e6)),
    "ex2.approx.f32": (np.exp2, 2**-22, 0, (-100, 100)),
    "lg2.approx.f32": (np.log2, 2**-22, 2**-22, (0.01, 1e6)),
    "sin.approx.f32": (np.sin, 0, 2**-20.5, (-math.pi, math.pi)),
    "cos.approx.f32": (np.cos, 0, 2**-20.5, (-math.pi, math.pi)),
    "tanh.approx.f32": (np.tanh, 2**-11, 0, (-5, 5)),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_functions(rng, name):
    function, relative, absolute, (low, high) = APPROXIMATE[name]
    x = rng.uniform(low, high, COUNT).astype(np.float32)
    result = run_lanes(f"{name} %x, %a;", [x], [np.float32])[0]
    expected = function(x.astype(np.float64))
    assert (np.abs(result - expected) <= relative * np.abs(expected) + absolute).all()


@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize("rounding", ["rn", "rz"])
def test_narrowing(rng, name, rounding):
    a = operands(rng, "f32")
    result = run_lanes(f"cvt.{rounding}.{name}.f32 %x, %a;", [a], [np.uint16])[0]
    expected = [
        encode(decode(code, "f32"), name, rounding, bool(code >> 31)) for code in a.tolist()
    ]
    check_codes(result, np.array(expected, np.uint16), name)
    wide = run_lanes(f"cvt.f32.{name} %x, %a;", [result], [np.uint32])[0]
    exact = [encode(decode(code, name), "f32", "rn", bool(code >> 15)) for code in result.tolist()]
    check_codes(wide, np.array(exact, np.uint32), "f32")


def test_pairs_put_the_first_source_on_top(rng):
    a, b = operands(rng, "f32"), operands(rng, "f32")
    for name in ("f16", "bf16"):
        single = [run_lanes(f"cvt.rn.{name}.f32 %x, %a;", [v], [np.uint16])[0] for v in (a, b)]
        pair = run_lanes(f"cvt.rn.{name}x2.f32 %x, %a, %b;", [a, b], [np.uint32])[0]
        np.testing.assert_array_equal(pair, single[0].astype(np.uint32) << 16 | single[1])


@pytest.mark.parametrize(
    ("name", "torch_type"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)]
)
def test_fp8(rng, name, torch_type):
    """To FP8 as torch rounds, with what is too large at the largest value; and all codes back."""
    largest = torch.finfo(torch_type).max
    x = np.ldexp(rng.standard_normal(COUNT), rng.integers(-14, 18, COUNT)).astype(np.float32)
    x[:3] = [largest, -largest * 4, np.inf]
    pair = run_lanes(f"cvt.rn.satfinite.{name}x2.f32 %x, %a, %b;", [x, -x], [np.uint16])[0]
    clamped = torch.from_numpy(x).clamp(-largest, largest).to(torch_type).view(torch.uint8).numpy()
    np.testing.assert_array_equal(pair >> 8, clamped)
    np.testing.assert_array_equal((pair & 0xFF) ^ 0x80, clamped)
    codes = np.arange(256, dtype=np.uint16) << 8
    wide = run_lanes(f"cvt.rn.f16x2.{name}x2 %x, %a;", [codes], [np.uint32])[0]
    expected = torch.arange(256, dtype=torch.uint8).view(torch_type).to(torch.float16).numpy()
    np.testing.assert_array_equal((wide >> 16).astype(np.uint16).view(np.float16), expected)


@pytest.mark.parametrize("name", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("rounding", ["rni", "rzi", "rmi", "rpi"])
def test_to_integers(rng, name, rounding):
    """Rounded, then the nearest that the type has; NaN becomes 0 in up to 32 bits."""
    bits = int(name[1:])
    x = np.ldexp(rng.standard_normal(COUNT), rng.integers(-3, bits + 3, COUNT)).astype(np.float32)
    x[:6] = [0.5, 1.5, -0.5, -2.5, np.inf, np.nan]
    size = max(bits, 16) // 8
    result = run_lanes(
        f"cvt.{rounding}.{name}.f32 %x, %a;", [x], [f"{name[0].replace('s', 'i')}{size}"]
    )[0]
    to = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if name[0] == "s" else (0, 2**bits - 1)
    for value, got in zip(x.astype(np.float64), result.tolist(), strict=True):
        if math.isnan(value):
            assert got == {64: -(2**63) if name[0] == "s" else 2**63}.get(bits, 0)
        elif math.isinf(value):
            assert got == high
        else:
            assert got == max(low, min(high, int(to(value))))


@pytest.mark.parametrize("name", ["u32", "s32", "u64", "s64"])
def test_from_integers(rng, name):
    dtype = np.dtype(f"{name[0].replace('s', 'i')}{int(name[1:]) // 8}")
    info = np.iinfo(dtype)
    a = rng.integers(info.min, info.max, COUNT, dtype=dtype, endpoint=True)
    a >>= rng.integers(0, info.bits - 1, COUNT).astype(dtype)
    for rounding in ("rn", "rz"):
        result = run_lanes(f"cvt.{rounding}.f32.{name} %x, %a;", [a], [np.uint32])[0]
        expected = [encode(Fraction(int(v)), "f32", rounding) for v in a]
        check_codes(result, np.array(expected, np.uint32), "f32")


def test_integers_to_integers(rng):
    a = rng.integers(-(2**31), 2**31, COUNT).astype(np.int32)
    assert (run_lanes("cvt.s64.s32 %x, %a;", [a], [np.int64])[0] == a).all()
    assert (run_lanes("cvt.u64.u32 %x, %a;", [a], [np.int64])[0] == a.view(np.uint32)).all()
    assert (run_lanes("cvt.s32.s8 %x, %a;", [a], [np.int32])[0] == a.astype(np.int8)).all()
    assert (run_lanes("cvt.u32.u8 %x, %a;", [a], [np.int32])[0] == a.astype(np.uint8)).all()
    small = run_lanes("cvt.sat.s8.s32 %x, %a;", [a], [np.int16])[0]
    assert (small == a.clip(-128, 127)).all()


RELATIONS = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt,
    "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip


@pytest.mark.parametrize("name", RELATIONS)
def test_comparisons(rng, name):
    a, b = operands(rng, "f32"), operands(rng, "f32")
    b[::4] = a[::4]
    x, y = a.view(np.float32), b.view(np.float32)
    nan = np.isnan(x) | np.isnan(y)
    code = "setp.{}.f32 %p|%q, %a, %b; selp.u32 %x, 1, 0, %p; selp.u32 %y, 1, 0, %q;"
    ordered, opposite = run_lanes(code.format(name), [a, b], [np.uint32] * 2)
    expected = RELATIONS[name](x, y) & ~nan
    np.testing.assert_array_equal(ordered != 0, expected)
    np.testing.assert_array_equal(opposite != 0, ~expected)
    unordered = run_lanes(code.format(name + "u"), [a, b], [np.uint32] * 2)[0]
    np.testing.assert_array_equal(unordered != 0, RELATIONS[name](x, y) | nan)
    signed = run_lanes(code.replace("f32", "s32").format(name), [a, b], [np.uint32] * 2)[0]
    np.testing.assert_array_equal(signed != 0, RELATIONS[name](a.view(np.int32), b.view(np.int32)))


def test_comparisons_merge_with_a_predicate(rng):
    a, b = (rng.integers(0, 4, COUNT).astype(np.uint32) for _ in range(2))
    for merge, function in {
        "and": np.logical_and,
        "or": np.logical_or,
        "xor": np.logical_xor,
    }.items():
        code = f"setp.eq.u32 %q, %b, 1; setp.lt.{merge}.u32 %p, %a, %b, !%q; selp.u32 %x, 1, 0, %p;"
        result = run_lanes(code, [a, b], [np.uint32])[0]
        np.testing.assert_array_equal(result != 0, function(a < b, b != 1))
