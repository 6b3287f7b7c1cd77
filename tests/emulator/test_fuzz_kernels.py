"""Random kernels on the emulator, against a plain interpretation of them, bit for bit."""

import os
import time

import numpy as np
import pytest

from abyssal.emulator import Device, EmulatorError, InOut, Out
from tests.emulator.fuzz.instructions import forms
from tests.emulator.fuzz.programs import COUNTS, Program


def run_on_emulator(program, state, device):
    """The registers that it leaves, by kind; memory is changed in place."""
    count = sum(COUNTS.values())
    first = np.zeros((program.threads, count), np.uint64)
    first[:] = np.concatenate([r.astype(np.uint64) for r in state.registers.values()]).T
    last = np.zeros_like(first)
    slots, table = state.slots["global"].copy(), state.table.copy()
    module = device.load_ptx(program.text)
    arguments = [first, InOut(slots), InOut(table), Out(last)]
    module.launch("k", program.grid, program.block, arguments)
    return last.T, slots, table


def check(seed, only=()):
    program = Program(seed, only)
    state = program.initial()
    policy = ("late", "early", "random")[seed % 3]
    device = Device(policy=policy, seed=seed, strict=seed % 4 != 0)
    try:
        last, slots, table = run_on_emulator(program, state, device)
    except EmulatorError as error:
        pytest.fail(f"seed {seed}: {error}\n{program.text}")
    program.interpret(state)
    row = 0
    for kind, registers in state.registers.items():
        for number, expected in enumerate(registers):
            got = last[row].astype(registers.dtype)
            row += 1
            wrong = np.flatnonzero(got != expected)
            if wrong.size:
                t = wrong[0]
                pytest.fail(
                    f"seed {seed}: %{kind}{number} of thread {t} is {hex(int(got[t]))}, and "
                    f"{hex(int(expected[t]))} by interpretation\n{program.text}"
                )
    np.testing.assert_array_equal(slots, state.slots["global"], err_msg=f"seed {seed}")
    np.testing.assert_array_equal(table, state.table, err_msg=f"seed {seed}")


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(6, id="short"), pytest.param(600, id="long", marks=pytest.mark.nightly)],
)
def test_random_kernels(seconds):
    """Fresh seeds, as many as there is time for; a failure names its seed, for `check(seed)`."""
    seed = int.from_bytes(os.urandom(4), "little")
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end or done < 3:
        check(seed + done)
        done += 1


@pytest.mark.parametrize("seed", range(8))
def test_kernels_that_stay(seed):
    check(seed)


@pytest.mark.parametrize("part", range(8))
def test_every_form(part):
    """Each form of each instruction, on operands of every sort."""
    all_forms = forms()[part::8]
    for begin in range(0, len(all_forms), 12):
        check(begin, all_forms[begin : begin + 12])
