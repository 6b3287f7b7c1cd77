"""Cases of barriers, clusters, atomics and grids: synchronisation."""

from __future__ import annotations

import functools

import numpy as np

from tests.hopper.case import Array, Arrays, Case, Launch, NamedBuilders


def cases() -> NamedBuilders:
    for count in (1, 5):
        yield f"mbarrier_rounds/{count}", functools.partial(mbarrier_rounds, rounds=count)
        yield f"named_barrier_handoff/{count}", functools.partial(handoff, rounds=count)
    yield "mbarrier_looks", mbarrier_looks
    yield "elect", elect
    for count in (1, 11):
        yield f"setmaxnreg_pipeline/{count}", functools.partial(pipeline, tiles=count)
    for size in (1, 2, 4):
        yield f"cluster_ranks/{size}", functools.partial(cluster_ranks, size=size)
    for size in (2, 4):
        yield f"cluster_load/{size}", functools.partial(cluster_load, size=size)
        yield f"cluster_store/{size}", functools.partial(cluster_store, size=size)
        yield f"cluster_token/{size}", functools.partial(cluster_token, size=size)
    for name in ("gpu", "sys", "gpu_u64", "sys_u64", "fence_gpu", "fence_sys"):
        yield f"flag_{name}", functools.partial(flag, entry=f"flag_{name}")
    yield "grid_barrier", grid_barrier
    yield "last_block", last_block
    yield "lock", lock
    yield "store_then_load", store_then_load
    yield "add_vectors", add_vectors
    yield "copy_once", copy_once
    yield "dependent_launch", dependent_launch


def integers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(-(2**20), 2**20, shape, np.int32)


