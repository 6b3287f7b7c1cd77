"""Number formats and the tensor core in NumPy: what the expected results are computed with.

Written from the formats' definitions and from the models of MMA-Sim (arXiv 2511.10909) and of
Khattak and Mikaitis (arXiv 2512.07004); shares nothing with the kernels or the emulator.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary format. unread: low bits of the storage that the tensor core ignores."""

    storage: type
    exponent_bits: int
    fraction_bits: int
    unread: int = 0
    finite_top: bool = False  # the highest exponent holds numbers; only all ones is NaN

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The values, in float64 (exact)."""
        significand, exponent = self.split(codes)
        values = np.ldexp(significand.astype(np.float64), exponent - self.fraction_bits)
        values = np.copysign(values, np.where(self.negative(codes), -1.0, 1.0))
        top = self.exponent_field(codes) == 2**self.exponent_bits - 1
        fraction = self.bits(codes) & (2**self.fraction_bits - 1)
        if self.finite_top:
            return np.where(top & (fraction == 2**self.fraction_bits - 1), np.nan, values)
        infinity = np.where(self.negative(codes), -np.inf, np.inf)
        return np.where(top, np.where(fraction == 0, infinity, np.nan), values)

    def bits(self, codes: np.ndarray) -> np.ndarray:
        return bits_of(codes).astype(np.int64) >> self.unread

    def exponent_field(self, codes: np.ndarray) -> np.ndarray:
        return self.bits(codes) >> self.fraction_bits & (2**self.exponent_bits - 1)

    def negative(self, codes: np.ndarray) -> np.ndarray:
        return (self.bits(codes) >> (self.exponent_bits + self.fraction_bits) & 1).astype(bool)

    def split(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed integer significand and exponent: value = significand * 2^(exponent -
        fraction_bits). Subnormals keep the smallest exponent."""
        field = self.exponent_field(codes)
        fraction = self.bits(codes) & (2**self.fraction_bits - 1)
        significand = np.where(field == 0, fraction, fraction + 2**self.fraction_bits)
        signed = np.where(self.negative(codes), -significand, significand)
        return signed, np.maximum(field, 1) - self.bias

    def encode(self, values: np.ndarray, saturate: bool = False) -> np.ndarray:
        """To nearest even, infinity (or, saturated, the largest number) beyond the largest."""
        values = np.asarray(values, np.float64)
        finite = np.where(np.isfinite(values), values, 0)
        exponent = np.where(finite == 0, 1 - self.bias, np.frexp(finite)[1] - 1)
        exponent = np.maximum(exponent, 1 - self.bias)
        scaled = np.rint(np.ldexp(np.abs(finite), self.fraction_bits - exponent)).astype(np.int64)
        # A subnormal has the field 0 and no hidden bit; a carry moves on to the next exponent.
        code = scaled + (exponent + self.bias - 1 << self.fraction_bits)
        top = (2**self.exponent_bits - 1 << self.fraction_bits) + (
            2**self.fraction_bits - 2 if self.finite_top else -1
        )
        overflow = top if saturate else top + 1
        code = np.where(np.isinf(values) | (code > top), overflow, code)
        code = np.where(np.isnan(values), 2 ** (self.exponent_bits + self.fraction_bits) - 1, code)
        negative = np.signbit(values) & ~np.isnan(values)
        code = code | negative.astype(np.int64) << (self.exponent_bits + self.fraction_bits)
        return (code << self.unread).astype(self.storage)


E4M3 = Format(np.uint8, 4, 3, finite_top=True)
E5M2 = Format(np.uint8, 5, 2)
F16 = Format(np.uint16, 5, 10)
BF16 = Format(np.uint16, 8, 7)
TF32 = Format(np.uint32, 8, 10, unread=13)
F32 = Format(np.uint32, 8, 23)
FORMATS = {"e4m3": E4M3, "e5m2": E5M2, "f16": F16, "bf16": BF16, "tf32": TF32, "f32": F32}


def bits_of(values: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers."""
    return np.asarray(values).view(f"u{np.asarray(values).dtype.itemsize}")


def is_nan(values: np.ndarray, kind: str) -> np.ndarray:
    """kind: a name in FORMATS for codes in integers; empty for what NumPy itself knows."""
    if not kind:
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    return np.isnan(FORMATS[kind].decode(values))


# The tensor core of Hopper. ---------------------------------------------------------------------

# Fraction bits of the aligned terms relative to the largest exponent, and of the result.
ACCUMULATION = {"e4m3": (13, 13), "e5m2": (13, 13), "f16": (25, 23), "bf16": (25, 23)}
ACCUMULATION["tf32"] = (25, 23)
DEPTH = {"e4m3": 32, "e5m2": 32, "f16": 16, "bf16": 16, "tf32": 8}


def mma(a: np.ndarray, b: np.ndarray, c: np.ndarray | None, a_kind: str, b_kind: str) -> np.ndarray:
    """float32 [M, N] = a [M, K] b [N, K]^T + c, instruction by instruction along K.

    Each instruction cuts its exact products and c toward zero to F fraction bits below the largest
    exponent, adds them exactly, and cuts the sum to the bits of the result. Finite numbers only.
    """
    depth = DEPTH[a_kind]
    assert a.shape[1] == b.shape[1] and a.shape[1] % depth == 0
    d = np.zeros((len(a), len(b)), np.float32) if c is None else c
    for k in range(0, a.shape[1], depth):
        d = _mma_step(a[:, k : k + depth], b[:, k : k + depth], d, a_kind, b_kind)
    return d


def _mma_step(a: np.ndarray, b: np.ndarray, c: np.ndarray, a_kind: str, b_kind: str) -> np.ndarray:
    fraction, result_fraction = ACCUMULATION[a_kind]
    a_significand, a_exponent = FORMATS[a_kind].split(a)
    b_significand, b_exponent = FORMATS[b_kind].split(b)
    c_significand, c_exponent = F32.split(c)
    product = a_significand[:, None, :] * b_significand[None, :, :]
    exponent = a_exponent[:, None, :] + b_exponent[None, :, :]
    bits = FORMATS[a_kind].fraction_bits + FORMATS[b_kind].fraction_bits
    none = -(2**20)  # a zero has no exponent
    largest = np.where(product != 0, exponent, none).max(axis=-1)
    largest = np.maximum(largest, np.where(c_significand != 0, c_exponent, none))
    total = _align(product, exponent, bits, largest[:, :, None], fraction).sum(axis=-1)
    total += _align(c_significand, c_exponent, 23, largest, fraction)
    return _truncate(total, np.where(largest == none, 0, largest) - fraction, result_fraction)


def _align(
    significand: np.ndarray, exponent: np.ndarray, bits: int, largest: np.ndarray, fraction: int
) -> np.ndarray:
    """significand * 2^(exponent - bits), in units of 2^(largest - fraction), toward zero."""
    left = fraction - bits
    magnitude = np.abs(significand) << max(left, 0)
    shift = np.clip(largest - exponent + max(-left, 0), 0, 62)
    return np.sign(significand) * (magnitude >> shift)


def _truncate(total: np.ndarray, exponent: np.ndarray, fraction: int) -> np.ndarray:
    """total * 2^exponent as float32 of `fraction` fraction bits, toward zero."""
    mantissa, power = np.frexp(total.astype(np.float64))
    cut = np.ldexp(np.trunc(np.ldexp(mantissa, fraction + 1)), power - fraction - 1)
    return np.ldexp(cut, exponent).astype(np.float32)
