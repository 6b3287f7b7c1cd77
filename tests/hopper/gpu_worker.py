"""Cases on a GPU, in a process that may be lost.

A kernel that waits for ever, or touches what it must not, ends its process's use of the GPU. The
worker runs in a child, with a time for each case; after such a case the next gets a new child.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from tests.hopper import compiler
from tests.hopper.case import Arrays, run
from tests.hopper.cases import make_case
from tests.hopper.gpu import DriverError, GpuDevice

# The first case of a child waits for the driver's start and the compiler.
SECONDS = 60


class CaseFailed(Exception):
    """A case gave no result: one sentence says why."""


class GpuWorker:
    """library: another libcuda, for tests."""

    def __init__(self, library: str = "libcuda.so.1", seconds: float = SECONDS) -> None:
        self._library = library
        self._seconds = seconds
        self._child: Any = None
        self._connection: Connection | None = None

    def run(self, name: str, seed: int | None = None) -> Arrays:
        """The results of a case. Raises CaseFailed."""
        if self._connection is None:
            self._start()
        assert self._connection is not None
        self._connection.send((name, seed))
        if not self._connection.poll(self._seconds):
            self.close()
            raise CaseFailed(f"{name} did not end within {self._seconds} s")
        try:
            results, failure = self._connection.recv()
        except EOFError:
            self.close()
            raise CaseFailed(f"{name} ended the process that ran it") from None
        if failure is not None:
            self.close()
            raise CaseFailed(f"{name}: {failure}")
        return results

    def describe(self) -> dict[str, Any]:
        """The GPU and its driver."""
        device = GpuDevice(library=self._library)
        return {"device": device.name, "driver": device.driver_version}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, self._library), daemon=True)
        self._child.start()
        theirs.close()

    def close(self) -> None:
        """Ends the child, whatever it does."""
        if self._connection is not None:
            self._connection.close()
            self._child.kill()
            self._child.join()
            self._connection = None


def _serve(connection: Connection, library: str) -> None:
    device = None
    modules: dict[str, Any] = {}
    while True:
        try:
            name, seed = connection.recv()
        except EOFError:
            return
        try:
            device = device or GpuDevice(library=library)
            case = make_case(name, seed)
            if case.source not in modules:
                image = compiler.compile_kernels(case.source).cubin
                modules[case.source] = device.load_cubin(image)
            results = run(device, modules[case.source], case)
            device.free()
            connection.send((results, None))
        except (DriverError, compiler.CompilerMissing, RuntimeError) as error:
            connection.send((None, f"{type(error).__name__}: {error}"))
