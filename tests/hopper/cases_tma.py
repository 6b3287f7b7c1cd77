"""Cases of TMA and bulk copies."""

from __future__ import annotations

import functools
import math

import numpy as np

from tests.hopper import layouts, numerics
from tests.hopper.case import Array, Arrays, Case, Launch, NamedBuilders, TensorMap

SWIZZLES = (0, 32, 64, 128)
Position = tuple[int, ...]

# kind of a tensor map -> type of its elements in NumPy, kind of the array, NaN as it is filled in.
ELEMENTS = {
    "uint8": (np.uint8, "", 0),
    "int32": (np.int32, "", 0),
    "bf16": (np.uint16, "bf16", 0x7FFF),
    "f32": (np.float32, "", np.nan),
}


def cases() -> NamedBuilders:
    yield from loads()
    yield from stores()
    yield from bulk()


def loads() -> NamedBuilders:
    """Every swizzle inside and across each edge, every rank, both fills, strides, multicast."""
    positions = {"inside": (3, 0), "before": (-5, -64), "beyond": (30, 64), "outside": (40, 512)}
    for swizzle in SWIZZLES:
        for place, at in positions.items():
            columns = swizzle or 64
            at = (at[0], at[1] * columns // 64)
            build = functools.partial(
                load, shape=(37, 2 * columns - 16), box=(16, columns), at=at, swizzle=swizzle
            )
            yield f"tma_load_2d/swizzle{swizzle}_{place}", build
    for kind, columns in (("bf16", 32), ("f32", 16)):
        for fill in ("zeros", "nan"):
            yield (
                f"tma_load_2d/{kind}_{fill}",
                functools.partial(
                    load,
                    shape=(20, columns + columns // 4),
                    box=(16, columns),
                    at=(10, columns // 2),
                    kind=kind,
                    fill=fill,
                    swizzle=64,
                ),
            )
    ranks: dict[int, tuple[Position, Position, Position]] = {
        1: ((300,), (128,), (-16,)),
        3: ((5, 6, 48), (2, 4, 32), (4, -1, 16)),
        4: ((3, 4, 5, 32), (2, 3, 4, 16), (-1, 2, 3, 24)),
        5: ((3, 2, 4, 5, 32), (2, 2, 3, 4, 16), (2, -1, 2, -2, -8)),
    }
    for rank, (shape, box, at) in ranks.items():
        yield (
            f"tma_load_{rank}d/across_edges",
            functools.partial(load, shape=shape, box=box, at=at, kind="int32"),
        )
    yield (
        "tma_load_4d/bf16_swizzle128",
        functools.partial(
            load, shape=(3, 8, 4, 64), box=(1, 8, 2, 64), at=(1, 0, 3, 0), kind="bf16", swizzle=128
        ),
    )
    yield (
        "tma_load_2d/every_second_row",
        functools.partial(
            load, shape=(64, 64), box=(32, 64), at=(7, 16), element_strides=(2, 1), swizzle=64
        ),
    )
    yield (
        "tma_load_2d/largest_box",
        functools.partial(load, shape=(256, 128), box=(256, 128), at=(0, 0), swizzle=128),
    )
    for entry in ("tma_load_2d_hints", "tma_load_2d_announced_late"):
        build = functools.partial(
            load, shape=(40, 256), box=(32, 128), at=(4, 64), swizzle=128, entry=entry
        )
        yield entry, build
    for entry in ("tma_multicast_2d", "tma_multicast_2d_hint"):
        yield entry, functools.partial(multicast, entry=entry)


def stores() -> NamedBuilders:
    for swizzle in SWIZZLES:
        columns = swizzle or 64
        positions = {"inside": (3, 0), "before": (-5, -columns // 2), "beyond": (30, columns)}
        for place, at in positions.items():
            yield (
                f"tma_store_2d/swizzle{swizzle}_{place}",
                functools.partial(
                    store, shape=(37, 2 * columns - 16), box=(16, columns), at=at, swizzle=swizzle
                ),
            )
    ranks: dict[int, tuple[Position, Position, Position]] = {
        1: ((300,), (128,), (200,)),
        3: ((5, 6, 48), (2, 4, 32), (4, -1, 32)),
        4: ((3, 4, 5, 32), (2, 3, 4, 16), (-1, 2, 3, 24)),
        5: ((3, 2, 4, 5, 32), (2, 2, 3, 4, 16), (2, -1, 2, -2, -8)),
    }
    for rank, (shape, box, at) in ranks.items():
        yield (
            f"tma_store_{rank}d/across_edges",
            functools.partial(store, shape=shape, box=box, at=at, kind="int32"),
        )
    yield (
        "tma_store_2d_hint",
        functools.partial(
            store, shape=(40, 64), box=(32, 32), at=(4, 32), kind="bf16", entry="tma_store_2d_hint"
        ),
    )
    yield "tma_store_groups", store_groups
    for kind in ("f32", "bf16", "int32"):
        yield f"tma_reduce_add_2d/{kind}", functools.partial(reduce_add, kind=kind)


def bulk() -> NamedBuilders:
    for entry in ("bulk_copy", "bulk_copy_hints"):
        for size in (16, 4096, 16384):
            yield f"{entry}/{size}", functools.partial(bulk_copy, entry=entry, size=size)
    yield "bulk_after_stores", bulk_after_stores
    for kind in ("f32", "bf16"):
        yield f"bulk_add_{kind}", functools.partial(bulk_add, kind=kind)
    for blocks in (2, 4):
        yield f"bulk_multicast/{blocks}", functools.partial(bulk_multicast, blocks=blocks)
        yield f"bulk_ring/{blocks}", functools.partial(bulk_ring, blocks=blocks)
    for rounds in (1, 5):
        yield f"bulk_multicast_rounds/{rounds}", functools.partial(multicast_rounds, rounds=rounds)
        yield f"copy_async_gather/{rounds}", functools.partial(copy_async_gather, rounds=rounds)


# Arrays ------------------------------------------------------------------------------------------


def random_bits(random: np.random.Generator, shape: Position, kind: str) -> np.ndarray:
    """Any numbers of the kind; floats are finite."""
    dtype, array_kind, _ = ELEMENTS[kind]
    if kind == "f32":
        return random.standard_normal(shape).astype(np.float32)
    if array_kind:
        return numerics.FORMATS[array_kind].encode(random.standard_normal(shape))
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def small_integers(random: np.random.Generator, shape: Position, kind: str) -> np.ndarray:
    """Integers whose sums are exact in every kind, in any order."""
    values = random.integers(-8, 9, shape)
    dtype, array_kind, _ = ELEMENTS[kind]
    return numerics.FORMATS[array_kind].encode(values) if array_kind else values.astype(dtype)


def pitched(random: np.random.Generator, shape: Position, kind: str) -> tuple[np.ndarray, Position]:
    """An array with more columns than the map shall know, and the map's window: rows keep a pitch
    of 16 bytes, and whatever a copy reads or writes too far is seen."""
    dtype = np.dtype(ELEMENTS[kind][0])
    unit = 16 // dtype.itemsize
    columns = math.ceil(shape[-1] / unit) * unit + unit
    return random_bits(random, (*shape[:-1], columns), kind), shape


def scalars(at: Position, nbytes: int) -> list[np.int32]:
    """Coordinates as kernels take them, innermost first, and the bytes of the box."""
    return [*map(np.int32, reversed(at)), np.int32(nbytes)]


# Loads -------------------------------------------------------------------------------------------


def load(
    random: np.random.Generator,
    *,
    shape: Position,
    box: Position,
    at: Position,
    kind: str = "uint8",
    swizzle: int = 0,
    fill: str = "zeros",
    element_strides: Position | None = None,
    entry: str | None = None,
) -> Case:
    x, window = pitched(random, shape, kind)
    dtype, array_kind, nan = ELEMENTS[kind]
    strides = element_strides or (1,) * len(box)
    landed = tuple(math.ceil(b / s) for b, s in zip(box, strides, strict=True))
    out = np.empty(math.prod(landed), dtype)

    def expected(inputs: Arrays) -> Arrays:
        known = inputs["x"][tuple(slice(extent) for extent in window)]
        values = layouts.read_box(known, at, box, nan if fill == "nan" else 0, element_strides)
        return {"out": layouts.swizzle(values.copy(), swizzle).view(dtype)}

    return Case(
        source="tma_load",
        launches=(
            Launch(entry or f"tma_load_{len(shape)}d", ("map", *scalars(at, out.nbytes), "out")),
        ),
        arrays={"x": Array(x), "out": Array(out, "out", array_kind)},
        maps={"map": TensorMap("x", box, kind, swizzle, window, element_strides, fill)},
        expected=expected,
    )


def multicast(random: np.random.Generator, *, entry: str) -> Case:
    """Two blocks, each with half of 32 rows, which lie 8 rows beyond the end."""
    x, window = pitched(random, (56, 100), "bf16")
    rows, columns, at = 32, 64, (32, 48)

    def expected(inputs: Arrays) -> Arrays:
        known = inputs["x"][: window[0], : window[1]]
        halves = [
            layouts.swizzle(layouts.read_box(known, (y, at[1]), (16, columns)).copy(), 128)
            for y in (at[0], at[0] + 16)
        ]
        box = np.concatenate(halves).view(np.uint16)
        return {"out": np.stack([box, box])}

    arguments = (
        "map",
        *map(np.int32, reversed(at)),
        np.int32(rows),
        np.int32(rows * columns * 2),
        "out",
    )
    return Case(
        source="tma_load",
        launches=(Launch(entry, arguments, grid=2, cluster=2),),
        arrays={
            "x": Array(x),
            "out": Array(np.empty((2, rows * columns), np.uint16), "out", "bf16"),
        },
        maps={"map": TensorMap("x", (rows // 2, columns), "bf16", 128, window)},
        expected=expected,
    )


# Stores ------------------------------------------------------------------------------------------


def store(
    random: np.random.Generator,
    *,
    shape: Position,
    box: Position,
    at: Position,
    kind: str = "uint8",
    swizzle: int = 0,
    entry: str | None = None,
) -> Case:
    y, window = pitched(random, shape, kind)
    image = random_bits(random, box, kind)

    def expected(inputs: Arrays) -> Arrays:
        result = inputs["y"]
        box_values = layouts.swizzle(inputs["image"], swizzle).view(image.dtype).reshape(box)
        layouts.write_box(result[tuple(slice(extent) for extent in window)], at, box_values)
        return {"y": result}

    return Case(
        source="tma_store",
        launches=(
            Launch(
                entry or f"tma_store_{len(shape)}d", ("map", *scalars(at, image.nbytes), "image")
            ),
        ),
        arrays={"y": Array(y, "inout", ELEMENTS[kind][1]), "image": Array(image)},
        maps={"map": TensorMap("y", box, kind, swizzle, window)},
        expected=expected,
    )


def store_groups(random: np.random.Generator) -> Case:
    rows, columns = 32, 64
    y, window = pitched(random, (4 * rows, 2 * columns), "bf16")
    images = random_bits(random, (4, rows, columns), "bf16")

    def expected(inputs: Arrays) -> Arrays:
        result = inputs["y"]
        boxes = [layouts.swizzle(i.copy(), 128).view(np.uint16) for i in inputs["images"]]
        result[:, 16 : 16 + columns] = np.concatenate(boxes).reshape(-1, columns)
        return {"y": result}

    arguments = ("map", np.int32(16), np.int32(0), np.int32(rows), np.int32(rows * columns * 2))
    return Case(
        source="tma_store",
        launches=(Launch("tma_store_groups", (*arguments, "images")),),
        arrays={"y": Array(y, "inout", "bf16"), "images": Array(images)},
        maps={"map": TensorMap("y", (rows, columns), "bf16", 128, window)},
        expected=expected,
    )


def reduce_add(random: np.random.Generator, *, kind: str) -> Case:
    """Four blocks add to the same box, which is partly outside."""
    blocks, box, at = 4, (16, 32), (10, 16)
    y = small_integers(random, (24, 48), kind)
    images = small_integers(random, (blocks, *box), kind)
    _, array_kind, _ = ELEMENTS[kind]

    def expected(inputs: Arrays) -> Arrays:
        total = decode(inputs["y"], array_kind)
        added = decode(inputs["images"], array_kind).sum(axis=0)
        before = layouts.read_box(total, at, box)
        layouts.write_box(total, at, before + added)
        return {"y": encode(total, kind)}

    return Case(
        source="tma_store",
        launches=(
            Launch(
                "tma_reduce_add_2d",
                ("map", *scalars(at, images[0].nbytes), "images"),
                grid=blocks,
            ),
        ),
        arrays={"y": Array(y, "inout", array_kind), "images": Array(images)},
        maps={"map": TensorMap("y", box, kind)},
        expected=expected,
    )


def decode(values: np.ndarray, array_kind: str) -> np.ndarray:
    return numerics.FORMATS[array_kind].decode(values) if array_kind else values.astype(np.float64)


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    dtype, array_kind, _ = ELEMENTS[kind]
    return numerics.FORMATS[array_kind].encode(values) if array_kind else values.astype(dtype)


# Bulk copies -------------------------------------------------------------------------------------


def bulk_copy(random: np.random.Generator, *, entry: str, size: int) -> Case:
    x = random_bits(random, (size // 4,), "int32")
    return Case(
        source="bulk",
        launches=(Launch(entry, ("x", np.int32(size), "out")),),
        arrays={"x": Array(x), "out": Array(np.empty_like(x), "out")},
        expected=lambda inputs: {"out": inputs["x"]},
    )


def bulk_after_stores(random: np.random.Generator) -> Case:
    x = random_bits(random, (1024,), "int32") // 2
    return Case(
        source="bulk",
        launches=(Launch("bulk_after_stores", ("x", np.int32(x.nbytes), "data", "out")),),
        arrays={
            "x": Array(x),
            "data": Array(np.empty_like(x), "out"),
            "out": Array(np.empty_like(x), "out"),
        },
        expected=lambda inputs: dict.fromkeys(("data", "out"), inputs["x"] + 1),
    )


def bulk_add(random: np.random.Generator, *, kind: str) -> Case:
    blocks = 4
    x = small_integers(random, (blocks, 512), kind)
    _, array_kind, _ = ELEMENTS[kind]

    def expected(inputs: Arrays) -> Arrays:
        total = decode(inputs["x"], array_kind).sum(axis=0) + decode(inputs["y"], array_kind)
        return {"y": encode(total, kind)}

    return Case(
        source="bulk",
        launches=(Launch(f"bulk_add_{kind}", ("x", np.int32(x[0].nbytes), "y"), grid=blocks),),
        arrays={
            "x": Array(x),
            "y": Array(small_integers(random, (512,), kind), "inout", array_kind),
        },
        expected=expected,
    )


def multicast_rounds(random: np.random.Generator, *, rounds: int) -> Case:
    x = random.integers(0, 2**16, (rounds, 128), np.uint32)
    arguments = ("x", np.int32(x[0].nbytes), np.int32(rounds), "out")
    return Case(
        source="bulk",
        launches=(Launch("bulk_multicast_rounds", arguments, grid=2, block=256, cluster=2),),
        arrays={"x": Array(x), "out": Array(np.empty((2, 128), np.uint32), "out")},
        expected=lambda inputs: {"out": np.tile(inputs["x"].sum(axis=0, dtype=np.uint32), (2, 1))},
    )


def copy_async_gather(random: np.random.Generator, *, rounds: int) -> Case:
    x = random.integers(0, 2**32, 1000, np.uint32)
    index = random.integers(0, 1000, (rounds, 64), np.int32)
    return Case(
        source="bulk",
        launches=(Launch("copy_async_gather", ("x", "index", np.int32(rounds), "out"), block=64),),
        arrays={
            "x": Array(x),
            "index": Array(index),
            "out": Array(np.empty((rounds, 64), np.uint32), "out"),
        },
        expected=lambda inputs: {"out": inputs["x"][inputs["index"]][:, ::-1]},
    )


def bulk_multicast(random: np.random.Generator, *, blocks: int) -> Case:
    x = random_bits(random, (1024,), "int32")
    return Case(
        source="bulk",
        launches=(
            Launch("bulk_multicast", ("x", np.int32(x.nbytes), "out"), grid=blocks, cluster=blocks),
        ),
        arrays={"x": Array(x), "out": Array(np.empty((blocks, 1024), np.int32), "out")},
        expected=lambda inputs: {"out": np.stack([inputs["x"]] * blocks)},
    )


def bulk_ring(random: np.random.Generator, *, blocks: int) -> Case:
    x = random_bits(random, (blocks, 1024), "int32")
    return Case(
        source="bulk",
        launches=(Launch("bulk_ring", ("x", np.int32(4096), "out"), grid=blocks, cluster=blocks),),
        arrays={"x": Array(x), "out": Array(np.empty_like(x), "out")},
        expected=lambda inputs: {"out": np.roll(inputs["x"], 1, axis=0)},
    )
