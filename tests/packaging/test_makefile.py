"""The Makefile's environment: all of it or nothing."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# As `python3 -m venv` of a Debian without python3-venv: it gives up after the interpreter.
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exit 9
for last; do :; done
mkdir -p "$last/bin" && touch "$last/bin/python"
[ -e python3-venv ] && touch "$last/bin/pip"
"""


def make_environment(folder: Path) -> int:
    command = ["make", "-f", ROOT / "Makefile", "-C", folder, f"PYTHON={folder}/python"]
    return subprocess.run([*command, ".venv/bin/python"], capture_output=True).returncode


def test_an_environment_that_failed_is_made_anew(tmp_path):
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    assert make_environment(tmp_path) != 0
    assert not (tmp_path / ".venv").exists()
    (tmp_path / "python3-venv").touch()
    assert make_environment(tmp_path) == 0
    assert (tmp_path / ".venv" / "bin" / "pip").exists()
