"""The step from CUDA C++ to PTX and cubin: the same bytes whatever folder it happens in."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.test_find_cuda import ROOT, compile_kernel, find_cuda

# A line table, and local names in symbols (the function that is not inlined) and in debug strings.
HEADER = """
namespace local_names {
namespace {
__device__ __noinline__ float halved(float x) { return sqrtf(x) * 0.5f; }
template <typename T> __device__ T doubled(T x) { return x + x; }
}
}
"""
KERNEL = """
#include "part/values.cuh"
extern "C" __global__ void twice(float* x) {
  x[threadIdx.x] = local_names::doubled(local_names::halved(x[threadIdx.x]));
}
"""


NAME = "_ZN40_INTERNAL_{0}_9_twice_cu_22d8c6bb50_GLOBAL__N__{0}_9_twice_cu_22d8c6bb_6halvedEf"


def ptx_of(mark: str, line: int) -> str:
    """A symbol, and a debug string as nvcc writes it: numbers, so many of them in a line."""
    name = NAME.format(mark)
    numbers = [str(byte) for byte in f"{name} but 1234abcd".encode()]
    lines = [",".join(numbers[at : at + line]) for at in range(0, len(numbers), line)]
    return f".func {name}(\n.b8 " + "\n.b8 ".join(lines) + "\n\t}\n"


@pytest.mark.parametrize("line", range(1, 45))
def test_names_lose_the_mark_of_the_folder_wherever_lines_break(line):
    there, here = (
        compile_kernel.stable_names(ptx_of(mark, line), "csrc/twice.cu")
        for mark in ("1234abcd", "0badcafe")
    )
    (mark,) = set(re.findall(r"_([0-9a-f]{8})_9", there))
    assert mark not in ("1234abcd", "0badcafe")
    assert there == here == ptx_of(mark, line)


def test_ptx_without_local_names_stays():
    ptx = ".param .align 8 .b8 twice_param_0[56]\n.b8 95,0\n"
    assert compile_kernel.stable_names(ptx, "csrc/twice.cu") == ptx


def compile_in(folder: Path, nvcc: str) -> dict[str, bytes]:
    (folder / "csrc" / "part").mkdir(parents=True)
    (folder / "csrc" / "part" / "values.cuh").write_text(HEADER)
    source = folder / "csrc" / "part" / "twice.cu"
    source.write_text(KERNEL)
    command = [sys.executable, str(ROOT / "cmake" / "compile_kernel.py"), "--nvcc", nvcc]
    command += ["--root", str(folder), "--source", str(source)]
    for part in ("ptx", "cubin", "log", "depfile"):
        command += [f"--{part}", str(folder / f"twice.{part}")]
    subprocess.run(command, check=True)
    return {part: (folder / f"twice.{part}").read_bytes() for part in ("ptx", "cubin", "log")}


def test_two_folders_give_the_same_bytes(tmp_path):
    nvcc = find_cuda.find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc of CUDA 13 is not on this machine")
    first = compile_in(tmp_path / "first", nvcc)
    second = compile_in(tmp_path / "a" / "second one", nvcc)
    assert first == second
    # The kernel has what there was to normalise.
    assert re.search(rb"_GLOBAL__N__[0-9a-f]{8}_", first["ptx"])
    assert b"csrc/part/values.cuh" in first["ptx"] and b"Used " in first["log"]
