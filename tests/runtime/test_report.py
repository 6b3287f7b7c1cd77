"""`abyssal.runtime`: what is said of an installation, and why kernels cannot run."""

import builtins

import pytest
import torch

from abyssal import runtime


class Extension:
    """As much of the compiled module as the report reads."""

    kernels_absent = ""
    oldest_driver = 13000

    def __init__(self, version=13000, reason=""):
        self._driver = {"version": version, "reason": reason}

    def driver_report(self):
        return self._driver

    def kernel_images(self):
        return {"quantize_1x128": {}}


def without_torch(monkeypatch, error):
    """`import torch` raises the error."""
    real_import = builtins.__import__

    def broken_import(name, *arguments, **keywords):
        if name == "torch":
            raise error
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", broken_import)


HOPPER = {
    "index": 0,
    "name": "NVIDIA H200",
    "capability": "9.0",
    "multiprocessors": 132,
    "memory_bytes": 2**37,
    "usable": True,
}
AMPERE = {**HOPPER, "index": 1, "name": "NVIDIA A100", "capability": "8.0", "usable": False}


NO_GPU = "torch sees no GPU; `torch.cuda.is_available()` is false"


@pytest.fixture
def machine(monkeypatch):
    def machine(extension, devices):
        monkeypatch.setattr(runtime, "extension", lambda: extension)
        monkeypatch.setattr(runtime, "_devices", lambda: (devices, None if devices else NO_GPU))

    return machine


def test_a_hopper_machine(machine):
    machine(Extension(), [HOPPER, AMPERE])
    assert runtime.why_not_cuda() is None and runtime.why_not_cuda(0) is None
    assert runtime.why_not_cuda(1) == (
        "the kernels need a GPU of compute capability 9.0 (Hopper), and here is NVIDIA A100 (8.0)"
    )
    assert runtime.why_not_cuda(7) == "there is no GPU 7: the last that torch sees is GPU 1"
    report = runtime.report()
    assert report["devices"] == [HOPPER, AMPERE]
    assert report["backends"] == {"reference": None, "cuda": None, "emulator": None}
    assert report["kernels"] == {"built": True, "reason": None, "images": ["quantize_1x128"]}
    assert report["driver"] == {"cuda": "13.0", "needed": "13.0", "reason": None}


def test_no_driver(machine):
    machine(Extension(0, "there is none"), [])
    assert runtime.report()["backends"]["cuda"] == "there is none"
    assert runtime.report()["driver"]["cuda"] is None


def test_no_gpu(machine):
    machine(Extension(), [])
    assert runtime.why_not_cuda() == runtime.why_not_cuda(0) == NO_GPU


@pytest.mark.parametrize("error", [ImportError("half"), RuntimeError("broken"), OSError("so")])
def test_no_torch(error, monkeypatch):
    monkeypatch.setattr(runtime, "extension", Extension)
    without_torch(monkeypatch, error)
    report = runtime.report()
    reason = f"torch cannot be imported ({type(error).__name__}: {error})"
    assert report["devices"] == [] and set(report["backends"].values()) == {reason}
    assert report["kernels"]["built"] and report["driver"]["cuda"] == "13.0"


def test_gpus_that_do_not_answer(monkeypatch):
    def broken(index):
        raise RuntimeError("CUDA error: unknown")

    monkeypatch.setattr(runtime, "extension", Extension)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    report = runtime.report()
    assert report["devices"] == []
    assert report["backends"]["cuda"] == (
        "torch cannot use its GPUs (RuntimeError: CUDA error: unknown)"
    )


def test_no_kernels(machine):
    extension = Extension()
    extension.kernels_absent = "built with ABYSSAL_KERNELS=off"
    machine(extension, [HOPPER])
    assert runtime.why_not_cuda() == "this build has no kernels: built with ABYSSAL_KERNELS=off"
    assert not runtime.report()["kernels"]["built"]


def test_no_extension(monkeypatch):
    def missing():
        raise runtime.ExtensionMissing("not built")

    monkeypatch.setattr(runtime, "extension", missing)
    report = runtime.report()
    assert report["extension"] == {"built": False, "reason": "not built"}
    assert report["backends"] == {
        "reference": None,
        "cuda": "not built",
        "emulator": "not built",
    }


def test_this_machine_has_a_report():
    report = runtime.report()
    assert set(report) == {"extension", "kernels", "driver", "devices", "backends"}
    usable = [device for device in report["devices"] if device["usable"]]
    if report["backends"]["cuda"] is None:
        assert usable and report["kernels"]["built"]
