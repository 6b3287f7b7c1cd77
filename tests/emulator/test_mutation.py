"""Mutation testing: what mutants are made, what becomes of them, and the emulator's own figures."""

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal import runtime
from abyssal.emulator import Device, EmulatorError, InOut
from abyssal.emulator.mutation import generate, mutate, runner
from abyssal.emulator.mutation.manifest import Load
from abyssal.emulator.mutation.ptx_text import read_statements, split_operands
from abyssal.errors import InputError
from scripts.mutate import figures, main
from tests.emulator.lane_kernels import HEAD
from tests.hopper import compiler

MUTANTS = Path(__file__).parent / "mutants"
SCORES = Path(__file__).parents[1] / "mutation_score.json"

# Reverses 64 words by way of shared memory: `x` is read and written.
REVERSE = (
    HEAD
    + """
.visible .entry reverse(.param .u64 x)
{
    .shared .align 4 .b8 memory[256];
    .reg .b32 %r<8>; .reg .b64 %d<4>;
    ld.param.u64 %d0, [x]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; // a comment; with code
    add.u64 %d0, %d0, %d1; ld.global.b32 %r1, [%d0];
    mov.u32 %r2, memory; shl.b32 %r3, %r0, 2; add.u32 %r4, %r2, %r3;
    st.shared.b32 [%r4], %r1;
    bar.sync 0;
    sub.u32 %r5, 252, %r3; add.u32 %r5, %r5, %r2;
    ld.shared.b32 %r6, [%r5];
    st.global.b32 [%d0], %r6;
    ret;
}
"""
)


def keys(text):
    return [mutant.key for mutant in generate(text)]


def body(code, declarations=""):
    return (
        f"{HEAD}.visible .entry k(.param .u64 p)\n{{\n.reg .b32 %r<9>; .reg .b64 %d<9>; "
        f".reg .pred %p<3>; {declarations}\n{code}\nret;\n}}\n"
    )


def changed(code, operator):
    """The kernel's code after the mutant whose key ends so."""
    text = body(code)
    (mutant,) = [m for m in generate(text) if m.key.endswith(operator)]
    after = mutant.apply(text).split("\n")[6:-3]
    return " ".join(" ".join(after).split())


# Statements --------------------------------------------------------------------------------------


def test_statements_of_a_text():
    statements = read_statements(REVERSE)
    assert [s.opcode for s in statements][:3] == ["ld.param.u64", "mov.u32", "mul.wide.u32"]
    assert len(statements) == 15
    for statement in statements:
        assert REVERSE[statement.start : statement.end].endswith(";")
        assert statement.opcode in REVERSE[statement.start : statement.end]


def test_statements_know_scopes_blocks_and_places():
    text = (
        HEAD
        + """.visible .entry k(.param .b32 a)
        {
        .reg .pred %p<2>; .reg .b32 %r<3>;
        .loc 1 7 3
        { .reg .b32 remote; mov.b32 remote, %r1; @%p1 mov.b32 %r2, remote; }
        .loc 2 9 5, function_name $L__info_string0, inlined_at 1 7 3
        LOOP: @!%p1 bra LOOP;
        call.uni x, (a, b);
        ret;
        }
        .file 1 "kernel.cu"
        .file 2 "header.cuh"
        """
    )
    first, second, branch, call, end = read_statements(text)
    assert first.scopes == second.scopes == (1, 2) and branch.scopes == (1,)
    assert ("remote", 2) in first.names and ("%r1", 1) in first.names
    assert second.guard == "@%p1" and branch.guard == "@!%p1"
    assert len({first.block, branch.block, call.block, end.block}) == 4
    assert first.places == (("kernel.cu", 7),)
    assert branch.places == (("header.cuh", 9), ("kernel.cu", 7))


def test_operands_are_split_outside_of_brackets():
    text = "{%r1, %r2}, [%rd1, {%r3, %r4}], [%r5+8], 0f3F800000"
    expected = ("{%r1, %r2}", "[%rd1, {%r3, %r4}]", "[%r5+8]", "0f3F800000")
    assert split_operands(text) == expected
    assert split_operands("") == ()


