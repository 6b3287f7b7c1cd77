"""Integer instructions, against Python's integers and NumPy."""

import operator
import zlib

import numpy as np
import pytest

from abyssal.emulator import EmulatorError
from tests.emulator.lane_kernels import run_lanes

INTEGERS = {"u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32,
            "u64": np.uint64, "s64": np.int64}  # fmt: skip
COUNT = 256


def operands(rng, dtype, count=COUNT):
    """Random bits, small numbers, and the ends of the range."""
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, count, dtype=dtype, endpoint=True)
    small = rng.integers(0, 40, count).astype(dtype)
    values = np.where(rng.random(count) < 0.3, small, values)
    ends = np.array([info.min, info.max, 0, 1, info.max // 2], dtype=dtype)
    return np.where(rng.random(count) < 0.15, rng.choice(ends, count), values).astype(dtype)


def wrap(values, dtype):
    """Python integers to a type, modulo its range."""
    bits = 8 * np.dtype(dtype).itemsize
    unsigned = np.array([int(v) % (1 << bits) for v in values], dtype=f"u{bits // 8}")
    return unsigned.view(dtype)


def check(code, inputs, dtype, function):
    result = run_lanes(code, inputs, [dtype])[0]
    expected = wrap([function(*(int(v) for v in row)) for row in zip(*inputs, strict=True)], dtype)
    np.testing.assert_array_equal(result, expected)


def truncated_quotient(a, b):
    sign = -1 if (a < 0) != (b < 0) else 1
    return sign * (abs(a) // abs(b))


@pytest.fixture
def rng(request):
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul.lo": operator.mul,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("operation", BINARY)
def test_binary(rng, name, operation):
    dtype = INTEGERS[name]
    inputs = [operands(rng, dtype), operands(rng, dtype)]
    check(f"{operation}.{name} %x, %a, %b;", inputs, dtype, BINARY[operation])


@pytest.mark.parametrize("name", INTEGERS)
def test_division(rng, name):
    dtype = INTEGERS[name]
    a, b = operands(rng, dtype), operands(rng, dtype)
    b[b == 0] = 3
    check(f"div.{name} %x, %a, %b;", [a, b], dtype, truncated_quotient)
    remainder = lambda x, y: x - truncated_quotient(x, y) * y  # noqa: E731
    check(f"rem.{name} %x, %a, %b;", [a, b], dtype, remainder)


@pytest.mark.parametrize("name", INTEGERS)
def test_high_half(rng, name):
    dtype = INTEGERS[name]
    bits = 8 * np.dtype(dtype).itemsize
    inputs = [operands(rng, dtype), operands(rng, dtype), operands(rng, dtype)]
    check(f"mul.hi.{name} %x, %a, %b;", inputs[:2], dtype, lambda a, b: a * b >> bits)
    check(f"mad.hi.{name} %x, %a, %b, %c;", inputs, dtype, lambda a, b, c: (a * b >> bits) + c)
    check(f"mad.lo.{name} %x, %a, %b, %c;", inputs, dtype, lambda a, b, c: a * b + c)


@pytest.mark.parametrize(
    ("name", "wide"), [("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")]
)
def test_wide(rng, name, wide):
    a, b = (operands(rng, INTEGERS[name]) for _ in range(2))
    c = operands(rng, INTEGERS[wide])
    check(f"mul.wide.{name} %x, %a, %b;", [a, b], INTEGERS[wide], operator.mul)
    check(f"mad.wide.{name} %x, %a, %b, %c;", [a, b, c], INTEGERS[wide], lambda a, b, c: a * b + c)


@pytest.mark.parametrize("name", ["s16", "s32", "s64"])
def test_sign(rng, name):
    a = operands(rng, INTEGERS[name])
    check(f"abs.{name} %x, %a;", [a], INTEGERS[name], abs)
    check(f"neg.{name} %x, %a;", [a], INTEGERS[name], operator.neg)


def test_saturation(rng):
    a, b = operands(rng, np.int32), operands(rng, np.int32)
    clamp = lambda v: max(-(2**31), min(2**31 - 1, v))  # noqa: E731
    check("add.sat.s32 %x, %a, %b;", [a, b], np.int32, lambda a, b: clamp(a + b))
    check("sub.sat.s32 %x, %a, %b;", [a, b], np.int32, lambda a, b: clamp(a - b))


def test_carries_make_long_sums(rng):
    """128-bit sums and differences out of 32-bit ones."""
    a, b = operands(rng, np.uint64), operands(rng, np.uint64)
    code = """
    .reg .b32 %a0, %a1, %b0, %b1, %r0, %r1, %r2, %r3, %r4, %r5;
    mov.b64 {%a0, %a1}, %a; mov.b64 {%b0, %b1}, %b;
    add.cc.u32 %r0, %a0, %b0; addc.cc.u32 %r1, %a1, %b1; addc.u32 %r2, 0, 0;
    sub.cc.u32 %r3, %a0, %b0; subc.cc.u32 %r4, %a1, %b1; subc.u32 %r5, 0, 0;
    mov.b64 %x, {%r0, %r1}; mov.b64 %y, {%r2, %r5};
    """
    total, rest = run_lanes(code, [a, b], [np.uint64, np.uint64])
    np.testing.assert_array_equal(total, a + b)
    carry = np.array([int(x) + int(y) >> 64 for x, y in zip(a, b, strict=True)], np.uint64)
    borrow = np.where(a < b, np.uint64(0xFFFFFFFF), np.uint64(0))
    np.testing.assert_array_equal(rest, carry | borrow << np.uint64(32))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(rng, bits):
    dtype = np.dtype(f"u{bits // 8}")
    a, b = operands(rng, dtype), operands(rng, dtype)
    for name, function in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        check(f"{name}.b{bits} %x, %a, %b;", [a, b], dtype, function)
    check(f"not.b{bits} %x, %a;", [a], dtype, operator.invert)
    check(f"cnot.b{bits} %x, %a;", [a], dtype, lambda v: int(v == 0))


@pytest.mark.parametrize("name", INTEGERS)
def test_shifts(rng, name):
    dtype = INTEGERS[name]
    bits = 8 * np.dtype(dtype).itemsize
    a = operands(rng, dtype)
    by = rng.integers(0, 2 * bits, COUNT).astype(np.uint32)
    by[:4] = [0, bits - 1, bits, 2**32 - 1]
    check(f"shl.b{bits} %x, %a, %b;", [a, by], dtype, lambda v, n: v << min(n, bits))
    check(f"shr.{name} %x, %a, %b;", [a, by], dtype, lambda v, n: v >> min(n, bits))


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shift(rng, mode):
    low, high = operands(rng, np.uint32), operands(rng, np.uint32)
    by = rng.integers(0, 70, COUNT).astype(np.uint32)
    amount = (lambda n: n % 32) if mode == "wrap" else (lambda n: min(n, 32))
    left = lambda lo, hi, n: (hi << 32 | lo) << amount(n) >> 32  # noqa: E731
    right = lambda lo, hi, n: (hi << 32 | lo) >> amount(n)  # noqa: E731
    check(f"shf.l.{mode}.b32 %x, %a, %b, %c;", [low, high, by], np.uint32, left)
    check(f"shf.r.{mode}.b32 %x, %a, %b, %c;", [low, high, by], np.uint32, right)


@pytest.mark.parametrize("table", [0x80, 0x96, 0xE8, 0xCA, 0x01, 0xFF, 0x00])
def test_lop3(rng, table):
    def function(a, b, c):
        result = 0
        for bit in range(32):
            row = (a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)
            result |= (table >> row & 1) << bit
        return result

    inputs = [operands(rng, np.uint32) for _ in range(3)]
    check(f"lop3.b32 %x, %a, %b, %c, {table};", inputs, np.uint32, function)


def test_permute(rng):
    def function(a, b, selectors):
        data = (b << 32 | a).to_bytes(8, "little")
        result = 0
        for i in range(4):
            selector = selectors >> 4 * i & 15
            byte = data[selector & 7]
            if selector & 8:
                byte = 0xFF if byte & 0x80 else 0
            result |= byte << 8 * i
        return result

    inputs = [operands(rng, np.uint32) for _ in range(3)]
    check("prmt.b32 %x, %a, %b, %c;", inputs, np.uint32, function)


@pytest.mark.parametrize("bits", [32, 64])
def test_counts(rng, bits):
    dtype = np.dtype(f"u{bits // 8}")
    a = operands(rng, dtype)
    check(f"popc.b{bits} %x, %a;", [a], np.uint32, lambda v: v.bit_count())
    check(f"clz.b{bits} %x, %a;", [a], np.uint32, lambda v: bits - v.bit_length())
    check(f"brev.b{bits} %x, %a;", [a], dtype, lambda v: int(f"{v:0{bits}b}"[::-1], 2))
    check(f"bfind.u{bits} %x, %a;", [a], np.uint32, lambda v: v.bit_length() - 1)
    check(
        f"bfind.shiftamt.u{bits} %x, %a;",
        [a],
        np.uint32,
        lambda v: bits - v.bit_length() if v else -1,
    )
    signed = a.view(f"i{bits // 8}")
    leading = lambda v: (~v if v < 0 else v).bit_length() - 1  # noqa: E731
    check(f"bfind.s{bits} %x, %a;", [signed], np.uint32, leading)


@pytest.mark.parametrize("name", ["u32", "s32", "u64", "s64"])
def test_fields(rng, name):
    """bfe and bfi, as the pseudo-code of PTX ISA 9.7.1.19 and 9.7.1.20 defines them."""
    dtype = INTEGERS[name]
    bits = 8 * np.dtype(dtype).itemsize
    a, into = operands(rng, dtype), operands(rng, dtype)
    position = rng.integers(0, 80, COUNT).astype(np.uint32)
    length = rng.integers(0, 80, COUNT).astype(np.uint32)

    def extract(v, position, length):
        v %= 1 << bits
        sign = 0
        if name[0] == "s" and length:
            sign = v >> min(position + length - 1, bits - 1) & 1
        result = 0
        for i in range(bits):
            inside = i < length and position + i < bits
            result |= (v >> position + i & 1 if inside else sign) << i
        return result

    def insert(field, into, position, length):
        into %= 1 << bits
        for i in range(min(length, bits - position if position < bits else 0)):
            into = into & ~(1 << position + i) | (field >> i & 1) << position + i
        return into

    check(f"bfe.{name} %x, %a, %b, %c;", [a, position, length], dtype, extract)
    check(f"bfi.b{bits} %x, %a, %b, %c, %d;", [a, into, position, length], dtype, insert)


def test_dot_product(rng):
    def dot(a_signed, b_signed):
        def function(a, b, c):
            x = a.to_bytes(4, "little")
            y = b.to_bytes(4, "little")
            pairs = zip(
                np.frombuffer(x, np.int8 if a_signed else np.uint8),
                np.frombuffer(y, np.int8 if b_signed else np.uint8),
                strict=True,
            )
            return c + sum(int(p) * int(q) for p, q in pairs)

        return function

    inputs = [operands(rng, np.uint32) for _ in range(3)]
    for a in "us":
        for b in "us":
            check(f"dp4a.{a}32.{b}32 %x, %a, %b, %c;", inputs, np.uint32, dot(a == "s", b == "s"))


def test_results_that_nobody_wants(rng):
    """`_` takes any result, and changes nothing else."""
    a = operands(rng, np.uint32)
    code = """
    .reg .b64 %wide; .shared .align 4 .b8 memory[4]; .reg .pred %r;
    mov.b32 _, %a; add.u64 _, 1, 2; cvt.u64.u32 _, %a; popc.b32 _, %a; setp.eq.u32 _, %a, 0;
    setp.eq.u32 _|%r, %a, 0; mov.b64 {_, %t}, 7; vote.sync.ballot.b32 _, %r, -1;
    setp.eq.u32 %p, %i, 0;
    @%p st.shared.b32 [memory], 0; @%p atom.shared.or.b32 _, [memory], 1;
    mov.b32 %x, %a;
    """
    np.testing.assert_array_equal(run_lanes(code, [a[:32]], [np.uint32])[0], a[:32])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("frobnicate.u32 %x, %a;", "unsupported instruction frobnicate.u32: the emulator does not"),
        ("add.rn.u32 %x, %a, %b;", "expected a type"),
        ("add.u32.sat %x, %a, %b;", ".sat is not known here"),
        ("add.u64 %x, %a, %b;", "bytes"),
        ("add.u32 %x, %a;", "it has 2 operands"),
        ("shl.b32 %x, %a, %nothing;", "special register %nothing is not known"),
        ("add.u32 %x, %a, nothing;", "unknown name 'nothing'"),
    ],
)
def test_what_is_not_known_is_an_error(code, message):
    a = np.zeros(32, np.uint32)
    with pytest.raises(EmulatorError, match=message) as error:
        run_lanes(code, [a, a], [np.uint32])
    assert error.value.kind == "unsupported"
