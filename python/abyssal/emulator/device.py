"""Devices, modules and launches of the emulator."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from abyssal import runtime
from abyssal.emulator.counters import Counters
from abyssal.errors import InputError

Policy = Literal["early", "late", "random"]
Array = Tensor | np.ndarray
Extent = int | Sequence[int]

EmulatorError = runtime.extension().emulator.EmulatorError


@dataclass(frozen=True)
class In:
    """A tensor that the kernel only reads: a write to it is an error."""

    array: Array


@dataclass(frozen=True)
class Out:
    """A tensor that the kernel writes: what it held before is no input."""

    array: Array


@dataclass(frozen=True)
class InOut:
    """A tensor that the kernel reads and writes. A bare tensor among the arguments is this."""

    array: Array


_Options = tuple[int, str, int, bool, bool]
_TOLERANCES = ("bulk_store_at_exit",)

_ROLES = {In: "in", Out: "out", InOut: "inout"}

# CUtensorMapDataType by torch's types.
_TENSOR_MAP_TYPES = {
    torch.uint8: 0,
    torch.int8: 0,
    torch.bool: 0,
    torch.float8_e4m3fn: 0,
    torch.float8_e5m2: 0,
    torch.uint16: 1,
    torch.int16: 1,
    torch.uint32: 2,
    torch.int32: 3,
    torch.uint64: 4,
    torch.int64: 5,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}

_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}


@dataclass(frozen=True)
class TensorMap:
    """What TMA instructions read: 128 bytes that describe `array` and the box to copy.

    Made by `Device.tensor_map`.
    """

    array: Array
    role: str
    encoded: bytes = field(repr=False)


# Ops launch on device 0.
_indices = itertools.count(1)


class Device:
    """A Hopper GPU, emulated.

    Args:
        num_sms: streaming multiprocessors; kernels see it and blocks are resident by it.
        policy: when asynchronous work (copies, matrix products) happens: "late", not before
            nothing else can go on; "early", at once; "random", by the seed.
        seed: of every choice that the emulator makes. The same seed gives the same run.
        strict: whether accesses are checked for races and uninitialised data.
        tolerate: names of what is not to be reported although PTX does not allow it:
            "bulk_store_at_exit", a block that ends while its bulk stores still read its shared
            memory (public kernels do it).
    """

    def __init__(
        self,
        num_sms: int = 132,
        policy: Policy = "late",
        seed: int = 0,
        strict: bool = True,
        tolerate: Sequence[str] = (),
    ) -> None:
        unknown = set(tolerate) - set(_TOLERANCES)
        if unknown:
            raise InputError(f"tolerate knows {list(_TOLERANCES)}, not {sorted(unknown)}")
        if num_sms < 1:
            raise InputError(f"num_sms must be at least 1, not {num_sms}")
        if policy not in ("early", "late", "random"):
            raise InputError(f"policy must be 'early', 'late' or 'random', not {policy!r}")
        self.num_sms = num_sms
        self.policy = policy
        self.seed = seed
        self.strict = strict
        self.tolerate = tuple(tolerate)
        # Of the last launch: what it did.
        self.counters: Counters | None = None
        self.index = next(_indices)

    @property
    def _options(self) -> _Options:
        tolerated = "bulk_store_at_exit" in self.tolerate
        return self.num_sms, self.policy, self.seed, self.strict, tolerated

    @contextmanager
    def for_ops(self) -> Iterator[None]:
        """Inside of the block, `abyssal.backend("emulator")` runs ops as this device would.

        For all threads, with this device's options. Of ops within a block of `concurrent`, too,
        `counters` tells the last one's counts.
        """
        global _ops_device
        before, _ops_device = _ops_device, self
        extension = runtime.extension().emulator
        try:
            extension.set_driver_options(extension.Options(*self._options))
            yield
        finally:
            _ops_device = before
            extension.set_driver_options(extension.Options(*before._options))

    def load_ptx(self, text: str) -> Module:
        """Reads PTX. Raises EmulatorError, with the line, for what is not PTX for sm_90a."""
        return Module(self, text)

    def tensor_map(
        self,
        array: Array | In | Out | InOut,
        box: Sequence[int],
        swizzle: int = 0,
        *,
        element_strides: Sequence[int] | None = None,
        fill_nan: bool = False,
        dtype: torch.dtype | None = None,
    ) -> TensorMap:
        """A tensor map of `array` for boxes of `box` elements.

        Args:
            array: up to 5 dimensions, the last contiguous, the others with strides that are
                multiples of 16 bytes. A bare tensor can be read and written.
            box: elements of the box along each dimension of `array`, in the same order.
            swizzle: 0, 32, 64 or 128 bytes.
            element_strides: steps between the elements of a box, 1 by default.
            fill_nan: what is outside of the tensor reads as NaN instead of 0.
            dtype: as which type to move the elements; by default the array's.

        Raises:
            InputError: naming the rule of cuTensorMapEncodeTiled that is broken.
        """
        plain, role = _unwrap(array)
        tensor = _as_tensor(plain)
        if tensor.dim() != len(box) or not 1 <= tensor.dim() <= 5:
            raise InputError(
                f"box must have as many entries as the tensor has dimensions, up to 5; they are "
                f"{len(box)} and {tensor.dim()}"
            )
        if swizzle not in _SWIZZLES:
            raise InputError(f"swizzle must be 0, 32, 64 or 128 bytes, not {swizzle}")
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise InputError(f"the last dimension must be contiguous; strides: {tensor.stride()}")
        kind = _TENSOR_MAP_TYPES.get(dtype or tensor.dtype)
        if kind is None:
            raise InputError(f"a tensor map cannot have {dtype or tensor.dtype} elements")
        # The driver counts dimensions from the innermost, and gives no stride for that.
        size = tensor.element_size()
        strides = [stride * size for stride in reversed(tensor.stride())][1:]
        try:
            encoded = runtime.extension().emulator.encode_tensor_map(
                kind,
                tensor.data_ptr(),
                list(reversed(tensor.shape)),
                strides,
                list(reversed(box)),
                list(reversed(element_strides or [1] * tensor.dim())),
                _SWIZZLES[swizzle],
                fill_nan,
            )
        except ValueError as error:
            raise InputError(str(error)) from None
        return TensorMap(plain, role, encoded)


class Module:
    """PTX that was loaded on a device."""

    def __init__(self, device: Device, text: str) -> None:
        if not isinstance(text, str):
            raise InputError(f"text must be a str of PTX, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("text must be PTX; it has surrogates, which no UTF-8 has") from None
        self.device = device
        self._module = runtime.extension().emulator.Module(text)
        self._kernels: dict[str, list[tuple[str, int, int, bool]]] = self._module.kernels()
        # Of the last launch.
        self.counters: Counters | None = None

    @property
    def kernels(self) -> list[str]:
        """Names of the entry points."""
        return list(self._kernels)

    @property
    def lines(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Coverage by the last launch, as `Counters.lines`; empty before the first."""
        return {} if self.counters is None else self.counters.lines

    def launch(
        self,
        name: str,
        grid: Extent,
        block: Extent,
        args: Sequence[Any],
        *,
        cluster: Extent | None = None,
        shared_bytes: int = 0,
        buffers: Sequence[Any] = (),
        stream: int = 0,
        dependent: bool = False,
    ) -> None:
        """Runs a kernel to its end, or inside of `concurrent` adds it to the launches there.

        Args:
            name: the entry point, as it is written in the PTX.
            grid: blocks, one number or up to three.
            block: threads of a block.
            args: one for each parameter: tensors or arrays on the CPU (bare, or in `In`, `Out`,
                `InOut`), tensor maps, numbers, or the bytes of a struct.
            cluster: blocks of a cluster.
            shared_bytes: dynamic shared memory of a block.
            buffers: tensors whose addresses are inside of structs among `args`.
            stream: which of the device's streams, for launches inside of `concurrent`.
            dependent: a programmatic dependent launch: its blocks may begin before the launch
                ahead of it in the stream has ended (CUDA programming guide, programmatic
                dependent launch).

        Raises:
            InputError: an argument does not fit.
            EmulatorError: the kernel did something wrong; `kind` says of which kind.
        """
        if name not in self._kernels:
            raise InputError(f"there is no kernel {name!r}; the module has {self.kernels}")
        params = self._kernels[name]
        if len(args) != len(params):
            raise InputError(f"{name} takes {len(params)} arguments, not {len(args)}")
        memory: list[tuple[int, int, str]] = []
        packed = bytearray(params[-1][1] + params[-1][2] if params else 0)
        for value, (param, offset, size, is_float) in zip(args, params, strict=True):
            data = _pack(value, param, size, is_float, memory)
            packed[offset : offset + size] = data
        for buffer in buffers:
            _declare(buffer, memory)
        extension = runtime.extension().emulator
        launch = extension.Launch(
            self._module,
            name,
            _extent("grid", grid),
            _extent("block", block),
            None if cluster is None else _extent("cluster", cluster),
            shared_bytes,
            bytes(packed),
            memory,
            dependent,
        )
        try:
            group = _group.get()
            if group is not None:
                group.add(self, name, launch, stream, (args, buffers))
                return
            result = extension.run(launch, extension.Options(*self.device._options))
        except ValueError as error:
            raise InputError(str(error)) from None
        _finish(result, [(self, name)])


