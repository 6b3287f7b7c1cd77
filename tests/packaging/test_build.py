"""What a wheel holds: the package, the extension, and nothing of the machine that built it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pybind11  # noqa: F401 - so that these tests cannot be skipped: what a build stands on
import pytest
import scikit_build_core  # noqa: F401

from abyssal import runtime

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel_without_kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--wheel-dir", str(folder)]
    command += ["--no-deps", "--no-build-isolation", "--quiet"]
    command += [f"--config-settings=build-dir={folder / 'build'}"]
    command += ["--config-settings=cmake.build-type=None"]  # optimised or not, it holds the same
    environment = {**os.environ, "ABYSSAL_KERNELS": "off"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("abyssal-*.whl")
    return wheel


def test_the_wheel_is_complete(wheel_without_kernels):
    names = set(zipfile.ZipFile(wheel_without_kernels).namelist())
    package = ROOT / "python" / "abyssal"
    sources = {
        f"abyssal/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert sources <= names
    assert any(name.startswith("abyssal/_extension.") for name in names)
    assert not [n for n in names if not n.startswith(("abyssal/", "abyssal-"))]


def test_a_build_without_kernels_says_so(wheel_without_kernels, tmp_path):
    zipfile.ZipFile(wheel_without_kernels).extractall(tmp_path)
    code = (
        "import abyssal, torch\n"
        "from abyssal import ops, runtime\n"
        f"assert abyssal.__file__.startswith({str(tmp_path)!r}), abyssal.__file__\n"
        "assert runtime.extension().kernel_images() == {}\n"
        "print(runtime.why_not_cuda())\n"
        "print(ops.quantize_1x128(torch.ones(1, 128)).scale.item())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.extend({sys.path!r})\n" + code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    reason, scale = done.stdout.splitlines()
    assert reason == "this build has no kernels: built with ABYSSAL_KERNELS=off"
    assert float(scale) == pytest.approx(1 / 448)


def test_the_extension_names_no_folder_of_the_build_machine():
    try:
        extension = Path(runtime.extension().__file__)
    except runtime.ExtensionMissing as missing:
        pytest.skip(str(missing))
    assert str(ROOT).encode() not in extension.read_bytes()


def test_the_tests_bring_what_a_build_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = project["build-system"]["requires"]
    assert set(required) <= set(project["project"]["optional-dependencies"]["test"])


def test_the_version_is_stated_once():
    import abyssal

    stated = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{abyssal.__version__}"' in stated or 'dynamic = ["version"]' in stated
