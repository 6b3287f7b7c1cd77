"""Writing what must be whole or not there: flush everything, then rename."""

from __future__ import annotations

import os
from pathlib import Path


def flush_tree(directory: Path) -> None:
    """Wait until a directory and everything below it is on disk."""
    for path in sorted(directory.rglob("*")):
        flush(path)
    flush(directory)


def flush(path: Path) -> None:
    """Wait until a file's or directory's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