class _Group:
    """Launches that wait for the end of `concurrent`."""

    def __init__(self) -> None:
        # The module and kernel of each launch; None for those of ops.
        self.launches: list[tuple[Module, str] | None] = []
        self.options: _Options | None = None
        self._kept: list[Any] = []

    def add(self, module: Module, name: str, launch: Any, stream: int, kept: Any) -> None:
        options = module.device._options
        if self.options is not None and self.options != options:
            raise InputError(
                "devices whose launches run together must have the same num_sms, policy, seed, "
                f"strict and tolerate; they have {self.options} and {options}"
            )
        runtime.extension().emulator.add_to_group(launch, module.device.index, stream)
        self.options = options
        self.launches.append((module, name))
        self._kept.append(kept)

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Notes a launch by an op, and what it uses."""
        self.launches.append(None)
        self._kept.append(tensors)


@contextmanager
def concurrent() -> Iterator[None]:
    """Collects the launches of this thread, and runs them together at the end of the block.

    Launches of one stream of one device run one after another, all else at the same time, as the
    devices' policy has it: kernels that wait for kernels on other devices, or for a later launch
    in another stream, can be run. Tensors hold their results after the block; ops of
    `abyssal.backend("emulator")` take part, on a device of their own.

    Raises:
        InputError: groups do not nest, and devices whose launches run together must have equal
            options.
        EmulatorError: as `Module.launch`.
    """
    extension = runtime.extension().emulator
    if _group.get() is not None:
        raise InputError("groups of launches do not nest")
    extension.begin_group()
    group = _Group()
    token = _group.set(group)
    options = None
    try:
        yield
        options = group.options or _ops_device._options
    finally:
        _group.reset(token)
        # What fails inside of the block runs nothing.
        result = extension.end_group(options and extension.Options(*options))
    _finish(result, group.launches)


def keep_for_group(tensors: Sequence[Tensor]) -> None:
    """Keeps what an op's kernel uses until it has run. Does nothing outside of `concurrent`."""
    group = _group.get()
    if group is not None:
        group.keep(tensors)


