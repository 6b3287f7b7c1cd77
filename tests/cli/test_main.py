"""The command line's dispatch: help, version, exit codes, one sentence per user error."""

import os
import subprocess
import sys

import pytest

from abyssal import __version__
from abyssal.cli import main as cli
from abyssal.errors import InputError


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"  {command} " in printed


def test_without_a_command_the_usage_is_an_error(capsys):
    assert cli.main([]) == 2
    assert "usage: abyssal COMMAND" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"abyssal {__version__}\n"


def test_an_unknown_command_is_one_sentence(capsys):
    assert cli.main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("abyssal: error: unknown command 'trian'; one of train,")
    assert captured.err.count("\n") == 1


class FakeCommand:
    """Stands for a command's module."""

    def __init__(self, outcome):
        self.outcome = outcome

    def main(self, argv):
        assert argv == ["--flag", "x"]
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "code", "stderr"),
    [
        (0, 0, ""),
        (3, 3, ""),
        (InputError("x must be 1, not 2"), 2, "abyssal: error: x must be 1, not 2\n"),
        (FileNotFoundError("no model at y"), 2, "abyssal: error: no model at y\n"),
        (FileNotFoundError(2, "No such file", "y"), 2, "abyssal: error: y: No such file\n"),
        (PermissionError(13, "Not permitted", "z"), 2, "abyssal: error: z: Not permitted\n"),
        (FileExistsError(17, "File exists", "z"), 2, "abyssal: error: z: File exists\n"),
        (OSError(28, "No space left on device"), 2, "abyssal: error: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_outcomes_become_exit_codes(outcome, code, stderr, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "abyssal.cli.info", FakeCommand(outcome))
    assert cli.main(["info", "--flag", "x"]) == code
    assert capsys.readouterr().err == stderr


def test_a_reader_that_went_away_is_no_traceback():
    command = [sys.executable, "-m", "abyssal", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        complaint = process.stderr.read()
    assert process.returncode == 141
    assert complaint == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_one_sentence():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "abyssal", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr == "abyssal: error: No space left on device\n"


def test_a_name_that_is_too_long_is_one_sentence(tmp_path, capsys):
    long = str(tmp_path / ("x" * 300))
    assert cli.main(["generate", long, "--prompt", "a"]) == 2
    assert capsys.readouterr().err == f"abyssal: error: {long}: File name too long\n"


@pytest.mark.parametrize("bug", [ValueError("a bug"), OSError("a bug")])
def test_our_own_bugs_are_not_disguised_as_user_errors(bug, monkeypatch):
    monkeypatch.setitem(sys.modules, "abyssal.cli.info", FakeCommand(bug))
    with pytest.raises(type(bug), match="a bug"):
        cli.main(["info", "--flag", "x"])


def test_help_answers_without_loading_torch():
    code = "import sys, abyssal.cli.main as c; c.main(['--help']); print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("False\n")


def test_python_dash_m_runs_the_command_line():
    result = subprocess.run(
        [sys.executable, "-m", "abyssal", "nothing"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("abyssal: error: unknown command 'nothing'")
