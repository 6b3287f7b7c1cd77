"""Embedding kernel images: what the table holds, in a folder with an unusual name."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(embedding LANGUAGES CXX ASM)
add_executable(show show.cpp)
target_compile_features(show PRIVATE cxx_std_20)
target_include_directories(show PRIVATE "{csrc}")
set(Python_EXECUTABLE "{python}")
include("{embed}")
abyssal_embed_kernels(show quant/first gemm/second)
"""
# In the compiler's place: each output is its own name and the kernel's.
COMPILER = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in ("nvcc", "root", "source", "ptx", "cubin", "log", "depfile"):
    parser.add_argument("--" + name)
options = parser.parse_args()
for name in ("ptx", "cubin", "log"):
    path = pathlib.Path(getattr(options, name))
    path.write_text(name + " of " + pathlib.Path(options.source).stem)
pathlib.Path(options.depfile).write_text(options.ptx.replace(" ", "\\\\ ") + ":\\n")
"""
SHOW = """
#include <iostream>
#include "runtime/kernel_image.hpp"
int main() {
  for (const auto& image : abyssal::kernel_images())
    for (const auto& part : {image.cubin, image.ptx, image.ptxas_log})
      std::cout << image.name << ": " << part.view() << "\\n";
}
"""


def test_a_folder_with_at_signs(tmp_path):
    project, build = tmp_path / "with @at@ signs", tmp_path / "build @at@"
    for kernel in ("quant/first", "gemm/second"):
        source = project / "csrc" / f"{kernel}.cu"
        source.parent.mkdir(parents=True)
        source.touch()
    (project / "cmake").mkdir()
    (project / "cmake" / "compile_kernel.py").write_text(COMPILER)
    (project / "show.cpp").write_text(SHOW)
    embed = ROOT / "cmake" / "embed_kernels.cmake"
    (project / "CMakeLists.txt").write_text(
        PROJECT.format(csrc=ROOT / "csrc", python=sys.executable, embed=embed)
    )
    cmake = [shutil.which("cmake")] if shutil.which("cmake") else [sys.executable, "-m", "cmake"]
    subprocess.run([*cmake, "-S", project, "-B", build], check=True, capture_output=True)
    done = subprocess.run([*cmake, "--build", build], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run([build / "show"], check=True, capture_output=True, text=True)
    assert shown.stdout.splitlines() == [
        f"{kernel}: {part} of {kernel}"
        for kernel in ("first", "second")
        for part in ("cubin", "ptx", "log")
    ]
