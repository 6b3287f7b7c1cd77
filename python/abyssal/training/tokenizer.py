"""Byte-level tokenizers: plain bytes, BPE trained on the data, or one that exists.

All of them are lossless: every text is a sequence of bytes, every token stands for some of them.
A tokenizer is kept as the files that transformers reads too (tokenizer.json and its companions),
verbatim, so that loading and saving changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abyssal.errors import InputError
from abyssal.training.documents import read_source

if TYPE_CHECKING:
    import tokenizers

DEFINITION = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
# What a tokenizer's directory may hold beside these two; kept and written back as it is.
COMPANIONS = (
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

# DeepSeek's spellings.
BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
PAD = "<\uff5c\u2581pad\u2581\uff5c>"
FIM_BEGIN = "<\uff5cfim\u2581begin\uff5c>"
FIM_HOLE = "<\uff5cfim\u2581hole\uff5c>"
FIM_END = "<\uff5cfim\u2581end\uff5c>"
SPECIAL_TOKENS = (BOS, EOS, PAD, FIM_BEGIN, FIM_HOLE, FIM_END)

# How tokenizers spell what stands before the prefix, the suffix and the middle.
FIM_SPELLINGS = (
    (FIM_BEGIN, FIM_HOLE, FIM_END),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)

NUM_BYTES = 256
# What an id without a token decodes to: a model's vocabulary may be larger than its tokenizer's.
UNKNOWN = "\ufffd".encode()


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies, GPT-2's choice.

    Printable bytes of Latin-1 stand for themselves, the others for U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(NUM_BYTES + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_alphabet()


class Tokenizer:
    """A byte-level tokenizer, from the content of its files by name.

    vocab_size: one more than the highest id.
    bos_id, eos_id, pad_id: int; bos_id and pad_id are None where the tokenizer has none.
    fim_begin_id, fim_hole_id, fim_end_id: int, or None where the tokenizer cannot mark holes.
    control_ids: the ids of control tokens (bos, eos, fim and so on), which are no text.
    byte_counts: int64 [vocab_size], the bytes of text that each id stands for; 0 for control
    tokens.

    Raises InputError, naming `origin`, for what is no byte-level tokenizer.
    """

    def __init__(self, files: Mapping[str, str], origin: str = "tokenizer") -> None:
        self.files = dict(files)
        self.origin = origin
        definition = _parse(self.files[DEFINITION], f"{origin}: {DEFINITION}")
        settings = _parse(self.files.get(SETTINGS, "{}"), f"{origin}: {SETTINGS}")
        vocabulary, added, control = _vocabulary(definition, origin)
        tokens = vocabulary | added
        ids = {token: number for number, token in tokens.items()}

        self.vocab_size = max(tokens) + 1
        self.bos_id = _role(settings, "bos_token", BOS, ids)
        self.pad_id = _role(settings, "pad_token", PAD, ids)
        eos_id = _role(settings, "eos_token", EOS, ids)
        if eos_id is None:
            raise InputError(
                f"{origin}: the tokenizer has no end-of-text token (eos_token in {SETTINGS})"
            )
        self.eos_id: int = eos_id
        self.fim_begin_id: int | None
        self.fim_hole_id: int | None
        self.fim_end_id: int | None
        self.fim_begin_id, self.fim_hole_id, self.fim_end_id = _fim_ids(ids)

        roles = {self.bos_id, self.eos_id, self.pad_id}
        roles |= {self.fim_begin_id, self.fim_hole_id, self.fim_end_id}
        self.control_ids = frozenset(control | {each for each in roles if each is not None})
        self._bytes = [UNKNOWN] * self.vocab_size
        for number, token in vocabulary.items():
            self._bytes[number] = _bytes_of(token)
        for number, token in added.items():
            self._bytes[number] = token.encode()
        self.byte_counts = np.fromiter(map(len, self._bytes), np.int64, self.vocab_size)
        self.byte_counts[sorted(self.control_ids)] = 0

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. What looks like a control token is text like any other."""
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control tokens as they are spelled, invalid UTF-8 as U+FFFD."""
        pieces = [self._bytes[i] if i < self.vocab_size else UNKNOWN for i in ids]
        return b"".join(pieces).decode(errors="replace")

    def save(self, directory: Path) -> None:
        """Write the files that `load_tokenizer` and transformers read."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content.encode())

    @cached_property
    def starts_character(self) -> np.ndarray:
        """bool [vocab_size]: whether a token begins with the first byte of a character."""
        return np.array([not token or token[0] & 0xC0 != 0x80 for token in self._bytes])

    @cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizers that encode alike and give the same ids their roles."""
        roles = [self.bos_id, self.eos_id, self.pad_id]
        roles += [self.fim_begin_id, self.fim_hole_id, self.fim_end_id]
        content = [self.files[DEFINITION], *roles]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        """The tokenizers library's object, told to leave control tokens in a text alone."""
        import tokenizers

        definition = json.loads(self.files[DEFINITION])
        # Truncation and padding are somebody's settings for batches, not part of the language.
        definition |= {"truncation": None, "padding": None}
        for added in definition.get("added_tokens", []):
            added["special"] = added["id"] in self.control_ids
        try:
            library = tokenizers.Tokenizer.from_str(json.dumps(definition))
        except Exception as error:  # the library raises nothing more precise
            raise InputError(
                f"{self.origin}: the tokenizers library cannot read {DEFINITION}: {error}"
            ) from None
        library.encode_special_tokens = True
        return library


