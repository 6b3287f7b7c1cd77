"""The runner of cases on a GPU, against a stand-in for libcuda compiled with cuda.h."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.hopper import compiler
from tests.hopper.case import check, run
from tests.hopper.cases import make_case
from tests.hopper.gpu import DriverError, GpuDevice
from tests.hopper.gpu_worker import CaseFailed, GpuWorker

SOURCE = Path(__file__).with_name("fake_gpu.cpp")

# Cases that the stand-in can compute.
COMPUTED = [
    "bulk_copy/4096",
    "tma_load_2d/swizzle0_inside",
    "tma_load_2d/swizzle0_before",
    "tma_load_2d/swizzle0_beyond",
    "tma_load_3d/across_edges",
    "cluster_ranks/1",
    "cluster_ranks/2",
    "cluster_ranks/4",
    "dependent_launch",
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler_path = shutil.which("g++") or shutil.which("c++")
    if compiler_path is None:
        pytest.skip("there is no C++ compiler to build the stand-in with")
    found = subprocess.run(
        [sys.executable, compiler.ROOT / "build_backend" / "find_cuda.py"],
        capture_output=True,
        text=True,
    )
    include = [*found.stdout.splitlines(), "", ""][1]
    if not include:
        pytest.skip("there is no cuda.h to build the stand-in with")
    path = tmp_path_factory.mktemp("gpu") / "libcuda_fake.so"
    command = [compiler_path, "-std=c++20", "-shared", "-fPIC", "-I", include]
    subprocess.run([*command, str(SOURCE), "-o", str(path)], check=True)
    return str(path)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_case_through_the_driver(name, library):
    device = GpuDevice(library=library)
    case = make_case(name)
    check(case, run(device, device.load_ptx("// PTX"), case))
    device.free()


def test_dynamic_shared_memory_is_asked_for(library):
    device = GpuDevice(library=library)
    case = make_case("wgmma_bf16_n64_k_none_k_none")
    results = run(device, device.load_cubin(b"image"), case)
    wanted = case.launches[0].shared_bytes
    assert results["d"].view(np.int32).reshape(-1)[:2].tolist() == [wanted, wanted] != [0, 0]


def test_what_a_tensor_map_says(library):
    device = GpuDevice(library=library)
    buffer = device.upload(np.zeros((6, 10, 32), np.uint16), "in")
    tensor_map = device.tensor_map(
        buffer,
        (2, 4, 16),
        32,
        shape=(5, 9, 30),
        strides=(640, 64, 2),
        kind="bf16",
        element_strides=(1, 3, 1),
        fill="nan",
    )
    words = struct.unpack_from("<4IQ5I5I5II5I", tensor_map.encoded)
    assert words[:5] == (9, 3, 1, 1, buffer.address)
    assert words[5:8] == (30, 9, 5) and words[10:13] == (16, 4, 2) and words[15:18] == (1, 3, 1)
    assert words[21:24] == (0, 64, 640)


def test_arguments_must_fit_the_kernel(library):
    device = GpuDevice(library=library)
    module = device.load_ptx("")
    buffer = device.upload(np.zeros(4, np.int32), "in")
    with pytest.raises(DriverError, match="argument 1 of bulk_copy has 8 bytes; .* takes 4"):
        module.launch("bulk_copy", 1, 32, [buffer, np.int64(16), buffer])
    with pytest.raises(DriverError, match="cuLibraryGetKernel failed"):
        module.launch("nothing", 1, 32, [])


def test_writing_too_far_is_seen(library, monkeypatch):
    monkeypatch.setenv("FAKE_OVERRUN", "bulk_copy")
    device = GpuDevice(library=library)
    with pytest.raises(DriverError, match="1 bytes around a buffer were overwritten"):
        run(device, device.load_ptx(""), make_case("bulk_copy/4096"))


def test_where_there_is_no_driver_or_no_hopper(library, monkeypatch):
    with pytest.raises(DriverError, match=r"no NVIDIA driver here \(libnothing"):
        GpuDevice(library="libnothing.so")
    monkeypatch.setenv("FAKE_MAJOR", "8")
    with pytest.raises(DriverError, match=r"compute capability 8\.0; the kernels need 9\.0"):
        GpuDevice(library=library)


def test_a_worker_outlives_what_it_runs(library, microkernels, monkeypatch):
    """A kernel that fails, one that ends the process, one that hangs; then all is well again."""
    microkernels("bulk")
    worker = GpuWorker(library, seconds=20)
    try:
        for variable, reason in (
            ("FAKE_FAIL", "unspecified launch failure"),
            ("FAKE_EXIT", "ended the process that ran it"),
        ):
            monkeypatch.setenv(variable, "bulk_copy")
            with pytest.raises(CaseFailed, match=reason):
                worker.run("bulk_copy/16")
            monkeypatch.delenv(variable)
        check(make_case("bulk_copy/16"), worker.run("bulk_copy/16"))
        worker.close()
        monkeypatch.setenv("FAKE_HANG", "bulk_copy")
        worker._seconds = 3
        with pytest.raises(CaseFailed, match="did not end within 3 s"):
            worker.run("bulk_copy/16")
        monkeypatch.delenv("FAKE_HANG")
        worker._seconds = 20
        check(make_case("bulk_copy/16"), worker.run("bulk_copy/16"))
        check(make_case("bulk_copy/4096", 5), worker.run("bulk_copy/4096", 5))
    finally:
        worker.close()
    assert worker.describe()["device"] == "no GPU"
