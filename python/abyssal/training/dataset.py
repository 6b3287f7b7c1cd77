"""Tokenized text on disk, built once and memory-mapped from then on.

`CACHE/KEY/` holds the tokens of all documents one after the other (tokens.bin, little-endian
uint16, or uint32 for vocabularies above 65536), where each document begins (offsets.npy), and
metadata.json, which says how much of it there must be. KEY depends on text and tokenizer, so that a
directory never changes once it has its name. What is for validation is decided when it is opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from abyssal.errors import InputError
from abyssal.training.documents import Source, read_source
from abyssal.training.files import flush, flush_tree
from abyssal.training.tokenizer import Tokenizer

FORMAT = 1
METADATA, TOKENS, OFFSETS = "metadata.json", "tokens.bin", "offsets.npy"

# Directories with this prefix are being built, or were when their process ended.
_HIDDEN = ".partial-"

# A document of so many bytes has at least two characters, to be cut between them.
_SMALLEST_CUT = 8


@dataclasses.dataclass(frozen=True)
class Documents(Sequence[np.ndarray]):
    """Token arrays, one a document.

    tokens: unsigned, of these documents and maybe others; spans: int64 [documents, 2], where each
    begins and ends in tokens; byte_counts: int64 [documents], the UTF-8 bytes of each text.
    """

    tokens: np.ndarray
    spans: np.ndarray
    byte_counts: np.ndarray

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        begin, end = self.spans[index]
        return self.tokens[begin:end]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents], in tokens."""
        return self.spans[:, 1] - self.spans[:, 0]

    def __str__(self) -> str:
        documents = "1 document" if len(self) == 1 else f"{len(self):,} documents"
        size = int(self.byte_counts.sum()) / 1e6
        return f"{documents}, {size:.2f} MB, {int(self.lengths.sum()):,} tokens"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The text of a run. fingerprint: equal for equal text and tokenizer."""

    train: Documents
    validation: Documents
    fingerprint: str
    skipped: str = ""
    """What of the source is not in here, such as "2 empty"."""

    def __str__(self) -> str:
        skipped = f"; skipped: {self.skipped}" if self.skipped else ""
        return f"training {self.train}; validation {self.validation}{skipped}"


def prepare_dataset(
    source: Path,
    cache_dir: Path,
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    validation_fraction: float,
    seed: int,
    progress: bool = False,
) -> Dataset:
    """The tokenized text of `source`, from `cache_dir` if it was built there before.

    The text is read in any case, to know whether it is the same. Processes that ask for the same
    at once build it once. `progress` shows a bar on a terminal.

    Raises what `documents.read_source` raises, and InputError for text too short to be split and
    for a damaged cache.
    """
    with _spinner(progress):
        text = read_source(source, text_field=text_field)
    tails = choose_validation(text.sizes, text.digests, validation_fraction, seed)
    directory = cache_dir / _key(text, tokenizer)
    if not directory.exists():
        with _only_builder(cache_dir):
            if not directory.exists():
                _build(directory, text, tokenizer, progress)
    tokens, offsets = _open(directory)
    train, validation = _split(tokens, offsets, text.sizes, tails, tokenizer)
    return Dataset(train, validation, directory.name, text.summary_of_skipped)


def choose_validation(
    sizes: np.ndarray, digests: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """About how many bytes at the end of each document are for validation: int64, 0 to all.

    Documents are taken in an order that depends on seed and content until `fraction` of the bytes
    is reached; equal texts are treated alike. The first document that is too long is cut if less
    than half of what is wanted was found before it; so there is always some of both.
    """
    tails = np.zeros_like(sizes)
    wanted, found = fraction * sizes.sum(), 0
    ranks = _mix(digests ^ _mix(np.array([seed], dtype=np.uint64)))
    order = np.argsort(ranks, kind="stable")
    begin = 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and ranks[order[end]] == ranks[order[begin]]:
            end += 1
        equal = order[begin:end]
        size, room = int(sizes[equal[0]]), (wanted - found) / len(equal)
        if size > room:
            if found >= wanted / 2:
                break
            if size >= _SMALLEST_CUT:
                tails[equal] = max(1, int(room))
                break
        tails[equal] = size
        found += size * len(equal)
        begin = end
    if (tails == sizes).all():
        raise _too_short(sizes)
    return tails


def _mix(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that leaves no pattern (the finaliser of SplitMix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _too_short(sizes: np.ndarray) -> InputError:
    return InputError(
        f"a text of {sizes.sum()} bytes is too short to be split for training and validation"
    )


def _split(
    tokens: np.ndarray,
    offsets: np.ndarray,
    sizes: np.ndarray,
    tails: np.ndarray,
    tokenizer: Tokenizer,
) -> tuple[Documents, Documents]:
    """The documents to train on and those to validate on, with the last `tails` bytes of each."""
    spans = np.stack([offsets[:-1], offsets[1:]], axis=1)
    cut = np.flatnonzero((tails > 0) & (tails < sizes))
    heads, ends = spans[cut], spans[cut]
    end_bytes = np.zeros(len(cut), dtype=np.int64)
    for number, document in enumerate(cut):
        begin, end = spans[document]
        share = tails[document] / sizes[document]
        place = _cut_place(tokens[begin:end], share, tokenizer)
        if place is None:
            raise _too_short(sizes)
        heads[number, 1] = ends[number, 0] = begin + place
        end_bytes[number] = tokenizer.byte_counts[tokens[begin + place : end]].sum()
    train, validation = tails == 0, tails == sizes
    return (
        Documents(
            tokens,
            np.concatenate([spans[train], heads]),
            np.concatenate([sizes[train], sizes[cut] - end_bytes]),
        ),
        Documents(
            tokens,
            np.concatenate([spans[validation], ends]),
            np.concatenate([sizes[validation], end_bytes]),
        ),
    )


def _cut_place(document: np.ndarray, share: float, tokenizer: Tokenizer) -> int | None:
    """Where the last `share` of a document begins: within it and between characters, if it can."""
    wanted = min(max(1, round(len(document) * (1 - share))), len(document) - 1)
    for place in chain(range(wanted, 0, -1), range(wanted + 1, len(document))):
        if tokenizer.starts_character[document[place]]:
            return place
    return None


def _key(text: Source, tokenizer: Tokenizer) -> str:
    """The name of this text, tokenized like this."""
    root = text.path if text.path.is_dir() else text.path.parent
    names = [os.fsencode(path.relative_to(root)) for path in text.files]
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        f"{FORMAT} {tokenizer.fingerprint}".encode(),
        b"\0".join(names),
        text.sizes.tobytes(),
        text.digests.tobytes(),
    ):
        digest.update(hashlib.blake2b(part).digest())
    return digest.hexdigest()


def _build(directory: Path, text: Source, tokenizer: Tokenizer, progress: bool) -> None:
    """Tokenize everything into `directory`, which appears only when it is complete."""
    partial = directory.with_name(_HIDDEN + directory.name)
    partial.mkdir()
    try:
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        offsets = array("q", [0])
        with (
            (partial / TOKENS).open("wb") as file,
            _bar(int(text.sizes.sum()), progress) as advance,
        ):
            for pieces in text.documents():
                length = 0
                for piece in pieces:
                    tokens = np.array(tokenizer.encode(piece), dtype=dtype)
                    file.write(tokens.tobytes())
                    length += len(tokens)
                    advance(len(piece.encode()))
                offsets.append(offsets[-1] + length)
        np.save(partial / OFFSETS, np.array(offsets, dtype="<i8"))
        metadata = {
            "format": FORMAT,
            "fingerprint": directory.name,
            "dtype": dtype.str,
            "documents": len(text.sizes),
            "tokens": offsets[-1],
            "bytes": int(text.sizes.sum()),
        }
        (partial / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        flush_tree(partial)
        partial.rename(directory)
        flush(directory.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _open(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map tokens and offsets that `_build` published. Raises InputError if not all is there."""
    try:
        metadata = json.loads((directory / METADATA).read_text(encoding="utf-8"))
        if metadata["format"] != FORMAT or metadata["fingerprint"] != directory.name:
            raise ValueError(f"{METADATA} is of something else")
        size = (directory / TOKENS).stat().st_size
        dtype = np.dtype(metadata["dtype"])
        if size != metadata["tokens"] * dtype.itemsize:
            raise ValueError(f"{TOKENS} has {size} bytes for {metadata['tokens']} tokens")
        offsets = np.load(directory / OFFSETS, mmap_mode="r")
        if len(offsets) != metadata["documents"] + 1 or offsets[-1] != metadata["tokens"]:
            raise ValueError(f"{OFFSETS} does not fit {TOKENS}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the tokenized text at {directory} is damaged ({reason}); delete that directory, it "
            "will be built again"
        ) from None
    return np.memmap(directory / TOKENS, dtype, mode="r"), offsets


@contextlib.contextmanager
def _only_builder(cache_dir: Path) -> Iterator[None]:
    """Wait until no other process builds in `cache_dir`; remove what dead ones left there.

    The lock is on the directory itself, and the system releases it when a process ends.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for path in cache_dir.glob(f"{_HIDDEN}*"):
            shutil.rmtree(path)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _spinner(shown: bool) -> Iterator[None]:
    if not (shown and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("reading the text"):
        yield


@contextlib.contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], Any]]:
    """A bar over the bytes of the text. Gives what moves it on by so many bytes."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _num_bytes: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        "[progress.description]{task.description}",
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("tokenizing", total=total)
        yield lambda num_bytes: bar.advance(task, num_bytes)
