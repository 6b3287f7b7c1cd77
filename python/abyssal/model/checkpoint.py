"""Reading and writing DeepSeek-V3 checkpoints: `from_pretrained`, `save_pretrained`, conversion.

Layouts and rules are described in docs/checkpoints.md. The parts: `checkpoint_names` (which
tensors there are), `block_fp8` (how FP8 weights are coded), `checkpoint_reader`,
`checkpoint_writer`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from abyssal.errors import InputError
from abyssal.model.block_fp8 import BLOCK, QUANTIZATION_CONFIG, quantize, scale_grid
from abyssal.model.checkpoint_names import (
    DiskTensor,
    disk_tensors,
    is_correction_bias,
    layer_prefix,
)
from abyssal.model.checkpoint_reader import DTYPES, CheckpointReader, shortened
from abyssal.model.checkpoint_writer import Output, write_checkpoint
from abyssal.model.config import DeepseekV3Config

Model = TypeVar("Model", bound=nn.Module)
Advance = Callable[[int], None]

DEFAULT_SHARD_BYTES = 5 * 10**9
MODEL_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def load_pretrained(
    cls: Callable[[DeepseekV3Config], Model],
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
) -> Model:
    """Build `cls(config)` from a checkpoint directory of the Hub's or transformers' layout.

    dtype: bfloat16, float32 or float64 (or their names). None keeps what the files hold: the
    widest dtype among the weights, where FP8 weights count as what surrounds them (BF16 in the
    release). The router's balancing bias is always FP32. The model is made on the meta device and
    filled tensor by tensor on `device`; one file is open at a time.

    A config that announces MTP modules where the files hold none (transformers writes such) gives
    a model without MTP modules and a warning.

    Raises FileNotFoundError for missing files, and one InputError that names every missing,
    unexpected, misshapen or wrongly stored tensor; or the duplicates of embedding or output head
    that differ from the original, which this model shares.
    """
    device = torch.device(device)
    with CheckpointReader(path) as reader:
        config = _without_absent_mtp(reader)
        model = _on_meta(cls, config)
        tensors = disk_tensors(model)
        _check_tensors(reader, tensors)
        model.to(_load_dtype(reader, dtype))
        model.to_empty(device=device)
        if config.tie_word_embeddings:  # to_empty gives each module its own parameter
            model.lm_head.weight = model.model.embed_tokens.weight  # type: ignore[union-attr]
        total = sum(_nbytes(reader, name) for name in reader.weights())
        with _progress_bar(f"loading {reader.path.name}", total, progress) as advance:
            scales = _fill(model, reader, tensors, advance)
    # Lets save_pretrained write unchanged blocks back with the very codes and scales they had.
    model.stored_fp8_scales = scales  # type: ignore[assignment]
    return model


def save_pretrained(
    model: nn.Module,
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write `model` to directory `path` in the Hub's layout.

    dtype: None (as the parameters are), "bf16", "float32", "float64" or "fp8": then the
    projections of attention, MLPs and experts are FP8 in blocks of 128x128 and the rest is BF16,
    as in the release. A block that still holds what an FP8 checkpoint gave it is written with the
    same codes and scale. The router's balancing bias is always FP32.

    All is written to a temporary sibling first. A new or empty `path` then appears by one rename.
    In a directory that holds other files (a tokenizer) they stay; one that holds a checkpoint is
    refused unless `overwrite`. Interrupted, it leaves `path` as it was.
    """
    config: DeepseekV3Config = model.config  # type: ignore[assignment]
    tensors = {item.name: item for item in disk_tensors(model) if item.written}
    values = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    scales: dict[str, Tensor] = getattr(model, "stored_fp8_scales", {})
    outputs = [
        _output(item, item.part_of(values).dtype if dtype is None else dtype)
        for item in tensors.values()
    ]

    def produce(output: Output) -> tuple[Tensor, ...]:
        value = tensors[output.name].part_of(values)
        return _encode(output, value, scales.get(output.name))

    _write(path, config, outputs, produce, max_shard_bytes, overwrite=overwrite, progress=progress)


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Rewrite a checkpoint in another dtype or shard size, with one tensor in memory at a time.

    The files are those of loading it with `dtype` (float32 for "fp8") and saving it with `dtype`,
    but no model is ever held. dtype None keeps what is stored, FP8 included. Errors are those of
    `load_pretrained` and `save_pretrained`.
    """
    from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM

    with CheckpointReader(source) as reader:
        config = _without_absent_mtp(reader)
        tensors = disk_tensors(_on_meta(DeepseekV3ForCausalLM, config))
        _check_tensors(reader, tensors)
        _check_copies(tensors, {name: _digest(reader, name) for name in _shared_names(tensors)})
        if dtype is None:
            dtype = "fp8" if reader.block is not None else _load_dtype(reader, None)
        originals = {item.name: item.source for item in tensors if item.is_copy}
        outputs = [_output(item, dtype) for item in tensors if item.written]

        def produce(output: Output) -> tuple[Tensor, ...]:
            name = originals.get(output.name, output.name)
            scale = reader.read_scale(name) if _keeps_scale(reader, name) else None
            value = reader.read(name, dtype=torch.float32 if output.is_fp8 else output.dtype)
            return _encode(output, value, scale)

        _write(
            destination, config, outputs, produce, max_shard_bytes,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip


def _on_meta(cls: Callable[[DeepseekV3Config], Model], config: DeepseekV3Config) -> Model:
    """The model's shapes without any memory."""
    with torch.device("meta"):
        return cls(config)


