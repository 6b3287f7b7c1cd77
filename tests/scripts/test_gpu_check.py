"""scripts/gpu_check.sh where there is no GPU, and its summary of a run."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
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


FAKE_PYTHON = """#!/bin/sh
case "$*" in
  "-m scripts.gpu_check_summary "*) exec {python} "$@" ;;
  *"{hangs}"*) echo "begun $$"; sleep 60 ;;
esac
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script with a Python that does nothing, except in one step, which does not end."""
    started = []

    def start(hangs: str, **environment: str) -> subprocess.Popen:
        fake = tmp_path / "python"
        fake.write_text(FAKE_PYTHON.format(python=sys.executable, hangs=hangs))
        fake.chmod(0o755)
        process = subprocess.Popen(
            ["bash", ROOT / "scripts" / "gpu_check.sh", tmp_path / "out"],
            env={**os.environ, "PYTHON": str(fake), **environment},
            stdout=subprocess.DEVNULL,
            # bash cannot trap what it was started to ignore, as a shell's background processes are.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def hanging_step(log: Path) -> int:
    """Its process, once it has begun."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if log.exists() and (found := re.search(r"begun (\d+)\n", log.read_text())):
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError("the step has not begun")


def report_in(out: Path) -> dict:
    with tarfile.open(out / "logs.tar") as logs:
        assert "./steps.tsv" in logs.getnames()
    return json.loads((out / "gpu_check.json").read_text())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_running_step_and_leaves_the_files(number, code, start, tmp_path):
    out = tmp_path / "out"
    script = start("-m pip")
    step = hanging_step(out / "logs" / "build.log")
    script.send_signal(number)
    assert script.wait(100) == code
    with pytest.raises(ProcessLookupError):
        os.kill(step, 0)
    report = report_in(out)
    assert not report["finished"] and not report["succeeded"]
    assert [(step["name"], step["exit_code"]) for step in report["steps"]] == [
        ("probe", 0),
        ("build", code),
    ]
    assert sorted(path.name for path in out.iterdir()) == ["gpu_check.json", "logs.tar"]


def test_a_run_that_is_killed_leaves_what_it_has(start, tmp_path):
    out = tmp_path / "out"
    script = start("-m pip")
    step = hanging_step(out / "logs" / "build.log")
    script.kill()
    script.wait()
    group = os.getpgid(step)  # `timeout` gives what it runs a group of its own
    assert group != os.getpgid(0)
    os.killpg(group, signal.SIGKILL)
    report = report_in(out)
    assert not report["finished"] and not report["succeeded"]
    assert [step["name"] for step in report["steps"]] == ["probe"]
    assert "begun" in (out / "logs" / "build.log").read_text()


def test_one_deadline_for_build_and_tests_and_one_for_all(start, tmp_path):
    script = start("-m pytest", TEST_SECONDS="10", ALL_SECONDS="14")
    # Three steps hang; each has what the ones before it have left.
    assert script.wait(100) == 1
    steps = {step["name"]: step for step in report_in(tmp_path / "out")["steps"]}
    hanging = [steps[name] for name in ("tests", "microkernels", "static_gate")]
    assert [step["exit_code"] for step in hanging] == [124, 124, 124]
    assert sum(step["seconds"] for step in hanging) <= 10
    assert list(steps)[-1] == "timings" and steps["build"]["exit_code"] == 0


def test_usage():
    done = subprocess.run(["bash", ROOT / "scripts" / "gpu_check.sh"], capture_output=True)
    assert done.returncode == 2 and b"usage" in done.stderr


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "steps.tsv").write_text("probe\t0\t1\ntests\t1\t25\nbenchmarks\t124\t400\n")
    (tmp_path / "tests.xml").write_text(JUNIT)
    (tmp_path / "env.json").write_text('{"abyssal": "0.1.0"}')
    (tmp_path / "finished").touch()
    (tmp_path / "benchmarks.json").write_text('{"results": {"quantize_1')  # cut off
    return tmp_path


def test_the_summary_of_a_run_with_failures(logs):
    summary = gpu_check_summary.summarise(logs)
    assert not summary["succeeded"] and not summary["rehearsal"]
    assert summary["steps"][2] == {"name": "benchmarks", "exit_code": 124, "seconds": 400}
    assert summary["environment"] == {"abyssal": "0.1.0"} and summary["benchmarks"] is None
    assert summary["test_counts"] == {"passed": 1, "failure": 1, "skipped": 1}
    json.dumps(summary)


def test_only_a_run_that_finished_has_succeeded(logs):
    (logs / "steps.tsv").write_text("probe\t0\t1\n")
    assert gpu_check_summary.summarise(logs)["succeeded"]
    (logs / "finished").unlink()
    assert not gpu_check_summary.summarise(logs)["succeeded"]


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
