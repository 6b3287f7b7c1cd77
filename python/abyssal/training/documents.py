"""The text to learn from: a directory, a file or JSONL, read as documents.

Every file of a directory that is UTF-8 text is a document, in sorted order; every record of a
`.jsonl` or `.jsonl.gz` file is one. Nothing is held in memory but a piece of a document at a time.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import json
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from abyssal.errors import InputError

# Documents are read and tokenized in pieces of about so many bytes, cut at line ends.
PIECE_BYTES = 1 << 20

# Folders of version control whose names do not begin with a dot.
VERSION_CONTROL = {"CVS", "_darcs"}

HIDDEN = "hidden or of version control"
NOT_TEXT = "not UTF-8 text"
EMPTY = "empty"
NOT_A_FILE = "neither file nor folder"


@dataclasses.dataclass(frozen=True)
class Source:
    """Text that was read once, to know what there is.

    files: those that hold text, sorted. skipped: how many files, folders and records were left out,
    by reason. sizes: int64 [documents], in bytes of UTF-8. digests: uint64 [documents], equal for
    equal texts.
    """

    path: Path
    text_field: str
    files: tuple[Path, ...]
    skipped: Counter[str]
    sizes: np.ndarray
    digests: np.ndarray

    def documents(self) -> Iterator[Iterator[str]]:
        """Each document as pieces of text, to be read before the next document.

        Raises InputError where a document is no longer the one that was read first.
        """
        expected = iter(zip(self.sizes.tolist(), self.digests.tolist(), strict=True))
        for path in self.files:
            for pieces in _file_documents(path, self.text_field):
                try:
                    first = next(pieces, None)
                except NotText:
                    raise _changed(path) from None
                if first is not None:  # empty ones were not counted either
                    yield _unchanged(chain([first], pieces), next(expected, None), path)
        if next(expected, None) is not None:
            raise _changed(self.path)

    @property
    def summary_of_skipped(self) -> str:
        """Such as "3 not UTF-8 text, 1 empty"; "" if nothing was skipped."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))


def read_source(path: Path, *, text_field: str = "text") -> Source:
    """Read all text at `path` once.

    A directory is searched recursively; what is hidden, of version control, empty or not UTF-8 text
    is skipped and counted. Links to files are followed, links to folders are not.

    Raises FileNotFoundError; InputError, naming file and line, for a record that is not JSON or has
    no text in `text_field`, for a single file that is not text, and where there is no text at all.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no directory or file of text at {path}")
    skipped: Counter[str] = Counter()
    found = _find_files(path, skipped) if path.is_dir() else [path]
    files, sizes, digests = [], array("q"), array("Q")
    for file in found:
        before = len(sizes)
        try:
            for pieces in _file_documents(file, text_field):
                measure = _Measure()
                for piece in pieces:
                    measure.add(piece)
                size, digest = measure.result
                if size:
                    sizes.append(size)
                    digests.append(digest)
                else:
                    skipped[EMPTY] += 1
        except NotText as error:
            if file == path:
                raise InputError(f"{path} is {NOT_TEXT}: {error}") from None
            skipped[NOT_TEXT] += 1
            continue
        if len(sizes) > before:
            files.append(file)
    source = Source(
        path,
        text_field,
        tuple(files),
        skipped,
        np.array(sizes, dtype=np.int64),
        np.array(digests, dtype=np.uint64),
    )
    if not files:
        reason = f" (skipped: {source.summary_of_skipped})" if skipped else ""
        raise InputError(f"{path} holds no text to learn from{reason}")
    return source


class NotText(Exception):
    """A file turned out not to be UTF-8 text."""


def _find_files(directory: Path, skipped: Counter[str]) -> list[Path]:
    """The regular files below `directory`, sorted by their path in it."""
    found = []
    for folder, folders, names in os.walk(directory, onerror=_raise):
        hidden = [n for n in folders + names if n.startswith(".") or n in VERSION_CONTROL]
        skipped[HIDDEN] += len(hidden)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        skipped["links to folders"] += len(set(links) - set(hidden))
        folders[:] = [name for name in folders if name not in {*hidden, *links}]
        for name in set(names) - set(hidden):
            path = Path(folder, name)
            if path.is_file():
                found.append(path)
            else:
                skipped[NOT_A_FILE] += 1
    skipped += Counter()  # drops what was counted zero times
    return sorted(found, key=lambda path: path.relative_to(directory).parts)


def _raise(error: OSError) -> None:
    raise error


def _file_documents(path: Path, text_field: str) -> Iterator[Iterator[str]]:
    """The documents of one file, each as pieces of text."""
    name = path.name.lower()
    if not name.endswith((".jsonl", ".jsonl.gz")):
        yield _text_pieces(path)
        return
    for text in _records(path, text_field):
        yield _pieces_of(text)


def _text_pieces(path: Path) -> Iterator[str]:
    """The text of a file, cut at line ends. Raises NotText."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    begun = ""  # the line that goes on in the next piece
    read = 0
    with path.open("rb") as file:
        while True:
            data = file.read(PIECE_BYTES)
            if b"\0" in data:
                raise NotText(f"byte {read + data.index(0)} is zero")
            try:
                text = begun + decoder.decode(data, final=not data)
            except UnicodeDecodeError:
                raise NotText(f"bytes {read} to {read + len(data)} do not decode") from None
            if not data:
                break
            read += len(data)
            cut = text.rfind("\n") + 1 or len(text)
            if cut:
                yield text[:cut]
            begun = text[cut:]
    if begun:
        yield begun


def _pieces_of(text: str) -> Iterator[str]:
    """A text that is in memory, cut like that of a file."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE_BYTES
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield text[begin:end]
        begin = end


def _records(path: Path, text_field: str) -> Iterator[str]:
    """The texts of a JSONL file. Blank lines hold none."""
    with _open_lines(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield _text_of(line, text_field, f"{path}, line {number}")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{path}, after line {number}: truncated or damaged gzip data ({error})"
            ) from None


def _open_lines(path: Path) -> BinaryIO:
    packed = path.name.lower().endswith(".gz")
    return cast(BinaryIO, gzip.open(path, "rb") if packed else path.open("rb"))


def _text_of(line: bytes, text_field: str, where: str) -> str:
    """The text of one record. Raises InputError that says where."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is {NOT_TEXT} (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object but a {type(record).__name__}")
    if text_field not in record:
        fields = ", ".join(map(repr, record)) or "none"
        raise InputError(f"{where} has no field {text_field!r} (text_field); its fields: {fields}")
    text = record[text_field]
    if not isinstance(text, str):
        raise InputError(f"{where}: {text_field!r} must be text, not a {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {text_field!r} holds half a surrogate pair") from None
    return text


class _Measure:
    """Size in bytes and digest of a document that is read piece by piece."""

    def __init__(self) -> None:
        self._size, self._digest = 0, hashlib.blake2b(digest_size=8)

    def add(self, piece: str) -> None:
        data = piece.encode()
        self._size += len(data)
        self._digest.update(data)

    @property
    def result(self) -> tuple[int, int]:
        return self._size, int.from_bytes(self._digest.digest(), "little")


def _unchanged(
    pieces: Iterator[str], expected: tuple[int, int] | None, path: Path
) -> Iterator[str]:
    """`pieces`, checked against what was measured before."""
    measure = _Measure()
    try:
        for piece in pieces:
            measure.add(piece)
            yield piece
    except NotText:
        raise _changed(path) from None
    if measure.result != expected:
        raise _changed(path)


def _changed(path: Path) -> InputError:
    return InputError(f"{path} changed while it was read; start again when it is complete")
