"""Launch description of the microkernels of csrc/hopper that synchronise, for mutation testing.

Their cases are those of tests/hopper; where a kernel has several, one with some rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT))

from tests.hopper import compiler, on_emulator  # noqa: E402
from tests.hopper.case import compare, run  # noqa: E402
from tests.hopper.cases import CASES  # noqa: E402

SOURCES = ("barriers", "bulk", "cluster", "grid", "tma_load", "tma_store", "wgmma_registers")
# One thread does everything: there is nobody to synchronise with.
ALONE = ("mbarrier_looks", "bulk_copy", "bulk_copy_hints")


def ptx():
    return {source: compiler.compile_kernels(source).ptx for source in SOURCES}


def launch_of(builder):
    def launch(load, random):
        case = builder(random)
        module = load(case.source)
        device = on_emulator.EmulatorDevice()
        device.device = module.device
        return run(device, on_emulator.EmulatorModule(module), case)

    return launch


def chosen():
    """One case for each kernel: the last, which has the most rounds."""
    found = {}
    for name, builder in CASES.items():
        case = builder(np.random.default_rng(0))
        entries = tuple(each.entry for each in case.launches)
        if case.source in SOURCES and not set(entries) & set(ALONE):
            found[case.source, entries] = (name, builder, case)
    return found.values()


launches = {name: launch_of(builder) for name, builder, _ in chosen()}
tolerances = {name: case.tolerance for name, _, case in chosen()}


def same(name, results, expected):
    try:
        for key, values in expected.items():
            compare(key, results[key], values, "", tolerances[name])
    except AssertionError:
        return False
    return True
