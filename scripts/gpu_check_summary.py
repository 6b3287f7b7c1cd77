"""What the steps of gpu_check.sh have left behind so far, as one JSON file.

Uses the standard library only: it also has to say that torch is missing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from scripts.junit import read_tests


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: gpu_check_summary.py LOGS OUT.json | --require-passed TESTS.xml")
        return 2
    if arguments[0] == "--require-passed":
        return require_passed(Path(arguments[1]))
    logs, out = map(Path, arguments)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(summarise(logs), indent=2) + "\n", encoding="utf-8")
    partial.replace(out)
    return 0


def summarise(logs: Path) -> dict[str, Any]:
    """Steps in order with outcome and seconds; what the environment is; where they ran, tests,
    benchmarks and timings."""
    rows = (logs / "steps.tsv").read_text(encoding="utf-8").splitlines()
    steps = [
        {"name": name, "exit_code": int(code), "seconds": int(seconds)}
        for name, code, seconds in (row.split("\t") for row in rows)
    ]
    tests = read_tests(logs / "tests.xml") + read_tests(logs / "microkernels.xml")
    finished = (logs / "finished").exists()
    return {
        "rehearsal": (logs / "rehearsal").exists(),
        "finished": finished,
        "succeeded": finished and all(step["exit_code"] == 0 for step in steps),
        "steps": steps,
        "environment": read_json(logs / "env.json"),
        "test_counts": Counter(test["outcome"] for test in tests),
        "tests": tests,
        "benchmarks": read_json(logs / "benchmarks.json"),
        "timings": read_json(logs / "timings.json"),
    }


def read_json(path: Path) -> Any:
    """None for what is not there or was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def require_passed(path: Path) -> int:
    """1 unless some test passed. Prints how many did what, and why tests were skipped."""
    tests = read_tests(path)
    counts = Counter(test["outcome"] for test in tests)
    print(f"{dict(counts)}")
    skipped = {test["reason"] for test in tests if test["outcome"] == "skipped"}
    for reason in sorted(skipped):
        print(f"skipped: {reason}")
    return 0 if counts["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