def words(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(0, 2**32, shape, np.uint32)


def like(values: np.ndarray) -> Array:
    """An output of the same shape and type."""
    return Array(np.empty_like(values), "out")


def zeros(*shape: int, dtype: type = np.uint32) -> Array:
    """Counters and flags of a launch."""
    return Array(np.zeros(shape, dtype), "scratch")


# Within a block ----------------------------------------------------------------------------------


def mbarrier_rounds(random: np.random.Generator, *, rounds: int) -> Case:
    values = integers(random, 128)
    return Case(
        source="barriers",
        launches=(Launch("mbarrier_rounds", ("values", np.int32(rounds), "out")),),
        arrays={"values": Array(values), "out": like(values)},
        expected=lambda inputs: {"out": np.roll(inputs["values"], -rounds) + np.int32(rounds)},
    )


def mbarrier_looks(random: np.random.Generator) -> Case:
    return Case(
        source="barriers",
        launches=(Launch("mbarrier_looks", ("out",), block=32),),
        arrays={"out": Array(np.empty(6, np.uint32), "out")},
        expected=lambda _: {"out": np.array([0, 1, 0, 1, 0, 1], np.uint32)},
    )


def handoff(random: np.random.Generator, *, rounds: int) -> Case:
    values = integers(random, rounds, 64)
    return Case(
        source="barriers",
        launches=(Launch("named_barrier_handoff", ("values", np.int32(rounds), "out")),),
        arrays={"values": Array(values), "out": like(values)},
        expected=lambda inputs: {"out": 2 * inputs["values"][:, ::-1]},
    )


def elect(random: np.random.Generator) -> Case:
    ones = np.ones(4, np.uint32)
    return Case(
        source="barriers",
        launches=(Launch("elect", ("leaders", "same")),),
        arrays={"leaders": like(ones), "same": like(ones)},
        expected=lambda _: {"leaders": ones, "same": ones},
    )


def pipeline(random: np.random.Generator, *, tiles: int) -> Case:
    values = random.integers(-64, 64, (tiles, 256, 4)).astype(np.float32)
    return Case(
        source="barriers",
        launches=(Launch("setmaxnreg_pipeline", ("values", np.int32(tiles), "out"), block=384),),
        arrays={"values": Array(values), "out": Array(np.empty(256, np.float32), "out")},
        expected=lambda inputs: {"out": inputs["values"].sum(axis=(0, 2), dtype=np.float32)},
    )


# Clusters ----------------------------------------------------------------------------------------


def cluster_ranks(random: np.random.Generator, *, size: int) -> Case:
    blocks = 4
    result = np.array([[block % size, size] for block in range(blocks)], np.uint32)
    return Case(
        source="cluster",
        launches=(Launch("cluster_ranks", ("out",), grid=blocks, block=32, cluster=size),),
        arrays={"out": like(result)},
        expected=lambda _: {"out": result},
    )


def from_peer(values: np.ndarray, size: int, step: int) -> np.ndarray:
    """Row by row, of [blocks, ...], that of the block `step` behind in the same cluster."""
    clusters = values.reshape(-1, size, *values.shape[1:])
    return np.roll(clusters, -step, axis=1).reshape(values.shape)


def cluster_load(random: np.random.Generator, *, size: int) -> Case:
    values = words(random, 2 * size, 128)

    def expected(inputs: Arrays) -> Arrays:
        moved = from_peer(inputs["values"], size, 1)
        return {"words": moved, "pieces": moved}

    launch = Launch("cluster_load", ("values", "words", "pieces"), grid=2 * size, cluster=size)
    return Case(
        source="cluster",
        launches=(launch,),
        arrays={"values": Array(values), "words": like(values), "pieces": like(values)},
        expected=expected,
    )


def cluster_store(random: np.random.Generator, *, size: int) -> Case:
    values = words(random, 2 * size, 128)
    names = ("words", "pieces", "counted")
    launch = Launch("cluster_store", ("values", *names), grid=2 * size, cluster=size)
    return Case(
        source="cluster",
        launches=(launch,),
        arrays={"values": Array(values), **{name: like(values) for name in names}},
        expected=lambda inputs: dict.fromkeys(names, from_peer(inputs["values"], size, 1)),
    )


def cluster_token(random: np.random.Generator, *, size: int) -> Case:
    rounds = 3
    token = np.cumsum(np.tile(np.arange(1, size + 1), rounds))
    result = token[-size:].astype(np.uint32)
    return Case(
        source="cluster",
        launches=(
            Launch("cluster_token", (np.int32(rounds), "out"), grid=size, block=32, cluster=size),
        ),
        arrays={"out": like(result)},
        expected=lambda _: {"out": result},
    )


# Blocks of a grid --------------------------------------------------------------------------------


def flag(random: np.random.Generator, *, entry: str) -> Case:
    blocks = 4
    values = integers(random, 128)
    flag_type = np.uint64 if entry.endswith("u64") else np.uint32
    return Case(
        source="grid",
        launches=(Launch(entry, ("values", "data", "flag", "out"), grid=blocks),),
        arrays={
            "values": Array(values),
            "data": zeros(128, dtype=np.int32),
            "flag": zeros(1, dtype=flag_type),
            "out": Array(np.empty((blocks - 1, 128), np.int32), "out"),
        },
        expected=lambda inputs: {"out": np.stack([3 * inputs["values"]] * (blocks - 1))},
    )


def grid_barrier(random: np.random.Generator) -> Case:
    values = integers(random, 6, 128)
    return Case(
        source="grid",
        launches=(Launch("grid_barrier", ("values", "data", "counter", "out"), grid=6),),
        arrays={
            "values": Array(values),
            "data": like(values),
            "counter": zeros(1),
            "out": like(values),
        },
        expected=lambda inputs: {
            "data": inputs["values"] + 1,
            "out": np.roll(inputs["values"], -1, axis=0) + 1,
        },
    )


def last_block(random: np.random.Generator) -> Case:
    values = integers(random, 7, 128)
    return Case(
        source="grid",
        launches=(Launch("last_block", ("values", "parts", "counter", "out"), grid=7),),
        arrays={
            "values": Array(values),
            "parts": like(values),
            "counter": zeros(1),
            "out": Array(np.empty(128, np.int32), "out"),
        },
        expected=lambda inputs: {
            "parts": 2 * inputs["values"],
            "out": 2 * inputs["values"].sum(axis=0, dtype=np.int32),
        },
    )


def lock(random: np.random.Generator) -> Case:
    blocks = 8
    return Case(
        source="grid",
        launches=(Launch("lock", ("lock", "counter", "found"), grid=blocks, block=32),),
        arrays={
            "lock": zeros(1),
            "counter": Array(np.zeros(1, np.uint32), "inout"),
            "found": Array(np.zeros(blocks, np.uint32), "inout"),
        },
        expected=lambda _: {
            "counter": np.array([blocks], np.uint32),
            "found": np.ones(blocks, np.uint32),
        },
    )


def store_then_load(random: np.random.Generator) -> Case:
    return Case(
        source="grid",
        launches=(Launch("store_then_load", ("flags", "missed", "right"), grid=2, block=32),),
        arrays={
            "flags": zeros(2),
            "missed": zeros(2),
            "right": Array(np.empty(1, np.uint32), "out"),
        },
        expected=lambda _: {"right": np.ones(1, np.uint32)},
    )


def add_vectors(random: np.random.Generator) -> Case:
    values = random.integers(-100, 100, (5, 128, 4)).astype(np.float32)
    return Case(
        source="grid",
        launches=(Launch("add_vectors", ("values", "out"), grid=5),),
        arrays={
            "values": Array(values),
            "out": Array(np.zeros((128, 4), np.float32), "inout"),
        },
        expected=lambda inputs: {"out": inputs["values"].sum(axis=0)},
    )


def copy_once(random: np.random.Generator) -> Case:
    values = words(random, 300, 4)
    return Case(
        source="grid",
        launches=(Launch("copy_once", ("values", np.int32(300), "out"), grid=3),),
        arrays={"values": Array(values), "out": like(values)},
        expected=lambda inputs: {"out": inputs["values"]},
    )


def dependent_launch(random: np.random.Generator) -> Case:
    blocks = 6
    n = blocks * 128
    values = random.integers(-1000, 1000, n).astype(np.int32)
    return Case(
        source="grid",
        launches=(
            Launch("primary", ("values", "data"), grid=blocks),
            Launch("secondary", ("data", np.int32(n), "out"), grid=blocks, dependent=True),
        ),
        arrays={"values": Array(values), "data": like(values), "out": like(values)},
        expected=lambda inputs: {
            "data": inputs["values"] ** 2,
            "out": inputs["values"][::-1] ** 2 + 1,
        },
    )