class Cluster:
    """Devices that can reach each other's memory, as over NVLink.

    Args:
        num_devices: how many; `cluster[i]` is one of them.
        num_sms, policy, seed, strict, tolerate: of each `Device`.
    """

    def __init__(
        self,
        num_devices: int,
        num_sms: int = 132,
        policy: Policy = "late",
        seed: int = 0,
        strict: bool = True,
        tolerate: Sequence[str] = (),
    ) -> None:
        if num_devices < 1:
            raise InputError(f"num_devices must be at least 1, not {num_devices}")
        self.devices = [Device(num_sms, policy, seed, strict, tolerate) for _ in range(num_devices)]

    def __getitem__(self, index: int) -> Device:
        return self.devices[index]

    def __len__(self) -> int:
        return len(self.devices)


_ops_device = Device()
_group: ContextVar[_Group | None] = ContextVar("group", default=None)


def _finish(result: tuple[str, list[Any]], launches: Sequence[tuple[Module, str] | None]) -> None:
    """Hands out what a run has told of each launch."""
    printed, records = result
    for launch, record in zip(launches, records, strict=True):
        if launch is None:
            _ops_device.counters = Counters(record.kernel(), record)
        else:
            module, name = launch
            module.counters = module.device.counters = Counters(name, record)
    if printed:
        print(printed, end="")