@given(st.text(alphabet='abc%r1;{}:.,[]@ \n"/*', max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_without_an_error(text):
    read_statements(text)
    generate(f"{HEAD}.visible .entry k()\n{{ {text} }}")


# Mutants -----------------------------------------------------------------------------------------


def test_mutants_of_a_barrier():
    assert keys(REVERSE) == [
        "reverse/st.shared.b32#1/swap",
        "reverse/bar.sync#1/remove",
        "reverse/bar.sync#1/swap",
    ]


@pytest.mark.parametrize(
    ("code", "operator", "expected"),
    [
        ("bar.sync 1, 64;", "remove", ""),
        ("bar.sync 1, 64;", "weaken:arrive", "bar.arrive 1, 64;"),
        (
            "bar.sync 1, %r1;",
            "weaken:fewer_threads",
            "{ .reg .b32 %mutated; add.u32 %mutated, %r1, -32; bar.sync 1, %mutated; }",
        ),
        ("@%p1 fence.acq_rel.gpu;", "weaken:gpu", "@%p1 fence.acq_rel.cta;"),
        ("fence.sc.sys;", "weaken:acq_rel", "fence.acq_rel.sys;"),
        ("fence.proxy.async;", "weaken:global", "fence.proxy.async.global;"),
        (
            "st.release.gpu.global.u32 [%d1], %r1;",
            "weaken:release",
            "st.relaxed.gpu.global.u32 [%d1], %r1;",
        ),
        ("ld.acquire.gpu.global.u32 %r1, [%d1];", "remove", "mov.b32 %r1, -1;"),
        ("ld.relaxed.sys.global.u32 %r1, [%d1];", "weaken:weak", "ld.global.u32 %r1, [%d1];"),
        (
            "atom.acq_rel.gpu.global.add.u32 %r1, [%d1], 1;",
            "weaken:to_release",
            "atom.release.gpu.global.add.u32 %r1, [%d1], 1;",
        ),
        (
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%r1], %r2;",
            "remove",
            "setp.eq.u32 %p1, 0, 0;",
        ),
        (
            "mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], 1;",
            "weaken:parity",
            "{ .reg .b32 %mutated; xor.b32 %mutated, 1, 1; "
            "mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %mutated; }",
        ),
        (
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 512;",
            "weaken:fewer_bytes",
            "{ .reg .b32 %mutated; add.u32 %mutated, 512, -16; "
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], %mutated; }",
        ),
        (
            "mbarrier.arrive.shared::cta.b64 _, [%r1];",
            "weaken:default",
            "mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%r1];",
        ),
        (
            "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1];",
            "weaken:cluster",
            "mbarrier.arrive.release.cta.shared::cluster.b64 _, [%r1];",
        ),
        ("wgmma.wait_group.sync.aligned 1;", "more_groups", "wgmma.wait_group.sync.aligned 2;"),
        (
            "cp.async.bulk.wait_group 0; st.shared.u32 [%r1], %r2;",
            "weaken:read",
            "cp.async.bulk.wait_group.read 0; st.shared.u32 [%r1], %r2;",
        ),
        # Registers between the two: what can be moved past them is moved.
        (
            "st.shared.u32 [%r1], %r2; add.u32 %r1, %r1, 4; bar.sync 0;",
            "swap",
            "bar.sync 0; st.shared.u32 [%r1], %r2; add.u32 %r1, %r1, 4;",
        ),
        (
            "bar.sync 0; add.u32 %r1, %r1, 4; ld.shared.u32 %r2, [%r1];",
            "swap",
            "add.u32 %r1, %r1, 4; ld.shared.u32 %r2, [%r1]; bar.sync 0;",
        ),
    ],
)
def test_operator(code, operator, expected):
    assert changed(code, operator) == expected


@pytest.mark.parametrize(
    ("code", "operator"),
    [
        # More order than before.
        ("mbarrier.arrive.shared::cta.b64 _, [%r1]; st.shared.u32 [%r2], %r3;", "swap"),
        ("st.shared.u32 [%r2], %r3; ld.acquire.gpu.global.u32 %r1, [%d1];", "swap"),
        # Another basic block, or another kernel's memory.
        ("bar.sync 0; LABEL: ld.shared.u32 %r2, [%r1];", "swap"),
        ("bar.sync 0; ld.global.nc.u32 %r2, [%d1];", "swap"),
        ("ld.param.u64 %d1, [p]; bar.sync 0; ld.global.u32 %r2, [%d1];", "swap"),
        # The address comes from the instruction itself.
        ("atom.acquire.gpu.global.exch.b32 %r1, [%d1], 0; ld.shared.u32 %r2, [%r1];", "swap"),
        # A hint, and a load that is of no other thread's memory.
        ("griddepcontrol.launch_dependents;", "remove"),
        ("ld.local.u32 %r1, [%d1]; bar.sync 0;", "swap"),
        ("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1], 8;", "weaken:release"),
    ],
)
def test_no_mutant(code, operator):
    assert not [key for key in keys(body(code)) if key.endswith(operator)]


def test_memory_that_is_written_is_not_constant():
    code = "ld.param.u64 %d1, [p]; bar.sync 0; ld.global.u32 %r2, [%d1]; "
    assert keys(body(code + "add.u64 %d2, %d1, 4; st.global.u32 [%d2], %r2;"))[1].endswith("swap")


@pytest.fixture(scope="module")
def microkernels():
    try:
        return {s: compiler.compile_kernels(s).ptx for s in ("barriers", "bulk", "cluster", "grid")}
    except compiler.CompilerMissing as missing:
        pytest.skip(str(missing))


