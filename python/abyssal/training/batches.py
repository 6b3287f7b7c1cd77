"""Documents packed into sequences, some of them with a hole to fill.

An epoch lays all documents end to end in a new order, each closed by the end token, and cuts them
into windows of sequence_length + 1 tokens that overlap by one: every token is predicted once. There
is no mask between documents (report, section 4.1: document packing without cross-sample attention
masking). Windows come in random order. A window is computed from its number alone, so that a
stream's position is two integers and resuming is exact.

Fill-in-the-middle (report, section 4.1): with probability `fim_rate`, a text becomes

    <fim_begin> prefix <fim_hole> suffix <fim_end> middle <eos>

cut at two random places between characters. A text is a document; of a document that does not fit
into a sequence, each piece that does. The model then sees a hole and both its sides at once, as
when it is asked to fill one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from abyssal.errors import InputError
from abyssal.training.dataset import Documents
from abyssal.training.tokenizer import Tokenizer

# The three tokens of a hole, and the end.
_FIM_TOKENS = 4

# What the random generators of an epoch are for; each has its own.
_ORDER, _HOLES, _CUTS, _WINDOWS = range(4)


class BatchStream:
    """An endless iterator over int64 [batch_size, sequence_length + 1] batches.

    The same arguments give the same batches. Raises InputError if the documents do not fill a
    sequence, or if the tokenizer has no tokens for holes.
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
        if fim_rate > 0 and not tokenizer.can_fill_holes:
            raise InputError(
                f"fim_rate={fim_rate}, but the tokenizer has no tokens for holes; set fim_rate to 0"
            )
        # Markers only add to it, so that no epoch is shorter.
        available = documents.num_tokens + len(documents)
        if available < sequence_length + 1:
            raise InputError(
                f"the training text has {available:,} tokens, less than one sequence of "
                f"{sequence_length} and its next token"
            )
        self._documents = documents
        self._length = sequence_length
        self._batch_size = batch_size
        self._seed = seed
        self._fim_rate = fim_rate
        self._tokenizer = tokenizer
        self._pieces = _cut(documents.spans, max(1, sequence_length + 1 - _FIM_TOKENS))
        self._epoch = _Epoch(self, 0)
        self._position = 0  # windows of the epoch that were given out

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        batch = np.empty((self._batch_size, self._length + 1), dtype=np.int64)
        for row in batch:
            if self._position == len(self._epoch):
                self._epoch = _Epoch(self, self._epoch.number + 1)
                self._position = 0
            row[:] = self._epoch.window(self._position)
            self._position += 1
        return torch.from_numpy(batch)

    def state_dict(self) -> dict[str, int]:
        """The position, for `load_state_dict` of a stream with the same arguments."""
        return {"epoch": self._epoch.number, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch that would have followed `state_dict()`."""
        self._epoch = _Epoch(self, state["epoch"])
        self._position = state["position"]


class _Epoch:
    """One pass over the documents: which pieces in which order, and how windows cut them."""

    def __init__(self, stream: BatchStream, number: int) -> None:
        self.number = number
        self._stream = stream
        pieces = stream._pieces
        documents = self._random(_ORDER).permutation(len(stream._documents))
        # The pieces of the documents in that order: first piece, first + 1, ...
        counts = pieces.counts[documents]
        skipped = np.cumsum(counts) - counts
        self._order = np.repeat(pieces.firsts[documents] - skipped, counts) + np.arange(
            counts.sum()
        )
        holes = self._random(_HOLES).random(len(pieces.spans)) < stream._fim_rate
        lengths = pieces.spans[:, 1] - pieces.spans[:, 0]
        lengths = lengths + np.where(holes, _FIM_TOKENS, pieces.is_last)
        self._holes = holes
        # Where each piece, in order, ends in the epoch's row of tokens.
        self._ends = np.cumsum(lengths[self._order])
        windows = (int(self._ends[-1]) - 1) // stream._length
        self._windows = self._random(_WINDOWS).permutation(windows)

    def __len__(self) -> int:
        return len(self._windows)

    def window(self, position: int) -> npt.NDArray[np.int64]:
        """int64 [sequence_length + 1]"""
        start = int(self._windows[position]) * self._stream._length
        end = start + self._stream._length + 1
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, end, side="left"))
        parts = [self._piece(int(piece)) for piece in self._order[first : last + 1]]
        tokens = np.concatenate(parts)
        offset = start - (int(self._ends[first - 1]) if first else 0)
        return tokens[offset : offset + end - start]

    def _piece(self, piece: int) -> npt.NDArray[np.int64]:
        """The tokens of a piece as they are trained on."""
        stream, pieces = self._stream, self._stream._pieces
        start, end = pieces.spans[piece]
        tokens = stream._documents.tokens(int(start), int(end)).astype(np.int64)
        if self._holes[piece]:
            return make_hole(tokens, stream._tokenizer, self._random(_CUTS, piece))
        return np.append(tokens, stream._tokenizer.eos_id) if pieces.is_last[piece] else tokens

    def _random(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self._stream._seed, self.number, *purpose))


def make_hole(
    tokens: npt.NDArray[np.int64], tokenizer: Tokenizer, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Turn text [L] into prefix, suffix and middle [L + 4], cut between characters."""
    allowed = np.append(np.flatnonzero(tokenizer.starts_character[tokens]), len(tokens))
    wanted = np.sort(random.integers(0, len(tokens) + 1, size=2))
    first, second = allowed[np.searchsorted(allowed, wanted)]
    parts = (
        [tokenizer.fim_begin_id],
        tokens[:first],
        [tokenizer.fim_hole_id],
        tokens[second:],
        [tokenizer.fim_end_id],
        tokens[first:second],
        [tokenizer.eos_id],
    )
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


class _Pieces:
    """Documents cut into pieces of bounded length.

    spans [pieces, 2], is_last [pieces]: whether the document ends there; firsts, counts
    [documents]: the first piece of each, and how many it has.
    """

    def __init__(self, spans: Any, is_last: Any, firsts: Any, counts: Any) -> None:
        self.spans, self.is_last = spans, is_last
        self.firsts, self.counts = firsts, counts


def _cut(spans: npt.NDArray[np.int64], longest: int) -> _Pieces:
    lengths = spans[:, 1] - spans[:, 0]
    # A document without tokens is still one piece: its end is trained on.
    counts = np.maximum(1, -(-lengths // longest))
    firsts = np.cumsum(counts) - counts
    document = np.repeat(np.arange(len(spans)), counts)
    number = np.arange(counts.sum()) - firsts[document]
    starts = spans[document, 0] + number * longest
    ends = np.minimum(starts + longest, spans[document, 1])
    return _Pieces(np.stack([starts, ends], axis=1), number == counts[document] - 1, firsts, counts)


def validation_batches(
    documents: Documents,
    *,
    sequence_length: int,
    batch_size: int,
    tokenizer: Tokenizer,
    max_tokens: int,
) -> Iterator[tuple[Tensor, int]]:
    """The documents, packed as in training but without holes, as far as `max_tokens` reach.

    Yields int64 [B, T + 1] windows and the bytes of text that their predicted tokens stand for. An
    end token comes before the first document, so that its first token is predicted, too. The last
    batch may be smaller and the last window shorter: nothing is left out.
    """
    row = np.concatenate(_row(documents, tokenizer.eos_id, max_tokens + 1))[: max_tokens + 1]
    full = (len(row) - 1) // sequence_length
    cuts = [row[i * sequence_length : (i + 1) * sequence_length + 1] for i in range(full)]
    groups = [cuts[i : i + batch_size] for i in range(0, full, batch_size)]
    rest = row[full * sequence_length :]
    if len(rest) > 1:
        groups.append([rest])
    for group in groups:
        window = np.stack(group)
        yield torch.from_numpy(window), int(tokenizer.token_bytes[window[:, 1:]].sum())


def _row(documents: Documents, eos_id: int, enough: int) -> list[npt.NDArray[np.int64]]:
    parts = [np.asarray([eos_id], dtype=np.int64)]
    taken = 1
    for index in range(len(documents)):
        if taken >= enough:
            break
        parts.append(np.append(documents[index].astype(np.int64), eos_id))
        taken += len(parts[-1])
    return parts
