"""Compile one kernel file for sm_90a: CUDA C++ to PTX, and that same PTX to a cubin.

The PTX that tests run is by construction what ptxas assembled. Between the two steps, the source
paths that PTX keeps for debuggers (`.file`) are made relative to the repository, so that builds
are reproducible and no build machine's folders end up in a wheel. ptxas' report on registers and
spills is kept: the static gate of the tests reads it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("nvcc", "root", "source", "ptx", "cubin", "log", "depfile"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    root, ptx = Path(options.root), Path(options.ptx)

    compiler = [options.nvcc, "-arch=compute_90a", "-ptx", "-lineinfo", "-std=c++20", "-O3"]
    compiler += ["-Werror", "all-warnings", "-I", str(root / "csrc")]
    dependencies = ["-MD", "-MF", options.depfile, "-MT", options.ptx]
    run([*compiler, *dependencies, options.source, "-o", options.ptx])
    ptx.write_text(relative_paths(ptx.read_text(), root))
    assembler = [options.nvcc, "-arch=sm_90a", "-cubin", "-lineinfo", "-Xptxas", "-v,-warn-spills"]
    report = run([*assembler, options.ptx, "-o", options.cubin])
    Path(options.log).write_text(report)
    return 0


def run(command: list[str]) -> str:
    """What the command printed on stderr. Ends the build if it fails."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr or f"{command[0]} failed with code {done.returncode}")
    return done.stderr


def relative_paths(ptx: str, root: Path) -> str:
    """Rewrite `.file` entries: our sources relative to the root, others to their name alone."""

    def shorten(entry: re.Match[str]) -> str:
        path = Path(entry[2])
        if path.is_absolute():
            inside = path.resolve().is_relative_to(root.resolve())
            path = path.resolve().relative_to(root.resolve()) if inside else Path(path.name)
        return f'{entry[1]}"{path}"'

    return re.sub(r'^(\s*\.file\s+\d+\s+)"([^"]*)"(,.*)?$', shorten, ptx, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
