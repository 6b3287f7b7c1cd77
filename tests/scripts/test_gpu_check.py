"""scripts/gpu_check.sh where there is no GPU, and its summary of a run."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from scripts import gpu_check_summary
from scripts.junit import read_tests

ROOT = Path(__file__).resolve().parents[2]

JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite>
<testcase classname="tests.ops.test_a" name="test_1" time="0.5"/>
<testcase classname="tests.ops.test_a" name="test_2" time="0.25">
  <failure message="assert 1 == 2&#10;and more">...</failure></testcase>
<testcase classname="tests.ops.test_b" name="test_3" time="0.0">
  <skipped message="no GPU">...</skipped></testcase>
</testsuite></testsuites>
"""


def run(out: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", ROOT / "scripts" / "gpu_check.sh", out],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_fails_plainly_and_leaves_its_files(tmp_path):
    done = run(tmp_path / "out")
    assert done.returncode == 1
    assert "torch sees no GPU on this machine" in done.stdout
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["gpu_check.json", "logs.tar"]
    report = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert not report["succeeded"] and report["benchmarks"] is None
    assert [step["name"] for step in report["steps"]] == ["probe"]
    with tarfile.open(tmp_path / "out" / "logs.tar") as logs:
        assert "./probe.log" in logs.getnames()


def test_without_torch_it_says_so(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    done = run(tmp_path / "out", PYTHON=str(bare))
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stdout


def test_usage():
    done = subprocess.run(["bash", ROOT / "scripts" / "gpu_check.sh"], capture_output=True)
    assert done.returncode == 2 and b"usage" in done.stderr


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "steps.tsv").write_text("probe\t0\t1\ntests\t1\t25\nbenchmarks\t124\t400\n")
    (tmp_path / "tests.xml").write_text(JUNIT)
    (tmp_path / "env.json").write_text('{"abyssal": "0.1.0"}')
    (tmp_path / "benchmarks.json").write_text('{"results": {"quantize_1')  # cut off
    return tmp_path


def test_the_summary_of_a_run_with_failures(logs):
    summary = gpu_check_summary.summarise(logs)
    assert not summary["succeeded"] and not summary["rehearsal"]
    assert summary["steps"][2] == {"name": "benchmarks", "exit_code": 124, "seconds": 400}
    assert summary["environment"] == {"abyssal": "0.1.0"} and summary["benchmarks"] is None
    assert summary["test_counts"] == {"passed": 1, "failure": 1, "skipped": 1}
    json.dumps(summary)


def test_the_summary_counts_the_microkernels_too(logs):
    (logs / "microkernels.xml").write_text(JUNIT)
    assert gpu_check_summary.summarise(logs)["test_counts"] == {
        "passed": 2,
        "failure": 2,
        "skipped": 2,
    }


def test_reading_junit(logs):
    passed, failed, skipped = read_tests(logs / "tests.xml")
    assert passed == {"name": "tests.ops.test_a::test_1", "outcome": "passed", "seconds": 0.5}
    assert failed["reason"] == "assert 1 == 2" and skipped["reason"] == "no GPU"
    assert read_tests(logs / "nothing.xml") == []


def test_a_run_that_only_skips_is_no_success(logs, capsys):
    assert gpu_check_summary.main(["--require-passed", str(logs / "tests.xml")]) == 0
    only_skipped = JUNIT.replace('name="test_1" time="0.5"/>', 'name="x"><skipped/></testcase>')
    (logs / "tests.xml").write_text(only_skipped)
    assert gpu_check_summary.main(["--require-passed", str(logs / "tests.xml")]) == 1
    assert "skipped: no GPU" in capsys.readouterr().out
