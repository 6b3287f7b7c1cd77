"""Tokenized text on disk: complete or not there, built once, split without a leak."""

import json
import multiprocessing
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import abyssal.training.dataset as dataset_module
from abyssal.errors import InputError
from abyssal.training.dataset import METADATA, OFFSETS, TOKENS, choose_validation, prepare_dataset
from abyssal.training.tokenizer import ByteTokenizer, train_bpe


class Crash(BaseException):
    """Stands for a kill."""


@pytest.fixture
def folder(tmp_path):
    """Files with what makes trouble: duplicates, long and short ones, many bytes a character."""
    rng = random.Random(1)
    letters = "ab \n\u00e9\u20ac\U0001f642"
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(30):
        text = "".join(rng.choices(letters, k=rng.choice([1, 5, 50, 500])))
        (folder / f"{number:02}.txt").write_bytes(text.encode())
    (folder / "copy.txt").write_bytes((folder / "00.txt").read_bytes())
    (folder / "table.jsonl").write_text('{"text": "a record"}\n{"text": "another"}\n')
    return folder


@pytest.fixture
def prepare(folder, tmp_path):
    def build(source=folder, tokenizer=None, fraction=0.2, seed=0):
        return prepare_dataset(
            source,
            tmp_path / "cache",
            tokenizer or ByteTokenizer(),
            validation_fraction=fraction,
            seed=seed,
        )

    return build


def source_texts(folder):
    files = [path for path in sorted(folder.iterdir()) if path.suffix == ".txt"]
    return [path.read_bytes().decode() for path in files] + ["a record", "another"]


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_every_document_is_there_once(prepare, folder, kind):
    tokenizer = ByteTokenizer() if kind == "byte" else train_bpe(folder, vocab_size=280)
    data = prepare(tokenizer=tokenizer)
    decoded = []
    for part in (data.train, data.validation):
        decoded += [tokenizer.decode(document.tolist()) for document in part]
        for document, num_bytes, length in zip(part, part.byte_counts, part.lengths, strict=True):
            assert tokenizer.byte_counts[document].sum() == num_bytes
            assert len(document) == length
    assert sorted(decoded) == sorted(source_texts(folder))
    assert data.train.tokens.dtype == np.dtype("<u2")
    total = sum(len(text.encode()) for text in source_texts(folder))
    assert data.train.byte_counts.sum() + data.validation.byte_counts.sum() == total
    assert 0.1 * total <= data.validation.byte_counts.sum() <= 0.2 * total


def test_large_vocabularies_need_more_bits(prepare, folder):
    class Wide(ByteTokenizer):
        """Ids above 65535 and bytes in two tokens each would not survive in uint16."""

        def __init__(self):
            super().__init__()
            self.vocab_size = 70_000
            self.byte_counts = np.append(self.byte_counts, np.ones(70_000 - 262, dtype=np.int64))
            self._bytes += [b"?"] * (70_000 - 262)

        def encode(self, text):
            return [69_000 + byte for byte in text.encode()]

        @property
        def fingerprint(self):
            return "wide"

    data = prepare(tokenizer=Wide())
    assert data.train.tokens.dtype == np.dtype("<u4")
    decoded = [bytes((doc - 69_000).tolist()).decode() for doc in (*data.train, *data.validation)]
    assert sorted(decoded) == sorted(source_texts(folder))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=30),
    fraction=st.floats(0.001, 0.95),
    seed=st.integers(0, 2**40),
)
def test_the_split_is_close_to_what_was_asked(sizes, fraction, seed):
    """Always some of both; never much more than wanted; at least half, but for short texts."""
    sizes = np.array(sizes)
    digests = np.arange(len(sizes), dtype=np.uint64) * np.uint64(977) + sizes.astype(np.uint64)
    if len(sizes) == 1 and sizes[0] < 8:
        with pytest.raises(InputError, match="too short to be split"):
            choose_validation(sizes, digests, fraction, seed)
        return
    try:
        tails = choose_validation(sizes, digests, fraction, seed)
    except InputError:
        assert (sizes < 8).all() or sizes.sum() * (1 - fraction) < 8
        return
    assert ((tails >= 0) & (tails <= sizes)).all()
    assert ((tails > 0) & (tails < sizes)).sum() <= 1
    wanted = fraction * sizes.sum()
    assert 0 < tails.sum() <= wanted + 8
    assert tails.sum() >= wanted / 2 - 1
    assert tails.sum() < sizes.sum()
    assert (tails == choose_validation(sizes, digests, fraction, seed)).all()


