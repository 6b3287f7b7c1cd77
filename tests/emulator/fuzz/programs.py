"""Random kernels, and what they compute by a plain interpretation.

A program is a list of steps. Each step writes its PTX and computes, over NumPy arrays of all
threads, what the threads of a mask have in their registers afterwards. Threads branch and loop on
their own data; where they exchange data, all that a mask names take part, so that the result does
not depend on their order. Nothing of the emulator is used here.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

import numpy as np

from tests.emulator.fuzz import exchanges
from tests.emulator.fuzz.instructions import Form, forms
from tests.emulator.lane_kernels import HEAD

COUNTS = {"h": 6, "r": 10, "d": 6, "p": 5}
TYPES = {"h": np.uint16, "r": np.uint32, "d": np.uint64, "p": np.bool_}
BITS = {"h": 16, "r": 32, "d": 64}
SLOT_BYTES = 32  # memory of a thread in each space
TABLE_WORDS = 16  # of each operation of `red`
MOST_STEPS = 45

Mask = np.ndarray
Operand = tuple[str, Callable[["State"], np.ndarray]]


class State:
    """Registers as [number, thread]; memory as bytes."""

    def __init__(self, threads: int, block: int, rng: np.random.Generator) -> None:
        self.threads, self.block = threads, block
        self.registers = {
            kind: np.zeros((count, threads), TYPES[kind]) for kind, count in COUNTS.items()
        }
        self.slots = {
            space: np.zeros((threads, SLOT_BYTES), np.uint8)
            for space in ("global", "shared", "local")
        }
        self.slots["global"][:] = rng.integers(0, 256, self.slots["global"].shape)
        self.table = np.zeros((len(exchanges.REDUCTIONS), TABLE_WORDS), np.uint64)


class Program:
    """text: the kernel `k`. Its parameters: initial registers, slots, table, final registers.

    only: instead of random steps, these forms one after another.
    """

    def __init__(self, seed: int, only: Sequence[Form] = ()) -> None:
        self.chance = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.block = self.chance.choice([32, 64, 96])
        self.grid = self.chance.choice([1, 2])
        self.threads = self.block * self.grid
        self.left = self.chance.randrange(5, MOST_STEPS)
        self.num_names = 0
        self.depth = 0
        self.masks: list[str] = []
        if only:
            computed = [self.compute(form) for form in only]
            code, self.steps = "\n".join(c for c, _ in computed), [act for _, act in computed]
        else:
            code, self.steps = self.body("-1", True, MOST_STEPS)
        self.text = kernel_text(code, self.masks)

    # Choices.

    def operand(self, type_name: str) -> Operand:
        """A register or a constant."""
        kind = kind_of(type_name)
        if kind == "p" or self.chance.random() < 0.8:
            number = self.chance.randrange(COUNTS[kind])
            return f"%{kind}{number}", lambda state: state.registers[kind][number]
        if type_name in ("f32", "f16", "bf16", "f16x2", "bf16x2", "u8", "s8"):
            if type_name != "f32":
                return self.register(kind)
            code = interesting_float(self.chance)
            return f"0f{code:08X}", constant(code, np.uint32)
        value = interesting_integer(self.chance, BITS[kind])
        written = value - (1 << BITS[kind]) if value >> BITS[kind] - 1 and kind == "r" else value
        return str(written), constant(value, TYPES[kind])

    def register(self, kind: str) -> Operand:
        number = self.chance.randrange(COUNTS[kind])
        return f"%{kind}{number}", lambda state: state.registers[kind][number]

    def name(self, prefix: str) -> str:
        self.num_names += 1
        return f"{prefix}{self.num_names}"

    # Steps: each method returns (PTX, act), and act(state, mask) computes it.

    def body(self, members: str | None, is_top: bool, most: int) -> tuple[str, list]:
        """members: the register with the mask of the lanes that run this together; None where
        nobody knows it."""
        lines, acts = [], []
        for _ in range(self.chance.randrange(1, most + 1)):
            if self.left <= 0:
                break
            self.left -= 1
            code, act = self.step(members, is_top)
            lines.append(code)
            acts.append(act)
        return "\n".join(lines), acts

    def step(self, members: str | None, is_top: bool) -> tuple[str, Callable]:
        kind = self.chance.random()
        if kind < 0.62:
            return self.compute()
        if kind < 0.72:
            return exchanges.access(self)
        if kind < 0.76:
            return exchanges.atomic(self)
        if kind < 0.84 and members is not None:
            return exchanges.among_lanes(self, members, is_top)
        if kind < 0.90 and is_top:
            return exchanges.through_barrier(self)
        if self.depth < 3:
            compound = self.chance.choice([self.branch, self.branch, self.loop, self.switch])
            self.depth += 1
            result = compound(members)
            self.depth -= 1
            return result
        return self.compute()

    def compute(self, form: Form | None = None) -> tuple[str, Callable]:
        form = form or self.chance.choice(self.chance.choice(families()))
        sources = [self.operand(t) for t in form.sources]
        chosen: list[tuple[str, int]] = []
        for t in form.results:
            free = [(kind_of(t), i) for i in range(COUNTS[kind_of(t)])]
            chosen.append(self.chance.choice([c for c in free if c not in chosen]))
        texts = {f"a{i}": text for i, (text, _) in enumerate(sources)}
        texts |= {f"d{i}": f"%{kind}{n}" for i, (kind, n) in enumerate(chosen)}
        code = form.text.format(**texts)
        if self.chance.random() < 0.2:
            guard, read = self.register("p")
            negated = self.chance.random() < 0.5
            prefix = f"@{'!' * negated}{guard} "
            code = "; ".join(prefix + part.strip() for part in code.split(";") if part.strip())
            code += ";"
        else:
            read, negated = None, False

        def act(state: State, mask: Mask) -> None:
            if read is not None:
                mask = mask & (read(state) != negated)
            values = [(read_source(state), t) for (_, read_source), t in
                      zip(sources, form.sources, strict=True)]  # fmt: skip
            values = [(np.broadcast_to(v, state.threads).copy(), t) for v, t in values]
            for thread in np.flatnonzero(mask):
                results = form.function(*(typed(v[thread], t) for v, t in values))
                if not isinstance(results, tuple):
                    results = (results,)
                for (kind, n), t, result in zip(chosen, form.results, results, strict=True):
                    state.registers[kind][n][thread] = in_register(result, t)

        return code, act

    def branch(self, members: str | None) -> tuple[str, Callable]:
        condition, read = self.register("p")
        has_else = self.chance.random() < 0.6
        otherwise, end = self.name("$ELSE"), self.name("$END")
        code, inner = "", [None, None]
        if members is not None and self.chance.random() < 0.8:
            inner = [self.name("%m"), self.name("%m")]
            self.masks += inner
            code = (
                f"vote.sync.ballot.b32 {inner[0]}, {condition}, {members};\n"
                f"vote.sync.ballot.b32 {inner[1]}, !{condition}, {members};\n"
            )
        then_code, then = self.body(inner[0], False, 6)
        else_code, rest = self.body(inner[1], False, 6) if has_else else ("", [])
        code += f"@!{condition} bra {otherwise};\n{then_code}\n"
        code += f"bra.uni {end};\n{otherwise}:\n{else_code}\n{end}:"

        def act(state: State, mask: Mask) -> None:
            taken = read(state).copy()
            for step in then:
                step(state, mask & taken)
            for step in rest:
                step(state, mask & ~taken)

        return code, act

    def loop(self, members: str | None) -> tuple[str, Callable]:
        """Each thread's count of rounds is its own: 1 to 4."""
        source, read = self.register("r")
        top, count, most = self.name("$LOOP"), self.name("%m"), self.name("%m")
        self.masks += [count, most]
        condition = f"%l{self.depth}"
        lanes, vote = None, ""
        code = f"and.b32 {most}, {source}, 3; mov.b32 {count}, 0;\n"
        if members is not None and self.chance.random() < 0.8:
            lanes = self.name("%m")
            self.masks.append(lanes)
            code += f"mov.b32 {lanes}, {members};\n"
            vote = f"vote.sync.ballot.b32 {lanes}, {condition}, {lanes};\n"
        inner, steps = self.body(lanes, False, 5)
        code += f"{top}:\n{inner}\nsetp.lt.u32 {condition}, {count}, {most};\n{vote}"
        code += f"add.u32 {count}, {count}, 1;\n@{condition} bra {top};"

        def act(state: State, mask: Mask) -> None:
            rounds = (read(state) & 3).copy()
            for number in range(4):
                for step in steps:
                    step(state, mask & (number <= rounds))

        return code, act

    def switch(self, members: str | None) -> tuple[str, Callable]:
        source, read = self.register("r")
        table, end = self.name("$TABLE"), self.name("$END")
        cases = [self.name("$CASE") for _ in range(self.chance.randrange(1, 5))]
        lines = [f"{table}: .branchtargets {', '.join(cases)};"]
        lines += [f"rem.u32 %sr, {source}, {len(cases)}; brx.idx %sr, {table};"]
        bodies = []
        for case in cases:
            code, steps = self.body(None, False, 3)
            bodies.append(steps)
            lines += [f"{case}:", code]
            falls = self.chance.random() < 0.3
            bodies[-1] = (steps, falls)
            if not falls:
                lines.append(f"bra {end};")
        lines.append(f"{end}:")

        def act(state: State, mask: Mask) -> None:
            chosen = read(state) % np.uint32(len(bodies))
            falling = np.zeros_like(mask)
            for number, (steps, falls) in enumerate(bodies):
                running = mask & ((chosen == number) | falling)
                for step in steps:
                    step(state, running)
                falling = running if falls else np.zeros_like(mask)

        return "\n".join(lines), act

    # Running it.

    def initial(self) -> State:
        state = State(self.threads, self.block, self.rng)
        for kind, registers in state.registers.items():
            for row in registers:
                row[:] = [self.initial_value(kind) for _ in range(self.threads)]
        return state

    def initial_value(self, kind: str) -> int:
        if kind == "p":
            return self.chance.random() < 0.5
        if kind == "r" and self.chance.random() < 0.5:
            return interesting_float(self.chance)
        return interesting_integer(self.chance, BITS[kind])

    def interpret(self, state: State) -> None:
        for step in self.steps:
            step(state, np.ones(self.threads, np.bool_))


