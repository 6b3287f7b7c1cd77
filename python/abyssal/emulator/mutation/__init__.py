"""Mutation testing of kernels, or of the emulator: is a spoilt kernel noticed?

Each instruction of a PTX text that synchronises is removed, weakened, or swapped with a neighbour,
one at a time. A mutant is killed if the emulator reports a fault, or the results change, in one
strict run or in one of four more under other schedules. See docs/mutation.md; on the command line:

    make mutate MANIFEST=folder
"""

from abyssal.emulator.mutation.manifest import SCHEDULES, Load, Manifest
from abyssal.emulator.mutation.operators import Mutant, generate
from abyssal.emulator.mutation.runner import Report, mutate
from abyssal.emulator.mutation.worker import Outcome

__all__ = [
    "SCHEDULES",
    "Load",
    "Manifest",
    "Mutant",
    "Outcome",
    "Report",
    "generate",
    "mutate",
]
