"""`abyssal bench`: the explanation of a GEMM's kernel."""

import pytest

from abyssal import runtime
from abyssal.cli.main import main

pytestmark = pytest.mark.skipif(
    runtime.why_not_emulator() is not None, reason=str(runtime.why_not_emulator())
)


def table(capsys, *arguments):
    """The rows as lists of words, and the whole."""
    assert main(["bench", "gemm", "--explain", *map(str, arguments)]) == 0
    text = capsys.readouterr().out
    return [line.split() for line in text.splitlines() if line.startswith("fp8_gemm")], text


def test_large_products_get_large_tiles(capsys):
    rows, text = table(capsys, 4096, 7168, 16384)
    assert rows[0][0] == "fp8_gemm_256x128" and rows[0][1] in "ab"
    assert "D [4096, 7168] = A [4096, 16384] B [7168, 16384]^T on 132 multiprocessors" in text
    assert "modelled" in text and len(rows) == 8


def test_the_fastest_comes_first(capsys):
    rows, text = table(capsys, 4096, 2112, 7168, "--all")
    # Rows end with microseconds and what bounds them.
    times = [float(row[-2]) for row in rows]
    assert times == sorted(times) and len(rows) > 8 and "more (--all)" not in text


@pytest.mark.parametrize("n", [256, 576, 2112])
def test_few_rows_divide_k(n, capsys):
    rows, _ = table(capsys, 16, n, 7168)
    assert int(rows[0][2]) > 1


def test_groups(capsys):
    rows, _ = table(
        capsys, 7168, 2048, 32768, "--groups", 8, "--groups-are", "depth", "--row-scales", "--fp32"
    )
    assert all(row[0].endswith("_rows") and row[2] == "1" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gemm", "--explain", "0", "8", "16"], "m must be from 1"),
        (["gemm", "--explain", "8", "16"], "expected 3 arguments"),
        (["conv", "--explain", "8", "8", "16"], "invalid choice: 'conv'"),
        (["gemm", "--explain", "8", "8", "16", "--groups-are", "odd"], "invalid choice"),
    ],
)
def test_wrong_input(arguments, sentence, capsys):
    assert main(["bench", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_the_benchmarks_need_a_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if "site-packages" in p])
    monkeypatch.delitem(__import__("sys").modules, "benchmarks", raising=False)
    assert main(["bench"]) == 2
    assert "run `abyssal bench` in a source checkout" in capsys.readouterr().err
