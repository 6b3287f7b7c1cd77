"""Text as tokens on disk: tokenized once, memory-mapped ever after.

A cache directory holds a folder for each pair of text and tokenizer, named by the hash of both:

    tokens-00000.bin ...   the documents' tokens, uint16 or uint32, whole documents in each file
    starts.npy             int64 [documents + 1], where documents start, counted over all files
    meta.json              what it was made from

It is built under another name, flushed and renamed, by one process at a time: there is never half
of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abyssal.errors import InputError
from abyssal.training.documents import DocumentReader, find_files
from abyssal.training.tokenizer import Tokenizer

FORMAT = 1
SHARD_TOKENS = 2**27
# A stream of random numbers that nothing else draws from (see batches.py).
_SPLIT = 4
# Texts that are tokenized together, for the sake of several cores.
_BATCH_CHARACTERS = 2**22

Tokens = npt.NDArray[np.integer[Any]]


class Documents:
    """Documents as arrays of tokens: `len(documents)`, `documents[i]`.

    Attributes:
        spans: int64 [n, 2], where each begins and ends in the shards laid end to end.
    """

    def __init__(self, shards: list[Tokens], spans: npt.NDArray[np.int64]) -> None:
        self._shards = shards
        self._shard_starts = np.cumsum([0, *map(len, shards)])
        self.spans = spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Tokens:
        """The tokens of a document; memory is read when they are."""
        start, end = self.spans[index]
        return self.tokens(int(start), int(end))

    def tokens(self, start: int, end: int) -> Tokens:
        """The tokens from `start` to `end` of one document."""
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        offset = int(self._shard_starts[shard])
        return self._shards[shard][start - offset : end - offset]

    @property
    def num_tokens(self) -> int:
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Text to train on and text to validate on, which share no document."""

    train: Documents
    validation: Documents
    fingerprint: str  # of the text and the tokenizer
    num_bytes: int
    skipped: dict[str, int]

    def __str__(self) -> str:
        skipped = "".join(f", {count} skipped ({why})" for why, count in self.skipped.items())
        return (
            f"{self.num_bytes / 1e6:.1f} MB in {len(self.train) + len(self.validation):,} "
            f"documents{skipped}; {self.train.num_tokens:,} tokens to train on, "
            f"{self.validation.num_tokens:,} to validate on"
        )


def prepare_dataset(
    source: Path,
    cache_dir: Path,
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    validation_fraction: float,
    seed: int,
    progress: bool = True,
) -> Dataset:
    """Tokenize `source` into `cache_dir`, unless that was done before, and open it.

    The text is read once more at each start, to see whether it has changed. About
    `validation_fraction` of it (0 < fraction < 1), whole documents drawn with `seed`, is kept for
    validation; of a single document, its end.

    Raises FileNotFoundError, and InputError for a source without text or with damaged JSONL; then
    nothing is left behind.
    """
    files = find_files(source)
    fingerprint = _fingerprint(source, files, tokenizer, text_field)
    folder = cache_dir / fingerprint[:16]
    if not folder.exists():
        with _being_the_only_builder(folder):
            if not folder.exists():
                _build(source, files, folder, tokenizer, text_field, progress)
    shards, starts, meta = _open(folder)
    train, validation = _split(starts, validation_fraction, seed)
    return Dataset(
        train=Documents(shards, train),
        validation=Documents(shards, validation),
        fingerprint=fingerprint,
        num_bytes=meta["bytes"],
        skipped=meta["skipped"],
    )


