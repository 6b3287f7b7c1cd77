"""What a planted bug is: a pair of launches that differ in one line of the kernel.

A pair says how its kernels are launched and what the right one computes (as the cases of
tests/hopper do), which kind of fault the planted one must be reported as, and by which mark its
source lines are found.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.hopper.case import Array, Case, Launch

FOLDER = Path(__file__).parent
Make = Callable[[np.random.Generator, str], Case]


@dataclasses.dataclass(frozen=True)
class Pair:
    """make(random, suffix) -> the case of the kernels whose names end so. kinds: of the fault; more
    than one where the bug shows in more than one way. mark: a comment FAULT with this, or with the
    pair's name, stands behind the lines that a report may name, or above them."""

    name: str
    source: str
    make: Make
    kinds: tuple[str, ...]
    mark: str
    num_sms: int = 132

    @property
    def path(self) -> str:
        return str(FOLDER / f"{self.source}.cu")

    def lines(self) -> list[int]:
        found = []
        for number, line in enumerate(Path(self.path).read_text().splitlines(), 1):
            marks = re.search(r"// FAULT (.*)", line)
            if marks and {self.mark, self.name} & set(marks[1].split()):
                # A comment on a line of its own is about the statement below.
                found.append(number + line.lstrip().startswith("//"))
        return found


# Pairs that the emulator gets wrong, and why: these must go on failing, or be taken out here.
MISSED = {
    "register_uninitialised": "registers begin with a pattern, unnoticed",
}
FALSE_ALARM: dict[str, str] = {}

PAIRS: list[Pair] = []


def pair(
    source: str, name: str, kinds: str, make: Make, *, mark: str = "", **options: object
) -> None:
    PAIRS.append(Pair(name, source, make, tuple(kinds.split()), mark or name, **options))


def ints(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(-(2**20), 2**20, shape, np.int32)


def words(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(0, 2**32, shape, np.uint32)


def out(*shape: int, dtype: type = np.int32) -> Array:
    return Array(np.empty(shape, dtype), "out")


def zeros(*shape: int, dtype: type = np.uint32) -> Array:
    return Array(np.zeros(shape, dtype), "scratch")


def source_path(source: str) -> str:
    return str(FOLDER / f"{source}.cu")


def simple(
    source: str,
    name: str,
    expected: Callable[[np.ndarray], np.ndarray],
    *,
    inputs: tuple[int, ...],
    block: int,
    result: tuple[int, ...] | None = None,
    words_of: Callable[..., np.ndarray] = ints,
    extra: dict[str, Array] | None = None,
    arguments: tuple[object, ...] = ("in", "out"),
    **launch: int,
) -> Make:
    """A kernel of `in` and `out` and little else."""

    def make(random: np.random.Generator, suffix: str) -> Case:
        values = words_of(random, *inputs)
        return Case(
            source=source_path(source),
            launches=(Launch(name + suffix, arguments, block=block, **launch),),
            arrays={
                "in": Array(values),
                **(extra or {}),
                "out": out(*(result or inputs), dtype=values.dtype.type),
            },
            expected=lambda arrays: {"out": expected(arrays["in"])},
        )

    return make
