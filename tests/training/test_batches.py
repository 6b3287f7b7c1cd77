"""Packing: every token is predicted once, holes lose nothing, any place can be resumed from."""

import copy
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import abyssal.training.batches as batches_module
from abyssal.errors import InputError
from abyssal.training.batches import (
    BatchStream,
    TokenStream,
    prefix_suffix_middle,
    validation_batches,
)
from abyssal.training.dataset import Documents
from abyssal.training.tokenizer import ByteTokenizer, Tokenizer, train_bpe

BYTE = ByteTokenizer()
EOS = BYTE.eos_id


def make_documents(texts, tokenizer=BYTE, dtype="<u2"):
    tokens = [tokenizer.encode(text) for text in texts]
    ends = np.cumsum([len(ids) for ids in tokens])
    # Something else lies between and behind the documents, as on disk.
    spans = (
        np.stack([ends - [len(ids) for ids in tokens], ends], axis=1)
        + np.arange(len(texts))[:, None]
    )
    row = [token for ids in tokens for token in [*ids, 7]]
    sizes = np.array([len(text.encode()) for text in texts])
    return Documents(np.array(row, dtype=dtype), spans, sizes)


def make_stream(documents, *, length=16, batch=4, seed=0, rate=0.0, tokenizer=BYTE):
    return BatchStream(
        documents,
        sequence_length=length,
        batch_size=batch,
        seed=seed,
        fim_rate=rate,
        tokenizer=tokenizer,
    )


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(batches_module, "SHUFFLED_BATCHES", 3)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("the \u20ac and the \U0001f642 are in the text\n" * 30)
    return train_bpe(folder, vocab_size=330)


texts = st.lists(
    st.text(alphabet="ab\n\u00e9\u20ac\U0001f642", min_size=1, max_size=60), min_size=1, max_size=12
)


# One epoch of the stream of tokens.


def one_epoch(documents, section, rate, seed=0, tokenizer=BYTE):
    """The tokens of the first epoch, and the stream behind it."""
    stream = TokenStream(documents, section, seed, rate, tokenizer)
    tokens = []
    while stream.position[0] == 0:
        tokens += stream.read(1).tolist()
    return tokens


def without_holes(tokens, tokenizer=BYTE):
    """The texts between ends, prefix-suffix-middle put together again."""
    result = []
    while tokens:
        end = tokens.index(tokenizer.eos_id)
        text, tokens = tokens[:end], tokens[end + 1 :]
        if tokenizer.fim_begin_id in text:
            hole, fim_end = text.index(tokenizer.fim_hole_id), text.index(tokenizer.fim_end_id)
            assert text[0] == tokenizer.fim_begin_id and hole < fim_end
            parts = (text[1:hole], text[fim_end + 1 :], text[hole + 1 : fim_end])
            # Each part is whole characters.
            result.append("".join(tokenizer.decode(part) for part in parts))
            assert "\ufffd" not in result[-1]
        else:
            result.append(tokenizer.decode(text))
    return result


@settings(max_examples=100, deadline=None)
@given(texts=texts, seed=st.integers(0, 2**40))
def test_an_epoch_is_all_documents_in_some_order(texts, seed):
    tokens = one_epoch(make_documents(texts), 8, 0.0, seed)
    assert Counter(without_holes(tokens)) == Counter(texts)
    assert tokens.count(EOS) == len(texts)


@settings(max_examples=150, deadline=None)
@given(texts=texts, seed=st.integers(0, 1000), rate=st.sampled_from([0.3, 1.0]))
def test_holes_lose_nothing(bpe, texts, seed, rate):
    """Documents no longer than a section come out whole, others in parts of it."""
    for tokenizer in (BYTE, bpe):
        documents = make_documents(texts, tokenizer)
        section = int(documents.lengths.max())
        tokens = one_epoch(documents, section, rate, seed, tokenizer)
        assert Counter(without_holes(tokens, tokenizer)) == Counter(texts)
        parts = without_holes(one_epoch(documents, 5, rate, seed, tokenizer), tokenizer)
        assert sorted("".join(parts)) == sorted("".join(texts))
        # Put together in the order of the epoch, the parts are the documents.
        order = TokenStream(documents, 5, seed, rate, tokenizer)._order
        assert "".join(parts) == "".join(texts[i] for i in order)


def test_the_rate_is_that_of_documents_and_of_sections():
    texts = ["x" * 40] * 2000
    for section, units in ((40, 2000), (10, 8000)):
        tokens = one_epoch(make_documents(texts), section, 0.1)
        holes = tokens.count(BYTE.fim_begin_id)
        # Five standard deviations of the binomial distribution.
        assert abs(holes - 0.1 * units) < 5 * (0.09 * units) ** 0.5
    assert one_epoch(make_documents(texts), 40, 1.0).count(BYTE.fim_begin_id) == 2000


