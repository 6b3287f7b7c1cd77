"""The timing microkernels: they compile without complaint, and run to their end."""

import subprocess
import sys

import pytest

from benchmarks import bench_microkernels
from tests.hopper import compiler
from tests.hopper.test_compiles import COMPLAINT, SPILL

SOURCES = sorted(compiler.TIMING_KERNELS.glob("*.cu"))


def compiled(path):
    try:
        return compiler.compile_kernels(str(path))
    except compiler.CompilerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_ptxas_has_nothing_to_mend(path):
    """It would be measured instead of what is meant."""
    log = compiled(path).log
    assert not COMPLAINT.findall(log)
    assert set(SPILL.findall(log)) == {("0", "0", "0")}


def test_all_run_on_the_emulator():
    """Its clock has no meaning; barriers and copies have."""
    on_emulator = pytest.importorskip("tests.hopper.on_emulator", exc_type=ImportError)
    # With the policy "late" it takes warps that poll beside a running product for a deadlock.
    device = on_emulator.EmulatorDevice(policy="early")
    timings = bench_microkernels.Timings(
        device,
        num_sms=4,
        quick=True,
        load=lambda stem: device.load_ptx(compiled(compiler.TIMING_KERNELS / f"{stem}.cu").ptx),
    )
    results = dict(timings.run())
    assert len([name for name in results if name.startswith("wgmma_")]) == 8 * 6
    assert results["wgmma_e4m3_n64/loads"]["loaded_bytes_per_cycle"] > 0
    assert set(results["wgmma_bf16_n256/fma_half"]) >= {"fma_per_thread_and_cycle"}
    assert "tma_multicast/l2/4_blocks" in results and "clock" in results


def test_without_a_gpu_one_sentence():
    command = [sys.executable, "-m", "benchmarks.bench_microkernels"]
    done = subprocess.run(command, cwd=compiler.ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 2
    assert done.stderr.startswith("bench_microkernels: ") and done.stderr.count("\n") == 1
