"""Run the tests that take long, and write down how they went: `make nightly`.

The result, tests/nightly.json, is committed: it says what was run last, where and with what
outcome. Exits with pytest's code.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import abyssal
from scripts.junit import read_tests

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "tests" / "nightly.json"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--nightly", "-m", "nightly", "--timeout=3600"]
        code = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False).returncode
        tests = read_tests(report)
    result = {
        "date": datetime.date.today().isoformat(),
        "abyssal": abyssal.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "exit_code": code,
        "tests": tests,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {RESULT.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
