"""What a microkernel's case is: a launch in words, and the result that it must have.

A case names its arrays with their roles, its tensor maps, its launches in order, and computes in
NumPy what must come out. `run` plays it on any device that has the few methods of `Device`: the
emulator and a GPU run the same cases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from tests.hopper import numerics

Arrays = dict[str, np.ndarray]

RESULTS = ("out", "inout")


@dataclasses.dataclass(frozen=True)
class Array:
    """Memory of a kernel.

    role: "in", "out" (starts uninitialised: only shape and type count), "inout", or "scratch":
    written, but what it ends as is nobody's business. kind: a name in numerics.FORMATS where the
    type does not say what the bits are.
    """

    values: np.ndarray
    role: str = "in"
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A tensor map over an array, C order: the outermost dimension first, as in NumPy.

    box: elements in each dimension. swizzle: 0, 32, 64 or 128. window: the extents of the part
    (from the origin) that the map knows, default all. kind: "uint8", "int32", "bf16", "f16",
    "f32". fill: "zeros" or "nan", what is read out of bounds.
    """

    array: str
    box: tuple[int, ...]
    kind: str
    swizzle: int = 0
    window: tuple[int, ...] | None = None
    element_strides: tuple[int, ...] | None = None
    fill: str = "zeros"


@dataclasses.dataclass(frozen=True)
class Launch:
    """arguments: names of arrays and maps, and NumPy scalars. cluster: blocks along x. dependent:
    launched with programmatic stream serialisation behind the launch before it."""

    entry: str
    arguments: tuple[Any, ...]
    grid: int = 1
    block: int = 128
    cluster: int = 1
    shared_bytes: int = 0
    dependent: bool = False


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """|result - expected| <= max(absolute, relative * |expected|), elementwise."""

    relative: float = 0.0
    absolute: float = 0.0


@dataclasses.dataclass(frozen=True)
class Case:
    """source: a file of tests/hopper/kernels. expected: from the inputs ("in" and "inout" as they
    are before) to every "out" and "inout" array. tolerance: None for equal bits; NaN equals NaN."""

    source: str
    launches: tuple[Launch, ...]
    arrays: dict[str, Array]
    expected: Callable[[Arrays], Arrays]
    maps: dict[str, TensorMap] = dataclasses.field(default_factory=dict)
    tolerance: Tolerance | None = None


Builder = Callable[[np.random.Generator], Case]
NamedBuilders = Iterator[tuple[str, Builder]]


class Device(Protocol):
    """What `run` needs of a device."""

    def load_ptx(self, text: str) -> Any:
        """A module: .launch(name, grid, block, args, *, cluster, shared_bytes, dependent)."""

    def queue(self) -> AbstractContextManager[None]:
        """Around launches that follow each other without a wait by the host."""

    def upload(self, values: np.ndarray, role: str) -> Any:
        """A buffer with these values; of an "out" buffer only the size. "in", "out" or "inout"."""

    def download(self, buffer: Any, like: np.ndarray) -> np.ndarray:
        """What a buffer holds, after all launches."""

    def tensor_map(
        self,
        buffer: Any,
        box: tuple[int, ...],
        swizzle: int,
        *,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        kind: str,
        element_strides: tuple[int, ...],
        fill: str,
    ) -> Any:
        """An argument for a kernel. strides: bytes, outermost first; the last is the element's."""


def run(device: Device, module: Any, case: Case) -> Arrays:
    """Plays a case; returns its "out" and "inout" arrays. module: of device.load_ptx."""
    buffers = {
        name: device.upload(array.values, "inout" if array.role == "scratch" else array.role)
        for name, array in case.arrays.items()
    }
    values: dict[str, Any] = dict(buffers)
    for name, wanted in case.maps.items():
        array = case.arrays[wanted.array].values
        values[name] = device.tensor_map(
            buffers[wanted.array],
            wanted.box,
            wanted.swizzle,
            shape=wanted.window or array.shape,
            strides=array.strides,
            kind=wanted.kind,
            element_strides=wanted.element_strides or (1,) * array.ndim,
            fill=wanted.fill,
        )
    with device.queue():
        for launch in case.launches:
            arguments = [values[a] if isinstance(a, str) else a for a in launch.arguments]
            module.launch(
                launch.entry,
                launch.grid,
                launch.block,
                arguments,
                cluster=launch.cluster,
                shared_bytes=launch.shared_bytes,
                dependent=launch.dependent,
            )
    return {
        name: device.download(buffers[name], array.values)
        for name, array in case.arrays.items()
        if array.role in RESULTS
    }


def expected_of(case: Case) -> Arrays:
    """What a case must give, with the shapes and types of its arrays checked."""
    inputs = {n: a.values.copy() for n, a in case.arrays.items() if a.role != "out"}
    expected = case.expected(inputs)
    assert set(expected) == {n for n, a in case.arrays.items() if a.role in RESULTS}
    for name, values in expected.items():
        wanted = case.arrays[name].values
        assert values.shape == wanted.shape, (name, values.shape, wanted.shape)
        assert values.dtype == wanted.dtype, (name, values.dtype, wanted.dtype)
    return expected


def check(case: Case, results: Arrays) -> None:
    """Raises AssertionError, with the first differences, unless a result is as expected."""
    for name, expected in expected_of(case).items():
        compare(name, results[name], expected, case.arrays[name].kind, case.tolerance)


def compare(
    name: str, result: np.ndarray, expected: np.ndarray, kind: str, tolerance: Tolerance | None
) -> None:
    """One array: equal bits, or the tolerance; where NaN is expected, any NaN is right."""
    assert result.shape == expected.shape and result.dtype == expected.dtype, name
    if tolerance is None:
        bits = numerics.bits_of(result) == numerics.bits_of(expected)
        right = bits | (numerics.is_nan(result, kind) & numerics.is_nan(expected, kind))
    else:
        with np.errstate(invalid="ignore"):
            exact = expected.astype(np.float64)
            difference = np.abs(result.astype(np.float64) - exact)
            bound = np.maximum(tolerance.absolute, tolerance.relative * np.abs(exact))
            right = (result == expected) | (difference <= bound)
        right |= np.isnan(result) & np.isnan(expected)
    if right.all():
        return
    wrong = np.argwhere(~right)
    lines = [
        f"  {tuple(map(int, at))}: {result[tuple(at)]!r}, expected {expected[tuple(at)]!r}"
        for at in wrong[:8]
    ]
    raise AssertionError(
        f"{name}: {len(wrong)} of {right.size} elements are wrong\n" + "\n".join(lines)
    )
