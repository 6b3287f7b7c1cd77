"""The planted bugs, by the files of kernels."""

from __future__ import annotations

import numpy as np

from tests.emulator.planted.pairs import ints, out, pair, simple, source_path, words, zeros
from tests.hopper import layouts, numerics
from tests.hopper.case import Array, Case, Launch, TensorMap

# Shared memory -----------------------------------------------------------------------------------


def in_shared(name, kinds, expected, *, inputs, block, **options):
    make = simple("shared_memory", name, expected, inputs=inputs, block=block, **options)
    pair("shared_memory", name, kinds, make)


def same(x: np.ndarray) -> np.ndarray:
    return x


def backwards(x: np.ndarray) -> np.ndarray:
    return x[..., ::-1].copy()


def bins(x: np.ndarray) -> np.ndarray:
    return np.bincount(x & 15, minlength=16).astype(np.int32)


in_shared("race_in_warp", "race", backwards, inputs=(32,), block=32)
in_shared("race_between_warps", "race uninitialised", backwards, inputs=(128,), block=128)
in_shared(
    "buffer_reused",
    "race",
    lambda x: np.roll(x.reshape(3, 128).sum(0, dtype=np.int32), -37),
    inputs=(384,),
    block=128,
    result=(128,),
)
in_shared("two_writers", "race", lambda x: np.full(64, x[0]), inputs=(64,), block=64)
in_shared("histogram", "race", bins, inputs=(64,), block=64, result=(16,))
in_shared(
    "sum_read_early",
    "race",
    lambda x: np.full(64, x.sum(dtype=np.int32)),
    inputs=(64,),
    block=64,
)
in_shared(
    "barrier_of_too_few",
    "race",
    lambda x: np.tile(x, 2),
    inputs=(32,),
    block=128,
    result=(64,),
)
in_shared(
    "other_barrier",
    "race",
    lambda x: x[:32] + x[32:],
    inputs=(64,),
    block=64,
    result=(32,),
)
in_shared("arrives_too_early", "race", same, inputs=(64,), block=128)
in_shared("one_arrival_less", "race", same, inputs=(64,), block=128)
in_shared("relaxed_arrival", "race", same, inputs=(64,), block=128)
in_shared("one_lane_waits", "race", backwards, inputs=(32,), block=64)
in_shared(
    "wrong_parity",
    "race deadlock",
    lambda x: x.reshape(3, 32)[:, ::-1].reshape(-1),
    inputs=(96,),
    block=64,
)
in_shared("shared_uninitialised", "uninitialised", backwards, inputs=(64,), block=64)
in_shared("half_words_uninitialised", "uninitialised", same, inputs=(32,), block=32)
in_shared("shared_out_of_bounds", "out_of_bounds", same, inputs=(64,), block=64, shared_bytes=256)
in_shared(
    "misaligned",
    "misaligned",
    lambda x: np.tile(x.reshape(8, 4).sum(1, dtype=np.int32), 4),
    inputs=(32,),
    block=32,
)


# Global memory -----------------------------------------------------------------------------------


def flag_pair(name, *, mark="", block=64, reads=lambda x: np.roll(x, -40)):
    def make(random, suffix):
        return Case(
            source=source_path("global_memory"),
            launches=(Launch(name + suffix, ("in", "data", "flag", "out"), grid=2, block=block),),
            arrays={
                "in": Array(ints(random, block)),
                "data": out(block),
                "flag": zeros(1),
                "out": out(block),
            },
            expected=lambda arrays: {"data": arrays["in"], "out": reads(arrays["in"])},
        )

    pair("global_memory", name, "race", make, mark=mark)


for _name in (
    "relaxed_store",
    "relaxed_load",
    "store_of_block",
    "load_of_block",
    "no_barrier_before_flag",
):
    flag_pair(_name, mark="pass")
flag_pair("plain_flag")
flag_pair("no_thread_fence", block=32, reads=backwards)
flag_pair("fence_of_block", block=32, reads=backwards)
flag_pair("fence_of_reading_block", block=32, reads=backwards)


def scratch_pair(name, block):
    def make(random, suffix):
        return Case(
            source=source_path("global_memory"),
            launches=(Launch(name + suffix, ("in", "data", "out"), block=block),),
            arrays={"in": Array(ints(random, block)), "data": out(block), "out": out(block)},
            expected=lambda a: {"data": 2 * a["in"], "out": 2 * a["in"][::-1]},
        )

    pair("global_memory", name, "race uninitialised", make)


