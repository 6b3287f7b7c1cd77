"""What instructions compute, from the PTX ISA: on Python's integers and exact fractions.

Each thread's operands go in as integers (of a float, its code) and the results come out so.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from tests.emulator.test_floats import FORMATS, RELATIONS, decode, encode

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
NAN = 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class Form:
    """text: with {d0}, {d1} for results and {a0}, {a1}, ... for sources, of these types."""

    text: str
    results: tuple[str, ...]
    sources: tuple[str, ...]
    function: Callable[..., Any]


def bits_of(name: str) -> int:
    return {"f16x2": 32, "bf16x2": 32, "bf16": 16}.get(name) or int(name[1:])


def forms() -> list[Form]:
    found: list[Form] = []

    def add(text: str, results: str, sources: str, function: Callable[..., Any]) -> None:
        operands = [f"{{d{i}}}" for i in range(len(results.split()))]
        operands += [f"{{a{i}}}" for i in range(len(sources.split()))]
        if "{" not in text:
            text = f"{text} {', '.join(operands)};"
        found.append(Form(text, tuple(results.split()), tuple(sources.split()), function))

    for group in (integer_forms, bit_forms, compare_forms, f32_forms, half_forms, cvt_forms):
        group(add)
    return found


# Integers: results are taken modulo their range by whoever calls.


def truncated_quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def clamp(value: int, name: str) -> int:
    bits = bits_of(name)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if name[0] == "s" else (0, (1 << bits) - 1)
    return max(low, min(high, value))


def integer_forms(add: Callable[..., None]) -> None:
    for t in INTEGERS:
        bits = bits_of(t)
        add(f"add.{t}", t, f"{t} {t}", operator.add)
        add(f"sub.{t}", t, f"{t} {t}", operator.sub)
        add(f"mul.lo.{t}", t, f"{t} {t}", operator.mul)
        add(f"mul.hi.{t}", t, f"{t} {t}", lambda a, b, n=bits: a * b >> n)
        add(f"mad.lo.{t}", t, f"{t} {t} {t}", lambda a, b, c: a * b + c)
        add(f"mad.hi.{t}", t, f"{t} {t} {t}", lambda a, b, c, n=bits: (a * b >> n) + c)
        add(f"min.{t}", t, f"{t} {t}", min)
        add(f"max.{t}", t, f"{t} {t}", max)
        # No division by zero: the lowest bit of the divisor is set.
        scratch = {16: "%sh", 32: "%sr", 64: "%sd"}[bits]
        odd = f"or.b{bits} {scratch}, {{a1}}, 1; "
        add(odd + f"div.{t} {{d0}}, {{a0}}, {scratch};", t, f"{t} {t}",
            lambda a, b: truncated_quotient(a, b | 1))  # fmt: skip
        add(odd + f"rem.{t} {{d0}}, {{a0}}, {scratch};", t, f"{t} {t}",
            lambda a, b: a - truncated_quotient(a, b | 1) * (b | 1))  # fmt: skip
        add(f"sad.{t}", t, f"{t} {t} {t}", lambda a, b, c: c + abs(a - b))
        if t[0] == "s":
            add(f"abs.{t}", t, t, abs)
            add(f"neg.{t}", t, t, operator.neg)
        if bits < 64:
            wide = f"{t[0]}{2 * bits}"
            add(f"mul.wide.{t}", wide, f"{t} {t}", operator.mul)
            add(f"mad.wide.{t}", wide, f"{t} {t} {wide}", lambda a, b, c: a * b + c)
    add("add.sat.s32", "s32", "s32 s32", lambda a, b: clamp(a + b, "s32"))
    add("sub.sat.s32", "s32", "s32 s32", lambda a, b: clamp(a - b, "s32"))
    add("add.cc.u32 %sr, {a0}, {a1}; addc.u32 {d1}, {a2}, 0; mov.b32 {d0}, %sr;",
        "u32 u32", "u32 u32 u32",
        lambda a, b, c: (a + b, c + (a + b >> 32)))  # fmt: skip
    add("sub.cc.u32 %sr, {a0}, {a1}; subc.u32 {d1}, {a2}, 0; mov.b32 {d0}, %sr;",
        "u32 u32", "u32 u32 u32",
        lambda a, b, c: (a - b, c - (a < b)))  # fmt: skip
    for a in "us":
        for b in "us":
            add(f"dp4a.{a}32.{b}32", "u32", "u32 u32 u32", dot_product(a == "s", b == "s"))


def dot_product(*are_signed: bool) -> Callable[..., int]:
    def function(a: int, b: int, c: int) -> int:
        total = c
        for byte in range(4):
            factors = []
            for word, is_signed in zip((a, b), are_signed, strict=True):
                value = word >> 8 * byte & 255
                factors.append(value - 256 if is_signed and value > 127 else value)
            total += factors[0] * factors[1]
        return total

    return function


# Bits.


def look_up(table: int) -> Callable[..., int]:
    """lop3: bit by bit, a row of the table."""

    def function(*words: int) -> int:
        result = 0
        for bit in range(32):
            a, b, c = (word >> bit & 1 for word in words)
            result |= (table >> (4 * a + 2 * b + c) & 1) << bit
        return result

    return function


def permute(a: int, b: int, selector: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    result = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = data[nibble & 7]
        if nibble & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * i
    return result


def extract(bits: int, is_signed: bool) -> Callable[..., int]:
    """bfe, as the pseudo-code of PTX ISA 9.7.1.19."""

    def function(a: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        a %= 1 << bits
        sign = 0
        if is_signed and length:
            sign = a >> min(position + length - 1, bits - 1) & 1
        result = 0
        for i in range(bits):
            inside = i < length and position + i < bits
            result |= (a >> position + i & 1 if inside else sign) << i
        return result

    return function


def insert(bits: int) -> Callable[..., int]:
    """bfi, as the pseudo-code of PTX ISA 9.7.1.20."""

    def function(field: int, into: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        for i in range(length):
            if position + i >= bits:
                break
            into = into & ~(1 << position + i) | (field >> i & 1) << position + i
        return into

    return function


def funnel(left: bool, wraps: bool) -> Callable[..., int]:
    def function(low: int, high: int, by: int) -> int:
        by = by % 32 if wraps else min(by, 32)
        both = high << 32 | low
        return (both << by) >> 32 if left else both >> by

    return function


def bit_forms(add: Callable[..., None]) -> None:
    for bits in (16, 32, 64):
        t = f"b{bits}"
        add(f"and.{t}", t, f"{t} {t}", operator.and_)
        add(f"or.{t}", t, f"{t} {t}", operator.or_)
        add(f"xor.{t}", t, f"{t} {t}", operator.xor)
        add(f"not.{t}", t, t, operator.invert)
        add(f"cnot.{t}", t, t, lambda a: int(a == 0))
        add(f"shl.{t}", t, f"{t} u32", lambda a, n, w=bits: a << min(n, w))
        for sign in "us":
            s = f"{sign}{bits}"
            add(f"shr.{s}", s, f"{s} u32", lambda a, n, w=bits: a >> min(n, w))
        add(f"selp.{t}", t, f"{t} {t} pred", lambda a, b, p: a if p else b)
        add(f"slct.{t}.s32", t, f"{t} {t} s32", lambda a, b, c: a if c >= 0 else b)
        if bits == 16:
            continue
        add(f"popc.{t}", "u32", t, int.bit_count)
        add(f"clz.{t}", "u32", t, lambda a, w=bits: w - a.bit_length())
        add(f"brev.{t}", t, t, lambda a, w=bits: int(f"{a:0{w}b}"[::-1], 2))
        for sign in "us":
            s = f"{sign}{bits}"
            leading = lambda a: (~a if a < 0 else a).bit_length() - 1  # noqa: E731
            add(f"bfind.{s}", "u32", s, leading)
            add(f"bfind.shiftamt.{s}", "u32", s,
                lambda a, w=bits, f=leading: w - 1 - f(a) if f(a) >= 0 else -1)  # fmt: skip
            add(f"bfe.{s}", s, f"{s} u32 u32", extract(bits, sign == "s"))
        add(f"bfi.{t}", t, f"{t} {t} u32 u32", insert(bits))
    for side in "lr":
        for mode in ("clamp", "wrap"):
            add(f"shf.{side}.{mode}.b32", "b32", "b32 b32 u32",
                funnel(side == "l", mode == "wrap"))  # fmt: skip
    for table in (0x01, 0x1D, 0x69, 0x80, 0x96, 0xB2, 0xCA, 0xE8, 0xFE):
        add(f"lop3.b32 {{d0}}, {{a0}}, {{a1}}, {{a2}}, {table};", "b32", "b32 b32 b32",
            look_up(table))  # fmt: skip
    add("prmt.b32", "b32", "b32 b32 b32", permute)
    add("mov.b64 {d0}, {{{a0}, {a1}}};", "b64", "b32 b32", lambda a, b: b << 32 | a)
    add("mov.b64 {{{d0}, {d1}}}, {a0};", "b32 b32", "b64", lambda a: (a, a >> 32))
    add("mov.b32 {d0}, {{{a0}, {a1}}};", "b32", "b16 b16", lambda a, b: b << 16 | a)
    add("mov.b32 {{{d0}, {d1}}}, {a0};", "b16 b16", "b32", lambda a: (a, a >> 16))


# Comparisons and predicates.


def value_of(code: int) -> float:
    return float(np.uint32(code).view(np.float32))


def f32_relation(relation: Callable[..., bool], of_nan: bool) -> Callable[..., bool]:
    def function(a: int, b: int) -> bool:
        x, y = value_of(a), value_of(b)
        return of_nan if x != x or y != y else relation(x, y)

    return function


def compare_forms(add: Callable[..., None]) -> None:
    relations: list[tuple[str, str, Callable[..., bool]]] = []
    for name, relation in RELATIONS.items():
        relations += [(name, t, relation) for t in INTEGERS]
        relations += [(name, "f32", f32_relation(relation, False))]
        relations += [(f"{name}u", "f32", f32_relation(relation, True))]
    merges = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
    for name, t, relation in relations:
        add(f"setp.{name}.{t} {{d0}}|{{d1}}, {{a0}}, {{a1}};", "pred pred", f"{t} {t}",
            lambda a, b, r=relation: (r(a, b), not r(a, b)))  # fmt: skip
        add(f"set.{name}.u32.{t}", "u32", f"{t} {t}", lambda a, b, r=relation: -int(r(a, b)))
        merge = list(merges)[len(name + t) % 3]
        add(f"setp.{name}.{merge}.{t}", "pred", f"{t} {t} pred",
            lambda a, b, p, r=relation, m=merges[merge]: m(bool(r(a, b)), p))  # fmt: skip
    for name, merge in merges.items():
        add(f"{name}.pred", "pred", "pred pred", merge)
    add("not.pred", "pred", "pred", operator.not_)


# Floats.


def is_nan(code: int, name: str) -> bool:
    exponent, mantissa = FORMATS[name]
    return code & ~(1 << exponent + mantissa) > ((1 << exponent) - 1) << mantissa


def is_negative(code: int, name: str) -> bool:
    return bool(code >> sum(FORMATS[name]) & 1)


def product_sum(a: int, b: int, c: int | None, name: str, rounding: str = "rn") -> int:
    """a b + c, or a b alone, rounded once (IEEE 754, 5.4 and 6.3)."""
    nan = encode(float("nan"), name)
    codes = [code for code in (a, b, c) if code is not None]
    if any(is_nan(code, name) for code in codes):
        return nan
    x, y = decode(a, name), decode(b, name)
    negative = is_negative(a, name) != is_negative(b, name)
    product: Fraction | float
    if isinstance(x, float) or isinstance(y, float):
        if x == 0 or y == 0:
            return nan
        product = float("-inf") if negative else float("inf")
    else:
        product = x * y
    if c is None:
        return encode(product, name, rounding, negative)
    z = decode(c, name)
    if isinstance(product, float) or isinstance(z, float):
        if isinstance(product, float) and isinstance(z, float) and product != z:
            return nan
        return encode(product if isinstance(product, float) else z, name)
    negative = negative if negative == is_negative(c, name) else rounding == "rm"
    return encode(product + z, name, rounding, negative)


def negated(code: int, name: str) -> int:
    return code ^ 1 << sum(FORMATS[name])


ONES = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}


def add_float(a: int, b: int, name: str, rounding: str = "rn") -> int:
    return product_sum(a, ONES[name], b, name, rounding)


def flush(code: int) -> int:
    return code & 0x80000000 if code & 0x7F800000 == 0 else code


def saturated(code: int, name: str) -> int:
    """To [0, 1]; NaN and -0 become +0."""
    if is_nan(code, name) or is_negative(code, name):
        return 0
    return min(code, ONES[name])


def extreme(a: int, b: int, name: str, largest: bool, keeps_nan: bool) -> int:
    """min and max: a number wins over a NaN, but for .NaN; -0 is below +0."""
    nans = [is_nan(a, name), is_nan(b, name)]
    if all(nans) or (keeps_nan and any(nans)):
        return encode(float("nan"), name)
    if any(nans):
        return b if nans[0] else a
    sign = 1 << sum(FORMATS[name])
    order = lambda code: -(code & ~sign) - 1 if code & sign else code  # noqa: E731
    return (max if largest else min)((a, b), key=order)


def from_numpy(function: Callable[..., Any]) -> Callable[..., int]:
    """Of float32, which NumPy rounds as IEEE 754 says."""

    def of_codes(*codes: int) -> int:
        with np.errstate(all="ignore"):
            result = function(*(np.uint32(code).view(np.float32) for code in codes))
        return NAN if np.isnan(result) else int(np.float32(result).view(np.uint32))

    return of_codes


def f32_forms(add: Callable[..., None]) -> None:
    t = "f32"
    for r in ("rn", "rz", "rm", "rp"):
        sum_, product = f"add.{r}.f32", f"mul.{r}.f32"
        add(sum_, t, f"{t} {t}", lambda a, b, r=r: add_float(a, b, "f32", r))
        add(f"sub.{r}.f32", t, f"{t} {t}",
            lambda a, b, r=r: add_float(a, negated(b, "f32"), "f32", r))  # fmt: skip
        add(product, t, f"{t} {t}", lambda a, b, r=r: product_sum(a, b, None, "f32", r))
        add(f"fma.{r}.f32", t, f"{t} {t} {t}",
            lambda a, b, c, r=r: product_sum(a, b, c, "f32", r))  # fmt: skip
        add(f"add.{r}.ftz.f32", t, f"{t} {t}",
            lambda a, b, r=r: flush(add_float(flush(a), flush(b), "f32", r)))  # fmt: skip
        add(f"mul.{r}.sat.f32", t, f"{t} {t}",
            lambda a, b, r=r: saturated(product_sum(a, b, None, "f32", r), "f32"))  # fmt: skip
        add(f"fma.{r}.ftz.sat.f32", t, f"{t} {t} {t}",
            lambda a, b, c, r=r: saturated(
                flush(product_sum(flush(a), flush(b), flush(c), "f32", r)), "f32"))  # fmt: skip
    for name, largest in (("min", False), ("max", True)):
        add(f"{name}.f32", t, f"{t} {t}", lambda a, b, m=largest: extreme(a, b, "f32", m, False))
        add(f"{name}.NaN.f32", t, f"{t} {t}",
            lambda a, b, m=largest: extreme(a, b, "f32", m, True))  # fmt: skip
        add(f"{name}.ftz.f32", t, f"{t} {t}",
            lambda a, b, m=largest: extreme(flush(a), flush(b), "f32", m, False))  # fmt: skip
    add("div.rn.f32", t, f"{t} {t}", from_numpy(operator.truediv))
    add("rcp.rn.f32", t, t, from_numpy(lambda x: np.float32(1) / x))
    add("sqrt.rn.f32", t, t, from_numpy(np.sqrt))
    # Of a NaN, some NaN (PTX ISA 9.7.3.12): made the one that arithmetic gives.
    for name, function in (
        ("abs", lambda a: a & 0x7FFFFFFF),
        ("neg", lambda a: a ^ 0x80000000),
    ):
        add(f"{name}.f32 %sr, {{a0}}; max.NaN.f32 {{d0}}, %sr, %sr;", t, t,
            lambda a, f=function: NAN if is_nan(a, "f32") else f(a))  # fmt: skip
    add("copysign.f32", t, f"{t} {t}", lambda a, b: b & 0x7FFFFFFF | a & 0x80000000)
    add("slct.b32.f32", "b32", "b32 b32 f32", lambda a, b, c: a if value_of(c) >= 0 else b)


def half_forms(add: Callable[..., None]) -> None:
    for t in ("f16", "bf16"):
        operations: dict[str, tuple[int, Callable[..., int]]] = {
            "add.rn": (2, lambda a, b, t=t: add_float(a, b, t)),
            "sub.rn": (2, lambda a, b, t=t: add_float(a, negated(b, t), t)),
            "mul.rn": (2, lambda a, b, t=t: product_sum(a, b, None, t)),
            "fma.rn": (3, lambda a, b, c, t=t: product_sum(a, b, c, t)),
            "fma.rn.relu": (3, lambda a, b, c, t=t: relu(product_sum(a, b, c, t), t)),
            "min": (2, lambda a, b, t=t: extreme(a, b, t, False, False)),
            "max.NaN": (2, lambda a, b, t=t: extreme(a, b, t, True, True)),
        }
        for name, (count, function) in operations.items():
            add(f"{name}.{t}", t, " ".join([t] * count), function)
            add(f"{name}.{t}x2", f"{t}x2", " ".join([f"{t}x2"] * count),
                lambda *words, f=function: f(*(w & 0xFFFF for w in words))
                | f(*(w >> 16 for w in words)) << 16)  # fmt: skip


def relu(code: int, name: str) -> int:
    if is_nan(code, name):
        return encode(float("nan"), name)
    return 0 if is_negative(code, name) else code


# Conversions.


def integral(value: Fraction, mode: str) -> int:
    if mode == "rni":
        return round(value)
    if mode == "rzi":
        return int(value)
    return value.__floor__() if mode == "rmi" else value.__ceil__()


def to_integer(code: int, mode: str, to: str) -> int:
    value = decode(code, "f32")
    if isinstance(value, float):
        if value != value:
            return 0 if bits_of(to) < 64 else 1 << 63
        return clamp((1 << 70) * (1 if value > 0 else -1), to)
    return clamp(integral(value, mode), to)


def to_integral(code: int, mode: str) -> int:
    value = decode(code, "f32")
    if isinstance(value, float):
        return encode(value, "f32")
    return encode(Fraction(integral(value, mode)), "f32", "rn", is_negative(code, "f32"))


def convert(code: int, source: str, to: str, rounding: str = "rn") -> int:
    return encode(decode(code, source), to, rounding, is_negative(code, source))


def cvt_forms(add: Callable[..., None]) -> None:
    small = ("u8", "s8")
    for to in (*small, *INTEGERS):
        for mode in ("rni", "rzi", "rmi", "rpi"):
            add(f"cvt.{mode}.{to}.f32", to, "f32", lambda a, m=mode, t=to: to_integer(a, m, t))
        for source in (*small, *INTEGERS):
            if source == to:
                continue
            add(f"cvt.{to}.{source}", to, source, lambda a: a)
            add(f"cvt.sat.{to}.{source}", to, source, lambda a, t=to: clamp(a, t))
    for source in (*small, *INTEGERS):
        for r in ("rn", "rz", "rm", "rp"):
            add(f"cvt.{r}.f32.{source}", "f32", source,
                lambda a, r=r: encode(Fraction(a), "f32", r))  # fmt: skip
    for mode in ("rni", "rzi", "rmi", "rpi"):
        add(f"cvt.{mode}.f32.f32", "f32", "f32", lambda a, m=mode: to_integral(a, m))
    for t in ("f16", "bf16"):
        add(f"cvt.f32.{t}", "f32", t, lambda a, t=t: convert(a, t, "f32"))
        for r in ("rn", "rz"):
            narrow = lambda a, t=t, r=r: convert(a, "f32", t, r)  # noqa: E731
            add(f"cvt.{r}.{t}.f32", t, "f32", narrow)
            add(f"cvt.{r}.relu.{t}.f32", t, "f32", lambda a, t=t, f=narrow: relu(f(a), t))
            add(f"cvt.{r}.{t}x2.f32", f"{t}x2", "f32 f32",
                lambda a, b, f=narrow: f(a) << 16 | f(b))  # fmt: skip
