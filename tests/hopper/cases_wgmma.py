"""Cases of WGMMA, and of the matrix loads and stores that feed it."""

from __future__ import annotations

import functools

import numpy as np

from tests.hopper import layouts, numerics
from tests.hopper.case import Array, Arrays, Case, Launch, NamedBuilders

SHAPES = (8, 16, 32, 64, 96, 128, 160, 192, 256)
SPANS = {"none": 0, "b32": 32, "b64": 64, "b128": 128}


def cases() -> NamedBuilders:
    yield from shapes()
    yield from tile_layouts()
    yield from registers()
    yield from matrices()


def shapes() -> NamedBuilders:
    types = [("e4m3", n) for n in SHAPES] + [("bf16", n) for n in SHAPES]
    types += [("e5m2", 64), ("e4m3_e5m2", 64), ("e5m2_e4m3", 64)]
    types += [("f16", 64), ("f16", 256), ("tf32", 64), ("tf32", 256)]
    for name, n in types:
        for c in ("without_c", "with_c"):
            yield (
                f"wgmma_{name}_n{n}/{c}",
                functools.partial(shape, name=name, n=n, accumulate=c == "with_c"),
            )
    for name in ("e4m3", "bf16"):
        yield (
            f"wgmma_{name}_n64/large_c",
            functools.partial(shape, name=name, n=64, accumulate=True, c_octaves=24),
        )
        yield (
            f"wgmma_{name}_n64/cancelling_c",
            functools.partial(shape, name=name, n=64, accumulate=True, cancel=True),
        )
        yield (
            f"wgmma_{name}_n64/small_codes",
            functools.partial(shape, name=name, n=64, accumulate=False, any_code=True),
        )


def tile_layouts() -> NamedBuilders:
    layout_names = []
    for swizzle in SPANS:
        layout_names += [
            ("bf16", 64, a, swizzle, b, swizzle) for a in ("k", "mn") for b in ("k", "mn")
        ]
        layout_names += [("e4m3", 128, "k", swizzle, "k", swizzle)]
        layout_names += [("tf32", 64, "k", swizzle, "k", swizzle)]
    layout_names += [
        ("bf16", 256, "k", "b128", "mn", "b128"),
        ("bf16", 256, "k", "b128", "k", "b128"),
        ("bf16", 64, "k", "b128", "mn", "b64"),
        ("bf16", 64, "mn", "none", "k", "b32"),
        ("f16", 128, "k", "b128", "mn", "b128"),
        ("f16", 128, "mn", "b64", "k", "b64"),
    ]
    for kind, n, *layout in layout_names:
        yield (
            f"wgmma_{kind}_n{n}_{'_'.join(layout)}",
            functools.partial(tiles, kind=kind, n=n, layout=tuple(layout)),
        )


def registers() -> NamedBuilders:
    for kind, n, major in (
        ("bf16", 64, "k"),
        ("bf16", 256, "mn"),
        ("f16", 64, "mn"),
        ("e4m3", 128, "k"),
        ("tf32", 64, "k"),
    ):
        yield (
            f"wgmma_registers_{kind}_n{n}_{major}",
            functools.partial(register_operand, kind=kind, n=n, major=major),
        )
    yield "wgmma_two_groups", two_groups
    yield "wgmma_promote", promote


def matrices() -> NamedBuilders:
    for count in (1, 2, 4):
        for transposed in (False, True):
            name = f"matrix_x{count}{'_transposed' * transposed}"
            options = {"count": count, "transposed": transposed}
            yield f"load_{name}", functools.partial(load_matrix, **options)
            yield f"store_{name}", functools.partial(store_matrix, **options)


# Operands ----------------------------------------------------------------------------------------


