"""Every case on the emulator, under each policy, strict and fast."""

import pytest

from tests.hopper.case import check, run
from tests.hopper.cases import CASES, make_case

on_emulator = pytest.importorskip("tests.hopper.on_emulator", exc_type=ImportError)


@pytest.fixture(scope="module")
def load(microkernels):
    """The module of a source on a device; each is parsed once."""
    loaded = {}

    def load(device, source):
        key = id(device), source
        if key not in loaded:
            loaded[key] = device.load_ptx(microkernels(source).ptx)
        return loaded[key]

    return load


@pytest.fixture(
    scope="module",
    params=["late", "early", "random", "late-fast", "random-fast"],
)
def device(request):
    policy, _, fast = request.param.partition("-")
    return on_emulator.EmulatorDevice(policy=policy, seed=7, strict=not fast)


@pytest.mark.parametrize("name", CASES)
def test_case(name, load, device):
    case = make_case(name)
    check(case, run(device, load(device, case.source), case))
