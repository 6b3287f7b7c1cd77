"""What the commands share: reading options from the command line, finding a checkpoint."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import TypeVar

from abyssal.errors import InputError

Options = TypeVar("Options")

STEP_DIRECTORY = re.compile(r"step-(\d+)")


def parse(options: type[Options], command: str, description: str, argv: list[str]) -> Options:
    """Fill a dataclass of options from the command line.

    Fields without a default are positional, lists are repeated flags, and a bool is a flag. The
    docstrings of the fields are the help, after which the process exits with 0. Raises InputError
    for a wrong command line.
    """
    import tyro

    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                options,
                prog=f"abyssal {command}",
                description=description,
                args=argv,
                config=(
                    tyro.conf.PositionalRequiredArgs,
                    tyro.conf.FlagCreatePairsOff,
                    tyro.conf.UseAppendAction,
                ),
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        problem = first_sentence(messages.getvalue())
        raise InputError(f"{problem}; `abyssal {command} --help` explains the options") from None


def first_sentence(framed: str) -> str:
    """What tyro complains about, without the frame around it and the advice below its rule.

    The title stands in the frame's upper edge or, where the terminal has only ASCII, in a line of
    its own with a rule below.
    """
    lines = [line.strip("\u2502 ") for line in framed.splitlines()]
    title = 1 if framed.startswith("\u256d") else 2
    body = []
    for line in lines[title:]:
        if not line.strip("-\u2500") or line.startswith("\u2570"):
            break
        body.append(line)
    return " ".join(body).rstrip(".")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint directory that `path` means: itself, or the latest one of a run directory.

    A checkpoint directory holds a config.json; a run directory holds checkpoints/step-XXXXXXXX.
    Raises FileNotFoundError when there is neither.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not path.is_dir():
        raise InputError(f"{path} is a file; a checkpoint is a directory with a config.json")
    if (path / "config.json").is_file():
        return path
    steps = {
        int(match[1]): child
        for child in (path / "checkpoints").glob("step-*")
        if (match := STEP_DIRECTORY.fullmatch(child.name)) and (child / "config.json").is_file()
    }
    if not steps:
        raise FileNotFoundError(f"{path} holds neither a config.json nor checkpoints/step-*")
    return steps[max(steps)]