scratch_pair("scratch_between_warps", 128)
scratch_pair("scratch_in_warp", 32)


def in_global(name, kinds, expected, *, inputs, block, **options):
    make = simple("global_memory", name, expected, inputs=inputs, block=block, **options)
    pair("global_memory", name, kinds, make)


in_global("rows_overlap", "race", same, inputs=(128,), block=64, grid=2)
in_global(
    "last_block",
    "race",
    lambda x: x.reshape(3, 64).sum(0, dtype=np.int32),
    inputs=(192,),
    block=64,
    grid=3,
    result=(64,),
    extra={"parts": zeros(192, dtype=np.int32), "counter": zeros(1)},
    arguments=("in", "parts", "counter", "out"),
)


def lock_pair(name):
    def make(random, suffix):
        return Case(
            source=source_path("global_memory"),
            launches=(Launch(name + suffix, ("lock", "counter"), grid=4, block=32),),
            arrays={"lock": zeros(1), "counter": Array(np.zeros(1, np.uint32), "inout")},
            expected=lambda _: {"counter": np.array([4], np.uint32)},
        )

    pair("global_memory", name, "race", make)


lock_pair("lock")
lock_pair("lock_of_block")


def additions(random, suffix):
    return Case(
        source=source_path("global_memory"),
        launches=(Launch("plain_additions" + suffix, ("in", "sums"), grid=3, block=32),),
        arrays={
            "in": Array(ints(random, 96)),
            "sums": Array(np.zeros(32, np.int32), "inout"),
        },
        expected=lambda a: {"sums": a["in"].reshape(3, 32).sum(0, dtype=np.int32)},
    )


pair("global_memory", "plain_additions", "race", additions)


def dependent(random, suffix):
    return Case(
        source=source_path("global_memory"),
        launches=(
            Launch("first_grid", ("in", "data"), grid=4, block=64),
            Launch("no_grid_wait" + suffix, ("data", "out"), grid=4, block=64, dependent=True),
        ),
        arrays={"in": Array(ints(random, 256)), "data": out(256), "out": out(256)},
        expected=lambda a: {"data": 3 * a["in"], "out": 3 * a["in"][::-1] + 1},
    )


pair("global_memory", "no_grid_wait", "race uninitialised", dependent)
in_global("out_uninitialised", "uninitialised", same, inputs=(64,), block=64)
in_global(
    "no_guard",
    "out_of_bounds",
    lambda x: x + 1,
    inputs=(100,),
    block=64,
    grid=2,
    arguments=("in", np.int32(100), "out"),
)
in_global(
    "before_the_array",
    "out_of_bounds",
    lambda x: np.concatenate([[0], x[:-1]]).astype(np.int32),
    inputs=(64,),
    block=64,
)
in_global("writes_input", "read_only", lambda x: x + 1, inputs=(64,), block=64)
in_global("register_uninitialised", "uninitialised", same, inputs=(64,), block=64)


def tickets(random, suffix):
    return Case(
        source=source_path("global_memory"),
        launches=(
            Launch(
                "waits_for_later_block" + suffix, ("tickets", "done", "out"), grid=100, block=32
            ),
        ),
        arrays={
            "tickets": zeros(1),
            "done": zeros(100),
            "out": out(100, dtype=np.uint32),
        },
        expected=lambda _: {"out": np.arange(100, dtype=np.uint32)},
    )


pair("global_memory", "waits_for_later_block", "deadlock", tickets, num_sms=1)


# Copies ------------------------------------------------------------------------------------------


def in_copies(name, kinds, expected=same, *, inputs=(256,), block=32, mark="", **options):
    make = simple("copies", name, expected, inputs=inputs, block=block, words_of=words, **options)
    pair("copies", name, kinds, make, mark=mark)


def box_of_words(array: str) -> TensorMap:
    return TensorMap(array, (8, 32), "int32")


def with_map(name, kinds, *, array, arguments, extra=None):
    def make(random, suffix):
        values = words(random, 8, 32)
        arrays = {"in": Array(values), **(extra or {}), "out": out(8, 32, dtype=np.uint32)}
        return Case(
            source=source_path("copies"),
            launches=(Launch(name + suffix, arguments, block=32),),
            arrays=arrays,
            maps={"map": box_of_words(array)},
            expected=lambda a: {"out": a["in"]},
        )

    pair("copies", name, kinds, make)


