"""Batches of packed documents, for training and for validation.

Documents are joined, each followed by the end-of-text token, into one stream that is cut into
windows of sequence_length + 1 tokens (report, section 4.1: document packing without a mask between
documents). A window begins with the last token of the one before it, so that every token is
predicted exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abyssal.errors import InputError
from abyssal.training.dataset import Documents
from abyssal.training.tokenizer import Tokenizer

# Windows of so many batches are shuffled together. Neighbours in the stream are alike, and a batch
# of them would say little about the rest of the text.
SHUFFLED_BATCHES = 256

# A hole is useful only if prefix, suffix and middle stand in one window: longer documents get their
# holes in sections of this part of a window.
HOLE_SECTION = 0.5

# What random numbers are for.
_ORDER, _HOLES, _CUTS, _WINDOWS = 1, 2, 3, 4


class BatchStream:
    """Endless batches int64 [batch_size, sequence_length + 1], a function of its arguments alone.

    See TokenStream for what is in them. Windows come in random order, blocks of
    batch_size * SHUFFLED_BATCHES windows after each other.

    Raises InputError if the tokenizer cannot mark holes and fim_rate is not 0.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        sequence_length: int,
        batch_size: int,
        seed: int,
        fim_rate: float,
        tokenizer: Tokenizer,
    ) -> None:
        if fim_rate and tokenizer.fim_begin_id is None:
            raise InputError(
                f"fim_rate={fim_rate} needs a tokenizer with tokens for holes (such as "
                "<|fim_prefix|>), and this one has none; give fim_rate=0"
            )
        section_length = max(1, int(sequence_length * HOLE_SECTION))
        self._stream = TokenStream(documents, section_length, seed, fim_rate, tokenizer)
        self._batch_size, self._length = batch_size, sequence_length
        self._seed = seed
        self._block_number = 0
        self._last_token = tokenizer.eos_id  # the first window begins with it
        self._open_block()

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self._batch == SHUFFLED_BATCHES:
            self._last_token = int(self._block[-1])
            self._block_number += 1
            self._open_block()
        rows = self._order[self._batch * self._batch_size :][: self._batch_size]
        self._batch += 1
        places = rows[:, None] * self._length + np.arange(self._length + 1)
        return torch.from_numpy(self._block[places])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, in plain numbers."""
        return {
            "block": self._block_number,
            "block_begin": self._block_begin,
            "last_token": self._last_token,
            "batch": self._batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a stream with the same arguments was."""
        self._block_number, self._last_token = state["block"], state["last_token"]
        self._stream.seek(state["block_begin"])
        self._open_block()
        self._batch = state["batch"]

    def _open_block(self) -> None:
        """The stream's next windows in memory, the last token before them, and their order."""
        self._block_begin = self._stream.position
        num_windows = self._batch_size * SHUFFLED_BATCHES
        tokens = self._stream.read(num_windows * self._length)
        self._block = np.concatenate([[self._last_token], tokens]).astype(np.int64)
        random = np.random.default_rng((_WINDOWS, self._seed, self._block_number))
        self._order = random.permutation(num_windows)
        self._batch = 0


