"""The microkernels compile without a warning, and ptxas has nothing to mend."""

import re

import pytest

from tests.hopper import compiler
from tests.hopper.cases import CASES, make_case

# What ptxas prints when it gives up on a kernel's plan: setmaxnreg ignored, WGMMAs made to wait for
# one another, waits and arrivals put in (C7508 to C7519). They are no warnings to nvcc.
COMPLAINT = re.compile(r".*\(C75\d\d\).*")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
ENTRY = re.compile(r"\.visible \.entry (\w+)\(")


@pytest.mark.parametrize("source", compiler.SOURCES)
def test_compiles_cleanly(source, microkernels):
    compiled = microkernels(source)
    assert not COMPLAINT.findall(compiled.log)
    assert "warning" not in compiled.log
    usage = SPILL.findall(compiled.log)
    entries = ENTRY.findall(compiled.ptx)
    assert len(usage) == len(entries) > 0
    assert set(usage) == {("0", "0", "0")}
    assert str(compiler.ROOT) not in compiled.ptx


def test_every_kernel_has_a_case(microkernels):
    launched: dict[str, set[str]] = {source: set() for source in compiler.SOURCES}
    for name in CASES:
        case = make_case(name)
        launched[case.source].update(launch.entry for launch in case.launches)
    for source in compiler.SOURCES:
        assert launched[source] == set(ENTRY.findall(microkernels(source).ptx))


def test_the_gate_sees_what_ptxas_mends(tmp_path, monkeypatch):
    """An accumulator that is touched before its wait."""
    try:
        compiler.find_nvcc()
    except compiler.CompilerMissing as missing:
        pytest.skip(str(missing))
    good = (compiler.KERNELS / "wgmma_registers.cu").read_text()
    bad = good.replace("wgmma_wait<1>();\n  pin_registers(first);", "")
    assert bad != good
    (tmp_path / "early.cu").write_text(bad)
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)
    monkeypatch.setenv("ABYSSAL_TEST_CACHE", str(tmp_path / "cache"))
    assert COMPLAINT.findall(compiler.compile_kernels("early").log)


def test_the_cache_follows_the_sources(tmp_path, monkeypatch):
    try:
        before = compiler.content_hash("matrix")
    except compiler.CompilerMissing as missing:
        pytest.skip(str(missing))
    text = (compiler.KERNELS / "matrix.cu").read_text()
    (tmp_path / "matrix.cu").write_text(text)
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)
    assert compiler.content_hash("matrix") == before
    (tmp_path / "matrix.cu").write_text(text + "\n")
    assert compiler.content_hash("matrix") != before
