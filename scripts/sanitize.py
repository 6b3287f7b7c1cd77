"""Run the emulator's tests under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

The extension is built a second time, with the sanitizers, in build/sanitize, and installed into an
environment of its own that takes all other packages from the present one. The first wrong access
or operation ends the test process with a report. Arguments go to pytest, instead of the folders of
tests that are run otherwise. Needs GCC and Linux.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
ENVIRONMENT = BUILD / "venv"
TESTS = ["tests/emulator", "tests/hopper", "--numprocesses=auto", "--timeout=1800"]
# The sanitizers report a wrong address themselves.
OPTIONS = ["-p", "no:faulthandler"]


def main(arguments: list[str]) -> int:
    python = install()
    command = [str(python), "-m", "pytest", *OPTIONS, *(arguments or TESTS)]
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


def install() -> Path:
    """Builds what has changed. Returns the environment's interpreter."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        own = subprocess.check_output(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
        # Packages of a path file come behind the environment's own abyssal.
        (Path(own) / "others.pth").write_text("\n".join(others) + "\n")
    settings = {
        "build-dir": str(BUILD / "cmake"),
        "cmake.build-type": "Debug",
        "cmake.define.ABYSSAL_SANITIZE": "ON",
        "install.strip": "false",
    }
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--constraint", "constraints.txt", "--editable", "."]
    for name, value in settings.items():
        pip += ["--config-settings", f"{name}={value}"]
    subprocess.run(pip, cwd=ROOT, check=True)
    return python


def environment() -> dict[str, str]:
    """The interpreter is not built with the sanitizers, so their run-time library comes first."""
    compiler = os.environ.get("CXX", "c++")
    libraries = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not Path(libraries[0]).is_absolute():
        raise SystemExit(f"{compiler} has no libasan.so: `make sanitize` needs GCC's")
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        # Python itself leaks; what is too large to allocate is an error like any other; and with
        # detect_stack_use_after_return, GCC 12 misaligns vectors of 64 bytes on the stack.
        "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1,"
        "detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
