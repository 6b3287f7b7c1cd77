"""What a launch did, as a profiler would count it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

_MOST_LINES = 10


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel, and what it did over all warps of the launch.

    Attributes:
        file, line: in the source, or "" and the line of the PTX.
        text: the instruction without its operands.
        pipe: where it goes, told from its name; what ptxas makes of it may differ.
        warps, threads: how often warps, and threads, ran it.
        waits: how often lanes had to wait at it for others.
        shared_wavefronts, ideal_wavefronts: passes over the 32 banks of shared memory that its
            requests took, and how few would do for as many bytes. More are bank conflicts.
        global_requests, global_sectors: requests of warps to global memory, and the 32-byte
            sectors that these touched.
    """

    file: str
    line: int
    text: str
    pipe: str
    warps: int
    threads: int
    waits: int
    shared_wavefronts: int
    ideal_wavefronts: int
    global_requests: int
    global_sectors: int


@dataclass(frozen=True)
class Copies:
    """Bulk copies of one direction: how many, bytes read (once for all receivers of a multicast)
    and bytes written."""

    count: int
    bytes: int
    delivered: int


class Counters:
    """Counts of one launch. `print(counters)` shows a summary; nothing here is a time."""

    def __init__(self, kernel: str, record: Any) -> None:
        self.kernel = kernel
        self._record = record

    @cached_property
    def instructions(self) -> list[Instruction]:
        """Every instruction of the kernel, in the order of the PTX."""
        return [Instruction(*row) for row in self._record.instructions()]

    @cached_property
    def warps(self) -> list[dict[str, int]]:
        """For each warp of a block: pipe -> instructions, over all blocks of the grid."""
        return self._record.warps()

    @cached_property
    def copies(self) -> dict[str, Copies]:
        """Bulk copies "to_shared", "to_global", "shared_to_shared" and "reduce"."""
        return {name: Copies(*values) for name, values in self._record.copies().items()}

    @property
    def pipes(self) -> dict[str, int]:
        """pipe -> instructions of all warps."""
        totals: dict[str, int] = {}
        for of_warp in self.warps:
            for pipe, count in of_warp.items():
                totals[pipe] = totals.get(pipe, 0) + count
        return totals

    @property
    def lines(self) -> dict[tuple[str, int], tuple[int, int]]:
        """(file, line) -> instructions that warps, and threads, ran there.

        Code that was inlined counts under its own line. Lines of which nothing ran are there, with
        zeros.
        """
        totals: dict[tuple[str, int], tuple[int, int]] = {}
        for instruction in self.instructions:
            if not instruction.file:
                continue
            place = instruction.file, instruction.line
            warps, threads = totals.get(place, (0, 0))
            totals[place] = warps + instruction.warps, threads + instruction.threads
        return totals

    @property
    def products(self) -> int:
        """Multiplications that the tensor cores did, one for each product of two elements."""
        return sum(
            i.warps * _products_of(i.text) // 4 for i in self.instructions if "mma_async" in i.text
        )

    def __str__(self) -> str:
        return "\n".join([self.kernel, *self._totals(), *self._roles(), *self._worst()])

    def _totals(self) -> list[str]:
        used = {pipe: count for pipe, count in self.pipes.items() if count}
        by_count = sorted(used.items(), key=lambda item: -item[1])
        text = ", ".join(f"{count:,} {pipe}" for pipe, count in by_count)
        lines = [f"  warp instructions: {sum(used.values()):,} ({text})"]
        if self.products:
            lines.append(f"  tensor cores: {self.products:,} multiply-adds")
        for direction, copies in self.copies.items():
            if copies.count:
                lines.append(
                    f"  bulk copies {direction.replace('_', ' ')}: {copies.count:,}, "
                    f"{copies.bytes:,} bytes read, {copies.delivered:,} written"
                )
        wavefronts = sum(i.shared_wavefronts for i in self.instructions)
        ideal = sum(i.ideal_wavefronts for i in self.instructions)
        if ideal:
            lines.append(f"  shared memory: {wavefronts:,} wavefronts, ideal {ideal:,}")
        requests = sum(i.global_requests for i in self.instructions)
        sectors = sum(i.global_sectors for i in self.instructions)
        if requests:
            lines.append(
                f"  global memory: {requests:,} requests, {sectors / requests:.1f} sectors each"
            )
        return lines

    def _roles(self) -> list[str]:
        """Warps that did the same together."""
        lines = []
        first = 0
        for index in range(1, len(self.warps) + 1):
            if index < len(self.warps) and self.warps[index] == self.warps[first]:
                continue
            name = f"warp {first}" if index == first + 1 else f"warps {first} to {index - 1}"
            used = ", ".join(f"{n:,} {pipe}" for pipe, n in self.warps[first].items() if n)
            lines.append(f"  {name}, each: {used or 'nothing'}")
            first = index
        return lines

    def _worst(self) -> list[str]:
        def places(title: str, cost: Any, show: Any) -> list[str]:
            worst = sorted((i for i in self.instructions if cost(i) > 0), key=lambda i: -cost(i))
            return [title] * bool(worst) + [
                f"    {i.file}:{i.line} {i.text}: {show(i)}" for i in worst[:_MOST_LINES]
            ]

        return [
            *places(
                "  bank conflicts:",
                lambda i: i.shared_wavefronts - i.ideal_wavefronts,
                lambda i: f"{i.shared_wavefronts:,} wavefronts, ideal {i.ideal_wavefronts:,}",
            ),
            *places("  waits:", lambda i: i.waits, lambda i: f"{i.waits:,}"),
        ]


def _products_of(text: str) -> int:
    """Of a wgmma.mma_async for a warpgroup: m64nNkK."""
    shape = next(part for part in text.split(".") if part.startswith("m64n"))
    columns, depth = shape.removeprefix("m64n").split("k")
    return 64 * int(columns) * int(depth)
