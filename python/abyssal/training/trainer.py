"""The training loop: one process, one model, readable from top to bottom.

`Trainer(config).run()` is `abyssal train`. As a library, `Trainer` gives `.model`, `.tokenizer`,
`.dataset`, `.step`, `.tokens`, and its parts: `.train_step()`, `.validate()`, `.sample()`,
`.save()`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abyssal.errors import InputError
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from abyssal.model.statistics import count_parameters, flops_per_token
from abyssal.training.batches import BatchStream, validation_batches
from abyssal.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_state,
    save_checkpoint,
)
from abyssal.training.config import FREE_ON_RESUME, TrainConfig
from abyssal.training.dataset import prepare_dataset
from abyssal.training.evaluation import Validation, evaluate
from abyssal.training.metrics import (
    MetricsLog,
    StepMetrics,
    format_duration,
    format_log_line,
    load_imbalance,
    peak_flops,
    require_tensorboard,
)
from abyssal.training.optimizer import build_optimizer, set_learning_rate, update_router_bias
from abyssal.training.schedule import Schedule
from abyssal.training.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, train_bpe

# Sampling during training: lively, but seeded, so that a resumed run shows the same text.
SAMPLE_TEMPERATURE = 0.8
SAMPLE_TOP_P = 0.95
SAMPLE_PROMPT_TOKENS = 32


# Logs are read through pipes, too.
print_now = functools.partial(print, flush=True)


class TrainingDiverged(RuntimeError):
    """The loss or a gradient became NaN or infinite; the step was not applied."""


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What one batch gave besides gradients: its mean losses in nats, and its routing."""

    loss: float
    mtp_loss: float | None
    balance_loss: float | None
    expert_counts: Tensor | None  # int64 [gates that ran, n_routed_experts]


