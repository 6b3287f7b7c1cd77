"""Reading text: a file, a directory of files, or JSONL, as one stream of documents."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from abyssal.errors import InputError

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")

# A larger file becomes several documents, cut at the ends of lines: memory stays bounded.
LONGEST_DOCUMENT = 16 * 2**20  # bytes


def find_files(source: Path) -> list[Path]:
    """The files of `source` in the order in which they are read: sorted by path.

    A directory is searched to the bottom, but for hidden files and folders (.git, .venv) and
    folders behind symbolic links. Raises FileNotFoundError.
    """
    if not source.exists():
        raise FileNotFoundError(f"data: there is no directory or file at {source}")
    if source.is_file():
        return [source]
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.is_file()]
    return sorted(found)


class DocumentReader:
    """Iterates over the documents of files, and counts what it leaves out.

    A text file is a document; so is the `text_field` of every line of a .jsonl or .jsonl.gz file.
    Files that are not UTF-8 or hold a zero byte are left out, as are documents without text.

    Attributes:
        skipped: Counter of the reasons, such as {"not text": 3}.
        bytes_read: how far the files are read, for progress.
    """

    def __init__(self, files: list[Path], *, text_field: str = "text") -> None:
        self._files = files
        self._text_field = text_field
        self.skipped: Counter[str] = Counter()
        self.bytes_read = 0

    def __iter__(self) -> Iterator[str]:
        """Raises InputError for a line of JSONL that is no record with text."""
        for file in self._files:
            read: Callable[[Path], Iterator[str]]
            read = self._records if file.name.endswith(JSONL_SUFFIXES) else self._pieces
            for text in read(file):
                if text:
                    yield text
                else:
                    self.skipped["empty"] += 1
            self.bytes_read += file.stat().st_size

    def _pieces(self, file: Path) -> Iterator[str]:
        with file.open("rb") as stream:
            content = stream.read(LONGEST_DOCUMENT)
            while True:
                if len(content) == LONGEST_DOCUMENT:
                    content += stream.readline()
                text = _as_text(content)
                if text is None:
                    self.skipped["not text"] += 1
                    return
                yield text
                content = stream.read(LONGEST_DOCUMENT)
                if not content:
                    return

    def _records(self, file: Path) -> Iterator[str]:
        opened: Any = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rb") as stream:
            try:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield self._text_of(line, f"{file}, line {number}")
            except (gzip.BadGzipFile, EOFError) as error:
                raise InputError(f"{file} is not a whole gzip file: {error}") from None

    def _text_of(self, line: bytes, where: str) -> str:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(record, dict) or self._text_field not in record:
            raise InputError(f"{where} has no field {self._text_field!r} (see text_field)")
        text = record[self._text_field]
        if not isinstance(text, str):
            raise InputError(f"{where}: {self._text_field!r} must be text, not {text!r:.50}")
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair
            raise InputError(f"{where}: {self._text_field!r} is not valid Unicode") from None
        return text


def _as_text(content: bytes) -> str | None:
    """None for what is not text."""
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
