"""The benchmarks' harness: what it counts, what it does with a peer that fails, what it prints."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from abyssal import runtime
from benchmarks import __main__, bench_quantize_1x128, harness
from benchmarks.harness import OURS

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_the_median_of_all_replays_and_the_spread_of_rounds():
    timing = harness.summarise([[1.0, 2.0, 9.0], [2.0, 3.0, 4.0]])
    assert timing.microseconds == 2.5
    assert timing.rounds == [2.0, 3.0]
    assert timing.spread == pytest.approx(1 / 2.5)


def make_case(contenders, check=lambda x: None):
    return harness.Case(
        label="test",
        make_inputs=lambda seed: (torch.full((4,), float(seed)),),
        bytes_moved=1000,
        contenders=contenders,
        check=check,
    )


def fail(x):
    raise RuntimeError("no such kernel")


def test_contenders_get_the_same_inputs_and_a_failing_one_is_recorded():
    seen = {OURS: [], "peer": []}

    case = make_case(
        {
            "peer": lambda x: seen["peer"].append(x[0].item()),
            OURS: lambda x: seen[OURS].append(x[0].item()),
            "broken": fail,
        }
    )
    result = harness.run_case(case, CPU)
    assert seen[OURS] == seen["peer"] and set(seen[OURS]) == {0.0, 1.0}
    assert set(result["contenders"]) == {OURS, "peer"}
    assert result["failures"] == {"broken": "RuntimeError: no such kernel"}
    assert harness.failed_cases([result]) == []
    ours = result["contenders"][OURS]
    assert ours["bytes_per_second"] == pytest.approx(1000 / ours["microseconds"] * 1e6)
    rows = list(harness.table_rows(result, ceiling=1e9))
    assert len(rows) == 3 and "1.00x our time" in rows[1] and "failed: RuntimeError" in rows[2]


def test_a_wrong_result_is_not_timed():
    def check(x):
        raise AssertionError("codes differ")

    with pytest.raises(AssertionError, match="codes differ"):
        harness.run_case(make_case({OURS: lambda x: None}, check), CPU)


def main_with(contenders, monkeypatch, *arguments):
    """`python -m benchmarks --rehearse` with one case of these contenders."""
    module = SimpleNamespace(OP="op", cases=lambda device, quick: [make_case(contenders)])
    monkeypatch.setattr(__main__, "_benchmark_modules", lambda: [module])
    monkeypatch.setattr(harness, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--rehearse", *map(str, arguments)])
    return __main__.main()


def test_our_own_failure_fails_the_run_and_gives_no_ratios(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    contenders = {OURS: fail, "peer": torch.abs}
    assert main_with(contenders, monkeypatch, "--out", out) == 1
    printed = capsys.readouterr()
    assert printed.err == "benchmarks: our contender failed on op test\n"
    assert "our time" not in printed.out and "failed: RuntimeError" in printed.out
    (case,) = json.loads(out.read_text())["results"]["op"]
    assert set(case["contenders"]) == {"peer"} and set(case["failures"]) == {OURS}


def test_a_failing_peer_does_not_fail_the_run(monkeypatch):
    assert main_with({OURS: torch.abs, "peer": fail}, monkeypatch) == 0


def test_every_case_has_our_contender():
    try:
        runtime.extension()
    except runtime.ExtensionMissing as missing:
        pytest.skip(str(missing))
    for module in __main__._benchmark_modules():
        for case in module.cases(CPU, quick=False):
            assert case.ours in case.contenders, case.label


def test_a_peer_cannot_take_our_place(tmp_path, monkeypatch):
    peer = tmp_path / "peer.py"
    peer.write_text("CONTENDERS = {'op': {'abyssal': abs}}\n")
    with pytest.raises(SystemExit, match="a name of its own, and abyssal is taken"):
        main_with({OURS: torch.abs}, monkeypatch, "--peer", peer)


@pytest.mark.parametrize(
    ("tokens", "width", "dtype", "expected"),
    [
        (1, 128, torch.bfloat16, 2 * 128 + 128 + 4),
        (10, 7168, torch.bfloat16, 10 * (3 * 7168 + 4 * 56)),
        (10, 130, torch.float32, 10 * (5 * 130 + 4 * 2)),
    ],
)
def test_bytes_of_the_quantiser(tokens, width, dtype, expected):
    case = bench_quantize_1x128.make_case(tokens, width, dtype, CPU)
    assert case.bytes_moved == expected
    case.check(*case.make_inputs(0))


def test_its_check_can_fail():
    case = bench_quantize_1x128.make_case(3, 256, torch.bfloat16, CPU)
    x, out = case.make_inputs(0)
    case.contenders[OURS](x, out)
    assert torch.equal(
        out.data.view(torch.uint8), case.contenders["torch"](x, out)[0].view(torch.uint8)
    )
    other = bench_quantize_1x128.make_case(3, 256, torch.bfloat16, CPU, pow2=True)
    assert not torch.equal(other.contenders["torch"](x, out)[1], out.scale)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run("--out", tmp_path / "out.json")
    assert done.returncode == 2 and "--rehearse" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_unknown_names():
    done = run("quantize_1x129")
    assert done.returncode == 2 and "unknown benchmark quantize_1x129" in done.stderr


@pytest.mark.nightly
def test_a_rehearsal_with_a_peer(tmp_path):
    peer = tmp_path / "peer.py"
    peer.write_text("CONTENDERS = {'quantize_1x128': {'peer': lambda x, out: x.abs()}}\n")
    done = run("--rehearse", "--quick", "--peer", peer, "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["device"] == "CPU" and not report["measured_on_gpu"]
    cases = report["results"]["quantize_1x128"]
    assert len(cases) == 6
    names = {"abyssal", "torch", "torch.compile", "peer"}
    assert all(set(case["contenders"]) == names for case in cases)
