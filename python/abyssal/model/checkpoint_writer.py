"""Streaming, atomic writing of a checkpoint directory.

Which tensor goes to which place of which file follows from names, dtypes and shapes alone, so the
headers are written first and the tensors one by one: one tensor is in memory at a time. All files
are written into a temporary sibling directory and appear under the final name only when complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from abyssal.errors import InputError
from abyssal.model.block_fp8 import BLOCK, SCALE_SUFFIX, scale_grid
from abyssal.model.checkpoint_reader import (
    CONFIG_FILE,
    DTYPES,
    INDEX_FILE,
    SHARD_PATTERN,
    SINGLE_FILE,
    shard_name,
)

GENERATION_CONFIG_FILE = "generation_config.json"
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Output:
    """A tensor to write. An FP8 one (float8_e4m3fn) is two: its codes and its scales."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def is_fp8(self) -> bool:
        """Whether this is written as codes and scales."""
        return self.dtype == torch.float8_e4m3fn

    def stored(self) -> list[Output]:
        """What stands in the file: itself, and for FP8 the scales."""
        if not self.is_fp8:
            return [self]
        grid = scale_grid(self.shape, BLOCK)
        return [self, Output(self.name + SCALE_SUFFIX, torch.float32, grid)]

    @property
    def nbytes(self) -> int:
        """Bytes of data, without the scales of FP8 codes."""
        return math.prod(self.shape) * self.dtype.itemsize


# Gives the tensors of `Output.stored()`, in that order, on any device.
Produce = Callable[[Output], tuple[Tensor, ...]]


def write_checkpoint(
    path: Path,
    outputs: list[Output],
    produce: Produce,
    *,
    config: dict[str, Any],
    generation_config: dict[str, Any],
    max_shard_bytes: int,
    overwrite: bool,
) -> None:
    """Write config, weights and index to directory `path`; see `save_pretrained` for the rules.

    `produce` is called once for each output, in the given order.
    """
    _check_destination(path, overwrite)
    shards = plan_shards(outputs, max_shard_bytes)
    single = len(shards) == 1
    files = [SINGLE_FILE if single else shard_name(i + 1, len(shards)) for i in range(len(shards))]
    with _published(path) as directory:
        for file, shard in zip(files, shards, strict=True):
            _write_weights(directory / file, shard, produce)
        if not single:
            _write_json(directory / INDEX_FILE, _index(files, shards))
        _write_json(directory / GENERATION_CONFIG_FILE, generation_config)
        _write_json(directory / CONFIG_FILE, config)


def plan_shards(outputs: list[Output], max_shard_bytes: int) -> list[list[Output]]:
    """Fill shards in order. A tensor larger than the limit stands alone; scales stay with codes."""
    shards: list[list[Output]] = [[]]
    filled = 0
    for output in outputs:
        nbytes = sum(item.nbytes for item in output.stored())
        if shards[-1] and filled + nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(output)
        filled += nbytes
    return shards


def _index(files: list[str], shards: list[list[Output]]) -> dict[str, Any]:
    shard_items = [(file, _flat(shard)) for file, shard in zip(files, shards, strict=True)]
    stored = [(file, item) for file, items in shard_items for item in items]
    return {
        "metadata": {"total_size": sum(item.nbytes for _, item in stored)},
        "weight_map": {item.name: file for file, item in sorted(stored, key=lambda s: s[1].name)},
    }


def _flat(shard: list[Output]) -> list[Output]:
    return [item for output in shard for item in output.stored()]


def _write_weights(path: Path, shard: list[Output], produce: Produce) -> None:
    """One safetensors file: 8 bytes of header length, the JSON header, the data without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # Wide types first: every tensor then starts at a multiple of its element size.
    for item in sorted(_flat(shard), key=lambda item: (-item.dtype.itemsize, item.name)):
        header[item.name] = {
            "dtype": DTYPE_NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [offset, offset + item.nbytes],
        }
        offset += item.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for output in shard:
            for item, tensor in zip(output.stored(), produce(output), strict=True):
                assert tensor.dtype == item.dtype and tuple(tensor.shape) == item.shape, item
                file.seek(8 + len(encoded) + header[item.name]["data_offsets"][0])
                _write_data(file, tensor)
        _flush(file)


def _write_data(file: BinaryIO, tensor: Tensor) -> None:
    file.write(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with path.open("wb") as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
        _flush(file)


def _flush(file: BinaryIO) -> None:
    """Onto the disk, so that a rename never makes an empty file visible after a power cut."""
    file.flush()
    os.fsync(file.fileno())


def _model_files(directory: Path) -> list[Path]:
    """The files of a checkpoint that `directory` holds, config.json first."""
    names = {CONFIG_FILE, SINGLE_FILE, INDEX_FILE, GENERATION_CONFIG_FILE}
    found = [
        entry
        for entry in directory.iterdir()
        if entry.name in names or SHARD_PATTERN.fullmatch(entry.name)
    ]
    return sorted(found, key=lambda entry: (entry.name != CONFIG_FILE, entry.name))


def _check_destination(path: Path, overwrite: bool) -> None:
    if path.is_symlink() or path.exists():
        if not path.is_dir():
            raise InputError(f"cannot write a checkpoint to {path}: it is not a directory")
        existing = _model_files(path)
        if existing and not overwrite:
            raise InputError(
                f"{path} already holds a checkpoint ({existing[0].name}); choose another "
                "directory or pass overwrite=True"
            )


@contextlib.contextmanager
def _published(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write into; it becomes `path` if nothing goes wrong."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.incomplete-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if not path.exists() or not any(path.iterdir()):
            temporary.rename(path)
        else:
            _replace_files(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_files(temporary: Path, path: Path) -> None:
    """Move the new files over, next to whatever else is there (a tokenizer, a trainer's state).

    config.json goes first and comes last: a directory without one is refused by the reader, so
    even a crash in between never leaves a mixture that loads.
    """
    for old in _model_files(path):
        old.unlink()
    for new in reversed(_model_files(temporary)):
        new.rename(path / new.name)


def _umask() -> int:
    """mkdtemp makes private directories; a checkpoint gets the permissions of any new directory."""
    current = os.umask(0)
    os.umask(current)
    return current