def _without_absent_mtp(reader: CheckpointReader) -> DeepseekV3Config:
    """The checkpoint's configuration, without MTP modules where the files hold none of them."""
    config = reader.config
    first, announced = config.num_hidden_layers, config.num_nextn_predict_layers
    prefixes = tuple(layer_prefix(first + depth) for depth in range(announced))
    if not announced or any(name.startswith(prefixes) for name in reader.stored):
        return config
    warnings.warn(
        f"{reader.path}: config.json announces num_nextn_predict_layers={announced}, but the files "
        "hold no MTP module; the model is built without",
        stacklevel=4,
    )
    return config.replace(num_nextn_predict_layers=0)


def _check_tensors(reader: CheckpointReader, tensors: list[DiskTensor]) -> None:
    """Raise one InputError that names all that is wrong, judged from the headers alone."""
    expected = {item.name: item for item in tensors}
    present = list(reader.weights())
    missing = [item.name for item in tensors if not item.is_copy and item.name not in reader.stored]
    unexpected = [name for name in present if name not in expected]
    misshapen = [
        f"{name} is {list(reader.stored[name].shape)} and must be {list(expected[name].shape)}"
        for name in present
        if name in expected and reader.stored[name].shape != expected[name].shape
    ]
    findings = [
        f"{len(found)} {kind} ({shortened(found)})"
        for kind, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
            ("wrongly stored", reader.storage_problems()),
        )
        if found
    ]
    if findings:
        raise InputError(
            f"the tensors of {reader.path} do not fit its config.json: {'; '.join(findings)}"
        )


