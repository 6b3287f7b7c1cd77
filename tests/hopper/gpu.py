"""A GPU as a `Device` of the microkernels' cases: ctypes over libcuda.so.1, nothing else.

Each buffer lies between two guards, whose bytes are looked at when it is read back: a kernel that
writes too far is found. A kernel that never ends, or that breaks the context, takes its process
with it: run cases through tests/hopper/gpu_worker.py.
"""

from __future__ import annotations

import ctypes
import dataclasses
from contextlib import AbstractContextManager, nullcontext
from ctypes import POINTER, Structure, Union, byref, c_char, c_int, c_size_t, c_uint, c_void_p
from ctypes import c_uint64 as c_address
from typing import Any

import numpy as np

GUARD_BYTES = 1024
GUARD = 0x5C
UNINITIALISED = 0xA5

CLUSTER_DIMENSION = 4  # CUlaunchAttributeID
PROGRAMMATIC_STREAM_SERIALIZATION = 6
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CUfunction_attribute
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
STREAM_NON_BLOCKING = 1

# CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapFloatOOBfill
TENSOR_MAP_TYPES = {"uint8": 0, "int32": 3, "f16": 6, "f32": 7, "bf16": 9}
TENSOR_MAP_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
TENSOR_MAP_FILLS = {"zeros": 0, "nan": 1}
TENSOR_MAP_BYTES = 128


class DriverError(RuntimeError):
    """The driver refused, or the kernel failed: one sentence."""


class LaunchAttributeValue(Union):
    _fields_ = (("bytes", c_char * 64), ("cluster", c_uint * 3), ("flag", c_int))


class LaunchAttribute(Structure):
    """CUlaunchAttribute: the value begins at byte 8."""

    _fields_ = (("id", c_int), ("padding", c_char * 4), ("value", LaunchAttributeValue))


class LaunchConfig(Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", POINTER(LaunchAttribute)),
        ("num_attributes", c_uint),
    )


# The functions that are used, by the names that cuda.h's macros give them.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (c_int, POINTER(ctypes.c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (ctypes.c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_address), c_size_t),
    "cuMemFree_v2": (c_address,),
    "cuMemcpyHtoDAsync_v2": (c_address, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_address, c_size_t, c_void_p),
    "cuLibraryLoadData": (
        POINTER(c_void_p),
        ctypes.c_char_p,
        c_void_p,
        c_void_p,
        c_uint,
        c_void_p,
        c_void_p,
        c_uint,
    ),
    "cuLibraryUnload": (c_void_p,),
    "cuLibraryGetKernel": (POINTER(c_void_p), c_void_p, ctypes.c_char_p),
    "cuKernelGetFunction": (POINTER(c_void_p), c_void_p),
    "cuKernelGetParamInfo": (c_void_p, c_size_t, POINTER(c_size_t), POINTER(c_size_t)),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernelEx": (POINTER(LaunchConfig), c_void_p, POINTER(c_void_p), c_void_p),
    "cuTensorMapEncodeTiled": (
        c_void_p,
        c_int,
        c_uint,
        c_void_p,
        POINTER(c_address),
        POINTER(c_address),
        POINTER(c_uint),
        POINTER(c_uint),
        c_int,
        c_int,
        c_int,
        c_int,
    ),
}