class Trainer:
    """A training run, new or resumed.

    The constructor reads the data and builds or loads everything; nothing is written into run_dir
    before it has succeeded. Raises InputError and FileNotFoundError for what cannot be trained.
    """

    def __init__(self, config: TrainConfig, *, log: Callable[[str], None] = print_now) -> None:
        config.check()
        self.config = config
        self.log = log
        self.device = _choose_device(config.device)
        if config.tensorboard:
            require_tensorboard()
        if config.threads:
            torch.set_num_threads(config.threads)

        checkpoint = _checkpoint_to_resume(config)
        state = None if checkpoint is None else _load_matching_state(checkpoint, config)
        if checkpoint is None:
            self.tokenizer = _make_tokenizer(config)
        else:
            self.tokenizer = load_tokenizer(checkpoint)
        self.dataset = prepare_dataset(
            config.data,
            config.cache_dir or config.run_dir.parent / "dataset-cache",
            self.tokenizer,
            text_field=config.text_field,
            validation_fraction=config.validation_fraction,
            seed=config.seed,
            progress=True,
        )
        self.model = self._build_model() if checkpoint is None else self._load_model(checkpoint)
        self.model.set_precision(config.precision)
        self.optimizer = build_optimizer(self.model, config)
        self.stream = BatchStream(
            self.dataset.train,
            sequence_length=config.sequence_length,
            batch_size=config.batch_size,
            seed=config.seed,
            fim_rate=config.fim_rate,
            tokenizer=self.tokenizer,
        )
        self._check_samples()
        self.step = 0
        self.tokens = 0
        self.total_tokens = config.total_tokens  # None: a time budget, not planned yet
        self.stopped_by: str | None = None  # the signal that ended `run` early
        self._seconds_before = 0.0  # spent by the runs that this one resumes
        if state is not None:
            self._restore(state)
        self._begin = time.monotonic()
        config.run_dir.mkdir(parents=True, exist_ok=True)

    # The loop.

    def run(self) -> Validation | None:
        """Train to the end of the budget, or until SIGINT or SIGTERM, and save.

        Returns the final validation; None if a signal ended the run. Raises TrainingDiverged.
        """
        self._open_reports()
        try:
            with self._stop_on_signals():
                validation = self._validate_and_report() if self.step == 0 else None
                while not self.done and self.stopped_by is None:
                    validation = self._step_and_report()
                    self._plan_time_budget()
                    if self._due(self.config.checkpoint_every):
                        self.save()
            if self.stopped_by is None:
                validation = validation or self._validate_and_report()
            checkpoint = self.save()
            self._plot()
        finally:
            self.metrics.close()
        self._report_end(checkpoint)
        return None if self.stopped_by else validation

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self.total_tokens is not None and self.tokens >= self.total_tokens

    @property
    def seconds(self) -> float:
        """Wall time of this run and those that it resumed."""
        return self._seconds_before + time.monotonic() - self._begin

    def train_step(self) -> StepMetrics:
        """One optimiser step on the next batch. Raises TrainingDiverged, the weights unchanged."""
        config = self.config
        step, tokens = self.step + 1, self.tokens + config.tokens_per_step
        settings = Schedule(config, self.total_tokens).at(tokens)
        batch = self._accumulate_gradients(settings.mtp_weight)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        metrics = StepMetrics(
            step=step,
            tokens=tokens,
            loss=batch.loss,
            mtp_loss=batch.mtp_loss,
            balance_loss=batch.balance_loss,
            grad_norm=norm.item(),
            learning_rate=settings.learning_rate,
            mtp_weight=settings.mtp_weight,
            bias_update_speed=settings.bias_update_speed,
            expert_load=load_imbalance(batch.expert_counts),
        )
        try:
            _check_finite(metrics)
        except TrainingDiverged:
            self.optimizer.zero_grad(set_to_none=True)
            raise
        set_learning_rate(self.optimizer, settings.learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if batch.expert_counts is not None:
            update_router_bias(self.model, batch.expert_counts, settings.bias_update_speed)
        self.step, self.tokens = step, tokens
        return metrics

    def _accumulate_gradients(self, mtp_weight: float) -> BatchResult:
        """Gradients of the next batch, micro-batch by micro-batch.

        Micro-batches are equal, so that means over them are means over the batch.
        """
        batch = next(self.stream).to(self.device)
        micro_batches = batch.split(self.config.micro_batch_size or len(batch))
        main, mtp, balance, counts = [], [], [], []
        for window in micro_batches:
            output = self.model(
                window[:, :-1],
                shift_labels=window[:, 1:],
                mtp_loss_weight=mtp_weight,
                balance_loss_weight=self.config.balance_weight,
            )
            (output.loss / len(micro_batches)).backward()
            main.append(output.main_loss.detach())
            mtp += [loss.detach() for loss in output.mtp_losses]
            balance += [] if output.balance_loss is None else [output.balance_loss.detach()]
            counts += [] if output.expert_counts is None else [output.expert_counts]
        return BatchResult(
            loss=torch.stack(main).mean().item(),
            mtp_loss=torch.stack(mtp).mean().item() if mtp else None,
            balance_loss=torch.stack(balance).mean().item() if balance else None,
            expert_counts=torch.stack(counts).sum(0) if counts else None,
        )

    def validate(self) -> Validation:
        """The loss of the main model on the validation text."""
        windows = validation_batches(
            self.dataset.validation,
            sequence_length=self.config.sequence_length,
            batch_size=self.config.micro_batch_size or self.config.batch_size,
            tokenizer=self.tokenizer,
            max_tokens=self.config.validation_tokens,
        )
        return evaluate(self.model, windows)

    def sample(self) -> tuple[str, str]:
        """(prompt, continuation) at this point of the training."""
        prompt = self._sample_prompt()
        tokens = self.model.generate(
            torch.tensor([prompt], device=self.device),
            max_new_tokens=self.config.sample_tokens,
            temperature=SAMPLE_TEMPERATURE,
            top_p=SAMPLE_TOP_P,
            seed=self.config.seed + self.step,
            suppress_tokens=sorted(self.tokenizer.control_ids - {self.tokenizer.eos_id}),
        )[0].tolist()
        return self.tokenizer.decode(prompt), self.tokenizer.decode(tokens[len(prompt) :])

    def save(self) -> Path:
        """Publish a checkpoint of this step. Returns its directory."""

        def write_model(directory: Path) -> None:
            self.model.save_pretrained(directory, dtype="float32", progress=False)
            self.tokenizer.save(directory)

        return save_checkpoint(
            self.config.run_dir,
            self.step,
            self._state(),
            write_model,
            self.config.keep_checkpoints,
        )

    # Beginning and resuming.

    def _build_model(self) -> DeepseekV3ForCausalLM:
        """New weights from the seed, the vocabulary of the tokenizer."""
        tokenizer = self.tokenizer
        config = self.config.model_config().replace(
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            # transformers, and so the model, does not train the padding embedding.
            pad_token_id=None if tokenizer.pad_id == tokenizer.eos_id else tokenizer.pad_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return DeepseekV3ForCausalLM(config).to(self.device)

    def _load_model(self, checkpoint: Path) -> DeepseekV3ForCausalLM:
        return DeepseekV3ForCausalLM.from_pretrained(
            checkpoint, device=self.device, dtype=torch.float32, progress=False
        )

    def _check_samples(self) -> None:
        """Refuse now what `sample` could not do in the middle of the run."""
        prompt, limit = self._sample_prompt(), self.model.config.max_position_embeddings
        if self.config.sample_every and len(prompt) + self.config.sample_tokens > limit:
            raise InputError(
                f"a prompt of {len(prompt)} tokens and sample_tokens={self.config.sample_tokens} "
                f"exceed the model's max_position_embeddings={limit}"
            )

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside model and tokenizer."""
        return {
            "config": self.config.to_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "total_tokens": self.total_tokens,
            "seconds": self.seconds,
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state_dict(),
            "dataset": self.dataset.fingerprint,
            # No step draws from the global generator today; a model that does resumes as well.
            "random_state": torch.get_rng_state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        if state["dataset"] != self.dataset.fingerprint:
            raise InputError(
                f"data: {self.config.data} has changed since the checkpoint of step "
                f"{state['step']} was written; an exact continuation is not possible"
            )
        self.step, self.tokens = state["step"], state["tokens"]
        self.total_tokens = state["total_tokens"]
        self._seconds_before = state["seconds"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.stream.load_state_dict(state["stream"])
        torch.set_rng_state(state["random_state"])

    def _plan_time_budget(self) -> None:
        """Turn max_minutes into tokens, once, when the schedule begins to depend on them."""
        if self.total_tokens is not None or self.config.max_minutes is None:
            return
        progress = self.seconds / (60 * self.config.max_minutes)
        if progress < self.config.plan_fraction:
            return
        per_step = self.config.tokens_per_step
        self.total_tokens = max(self.tokens, per_step * round(self.step / progress))
        self.log(
            f"planned: {self.total_tokens:,} tokens in {self.config.max_minutes:g} minutes, from "
            f"{self.tokens:,} tokens in {format_duration(self.seconds)}"
        )

    @contextlib.contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the loop after the current step; a second one ends the process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Any] = {}

        def stop(number: int, _frame: Any) -> None:
            self.stopped_by = signal.Signals(number).name
            signal.signal(number, previous[number])

        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for caught, handler in previous.items():
                signal.signal(caught, handler)

    # Reporting.

    def _open_reports(self) -> None:
        config, model = self.config, self.model.config
        settings = dataclasses.replace(config, resume=False).to_toml()
        (config.run_dir / "config.toml").write_text(settings, encoding="utf-8")
        self.metrics = MetricsLog(
            config.run_dir / "metrics.jsonl", resume_step=self.step, tensorboard=config.tensorboard
        )
        self._peak, peak_source = peak_flops(self.device, config.precision)
        self._flops = flops_per_token(model, config.sequence_length)
        self._interval: list[tuple[StepMetrics, float]] = []
        counts = count_parameters(model)
        self.log(
            f"model     {config.model}: {counts.total / 1e6:.2f}M parameters with MTP, "
            f"{counts.active / 1e6:.2f}M active a token, {self._flops / 1e6:.1f} MFLOP a token "
            "(mfu: three forwards, causal attention, without MTP)"
        )
        self.log(f"data      {config.data}: {self.dataset}")
        peak = "unknown" if self._peak is None else f"{self._peak / 1e9:.0f} GFLOP/s"
        self.log(f"device    {self.device}, {config.precision}; peak {peak} ({peak_source})")
        if self.step:
            self.log(f"resumed   after step {self.step}, {self.tokens:,} tokens")

    def _step_and_report(self) -> Validation | None:
        """A step and what is due after it. Returns the validation, if there was one."""
        begin = time.monotonic()
        metrics = self.train_step()
        self._interval.append((metrics, time.monotonic() - begin))
        speed = self.config.tokens_per_step / self._interval[-1][1]
        self.metrics.write("train", {**dataclasses.asdict(metrics), "tokens_per_second": speed})
        if self._due(self.config.log_every) or self.done:
            self._log_interval()
        validation = self._validate_and_report() if self._due(self.config.validate_every) else None
        if self._due(self.config.sample_every):
            self._sample_and_report()
        return validation

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log_interval(self) -> None:
        """One line about the steps since the last one."""
        steps, seconds = zip(*self._interval, strict=True)
        self._interval = []
        mtp = [metrics.mtp_loss for metrics in steps if metrics.mtp_loss is not None]
        speed = len(steps) * self.config.tokens_per_step / sum(seconds)
        if self.total_tokens is not None:
            left = (self.total_tokens - self.tokens) / speed
        else:
            left = 60 * (self.config.max_minutes or 0) - self.seconds
        self.log(
            format_log_line(
                steps[-1],
                loss=_mean([metrics.loss for metrics in steps]),
                mtp_loss=_mean(mtp) if mtp else None,
                tokens_per_second=speed,
                utilisation=speed * self._flops / self._peak if self._peak else None,
                seconds_left=max(0.0, left),
            )
        )

    def _validate_and_report(self) -> Validation:
        validation = self.validate()
        record = {"step": self.step, "tokens": self.tokens, **dataclasses.asdict(validation)}
        # A finished run that is resumed has it already.
        if {"kind": "validation", **record} not in self.metrics.records:
            self.metrics.write("validation", record)
        self.log(
            f"step {self.step:>6}  validation loss {validation.loss:.4f} nats/token, "
            f"{validation.bits_per_byte:.4f} bits/byte"
        )
        return validation

    def _sample_and_report(self) -> None:
        prompt, text = self.sample()
        self.metrics.write("sample", {"step": self.step, "prompt": prompt, "text": text})
        self.log(f"sample    {prompt!r} -> {text!r}")

    def _sample_prompt(self) -> list[int]:
        if self.config.sample_prompt:
            return self.tokenizer.encode(self.config.sample_prompt)
        return self.dataset.validation[0][:SAMPLE_PROMPT_TOKENS].tolist()

    def _plot(self) -> None:
        if not self.config.plot:
            return
        from abyssal.training.plot import plot_curves

        try:
            plot_curves(self.metrics.records, self.config.run_dir / "curves.png")
        except ImportError:
            self.log("curves    not drawn: matplotlib is not installed")

    def _report_end(self, checkpoint: Path) -> None:
        if self.stopped_by:
            self.log(
                f"stopped   by {self.stopped_by} after step {self.step}; `abyssal train "
                f"{self.config.run_dir / 'config.toml'} --resume` continues"
            )
        self.log(f"checkpoint {checkpoint} after {format_duration(self.seconds)}")


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name!r}, but torch finds {torch.cuda.device_count()} GPUs")
    return device


def _make_tokenizer(config: TrainConfig) -> Tokenizer:
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "bpe":
        return train_bpe(
            config.data, vocab_size=config.bpe_vocab_size, text_field=config.text_field
        )
    return load_tokenizer(Path(config.tokenizer))


def _checkpoint_to_resume(config: TrainConfig) -> Path | None:
    if config.resume:
        return latest_checkpoint(config.run_dir)
    if list_checkpoints(config.run_dir):
        raise InputError(
            f"run_dir: {config.run_dir} holds checkpoints already; continue with --resume, or "
            "choose another --run-dir"
        )
    return None


def _load_matching_state(checkpoint: Path, config: TrainConfig) -> dict[str, Any]:
    """The checkpoint's state, if `config` would have computed the same up to here."""
    state = load_state(checkpoint)
    before, now = state["config"], config.to_dict()
    for name in sorted((before.keys() | now.keys()) - FREE_ON_RESUME):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{name}={now.get(name)!r} contradicts {name}={before.get(name)!r} of {checkpoint}"
            )
    return state


def _check_finite(metrics: StepMetrics) -> None:
    for name in ("loss", "mtp_loss", "balance_loss", "grad_norm"):
        value = getattr(metrics, name)
        if value is not None and not math.isfinite(value):
            raise TrainingDiverged(
                f"{name} became {value} in step {metrics.step} ({metrics.tokens:,} tokens); the "
                "step was not applied and no checkpoint was written"
            )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