def test_the_split_depends_on_content_and_seed_alone(prepare, folder):
    """More text moves few documents to the other side; the order of files moves none."""
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 2**63, 2000).astype(np.uint64)
    sizes = rng.integers(1, 100, 2000)
    tails = choose_validation(sizes, digests, 0.1, 7)
    order = rng.permutation(2000)
    assert (choose_validation(sizes[order], digests[order], 0.1, 7) == tails[order]).all()
    fewer = choose_validation(sizes[:1900], digests[:1900], 0.1, 7)
    assert (fewer != tails[:1900]).sum() < 30
    assert ((choose_validation(sizes, digests, 0.1, 8) > 0) & (tails > 0)).sum() < 60


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), fraction=st.floats(0.05, 0.9))
def test_copies_are_on_one_side(seed, fraction):
    sizes = np.repeat(np.array([40, 300, 41, 42]), 3)
    digests = np.repeat(np.array([1, 2, 3, 4], dtype=np.uint64), 3)
    tails = choose_validation(sizes, digests, fraction, seed).reshape(4, 3)
    assert (tails == tails[:, :1]).all()


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(min_size=8, max_size=200).filter(lambda t: "\0" not in t),
    fraction=st.floats(0.01, 0.9),
)
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_single_document_gives_both_parts(tmp_path_factory, text, fraction, suffix):
    folder = tmp_path_factory.mktemp("single")
    path = folder / f"a.{suffix}"
    path.write_bytes((text if suffix == "txt" else json.dumps({"text": text})).encode())
    tokenizer = ByteTokenizer()
    data = prepare_dataset(path, folder / "cache", tokenizer, validation_fraction=fraction, seed=0)
    [train], [validation] = data.train, data.validation
    assert len(train) and len(validation)
    assert tokenizer.decode(train.tolist()) + tokenizer.decode(validation.tolist()) == text
    size = len(text.encode())
    assert abs(len(validation) - fraction * size) <= 5
    assert data.train.byte_counts.tolist() == [len(train)]
    assert data.validation.byte_counts.tolist() == [len(validation)]


@pytest.mark.parametrize("text", ["a", "abc", "\u20ac\u20ac"])
def test_what_cannot_be_split_is_refused(prepare, tmp_path, text):
    path = tmp_path / "short"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a text of \d bytes is too short to be split"):
        prepare(path)
    assert not (tmp_path / "cache").exists()


def test_one_token_cannot_be_split(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh " * 50)
    tokenizer = train_bpe(tmp_path, vocab_size=280)
    assert len(tokenizer.encode("abcdefgh")) == 1
    (tmp_path / "a.txt").write_text("abcdefgh")
    with pytest.raises(InputError, match="too short to be split"):
        prepare_dataset(
            tmp_path / "a.txt", tmp_path / "c", tokenizer, validation_fraction=0.5, seed=0
        )


def cache_files(tmp_path):
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files}


def test_it_is_built_once(prepare, folder, tmp_path, monkeypatch):
    first = prepare()
    before = cache_files(tmp_path)
    assert sorted(path.name for path in before) == [METADATA, OFFSETS, TOKENS]
    monkeypatch.setattr(ByteTokenizer, "encode", None)  # would be called
    again = prepare()
    other = prepare(fraction=0.4, seed=3)  # the split is not part of what is on disk
    assert cache_files(tmp_path) == before
    assert again.fingerprint == other.fingerprint == first.fingerprint
    assert again.validation.spans.tolist() == first.validation.spans.tolist()
    assert other.validation.byte_counts.sum() > first.validation.byte_counts.sum()
    # Somewhere else, the same text is the same.
    moved = tmp_path / "moved"
    folder.rename(moved)
    (moved / ".hidden").write_text("x")
    assert "skipped: 1 hidden" in str(prepare(moved))
    assert cache_files(tmp_path) == before