class TokenStream:
    """The documents as one endless row of tokens that can be read on from any place.

    Every epoch has all documents in a new order, each followed by eos. A document is turned with
    probability `fim_rate` into prefix-suffix-middle (report, section 4.1),

        <fim_begin> prefix <fim_hole> suffix <fim_end> middle <eos>

    cut at two random places between characters. In a document longer than `section_length` tokens,
    that is decided for each section of it, with eos before and behind a section that is turned.
    """

    def __init__(
        self,
        documents: Documents,
        section_length: int,
        seed: int,
        fim_rate: float,
        tokenizer: Tokenizer,
    ) -> None:
        self._documents = documents
        self._section_length = section_length
        self._seed = seed
        self._fim_rate = fim_rate
        self._tokenizer = tokenizer
        self._rest: np.ndarray  # of the section, what was not read yet
        self.seek((0, 0, 0, 0))

    @property
    def position(self) -> tuple[int, int, int, int]:
        """Epoch, place in its order, section of the document there, token of the section."""
        return self._epoch, self._place, self._section, self._offset

    def seek(self, position: tuple[int, int, int, int]) -> None:
        """Go on at what was a `position`."""
        self._epoch, self._place, self._section, offset = position
        self._open_epoch()
        self._rest = self._rest[offset:]
        self._offset = offset

    def read(self, count: int) -> np.ndarray:
        """The next `count` tokens."""
        parts = []
        while count:
            part = self._rest[:count]
            parts.append(part)
            count -= len(part)
            self._rest = self._rest[len(part) :]
            self._offset += len(part)
            if not len(self._rest):
                self._next_section()
        return np.concatenate(parts)

    def _next_section(self) -> None:
        self._section += 1
        if self._section < len(self._holes):
            self._open_section()
            return
        self._section = 0
        self._place += 1
        if self._place < len(self._order):
            self._open_document()
            return
        self._place = 0
        self._epoch += 1
        self._open_epoch()

    def _open_epoch(self) -> None:
        self._order = self._random(_ORDER).permutation(len(self._documents))
        self._open_document()

    def _open_document(self) -> None:
        self._document = int(self._order[self._place])
        self._tokens = self._documents[self._document]
        num_sections = -(-len(self._tokens) // self._section_length)
        if self._fim_rate:
            random = self._random(_HOLES, self._document)
            self._holes = random.random(num_sections) < self._fim_rate
        else:
            self._holes = np.zeros(num_sections, dtype=bool)
        self._open_section()

    def _open_section(self) -> None:
        self._offset = 0
        self._rest = self._section_tokens()

    def _section_tokens(self) -> np.ndarray:
        """What the stream says for a section: its tokens or, with a hole, their rearrangement."""
        section = self._section
        tokens = self._tokens[self._boundary(section) : self._boundary(section + 1)]
        if self._holes[section]:
            return self._with_hole(tokens)
        if section + 1 == len(self._holes) or self._holes[section + 1]:
            return np.append(tokens, self._tokens.dtype.type(self._tokenizer.eos_id))
        return tokens

    def _boundary(self, section: int) -> int:
        """Where a section begins in the document: at the next token that begins a character."""
        place = min(section * self._section_length, len(self._tokens))
        starts_character = self._tokenizer.starts_character
        while place < len(self._tokens) and not starts_character[self._tokens[place]]:
            place += 1
        return place

    def _with_hole(self, tokens: np.ndarray) -> np.ndarray:
        text = self._tokenizer.decode(tokens.tolist())
        random = self._random(_CUTS, self._document, self._section)
        first, second = sorted(random.integers(0, len(text) + 1, 2).tolist())
        return np.array(prefix_suffix_middle(text, first, second, self._tokenizer))

    def _random(self, purpose: int, document: int = 0, section: int = 0) -> np.random.Generator:
        """A generator for one purpose at one place, so that a stream can begin anywhere."""
        # Always as many numbers: NumPy takes (1, 2) and (1, 2, 0) for the same seed.
        return np.random.default_rng((purpose, self._seed, self._epoch, document, section))


def prefix_suffix_middle(text: str, first: int, second: int, tokenizer: Tokenizer) -> list[int]:
    """The text with characters `first` to `second` cut out and moved behind the rest."""
    marks = (tokenizer.fim_begin_id, tokenizer.fim_hole_id, tokenizer.fim_end_id)
    begin, hole, end = (mark for mark in marks if mark is not None)
    return [
        begin,
        *tokenizer.encode(text[:first]),
        hole,
        *tokenizer.encode(text[second:]),
        end,
        *tokenizer.encode(text[first:second]),
        tokenizer.eos_id,
    ]


def validation_batches(
    documents: Documents,
    *,
    sequence_length: int,
    batch_size: int,
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
) -> Iterator[tuple[Tensor, int]]:
    """Batches int64 [B, T + 1] of the documents as they are, and the bytes of the predicted tokens.

    In a row, the first T tokens are given and the last T predicted; eos stands for no bytes.
    Everything is predicted once, the remainder in a last batch with a shorter T. If that is more
    than `max_tokens`, as many windows as fit are taken, evenly spread over the text.
    """
    packed = _Packed(documents, tokenizer.eos_id)
    total = len(packed) - 1
    if max_tokens is None or total <= max_tokens:
        length = sequence_length
        starts = [i * length for i in range(total // length)]
        remainder = total % length
    else:
        length = min(sequence_length, max_tokens)
        count = max_tokens // length
        starts = [i * (total // length) // count * length for i in range(count)]
        remainder = 0
    for first in range(0, len(starts), batch_size):
        batch = starts[first : first + batch_size]
        yield _with_bytes([packed.read(start, length + 1) for start in batch], tokenizer)
    if remainder:
        yield _with_bytes([packed.read(total - remainder, remainder + 1)], tokenizer)


def _with_bytes(windows: list[np.ndarray], tokenizer: Tokenizer) -> tuple[Tensor, int]:
    window = np.stack(windows)
    return torch.from_numpy(window), int(tokenizer.byte_counts[window[:, 1:]].sum())


class _Packed:
    """The row eos, document, eos, document, eos, ... with access to any place of it."""

    def __init__(self, documents: Documents, eos_id: int) -> None:
        self._documents, self._eos_id = documents, eos_id
        # Where each document begins; the last entry is the length of the row.
        self._begins = 1 + np.concatenate([[0], np.cumsum(documents.lengths + 1)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """int64 [length], from `start` on."""
        window = np.full(length, self._eos_id, dtype=np.int64)
        index = max(0, int(np.searchsorted(self._begins, start, side="right")) - 1)
        while index < len(self._documents) and self._begins[index] < start + length:
            begin = int(self._begins[index])
            document = self._documents[index][max(0, start - begin) : start + length - begin]
            place = max(0, begin - start)
            window[place : place + len(document)] = document
            index += 1
        return window
