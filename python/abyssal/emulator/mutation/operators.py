"""Mutants: every way in which an operator can spoil a synchronisation instruction of a PTX text.

Sites and mutants are generated, by rules alone. What is left out is left out by a rule as well,
because the PTX ISA makes it the same program:

- `griddepcontrol.launch_dependents` is not removed: dependents start when all blocks "issue the
  same instruction or have completed" ("griddepcontrol").
- two instructions are swapped only where that loses an order. An access may always move from
  behind a release to before it, and from before an acquire to behind it: a release orders what
  precedes it, an acquire what follows it ("Release and Acquire Patterns").
- a load through a pointer that no other instruction of the kernel writes through is not swapped
  with anything: it reads the same value anywhere.
- `mbarrier.arrive.expect_tx` is not swapped with a copy that completes on an mbarrier: a phase
  completes when the pending arrivals and the count of transactions, which has a sign, are zero
  ("Phase Completion of the mbarrier object"). It is made relaxed only behind an access in its
  block: else it hands over nothing, since copies release their own data ("cp.async.bulk":
  complete-tx "has .release semantics").
- `fence.proxy.async` is not swapped with a barrier of the whole block: a proxy fence counts where
  it is "along the base causality path" ("Causality Order"), and who leaves the barrier runs it.
- the last `cp.async.bulk.wait_group` of a kernel, with nothing to order behind it, does not become
  `.read`: the end of the grid waits for the writes.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from abyssal.emulator.mutation.ptx_text import Place, Statement, read_statements, replace

SYNCHRONISATION = ("mbarrier", "bar", "barrier", "fence", "membar", "griddepcontrol")
ASYNCHRONOUS = ("cp", "wgmma")
# Loads of these cannot meet a store of another thread.
PRIVATE = {"param", "const", "local", "nc"}
NARROWER = {"sys": "cta", "gpu": "cta", "cluster": "cta"}
_REGISTER = re.compile(r"%?[A-Za-z_$][\w$]*\Z")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A text that differs from the original by one operator at one site.

    key: names it, the same in all versions of the text in which the kernel's instructions of this
    opcode are as many and in the same order. statements: numbers, in the kernel, of those that must
    have run.
    """

    key: str
    operator: str
    kernel: str
    statements: tuple[int, ...]
    edits: tuple[tuple[int, int, str], ...]
    places: tuple[Place, ...]
    description: str

    def apply(self, text: str) -> str:
        return replace(text, list(self.edits))


def generate(text: str) -> list[Mutant]:
    """All mutants of a PTX text, in the order of the text."""
    statements = read_statements(text)
    free = _reads_of_constant_memory(statements)
    mutants = []
    seen: Counter[tuple[str, str]] = Counter()
    begin = {s.kernel: i for i, s in reversed(list(enumerate(statements)))}
    for index, statement in enumerate(statements):
        name = (statement.kernel, statement.opcode)
        seen[name] += 1
        if not is_site(statement) and not is_partner(statement):
            continue
        site = f"{statement.kernel}/{statement.opcode}#{seen[name]}"
        changes = [*_removals(statement), *_weakenings(statement)] if is_site(statement) else []
        for operator, new in changes:
            if not _means_something(operator, statements, index):
                continue
            mutants.append(
                Mutant(
                    key=f"{site}/{operator}",
                    operator=operator.split(":")[0],
                    kernel=statement.kernel,
                    statements=(index - begin[statement.kernel],),
                    edits=((statement.start, statement.end, new),),
                    places=statement.places,
                    description=f"`{_shown(text, statement)}` "
                    + (f"-> `{new}`" if new else "removed"),
                )
            )
        swap = None if index in free else _swap_with_next(text, statements, index, free)
        if swap is not None:
            numbers = tuple(i - begin[statement.kernel] for i in swap.statements)
            mutants.append(dataclasses.replace(swap, key=f"{site}/swap", statements=numbers))
    return mutants


# Classes of instructions ------------------------------------------------------------------------


def is_site(s: Statement) -> bool:
    """Whether an instruction synchronises."""
    family, *rest = s.parts
    if family in SYNCHRONISATION:
        return "inval" not in rest and "launch_dependents" not in rest and "red" not in rest
    if family in ("atom", "red"):
        return True
    if family in ("ld", "st"):
        return bool({"acquire", "release", "relaxed", "volatile"} & set(rest))
    return _is_group_instruction(s) or s.opcode.startswith("wgmma.fence")


