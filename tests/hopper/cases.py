"""All cases of the microkernels: name -> builder, and the case of a name.

`make_case(name)` has the same numbers everywhere (what a GPU computed from them is recorded);
`make_case(name, seed)` has fresh ones. How to run one: tests/hopper/case.py.
"""

from __future__ import annotations

import numpy as np

from tests.hopper import cases_math, cases_sync, cases_tma, cases_wgmma
from tests.hopper.case import Builder, Case

CASES: dict[str, Builder] = {}
for _module in (cases_tma, cases_wgmma, cases_sync, cases_math):
    for _name, _builder in _module.cases():
        assert _name not in CASES, _name
        CASES[_name] = _builder


def make_case(name: str, seed: int | None = None) -> Case:
    """The case of a name.

    PCG64 gives the same bits everywhere; what NumPy makes of them is the same for one version of
    it. Goldens of another version's inputs would fail, and would have to be recorded again.
    """
    numbers = list(name.encode()) + ([] if seed is None else [seed])
    return CASES[name](np.random.Generator(np.random.PCG64(numbers)))
