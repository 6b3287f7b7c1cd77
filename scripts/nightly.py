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
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

import abyssal

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "tests" / "nightly.json"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--nightly", "-m", "nightly", "--timeout=3600"]
        code = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False).returncode
        tests = read_report(report) if report.exists() else []
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


def read_report(report: Path) -> list[dict[str, object]]:
    """Name, outcome, seconds and, if it did not pass, the reason of each test."""
    tests = []
    for case in ElementTree.parse(report).iter("testcase"):
        test: dict[str, object] = {
            "name": f"{case.get('classname')}::{case.get('name')}",
            "outcome": "passed",
            "seconds": round(float(case.get("time", 0)), 1),
        }
        for outcome in ("failure", "error", "skipped"):
            found = case.find(outcome)
            if found is not None:
                reason = (found.get("message") or "").partition("\n")[0]
                test |= {"outcome": outcome, "reason": reason}
        tests.append(test)
    return tests


if __name__ == "__main__":
    sys.exit(main())
