"""What a GPU recorded of the microkernels, against what is expected."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts import record_goldens
from tests.hopper.case import check, expected_of
from tests.hopper.cases import CASES, make_case

FOLDER = Path(__file__).resolve().parents[1] / "goldens"


def recorded(goldens, name):
    """The arrays of a case."""
    prefix = f"hopper/{name}/"
    return {key[len(prefix) :]: goldens[key] for key in goldens if key.startswith(prefix)}


@pytest.fixture(scope="module", params=sorted(FOLDER.glob("*.npz")) or [None], ids=str)
def goldens(request):
    if request.param is None:
        pytest.skip("no goldens have been recorded on a GPU yet (benchmarks/GPU_TODO.md)")
    goldens = dict(np.load(request.param))
    assert json.loads(goldens["meta"].tobytes())["backend"] == "cuda"
    if not any(key.startswith("hopper/") for key in goldens):
        pytest.skip(f"{request.param.name} has no microkernels")
    return goldens


@pytest.mark.parametrize("name", CASES)
def test_the_gpu_agrees(name, goldens):
    results = recorded(goldens, name)
    if not results:
        pytest.skip("this case is newer than the recording")
    check(make_case(name), results)


def test_what_is_recorded_is_compared():
    """A rehearsal's file holds every result of every case, and a wrong bit in one is found."""
    arrays, failures = record_goldens.record_microkernels("reference")
    assert not failures
    for name in CASES:
        results = recorded(arrays, name)
        assert set(results) == set(expected_of(make_case(name)))
    wrong = recorded(arrays, "wgmma_e4m3_n64/with_c")
    wrong["d"].view(np.uint32)[3, 5] ^= 1
    with pytest.raises(AssertionError, match=r"d: 1 of 4096 elements are wrong\n  \(3, 5\)"):
        check(make_case("wgmma_e4m3_n64/with_c"), wrong)
