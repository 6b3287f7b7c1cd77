"""Every case on the emulator."""

import pytest

from tests.hopper.case import check, run
from tests.hopper.cases import CASES, make_case

on_emulator = pytest.importorskip("tests.hopper.on_emulator", exc_type=ImportError)


@pytest.fixture(scope="module")
def load(microkernels):
    """The module of a source on a device; each is parsed once."""
    loaded = {}

    def load(device, source):
        if source not in loaded:
            loaded[source] = device.load_ptx(microkernels(source).ptx)
        return loaded[source]

    return load


@pytest.fixture(scope="module")
def device():
    return on_emulator.EmulatorDevice()


@pytest.mark.parametrize("name", CASES)
def test_case(name, load, device):
    case = make_case(name)
    check(case, run(device, load(device, case.source), case))