def test_holes_are_anywhere_and_the_same_again():
    """Both cuts uniform over the places between characters; another epoch has other cuts."""
    documents = make_documents(["x" * 99] * 3000)
    stream = TokenStream(documents, 99, 0, 0.5, BYTE)
    epochs = [stream.read(3000 * 99 + 3000 + 4 * 3000).tolist() for _ in range(2)]
    firsts, seconds = [], []
    tokens = np.array(epochs[0])
    begins = np.flatnonzero(tokens == BYTE.fim_begin_id)
    for begin in begins[:1000]:
        row = tokens[begin : begin + 103].tolist()
        if EOS not in row:
            continue
        row = row[: row.index(EOS)]
        hole, end = row.index(BYTE.fim_hole_id), row.index(BYTE.fim_end_id)
        firsts.append(hole - 1)
        seconds.append(hole - 1 + len(row) - end - 1)
    # The smaller and the larger of two uniform numbers have means 1/3 and 2/3 of 99.
    assert len(firsts) > 900
    assert abs(np.mean(firsts) - 33) < 4 and abs(np.mean(seconds) - 66) < 4
    assert min(firsts) < 3 and max(seconds) > 96
    assert epochs[0] != epochs[1]


def test_a_hole_is_the_reports_order(bpe):
    text = "one\u20actwo three"
    for tokenizer in (BYTE, bpe):
        tokens = prefix_suffix_middle(text, 4, 7, tokenizer)
        assert tokens == [
            tokenizer.fim_begin_id,
            *tokenizer.encode("one\u20ac"),
            tokenizer.fim_hole_id,
            *tokenizer.encode(" three"),
            tokenizer.fim_end_id,
            *tokenizer.encode("two"),
            tokenizer.eos_id,
        ]


def test_text_before_a_hole_is_closed():
    """fim_begin always follows the end of something."""
    documents = make_documents(["x" * 100, "y" * 77, "zz"])
    tokens = [EOS, *one_epoch(documents, 10, 0.4)]
    begins = [i for i, token in enumerate(tokens) if token == BYTE.fim_begin_id]
    assert begins and all(tokens[i - 1] == EOS for i in begins)
    assert (EOS, EOS) not in itertools.pairwise(tokens)


# Windows.


def predicted_tokens(stream, num_batches):
    """(the token before, the token) of every prediction."""
    pairs = Counter()
    for _ in range(num_batches):
        batch = next(stream)
        for row in batch.tolist():
            pairs.update(itertools.pairwise(row))
    return pairs