in_copies("no_fence_before_bulk_store", "missing_fence")
with_map(
    "no_fence_before_tma_store",
    "missing_fence",
    array="out",
    arguments=("in", "map"),
)
in_copies("fence_too_early", "missing_fence")
in_copies("no_barrier_before_store", "race uninitialised", block=64)
in_copies(
    "no_fence_before_load",
    "missing_fence",
    extra={"data": zeros(256)},
    arguments=("in", "data", "out"),
)
with_map(
    "no_tensor_map_fence",
    "missing_fence",
    array="in",
    arguments=("map", "memory", "out"),
    extra={"memory": zeros(48)},
)
in_copies("load_not_awaited", "race uninitialised")
in_copies("one_thread_waits", "race uninitialised", block=64)
in_copies("announces_too_few", "deadlock")
in_copies("announces_too_many", "deadlock")
in_copies("announces_one_of_two", "race uninitialised", inputs=(512,))
in_copies("too_many_arrivals", "invalid deadlock")
in_copies("init_not_fenced", "missing_fence")
in_copies("init_not_awaited", "race invalid", block=64)
in_copies("never_made", "invalid")
for _name in ("refills_unasked", "empties_too_early", "parity_of_consumer", "one_arrival"):
    _tiles = {"inputs": (5 * 256,), "arguments": ("in", np.int32(5), "out")}
    in_copies(_name, "race uninitialised invalid", block=128, mark="pipeline", **_tiles)
for _name in (
    "overwrites_source",
    "waits_for_one_less",
    "never_commits",
    "others_overwrite_source",
):
    in_copies(
        _name,
        "race",
        inputs=(4 * 256,),
        arguments=("in", np.int32(4), "out"),
        mark="stores",
    )


def announced(random, suffix):
    return Case(
        source=source_path("copies"),
        launches=(
            Launch("announces_unwritten" + suffix, ("in", "data", "flag", "out"), grid=2, block=32),
        ),
        arrays={
            "in": Array(words(random, 256)),
            "data": out(256, dtype=np.uint32),
            "flag": zeros(1),
            "out": out(256, dtype=np.uint32),
        },
        expected=lambda a: {"data": a["in"], "out": a["in"]},
    )


pair("copies", "announces_unwritten", "race uninitialised", announced)
in_copies("exits_with_store", "in_flight")
in_copies("exits_with_load", "in_flight", lambda x: x[:32], result=(32,))
in_copies("stores_uninitialised", "uninitialised")
in_copies("load_out_of_bounds", "out_of_bounds")
for _name, _kinds in (("box_misaligned", "misaligned"), ("rank_differs", "invalid")):
    with_map(_name, _kinds, array="in", arguments=("map", "out"))
in_copies("size_misaligned", "misaligned invalid")


# Clusters and barriers ---------------------------------------------------------------------------


def swapped(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, 2, 64)[:, ::-1, ::-1].reshape(-1)


def in_clusters(name, kinds, expected=same, *, mark="", inputs=(64,), block=64, **options):
    make = simple("clusters", name, expected, inputs=inputs, block=block, **options)
    pair("clusters", name, kinds, make, mark=mark)


for _name, _kinds in (
    ("peer_unordered", "race uninitialised in_flight"),
    ("peer_relaxed", "race"),
    ("peer_exits", "in_flight race"),
):
    in_clusters(
        _name,
        _kinds,
        swapped,
        mark="read_peer",
        inputs=(256,),
        words_of=words,
        grid=4,
        cluster=2,
    )
in_clusters(
    "peer_not_started",
    "invalid race in_flight",
    swapped,
    inputs=(256,),
    words_of=words,
    grid=4,
    cluster=2,
)
for _name in ("wait_of_block", "arrives_at_peer_too_early"):
    in_clusters(
        _name,
        "race uninitialised",
        lambda x: np.repeat(x[::-1], 32),
        inputs=(2,),
        result=(64,),
        block=32,
        words_of=words,
        grid=2,
        cluster=2,
    )
