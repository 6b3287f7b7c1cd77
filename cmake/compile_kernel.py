"""Compile one kernel file for sm_90a: CUDA C++ to PTX, and that same PTX to a cubin.

The PTX that tests run is by construction what ptxas assembled. Between the two steps, what PTX
keeps of the folder it was compiled in is replaced, so that one nvcc makes the same bytes of the
same sources in every folder. ptxas' report on registers and spills is kept, less the time that it
took: the static gate of the tests reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("nvcc", "root", "source", "ptx", "cubin", "log", "depfile"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    root, source, ptx = Path(options.root), Path(options.source), Path(options.ptx)

    compiler = [options.nvcc, "-arch=compute_90a", "-ptx", "-lineinfo", "-std=c++20", "-O3"]
    compiler += ["-Werror", "all-warnings", "-I", str(root / "csrc")]
    dependencies = ["-MD", "-MF", options.depfile, "-MT", options.ptx]
    run([*compiler, *dependencies, options.source, "-o", options.ptx])
    text = relative_paths(ptx.read_text(), root)
    ptx.write_text(stable_names(text, source.relative_to(root).as_posix()))
    assembler = [options.nvcc, "-arch=sm_90a", "-cubin", "-lineinfo", "-Xptxas", "-v,-warn-spills"]
    report = run([*assembler, options.ptx, "-o", options.cubin])
    Path(options.log).write_text(without_times(report))
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


def stable_names(ptx: str, source: str) -> str:
    """Take the compiling folder out of the names of what is local to a file.

    nvcc tells such names apart by eight hexadecimal digits that it hashes from the file's absolute
    path. They stand in symbols, and in the debug strings as lists of bytes that run over lines.
    Here they become a hash of `source`, the path relative to the root.
    """
    new = hashlib.sha256(source.encode()).hexdigest()[:8]
    data = ",".join(re.findall(r"^\.b8 ([\d,]+)$", ptx, flags=re.MULTILINE))
    strings = bytes(map(int, filter(None, data.split(",")))).decode("latin-1")
    for old in set(re.findall(r"(?:_INTERNAL|_GLOBAL__N_)_([0-9a-f]{8})_", ptx + strings)):
        ptx = ptx.replace(f"_{old}_", f"_{new}_")
        listed = r"(,|\n\.b8 )".join(str(ord(character)) for character in f"_{old}_")
        ptx = re.sub(rf"\b{listed}\b", lambda found: _listed(f"_{new}_", found.groups()), ptx)
    return ptx


def _listed(text: str, separators: tuple[str, ...]) -> str:
    """The bytes of a text as numbers, with the separators between them."""
    numbers = [str(ord(character)) for character in text]
    return "".join(a + b for a, b in zip(numbers, (*separators, ""), strict=True))


def without_times(report: str) -> str:
    """ptxas' report without how long each kernel took to compile."""
    return re.sub(r"^ptxas info +: Compile time = .*\n", "", report, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