@settings(max_examples=60, deadline=None)
@given(
    texts=texts, length=st.integers(1, 20), batch=st.integers(1, 5), rate=st.sampled_from([0, 1])
)
def test_every_token_is_predicted_once_from_the_one_before_it(texts, length, batch, rate):
    """Over whole blocks, across epochs: the windows' pairs are those of the row of tokens."""
    documents = make_documents(texts)
    original, batches_module.SHUFFLED_BATCHES = batches_module.SHUFFLED_BATCHES, 3
    try:
        pairs = predicted_tokens(make_stream(documents, length=length, batch=batch, rate=rate), 6)
    finally:
        batches_module.SHUFFLED_BATCHES = original
    row = TokenStream(documents, max(1, length // 2), 0, rate, BYTE).read(6 * batch * length)
    row = [EOS, *row.tolist()]
    assert pairs == Counter(itertools.pairwise(row))


def test_windows_are_rows_of_the_stream_in_another_order():
    documents = make_documents([chr(97 + n % 26) * (n + 3) for n in range(100)])
    batch = next(make_stream(documents, length=8, batch=64))
    assert batch.dtype == torch.int64 and batch.shape == (64, 9)
    row = TokenStream(documents, 4, 0, 0.0, BYTE).read(64 * 256 * 8)
    row = np.concatenate([[EOS], row])
    windows = [row[i * 8 : i * 8 + 9].tolist() for i in range(64 * 256)]
    places = [windows.index(window) for window in batch.tolist()]
    assert sorted(places) != places
    assert max(places) > 1000  # not neighbours


def test_the_arguments_alone_decide(small_blocks):
    documents = make_documents(["some text " * 9, "more of it\n" * 20, "x"])
    reference = [next(make_stream(documents, rate=0.5)) for _ in range(2)]
    assert torch.equal(*reference)
    for change in ({"seed": 1}, {"rate": 0.0}):
        assert not torch.equal(next(make_stream(documents, **{"rate": 0.5} | change)), reference[0])


@pytest.mark.parametrize("rate", [0.0, 0.6])
def test_it_resumes_at_every_place(small_blocks, rate):
    """Through block and epoch borders, from a state that went through a file's types."""
    documents = make_documents(["a\u20ac" * 20, "b" * 45, "\U0001f642", "cd" * 11])
    stream = make_stream(documents, length=7, batch=2, rate=rate)
    states, expected = [], []
    for _ in range(60):
        states.append(copy.deepcopy(stream.state_dict()))
        expected.append(next(stream))
    assert states[-1]["block_begin"][0] >= 2  # epochs
    assert len({state["block"] for state in states}) > 10
    for number, state in enumerate(states):
        fresh = make_stream(documents, length=7, batch=2, rate=rate)
        for _ in range(number % 5):  # wherever it was before
            next(fresh)
        fresh.load_state_dict(state)
        for later in expected[number : number + 5]:
            assert torch.equal(next(fresh), later)


@settings(max_examples=60, deadline=None)
@given(texts=texts, section=st.integers(1, 9), skip=st.integers(0, 300), rate=st.floats(0, 1))
def test_the_row_of_tokens_can_be_entered_anywhere(texts, section, skip, rate):
    documents = make_documents(texts)
    stream = TokenStream(documents, section, 3, rate, BYTE)
    if skip:
        stream.read(skip)
    position = stream.position
    expected = stream.read(50).tolist()
    other = TokenStream(documents, section, 3, rate, BYTE)
    other.seek(position)
    assert other.read(50).tolist() == expected


def test_batches_of_many_files_at_once():
    """A batch of real size says something about much of the text, not about one file."""
    documents = make_documents([chr(1000 + n) * 4000 for n in range(40)])
    batch = next(make_stream(documents, length=128, batch=16))
    assert len({BYTE.decode(row.tolist()).strip("\ufffd")[1] for row in batch}) > 6


def test_holes_need_their_tokens():
    files = BYTE.files | {"tokenizer.json": BYTE.files["tokenizer.json"].replace("fim", "not")}
    tokenizer = Tokenizer(files)
    documents = make_documents(["text"])
    with pytest.raises(InputError, match=r"fim_rate=0.1 needs a tokenizer .*; give fim_rate=0"):
        make_stream(documents, rate=0.1, tokenizer=tokenizer)
    make_stream(documents, rate=0.0, tokenizer=tokenizer)


# Validation.


@settings(max_examples=120, deadline=None)
@given(texts=texts, length=st.integers(1, 30), batch=st.integers(1, 4))
def test_validation_is_all_of_the_text_once(bpe, texts, length, batch):
    for tokenizer in (BYTE, bpe):
        documents = make_documents(texts, tokenizer)
        windows = list(
            validation_batches(
                documents, sequence_length=length, batch_size=batch, tokenizer=tokenizer
            )
        )
        row = [t for text in texts for t in [*tokenizer.encode(text), tokenizer.eos_id]]
        predicted = [t for window, _ in windows for t in window[:, 1:].flatten().tolist()]
        given_ = [t for window, _ in windows for t in window[:, :-1].flatten().tolist()]
        assert predicted == row
        assert given_ == [tokenizer.eos_id, *row[:-1]]
        assert sum(size for _, size in windows) == sum(len(text.encode()) for text in texts)
        for window, size in windows:
            assert window.dtype == torch.int64
            decoded = [i for i in window[:, 1:].flatten().tolist() if i != tokenizer.eos_id]
            assert size == tokenizer.byte_counts[decoded].sum()
        assert all(len(window) == batch for window, _ in windows[:-2])


@settings(max_examples=80, deadline=None)
@given(texts=texts, length=st.integers(1, 20), limit=st.integers(1, 300))
def test_the_limit_takes_windows_from_everywhere(texts, length, limit):
    documents = make_documents(texts)
    total = int((documents.lengths + 1).sum())
    assume(limit < total)
    options = {"sequence_length": length, "batch_size": 3, "tokenizer": BYTE}
    windows = list(validation_batches(documents, max_tokens=limit, **options))
    count = sum(window[:, 1:].numel() for window, _ in windows)
    assert limit - min(length, limit) < count <= limit
    again = list(validation_batches(documents, max_tokens=limit, **options))
    assert all(torch.equal(a, b) and m == n for (a, m), (b, n) in zip(windows, again, strict=True))
    row = [EOS, *(t for text in texts for t in [*BYTE.encode(text), EOS])]
    size = min(length, limit)
    for window, num_bytes in windows:
        assert num_bytes == (window[:, 1:] != EOS).sum()
        for line in window.tolist():
            assert any(row[i : i + size + 1] == line for i in range(0, len(row), size))


def test_limited_windows_are_spread_over_the_text():
    documents = make_documents([chr(97 + n) * 100 for n in range(26)])
    [(window, _)] = validation_batches(
        documents, sequence_length=20, batch_size=50, tokenizer=BYTE, max_tokens=260
    )
    assert len(window) == 13
    assert len({row[5] for row in window.tolist()}) == 13
    whole = sum(
        size
        for _, size in validation_batches(
            documents, sequence_length=20, batch_size=50, tokenizer=BYTE, max_tokens=26 * 101
        )
    )
    assert whole == 2600