in_clusters(
    "peer_not_ready",
    "race invalid",
    lambda x: np.ones(64, np.uint32),
    words_of=words,
    arguments=("out",),
    block=32,
    grid=2,
    cluster=2,
)
in_clusters(
    "multicast",
    "race",
    lambda x: np.tile(x, 2),
    inputs=(4 * 64,),
    result=(8 * 64,),
    words_of=words,
    arguments=("in", np.int32(4), "out"),
    grid=2,
    cluster=2,
)
in_clusters("divergent_barrier", "diverged", backwards)
in_clusters("lanes_missing", "diverged", lambda x: x[np.arange(64) ^ 1])
in_clusters("waits_for_too_many", "deadlock", inputs=(128,), block=128)
in_clusters("opposite_order", "deadlock")
in_clusters("arrival_missing", "deadlock")
in_clusters("named_barrier_overrun", "invalid", inputs=(128,), block=128)
in_clusters("part_of_a_warp", "invalid")
in_clusters("cluster_wait_alone", "invalid", inputs=(128,), grid=2, cluster=2)
in_clusters("too_many_registers", "deadlock invalid", inputs=(384,), block=384)


# Products ----------------------------------------------------------------------------------------


def product(name, kinds):
    def make(random, suffix):
        form = numerics.FORMATS["bf16"]
        a = form.encode(random.integers(-3, 4, (64, 64)))
        b = form.encode(random.integers(-3, 4, (16, 64)))

        def expected(_):
            d = (form.decode(a) @ form.decode(b).T).astype(np.float32)
            # What the accumulators begin with: value i of a thread is i.
            thread, i = np.meshgrid(np.arange(128), np.arange(8), indexing="ij")
            rows = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
            columns = 8 * (i // 4) + 2 * (thread % 4) + i % 2
            d[rows, columns] += i
            return {"d": d}

        return Case(
            source=source_path("products"),
            launches=(Launch(name + suffix, ("a", "b", "d")),),
            arrays={
                "a": Array(layouts.panels(a, 128)),
                "b": Array(layouts.panels(b, 128)),
                "d": out(64, 16, dtype=np.float32),
            },
            expected=expected,
        )

    pair("products", name, kinds, make, mark="product")


product("no_proxy_fence", "missing_fence")
product("no_register_fence", "missing_fence")
product("no_wait", "in_flight")
product("wait_for_one_less", "in_flight")
product("no_commit", "in_flight")
product("overwrites_b", "race")
product("b_uninitialised", "uninitialised")
product("descriptor_per_warp", "diverged")
product("beyond_shared_memory", "out_of_bounds")
product("scale_per_warp", "diverged")
product("accumulator_between", "in_flight")


def changed_operand(random, suffix):
    form = numerics.FORMATS["bf16"]
    a = form.encode(random.integers(-3, 4, (64, 16)))
    b = form.encode(random.integers(-3, 4, (16, 64)))
    thread, q = np.meshgrid(np.arange(128), np.arange(4), indexing="ij")
    rows = 16 * (thread // 32) + thread % 32 // 4 + 8 * (q % 2)
    columns = 2 * (thread % 4) + 8 * (q // 2)
    fragments = a[rows, columns].astype(np.uint32) | a[rows, columns + 1].astype(np.uint32) << 16
    return Case(
        source=source_path("products"),
        launches=(Launch("operand_changed" + suffix, ("a", "b", "d")),),
        arrays={
            "a": Array(fragments),
            "b": Array(layouts.panels(b, 128)),
            "d": out(64, 16, dtype=np.float32),
        },
        expected=lambda _: {"d": (form.decode(a) @ form.decode(b[:, :16]).T).astype(np.float32)},
    )


pair("products", "operand_changed", "in_flight", changed_operand)


def given_back(random, suffix):
    tiles = 3
    form = numerics.FORMATS["bf16"]
    a = form.encode(random.integers(-3, 4, (64, 64)))
    b = form.encode(random.integers(-3, 4, (tiles, 16, 64)))
    return Case(
        source=source_path("products"),
        launches=(
            Launch("gives_back_too_early" + suffix, ("a", "b", np.int32(tiles), "d"), block=160),
        ),
        arrays={
            "a": Array(layouts.panels(a, 128)),
            "b": Array(np.stack([layouts.panels(tile, 128) for tile in b])),
            "d": out(tiles, 64, 16, dtype=np.float32),
        },
        expected=lambda _: {
            "d": np.stack([form.decode(a) @ form.decode(t).T for t in b]).astype(np.float32)
        },
    )


pair("products", "gives_back_too_early", "race", given_back)
