"""Mutation testing: python -m scripts.mutate FOLDER ..., with PTX and a launch description each.

Writes the reports; ends with 1 if --at-least is missed or something else is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from abyssal.emulator.mutation import Report, mutate

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="with launch.py: docs/mutation.md")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0, help="of the inputs and the sample")
    parser.add_argument("--sample", type=int, help="run only so many mutants, drawn by the seed")
    parser.add_argument("--at-least", type=float, default=0.0, help="raw share to be reached")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    found = {}
    has_failed = False
    for folder in options.folders:
        report = mutate(
            folder,
            jobs=options.jobs,
            seed=options.seed,
            sample=options.sample,
            progress=_progress if sys.stderr.isatty() else lambda done, total: None,
        )
        print(f"{folder}\n\n{report}\n")
        if report.raw < options.at_least:
            print(f"FAILED  raw {report.raw:.4f} is below {options.at_least:.4f}\n")
        has_failed |= bool(report.problems()) or report.raw < options.at_least
        found[folder.resolve().name] = figures(report)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(has_failed)


def figures(report: Report) -> dict[str, Any]:
    """What is kept of a report."""
    return {
        "executed": len(report.executed),
        "killed": len(report.killed),
        "raw": round(report.raw, 4),
        "adjusted": round(report.adjusted, 4),
        "by_operator": {
            name: {"killed": killed, "executed": executed}
            for name, (killed, executed) in report.by_operator().items()
        },
    }


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
