"""Runs the mutants of a manifest, and says what became of them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from abyssal.emulator.mutation.manifest import Manifest
from abyssal.emulator.mutation.operators import Mutant, generate
from abyssal.emulator.mutation.worker import Baseline, Outcome, serve

# A run may take this often what the original took, and so many seconds in any case.
PATIENCE = 30.0
LEAST_LIMIT = 3.0
# The emulator looks at signals only now and then; after so much longer, its process is ended.
GRACE = 20.0
MOST_EQUIVALENT = 0.05


@dataclasses.dataclass
class Report:
    """generated: all mutants. executable: those whose site runs. outcomes: of these, or of a
    sample. faults: launches of the original that the emulator reports, with what it says; they are
    not used."""

    generated: int
    executable: int
    outcomes: list[tuple[Mutant, Outcome]]
    faults: dict[str, str]
    equivalents: dict[str, str]
    seconds: float

    @property
    def executed(self) -> list[tuple[Mutant, Outcome]]:
        return [(m, o) for m, o in self.outcomes if o.how != "rejected"]

    @property
    def killed(self) -> list[tuple[Mutant, Outcome]]:
        return [(m, o) for m, o in self.executed if o.is_killed]

    @property
    def survivors(self) -> list[tuple[Mutant, Outcome]]:
        """Those declared equivalent among them."""
        return [(m, o) for m, o in self.executed if not o.is_killed]

    @property
    def raw(self) -> float:
        return len(self.killed) / max(1, len(self.executed))

    @property
    def adjusted(self) -> float:
        """Without the mutants that are declared equivalent."""
        declared = sum(m.key in self.equivalents for m, _ in self.survivors)
        return len(self.killed) / max(1, len(self.executed) - declared)

    def problems(self) -> list[str]:
        """What is wrong with the manifest or with the emulator, whatever the figures."""
        found = [f"{name}: the original is reported: {what}" for name, what in self.faults.items()]
        if self.generated and not self.executable and not self.faults:
            found.append("no launch runs an instruction that could be spoilt")
        found += [f"{m.key}: the emulator crashed" for m, o in self.outcomes if o.how == "crashed"]
        declared = {m.key: o for m, o in self.executed if m.key in self.equivalents}
        found += [
            f"{key}: declared equivalent, and killed: {o.message}"
            for key, o in declared.items()
            if o.is_killed
        ]
        if len(declared) > MOST_EQUIVALENT * len(self.executed):
            found.append(
                f"{len(declared)} of {len(self.executed)} mutants are declared equivalent: at "
                f"most {MOST_EQUIVALENT:.0%} may be"
            )
        return found

    def by_operator(self) -> dict[str, tuple[int, int]]:
        """operator -> (killed, executed)."""
        executed = Counter(m.operator for m, _ in self.executed)
        killed = Counter(m.operator for m, _ in self.killed)
        return {name: (killed[name], executed[name]) for name in sorted(executed)}

    def __str__(self) -> str:
        lines = [f"{'operator':<12}{'killed':>8}{'executed':>10}{'':>9}"]
        rows = [*self.by_operator().items(), ("all", (len(self.killed), len(self.executed)))]
        for name, (killed, executed) in rows:
            lines.append(f"{name:<12}{killed:>8}{executed:>10}{killed / max(1, executed):>9.1%}")
        first = sum(o.run == 0 for _, o in self.killed)
        hows = Counter(o.how for _, o in self.killed)
        unread = len(self.outcomes) - len(self.executed)
        lines += [
            "",
            f"raw {self.raw:.1%}, adjusted {self.adjusted:.1%}; {first} by the first run alone",
            "killed by: " + ", ".join(f"{how} {n}" for how, n in hows.most_common()),
            f"{self.generated} mutants generated, {self.generated - self.executable} of them at "
            f"places that no launch runs; {len(self.outcomes)} tried, {unread} not read by the "
            f"emulator; {self.seconds:.0f} s",
        ]
        for mutant, _ in self.survivors:
            reason = self.equivalents.get(mutant.key)
            lines.append(f"\n{'equivalent' if reason else 'SURVIVES'}  {mutant.key}")
            lines.append(f"  {mutant.description}")
            lines.append("  at " + ", in ".join(f"{file}:{line}" for file, line in mutant.places))
            if reason:
                lines.append(f"  {reason}")
        lines += [f"\nPROBLEM  {problem}" for problem in self.problems()]
        return "\n".join(lines)


def mutate(
    folder: str | Path,
    *,
    jobs: int = 1,
    seed: int = 0,
    sample: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Mutation testing of a manifest (see Manifest).

    Args:
        folder: of the manifest.
        jobs: processes at once.
        seed: of the inputs and of the sample.
        sample: run only so many mutants, drawn at random.
        progress: told how many are done.
    """
    begin = time.perf_counter()
    manifest = Manifest(folder)
    pool = _Pool(manifest.folder, jobs, seed)
    try:
        names = list(manifest.launches)
        asked = [(name, ("baseline", name), 600.0) for name in names]
        baselines: dict[str, Baseline] = {}
        for name, answer in pool.answers(asked):
            lost = Baseline("the emulator crashed", {}, 0)
            baselines[name] = lost if answer is None else answer
        good = {name: baselines[name] for name in names if not baselines[name].fault}
        generated = 0
        tasks = []
        for stem, text in manifest.texts.items():
            for mutant in generate(text):
                generated += 1
                using = [
                    name
                    for name, baseline in good.items()
                    if baseline.executed.get(stem, set())
                    >= {(mutant.kernel, number) for number in mutant.statements}
                ]
                if using:
                    slowest = max(good[name].seconds for name in using)
                    tasks.append((stem, mutant, using, max(LEAST_LIMIT, PATIENCE * slowest)))
        executable = len(tasks)
        if sample is not None and sample < len(tasks):
            tasks = random.Random(seed).sample(tasks, sample)
        outcomes: dict[int, Outcome] = {}
        asked_mutants = (
            (
                i,
                ("mutant", stem, m.apply(manifest.texts[stem]), using, limit),
                limit * 5 * len(using) + GRACE,
            )
            for i, (stem, m, using, limit) in enumerate(tasks)
        )
        for index, answer in pool.answers(asked_mutants):
            outcomes[index] = answer or Outcome("crashed", 0, "the process ended")
            progress(len(outcomes), len(tasks))
    finally:
        pool.close()
    return Report(
        generated=generated,
        executable=executable,
        outcomes=[(tasks[i][1], outcomes[i]) for i in range(len(tasks))],
        faults={name: b.fault for name, b in baselines.items() if b.fault},
        equivalents=manifest.equivalents,
        seconds=time.perf_counter() - begin,
    )


