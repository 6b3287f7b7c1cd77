"""Reading pytest's JUnit files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


def read_tests(path: Path) -> list[dict[str, Any]]:
    """Name, outcome, seconds and reason of each test in a JUnit file; none without the file."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return []
    tests = []
    for case in cases:
        test: dict[str, Any] = {
            "name": f"{case.get('classname')}::{case.get('name')}",
            "outcome": "passed",
            "seconds": round(float(case.get("time", 0)), 2),
        }
        for outcome in ("failure", "error", "skipped"):
            found = case.find(outcome)
            if found is not None:
                reason = (found.get("message") or "").partition("\n")[0]
                test |= {"outcome": outcome, "reason": reason}
        tests.append(test)
    return tests
