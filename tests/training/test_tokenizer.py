"""Tokenizers: lossless, blind to control tokens in a text, and transformers' in every id."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.training.tokenizer import (
    BOS,
    EOS,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    PAD,
    SPECIAL_TOKENS,
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    train_bpe,
)

TEXT = (
    "def f(x):\n    return x  # caf\u00e9 \u20ac\U0001f642\n\n"
    "\tfor i in range(9):\r\n        f(i)\n"
)

# Any text, and text made of what tokenizers treat in special ways.
texts = st.text(max_size=60) | st.lists(
    st.sampled_from([*SPECIAL_TOKENS, " ", "\n", "\u20ac", "return", "\U0001f642", "e\u0301", "a"])
).map("".join)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_bytes((TEXT * 20).encode())
    return train_bpe(folder, vocab_size=300)


@pytest.fixture(scope="module", params=["byte", "bpe", "byte loaded as BPE"])
def tokenizer(request, bpe):
    if request.param == "bpe":
        return bpe
    byte = ByteTokenizer()
    return byte if request.param == "byte" else Tokenizer(byte.files)


@pytest.fixture(scope="module")
def transformers_tokenizer(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_any_text_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_counts[ids].sum() == len(text.encode())


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_text_never_becomes_control_tokens(tokenizer, text):
    control = {
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.fim_begin_id,
        tokenizer.fim_hole_id,
        tokenizer.fim_end_id,
    }
    assert len(control) == 6 and None not in control
    assert control.isdisjoint(tokenizer.encode(text))
    assert (tokenizer.byte_counts[list(control)] == 0).all()


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=40))
def test_any_bytes_decode(tokenizer, data):
    byte_ids = {
        count: number
        for number in range(tokenizer.vocab_size)
        if len(count := tokenizer._bytes[number]) == 1
    }
    ids = [byte_ids[bytes([byte])] for byte in data]
    assert tokenizer.decode(ids) == data.decode(errors="replace")


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_transformers_encodes_and_decodes_alike(tokenizer, transformers_tokenizer, text):
    ids = tokenizer.encode(text)
    assert transformers_tokenizer(text)["input_ids"] == ids
    assert transformers_tokenizer.decode(ids) == text


def test_transformers_knows_the_control_tokens(tokenizer, transformers_tokenizer):
    theirs = transformers_tokenizer
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    names = {
        BOS: tokenizer.bos_id,
        EOS: tokenizer.eos_id,
        PAD: tokenizer.pad_id,
        FIM_BEGIN: tokenizer.fim_begin_id,
        FIM_HOLE: tokenizer.fim_hole_id,
        FIM_END: tokenizer.fim_end_id,
    }
    for name, number in names.items():
        assert theirs.convert_tokens_to_ids(name) == number
        assert tokenizer.decode([number]) == name


def test_bytes_are_their_own_ids():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 262
    assert tokenizer.encode("a\u20ac\n") == list("a\u20ac\n".encode())
    assert tokenizer.starts_character[list("a\u20ac".encode())].tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_ids_that_no_tokenizer_gave_are_visible(tokenizer):
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == "\ufffd"


def test_bpe_joins_what_is_frequent_and_repeats(bpe, tmp_path):
    assert bpe.vocab_size == 300
    assert len(bpe.encode(TEXT)) < 0.7 * len(TEXT.encode())
    (tmp_path / "a.txt").write_bytes((TEXT * 20).encode())
    again = train_bpe(tmp_path, vocab_size=300)
    assert again.files == bpe.files
    assert again.fingerprint == bpe.fingerprint != ByteTokenizer().fingerprint
    (tmp_path / "a.txt").write_bytes(b"other other other other")
    assert train_bpe(tmp_path, vocab_size=300).fingerprint != bpe.fingerprint


def test_bpe_needs_room_for_the_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    assert train_bpe(tmp_path, vocab_size=262).vocab_size == 262
    with pytest.raises(InputError, match="bpe_vocab_size=261 must be at least 262"):
        train_bpe(tmp_path, vocab_size=261)


def test_saving_and_loading_changes_nothing(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_bytes("{{ caf\u00e9 }}\r\n".encode())
    for path in (tmp_path / "a", tmp_path / "a" / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode(TEXT + EOS) == tokenizer.encode(TEXT + EOS)
        assert np.array_equal(loaded.byte_counts, tokenizer.byte_counts)
    loaded.save(tmp_path / "b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    after = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    if isinstance(loaded, ByteTokenizer):
        before.pop("chat_template.jinja")
    assert after == before


def edited(tokenizer, folder, *, definition=None, settings=None):
    """Another tokenizer's directory: entries of its files replaced, None removes them."""
    tokenizer.save(folder)
    for name, entries in {"tokenizer": definition, "tokenizer_config": settings}.items():
        path = folder / f"{name}.json"
        content = json.loads(path.read_text()) | (entries or {})
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def test_a_tokenizer_of_somebody_else(bpe, tmp_path):
    """Roles from its settings, text tokens among the added ones, truncation ignored, no holes."""
    definition = json.loads(bpe.files["tokenizer.json"])
    spellings = {EOS: "<|endoftext|>", FIM_HOLE: "<a>", BOS: "<b>", PAD: "    "}
    for added in definition["added_tokens"]:
        added["content"] = spellings.get(added["content"], added["content"])
        added["special"] = added["content"] == FIM_BEGIN
    vocabulary = definition["model"]["vocab"]
    definition["model"]["vocab"] = {spellings.get(k, k): v for k, v in vocabulary.items()}
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    roles = {"eos_token": {"content": "<|endoftext|>"}, "bos_token": None, "pad_token": None}
    loaded = load_tokenizer(edited(bpe, tmp_path / "theirs", definition=definition, settings=roles))
    assert loaded.eos_id == bpe.eos_id
    assert (loaded.bos_id, loaded.pad_id, loaded.fim_begin_id) == (None, None, None)
    text = f"<|endoftext|>    x{FIM_BEGIN}" + TEXT
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert loaded.eos_id not in ids and bpe.fim_begin_id not in ids
    assert ids.count(bpe.pad_id) > 1  # here an ordinary token, four spaces
    assert loaded.byte_counts[ids].sum() == len(text.encode())


