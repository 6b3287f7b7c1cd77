"""`abyssal train [CONFIG.toml] [--field value ...]`: train a model on text."""

from __future__ import annotations

import contextlib
import io
import signal
import sys

from abyssal.cli.common import first_sentence
from abyssal.errors import InputError
from abyssal.training.config import TrainConfig, read_toml

DESCRIPTION = (
    "Train a DeepSeek-V3 model on a directory of text. CONFIG.toml holds options, its keys are the "
    "names below with _ for -; what the command line says wins over it. The run can be resumed, "
    "its checkpoints are read by `abyssal generate` and `abyssal export`."
)


def main(argv: list[str]) -> int:
    """Train. Returns 0 at the end of the budget, 1 if the training diverged, and 128 + N if signal
    N ended it; the run is then saved and can be resumed."""
    config = parse_config(argv)
    # Loaded late: --help and wrong options answer without torch.
    from abyssal.training.trainer import Trainer, TrainingDiverged

    try:
        trainer = Trainer(config)
        trainer.run()
    except TrainingDiverged as error:
        print(f"abyssal: error: {error}", file=sys.stderr)
        return 1
    return 128 + signal.Signals[trainer.stopped_by] if trainer.stopped_by else 0


def parse_config(argv: list[str]) -> TrainConfig:
    """The run that a TOML file and options describe; unchecked. Raises InputError."""
    import tyro

    settings = {"data": tyro.MISSING}
    if argv and not argv[0].startswith("-"):
        path, *argv = argv
        settings |= read_toml(path)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                TrainConfig,
                prog="abyssal train [CONFIG.toml]",
                description=DESCRIPTION,
                args=argv,
                default=TrainConfig(**settings),
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        problem = first_sentence(messages.getvalue())
        raise InputError(f"{problem}; `abyssal train --help` explains the options") from None
