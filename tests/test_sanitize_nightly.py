"""The emulator's tests under AddressSanitizer and UndefinedBehaviorSanitizer find nothing."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import sanitize

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.nightly
@pytest.mark.skipif(platform.system() != "Linux", reason="needs GCC's sanitizers")
def test_nothing_is_found():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.sanitize"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-20_000:]
    extensions = list(sanitize.ENVIRONMENT.rglob("abyssal/_extension*.so"))
    assert extensions and all(b"libasan" in path.read_bytes() for path in extensions)