@pytest.mark.parametrize("role", ["bos", "eos", "pad", "fim_begin", "fim_hole", "fim_end"])
def test_roles_are_part_of_the_fingerprint(bpe, role):
    fingerprint = bpe.fingerprint
    other = copy.copy(bpe)
    other.__dict__.pop("fingerprint", None)  # if it is kept
    assert other.fingerprint == fingerprint
    other.__dict__.pop("fingerprint", None)
    other.__dict__[f"{role}_id"] = 7_777
    assert other.fingerprint != fingerprint


@pytest.mark.parametrize("spelling", ["<|fim_{}|>", "<fim_{}>"])
def test_other_spellings_of_holes(bpe, tmp_path, spelling):
    names = {FIM_BEGIN: "prefix", FIM_HOLE: "suffix", FIM_END: "middle"}
    text = bpe.files["tokenizer.json"]
    for ours, theirs in names.items():
        text = text.replace(ours, spelling.format(theirs))
    loaded = load_tokenizer(edited(bpe, tmp_path, definition=json.loads(text)))
    assert (loaded.fim_begin_id, loaded.fim_hole_id, loaded.fim_end_id) == (
        bpe.fim_begin_id,
        bpe.fim_hole_id,
        bpe.fim_end_id,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"definition": {"decoder": {"type": "Metaspace"}}}, "not a byte-level tokenizer"),
        ({"definition": {"decoder": None}}, "not a byte-level tokenizer"),
        ({"definition": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}}, "255 of the"),
        ({"settings": {"eos_token": "</s>"}}, "no end-of-text token"),
        (
            {"definition": {"pre_tokenizer": {"type": "Unheard"}}},
            "library cannot read tokenizer.json",
        ),
    ],
)
def test_unusable_tokenizers_are_refused(bpe, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        load_tokenizer(edited(bpe, tmp_path, **changes))
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[]", b"\xff\xfe{}"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_refused(bpe, tmp_path, name, content):
    bpe.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path}.*{name}"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=f"no tokenizer.json, the tokenizer, at {path}"):
            load_tokenizer(path)
