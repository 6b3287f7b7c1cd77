"""Where nvcc and cuda.h are, for the build backend and for CMake; run alone, it prints both paths.

nvcc: $CUDACXX, else the PATH's, else that of CUDA_HOME or /usr/local/cuda, else PyPI's in this
Python environment. One that is too old is passed over, except CUDACXX, which is an order.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Compilers that emit what the driver of CUDA 13.0 (R580) loads, and PTX for sm_90a.
OLDEST = (13, 0)
NVCC_PACKAGE = "cuda-toolkit[nvcc]==13.0.*"
HEADER_PACKAGE = "nvidia-cuda-runtime==13.0.*"
USUAL_PLACES = (Path("/usr/local/cuda"), Path("/usr/local/cuda-13.0"))


def kernels_wanted() -> bool:
    setting = os.environ.get("ABYSSAL_KERNELS", "on")
    if setting not in ("on", "off"):
        raise SystemExit(f"ABYSSAL_KERNELS must be on or off, not {setting!r}")
    return setting == "on"


def nvcc_version(nvcc: str) -> tuple[int, int]:
    """(major, minor); (0, 0) if it does not run."""
    try:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return (0, 0)
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _toolkits() -> Iterator[Path]:
    """Folders with bin/nvcc or include/cuda.h in them, the preferred ones first."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if name in os.environ:
            yield Path(os.environ[name])
    yield from USUAL_PLACES
    for folder in sys.path:
        yield Path(folder or ".") / "nvidia" / "cu13"


def find_nvcc() -> str | None:
    ordered = os.environ.get("CUDACXX")
    if ordered:
        if nvcc_version(ordered) < OLDEST:
            raise SystemExit(f"CUDACXX={ordered} is not an nvcc of CUDA 13.0 or newer")
        return ordered
    on_path = shutil.which("nvcc")
    candidates = ([on_path] if on_path else []) + [str(t / "bin" / "nvcc") for t in _toolkits()]
    return next((nvcc for nvcc in candidates if nvcc_version(nvcc) >= OLDEST), None)


def find_header(nvcc: str | None) -> str | None:
    """The folder that holds cuda.h: of nvcc's toolkit if it has one."""
    folders = list(_toolkits())
    if nvcc:
        folders.insert(0, Path(nvcc).resolve().parent.parent)
    folders = [folder / "include" for folder in folders] + [Path("/usr/include")]
    return next((str(folder) for folder in folders if _is_cuda_13(folder / "cuda.h")), None)


def _is_cuda_13(header: Path) -> bool:
    if not header.is_file():
        return False
    version = re.search(r"#define CUDA_VERSION (\d+)", header.read_text(errors="replace"))
    return bool(version) and int(version[1]) >= OLDEST[0] * 1000


def missing() -> list[str]:
    """PyPI requirements that a build on this machine needs."""
    if kernels_wanted() and find_nvcc() is None:
        return [NVCC_PACKAGE]
    return [] if find_header(find_nvcc() if kernels_wanted() else None) else [HEADER_PACKAGE]


if __name__ == "__main__":
    nvcc = find_nvcc() if kernels_wanted() else None
    print(nvcc or "")
    print(find_header(nvcc) or "")