def real(random: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Codes of normal numbers with some octaves between them."""
    values = random.standard_normal(shape) * np.exp2(random.integers(-4, 4, shape))
    return numerics.FORMATS[kind].encode(values, saturate=True)


def integers(random: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Codes of small integers: their products add up exactly in every model of the hardware."""
    return numerics.FORMATS[kind].encode(random.integers(-3, 4, shape))


def any_finite(random: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Any codes with the lowest exponents, subnormals among them; no NaN or infinity."""
    form = numerics.FORMATS[kind]
    magnitude = random.integers(0, 3 * 2**form.fraction_bits, shape)
    if kind not in ("e4m3", "e5m2"):  # products of BF16's smallest would underflow
        magnitude += (form.bias - 20 << form.fraction_bits) * (magnitude > 0)
    sign = random.integers(0, 2, shape) << form.exponent_bits + form.fraction_bits
    return (magnitude | sign).astype(form.storage)


def tile_image(tile: np.ndarray, major: str, span: int) -> np.ndarray:
    """The bytes of a tile [MN, K] in shared memory."""
    return layouts.panels(tile if major == "k" else tile.T, span)


# One instruction ---------------------------------------------------------------------------------


def shape(
    random: np.random.Generator,
    *,
    name: str,
    n: int,
    accumulate: bool,
    c_octaves: int = 2,
    cancel: bool = False,
    any_code: bool = False,
) -> Case:
    a_kind, _, b_kind = name.partition("_")
    b_kind = b_kind or a_kind
    depth = numerics.DEPTH[a_kind]
    make = any_finite if any_code else real
    a, b = make(random, (64, depth), a_kind), make(random, (n, depth), b_kind)
    c = random.standard_normal((64, n)) * np.exp2(random.uniform(-c_octaves, c_octaves, (64, n)))
    if cancel:  # minus the sum, but for the last bits
        exact = numerics.FORMATS[a_kind].decode(a) @ numerics.FORMATS[b_kind].decode(b).T
        c = -exact * (1 + random.standard_normal((64, n)) * 2.0**-12)
    c = c.astype(np.float32)

    def expected(_: Arrays) -> Arrays:
        return {"d": numerics.mma(a, b, c if accumulate else None, a_kind, b_kind)}

    return Case(
        source="wgmma_shapes",
        launches=(Launch(f"wgmma_{name}_n{n}", ("a", "b", "c", np.int32(accumulate), "d")),),
        arrays={
            "a": Array(tile_image(a, "k", 32)),
            "b": Array(tile_image(b, "k", 32)),
            "c": Array(c),
            "d": Array(np.empty((64, n), np.float32), "out"),
        },
        expected=expected,
    )


# Tiles of four instructions ----------------------------------------------------------------------


def tiles(
    random: np.random.Generator, *, kind: str, n: int, layout: tuple[str, str, str, str]
) -> Case:
    """Integers, so that only the layout can be wrong."""
    major_a, swizzle_a, major_b, swizzle_b = layout
    depth = 4 * numerics.DEPTH[kind]
    a, b = integers(random, (64, depth), kind), integers(random, (n, depth), kind)
    form = numerics.FORMATS[kind]

    def expected(_: Arrays) -> Arrays:
        return {"d": (form.decode(a) @ form.decode(b).T).astype(np.float32)}

    image_a = tile_image(a, major_a, SPANS[swizzle_a])
    image_b = tile_image(b, major_b, SPANS[swizzle_b])
    return Case(
        source="wgmma_layouts",
        launches=(
            Launch(
                f"wgmma_{kind}_n{n}_{'_'.join(layout)}",
                ("a", "b", "d"),
                shared_bytes=image_a.size + image_b.size,
            ),
        ),
        arrays={
            "a": Array(image_a),
            "b": Array(image_b),
            "d": Array(np.empty((64, n), np.float32), "out"),
        },
        expected=expected,
    )


def register_operand(random: np.random.Generator, *, kind: str, n: int, major: str) -> Case:
    depth = 4 * numerics.DEPTH[kind]
    a, b = real(random, (64, depth), kind), real(random, (n, depth), kind)
    image_b = tile_image(b, major, 128)
    return Case(
        source="wgmma_registers",
        launches=(
            Launch(
                f"wgmma_registers_{kind}_n{n}_{major}",
                ("a", "b", "d"),
                shared_bytes=image_b.size,
            ),
        ),
        arrays={
            "a": Array(a),
            "b": Array(image_b),
            "d": Array(np.empty((64, n), np.float32), "out"),
        },
        expected=lambda _: {"d": numerics.mma(a, b, None, kind, kind)},
    )


def two_groups(random: np.random.Generator) -> Case:
    a, b0, b1 = (real(random, (64, 128), "e4m3") for _ in range(3))

    def expected(_: Arrays) -> Arrays:
        first, second = (numerics.mma(a, b, None, "e4m3", "e4m3") for b in (b0, b1))
        return {"d0": 2 * first, "d1": second}

    images = {
        name: Array(tile_image(tile, "k", 128))
        for name, tile in zip("abc", (a, b0, b1), strict=True)
    }
    results = {name: Array(np.empty((64, 64), np.float32), "out") for name in ("d0", "d1")}
    return Case(
        source="wgmma_registers",
        launches=(Launch("wgmma_two_groups", ("a", "b", "c", "d0", "d1")),),
        arrays={**images, **results},
        expected=expected,
    )


def promote(random: np.random.Generator) -> Case:
    blocks = 3
    a, b = (real(random, (64, blocks * 128), "e4m3") for _ in range(2))
    parts = [slice(128 * i, 128 * i + 128) for i in range(blocks)]

    def expected(_: Arrays) -> Arrays:
        total = np.zeros((64, 64), np.float32)
        for part in parts:
            total += numerics.mma(a[:, part], b[:, part], None, "e4m3", "e4m3")
        return {"d": total}

    return Case(
        source="wgmma_registers",
        launches=(Launch("wgmma_promote", ("a", "b", np.int32(blocks), "d")),),
        arrays={
            "a": Array(np.stack([tile_image(a[:, part], "k", 128) for part in parts])),
            "b": Array(np.stack([tile_image(b[:, part], "k", 128) for part in parts])),
            "d": Array(np.empty((64, 64), np.float32), "out"),
        },
        expected=expected,
    )


# ldmatrix and stmatrix ---------------------------------------------------------------------------


def fragment(matrices: np.ndarray, transposed: bool) -> np.ndarray:
    """uint32 [32 threads, matrices] of uint16 [matrices, 8, 8]."""
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    pairs = np.ascontiguousarray(matrices).view(np.uint32)  # [matrices, 8, 4]
    return np.ascontiguousarray(pairs.reshape(len(matrices), 32).T)


def load_matrix(random: np.random.Generator, *, count: int, transposed: bool) -> Case:
    image = random.integers(0, 2**16, (32, 8), np.uint16, endpoint=False)
    place = random.permutation(32).astype(np.int32)

    def expected(inputs: Arrays) -> Arrays:
        rows = inputs["image"][inputs["place"][: 8 * count]]
        return {"registers": fragment(rows.reshape(count, 8, 8), transposed)}

    return Case(
        source="matrix",
        launches=(
            Launch(
                f"load_matrix_x{count}{'_transposed' * transposed}",
                ("image", "place", "registers"),
                block=32,
            ),
        ),
        arrays={
            "image": Array(image),
            "place": Array(place),
            "registers": Array(np.empty((32, count), np.uint32), "out"),
        },
        expected=expected,
    )


def store_matrix(random: np.random.Generator, *, count: int, transposed: bool) -> Case:
    image = random.integers(0, 2**16, (32, 8), np.uint16, endpoint=False)
    place = random.permutation(32).astype(np.int32)
    values = random.integers(0, 2**16, (count, 8, 8), np.uint16, endpoint=False)

    def expected(inputs: Arrays) -> Arrays:
        result = inputs["image"]
        result[inputs["place"][: 8 * count]] = values.reshape(-1, 8)
        return {"image": result}

    return Case(
        source="matrix",
        launches=(
            Launch(
                f"store_matrix_x{count}{'_transposed' * transposed}",
                ("registers", "place", "image"),
                block=32,
            ),
        ),
        arrays={
            "registers": Array(fragment(values, transposed)),
            "place": Array(place),
            "image": Array(image, "inout"),
        },
        expected=expected,
    )
