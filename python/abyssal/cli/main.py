"""`abyssal COMMAND ...`: find the command's module, run it, turn user errors into one sentence."""

from __future__ import annotations

import importlib
import io
import os
import sys

from abyssal import __version__
from abyssal.errors import InputError

COMMANDS = {
    "train": "train a model on a directory of text",
    "generate": "continue a prompt, or fill a hole, with a trained checkpoint",
    "export": "write a checkpoint in the Hugging Face layout, in FP8, BF16 or FP32",
    "info": "parameters, FLOPs, cache and memory of a model",
    "bench": "kernel benchmarks, and why a GEMM runs as it does",
    "env": "what this installation and machine can do",
}


def usage() -> str:
    rows = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        "usage: abyssal COMMAND [...]\n\n"
        f"commands:\n{rows}\n\n"
        "`abyssal COMMAND --help` explains a command; `abyssal --version` prints the version."
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns the exit code: 0 done, 2 wrong input (one sentence on stderr), 130 interrupted, 141 the
    reader of the output went away.
    """
    # A terminal that cannot show a letter of a generated text shows the rest of it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # while a closed pipe can still be answered for
        return code
    except BrokenPipeError:
        _give_up_stdout()
        return 141
    except (InputError, OSError) as error:
        print(f"abyssal: error: {_sentence(error)}", file=sys.stderr)
        _give_up_stdout()
        return 2
    except KeyboardInterrupt:
        return 130


def _sentence(error: InputError | OSError) -> str:
    """What an error says to the user. One without a sentence for users is raised again."""
    if isinstance(error, InputError) or (isinstance(error, FileNotFoundError) and not error.errno):
        return str(error)
    if error.strerror is None:
        raise error
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _give_up_stdout() -> None:
    """If stdout cannot be written, drop what it holds: Python would complain again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"abyssal {__version__}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        raise InputError(f"unknown command {command!r}; one of {', '.join(COMMANDS)}")
    return importlib.import_module(f"abyssal.cli.{command}").main(rest)