class Driver:
    """The driver's functions; each raises DriverError unless it succeeds."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError:
            raise DriverError(f"there is no NVIDIA driver here ({library} was not found)") from None
        for name, arguments in SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = c_int

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def checked(*arguments: Any) -> None:
            result = function(*arguments)
            if result:
                raise DriverError(f"{name} failed: {self._describe(result)}")

        return checked

    def _describe(self, result: int) -> str:
        words = []
        for function in (self._library.cuGetErrorString, self._library.cuGetErrorName):
            text = ctypes.c_char_p()
            known = function(result, byref(text)) == 0 and text.value is not None
            words.append(text.value.decode() if known else "unknown error")
        return f"{words[0]} ({words[1]}, {result})"


@dataclasses.dataclass(frozen=True)
class Buffer:
    """address: of the first byte behind the first guard."""

    address: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """128 bytes, aligned to 64, within `storage`."""

    storage: Any
    address: int

    @property
    def encoded(self) -> bytes:
        return ctypes.string_at(self.address, TENSOR_MAP_BYTES)


class GpuDevice:
    """The GPU of an ordinal, through its primary context and a stream of its own."""

    def __init__(self, ordinal: int = 0, library: str = "libcuda.so.1") -> None:
        self.driver = Driver(library)
        self.driver.cuInit(0)
        device, context, stream = c_int(), c_void_p(), c_void_p()
        self.driver.cuDeviceGet(byref(device), ordinal)
        capability = tuple(
            self.attribute(which, device)
            for which in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR)
        )
        if capability != (9, 0):
            major, minor = capability
            raise DriverError(
                f"GPU {ordinal} has compute capability {major}.{minor}; the kernels need 9.0"
            )
        self.driver.cuDevicePrimaryCtxRetain(byref(context), device)
        self.driver.cuCtxSetCurrent(context)
        self.driver.cuStreamCreate(byref(stream), STREAM_NON_BLOCKING)
        self.device, self.stream = device, stream
        self._allocations: list[int] = []

    def attribute(self, which: int, device: c_int | None = None) -> int:
        """which: a CUdevice_attribute."""
        value = c_int()
        self.driver.cuDeviceGetAttribute(
            byref(value), which, self.device if device is None else device
        )
        return value.value

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(128)
        self.driver.cuDeviceGetName(text, len(text), self.device)
        return text.value.decode()

    @property
    def driver_version(self) -> int:
        """1000 * major + 10 * minor of the driver's CUDA."""
        version = c_int()
        self.driver.cuDriverGetVersion(byref(version))
        return version.value

    def load_ptx(self, text: str) -> GpuModule:
        """PTX, translated by the driver."""
        return GpuModule(self, text.encode() + b"\0")

    def load_cubin(self, image: bytes) -> GpuModule:
        return GpuModule(self, image)

    def queue(self) -> AbstractContextManager[None]:
        return nullcontext()

    def upload(self, values: np.ndarray, role: str) -> Buffer:
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        whole = np.full(content.size + 2 * GUARD_BYTES, GUARD, np.uint8)
        inside = whole[GUARD_BYTES : GUARD_BYTES + content.size]
        inside[:] = UNINITIALISED if role == "out" else content
        address = c_address()
        self.driver.cuMemAlloc_v2(byref(address), whole.size)
        self._allocations.append(address.value)
        self.driver.cuMemcpyHtoDAsync_v2(address, whole.ctypes.data, whole.size, self.stream)
        self.synchronize()
        return Buffer(address.value + GUARD_BYTES, content.size)

    def download(self, buffer: Buffer, like: np.ndarray) -> np.ndarray:
        whole = np.empty(buffer.num_bytes + 2 * GUARD_BYTES, np.uint8)
        self.driver.cuMemcpyDtoHAsync_v2(
            whole.ctypes.data, buffer.address - GUARD_BYTES, whole.size, self.stream
        )
        self.synchronize()
        inside = slice(GUARD_BYTES, GUARD_BYTES + buffer.num_bytes)
        outside = np.delete(whole, inside)
        if (outside != GUARD).any():
            raise DriverError(f"{(outside != GUARD).sum()} bytes around a buffer were overwritten")
        return whole[inside].view(like.dtype).reshape(like.shape)

    def synchronize(self) -> None:
        self.driver.cuStreamSynchronize(self.stream)

    def free(self) -> None:
        """All buffers."""
        self.synchronize()
        while self._allocations:
            self.driver.cuMemFree_v2(self._allocations.pop())

    def tensor_map(
        self,
        buffer: Buffer,
        box: tuple[int, ...],
        swizzle: int,
        *,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        kind: str,
        element_strides: tuple[int, ...],
        fill: str,
    ) -> TensorMap:
        rank = len(shape)
        storage = ctypes.create_string_buffer(TENSOR_MAP_BYTES + 64)
        address = (ctypes.addressof(storage) + 63) // 64 * 64
        # The driver counts dimensions from the innermost, and takes no stride for that.
        self.driver.cuTensorMapEncodeTiled(
            address,
            TENSOR_MAP_TYPES[kind],
            rank,
            buffer.address,
            (c_address * rank)(*reversed(shape)),
            (c_address * max(rank - 1, 1))(*reversed(strides[:-1])),
            (c_uint * rank)(*reversed(box)),
            (c_uint * rank)(*reversed(element_strides)),
            0,  # not interleaved
            TENSOR_MAP_SWIZZLES[swizzle],
            0,  # no promotion in L2
            TENSOR_MAP_FILLS[fill],
        )
        return TensorMap(storage, address)


