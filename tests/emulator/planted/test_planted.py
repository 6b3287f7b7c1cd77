"""Every planted bug is reported, in the right place, and no right kernel is."""

import numpy as np
import pytest

from abyssal.emulator import Device, EmulatorError
from abyssal.emulator.mutation import SCHEDULES
from abyssal.errors import InputError
from tests.emulator.planted import corpus  # noqa: F401  fills PAIRS
from tests.emulator.planted.pairs import FALSE_ALARM, MISSED, PAIRS
from tests.hopper import on_emulator
from tests.hopper.case import check, run

POLICIES = [("late", 0), ("early", 0), *[("random", seed) for seed in range(5)]]


@pytest.fixture(scope="module")
def load(microkernels):
    """A pair's module on a device; each source is parsed once."""
    loaded = {}

    def load(pair, device):
        if pair.path not in loaded:
            loaded[pair.path] = device.load_ptx(microkernels(pair.path).ptx)
        module = loaded[pair.path]
        module.module.device = device.device
        return module

    return load


def make_device(pair, policy, seed):
    device = on_emulator.EmulatorDevice()
    device.device = Device(pair.num_sms, policy, seed, strict=True)
    return device


def pairs_except(wrong):
    """The pairs; those that the emulator gets wrong so far must go on being wrong."""
    return [
        pytest.param(
            pair,
            id=pair.name,
            marks=[pytest.mark.xfail(reason=wrong[pair.name], strict=True)]
            if pair.name in wrong
            else [],
        )
        for pair in PAIRS
    ]


@pytest.mark.parametrize("pair", pairs_except(FALSE_ALARM))
def test_right_kernel(pair, load):
    for policy, seed in POLICIES:
        device = make_device(pair, policy, seed)
        case = pair.make(np.random.default_rng(), "")
        check(case, run(device, load(pair, device), case))


@pytest.mark.parametrize("pair", pairs_except(MISSED))
def test_planted_bug(pair, load):
    report = None
    for policy, seed in SCHEDULES:
        device = make_device(pair, policy, seed)
        case = pair.make(np.random.default_rng(), "_planted")
        try:
            run(device, load(pair, device), case)
        except EmulatorError as error:
            report = error
            break
    assert report is not None, "no report"
    assert report.kind in pair.kinds, str(report)
    # Of a deadlock the report lists all warps.
    assert str(report).startswith(f"{pair.name}_planted:") or report.kind == "deadlock"
    lines = pair.lines()
    assert lines, "no line of the source has the mark"
    places = [f"{pair.source}.cu:{line}" for line in lines]
    assert any(place in str(report) for place in places), f"not at {places}: {report}"


def test_corpus_is_complete():
    """Names are unique, and every class of bugs that the emulator promises to find is there."""
    names = [pair.name for pair in PAIRS]
    assert len(names) == len(set(names)) >= 40
    kinds = {kind for pair in PAIRS for kind in pair.kinds}
    assert kinds >= {
        "race",
        "uninitialised",
        "missing_fence",
        "in_flight",
        "out_of_bounds",
        "misaligned",
        "read_only",
        "diverged",
        "deadlock",
        "invalid",
    }


# What is wrong with a tensor map: arguments for one of a [64, 64] array of 4-byte elements, and
# words of the rule.
BAD_MAPS = {
    "box_wider_than_swizzle": ({"box": (8, 64), "swizzle": 128}, "swizzle"),
    "box_too_large": ({"box": (8, 512)}, "256"),
    "box_of_no_16_bytes": ({"box": (8, 3)}, "16"),
    "element_stride": ({"box": (8, 32), "element_strides": (9, 1)}, "8"),
    "rank": ({"box": (32,)}, "dimensions"),
    "stride": ({"box": (8, 32), "columns": 63}, "16"),
    "address": ({"box": (8, 32), "offset": 1}, "16"),
}


@pytest.mark.parametrize("name", BAD_MAPS)
def test_bad_tensor_map(name):
    options, rule = dict(BAD_MAPS[name][0]), BAD_MAPS[name][1]
    columns, offset = options.pop("columns", 64), options.pop("offset", 0)
    memory = np.zeros(64 * 64 + 4, np.float32)
    array = memory[offset : offset + 64 * columns].reshape(64, columns)
    with pytest.raises(InputError, match=rule):
        Device().tensor_map(array, **options)
    Device().tensor_map(memory[:4096].reshape(64, 64), (8, 32), 128)