@functools.cache
def families() -> list[list[Form]]:
    """Forms by their first word, each of which is as likely as the next."""
    found: dict[str, list[Form]] = {}
    for form in forms():
        found.setdefault(form.text.split(".")[0], []).append(form)
    return list(found.values())


def kind_of(type_name: str) -> str:
    if type_name == "pred":
        return "p"
    if type_name.endswith("x2"):
        return "r"
    bits = 16 if type_name == "bf16" else int(type_name[1:])
    return {8: "h", 16: "h", 32: "r", 64: "d"}[bits]


def typed(value: np.generic, type_name: str) -> int | bool:
    """A register as an instruction of this type sees it."""
    if type_name == "pred":
        return bool(value)
    if type_name[0] not in "us":
        return int(value)
    bits = int(type_name[1:])
    result = int(value) % (1 << bits)
    return result - (1 << bits) if type_name[0] == "s" and result >> bits - 1 else result


def in_register(value: int | bool, type_name: str) -> int | bool:
    """A result as its register holds it; one of 8 bits is extended to 16."""
    if type_name == "pred":
        return bool(value)
    kind = kind_of(type_name)
    if type_name in ("u8", "s8"):
        value = typed(np.int64(int(value) % 256), type_name)
    return int(value) % (1 << BITS[kind])