class _Pool:
    """Processes that each have one task at a time; one that dies or hangs is replaced."""

    def __init__(self, folder: Path, jobs: int, seed: int) -> None:
        self._start = (folder, seed)
        self._jobs = jobs
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[tuple[Any, Connection]] = []

    def answers(self, tasks: Iterable[tuple[Any, Any, float]]) -> Iterator[tuple[Any, Any]]:
        """(key, task, limit in seconds) ... -> (key, answer) ..., as they come; None for a task
        that its process did not survive."""
        source = iter(tasks)
        running: dict[Connection, tuple[Any, Any, float]] = {}
        exhausted = False
        while running or not exhausted:
            while not exhausted and len(running) < self._jobs:
                task = next(source, None)
                if task is None:
                    exhausted = True
                    break
                key, what, limit = task
                process, connection = self._idle.pop() if self._idle else self._new()
                connection.send(what)
                running[connection] = (key, process, time.monotonic() + limit)
            if not running:
                continue
            ready = wait(list(running), timeout=1.0)
            for connection, (key, process, end) in list(running.items()):
                if connection in ready:
                    del running[connection]
                    yield key, self._receive(process, connection)
                elif time.monotonic() > end:
                    process.kill()
                    process.join()
                    del running[connection]
                    yield key, None

    def _receive(self, process: Any, connection: Connection) -> Any:
        try:
            answer = connection.recv()
        except EOFError:
            process.join()
            return None
        self._idle.append((process, connection))
        return answer

    def _new(self) -> tuple[Any, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=serve, args=(there, *self._start), daemon=True)
        process.start()
        there.close()
        return process, here

    def close(self) -> None:
        for process, connection in self._idle:
            connection.send(None)
            process.join()