def is_partner(s: Statement) -> bool:
    """Whether an instruction is one that a synchronisation instruction could order."""
    if s.parts[0] in ("ld", "st"):
        return not PRIVATE & set(s.parts)
    return s.parts[0] in (*ASYNCHRONOUS, "atom", "red", "ldmatrix", "stmatrix") or is_site(s)


def _is_group_instruction(s: Statement) -> bool:
    groups = {"commit_group", "wait_group", "wait_all"} & set(s.parts)
    return s.parts[0] in ASYNCHRONOUS and (bool(groups) or s.parts[2:3] == ("mbarrier",))


def _is_copy(s: Statement) -> bool:
    """A copy or product that is started here and completes later."""
    if s.parts[0] == "wgmma":
        return s.parts[1] == "mma_async"
    if s.parts[:2] == ("st", "async") or s.parts[:2] == ("red", "async"):
        return True
    return (
        s.parts[0] == "cp"
        and any(o.startswith("[") for o in s.operands)
        and ("mbarrier" not in s.parts)
    )


def _is_access(s: Statement) -> bool:
    """A load or store that orders nothing itself."""
    return s.parts[0] in ("ld", "st", "ldmatrix", "stmatrix", "atom", "red") and not (
        _releases(s) or _acquires(s) or _is_copy(s)
    )


def _releases(s: Statement) -> bool:
    """Whether it orders accesses that precede it."""
    if s.parts[0] == "mbarrier":
        return s.parts[1] in ("arrive", "arrive_drop") and "relaxed" not in s.parts
    if s.parts[0] in ("bar", "barrier"):
        return "wait" not in s.parts and "relaxed" not in s.parts
    if s.parts[0] in ("fence", "membar"):
        return True
    return "release" in s.parts or "acq_rel" in s.parts


def _acquires(s: Statement) -> bool:
    """Whether it orders accesses that follow it."""
    if s.parts[0] == "mbarrier":
        return s.parts[1] in ("try_wait", "test_wait") and "relaxed" not in s.parts
    if s.parts[0] in ("bar", "barrier"):
        return "arrive" not in s.parts
    if s.parts[0] in ("fence", "membar"):
        return "mbarrier_init" not in s.parts
    if s.parts[0] == "griddepcontrol" or "wait_group" in s.parts or "wait_all" in s.parts:
        return True
    return "acquire" in s.parts or "acq_rel" in s.parts


# remove ------------------------------------------------------------------------------------------


def _removals(s: Statement) -> Iterator[tuple[str, str]]:
    """(operator, what stands there instead): a result that lets the program go on."""
    guard = f"{s.guard} " if s.guard else ""
    if s.parts[0] == "mbarrier" and s.parts[1] in ("try_wait", "test_wait"):
        yield "remove", f"{guard}setp.eq.u32 {s.operands[0].split('|')[0]}, 0, 0;"
    elif s.parts[0] == "mbarrier" and len(s.operands) > 1 and s.operands[0].startswith("%"):
        yield "remove", f"{guard}mov.b64 {s.operands[0]}, 0;"
    elif s.parts[0] == "atom":
        # What was there before: as if nobody else had come.
        if _REGISTER.match(s.operands[0]):
            yield "remove", f"{guard}mov.{_bits(s)} {s.operands[0]}, 0;"
    elif s.parts[0] == "ld":
        # Flags are awaited to be set, counters to be large.
        if _REGISTER.match(s.operands[0]):
            yield "remove", f"{guard}mov.{_bits(s)} {s.operands[0]}, -1;"
    elif not (s.parts[0] in ("bar", "barrier") and "red" in s.parts):
        yield "remove", ""


def _bits(s: Statement) -> str:
    return "b" + s.parts[-1].lstrip("busf")


# weaken ------------------------------------------------------------------------------------------


