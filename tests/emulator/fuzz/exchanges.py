"""Steps of random kernels that access memory or in which threads exchange data.

Each function takes the Program and returns a step: its PTX, and act(state, mask).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.emulator.fuzz.programs import Mask, Program, State

Step = tuple[str, Callable[["State", "Mask"], None]]

LANES = 32
OWN = {"global": "%slot", "shared": "%own_shared", "local": "%own_local"}
REGISTER_BITS = {"h": 16, "r": 32, "d": 64}

# Of a table in global memory: each has words of its own, so that their order does not matter.
REDUCTIONS: list[tuple[str, int, Callable[[int, int], int]]] = [
    ("add.u32", 32, operator.add),
    ("min.u32", 32, min),
    ("max.u32", 32, max),
    ("and.b32", 32, operator.and_),
    ("or.b32", 32, operator.or_),
    ("xor.b32", 32, operator.xor),
    ("add.u64", 64, operator.add),
    ("max.u64", 64, max),
]


def signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> bits - 1 else value


def write(state: State, kind: str, number: int, thread: int, value: int) -> None:
    state.registers[kind][number][thread] = int(value) % (1 << REGISTER_BITS[kind])


# A thread's own memory.


def access(program: Program) -> Step:
    """A load or a store of 1 to 16 bytes; registers may be wider than what is in memory."""
    chance = program.chance
    space = chance.choice(list(OWN))
    size = chance.choice([1, 2, 4, 8])
    count = chance.choice([n for n in (1, 1, 2, 4) if n * size <= 16])
    offset = chance.randrange(32 // (size * count)) * size * count
    kinds = [kind for kind, bits in REGISTER_BITS.items() if bits >= 8 * size]
    kind = chance.choice(kinds)
    numbers = chance.sample(range(len_of(program, kind)), count)
    names = ", ".join(f"%{kind}{n}" for n in numbers)
    vector = "" if count == 1 else f".v{count}"
    values = names if count == 1 else f"{{{names}}}"
    sign = chance.choice("bus")
    place = f"[{OWN[space]}+{offset}]"
    is_load = chance.random() < 0.5
    named = f".{space}" if space != "global" or chance.random() < 0.7 else ""
    if is_load:
        code = f"ld{named}{vector}.{sign}{8 * size} {values}, {place};"
    else:
        code = f"st{named}{vector}.{sign}{8 * size} {place}, {values};"

    def act(state: State, mask: Mask) -> None:
        for thread in np.flatnonzero(mask):
            memory = state.slots[space][thread]
            for i, number in enumerate(numbers):
                part = memory[offset + i * size : offset + (i + 1) * size]
                if is_load:
                    value = int.from_bytes(part.tobytes(), "little")
                    loaded = signed(value, 8 * size) if sign == "s" else value
                    write(state, kind, number, thread, loaded)
                else:
                    bits = int(state.registers[kind][number][thread]) % (1 << 8 * size)
                    part[:] = np.frombuffer(bits.to_bytes(size, "little"), np.uint8)

    return code, act


def len_of(program: Program, kind: str) -> int:
    from tests.emulator.fuzz.programs import COUNTS

    return COUNTS[kind]


# Atomics.


def increment(old: int, most: int) -> int:
    return 0 if old >= most else old + 1


def decrement(old: int, most: int) -> int:
    return most if old == 0 or old > most else old - 1


def atomic(program: Program) -> Step:
    return own_atomic(program) if program.chance.random() < 0.5 else shared_reduction(program)


def own_atomic(program: Program) -> Step:
    """With the old value as its result, on memory that no other thread has."""
    chance = program.chance
    operations: dict[str, Callable[..., int]] = {
        "add.u": operator.add, "min.u": min, "max.u": max, "min.s": min, "max.s": max,
        "and.b": operator.and_, "or.b": operator.or_, "xor.b": operator.xor,
        "exch.b": lambda old, new: new, "cas.b": lambda old, to, new: new if old == to else old,
        "inc.u": increment, "dec.u": decrement,
    }  # fmt: skip
    name = chance.choice(list(operations))
    bits = 32 if name in ("inc.u", "dec.u") else chance.choice([32, 64])
    kind = "r" if bits == 32 else "d"
    space = chance.choice(["global", "shared"])
    offset = chance.randrange(256 // bits) * bits // 8
    into, first, second = (chance.randrange(len_of(program, kind)) for _ in range(3))
    operands = f"%{kind}{first}" + (f", %{kind}{second}" if name == "cas.b" else "")
    order = chance.choice(["", ".relaxed.gpu", ".acq_rel.cta", ".relaxed.sys"])
    code = f"atom{order}.{space}.{name}{bits} %{kind}{into}, [{OWN[space]}+{offset}], {operands};"

    def act(state: State, mask: Mask) -> None:
        for thread in np.flatnonzero(mask):
            part = state.slots[space][thread][offset : offset + bits // 8]
            old = int.from_bytes(part.tobytes(), "little")
            values = [int(state.registers[kind][n][thread]) for n in (first, second)]
            arguments = [old, *values[: 2 if name == "cas.b" else 1]]
            if name.endswith(".s"):
                arguments = [signed(v, bits) for v in arguments]
            new = operations[name](*arguments) % (1 << bits)
            part[:] = np.frombuffer(new.to_bytes(bits // 8, "little"), np.uint8)
            write(state, kind, into, thread, old)

    return code, act


def shared_reduction(program: Program) -> Step:
    """Many threads, one word, and nobody looks before the end."""
    chance = program.chance
    index = chance.randrange(len(REDUCTIONS))
    name, bits, function = REDUCTIONS[index]
    kind = "r" if bits == 32 else "d"
    place, value = chance.randrange(len_of(program, "r")), chance.randrange(len_of(program, kind))
    code = (
        f"and.b32 %sr, %r{place}, 15; mad.wide.u32 %sd, %sr, 8, %table;\n"
        f"red.global.{name} [%sd+{index * 128}], %{kind}{value};"
    )

    def act(state: State, mask: Mask) -> None:
        for thread in np.flatnonzero(mask):
            word = int(state.registers["r"][place][thread]) & 15
            old = int(state.table[index, word])
            new = function(old, int(state.registers[kind][value][thread])) % (1 << bits)
            state.table[index, word] = new

    return code, act


# Among the lanes of a warp.


def warps_of(state: State, mask: Mask) -> list[np.ndarray]:
    """The threads of the mask, warp by warp; blocks have whole warps."""
    threads = np.arange(state.threads)
    groups = [threads[mask & (threads // LANES == w)] for w in range(state.threads // LANES)]
    return [group for group in groups if len(group)]


def among_lanes(program: Program, members: str, is_top: bool) -> Step:
    choices = [vote, match, redux]
    return program.chance.choice([*choices, *[shuffle] * (3 * is_top)])(program, members)


def vote(program: Program, members: str) -> Step:
    chance = program.chance
    name = chance.choice(["all", "any", "uni", "ballot"])
    source = chance.randrange(len_of(program, "p"))
    negated = chance.random() < 0.3
    kind = "r" if name == "ballot" else "p"
    into = chance.randrange(len_of(program, kind))
    result_type = "b32" if name == "ballot" else "pred"
    code = f"vote.sync.{name}.{result_type} %{kind}{into}, {'!' * negated}%p{source}, {members};"

    def act(state: State, mask: Mask) -> None:
        for lanes in warps_of(state, mask):
            values = state.registers["p"][source][lanes] != negated
            results: dict[str, Any] = {
                "all": values.all(),
                "any": values.any(),
                "uni": values.all() or not values.any(),
                "ballot": sum(1 << int(lane) % LANES for lane in lanes[values]),
            }
            state.registers[kind][into][lanes] = results[name]

    return code, act


def match(program: Program, members: str) -> Step:
    chance = program.chance
    kind = chance.choice(["r", "d"])
    bits = REGISTER_BITS[kind]
    source = chance.randrange(len_of(program, kind))
    into, predicate = chance.randrange(len_of(program, "r")), chance.randrange(len_of(program, "p"))
    is_all = chance.random() < 0.5
    # The lowest bits alone, so that some are equal.
    low = f"and.b{bits} %s{kind}, %{kind}{source}, 3;\n"
    results = f"%r{into}|%p{predicate}" if is_all else f"%r{into}"
    code = low + f"match.{'all' if is_all else 'any'}.sync.b{bits} {results}, %s{kind}, {members};"

    def act(state: State, mask: Mask) -> None:
        for lanes in warps_of(state, mask):
            values = state.registers[kind][source][lanes] & TYPE_OF[kind](3)
            everyone = sum(1 << int(lane) % LANES for lane in lanes)
            if is_all:
                same = bool((values == values[0]).all())
                state.registers["r"][into][lanes] = everyone if same else 0
                state.registers["p"][predicate][lanes] = same
                continue
            for lane, value in zip(lanes, values, strict=True):
                equal = lanes[values == value]
                write(state, "r", into, lane, sum(1 << int(x) % LANES for x in equal))

    return code, act


TYPE_OF = {"r": np.uint32, "d": np.uint64}


def redux(program: Program, members: str) -> Step:
    chance = program.chance
    operations: dict[str, Callable[[int, int], int]] = {
        "add.u32": operator.add, "add.s32": operator.add, "min.u32": min, "max.u32": max,
        "min.s32": min, "max.s32": max, "and.b32": operator.and_, "or.b32": operator.or_,
        "xor.b32": operator.xor,
    }  # fmt: skip
    name = chance.choice(list(operations))
    source, into = (chance.randrange(len_of(program, "r")) for _ in range(2))
    code = f"redux.sync.{name} %r{into}, %r{source}, {members};"

    def act(state: State, mask: Mask) -> None:
        for lanes in warps_of(state, mask):
            values = [int(v) for v in state.registers["r"][source][lanes]]
            if ".s" in name:
                values = [signed(v, 32) for v in values]
            state.registers["r"][into][lanes] = reduce(operations[name], values) % (1 << 32)

    return code, act


def shuffle(program: Program, members: str) -> Step:
    """As the pseudo-code of PTX ISA 9.7.9.6, with any segments; all lanes take part."""
    chance = program.chance
    mode = chance.choice(["up", "down", "bfly", "idx"])
    width = chance.choice([1, 2, 4, 8, 16, 32])
    bound = (LANES - width) << 8 | (0 if mode == "up" else 31)
    source, by, into = (chance.randrange(len_of(program, "r")) for _ in range(3))
    predicate = chance.randrange(len_of(program, "p"))
    amount: int | None = chance.randrange(40) if chance.random() < 0.6 else None
    amount_text = f"%r{by}" if amount is None else str(amount)
    has_predicate = chance.random() < 0.7
    result = f"%r{into}|%p{predicate}" if has_predicate else f"%r{into}"
    code = f"shfl.sync.{mode}.b32 {result}, %r{source}, {amount_text}, {bound}, {members};"

    def act(state: State, mask: Mask) -> None:
        values = state.registers["r"][source].copy()
        amounts = state.registers["r"][by].copy()
        for thread in np.flatnonzero(mask):
            lane, b = thread % LANES, (int(amounts[thread]) if amount is None else amount) & 31
            segment, limit = bound >> 8 & 31, bound & 31
            most = (lane & segment) | (limit & ~segment)
            least = lane & segment
            other = {
                "up": lane - b,
                "down": lane + b,
                "bfly": lane ^ b,
                "idx": least | (b & ~segment),
            }[mode]
            inside = other >= most if mode == "up" else other <= most
            chosen = other if inside else lane
            write(state, "r", into, thread, values[thread - lane + chosen])
            if has_predicate:
                state.registers["p"][predicate][thread] = inside

    return code, act


# Through shared memory and barriers.


def through_barrier(program: Program) -> Step:
    return program.chance.choice([exchange, exchange, barrier_reduction])(program)


def exchange(program: Program) -> Step:
    """Each thread writes a word, and reads another thread's."""
    chance = program.chance
    source, into = (chance.randrange(len_of(program, "r")) for _ in range(2))
    factor, shift = chance.choice([1, 5, 7, 11, 13]), chance.randrange(96)
    barrier = f"{chance.choice(['bar.sync', 'barrier.sync', 'barrier.sync.aligned'])} "
    barrier += chance.choice(["0;", f"1, {program.block};", "15;"])
    code = (
        "mad.lo.u32 %st, %tid, 4, %shared;\n"
        f"st.shared.b32 [%st], %r{source};\n{barrier}\n"
        f"mad.lo.u32 %st, %tid, {factor}, {shift}; rem.u32 %st, %st, {program.block};\n"
        f"mad.lo.u32 %st, %st, 4, %shared; ld.shared.b32 %r{into}, [%st];\n{barrier}"
    )

    def act(state: State, mask: Mask) -> None:
        values = state.registers["r"][source].reshape(-1, state.block).copy()
        other = (np.arange(state.block) * factor + shift) % state.block
        state.registers["r"][into][:] = values[:, other].reshape(-1)

    return code, act


def barrier_reduction(program: Program) -> Step:
    chance = program.chance
    name = chance.choice(["popc.u32", "and.pred", "or.pred"])
    source = chance.randrange(len_of(program, "p"))
    kind = "r" if name == "popc.u32" else "p"
    into = chance.randrange(len_of(program, kind))
    code = f"bar.red.{name} %{kind}{into}, 0, %p{source};"

    def act(state: State, mask: Mask) -> None:
        values = state.registers["p"][source].reshape(-1, state.block)
        results = {"popc.u32": values.sum(1), "and.pred": values.all(1), "or.pred": values.any(1)}
        state.registers[kind][into][:] = np.repeat(results[name], state.block)

    return code, act