class ByteTokenizer(Tokenizer):
    """One token a byte (ids 0 to 255), then the six control tokens."""

    def __init__(self) -> None:
        super().__init__(_byte_tokenizer_files(), "byte")

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at `path`: a tokenizer.json or a directory that holds one.

    Raises FileNotFoundError if there is none, InputError for what is not byte-level.
    """
    directory = path if path.is_dir() else path.parent
    definition = directory / DEFINITION if path.is_dir() else path
    if not definition.is_file():
        raise FileNotFoundError(f"there is no {DEFINITION}, the tokenizer, at {path}")
    files = {DEFINITION: _read(definition)}
    for name in (SETTINGS, *COMPANIONS):
        if (directory / name).is_file():
            files[name] = _read(directory / name)
    if files[DEFINITION] == _byte_tokenizer_files()[DEFINITION]:
        return ByteTokenizer()  # the same, faster
    tokenizer = Tokenizer(files, str(directory))
    tokenizer.encode("")  # what the library refuses, it refuses now
    return tokenizer


def train_bpe(data: Path, *, vocab_size: int, text_field: str = "text") -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` tokens, learned from all the text at `data`.

    The same text gives the same tokenizer. Fewer tokens come out if the text has no more pairs to
    join. Raises InputError for a vocabulary too small for the bytes and control tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    smallest = NUM_BYTES + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise InputError(
            f"bpe_vocab_size={vocab_size} must be at least {smallest}: {NUM_BYTES} bytes and "
            f"{len(SPECIAL_TOKENS)} control tokens"
        )
    source = read_source(data, text_field=text_field)
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(BYTE_OF_CHARACTER),
        show_progress=sys.stderr.isatty(),
    )
    pieces = (piece for document in source.documents() for piece in document)
    library.train_from_iterator(pieces, trainer)
    return Tokenizer({DEFINITION: library.to_str(), SETTINGS: _settings()}, "bpe")


def _byte_tokenizer_files() -> dict[str, str]:
    """The byte tokenizer as files: BPE over the byte alphabet without anything to join."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level |= {"use_regex": False}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": NUM_BYTES + number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": dict(sorted(BYTE_OF_CHARACTER.items(), key=lambda item: item[1])),
            "merges": [],
        },
    }
    return {DEFINITION: json.dumps(definition, ensure_ascii=False), SETTINGS: _settings()}


def _settings() -> str:
    """tokenizer_config.json of the tokenizers that are made here."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        # transformers would otherwise take spaces before punctuation out of decoded text.
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(settings, ensure_ascii=False, indent=2) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid UTF-8 (byte {error.start})") from None


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{name} must hold a JSON object, not a {type(value).__name__}")
    return value


def _vocabulary(
    definition: dict[str, Any], origin: str
) -> tuple[dict[int, str], dict[int, str], set[int]]:
    """Token by id of a byte-level tokenizer.json: learned ones, added ones; which are special."""
    try:
        decoder, model = definition["decoder"], definition["model"]
        parts = decoder.get("decoders", [decoder])
        byte_level = any(part["type"] == "ByteLevel" for part in parts)
        tokens = {int(number): token for token, number in dict(model["vocab"]).items()}
        added = {int(token["id"]): token["content"] for token in definition["added_tokens"]}
        special = {int(token["id"]) for token in definition["added_tokens"] if token["special"]}
    except (AttributeError, KeyError, TypeError, ValueError):
        byte_level = False
    if not byte_level:
        raise InputError(
            f"{origin}: {DEFINITION} is not a byte-level tokenizer; byte-level ones (such as those "
            "of DeepSeek, GPT-2, Llama 3 and Qwen) can be used"
        )
    missing = len(BYTE_OF_CHARACTER.keys() - tokens.values())
    if missing:
        raise InputError(
            f"{origin}: {DEFINITION} has no tokens for {missing} of the {NUM_BYTES} bytes"
        )
    return tokens, added, special


def _bytes_of(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for."""
    if all(character in BYTE_OF_CHARACTER for character in token):
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()


def _role(settings: dict[str, Any], name: str, default: str, ids: dict[str, int]) -> int | None:
    """The id of a control token that tokenizer_config.json names, else of DeepSeek's."""
    token = settings.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    return ids.get(default if token is None else token)


def _fim_ids(ids: dict[str, int]) -> tuple[int, int, int] | tuple[None, None, None]:
    for begin, hole, end in FIM_SPELLINGS:
        if begin in ids and hole in ids and end in ids:
            return ids[begin], ids[hole], ids[end]
    return None, None, None
