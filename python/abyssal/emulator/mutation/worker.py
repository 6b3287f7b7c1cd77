"""A process that runs mutants: the emulator may crash or hang on what nobody meant to write."""

from __future__ import annotations

import dataclasses
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from abyssal.emulator.device import EmulatorError
from abyssal.emulator.mutation.manifest import SCHEDULES, Load, Manifest, Results, Statements


@dataclasses.dataclass(frozen=True)
class Baseline:
    """How a launch of the original went. fault: what the emulator reported, or which schedule
    gave other results; "" for neither. executed: by the stem of the PTX."""

    fault: str
    executed: dict[str, Statements]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """how: the kind of fault, "result" or "time" for a mutant that was killed; "rejected" for PTX
    that the emulator does not read; "crashed"; "" for a survivor. run: the number of the schedule
    that showed it."""

    how: str
    run: int = 0
    message: str = ""

    @property
    def is_killed(self) -> bool:
        return self.how not in ("", "rejected", "crashed")


class Interrupted(Exception):
    """A run took longer than its limit."""


def serve(connection: Connection, folder: Path, seed: int) -> None:
    """Answers ("baseline", launch) and ("mutant", stem, text, launches, limit) until None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    worker = Worker(Manifest(folder), seed)
    while (task := connection.recv()) is not None:
        kind, *arguments = task
        connection.send(getattr(worker, kind)(*arguments))


class Worker:
    def __init__(self, manifest: Manifest, seed: int) -> None:
        self.manifest = manifest
        self.seed = seed
        self._expected: dict[str, Results] = {}

    def baseline(self, launch: str) -> Baseline:
        load = self._load(self.manifest.texts)
        expected = None
        fault = ""
        begin = time.perf_counter()
        for policy, seed in SCHEDULES:
            try:
                results = self._run(load, launch, policy, seed)
            except EmulatorError as error:
                fault = f"{policy}, seed {seed}: {error.kind}: {error}"
                break
            expected = expected or results
            if not self.manifest.same(launch, results, expected):
                fault = f"{policy}, seed {seed}: results differ from those of {SCHEDULES[0]}"
                break
        seconds = (time.perf_counter() - begin) / len(SCHEDULES)
        return Baseline(fault, load.executed(), seconds)

    def mutant(self, stem: str, text: str, launches: list[str], limit: float) -> Outcome:
        """Runs every launch under the first schedule, then under the second, ..."""
        expected = {launch: self._expected_of(launch) for launch in launches}
        load = self._load({**self.manifest.texts, stem: text})
        signal.signal(signal.SIGALRM, _interrupt)
        for number, (policy, seed) in enumerate(SCHEDULES):
            for launch in launches:
                signal.setitimer(signal.ITIMER_REAL, limit)
                try:
                    results = self._run(load, launch, policy, seed)
                except Interrupted:
                    return Outcome("time", number, f"no end after {limit:.1f} s")
                except EmulatorError as error:
                    how = "rejected" if error.kind == "unsupported" else error.kind
                    return Outcome(how, number, str(error))
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                if not self.manifest.same(launch, results, expected[launch]):
                    return Outcome("result", number, f"{launch}: other results")
        return Outcome("")

    def _expected_of(self, launch: str) -> Results:
        if launch not in self._expected:
            load = self._load(self.manifest.texts)
            self._expected[launch] = self._run(load, launch, *SCHEDULES[0])
        return self._expected[launch]

    def _load(self, texts: dict[str, str]) -> Load:
        return Load(texts, self.manifest.num_sms)

    def _run(self, load: Load, launch: str, policy: str, seed: int) -> Results:
        load.schedule(policy, seed)
        return self.manifest.launches[launch](load, np.random.default_rng(self.seed))


def _interrupt(*_: Any) -> None:
    raise Interrupted
