"""Cases of approximate functions and conversions, over special and random numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tests.hopper import numerics
from tests.hopper.case import Array, Arrays, Case, Launch, NamedBuilders, Tolerance

SMALLEST_NORMAL = 2.0**-126
THREADS = 128

# One unit of the last place is at most 2^-23 of the value.
ULP = 2.0**-23

# entry -> (function in float64, what of x, tolerance, whether subnormals are flushed to zero).
# The bounds are the PTX ISA's; those of cuda_exp2 and the IEEE functions CUDA C++'s. One half of a
# unit is the rounding of the expected value to FP32.
Function = Callable[..., np.ndarray]
FUNCTIONS: dict[str, tuple[Function, str, Tolerance | None, bool]] = {
    "math_exp2": (np.exp2, "exponents", Tolerance(2.5 * ULP), True),
    "math_log2": (np.log2, "any", Tolerance(2.0**-22, 2.0**-22), True),
    "math_reciprocal": (lambda x: 1 / x, "any", Tolerance(1.5 * ULP), True),
    "math_reciprocal_rounded": (lambda x: 1 / x, "inverses", None, False),
    "math_rsqrt": (lambda x: 1 / np.sqrt(x), "any", Tolerance(2.0**-22.9 + ULP / 2), True),
    "math_sqrt": (np.sqrt, "any", Tolerance(1.5 * ULP), True),
    "math_sin": (np.sin, "angles", Tolerance(0, 2.0**-20.5), True),
    "math_cos": (np.cos, "angles", Tolerance(0, 2.0**-20.5), True),
    "math_tanh": (np.tanh, "moderate", Tolerance(2.0**-11), False),
    "math_divide": (lambda x, y: x / y, "quotients", Tolerance(2.5 * ULP), True),
    "cuda_log2": (np.log2, "any", Tolerance(2.0**-22, 2.0**-22), False),
    "cuda_rsqrt": (lambda x: 1 / np.sqrt(x), "any", Tolerance(2.0**-22.9 + ULP / 2), False),
    "cuda_sin": (np.sin, "angles", Tolerance(0, 2.0**-20.5), False),
    "cuda_cos": (np.cos, "angles", Tolerance(0, 2.0**-20.5), False),
    "cuda_fdividef": (lambda x, y: x / y, "quotients", Tolerance(2.5 * ULP), False),
    "cuda_exp2": (np.exp2, "exponents", Tolerance(2.5 * ULP, 2.0**-148), False),
    "ieee_reciprocal": (lambda x: 1 / x, "any", None, False),
    "ieee_sqrt": (np.sqrt, "any", None, False),
    "ieee_divide": (lambda x, y: x / y, "any", None, False),
    "math_max_or_nan": (np.maximum, "any", None, False),
}


def max_magnitudes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of bits of BF16: the order of magnitudes is that of their bits, NaN being above."""
    return np.minimum(np.maximum(x & 0x7FFF, y & 0x7FFF), 0x7F80) + np.where(
        np.maximum(x & 0x7FFF, y & 0x7FFF) > 0x7F80, 0x7F, 0
    )


