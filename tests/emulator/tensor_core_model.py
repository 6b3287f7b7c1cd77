"""A slow model of Hopper's tensor core in Python's integers: what csrc/emulator is compared with.

It shares nothing with the C++ code. A number is (significand, unit), worth significand * 2**unit;
nothing is a float, so nothing is rounded but where it says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fractions import Fraction


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary format. `unread` low bits of a code are ignored."""

    exponent_bits: int
    fraction_bits: int
    unread: int = 0
    infinity: bool = True  # else the top exponent has numbers, too, and one NaN

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def smallest_exponent(self) -> int:
        return 1 - self.bias

    @property
    def sign_bit(self) -> int:
        return 1 << (self.exponent_bits + self.fraction_bits)


E4M3 = Format(4, 3, infinity=False)
E5M2 = Format(5, 2)
F16 = Format(5, 10)
BF16 = Format(8, 7)
TF32 = Format(8, 10, unread=13)
F32 = Format(8, 23)

FORMATS = {"e4m3": E4M3, "e5m2": E5M2, "f16": F16, "bf16": BF16, "tf32": TF32}
DEPTHS = {"e4m3": 32, "e5m2": 32, "f16": 16, "bf16": 16, "tf32": 8}
NAN_RESULT = {F32: 0x7FFFFFFF, F16: 0x7FFF}

NAN, PLUS_INFINITY, MINUS_INFINITY = "nan", "+inf", "-inf"


@dataclasses.dataclass(frozen=True)
class Number:
    """significand * 2**unit; `exponent` is what a tensor core aligns by."""

    significand: int
    unit: int
    exponent: int


def decode(format_: Format, code: int) -> Number | str:
    code >>= format_.unread
    fraction = code % 2**format_.fraction_bits
    field = code // 2**format_.fraction_bits % 2**format_.exponent_bits
    negative = bool(code & format_.sign_bit)
    if field == 2**format_.exponent_bits - 1:
        if format_.infinity:
            return NAN if fraction else (MINUS_INFINITY if negative else PLUS_INFINITY)
        if fraction == 2**format_.fraction_bits - 1:
            return NAN
    exponent = max(field, 1) - format_.bias
    magnitude = fraction + (2**format_.fraction_bits if field else 0)
    unit = exponent - format_.fraction_bits
    return Number(-magnitude if negative else magnitude, unit, exponent)


def multiply(x: Number | str, y: Number | str) -> Number | str:
    if NAN in (x, y):
        return NAN
    if isinstance(x, Number) and isinstance(y, Number):
        return Number(x.significand * y.significand, x.unit + y.unit, x.exponent + y.exponent)
    signs = [_sign(x), _sign(y)]
    if 0 in signs:
        return NAN
    return PLUS_INFINITY if signs[0] == signs[1] else MINUS_INFINITY


def _sign(x: Number | str) -> int:
    if isinstance(x, Number):
        return (x.significand > 0) - (x.significand < 0)
    return 1 if x == PLUS_INFINITY else -1


def truncate(value: Fraction) -> int:
    """Toward zero."""
    magnitude = abs(value.numerator) // value.denominator
    return magnitude if value >= 0 else -magnitude


def power_of_two(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def dot(
    a_type: str, b_type: str, a: Iterable[int], b: Iterable[int], c: int, output: Format
) -> int:
    """The code of one output from the codes of its operands; c is a code of `output`."""
    terms = [
        multiply(decode(FORMATS[a_type], x), decode(FORMATS[b_type], y))
        for x, y in zip(a, b, strict=True)
    ]
    terms.append(decode(output, c))
    if NAN in terms or {PLUS_INFINITY, MINUS_INFINITY} <= set(terms):
        return NAN_RESULT[output]
    for infinity in (PLUS_INFINITY, MINUS_INFINITY):
        if infinity in terms:
            return _infinity(output, negative=infinity == MINUS_INFINITY)

    fp8 = a_type in ("e4m3", "e5m2")
    kept_bits = 13 if fp8 else 25
    non_zero = [term for term in terms if isinstance(term, Number) and term.significand]
    largest = max((term.exponent for term in non_zero), default=0)
    largest = max(largest, output.smallest_exponent - 7)
    unit = power_of_two(largest - kept_bits)
    total = unit * sum(
        truncate(term.significand * power_of_two(term.unit) / unit) for term in non_zero
    )
    if output is F16:
        return encode(total, output, F16.fraction_bits, nearest=True)
    return encode(total, output, 13 if fp8 else 23, nearest=False)


def encode(value: Fraction, output: Format, fraction_bits: int, *, nearest: bool) -> int:
    """Round to `fraction_bits`, then give the code. +0 for 0; what underflows keeps its sign."""
    negative = value < 0
    magnitude = abs(value)
    exponent = output.smallest_exponent
    while magnitude >= power_of_two(exponent + 1):
        exponent += 1
    unit = power_of_two(exponent - fraction_bits)
    # Python rounds fractions to even.
    significand = round(magnitude / unit) if nearest else truncate(magnitude / unit)
    significand <<= output.fraction_bits - fraction_bits
    # A significand of 2**(fraction bits) is normal; what rounding carries goes into the exponent.
    field = exponent - output.smallest_exponent
    code = (field << output.fraction_bits) + significand
    if code >= (2**output.exponent_bits - 1) << output.fraction_bits:
        return _infinity(output, negative)
    return code | (output.sign_bit if negative else 0)


def _infinity(output: Format, negative: bool) -> int:
    code = (2**output.exponent_bits - 1) << output.fraction_bits
    return code | (output.sign_bit if negative else 0)