@pytest.mark.parametrize("change", ["content", "name", "last name", "new file", "tokenizer"])
def test_something_else_is_built_anew(prepare, folder, change):
    first = prepare()
    tokenizer = None
    if change == "content":
        text = (folder / "01.txt").read_bytes()
        (folder / "01.txt").write_bytes(text[:-1] + b"?")
    elif change == "name":
        (folder / "01.txt").rename(folder / "1.txt")
    elif change == "last name":  # the order of the files stays
        last = max(folder.iterdir())
        last.rename(last.with_name(f"{last.stem}x.txt"))
    elif change == "new file":
        (folder / "31.txt").write_text("more")
    else:
        tokenizer = train_bpe(folder, vocab_size=270)
    assert prepare(tokenizer=tokenizer).fingerprint != first.fingerprint


@pytest.mark.parametrize("moment", ["tokenizing", "saving", "flushing", "publishing", "text"])
def test_a_crash_leaves_nothing(prepare, folder, tmp_path, monkeypatch, moment):
    """Nothing published and nothing lying around; the next attempt succeeds."""

    def crash(*_args, **_options):
        raise Crash

    with monkeypatch.context() as patch:
        if moment == "tokenizing":
            encode, calls = ByteTokenizer.encode, []

            def crash_late(self, text):
                calls.append(text)
                return crash() if len(calls) == 20 else encode(self, text)

            patch.setattr(ByteTokenizer, "encode", crash_late)
        elif moment == "saving":
            patch.setattr(np, "save", crash)
        elif moment == "flushing":
            patch.setattr(os, "fsync", crash)
        elif moment == "publishing":
            patch.setattr(dataset_module.Path, "rename", crash)
        else:
            patch.setattr(dataset_module.Source, "documents", crash)
        with pytest.raises(Crash):
            prepare()
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(prepare().train) > 10


def build_and_die(source, cache):
    def die(self, text):
        os._exit(9)  # as a kill: no handler runs

    ByteTokenizer.encode = die
    prepare_dataset(source, cache, ByteTokenizer(), validation_fraction=0.2, seed=0)


def test_what_a_killed_process_left_is_removed(prepare, folder, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=build_and_die, args=(folder, tmp_path / "cache")
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    [partial] = (tmp_path / "cache").iterdir()
    assert partial.name.startswith(".partial-")
    data = prepare()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [data.fingerprint]


def build_and_count(source, cache, barrier, results):
    encode, calls = ByteTokenizer.encode, []

    def counted(self, text):
        calls.append(len(text))
        return encode(self, text)

    ByteTokenizer.encode = counted
    barrier.wait()
    data = prepare_dataset(source, cache, ByteTokenizer(), validation_fraction=0.2, seed=0)
    results.put((sum(calls), [document.tolist() for document in data.train]))


def test_processes_at_once_build_it_once(prepare, folder, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (folder, tmp_path / "cache", barrier, results)
    processes = [context.Process(target=build_and_count, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    tokenized = sorted(characters for characters, _ in outcomes)
    assert tokenized == [0, 0, 0, sum(map(len, source_texts(folder)))]
    expected = [document.tolist() for document in prepare().train]
    assert all(documents == expected for _, documents in outcomes)


@pytest.mark.parametrize("name", [TOKENS, OFFSETS, METADATA])
@pytest.mark.parametrize("damage", ["truncated", "empty", "removed", "longer"])
def test_damage_is_noticed(prepare, tmp_path, name, damage):
    directory = tmp_path / "cache" / prepare().fingerprint
    path = directory / name
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        changed = {"truncated": content[:-7], "empty": b"", "longer": content + b"xyz"}
        path.write_bytes(changed[damage])
        if damage == "longer" and name == OFFSETS:
            return  # NumPy's format says its own length
    with pytest.raises(InputError) as caught:
        prepare()
    assert f"at {directory} is damaged" in str(caught.value)
    assert "delete that directory" in str(caught.value) and "\n" not in str(caught.value)


def test_another_format_is_not_misread(prepare, tmp_path):
    directory = tmp_path / "cache" / prepare().fingerprint
    metadata = json.loads((directory / METADATA).read_text())
    (directory / METADATA).write_text(json.dumps(metadata | {"format": 99}))
    with pytest.raises(InputError, match="is damaged"):
        prepare()


def test_it_says_what_it_holds(prepare, folder):
    (folder / "picture").write_bytes(b"\xff\xd8")
    words = str(prepare())
    for part in ("training", "documents", "MB", "tokens; validation", "skipped: 1 not UTF-8 text"):
        assert part in words
