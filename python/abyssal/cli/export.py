"""`abyssal export CHECKPOINT DIRECTORY`: a checkpoint in the Hugging Face layout."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from abyssal.cli.common import find_checkpoint, parse
from abyssal.errors import InputError

# Copied as they are; the trainer's own state (optimizer, data position) stays behind.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclasses.dataclass
class ExportOptions:
    """Options of `abyssal export`."""

    checkpoint: Path
    """A checkpoint directory, or a training run's directory (its latest checkpoint)."""
    directory: Path
    """Where to write; must not exist yet, or be empty."""
    dtype: Literal["fp8", "bf16", "float32"] = "bf16"
    """bf16; float32; or fp8: the released weights' E4M3 in 128x128 blocks with their scales."""


def main(argv: list[str]) -> int:
    """Write the export and say where it is."""
    options = parse(
        ExportOptions,
        "export",
        "Write a checkpoint in the Hugging Face layout, with its tokenizer.",
        argv,
    )
    source = find_checkpoint(options.checkpoint)
    export(source, options.directory, options.dtype)
    print(f"exported {source} as {options.dtype} to {options.directory}")
    return 0


def export(source: Path, directory: Path, dtype: str) -> None:
    """Rewrite the checkpoint at `source` to `directory`, all of it or nothing.

    One tensor is in memory at a time, so any checkpoint can be exported anywhere.

    Raises InputError when `directory` holds anything, and what reading a damaged checkpoint raises.
    """
    _check_target(directory)
    from abyssal.model.checkpoint import convert_checkpoint

    with _folders_above(directory):
        # Written next to its place and moved there when complete; a rename within a directory is
        # atomic, and mkdtemp keeps two exports apart.
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            contents = partial / directory.name
            convert_checkpoint(source, contents, dtype=dtype)
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, contents / name)
            _check_target(directory)
            os.replace(contents, directory)
        finally:
            shutil.rmtree(partial)


@contextlib.contextmanager
def _folders_above(directory: Path) -> Iterator[None]:
    """Make them. Those that are new go again if the block fails."""
    new = [folder for folder in directory.parents if not folder.exists()]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):  # it came to hold something else
                folder.rmdir()
        raise


def _check_target(directory: Path) -> None:
    if directory.is_dir():
        if any(directory.iterdir()):
            raise InputError(f"{directory} is not empty; export does not overwrite")
    elif directory.exists() or directory.is_symlink():
        raise InputError(f"{directory} exists and is not a directory; export does not overwrite")
