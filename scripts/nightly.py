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
from typing import Any

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
        tests = summarise(read_tests(report))
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


def summarise(tests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By test function: cases passed, seconds of all cases, and each case that did not pass."""
    summary: dict[str, dict[str, Any]] = {}
    for test in tests:
        function, _, case = test["name"].partition("[")
        entry = summary.setdefault(function, {"passed": 0, "seconds": 0.0})
        entry["seconds"] = round(entry["seconds"] + test["seconds"], 2)
        if test["outcome"] == "passed":
            entry["passed"] += 1
        else:
            others = entry.setdefault(test["outcome"], {})
            others[case.removesuffix("]") or function] = test["reason"]
    return summary


if __name__ == "__main__":
    sys.exit(main())
