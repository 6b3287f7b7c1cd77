"""`abyssal env`: a full report on any machine, however little of it works."""

import json

import pytest

import abyssal
from abyssal import runtime
from abyssal.cli import env
from abyssal.cli.main import main
from tests.runtime.test_report import without_torch

HOPPER = {
    "extension": {"built": True, "reason": None},
    "kernels": {"built": True, "reason": None, "images": ["quantize_1x128"]},
    "driver": {"cuda": "13.0", "needed": "13.0", "reason": None},
    "devices": [
        {
            "index": 0,
            "name": "NVIDIA H200",
            "capability": "9.0",
            "multiprocessors": 132,
            "memory_bytes": 141 * 2**30,
            "usable": True,
        },
        {
            "index": 1,
            "name": "NVIDIA A100",
            "capability": "8.0",
            "multiprocessors": 108,
            "memory_bytes": 80 * 2**30,
            "usable": False,
        },
    ],
    "backends": {"reference": None, "cuda": None},
}


def printed(capsys, *argv: str) -> str:
    assert main(["env", *argv]) == 0
    return capsys.readouterr().out


def test_json(capsys):
    report = json.loads(printed(capsys, "--json"))
    assert report["abyssal"] == abyssal.__version__
    assert report["libraries"]["torch"]
    assert {name: report[name] for name in runtime.report()} == runtime.report()
    assert report["torch_error"] is None and report["cpu"]["threads"] >= 1


def test_text_of_a_hopper_machine(capsys, monkeypatch):
    monkeypatch.setattr(runtime, "report", lambda: HOPPER)
    lines = printed(capsys).splitlines()
    rows = {line[:17].strip(): line[17:].strip() for line in lines}
    assert rows["kernels"] == "quantize_1x128"
    assert rows["driver"] == "CUDA 13.0 (needed: 13.0)"
    assert rows["gpu 0"] == (
        "NVIDIA H200, capability 9.0 (runs the kernels), 132 multiprocessors, 141 GiB"
    )
    assert "cannot run the kernels" in rows["gpu 1"]
    assert rows["backend cuda"] == rows["backend reference"] == "yes"


def test_text_says_what_is_missing_and_why(capsys, monkeypatch):
    def missing():
        raise runtime.ExtensionMissing("it was not built")

    monkeypatch.setattr(runtime, "extension", missing)
    monkeypatch.setattr(env, "_version", lambda name: None)
    text = printed(capsys)
    assert "extension" in text and "it was not built" in text
    assert "backend cuda       no: it was not built" in text
    assert "tyro               NOT INSTALLED" in text
    assert "transformers       not installed (optional)" in text


@pytest.mark.parametrize(
    "error", [OSError("libcudart.so.13: cannot open shared object file"), ValueError("no numpy")]
)
def test_a_broken_torch_is_reported_with_all_the_rest(error, capsys, monkeypatch):
    before = json.loads(printed(capsys, "--json"))
    without_torch(monkeypatch, error)
    reason = f"torch cannot be imported ({type(error).__name__}: {error})"
    report = json.loads(printed(capsys, "--json"))
    assert report["torch_error"] == reason and report["cpu"]["threads"] is None
    for part in ("extension", "kernels", "driver"):
        assert report[part] == before[part]
    assert report["devices"] == []
    assert report["backends"] == dict.fromkeys(("reference", "cuda", "emulator"), reason)
    text = printed(capsys)
    assert f"torch              {reason}" in text
    assert f"backend reference  no: {reason}" in text


@pytest.mark.parametrize("argv", [["--jsn"], ["extra"]])
def test_wrong_options(argv, capsys):
    assert main(["env", *argv]) == 2
    assert capsys.readouterr().err.startswith("abyssal: error: unrecognized arguments")
