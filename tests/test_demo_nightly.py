"""`make demo`, whole: it learns in the time it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.nightly
def test_the_demonstration_learns(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    untrained, trained = (
        float(re.search(rf"validation, {when} +([\d.]+) bits per byte", done.stdout)[1])
        for when in ("untrained", "trained")
    )
    assert untrained > 7.5 and trained <= 2.5
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