def test_mutants_of_compiled_kernels(microkernels):
    """Every mutant is another text, that the emulator's parser reads, with a name of its own."""
    for text in microkernels.values():
        mutants = generate(text)
        assert len({m.key for m in mutants}) == len(mutants) > 20
        texts = {m.apply(text) for m in mutants}
        assert len(texts) == len(mutants) and text not in texts
        for mutant in texts:
            Device().load_ptx(mutant)


def test_keys_do_not_depend_on_registers_or_lines(microkernels):
    text = microkernels["barriers"]
    renamed = re.sub(r"%r(\d+)", lambda m: f"%r{int(m[1]) + 1000}", text)
    renamed = re.sub(r"\.reg \.b32 \t%r<\d+>", ".reg .b32 %r<9999>", renamed)
    renamed = re.sub(r"\.loc\t(\d+) (\d+)", lambda m: f".loc\t{m[1]} {int(m[2]) + 7}", renamed)
    assert keys(renamed) == keys(text)


def test_statements_are_the_instructions_of_the_emulator(microkernels):
    """Coverage is by their numbers."""
    module = Device().load_ptx(microkernels["cluster"])
    out = np.zeros((4, 2), np.uint32)
    module.launch("cluster_ranks", 4, 32, [InOut(out)], cluster=2)
    read = [s.opcode for s in read_statements(microkernels["cluster"]) if "ranks" in s.kernel]
    assert [instruction.text for instruction in module.counters.instructions] == read


# Coverage ----------------------------------------------------------------------------------------


def test_coverage_is_of_statements():
    text = body(
        """ld.param.u64 %d0, [p]; ld.global.u32 %r0, [%d0];
        setp.eq.u32 %p0, %r0, 7; @%p0 bra SEVEN;
        add.u32 %r1, %r0, 1; bra.uni END;
        SEVEN: sub.u32 %r1, %r0, 1;
        END: st.global.u32 [%d0], %r1;"""
    )
    opcodes = [s.opcode for s in read_statements(text)]
    for value, left_out in ((7, {"add.u32", "bra.uni"}), (8, {"sub.u32", "bra"})):
        load = Load({"a": text}, 1)
        x = np.array([value], np.uint32)
        load().launch("k", 1, 1, [InOut(x)])
        assert x[0] == (6 if value == 7 else 9)
        executed = load.executed()["a"]
        assert {opcodes[i] for i in range(len(opcodes)) if ("k", i) not in executed} == left_out


# Manifests ---------------------------------------------------------------------------------------

LAUNCH = """
import numpy as np
from abyssal.emulator import InOut

num_sms = 1

def reverse(load, random):
    x = random.integers(0, 2**32, 64, np.uint32)
    load().launch("reverse", 1, 64, [InOut(x)])
    return {"x": x}

launches = {"reverse": reverse}
"""


def write_manifest(folder, launch=LAUNCH, ptx=REVERSE, equivalents=None):
    (folder / "reverse.ptx").write_text(ptx)
    (folder / "launch.py").write_text(textwrap.dedent(launch))
    if equivalents is not None:
        (folder / "equivalents.json").write_text(json.dumps(equivalents))
    return folder


def test_report(tmp_path, capsys):
    report = mutate(write_manifest(tmp_path))
    assert {m.key: o.is_killed for m, o in report.outcomes} == dict.fromkeys(keys(REVERSE), True)
    assert {o.how for _, o in report.outcomes} <= {"race", "uninitialised"}
    assert report.raw == report.adjusted == 1 and not report.problems()
    assert report.by_operator() == {"remove": (1, 1), "swap": (2, 2)}
    assert main([str(tmp_path), "--json", str(tmp_path / "score.json"), "--jobs", "1"]) == 0
    assert "raw 100.0%" in capsys.readouterr().out
    assert json.loads((tmp_path / "score.json").read_text())[tmp_path.name]["killed"] == 3


# A kernel whose barrier is not needed: each thread reads what it wrote itself.
OWN = REVERSE.replace("sub.u32 %r5, 252, %r3; add.u32 %r5, %r5, %r2;", "mov.u32 %r5, %r4;")


def test_survivors_and_equivalents(tmp_path, capsys):
    report = mutate(write_manifest(tmp_path, ptx=OWN))
    assert report.raw == 0 and len(report.survivors) == 3
    assert "SURVIVES  reverse/bar.sync#1/remove" in str(report)
    assert main([str(tmp_path), "--at-least", "0.5", "--jobs", "1"]) == 1
    assert "FAILED" in capsys.readouterr().out
    write_manifest(tmp_path, ptx=OWN, equivalents={"reverse/bar.sync#1/remove": "Because."})
    report = mutate(tmp_path)
    assert "equivalent  reverse/bar.sync#1/remove" in str(report) and "Because." in str(report)
    assert report.raw == report.adjusted == 0
    assert any("at most 5%" in problem for problem in report.problems())