def _weakenings(s: Statement) -> Iterator[tuple[str, str]]:
    yield from _weaker_order(s)
    yield from _narrower_scope(s)
    yield from _other_numbers(s)
    parts = s.parts
    if parts[0] == "bar" and parts[1] == "sync" and len(s.operands) == 2:
        yield "weaken:arrive", _with(s, opcode=s.opcode.replace("sync", "arrive", 1))
    if parts[:2] == ("fence", "sc"):
        yield "weaken:acq_rel", _with(s, opcode=s.opcode.replace("sc", "acq_rel", 1))
    if parts[-2:] == ("proxy", "async"):
        yield "weaken:shared", _with(s, opcode=s.opcode + ".shared::cta")
        yield "weaken:global", _with(s, opcode=s.opcode + ".global")
    if parts[:4] == ("cp", "async", "bulk", "wait_group") and "read" not in parts:
        yield "weaken:read", _with(s, opcode=s.opcode + ".read")


def _weaker_order(s: Statement) -> Iterator[tuple[str, str]]:
    family, parts = s.parts[0], s.parts
    if family == "fence" or (family == "barrier" and "wait" in parts):
        return
    for order in ("acq_rel", "release", "acquire"):
        if order in parts:
            yield f"weaken:{order}", _with(s, opcode=s.opcode.replace(f".{order}", ".relaxed", 1))
    if "acq_rel" in parts:
        yield "weaken:to_release", _with(s, opcode=s.opcode.replace(".acq_rel", ".release", 1))
        yield "weaken:to_acquire", _with(s, opcode=s.opcode.replace(".acq_rel", ".acquire", 1))
    is_said = bool({"release", "acquire", "relaxed"} & set(parts))
    if family == "mbarrier" and parts[1] in ("arrive", "try_wait", "test_wait") and not is_said:
        # What is not said is release, or acquire, of the block.
        before = ".shared" if ".shared" in s.opcode else ".b64"
        new = s.opcode.replace(before, f".relaxed.cta{before}", 1)
        yield "weaken:default", _with(s, opcode=new)
    if (
        family == "barrier"
        and parts[1:3] == ("cluster", "arrive")
        and (not {"release", "relaxed"} & set(parts))
    ):
        yield "weaken:default", _with(s, opcode=s.opcode.replace("arrive", "arrive.relaxed", 1))
    if family in ("ld", "st"):
        for strong in (".relaxed.cta", ".relaxed.cluster", ".relaxed.gpu", ".relaxed.sys"):
            if f"{strong}." in s.opcode:
                yield "weaken:weak", _with(s, opcode=s.opcode.replace(strong, "", 1))
        if "volatile" in parts:
            yield "weaken:weak", _with(s, opcode=s.opcode.replace(".volatile", "", 1))


def _narrower_scope(s: Statement) -> Iterator[tuple[str, str]]:
    if "mbarrier_init" in s.parts:
        return  # has no other scope
    for scope, narrower in NARROWER.items():
        if scope in s.parts[1:] and s.parts[:2] != ("barrier", "cluster"):
            new = re.sub(rf"\.{scope}\b(?!::)", f".{narrower}", s.opcode, count=1)
            yield f"weaken:{scope}", _with(s, opcode=new)
    if s.parts[0] == "membar" and s.parts[1] in ("gl", "sys"):
        yield f"weaken:{s.parts[1]}", _with(s, opcode="membar.cta")
    if s.parts[0] in ("atom", "red") and not {"cta", "cluster", "gpu", "sys"} & set(s.parts):
        # What is not said is relaxed, and the scope of the GPU.
        yield "weaken:default", _with(s, opcode=s.opcode.replace(".", ".relaxed.cta.", 1))


def _other_numbers(s: Statement) -> Iterator[tuple[str, str]]:
    """Counts, bytes and parities that are off by as little as possible."""
    parts, last = s.parts, len(s.operands) - 1
    if parts[0] == "mbarrier":
        if parts[1] in ("try_wait", "test_wait") and "parity" in parts:
            yield "weaken:parity", _with_number(s, 2, "xor.b32", 1)
        elif parts[1] == "expect_tx" or "expect_tx" in parts:
            yield "weaken:more_bytes", _with_number(s, last, "add.u32", 16)
            yield "weaken:fewer_bytes", _with_number(s, last, "add.u32", -16)
        elif parts[1] == "init" or s.operands[last][0] != "[":
            yield "weaken:more_arrivals", _with_number(s, last, "add.u32", 1)
            yield "weaken:fewer_arrivals", _with_number(s, last, "add.u32", -1)
    of_block = parts[0] in ("bar", "barrier") and not {"cluster", "warp"} & set(parts)
    if of_block and len(s.operands) == 2:
        yield "weaken:more_threads", _with_number(s, 1, "add.u32", 32)
        yield "weaken:fewer_threads", _with_number(s, 1, "add.u32", -32)
    if "wait_group" in parts and s.operands[0].isdigit():
        yield "weaken:more_groups", _with(s, operands=(str(int(s.operands[0]) + 1),))


