"""Reading text: everything that is there, nothing twice, and what is left out is counted."""

import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import abyssal.training.documents as documents_module
from abyssal.errors import InputError
from abyssal.training.documents import read_source


def texts(source):
    return ["".join(pieces) for pieces in source.documents()]


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_directory_is_read_to_the_bottom_in_order(tmp_path):
    write(
        tmp_path,
        {
            "b.py": "caf\u00e9\r\n",
            "a/z.txt": "\ufeffzwei",
            "a/b/c/deep": "deep",
            "a.txt": "one",
            "empty": "",
            ".hidden": "no",
            ".git/config": "no",
            "a/CVS/Entries": "no",
            "picture": b"\x89PNG\r\n\x1a\n",
            "zero": b"a\0b",
            "latin": "\u00fc".encode("latin-1"),
            "cut": "\u20ac".encode()[:2],
            "utf16": "text".encode("utf-16"),
        },
    )
    source = read_source(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in source.files]
    assert names == ["a/b/c/deep", "a/z.txt", "a.txt", "b.py"]
    assert texts(source) == ["deep", "\ufeffzwei", "one", "caf\u00e9\r\n"]
    assert source.sizes.tolist() == [4, 7, 3, 7]
    assert source.skipped == {
        "not UTF-8 text": 5,
        "hidden or of version control": 3,
        "empty": 1,
    }
    assert source.summary_of_skipped == "1 empty, 3 hidden or of version control, 5 not UTF-8 text"


def test_links(tmp_path):
    """Links to files count as files; those to folders could lead in circles."""
    write(tmp_path, {"data/a.txt": "a", "elsewhere/b.txt": "b"})
    (tmp_path / "data" / "file").symlink_to(tmp_path / "elsewhere" / "b.txt")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "data" / "pipe")
    source = read_source(tmp_path / "data")
    assert texts(source) == ["a", "b"]
    assert source.skipped == {"links to folders": 1, "neither file nor folder": 2}


def test_a_hidden_directory_may_be_the_source(tmp_path):
    write(tmp_path, {".cache/text/a": "a", ".cache/.file": "b"})
    assert texts(read_source(tmp_path / ".cache" / "text")) == ["a"]
    assert texts(read_source(tmp_path / ".cache" / ".file")) == ["b"]


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(min_size=1, max_size=80).filter(lambda t: "\0" not in t), size=st.integers(1, 9)
)
def test_pieces_are_the_text_whatever_their_size(tmp_path_factory, text, size):
    """Pieces end inside lines and characters alike; as a file and as a record."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "a.txt").write_bytes(text.encode())
    (folder / "b.jsonl").write_text(json.dumps({"text": text}))
    original, documents_module.PIECE_BYTES = documents_module.PIECE_BYTES, size
    try:
        source = read_source(folder)
        first, second = (list(pieces) for pieces in source.documents())
    finally:
        documents_module.PIECE_BYTES = original
    assert "".join(first) == "".join(second) == text
    assert "" not in first + second
    assert source.sizes.tolist() == [len(text.encode())] * 2
    assert source.digests[0] == source.digests[1]


def test_large_files_are_read_piece_by_piece(tmp_path):
    lines = "".join(f"line {number}\n" for number in range(300_000))
    (tmp_path / "a.txt").write_text(lines + "end")
    [pieces] = [list(pieces) for pieces in read_source(tmp_path).documents()]
    assert len(pieces) > 3
    assert "".join(pieces) == lines + "end"
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    assert max(map(len, pieces)) <= documents_module.PIECE_BYTES + 100


def test_records_of_jsonl(tmp_path):
    records = [{"text": "a\u20ac", "x": 1}, {"text": ""}, {"text": "b\n"}]
    lines = "\n".join(map(json.dumps, records)) + "\n\n  \n"
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.JSONL.gz", "wt") as file:
        file.write(lines)
    for path, times in ((tmp_path / "a.jsonl", 1), (tmp_path / "b.JSONL.gz", 1), (tmp_path, 2)):
        source = read_source(path)
        assert texts(source) == ["a\u20ac", "b\n"] * times
        assert source.sizes.tolist() == [4, 2] * times
        assert source.skipped == {"empty": times}
    (tmp_path / "c.jsonl").write_text('{"body": "c"}')
    assert texts(read_source(tmp_path / "c.jsonl", text_field="body")) == ["c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["a"]', "is not a JSON object but a list"),
        (b'{"body": "a", "id": 3}', "has no field 'text' (text_field); its fields: 'body', 'id'"),
        (b"{}", "its fields: none"),
        (b'{"text": 5}', "'text' must be text, not a int"),
        (b'{"text": "\\ud800"}', "'text' holds half a surrogate pair"),
        (b'{"text": "\xff"}', "is not UTF-8 text (byte 10)"),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    for source in (path, tmp_path):
        with pytest.raises(InputError) as caught:
            read_source(source)
        assert str(caught.value).startswith(f"{path}, line 3")
        assert message in str(caught.value)


def test_damaged_gzip_is_one_sentence(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"text": os.urandom(50).hex()}) + "\n" for _ in range(100))
    whole = path.read_bytes()
    flipped = bytes([whole[-8] ^ 1])  # of the checksum
    for content in (b"text", whole[: len(whole) // 2], whole[:-8] + flipped + whole[-7:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path}, after line .* damaged gzip data"):
            read_source(path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no directory or file of text at {tmp_path}/none"):
        read_source(tmp_path / "none")
    with pytest.raises(InputError, match=f"{tmp_path} holds no text to learn from$"):
        read_source(tmp_path)
    write(tmp_path, {"a": b"\xff", "b": "", ".c": "hidden"})
    with pytest.raises(InputError, match=r"learn from \(skipped: 1 empty, 1 hidden .*, 1 not UTF"):
        read_source(tmp_path)
    with pytest.raises(InputError, match="a is not UTF-8 text: bytes 0 to 1 do not decode"):
        read_source(tmp_path / "a")
    write(tmp_path, {"zero": b"ab\0"})
    with pytest.raises(InputError, match="zero is not UTF-8 text: byte 2 is zero"):
        read_source(tmp_path / "zero")


@pytest.mark.parametrize("change", ["other text", "longer", "binary", "emptied", "record more"])
def test_a_change_between_two_readings_is_noticed(tmp_path, change):
    write(tmp_path, {"a.txt": "first", "b.jsonl": '{"text": "second"}\n'})
    source = read_source(tmp_path)
    changed = {
        "other text": ("a.txt", "other"),
        "longer": ("a.txt", "first and more"),
        "binary": ("a.txt", b"\xff"),
        "emptied": ("a.txt", ""),
        "record more": ("b.jsonl", '{"text": "second"}\n{"text": "third"}\n'),
    }
    write(tmp_path, dict([changed[change]]))
    with pytest.raises(InputError, match="changed while it was read"):
        texts(source)


def test_a_record_less_is_noticed_too(tmp_path):
    write(tmp_path, {"b.jsonl": '{"text": "first"}\n{"text": "second"}\n'})
    source = read_source(tmp_path)
    write(tmp_path, {"b.jsonl": '{"text": "first"}\n'})
    with pytest.raises(InputError, match="changed while it was read"):
        texts(source)
