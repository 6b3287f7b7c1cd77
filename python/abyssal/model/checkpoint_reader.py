"""Lazy reading of a checkpoint directory: names and shapes at once, tensors one at a time.

The weights are, in this order, the files that `model.safetensors.index.json` names; the single
`model.safetensors`; or, without an index, a complete set `model-00001-of-000NN.safetensors`.
Directories that could mean two of these are refused. One file is open at a time, memory-mapped,
so that what is resident is at most the tensors kept and one shard.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from abyssal.errors import InputError
from abyssal.model.block_fp8 import SCALE_SUFFIX, block_size, dequantize_into, scale_grid
from abyssal.model.config import DeepseekV3Config

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_PATTERN = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of a tensor. `dtype` is safetensors' name, such as "BF16"."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_fp8(self) -> bool:
        """Whether these are FP8 codes, which mean nothing without their scales."""
        return self.dtype == "F8_E4M3"


class CheckpointReader:
    """A checkpoint directory, opened for reading. Use as a context manager.

        with CheckpointReader(path) as reader:
            for name in reader.weights():
                weight = reader.read(name, dtype=torch.float32)

    `config`: the DeepseekV3Config. `stored`: name -> StoredTensor, in the order of the files,
    scales included. `block`: rows and columns of an FP8 block, None for an unquantised checkpoint.

    Raises FileNotFoundError where the directory or one of its files is missing, InputError where
    a file is damaged or the files contradict each other.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"no checkpoint directory at {self.path}")
        self.config = DeepseekV3Config.from_file(self.path)
        self.block = _read_block_size(self.path / CONFIG_FILE)
        self._open_file: tuple[str, Any] | None = None
        index = _read_index(self.path)
        self.stored: dict[str, StoredTensor] = {}
        for file in _weight_files(self.path, index):
            self._read_header(file)
        self.close()
        if index is not None:
            self._check_index(index)

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file that is open, if any. Reading opens it again."""
        if self._open_file is not None:
            self._open_file[1].__exit__(None, None, None)
            self._open_file = None

    def weights(self) -> Iterator[str]:
        """The names of all tensors with values but the scales of FP8 weights, file by file.

        Tensors without a single value are left out: for n_shared_experts = 0, transformers writes
        weights of shape [0, hidden_size].
        """
        return (
            name
            for name, stored in self.stored.items()
            if math.prod(stored.shape) > 0 and not self.is_scale(name)
        )

    def is_scale(self, name: str) -> bool:
        """Whether `name` holds the scales of an FP8 weight that the checkpoint also holds."""
        weight = self.stored.get(name.removesuffix(SCALE_SUFFIX))
        return name.endswith(SCALE_SUFFIX) and weight is not None and weight.is_fp8

    def read_raw(self, name: str) -> Tensor:
        """A tensor as it is stored, on the CPU; FP8 codes stay codes.

        The result maps the file: it keeps the shard in memory until it is dropped or copied.
        """
        stored = self.stored[name]
        try:
            return self._file(stored.file).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self._damaged(stored.file, error) from None

    def read_scale(self, name: str) -> Tensor:
        """The scales of FP8 weight `name`, checked and copied: float32 [blocks down, across].

        Raises InputError where one of them is NaN, infinite or negative.
        """
        scale = self.read_raw(name + SCALE_SUFFIX).clone()
        if not (scale.isfinite() & (scale >= 0)).all():
            raise InputError(
                f"{self.path / self.stored[name + SCALE_SUFFIX].file}: {name + SCALE_SUFFIX} holds "
                "a scale that is NaN, infinite or negative"
            )
        return scale

    def read_into(self, destination: Tensor, name: str, scale: Tensor | None = None) -> None:
        """Read tensor `name` into `destination`, of the same shape and any floating dtype.

        FP8 weights are dequantised on destination's device, with `scale` where the caller has
        read it already.
        """
        if not self.stored[name].is_fp8:
            destination.copy_(self.read_raw(name))
            return
        if self.block is None:
            raise InputError(
                f"{self.path / CONFIG_FILE} has no quantization_config, but {name} is stored in FP8"
            )
        # The scales first: were they in another file, it is closed again before the codes' opens.
        scale = self.read_scale(name) if scale is None else scale
        device = destination.device
        dequantize_into(destination, self.read_raw(name).to(device), scale.to(device), self.block)

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor's values in their own memory; dtype None keeps the stored one, FP8 needs one."""
        stored = self.stored[name]
        if dtype is None and stored.is_fp8:
            raise InputError(f"{name} is stored in FP8: name the dtype to dequantise it to")
        dtype = DTYPES[stored.dtype] if dtype is None else dtype
        result = torch.empty(stored.shape, dtype=dtype)
        self.read_into(result, name)
        return result

    def storage_problems(self) -> list[str]:
        """FP8 weights without a fitting scale grid, and dtypes that cannot be read."""
        problems = []
        for name, stored in self.stored.items():
            if stored.dtype not in DTYPES:
                problems.append(f"{name} is stored as {stored.dtype}, which cannot be read")
            elif stored.is_fp8:
                problems += self._scale_problems(name, stored)
        return problems

    def _scale_problems(self, name: str, stored: StoredTensor) -> list[str]:
        if self.block is None:
            return [f"{name} is FP8, but config.json has no quantization_config"]
        if len(stored.shape) != 2:
            return [f"{name} is FP8 and must have two dimensions, not {list(stored.shape)}"]
        scale = self.stored.get(name + SCALE_SUFFIX)
        if scale is None:
            return [f"{name} is FP8, but {name + SCALE_SUFFIX} is missing"]
        expected = scale_grid(stored.shape, self.block)
        if scale.shape != expected or scale.dtype != "F32":
            return [
                f"{name + SCALE_SUFFIX} must be F32 {list(expected)} for a weight "
                f"{list(stored.shape)} in blocks of {list(self.block)}, "
                f"not {scale.dtype} {list(scale.shape)}"
            ]
        return []

    def _file(self, file: str) -> Any:
        """The opened file; whichever was open before is closed."""
        if self._open_file is None or self._open_file[0] != file:
            self.close()
            try:
                handle = safe_open(self.path / file, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise self._damaged(file, error) from None
            self._open_file = (file, handle)
        return self._open_file[1]

    def _read_header(self, file: str) -> None:
        handle = self._file(file)
        for name in handle.keys():  # noqa: SIM118 - a handle, not a dict
            if name in self.stored:
                raise InputError(
                    f"{self.path}: tensor {name} is in both {self.stored[name].file} and {file}"
                )
            view = handle.get_slice(name)
            self.stored[name] = StoredTensor(file, view.get_dtype(), tuple(view.get_shape()))

    def _check_index(self, index: dict[str, str]) -> None:
        actual = {name: stored.file for name, stored in self.stored.items()}
        if actual != index:
            wrong = sorted({name for name, _ in set(actual.items()) ^ set(index.items())})
            raise InputError(
                f"{self.path / INDEX_FILE} does not describe its files: "
                f"{shortened(wrong)} in other places than it says"
            )

    def _damaged(self, file: str, error: Exception) -> InputError:
        return InputError(f"{self.path / file} is truncated or not a safetensors file ({error})")


def shortened(names: list[str], limit: int = 8) -> str:
    """The names, or the first of them and how many more there are."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values


def _read_block_size(config_file: Path) -> tuple[int, int] | None:
    quantization = read_json_object(config_file).get("quantization_config")
    if quantization is None:
        return None
    try:
        return block_size(quantization)
    except InputError as error:
        raise InputError(f"{config_file}: {error}") from None


def _read_index(directory: Path) -> dict[str, str] | None:
    """Tensor name -> file name, from the index, or None where there is no index."""
    path = directory / INDEX_FILE
    if not path.is_file():
        return None
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path} must hold a weight_map of tensor names to file names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or file != Path(file).name or not file:
            raise InputError(f"{path}: {name} must name a file of the same directory, not {file!r}")
    return weight_map


def _weight_files(directory: Path, index: dict[str, str] | None) -> list[str]:
    """The names of the files that hold the weights; see the module's rule."""
    single = (directory / SINGLE_FILE).is_file()
    if index is not None:
        files = sorted(set(index.values()))
        missing = [file for file in files if not (directory / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{directory / INDEX_FILE} names file(s) that do not exist: {shortened(missing)}"
            )
        if single and SINGLE_FILE not in files:
            raise InputError(f"{directory} holds both {SINGLE_FILE} and {INDEX_FILE}; remove one")
        return files
    names = (entry.name for entry in directory.iterdir())
    shards = sorted(name for name in names if SHARD_PATTERN.fullmatch(name))
    if single and shards:
        raise InputError(f"{directory} holds both {SINGLE_FILE} and shards without an index")
    if single:
        return [SINGLE_FILE]
    if not shards:
        raise FileNotFoundError(
            f"{directory} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE} nor shards"
        )
    total = int(shards[0][-17:-12])
    expected = [shard_name(number, total) for number in range(1, total + 1)]
    if shards != expected:
        missing = sorted(set(expected) - set(shards))
        if missing:
            raise FileNotFoundError(f"{directory} lacks shard(s) {shortened(missing)}")
        raise InputError(f"{directory} holds shards of different sets and no {INDEX_FILE}")
    return shards


def shard_name(number: int, total: int) -> str:
    """File name of shard `number` of `total`, counted from 1."""
    return f"model-{number:05d}-of-{total:05d}.safetensors"