def _with(s: Statement, opcode: str = "", operands: tuple[str, ...] = ()) -> str:
    guard = f"{s.guard} " if s.guard else ""
    return f"{guard}{opcode or s.opcode} {', '.join(operands or s.operands)}".rstrip() + ";"


def _with_number(s: Statement, index: int, operation: str, by: int) -> str:
    """The statement with another number for an operand: a register of its own holds it."""
    changed = (*s.operands[:index], "%mutated", *s.operands[index + 1 :])
    return (
        f"{{ .reg .b32 %mutated; {operation} %mutated, {s.operands[index]}, {by}; "
        f"{_with(s, operands=changed)} }}"
    )


# swap --------------------------------------------------------------------------------------------


def _means_something(operator: str, statements: list[Statement], index: int) -> bool:
    """Whether a weaker instruction could be another program, by what stands around it."""
    s = statements[index]
    if operator == "weaken:release" and "expect_tx" in s.parts:
        before = statements[:index]
        return any(
            _is_access(t) and is_partner(t)
            for t in before
            if t.block == s.block and t.kernel == s.kernel
        )
    if operator == "weaken:read":
        return any(t.kernel == s.kernel and is_partner(t) for t in statements[index + 1 :])
    return True


def _reads_of_constant_memory(statements: list[Statement]) -> set[int]:
    """Loads from global memory that nothing in the kernel writes.

    An address comes from the parameters that it is computed from; memory that is reached by one
    parameter is not that of another.
    """
    origins: _Origins = defaultdict(set)
    changed = True
    while changed:  # a register may be written after it is read, in a loop
        changed = False
        for s in statements:
            found = _origins_of_results(s, origins)
            for name in _results(s) if found else ():
                changed |= not found <= origins[s.kernel, name]
                origins[s.kernel, name] |= found
    written: dict[str, set[str]] = defaultdict(set)
    for s in statements:
        spaces = [part for part in s.parts if part.startswith(("global", "shared"))]
        if s.parts[0] in ("st", "red", "atom", "cp", "multimem") and spaces[:1] in ([], ["global"]):
            # Without an origin, it could go anywhere.
            written[s.kernel] |= _origins_of_address(s, origins) or {""}
    constant = set()
    for index, s in enumerate(statements):
        if s.parts[0] == "ld" and "global" in s.parts and not _acquires(s):
            read = _origins_of_address(s, origins)
            if read and not (read | {""}) & written[s.kernel]:
                constant.add(index)
    return constant


# Of a register: the parameters that it is computed from, by their names in the text.
_Origins = defaultdict[tuple[str, tuple[str, int]], set[str]]


def _origins_of_results(s: Statement, origins: _Origins) -> set[str]:
    if s.parts[:2] == ("ld", "param"):
        return {s.operands[1]} if "64" in s.parts[-1] else set()
    # What is loaded is no pointer that we know.
    return set() if s.parts[0] in ("ld", "atom") else _origins_of(s, s.names, origins)


def _origins_of_address(s: Statement, origins: _Origins) -> set[str]:
    addresses = " ".join(operand for operand in s.operands if operand.startswith("["))
    named = set(re.findall(r"%?[A-Za-z_$][\w$]*", addresses))
    return _origins_of(s, frozenset(n for n in s.names if n[0] in named), origins)


def _origins_of(s: Statement, names: frozenset[tuple[str, int]], origins: _Origins) -> set[str]:
    found = {name for name, scope in names if scope == 0 and "_param_" in name}
    return found.union(*(origins.get((s.kernel, name), ()) for name in names))