def clamp(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """To [-86.5, 41.5]; NaN to the lower."""
    values = (x.astype(np.uint32) << 16).view(np.float32)
    clamped = np.fmin(np.fmax(values, np.float32(-86.5)), np.float32(41.5))
    return (clamped.view(np.uint32) >> 16).astype(np.uint16)


# entry -> function of bits of BF16
PAIRS: dict[str, Callable[..., np.ndarray]] = {
    "bf16x2_max_magnitudes": max_magnitudes,
    "bf16x2_clamp": clamp,
}

# entry -> (format in, format out, saturates)
CONVERSIONS = {
    "f32_to_e4m3": ("f32", "e4m3", True),
    "f32_to_e5m2": ("f32", "e5m2", True),
    "f32_to_bf16": ("f32", "bf16", False),
    "f32_to_f16": ("f32", "f16", False),
    "f16_to_e4m3": ("f16", "e4m3", True),
    "e4m3_to_f16": ("e4m3", "f16", False),
    "e5m2_to_f16": ("e5m2", "f16", False),
    "f32_to_tf32": ("f32", "tf32", False),
    "f16_to_f32": ("f16", "f32", False),
    "bf16_to_f32": ("bf16", "f32", False),
}


def cases() -> NamedBuilders:
    for entry in FUNCTIONS:
        yield entry, functools.partial(function, entry=entry)
    yield "ieee_fma", fma
    for entry in PAIRS:
        yield entry, functools.partial(pairs, entry=entry)
    for entry in CONVERSIONS:
        yield entry, functools.partial(conversion, entry=entry)
    yield "clocks", clocks


# Functions ---------------------------------------------------------------------------------------


def numbers(random: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """float32, with specials first."""
    specials = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0, 0.5, 3.4e38, -3.4e38, 1.5]
    specials += [2.0**-126, -(2.0**-126), 2.0**-149, -(2.0**-149), 2.0**-127, 2.0**126, 2.0**-23]
    if kind == "any":
        values = np.ldexp(random.uniform(0.5, 1, count), random.integers(-148, 128, count))
        values *= random.choice([1, 1, 1, -1], count)
    elif kind == "exponents":
        values = random.uniform(-152, 130, count)
        specials += [127.99999, 128.0, -126.0, -126.5, -149.0, -149.5, -150.5, 10.0, -10.0]
    elif kind == "angles":
        values = random.uniform(-2 * np.pi, 2 * np.pi, count)
        specials = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, -1e-30, 3.1415927, 1.5707964]
    elif kind == "moderate":
        values = random.standard_normal(count) * np.exp2(random.integers(-20, 5, count))
    elif kind == "inverses":
        values = np.ldexp(random.uniform(0.5, 1, count), random.integers(-125, 127, count))
        values *= random.choice([1, -1], count)
        # Next to powers of two, from below and above: inverses next to ties.
        powers = np.exp2(random.integers(-124, 126, count // 2))
        values[: count // 2] = powers * (1 - 2.0**-24) * random.choice([1, -1], count // 2)
        specials = [1.0, -1.0, 3.0, 2.0**-126, 2.0**125, 1 + 2.0**-23, 2 - 2.0**-23]
    else:
        values = np.ldexp(random.uniform(0.5, 1, count), random.integers(-60, 60, count))
        values *= random.choice([1, -1], count)
        specials = [0.0, -0.0, 1.0, -1.0, np.inf, np.nan, 3.0]
    return np.concatenate([specials, values]).astype(np.float32)[:count]


def flushed(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < SMALLEST_NORMAL, np.copysign(0, values), values)


def function(random: np.random.Generator, *, entry: str) -> Case:
    compute, kind, tolerance, flush = FUNCTIONS[entry]
    x = numbers(random, kind, 1000)
    # Quotients: divisors in the range of the bound, and normal quotients.
    y = numbers(random, kind, 1000)[::-1].copy()
    if kind == "quotients":
        y = np.where(np.isfinite(y) & (y != 0), y, np.float32(3))
    arity = 2 if entry.endswith(("divide", "fdividef", "max_or_nan")) else 1

    def expected(inputs: Arrays) -> Arrays:
        operands = [inputs[name].astype(np.float64) for name in ("x", "y")[:arity]]
        if flush:
            operands = [flushed(operand) for operand in operands]
        with np.errstate(all="ignore"):
            result = compute(*operands)
            if flush:
                result = flushed(result)
            return {"out": result.astype(np.float32)}

    return Case(
        source="math",
        launches=(Launch(entry, ("x", "y", np.int32(1000), "out"), grid=8, block=THREADS),),
        arrays={"x": Array(x), "y": Array(y), "out": Array(np.empty(1000, np.float32), "out")},
        expected=expected,
        tolerance=tolerance,
    )


def pairs(random: np.random.Generator, *, entry: str) -> Case:
    """Any bits, and bits next to what is special."""
    x, y = (random.integers(0, 2**16, 2000).astype(np.uint16) for _ in range(2))
    specials = [0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F81, 0x0001, 0xC2AD, 0xC2AE, 0x4226]
    specials += [0x4227, 0x4225]
    x[: len(specials)] = specials
    y[200 : 200 + len(specials)] = specials

    def expected(inputs: Arrays) -> Arrays:
        halves = [inputs[name].view(np.uint16) for name in ("x", "y")]
        return {"out": PAIRS[entry](*halves).astype(np.uint16).view(np.uint32)}

    return Case(
        source="math",
        launches=(Launch(entry, ("x", "y", np.int32(1000), "out"), grid=8, block=THREADS),),
        arrays={
            "x": Array(x.view(np.uint32)),
            "y": Array(y.view(np.uint32)),
            "out": Array(np.empty(1000, np.uint32), "out"),
        },
        expected=expected,
    )


def fma(random: np.random.Generator) -> Case:
    """x * y + x with factors whose product and sum float64 holds exactly, so that one rounding
    is left."""
    x = (random.integers(-(2**24), 2**24, 1000) * 2.0**-12).astype(np.float32)
    y = (random.integers(-(2**24), 2**24, 1000) * 2.0**-20).astype(np.float32)

    def expected(inputs: Arrays) -> Arrays:
        a, b = inputs["x"].astype(np.float64), inputs["y"].astype(np.float64)
        return {"out": (a * b + a).astype(np.float32)}

    return Case(
        source="math",
        launches=(Launch("ieee_fma", ("x", "y", np.int32(1000), "out"), grid=8, block=THREADS),),
        arrays={"x": Array(x), "y": Array(y), "out": Array(np.empty(1000, np.float32), "out")},
        expected=expected,
    )


def clocks(random: np.random.Generator) -> Case:
    ones = np.ones(2, np.uint32)
    return Case(
        source="math",
        launches=(Launch("clocks", ("out",), block=32),),
        arrays={"out": Array(np.empty(2, np.uint32), "out")},
        expected=lambda _: {"out": ones},
    )


# Conversions -------------------------------------------------------------------------------------


def conversion(random: np.random.Generator, *, entry: str) -> Case:
    source, target, saturate = CONVERSIONS[entry]
    codes = all_codes(random, source)
    form = numerics.FORMATS[target]
    # Both halves of a pair are converted, where the instruction takes pairs.
    pairs = target not in ("tf32", "f32")
    count = codes.size // 2 if pairs else codes.size
    x = codes.view(np.float32) if source == "f32" else codes
    out = np.empty(codes.size, np.float32 if target == "f32" else form.storage)
    kind = "" if target == "f32" else target

    def expected(inputs: Arrays) -> Arrays:
        values = numerics.FORMATS[source].decode(inputs["x"])
        result = round_tf32(inputs["x"]) if target == "tf32" else form.encode(values, saturate)
        return {"out": result.view(out.dtype)}

    grid = -(-count // THREADS)
    return Case(
        source="convert",
        launches=(Launch(entry, ("x", np.int32(count), "out"), grid=grid, block=THREADS),),
        arrays={
            "x": Array(x, kind="" if source == "f32" else source),
            "out": Array(out, "out", kind),
        },
        expected=expected,
    )


def all_codes(random: np.random.Generator, source: str) -> np.ndarray:
    """Every code of an 8-bit type (in all neighbourhoods' order), of a 16-bit type; of FP32,
    numbers of every type's range, ties and both their neighbours among them."""
    form = numerics.FORMATS[source]
    if source != "f32":
        bits = 8 * np.dtype(form.storage).itemsize
        return random.permutation(2**bits).astype(form.storage)
    ties = [
        numerics.FORMATS[name].decode(all_codes(random, name)) for name in ("e4m3", "e5m2", "f16")
    ]
    values = np.concatenate(ties)[: 2**12].astype(np.float32)
    near = np.sort(values[np.isfinite(values)])
    halves = (near[1:] / 2 + near[:-1] / 2).astype(np.float32)
    bits = np.concatenate([near, halves, -halves]).view(np.uint32)
    bits = np.concatenate([bits, bits + 1, bits - 1])
    anything = random.integers(0, 2**32, 2048, np.uint32)
    words = (random.integers(0, 2**19, 1024, np.uint32) << 13) + 2**12  # ties of TF32
    specials = np.array([0, 2**31, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF], np.uint32)
    all_bits = np.concatenate([bits, anything, words, specials])
    return random.permutation(all_bits[: all_bits.size // 2 * 2])


def round_tf32(values: np.ndarray) -> np.ndarray:
    """To nearest, ties away from zero, by the bits: a carry moves on to the next exponent."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    special = ~np.isfinite(values)
    return np.where(special, np.where(np.isnan(values), 0x7FFFE000, bits), rounded).astype(
        np.uint32
    )
