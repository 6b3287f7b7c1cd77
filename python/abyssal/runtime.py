"""What this installation can do: the compiled extension, its kernels, the driver and the GPUs."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

# GPUs that the kernels are made for: Hopper (H100, H200, H800, GH200).
CAPABILITY = (9, 0)


class ExtensionMissing(RuntimeError):
    """This copy of Abyssal was not built: it has Python files only."""


@functools.cache
def extension() -> ModuleType:
    """The compiled module. Raises ExtensionMissing."""
    try:
        from abyssal import _extension
    except ImportError as error:
        raise ExtensionMissing(
            f"the compiled part of Abyssal cannot be loaded ({error}); `pip install .` builds it"
        ) from error
    return _extension


def why_not_cuda(device_index: int | None = None) -> str | None:
    """Why kernels cannot run on a GPU (default: on any), in one sentence; None if they can."""
    try:
        built = extension()
    except ExtensionMissing as error:
        return str(error)
    if built.kernels_absent:
        return f"this build has no kernels: {built.kernels_absent}"
    driver = built.driver_report()
    if driver["reason"]:
        return str(driver["reason"])
    devices, absence = _devices()
    if absence is not None:
        return absence
    if device_index is not None:
        last = len(devices) - 1
        devices = [device for device in devices if device["index"] == device_index]
        if not devices:
            return f"there is no GPU {device_index}: the last that torch sees is GPU {last}"
    if not any(device["usable"] for device in devices):
        found = ", ".join(f"{d['name']} ({d['capability']})" for d in devices)
        return f"the kernels need a GPU of compute capability 9.0 (Hopper), and here is {found}"
    return None


def why_not_torch() -> str | None:
    """Why torch cannot be imported, in one sentence; None if it can."""
    try:
        import torch  # noqa: F401
    except Exception as error:  # a broken installation may raise anything
        return f"torch cannot be imported ({type(error).__name__}: {error})"
    return None


def why_not_emulator() -> str | None:
    """Why kernels cannot run on the emulator, in one sentence; None if they can."""
    try:
        built = extension()
    except ExtensionMissing as error:
        return str(error)
    if built.kernels_absent:
        return f"this build has no kernels: {built.kernels_absent}"
    return None


def report() -> dict[str, Any]:
    """What `abyssal env` prints, whatever is broken. It uses the driver, but no memory of a GPU.

    extension  {"built": bool, "reason": str | None}
    kernels    {"built": bool, "reason": str | None, "images": [names]}
    driver     {"cuda": "13.0" | None, "needed": "13.0", "reason": str | None}
    devices    [{"index", "name", "capability": "9.0", "multiprocessors", "memory_bytes", "usable"}]
    backends   {name: None if usable, else the reason}
    """
    return {**_parts(), "devices": _devices()[0], "backends": _backends()}


def _parts() -> dict[str, Any]:
    """Of `report`: the extension, its kernels and the driver."""
    try:
        built = extension()
    except ExtensionMissing as error:
        reason = str(error)
        absent = {"built": False, "reason": reason}
        return {
            "extension": absent,
            "kernels": {**absent, "images": []},
            "driver": {"cuda": None, "needed": None, "reason": reason},
        }
    driver = built.driver_report()
    return {
        "extension": {"built": True, "reason": None},
        "kernels": {
            "built": not built.kernels_absent,
            "reason": built.kernels_absent or None,
            "images": sorted(built.kernel_images()),
        },
        "driver": {
            "cuda": _version(driver["version"]) if driver["version"] else None,
            "needed": _version(built.oldest_driver),
            "reason": driver["reason"] or None,
        },
    }


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _backends() -> dict[str, str | None]:
    without_torch = why_not_torch()
    if without_torch is not None:
        return dict.fromkeys(("reference", "cuda", "emulator"), without_torch)
    return {"reference": None, "cuda": why_not_cuda(), "emulator": why_not_emulator()}


def _devices() -> tuple[list[dict[str, Any]], str | None]:
    """The GPUs that torch sees; why there are none."""
    without_torch = why_not_torch()
    if without_torch is not None:
        return [], without_torch
    import torch

    if not torch.cuda.is_available():
        return [], "torch sees no GPU; `torch.cuda.is_available()` is false"
    try:
        return [_describe(index) for index in range(torch.cuda.device_count())], None
    except Exception as error:  # whatever torch makes of the driver's refusal
        return [], f"torch cannot use its GPUs ({type(error).__name__}: {error})"


def _describe(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "index": index,
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "usable": (properties.major, properties.minor) == CAPABILITY,
    }
