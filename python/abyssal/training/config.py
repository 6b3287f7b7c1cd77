"""What a training run is told: one flat dataclass, where field = command-line flag = TOML key."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from abyssal.errors import InputError

if TYPE_CHECKING:
    from abyssal.model.config import DeepseekV3Config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The report's landmarks as fractions of its 14.8T tokens: the learning rate is constant and lambda
# 0.3 until 10T; the cosine and the bias updates end at 14.3T; the last 167B tokens have the lowest
# learning rate, 7.3e-6 after 2.2e-5 and a peak of 2.2e-4 (section 4.2).
REPORT_DECAY_START = 0.676
REPORT_DECAY_END = 0.966
REPORT_FINAL_START = 0.9887
REPORT_FINAL_LR_RATIO = 0.0332

# Without a warm-up length of its own, a run warms up over so many steps (the report: 2000)...
DEFAULT_WARMUP_STEPS = 100
# ... but over no more than this part of its tokens.
LONGEST_DEFAULT_WARMUP = 0.1

# A time budget turns into tokens when the schedule first depends on them; earlier than this part
# of the time, the measured speed would not be worth much.
EARLIEST_PLAN = 0.05

# Fields of the model that follow from the text's tokenizer.
_FIELDS_OF_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")

# Samples draw with seed + step, which must stay below 2**62.
_MOST_SEED = 2**61
_MOST_THREADS = 4096

# Fields that may differ between a checkpoint and the run that resumes it: none of them changes
# what is computed, only where and how it is reported.
FREE_ON_RESUME = {
    "cache_dir",
    "checkpoint_every",
    "data",
    "device",
    "keep_checkpoints",
    "log_every",
    "plot",
    "resume",
    "run_dir",
    "sample_every",
    "sample_prompt",
    "sample_tokens",
    "tensorboard",
    "threads",
    "validate_every",
    "validation_tokens",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Defaults are the report's (section 4.2) where the report has a value that
    does not depend on size; fractions are of the run's tokens, as the report's are of 14.8T.

    `check` raises InputError for what cannot be trained; `Trainer` calls it.
    """

    # Text.
    data: Path
    """Directory (or file) of text or JSONL to learn from."""
    text_field: str = "text"
    """The field of a JSONL record that holds its text."""
    tokenizer: str = "byte"
    """"byte"; "bpe" (trained on the data); or the path of a tokenizer.json or its directory."""
    bpe_vocab_size: int = 8192
    """Vocabulary of a tokenizer trained with `tokenizer = "bpe"`."""
    validation_fraction: float = 0.02
    """Part of the text that is never trained on, only measured."""
    fim_rate: float = 0.1
    """Part of the documents that are turned into prefix-suffix-middle for filling holes."""
    cache_dir: Path | None = None
    """Where the tokenized text is kept for the next run. None: `dataset-cache` beside run_dir."""

    # Model.
    model: str = "tiny"
    """A preset (`abyssal info` lists them), or the path of a config.json or its directory."""
    model_set: tuple[str, ...] = ()
    """Fields of the model to change, such as hidden_size=256 n_routed_experts=16."""
    precision: Literal["float32", "bf16"] = "float32"
    """Type of the matrix products. The trained weights are float32 in both."""

    # Budget.
    total_tokens: int | None = None
    """Train on so many tokens. Give this or max_minutes."""
    max_minutes: float | None = None
    """Train for about so long: the tokens follow from the speed, once, before the decay begins."""
    sequence_length: int = 512
    """Tokens of a sequence."""
    batch_size: int = 16
    """Sequences of an optimiser step."""
    micro_batch_size: int | None = None
    """Sequences computed at once; a divisor of batch_size. None: the whole batch."""

    # Optimiser.
    learning_rate: float = 1e-3
    """Peak of the schedule. The report's 2.2e-4 suits its size; small models like ten times it."""
    warmup_tokens: int | None = None
    """Tokens of the linear warm-up. None: 100 steps, but no more than a tenth of total_tokens."""
    decay_start: float = REPORT_DECAY_START
    """Part of the tokens after which the learning rate falls along a cosine (report: 10T/14.8T)."""
    decay_end: float = REPORT_DECAY_END
    """Part of the tokens after which it is constant again (report: 14.3T/14.8T)."""
    decay_lr_ratio: float = 0.1
    """Learning rate at the end of the cosine over peak learning rate."""
    final_start: float = REPORT_FINAL_START
    """Part of the tokens after which the last learning rate begins (report: the last 167B)."""
    final_lr_ratio: float = REPORT_FINAL_LR_RATIO
    """Last learning rate over peak learning rate (report: 7.3e-6/2.2e-4)."""
    adam_beta1: float = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: float = 0.95
    """AdamW's decay of the second moment."""
    adam_eps: float = 1e-8
    """AdamW's epsilon. The report gives none; this is the usual one."""
    weight_decay: float = 0.1
    """Decay of matrices and embeddings; norms and biases are not decayed (our choice)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""

    # Experts and multi-token prediction.
    bias_update_speed: float = 0.001
    """Gamma: how far a step moves the router's bias of each expert."""
    bias_freeze: float = REPORT_DECAY_END
    """Part of the tokens after which gamma is 0 (report: 14.3T/14.8T)."""
    balance_weight: float = 1e-4
    """Alpha: weight of the sequence-wise balance loss."""
    mtp_weight: float = 0.3
    """Lambda: weight of the multi-token prediction loss."""
    mtp_weight_final: float = 0.1
    """Lambda after mtp_drop."""
    mtp_drop: float = REPORT_DECAY_START
    """Part of the tokens after which lambda is mtp_weight_final (report: 10T/14.8T)."""

    # Run.
    run_dir: Path = Path("runs/train")
    """Where checkpoints, metrics and curves go."""
    resume: bool = False
    """Continue from the newest checkpoint of run_dir, exactly as if it had not stopped."""
    seed: int = 0
    """Seed of the weights, of the order of the text and of the holes."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1"; "auto": a GPU if there is one."""
    threads: int = 0
    """CPU threads. 0: as many as torch finds. Results repeat bit for bit at equal threads."""
    log_every: int = 10
    """Steps between log lines."""
    validate_every: int = 250
    """Steps between validations. 0: only before the first and after the last step."""
    validation_tokens: int = 65536
    """Validate on at most so many tokens."""
    sample_every: int = 500
    """Steps between samples of text. 0: none."""
    sample_prompt: str = ""
    """What samples continue. Empty: the beginning of a validation document."""
    sample_tokens: int = 64
    """Tokens of a sample."""
    checkpoint_every: int = 500
    """Steps between checkpoints. 0: only after the last step."""
    keep_checkpoints: int = 2
    """Older checkpoints are removed."""
    tensorboard: bool = False
    """Write TensorBoard files into run_dir as well."""
    plot: bool = True
    """Draw the curves into run_dir/curves.png (needs matplotlib)."""

    def check(self) -> None:
        """Raise InputError, naming the field, if this run cannot be what was meant."""
        _check_values(self)
        _check_budget(self)
        _check_data(self)
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise InputError(
                f"batch_size={self.batch_size} must be a multiple of "
                f"micro_batch_size={self.micro_batch_size}"
            )
        if not self.decay_start <= self.decay_end <= self.final_start:
            raise InputError(
                f"decay_start={self.decay_start}, decay_end={self.decay_end} and "
                f"final_start={self.final_start} must not decrease"
            )
        model = self.model_config()
        if self.sequence_length > model.max_position_embeddings:
            raise InputError(
                f"sequence_length={self.sequence_length} exceeds the model's "
                f"max_position_embeddings={model.max_position_embeddings}"
            )
        # MTP module k looks k tokens further than its position.
        if self.sequence_length <= model.num_nextn_predict_layers:
            raise InputError(
                f"sequence_length={self.sequence_length} must exceed the model's "
                f"num_nextn_predict_layers={model.num_nextn_predict_layers}"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that an optimiser step learns to predict."""
        return self.batch_size * self.sequence_length

    @property
    def plan_fraction(self) -> float:
        """The part of the run after which its schedules depend on how long the run is."""
        landmarks = [self.decay_start] if self.decay_lr_ratio != 1 else []
        landmarks += [self.final_start] if self.final_lr_ratio != self.decay_lr_ratio else []
        landmarks += [self.mtp_drop] if self.mtp_weight != self.mtp_weight_final else []
        landmarks += [self.bias_freeze] if self.bias_update_speed else []
        return min(landmarks, default=1.0)

    def model_config(self) -> DeepseekV3Config:
        """The model that `model` and `model_set` describe, before it gets the vocabulary."""
        # Needs torch, which takes seconds to load: not for `abyssal train --help`.
        from abyssal.model.presets import get_preset

        changes = dict(map(_assignment, self.model_set))
        for name in _FIELDS_OF_TOKENIZER:
            if name in changes:
                raise InputError(
                    f"model_set: {name}={changes[name]} cannot be chosen, the tokenizer decides it"
                )
        return get_preset(self.model).replace(**changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as TOML and checkpoints hold them: paths as text, no None."""
        values: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, Path):
                values[name] = str(value)
            elif isinstance(value, tuple):
                values[name] = list(value)
            elif value is not None:
                values[name] = value
        return values

    def to_toml(self) -> str:
        """A file that `from_toml` reads back to an equal configuration."""
        # JSON's spelling of text, numbers, true, false and flat lists is also TOML's, but for two
        # things: TOML has no surrogate pairs, and wants the delete character escaped.
        lines = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
            for key, value in self.to_dict().items()
        ]
        return "".join(lines).replace("\x7f", "\\u007f")

    @classmethod
    def from_toml(cls, path: str | Path) -> TrainConfig:
        """Read a TOML file. Raises FileNotFoundError, or InputError that names file and key."""
        values = read_toml(path)
        if "data" not in values:
            raise InputError(f"{path}: data is missing, the directory of text to learn from")
        return cls(**values)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The fields that a TOML file sets, converted to their types.

    Raises FileNotFoundError, or InputError for what is not TOML, unknown keys and wrong types.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    try:
        return convert_fields(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def convert_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of TOML or of a checkpoint in the types of TrainConfig's fields."""
    hints = typing.get_type_hints(TrainConfig)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(
            f"unknown setting {', '.join(map(repr, unknown))}; "
            "`abyssal train --help` lists all of them"
        )
    return {name: _convert(name, value, hints[name]) for name, value in values.items()}


def _convert(name: str, value: Any, hint: Any) -> Any:
    """One value in the type that its annotation asks for."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if kinds[0] == tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif typing.get_origin(kinds[0]) is Literal:
        if value in typing.get_args(kinds[0]):
            return value
    elif Path in kinds and isinstance(value, str):
        return Path(value)
    elif float in kinds and type(value) is int:
        return float(value)
    elif any(type(value) is kind for kind in kinds):
        return value
    raise InputError(f"{name} must be {_describe(kinds)}, not {value!r}")


def _describe(kinds: tuple[Any, ...]) -> str:
    if typing.get_origin(kinds[0]) is Literal:
        return " or ".join(map(repr, typing.get_args(kinds[0])))
    if kinds[0] == tuple[str, ...]:
        return "a list of texts"
    names = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "a bool"}
    return names[kinds[0]]


def _assignment(text: str) -> tuple[str, Any]:
    """'hidden_size=128' -> ('hidden_size', 128). Values are JSON; what is not, is text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"model_set takes name=value, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _check_values(config: TrainConfig) -> None:
    at_least_one = (
        "bpe_vocab_size sequence_length batch_size micro_batch_size total_tokens log_every "
        "validation_tokens sample_tokens keep_checkpoints"
    )
    not_negative = (
        "warmup_tokens adam_beta1 adam_beta2 weight_decay bias_update_speed balance_weight "
        "mtp_weight mtp_weight_final threads validate_every sample_every checkpoint_every seed "
        "fim_rate decay_start decay_end decay_lr_ratio final_start final_lr_ratio mtp_drop "
        "bias_freeze"
    )
    at_most_one = (
        "fim_rate decay_start decay_end decay_lr_ratio final_start final_lr_ratio mtp_drop "
        "bias_freeze"
    )
    below_one = "adam_beta1 adam_beta2 validation_fraction"
    positive = "learning_rate adam_eps max_grad_norm max_minutes validation_fraction"
    rules = (
        (at_least_one, "at least 1", lambda value: value >= 1),
        (not_negative, "0 or more, and finite", lambda value: 0 <= value < float("inf")),
        (at_most_one, "at most 1", lambda value: value <= 1),
        (below_one, "less than 1", lambda value: value < 1),
        (positive, "more than 0, and finite", lambda value: 0 < value < float("inf")),
    )
    if config.seed >= _MOST_SEED:
        raise InputError(f"seed must be less than 2**61, not {config.seed}")
    if config.threads > _MOST_THREADS:
        raise InputError(f"threads must be at most {_MOST_THREADS}, not {config.threads}")
    for names, accepted, holds in rules:
        for name in names.split():
            value = getattr(config, name)
            if value is not None and not holds(value):
                raise InputError(f"{name} must be {accepted}, not {value}")


def _check_budget(config: TrainConfig) -> None:
    if config.total_tokens is None and config.max_minutes is None:
        raise InputError(
            "the run has no end: give total_tokens (such as 10000000) or max_minutes (such as 5)"
        )
    if config.total_tokens is not None and config.max_minutes is not None:
        raise InputError(
            f"total_tokens={config.total_tokens} and max_minutes={config.max_minutes} "
            "contradict each other: give one of them"
        )
    if config.total_tokens is not None and config.total_tokens < config.tokens_per_step:
        raise InputError(
            f"total_tokens={config.total_tokens} is less than one step of batch_size * "
            f"sequence_length = {config.tokens_per_step} tokens"
        )
    if config.max_minutes is not None and config.plan_fraction < EARLIEST_PLAN:
        raise InputError(
            "max_minutes needs decay_start, mtp_drop and bias_freeze of at least "
            f"{EARLIEST_PLAN}: the tokens are planned from the speed measured until then"
        )


def _check_data(config: TrainConfig) -> None:
    if not config.data.exists():
        raise FileNotFoundError(f"data: there is no directory or file at {config.data}")
    if config.tokenizer not in ("byte", "bpe") and not Path(config.tokenizer).exists():
        raise InputError(
            f"tokenizer must be 'byte', 'bpe' or the path of a tokenizer.json; "
            f"{config.tokenizer!r} is none of them"
        )
    for name in ("run_dir", "cache_dir"):
        path = getattr(config, name)
        if path is not None and path.exists() and not path.is_dir():
            raise InputError(f"{name}: {path} is a file, not a directory")
    try:
        config.sample_prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"sample_prompt is not text: {error}") from None
