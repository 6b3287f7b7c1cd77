"""Compiling the microkernels: CUDA C++ to PTX, and that PTX to a cubin, as the build does.

Results are kept by the hash of everything that goes in, in the user's cache folder
(ABYSSAL_TEST_CACHE chooses another): a test session compiles only what changed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "tests" / "hopper" / "kernels"
TIMING_KERNELS = ROOT / "benchmarks" / "microkernels"
SOURCES = sorted(path.stem for path in KERNELS.glob("*.cu"))

COMPILE = ["-arch=compute_90a", "-ptx", "-lineinfo", "-std=c++20", "-O3"]
COMPILE += ["-Werror", "all-warnings", "-I", str(ROOT / "csrc")]
ASSEMBLE = ["-arch=sm_90a", "-cubin", "-lineinfo", "-Xptxas", "-v,-warn-spills"]


class CompilerMissing(Exception):
    """There is no nvcc; the message says where it was looked for."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """ptx: the text. log: what ptxas said of it."""

    ptx: str
    cubin: bytes
    log: str


def compile_kernels(source: str) -> Compiled:
    """A file of tests/hopper/kernels by its stem, or of any folder by its path, from the cache if
    it is there. Raises CompilerMissing, or RuntimeError with what nvcc printed."""
    path = find_source(source)
    folder = cache_folder() / f"{path.stem}-{content_hash(source)}"
    if not folder.is_dir():
        compile_into(folder, path)
    return Compiled(
        ptx=(folder / "kernel.ptx").read_text(),
        cubin=(folder / "kernel.cubin").read_bytes(),
        log=(folder / "kernel.log").read_text(),
    )


def find_source(source: str) -> Path:
    return Path(source) if source.endswith(".cu") else KERNELS / f"{source}.cu"


def compile_into(folder: Path, source: Path) -> None:
    """The folder appears complete or not at all, whoever else compiles the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work_folder:
        work = Path(work_folder) / "result"
        work.mkdir()
        run([*COMPILE, str(source), "-o", str(work / "kernel.ptx")])
        ptx = work / "kernel.ptx"
        relative_paths = _build_step().relative_paths
        ptx.write_text(relative_paths(ptx.read_text(), ROOT))
        log = run([*ASSEMBLE, str(ptx), "-o", str(work / "kernel.cubin")])
        (work / "kernel.log").write_text(log)
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def run(arguments: list[str]) -> str:
    """What nvcc printed."""
    # What `make sanitize` puts before every program is not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        [find_nvcc(), *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"nvcc {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@functools.cache
def find_nvcc() -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "build_backend" / "find_cuda.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines or not lines[0]:
        raise CompilerMissing(done.stderr.strip() or "nvcc 13 was not found")
    return lines[0]


def content_hash(source: str) -> str:
    """Of the file, the headers beside it and of csrc/hopper, the flags and the compiler."""
    digest = hashlib.sha256(" ".join([*COMPILE[:-1], *ASSEMBLE, _nvcc_version()]).encode())
    headers = sorted((ROOT / "csrc" / "hopper").iterdir())
    headers += sorted(find_source(source).parent.glob("*.cuh"))
    for path in [find_source(source), Path(__file__), *headers]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _nvcc_version() -> str:
    return subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True).stdout


@functools.cache
def _build_step():
    """cmake/compile_kernel.py, which has the rewriting of paths."""
    path = ROOT / "cmake" / "compile_kernel.py"
    specification = importlib.util.spec_from_file_location("compile_kernel", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def cache_folder() -> Path:
    chosen = os.environ.get("ABYSSAL_TEST_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "abyssal" / "microkernels"
