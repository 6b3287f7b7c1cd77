"""`ops.warmup`: which GPU it means, and its refusals."""

import pytest
import torch

from abyssal import ops, runtime
from abyssal.errors import InputError


@pytest.fixture
def loaded(monkeypatch):
    """GPUs 0 (too old) and 1, which is torch's current one; the indices that kernels came to."""
    loaded = []

    class Extension:
        kernels_absent = ""
        load_kernels = staticmethod(loaded.append)

        @staticmethod
        def driver_report():
            return {"version": 13000, "reason": ""}

    devices = [
        {"index": 0, "name": "NVIDIA A100", "capability": "8.0", "usable": False},
        {"index": 1, "name": "NVIDIA H200", "capability": "9.0", "usable": True},
    ]
    monkeypatch.setattr(runtime, "extension", Extension)
    monkeypatch.setattr(runtime, "_devices", lambda: (devices, None))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    return loaded


@pytest.mark.parametrize("device", [None, "cuda", torch.device("cuda"), "cuda:1", 1])
def test_the_current_or_the_named_gpu(device, loaded):
    ops.warmup(device)
    assert loaded == [1]


def test_a_current_gpu_that_cannot_run_kernels(loaded, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for device in (None, "cuda", 0):
        with pytest.raises(InputError, match="here is NVIDIA A100"):
            ops.warmup(device)
    assert loaded == []


@pytest.mark.parametrize("device", [3, "cuda:3"])
def test_a_gpu_that_is_not_there(device, loaded):
    with pytest.raises(InputError, match="there is no GPU 3: the last that torch sees is GPU 1"):
        ops.warmup(device)


@pytest.mark.parametrize("device", ["nonsense", "cpu", 1.5, -2, True])
def test_what_is_no_gpu(device, loaded):
    with pytest.raises(InputError, match=f"device must be a CUDA device .*, not '{device}'"):
        ops.warmup(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", [None, 0, "cuda:0"])
def test_without_a_gpu(device):
    with pytest.raises(InputError, match="kernels cannot be loaded: "):
        ops.warmup(device)
