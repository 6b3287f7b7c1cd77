"""Results that a GPU recorded, against every backend, bit for bit."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import abyssal
from abyssal import ops
from scripts import record_goldens
from tests.goldens.quantize_1x128 import CASES, make_input

RECORDED = sorted(Path(__file__).parent.glob("*.npz"))


def compare(goldens, backend):
    with abyssal.backend(backend):
        device = "cuda" if backend == "cuda" else "cpu"
        for name, (*_, options) in CASES.items():
            result = ops.quantize_1x128(make_input(name).to(device), **options)
            codes = result.data.view(torch.uint8).cpu().numpy()
            np.testing.assert_array_equal(codes, goldens[f"quantize_1x128/{name}/codes"], name)
            scale = result.scale.cpu().numpy()
            np.testing.assert_array_equal(scale, goldens[f"quantize_1x128/{name}/scale"], name)


@pytest.mark.parametrize("path", RECORDED or [None], ids=lambda path: path and path.stem)
def test_recorded_on_a_gpu(path, backend):
    if path is None:
        pytest.skip("no goldens have been recorded on a GPU yet (benchmarks/GPU_TODO.md)")
    goldens = np.load(path)
    assert json.loads(goldens["meta"].tobytes())["backend"] == "cuda"
    compare(goldens, backend)


def test_what_is_recorded_is_compared():
    """A file of this machine's reference agrees; one with a single wrong bit does not."""
    goldens = record_goldens.record("reference")
    compare(goldens, "reference")
    for name in CASES:
        wrong = dict(goldens)
        wrong[f"quantize_1x128/{name}/codes"] = wrong[f"quantize_1x128/{name}/codes"] ^ 1
        with pytest.raises(AssertionError):
            compare(wrong, "reference")


def test_the_inputs_are_those_of_the_recordings():
    """A change of this digest makes all recordings worthless."""
    digest = hashlib.sha256()
    for name in CASES:
        digest.update(make_input(name).float().numpy().tobytes())
    assert digest.hexdigest() == (
        "687f1dd0bd4d0a1483c99d4028f2ea580477a0bf4e76aa10f0eb437d61ab4fad"
    )


def test_the_cases_reach_what_they_are_for():
    scales = {name: ops.quantize_1x128(make_input(name), **CASES[name][-1]) for name in CASES}
    assert int(scales["bf16_not_finite"].scale.isnan().sum()) >= 10
    assert int(scales["fp32_not_finite"].scale.isnan().sum()) >= 10
    assert (scales["bf16_zeros"].scale == 1).all()
    subnormal = make_input("fp32_subnormal")
    assert ((subnormal != 0) & (subnormal.abs() < 2.0**-126)).sum() > 1000
    assert make_input("fp32_huge").abs().max() > 2.0**120
    assert scales["fp32_huge"].dequantize().isfinite().all()
