"""The demonstration behind `make demo`: train on Python's own library, write code, fill a hole.

Everything goes through the public command line. Exits with 1 if the model did not learn: if its
validation bits per byte stay above the limit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "examples" / "train_tiny.toml"

LIMIT_BITS_PER_BYTE = 2.5

# What is not the library's own code, or not ordinary code: installed packages, tests, tables.
SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "encodings",
    "pydoc_data",
}

PROMPT = "    def __init__(self, name"
HOLE = ("def read(self, size):\n    ", "\n    return data\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, help="training time; default: the one in CONFIG")
    options = parser.parse_args()

    begin = time.monotonic()
    run = options.out / "run"
    text = collect_library(options.out / "text")
    if run.exists():  # of an earlier demonstration
        shutil.rmtree(run)
    minutes = [] if options.minutes is None else ["--max-minutes", str(options.minutes)]
    abyssal("train", CONFIG, "--data", text, "--run-dir", run, *minutes)

    headline("It writes code")
    abyssal("generate", run, "--prompt", PROMPT, *sampling(300))
    headline("It fills a hole")
    abyssal("generate", run, "--fim", *HOLE, *sampling(80))
    learned = report(run)
    print(f"\ndone in {time.monotonic() - begin:.0f} seconds")
    return 0 if learned else 1


def collect_library(target: Path) -> Path:
    """Copy the standard library's own source files into `target`, without packages and tests."""
    if target.exists():
        shutil.rmtree(target)
    library = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in library.rglob("*.py")
        if SKIPPED.isdisjoint(path.relative_to(library).parts)
    ]
    for path in files:
        copy = target / path.relative_to(library)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    size = sum(path.stat().st_size for path in files)
    print(f"text      {len(files)} files of {library}, {size / 1e6:.1f} MB")
    return target


def abyssal(*arguments: object) -> None:
    """Run the command line as a user would; its failure is ours."""
    command = [sys.executable, "-m", "abyssal", *map(str, arguments)]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def sampling(tokens: int) -> list[str]:
    return ["--max-new-tokens", str(tokens), "--temperature", "0.5", "--seed", "1"]


def headline(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def report(run: Path) -> bool:
    """Print what was learned, from the run's own records. Returns whether it is enough."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    checks = [record for record in records if record["kind"] == "validation"]
    last_step = [record for record in records if record["kind"] == "train"][-1]
    first, last = checks[0]["bits_per_byte"], checks[-1]["bits_per_byte"]
    headline("What it learned")
    print(f"tokens trained on            {last_step['tokens']:,}")
    print(f"validation, untrained        {first:.3f} bits per byte")
    print(f"validation, trained          {last:.3f} bits per byte")
    loads = "  ".join(f"{load:.2f}" for load in last_step["expert_load"])
    print(f"fullest expert / mean load   {loads}  (one number per router)")
    print(f"curves                       {run / 'curves.png'}")
    if last > LIMIT_BITS_PER_BYTE:
        print(f"the model did not learn: {last:.3f} is above {LIMIT_BITS_PER_BYTE} bits per byte")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