def test_equivalent_that_is_killed_is_a_problem(tmp_path):
    report = mutate(write_manifest(tmp_path, equivalents={"reverse/bar.sync#1/remove": "Wrong."}))
    assert any("declared equivalent, and killed" in problem for problem in report.problems())


def test_original_that_is_reported_is_a_problem(tmp_path):
    report = mutate(write_manifest(tmp_path, ptx=REVERSE.replace("bar.sync 0;", "")))
    assert not report.outcomes and list(report.faults) == ["reverse"]
    assert "the original is reported" in report.problems()[0]


def test_launch_of_something_else_is_a_problem(tmp_path):
    idle = LAUNCH.replace('load().launch("reverse", 1, 64, [InOut(x)])', "load()")
    assert "no launch runs" in mutate(write_manifest(tmp_path, idle)).problems()[0]


def test_original_with_results_of_chance_is_a_problem(tmp_path):
    chance = LAUNCH.replace('"x": x', '"x": x + np.random.default_rng().integers(99, dtype="u4")')
    assert "results differ" in mutate(write_manifest(tmp_path, chance)).faults["reverse"]
    tolerant = chance + "\ndef same(name, results, expected): return True\n"
    assert not mutate(write_manifest(tmp_path, tolerant)).faults


def test_crash_and_hang(tmp_path, monkeypatch):
    """A mutant that ends its process is a problem; one that never returns is killed."""
    head, tail = LAUNCH.split("    load().launch")
    spoilt = "    import os, time\n    if 'bar.sync 0' not in next(iter(load._texts.values())): "
    crash = f"{head}{spoilt}os._exit(7)\n    load().launch{tail}"
    report = mutate(write_manifest(tmp_path, crash))
    assert {m.key: o.how for m, o in report.outcomes}["reverse/bar.sync#1/remove"] == "crashed"
    assert any("crashed" in problem for problem in report.problems())
    assert len(report.killed) == 2
    monkeypatch.setattr(runner, "LEAST_LIMIT", 0.3)
    hang = f"{head}{spoilt}time.sleep(60)\n    load().launch{tail}"
    report = mutate(write_manifest(tmp_path, hang))
    assert {m.key: o.how for m, o in report.outcomes}["reverse/bar.sync#1/remove"] == "time"
    assert report.raw == 1


def test_sample(tmp_path):
    report = mutate(write_manifest(tmp_path), sample=1, seed=3)
    assert len(report.outcomes) == 1 and report.executable == 3


def test_bad_manifests(tmp_path):
    with pytest.raises(InputError, match=r"must have a launch\.py"):
        mutate(tmp_path)
    (tmp_path / "launch.py").write_text("launches = {}")
    with pytest.raises(InputError, match=r"must have \*\.ptx"):
        mutate(tmp_path)
    with pytest.raises(InputError, match="'b' among the PTX files"):
        Load({"a": REVERSE}, 1)("b")


def test_mutants_of_nonsense_are_refused_by_the_emulator():
    mutant = next(m for m in generate(body("bar.sync 99, 64;")) if m.key.endswith("arrive"))
    module = Device().load_ptx(mutant.apply(body("bar.sync 99, 64;")))
    with pytest.raises(EmulatorError):
        module.launch("k", 1, 64, [0])


# The emulator's figures --------------------------------------------------------------------------

# Launches of originals that the emulator still reports, and why.
FAULTS: dict[str, dict[str, str]] = {
    name: {} for name in ("fp8_gemm", "gemm", "microkernels", "quantisers")
}
# Whose PTX is not compiled for the test, but what the package has.
OF_THIS_BUILD = ("fp8_gemm", "quantisers")


@pytest.mark.parametrize("name", FAULTS)
def test_score(name):
    """No figure falls; what is new is written by `make mutate` with --json."""
    try:
        compiler.find_nvcc()
    except compiler.CompilerMissing as missing:
        pytest.skip(str(missing))
    if name in OF_THIS_BUILD and not runtime.extension().kernel_images():
        pytest.skip("this build has no kernels")
    report = mutate(MUTANTS / name)
    assert report.faults.keys() == FAULTS[name].keys(), report.faults
    known = [problem for problem in report.problems() if "the original is reported" in problem]
    assert report.problems() == known, report
    score, now = json.loads(SCORES.read_text())[name], figures(report)
    assert now["raw"] >= score["raw"], f"{now} was {score}\n\n{report}"
    # Another compiler makes other text; but kernels must not go out of the measure.
    assert now["executed"] >= 0.9 * score["executed"], f"{now} was {score}"
    for operator in score["by_operator"]:
        assert now["by_operator"][operator]["executed"] > 0