def _swap_with_next(
    text: str, statements: list[Statement], index: int, free: set[int]
) -> Mutant | None:
    """`index` and the next memory, asynchronous or synchronisation instruction of its block."""
    first = statements[index]
    for other in range(index + 1, len(statements)):
        second = statements[other]
        if second.block != first.block or second.kernel != first.kernel:
            return None
        if is_partner(second) and other not in free:
            break
    else:
        return None
    if not (is_site(first) or is_site(second)) or not _loses_order(
        first, second, statements, other
    ):
        return None
    between = statements[index + 1 : other]
    if _may_move(first, [*between, second], second.scopes):
        moved, to = first, second.end
    elif _may_move(second, [first, *between], first.scopes):
        moved, to = second, first.start
    else:
        return None
    shown = f"`{_shown(text, first)}` swapped with `{_shown(text, second)}`"
    return Mutant(
        key="",
        operator="swap",
        kernel=first.kernel,
        statements=(index, other),
        edits=(
            (moved.start, moved.end, ""),
            (to, to, f" {text[moved.start : moved.end]} "),
        ),
        places=(first if is_site(first) else second).places,
        description=shown,
    )


def _loses_order(
    first: Statement, second: Statement, statements: list[Statement], other: int
) -> bool:
    """Whether the second instruction's standing behind the first one means something."""
    a, b = _role(first), _role(second)
    pair = (a, b)
    if "commit" in pair or "group wait" in pair:
        # Groups are of one thread, or warpgroup, and of one kind.
        if pair == ("group wait", "access") or pair == ("group wait", "synchronisation"):
            return True
        # What moves into a group that is closed earlier is waited for earlier.
        same = first.parts[0] == second.parts[0] and pair != ("commit", "copy")
        return same and {a, b} <= {"commit", "group wait", "copy"}
    if "register fence" in pair:
        if pair == ("register fence", "copy"):
            return second.parts[0] == "wgmma"
        return pair == ("access", "register fence") and _feeds_wgmma(first, statements, other)
    if a == "copy":
        return False  # its end is not ordered by what follows its start
    if b == "copy":
        counts = first.parts[0] == "mbarrier" and "expect_tx" in first.parts
        return not (counts and second.parts[0] in ("cp", "st")) and a == "synchronisation"
    if a == "access":
        return _releases(second)
    if b == "access":
        return _acquires(first)
    if second.parts[:2] == ("bar", "sync") and len(second.operands) == 1:
        return first.parts[:3] != ("fence", "proxy", "async")
    if "mbarrier_init" in first.parts and "expect_tx" in second.parts:
        return False  # both are of this thread
    # Two fences, or two initialisations, have no access between them.
    if {first.parts[0], second.parts[0]} <= {"fence", "membar"}:
        return False
    return first.parts[:2] != ("mbarrier", "init") or second.parts[:2] != ("mbarrier", "init")


def _role(s: Statement) -> str:
    if s.opcode.startswith("wgmma.fence"):
        return "register fence"
    if _is_copy(s):
        return "copy"
    if "commit_group" in s.parts:
        return "commit"
    if "wait_group" in s.parts or "wait_all" in s.parts:
        return "group wait"
    return "access" if _is_access(s) else "synchronisation"


def _feeds_wgmma(load: Statement, statements: list[Statement], after: int) -> bool:
    """Whether what is loaded is an operand of a product later in the block."""
    results = _results(load)
    for later in statements[after:]:
        if later.block != load.block or later.kernel != load.kernel:
            return False
        if later.parts[0] == "wgmma" and results & later.names:
            return True
    return False


def _may_move(s: Statement, past: list[Statement], scopes: tuple[int, ...]) -> bool:
    """Whether no register keeps `s` from standing beyond these, in other `{ }`."""
    if any(scope not in scopes and scope > 1 for _, scope in s.names):
        return False
    written = _results(s)
    return not any(written & t.names or _results(t) & s.names for t in past)


def _results(s: Statement) -> frozenset[tuple[str, int]]:
    """Registers that it writes. Of wgmma: none, since only its wait makes them count."""
    if s.parts[0] in ("st", "red", "bar", "barrier", "fence", "membar", "stmatrix", "cp", "wgmma"):
        return frozenset()
    if not s.operands or s.operands[0].startswith("["):
        return frozenset()
    first = set(re.findall(r"%?[A-Za-z_$][\w$]*", s.operands[0]))
    return frozenset(n for n in s.names if n[0] in first)


def _shown(text: str, s: Statement) -> str:
    return " ".join(text[s.start : s.end].split())