def _unwrap(value: Array | In | Out | InOut) -> tuple[Array, str]:
    role = _ROLES.get(type(value))
    return (value.array, role) if role else (value, "inout")  # type: ignore[union-attr, return-value]


def _as_tensor(array: Array) -> Tensor:
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    if not isinstance(tensor, Tensor):
        raise InputError(f"expected a tensor or an array, not {type(array).__name__}")
    if tensor.device.type != "cpu":
        raise InputError(f"the emulator reads tensors on the CPU, not on {tensor.device}")
    return tensor.detach()


def _declare(value: Any, memory: list[tuple[int, int, str]]) -> int:
    """Notes the memory behind a tensor; its address."""
    array, role = _unwrap(value)
    tensor = _as_tensor(array)
    if tensor.numel() > 0:
        extent = 1 + sum(
            (n - 1) * abs(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True)
        )
        memory.append((tensor.data_ptr(), extent * tensor.element_size(), role))
    return tensor.data_ptr()


def _pack(
    value: Any, param: str, size: int, is_float: bool, memory: list[tuple[int, int, str]]
) -> bytes:
    """The bytes of one parameter."""
    if isinstance(value, TensorMap):
        _declare({"in": In, "out": Out, "inout": InOut}[value.role](value.array), memory)
        data = value.encoded
    elif isinstance(value, (bytes, bytearray)):
        data = bytes(value)
    elif isinstance(value, (In, Out, InOut, Tensor)) or (
        isinstance(value, np.ndarray) and value.ndim > 0
    ):
        data = struct.pack("<Q", _declare(value, memory))
    elif isinstance(value, (np.generic, np.ndarray)):
        data = value.tobytes()
    elif isinstance(value, (bool, int)) and not is_float:
        if not -(1 << (8 * size - 1)) <= value < 1 << (8 * size):
            raise InputError(f"{value} does not fit the {size} bytes of {param}")
        data = (value % (1 << (8 * size))).to_bytes(size, "little")
    elif isinstance(value, (int, float)) and is_float and size in (4, 8):
        data = struct.pack("<f" if size == 4 else "<d", value)
    else:
        raise InputError(f"a {type(value).__name__} is no argument for {param} of {size} bytes")
    if len(data) != size:
        raise InputError(f"{param} has {size} bytes and the argument {len(data)}")
    return data


def _extent(name: str, extent: Extent) -> tuple[int, int, int]:
    values = (extent,) if isinstance(extent, int) else tuple(extent)
    if not 1 <= len(values) <= 3 or any(v < 1 for v in values) or math.prod(values) >= 1 << 40:
        raise InputError(f"{name} must be one to three positive numbers, not {extent}")
    x, y, z = (*values, 1, 1)[:3]
    return x, y, z