def constant(value: int, dtype: type) -> Callable[[State], np.ndarray]:
    return lambda state: np.full(state.threads, value, dtype)


def interesting_integer(chance: random.Random, bits: int) -> int:
    top = 1 << bits
    return chance.choice(
        [
            chance.randrange(top),
            chance.randrange(top),
            chance.randrange(40),
            (top - chance.randrange(1, 40)) % top,
            chance.choice([0, 1, top - 1, top // 2, top // 2 - 1, top // 2 + 1]),
            1 << chance.randrange(bits),
        ]
    )


def interesting_float(chance: random.Random) -> int:
    """A code of f32: any, near 1, an integer, subnormal, or special."""
    sign = chance.randrange(2) << 31
    return sign | chance.choice(
        [
            chance.randrange(1 << 31),
            (127 + chance.randrange(-3, 4)) << 23 | chance.randrange(1 << 23),
            (127 + chance.randrange(-3, 4)) << 23 | chance.randrange(1 << 3) << 20,
            (127 + chance.randrange(8, 70)) << 23 | chance.randrange(1 << 23),
            (127 - chance.randrange(10, 30)) << 23 | chance.randrange(1 << 23),
            chance.randrange(1 << 23),
            chance.choice([0, 0x7F800000, 0x7FC00000, 0x3F800000, 0x3F000000, 0x7F7FFFFF, 1]),
        ]
    )


def kernel_text(code: str, masks: list[str]) -> str:
    declared = "".join(f".reg .b32 {name};\n" for name in masks)
    types = {"h": "b16", "r": "b32", "d": "b64", "p": "pred"}
    registers = " ".join(f".reg .{types[k]} %{k}<{n}>;" for k, n in COUNTS.items())
    lines = [
        f"{HEAD}.visible .entry k(.param .u64 first, .param .u64 slots, .param .u64 tables,",
        "    .param .u64 last)\n{",
        registers,
        ".reg .b16 %sh; .reg .b32 %sr, %st, %su, %i, %own_shared, %shared, %tid;",
        ".reg .b64 %sd, %first, %last, %slot, %table, %own_local; .reg .pred %l<8>, %sp;",
        declared,
        f".shared .align 16 .b8 slots_shared[{SLOT_BYTES * 96}];",
        ".shared .align 16 .b8 exchange[512];",
        f".local .align 16 .b8 slots_local[{SLOT_BYTES}];",
        "mov.u32 %tid, %tid.x; mov.u32 %sr, %ntid.x; mov.u32 %st, %ctaid.x;",
        "mad.lo.u32 %i, %sr, %st, %tid;",
        "mov.u32 %own_shared, slots_shared;",
        f"mad.lo.u32 %own_shared, %tid, {SLOT_BYTES}, %own_shared; mov.u32 %shared, exchange;",
        "mov.u64 %own_local, slots_local; ld.param.u64 %table, [tables];",
        f"ld.param.u64 %slot, [slots]; mad.wide.u32 %slot, %i, {SLOT_BYTES}, %slot;",
    ]
    for half in (0, 16):
        lines.append(f"st.shared.v4.b32 [%own_shared+{half}], {{0, 0, 0, 0}};")
        lines.append(f"st.local.v4.b32 [%own_local+{half}], {{0, 0, 0, 0}};")
    total = sum(COUNTS.values())
    for parameter in ("first", "last"):
        lines.append(f"ld.param.u64 %{parameter}, [{parameter}];")
        lines.append(f"mad.wide.u32 %{parameter}, %i, {8 * total}, %{parameter};")
    lines += registers_and_memory("ld", "first")
    lines += [code]
    lines += registers_and_memory("st", "last")
    return "\n".join([*lines, "ret;", "}"]) + "\n"


def registers_and_memory(access: str, base: str) -> list[str]:
    """All registers from 8 bytes each, or to them."""
    lines, offset = [], 0
    for kind, count in COUNTS.items():
        for number in range(count):
            place, register = f"[%{base}+{offset}]", f"%{kind}{number}"
            offset += 8
            if kind == "p" and access == "ld":
                lines.append(f"ld.global.b32 %sr, {place}; setp.ne.u32 {register}, %sr, 0;")
            elif kind == "p":
                lines.append(f"selp.b32 %sr, 1, 0, {register}; st.global.b32 {place}, %sr;")
            elif access == "ld":
                lines.append(f"ld.global.b{BITS[kind]} {register}, {place};")
            else:
                lines.append(f"st.global.b{BITS[kind]} {place}, {register};")
    return lines
