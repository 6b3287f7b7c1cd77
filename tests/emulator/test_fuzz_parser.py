"""Malformed PTX is refused with a sentence, and what still loads can be launched: no mutant of any
text may crash the process, hang it, or take its memory."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from abyssal import emulator
from abyssal.errors import InputError
from tests.emulator.fuzz.mutations import CHANGES
from tests.emulator.fuzz.subjects import subjects
from tests.emulator.lane_kernels import HEAD

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(5, id="short"), pytest.param(600, id="long", marks=pytest.mark.nightly)],
)
def test_mutants(seconds, tmp_path):
    """Random seeds, in a process of their own. Again:
    python -m tests.emulator.fuzz.worker FOLDER SEED 1 60"""
    first = random.SystemRandom().randrange(10**9)
    worker = [sys.executable, "-X", "faulthandler", "-m", "tests.emulator.fuzz.worker"]
    command = [*worker, str(tmp_path), str(first), str(10**6), str(seconds)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 200, check=False
        )
        end = f"the process ended with {done.returncode}: {done.stderr[-3000:]}"
    except subprocess.TimeoutExpired:
        end = "the process hangs"
    result_file = tmp_path / "result.json"
    result = json.loads(result_file.read_text()) if result_file.exists() else {"broken": end}
    if "broken" in result:
        seed = (tmp_path / "seed").read_text() if (tmp_path / "seed").exists() else "none"
        pytest.fail(f"seed {seed}, {tmp_path / 'mutant.ptx'}: {result['broken']}")
    # Mutants of every depth: some are refused, some load, some of these run.
    outcomes = result["outcomes"]
    assert result["mutants"] >= 100
    assert min(outcomes["refused"], outcomes["loaded"], outcomes["ran"]) > 0, outcomes


def test_subjects_are_what_mutants_should_break():
    """All texts load and run as they are."""
    for subject in subjects():
        module = emulator.Device().load_ptx(subject.text)
        try:
            subject.launch(module.device, module)
        except emulator.EmulatorError as error:
            pytest.fail(f"{subject.name}: {error}")


def test_every_change_changes():
    chance = random.Random(7)
    texts = [subject.text for subject in subjects() if subject.text]
    for change in CHANGES:
        assert any(change(text, chance, texts) != text for text in texts[:4]), change.__name__


def in_kernel(code):
    return f"{HEAD}.entry k(.param .u64 p)\n{{\n.reg .b32 %r<4>; .reg .b64 %d<4>;\n{code}\n}}\n"


MALFORMED = {
    "a_word": ("hello", "line 1: unknown directive 'hello'"),
    "a_byte_that_is_no_text": ("\x1e", r"found '\x1e'"),
    "a_letter_of_two_bytes": ("é", r"found '\xc3'"),
    "nothing_behind_the_head": (HEAD + ".visible", "the end of the text"),
    "an_open_comment": (HEAD + "/* ", "a comment that does not end"),
    "a_line_end_in_a_string": (HEAD + '.file 1 "a\n.cu"', "a control character"),
    "an_open_string": (HEAD + '.file 1 "a', "a string that does not end"),
    "scopes": (in_kernel("{" * 100_000), "nested too deeply"),
    "operands": (in_kernel("mov.b32 %r0, " + "{" * 100_000), "nested too deeply"),
    "negations": (in_kernel("mov.b32 %r0, " + "!" * 100_000), "nested too deeply"),
    "addresses": (in_kernel("mov.b32 %r0, " + "[" * 100_000), "nested too deeply"),
    "a_table_in_itself": (in_kernel("T: .branchtargets T; brx.idx %r0, T;"), "unknown name 'T'"),
    "a_large_number": (in_kernel(f"mov.b32 %r0, {'9' * 99_999};"), "is not a number"),
    "registers": (in_kernel(".reg .b32 %q<4294967296>;"), "out of range"),
    "a_register_of_no_range": (in_kernel("mov.b32 %r01, 1;"), "a result that is no register"),
    "global_memory": (HEAD + ".global .b8 a[99999999999999];", "more elements of 'a' than any"),
    "overflowing": (HEAD + ".global .b8 a[4294967296][4294967296];", "more elements of 'a'"),
    "parameters": (HEAD + ".entry k(.param .b8 a[32765]) { }", "more than 32764 bytes of param"),
    "a_long_name": (in_kernel("a" * 100_000 + "..;"), "aaa"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_text_is_refused_with_a_sentence(name):
    text, message = MALFORMED[name]
    with pytest.raises(emulator.EmulatorError, match=message.replace("\\", "\\\\")) as error:
        emulator.Device().load_ptx(text).launch("k", 1, 32, [0])
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()


@pytest.mark.parametrize("text", [b"\xff", None, 7, "\ud800"])
def test_what_is_no_text(text):
    with pytest.raises(InputError, match="text must be"):
        emulator.Device().load_ptx(text)


def test_what_a_kernel_declares_and_does_not_use_costs_nothing():
    """A million registers, and gigabytes of global memory."""
    code = ".reg .b128 %many<1000000>; mov.b32 %r3, 7; ret;"
    module = emulator.Device().load_ptx(in_kernel(code) + ".global .b8 large[4000000000];")
    module.launch("k", 1, 1024, [0])


def test_numbered_registers_of_nested_scopes():
    """%x12 is of %x<13>, of %x1<3>, or a name of its own, and the innermost wins."""
    module = emulator.Device().load_ptx(
        HEAD
        + """.entry k(.param .u64 p) {
            .reg .b64 %d<2>; .reg .b32 %x<13>; ld.param.u64 %d0, [p];
            mov.b32 %x12, 1;
            { .reg .b32 %x1<3>; mov.b32 %x12, 2; st.global.b32 [%d0], %x12;
              { .reg .b32 %x12; mov.b32 %x12, 3; st.global.b32 [%d0+4], %x12; }
              st.global.b32 [%d0+8], %x12; }
            st.global.b32 [%d0+12], %x12;
            ret; }"""
    )
    out = np.zeros(4, np.int32)
    module.launch("k", 1, 1, [emulator.Out(out)])
    assert out.tolist() == [2, 3, 2, 1]


def test_a_type_may_follow_reg_without_a_blank():
    """As the assembly in CUDA's header of half-precision functions has it."""
    text = """.version 8.7
    .target sm_90a
    .address_size 64
    .visible .entry k() { {.reg.b32 %r; mov.b32 %r, 1;} ret; }"""
    emulator.Device().load_ptx(text).launch("k", 1, 32, [])
    with pytest.raises(emulator.EmulatorError, match="unknown type '.b33' of a register"):
        emulator.Device().load_ptx(text.replace(".b32", ".b33", 1))