class GpuModule:
    """A loaded image. It stays loaded for the life of the process."""

    def __init__(self, device: GpuDevice, image: bytes) -> None:
        self.device = device
        self._image = image
        self._library = c_void_p()
        device.driver.cuLibraryLoadData(byref(self._library), image, None, None, 0, None, None, 0)

    def launch(
        self,
        name: str,
        grid: int,
        block: int,
        args: list[Any],
        *,
        cluster: int = 1,
        shared_bytes: int = 0,
        dependent: bool = False,
    ) -> None:
        """Queues a launch on the device's stream; `GpuDevice.download` waits for it."""
        driver = self.device.driver
        kernel, function = c_void_p(), c_void_p()
        driver.cuLibraryGetKernel(byref(kernel), self._library, name.encode())
        driver.cuKernelGetFunction(byref(function), kernel)
        if shared_bytes:
            driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        values = [self._pack(kernel, name, index, argument) for index, argument in enumerate(args)]
        attributes = launch_attributes(cluster, dependent)
        config = LaunchConfig(
            grid=(c_uint * 3)(grid, 1, 1),
            block=(c_uint * 3)(block, 1, 1),
            shared_bytes=shared_bytes,
            stream=self.device.stream,
            attributes=attributes,
            num_attributes=len(attributes),
        )
        pointers = (c_void_p * max(len(values), 1))(*(address for address, _ in values))
        driver.cuLaunchKernelEx(byref(config), function, pointers, None)

    def _pack(self, kernel: c_void_p, name: str, index: int, value: Any) -> tuple[int, Any]:
        """Where the bytes of an argument are, and what keeps them alive."""
        offset, size = c_size_t(), c_size_t()
        self.device.driver.cuKernelGetParamInfo(kernel, index, byref(offset), byref(size))
        if isinstance(value, TensorMap):
            given, address, owner = TENSOR_MAP_BYTES, value.address, value
        else:
            number = np.uint64(value.address) if isinstance(value, Buffer) else value
            owner = ctypes.create_string_buffer(number.tobytes(), number.nbytes)
            given, address = number.nbytes, ctypes.addressof(owner)
        if given != size.value:
            raise DriverError(
                f"argument {index} of {name} has {given} bytes; the kernel takes {size.value}"
            )
        return address, owner


def launch_attributes(cluster: int, dependent: bool) -> Any:
    """An array of LaunchAttribute; empty for an ordinary launch."""
    wanted = []
    if cluster > 1:
        value = LaunchAttributeValue(cluster=(c_uint * 3)(cluster, 1, 1))
        wanted.append(LaunchAttribute(id=CLUSTER_DIMENSION, value=value))
    if dependent:
        value = LaunchAttributeValue(flag=1)
        wanted.append(LaunchAttribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=value))
    return (LaunchAttribute * len(wanted))(*wanted)