def _load_dtype(reader: CheckpointReader, dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype of the model's parameters; see `load_pretrained`."""
    if dtype is not None:
        return _model_dtype(dtype)
    stored = {
        DTYPES[tensor.dtype]
        for name, tensor in reader.stored.items()
        if not tensor.is_fp8 and not reader.is_scale(name) and not is_correction_bias(name)
    }
    return functools.reduce(torch.promote_types, stored, torch.bfloat16)


def _model_dtype(dtype: torch.dtype | str) -> torch.dtype:
    named = MODEL_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if named is None or named not in MODEL_DTYPES.values():
        raise InputError(f"dtype must be one of bf16, float32, float64; not {dtype!r}")
    return named


def _output(item: DiskTensor, dtype: torch.dtype | str) -> Output:
    """How a tensor is written: the whole checkpoint in `dtype`, with the format's exceptions."""
    if is_correction_bias(item.name):
        return Output(item.name, torch.float32, item.shape)
    if dtype == "fp8":
        in_fp8 = torch.float8_e4m3fn if item.released_in_fp8 else torch.bfloat16
        return Output(item.name, in_fp8, item.shape)
    if isinstance(dtype, str) and dtype not in MODEL_DTYPES:
        raise InputError(f"dtype must be one of bf16, float32, float64, fp8; not {dtype!r}")
    return Output(item.name, _model_dtype(dtype), item.shape)


def _keeps_scale(reader: CheckpointReader, name: str) -> bool:
    """Whether `name` is FP8 in the blocks that we write, so that its scales can be used again."""
    return reader.stored[name].is_fp8 and reader.block == BLOCK


@torch.no_grad()
def _fill(
    model: nn.Module, reader: CheckpointReader, tensors: list[DiskTensor], advance: Advance
) -> dict[str, Tensor]:
    """Read all tensors into the model, file by file. Returns the scales of 128x128 FP8 weights."""
    values = model.state_dict()
    expected = {item.name: item for item in tensors}
    shared = _shared_names(tensors)
    digests: dict[str, bytes] = {}
    # Allocated before anything is read: small blocks that stay, made between large ones that go,
    # would fragment the heap by the size of the model.
    scales = {
        name: torch.empty(scale_grid(reader.stored[name].shape, BLOCK))
        for name in expected
        if name in reader.stored and _keeps_scale(reader, name)
    }
    for name in reader.weights():
        if name in shared:
            digests[name] = _digest(reader, name)
        item = expected[name]
        if not item.is_copy:
            scale = reader.read_scale(name) if reader.stored[name].is_fp8 else None
            reader.read_into(item.part_of(values), name, scale)
            if name in scales and scale is not None:
                scales[name].copy_(scale)
        advance(_nbytes(reader, name))
    _check_copies(tensors, digests)
    return scales


def _shared_names(tensors: list[DiskTensor]) -> set[str]:
    """Embedding and output head, and the duplicates of them: names on disk."""
    return {name for item in tensors if item.is_copy for name in (item.name, item.source)}


def _digest(reader: CheckpointReader, name: str) -> bytes:
    """A fingerprint of a tensor's bits. Two equal ones may lie in files that are far apart."""
    digest = hashlib.blake2b(reader.stored[name].dtype.encode())
    if reader.stored[name].is_fp8:
        digest.update(reader.read_scale(name).numpy().data)
    digest.update(reader.read_raw(name).contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _check_copies(tensors: list[DiskTensor], digests: dict[str, bytes]) -> None:
    """Duplicates must equal what the model shares, or loading would lose a tensor."""
    differing = [
        f"{item.name} differs from {item.source}"
        for item in tensors
        if item.is_copy and item.name in digests and digests[item.name] != digests[item.source]
    ]
    if differing:
        raise InputError(
            f"this model shares embedding and output head, but {shortened(differing)} "
            "in the checkpoint"
        )


def _encode(output: Output, value: Tensor, stored_scale: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors to write for `output`: one, or codes and scales."""
    if output.is_fp8:
        try:
            return quantize(value, stored_scale)
        except InputError as error:
            raise InputError(f"{output.name}: {error}") from None
    converted = value.to(output.dtype)
    if _has_overflowed(value, converted):
        raise InputError(f"{output.name} holds values too large for {output.dtype}")
    return (converted,)


def _has_overflowed(value: Tensor, converted: Tensor) -> bool:
    """Whether a finite value became infinite. In pieces: the test itself should need no memory."""
    if converted.dtype.itemsize >= value.dtype.itemsize:
        return False
    pieces = zip(value.flatten().split(1 << 18), converted.flatten().split(1 << 18), strict=True)
    return any(bool((new.isinf() & old.isfinite()).any()) for old, new in pieces)


def _write(
    path: str | Path,
    config: DeepseekV3Config,
    outputs: list[Output],
    produce: Callable[[Output], tuple[Tensor, ...]],
    max_shard_bytes: int,
    *,
    overwrite: bool,
    progress: bool,
) -> None:
    if isinstance(max_shard_bytes, bool) or not max_shard_bytes >= 1:
        raise InputError(f"max_shard_bytes must be at least 1, not {max_shard_bytes!r}")
    path = Path(path)
    fields = config.to_dict()
    # The embedding comes first and is never FP8: its dtype is the checkpoint's.
    fields["torch_dtype"] = str(outputs[0].dtype).removeprefix("torch.")
    if any(output.is_fp8 for output in outputs):
        fields["quantization_config"] = QUANTIZATION_CONFIG
    total = sum(output.nbytes for output in outputs)
    with _progress_bar(f"saving {path.name}", total, progress) as advance:

        def produce_and_count(output: Output) -> tuple[Tensor, ...]:
            advance(output.nbytes)
            return produce(output)

        write_checkpoint(
            path,
            outputs,
            produce_and_count,
            config=fields,
            generation_config=_generation_config(config),
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
        )


def _generation_config(config: DeepseekV3Config) -> dict[str, Any]:
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    return {"_from_model_config": True, **ids}


def _nbytes(reader: CheckpointReader, name: str) -> int:
    stored = reader.stored[name]
    return math.prod(stored.shape) * DTYPES[stored.dtype].itemsize


@contextlib.contextmanager
def _progress_bar(title: str, total: int, wanted: bool) -> Iterator[Advance]:
    """Gives a function that takes bytes done; shows a bar on a terminal, is silent elsewhere."""
    if not wanted or not sys.stderr.isatty():
        yield lambda nbytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)
