"""Which nvcc and cuda.h a build takes, and what it asks PyPI for where there are none."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


find_cuda = load(ROOT / "build_backend" / "find_cuda.py")
compile_kernel = load(ROOT / "cmake" / "compile_kernel.py")


def make_toolkit(folder: Path, version: str = "13.0", header: bool = True) -> Path:
    """A toolkit as far as the search looks: an nvcc that tells its version, and a header."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {version}, V{version}.1"\n')
    nvcc.chmod(0o755)
    if header:
        major, minor = version.split(".")
        (folder / "include").mkdir()
        number = 1000 * int(major) + 10 * int(minor)
        (folder / "include" / "cuda.h").write_text(f"#define CUDA_VERSION {number}\n")
    return nvcc


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without any CUDA; returns the folder that plays site-packages."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "ABYSSAL_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    site = tmp_path / "site-packages"
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(find_cuda, "USUAL_PLACES", (tmp_path / "usual",))
    return site


def test_a_bare_machine_gets_both_from_pypi(bare):
    assert find_cuda.find_nvcc() is None and find_cuda.find_header(None) is None
    assert find_cuda.missing() == ["cuda-toolkit[nvcc]==13.0.*"]


def test_without_kernels_the_header_is_enough(bare, monkeypatch):
    monkeypatch.setenv("ABYSSAL_KERNELS", "off")
    assert find_cuda.missing() == ["nvidia-cuda-runtime==13.0.*"]
    make_toolkit(bare / "nvidia" / "cu13")
    assert find_cuda.missing() == []


def test_the_pypi_package_is_found(bare):
    nvcc = make_toolkit(bare / "nvidia" / "cu13")
    assert find_cuda.find_nvcc() == str(nvcc)
    assert find_cuda.find_header(str(nvcc)) == str(bare / "nvidia" / "cu13" / "include")
    assert find_cuda.missing() == []


def test_the_usual_place_wins_over_pypi_and_the_path_over_both(bare, tmp_path, monkeypatch):
    make_toolkit(bare / "nvidia" / "cu13")
    usual = make_toolkit(tmp_path / "usual")
    assert find_cuda.find_nvcc() == str(usual)
    assert find_cuda.find_header(str(usual)) == str(tmp_path / "usual" / "include")
    on_path = make_toolkit(tmp_path / "other", "13.2")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_cuda.find_nvcc() == str(on_path)
    assert find_cuda.find_header(str(on_path)) == str(tmp_path / "other" / "include")


def test_an_old_compiler_is_passed_over(bare, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(make_toolkit(tmp_path / "old", "12.4").parent))
    assert find_cuda.find_nvcc() is None
    assert find_cuda.missing() == ["cuda-toolkit[nvcc]==13.0.*"]


def test_cudacxx_is_an_order(bare, tmp_path, monkeypatch):
    make_toolkit(tmp_path / "usual")
    ordered = make_toolkit(tmp_path / "ordered", header=False)
    monkeypatch.setenv("CUDACXX", str(ordered))
    assert find_cuda.find_nvcc() == str(ordered)
    monkeypatch.setenv("CUDACXX", str(make_toolkit(tmp_path / "old", "12.4")))
    with pytest.raises(SystemExit, match="not an nvcc of CUDA 13.0 or newer"):
        find_cuda.find_nvcc()


def test_a_misspelt_switch_is_refused(bare, monkeypatch):
    monkeypatch.setenv("ABYSSAL_KERNELS", "no")
    with pytest.raises(SystemExit, match="ABYSSAL_KERNELS must be on or off, not 'no'"):
        find_cuda.missing()


def test_paths_in_ptx_become_relative(tmp_path):
    (tmp_path / "csrc").mkdir()
    text = (
        f'\t.file\t1 "{tmp_path}/csrc/quant/a.cu", 1781, 12\n'
        f'\t.file\t2 "{tmp_path}/csrc/../csrc/hopper/b.cuh"\n'
        '\t.file\t3 "/opt/cuda/include/cuda_fp8.hpp"\n'
        "\t.loc\t1 5 0\n"
    )
    assert compile_kernel.relative_paths(text, tmp_path).splitlines() == [
        '\t.file\t1 "csrc/quant/a.cu"',
        '\t.file\t2 "csrc/hopper/b.cuh"',
        '\t.file\t3 "cuda_fp8.hpp"',
        "\t.loc\t1 5 0",
    ]