def _fingerprint(source: Path, files: list[Path], tokenizer: Tokenizer, text_field: str) -> str:
    digest = hashlib.sha256(f"{FORMAT} {tokenizer.fingerprint} {text_field!r}\n".encode())
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.sha256()
            while block := stream.read(2**20):
                content.update(block)
        name = file.relative_to(source).as_posix() if file != source else file.name
        digest.update(f"{name!r} {content.hexdigest()}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _being_the_only_builder(folder: Path) -> Iterator[None]:
    """Wait until no other process builds `folder`. Leaves no empty cache directory behind."""
    created = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_path = folder.with_suffix(".lock")
    try:
        with lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except BaseException:
        lock_path.unlink(missing_ok=True)
        if created:
            with contextlib.suppress(OSError):  # another process has put something there
                folder.parent.rmdir()
        raise


def _build(
    source: Path,
    files: list[Path],
    folder: Path,
    tokenizer: Tokenizer,
    text_field: str,
    progress: bool,
) -> None:
    """Tokenize `files` into `folder`, which appears at the end."""
    partial = folder.with_suffix(".partial")
    # What a process left that was killed: nobody else holds the lock.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        reader = DocumentReader(files, text_field=text_field)
        writer = _ShardWriter(partial, np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        with _progress_bar(source, files, progress) as report:
            for texts in _batches(reader):
                writer.bytes += sum(len(text.encode()) for text in texts)
                for tokens in tokenizer.encode_batch(texts):
                    writer.write(tokens)
                report(reader.bytes_read)
        writer.finish({"skipped": dict(reader.skipped), "tokenizer": tokenizer.fingerprint})
        if writer.tokens < 2:
            skipped = ", ".join(f"{count} {why}" for why, count in reader.skipped.items())
            raise InputError(
                f"data: {source} holds no text to learn from: {len(files)} files"
                + (f", skipped: {skipped}" if skipped else "")
            )
        partial.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _batches(reader: DocumentReader) -> Iterator[list[str]]:
    """Documents in groups of bounded size."""
    batch: list[str] = []
    characters = 0
    for text in reader:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _ShardWriter:
    """Writes documents one after the other, and at last what tells them apart."""

    def __init__(self, folder: Path, dtype: type[np.unsignedinteger[Any]]) -> None:
        self._folder, self._dtype = folder, dtype
        self._starts = [0]
        self._sizes: list[int] = []
        self._stream: Any = None
        self.bytes = 0

    @property
    def tokens(self) -> int:
        return self._starts[-1]

    def write(self, tokens: npt.NDArray[np.int64]) -> None:
        if self._stream is None or self._sizes[-1] + len(tokens) > SHARD_TOKENS:
            self._close()
            self._stream = (self._folder / f"tokens-{len(self._sizes):05}.bin").open("wb")
            self._sizes.append(0)
        self._stream.write(tokens.astype(self._dtype).tobytes())
        self._sizes[-1] += len(tokens)
        self._starts.append(self.tokens + len(tokens))

    def finish(self, meta: dict[str, Any]) -> None:
        self._close()
        np.save(self._folder / "starts.npy", np.asarray(self._starts, dtype=np.int64))
        meta = {
            "format": FORMAT,
            "dtype": np.dtype(self._dtype).name,
            "bytes": self.bytes,
            "shard_tokens": self._sizes,
            **meta,
        }
        (self._folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        for path in self._folder.iterdir():
            _flush(path)
        _flush(self._folder)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def _open(folder: Path) -> tuple[list[Tokens], npt.NDArray[np.int64], dict[str, Any]]:
    """Map a finished folder. Raises InputError if it was damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        dtype, sizes = np.dtype(meta["dtype"]), meta["shard_tokens"]
        starts = np.load(folder / "starts.npy")
        shards = []
        for number, size in enumerate(sizes):
            file = folder / f"tokens-{number:05}.bin"
            if file.stat().st_size != size * dtype.itemsize:
                raise ValueError(f"{file.name} has {file.stat().st_size} bytes")
            shards.append(np.memmap(file, dtype=dtype, mode="r") if size else np.empty(0, dtype))
        if starts[-1] != sum(sizes):
            raise ValueError("starts.npy does not fit the tokens")
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"the tokenized text in {folder} is damaged ({error}); remove that folder and it will "
            "be made again"
        ) from None
    return shards, starts, meta


def _split(
    starts: npt.NDArray[np.int64], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Spans [n, 2] to train on, in order, and to validate on, in random order."""
    spans = np.stack([starts[:-1], starts[1:]], axis=1)
    wanted = fraction * starts[-1]
    if len(spans) == 1:
        cut = max(1, int(starts[-1]) - max(1, round(wanted)))
        return np.array([[0, cut]]), np.array([[cut, int(starts[-1])]])
    lengths = spans[:, 1] - spans[:, 0]
    chosen: list[int] = []
    taken = 0
    for document in np.random.default_rng((seed, 0, _SPLIT)).permutation(len(spans)):
        if taken + lengths[document] <= wanted:
            chosen.append(int(document))
            taken += int(lengths[document])
    if not chosen:  # every document is larger than what was asked for
        chosen = [int(lengths.argmin())]
    mask = np.ones(len(spans), dtype=np.bool_)
    mask[chosen] = False
    return spans[mask], spans[chosen]


@contextlib.contextmanager
def _progress_bar(source: Path, files: list[Path], show: bool) -> Iterator[Any]:
    """Gives a function to call with the bytes read so far."""
    if not show:
        yield lambda done: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        total = sum(file.stat().st_size for file in files)
        task = bar.add_task(f"tokenizing {source}", total=total)
        yield lambda done: bar.update(task, completed=done)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
