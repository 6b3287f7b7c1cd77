"""What is put to the test: PTX, and how to launch it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from abyssal.emulator.device import Device, Module
from abyssal.errors import InputError

Results = dict[str, np.ndarray]
Statements = set[tuple[str, int]]  # kernel, number of the instruction in it
Launch = Callable[["Load", np.random.Generator], Results]

# (policy, seed) of a strict device: the first is the one that everybody runs.
SCHEDULES = (("late", 0), ("early", 1), ("random", 2), ("random", 3), ("random", 4))


class Manifest:
    """A folder with `*.ptx` and a launch description, `launch.py`, which defines

    - `launches`: a dict from a name to a function `launch(load, random) -> results`. It makes
      inputs by `random` (a NumPy generator), loads by `load("stem")` the module of stem.ptx (of
      the only one by `load()`), launches kernels with the module's `launch`, on the module's
      `device`, and returns what they computed: a dict from names to arrays. Results begin as
      something that no kernel computes, or a mutant that computes nothing passes for right.
    - `ptx()`, if there are no files: a dict from stems to texts.
    - `same(name, results, expected) -> bool`, if results may depend on the schedule: whether two
      results of a launch are both right. Else they must be equal, bit by bit.
    - `num_sms`, if not 132.

    A file `equivalents.json` declares mutants that are the same program: {key of a mutant: the
    sentence of the PTX ISA that says so}.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        description = self.folder / "launch.py"
        if not description.is_file():
            raise InputError(f"{self.folder} must have a launch.py; see abyssal.emulator.mutation")
        found: Any = _import(description)
        files = sorted(self.folder.glob("*.ptx"))
        self.texts: dict[str, str] = {path.stem: path.read_text() for path in files}
        if not files:
            if not hasattr(found, "ptx"):
                raise InputError(f"{self.folder} must have *.ptx, or its launch.py a ptx()")
            self.texts = found.ptx()
        self.launches: dict[str, Launch] = found.launches
        self.same: Callable[[str, Results, Results], bool] = getattr(found, "same", are_equal)
        self.num_sms: int = getattr(found, "num_sms", 132)
        declared = self.folder / "equivalents.json"
        self.equivalents: dict[str, str] = (
            json.loads(declared.read_text()) if declared.is_file() else {}
        )


def _import(path: Path) -> object:
    specification = importlib.util.spec_from_file_location(f"launch_of_{path.parent.name}", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def are_equal(name: str, results: Results, expected: Results) -> bool:
    return results.keys() == expected.keys() and all(
        results[key].tobytes() == expected[key].tobytes() for key in expected
    )


class Load:
    """Modules of a manifest on a device; notes which statements run."""

    def __init__(self, texts: dict[str, str], num_sms: int) -> None:
        self._texts = texts
        self._num_sms = num_sms
        self._modules: dict[str, _Module] = {}
        self.device = Device(num_sms)

    def schedule(self, policy: Any, seed: int) -> None:
        self.device = Device(self._num_sms, policy, seed, strict=True)
        for module in self._modules.values():
            module.device = self.device

    def __call__(self, stem: str = "") -> Module:
        if not stem and len(self._texts) == 1:
            stem = next(iter(self._texts))
        if stem not in self._texts:
            raise InputError(f"there is no {stem!r} among the PTX files: {sorted(self._texts)}")
        if stem not in self._modules:
            self._modules[stem] = _Module(self.device, self._texts[stem])
        return self._modules[stem]

    def executed(self) -> dict[str, Statements]:
        """stem -> the statements that ran."""
        return {stem: module.executed for stem, module in self._modules.items()}


class _Module(Module):
    """Adds up what all of its launches, queued or not, have run."""

    def __init__(self, device: Device, text: str) -> None:
        self.executed: Statements = set()
        super().__init__(device, text)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "counters" and value is not None:
            counts = enumerate(instruction.warps for instruction in value.instructions)
            self.executed |= {(value.kernel, number) for number, warps in counts if warps}
