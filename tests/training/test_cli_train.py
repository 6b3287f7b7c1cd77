"""`abyssal train` as a user meets it: help, wrong input, signals."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from abyssal.cli.main import main
from abyssal.cli.train import parse_config
from abyssal.training.checkpoint import STATE_FILE, latest_checkpoint, list_checkpoints

SMALL = [
    "--model-set",
    "hidden_size=32",
    "intermediate_size=32",
    "moe_intermediate_size=16",
    "num_hidden_layers=2",
    "--sequence-length=16",
    "--batch-size=2",
    "--threads=1",
    "--device=cpu",
    "--validation-tokens=64",
    "--validation-fraction=0.2",
    "--sample-every=0",
    "--no-plot",
]


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.txt").write_text(f"It was {number} o'clock, and all was well.\n" * 20)
    return folder


@pytest.fixture
def train(text, tmp_path, capsys):
    """Runs the command; returns its exit code, output and errors."""

    def run(*options, data=text):
        places = [f"--data={data}", f"--run-dir={tmp_path / 'run'}"]
        file = [option for option in options[:1] if option.endswith(".toml")]
        code = main(["train", *file, *places, *SMALL, *options[len(file) :]])
        return code, *capsys.readouterr()

    return run


def assert_refused(result, *words):
    code, _, errors = result
    assert code == 2
    assert errors.startswith("abyssal: error: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    for word in words:
        assert word in errors


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    output = capsys.readouterr().out
    for option in ("--data", "--max-minutes", "--bias-update-speed", "--precision", "--resume"):
        assert option in output
    assert "14.3T/14.8T" in output


def test_help_and_wrong_options_do_not_load_torch():
    script = (
        "import sys; from abyssal.cli.train import parse_config\n"
        "try: parse_config(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_options_win_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'data = "corpus"\nbatch_size = 3\nlearning_rate = 1e-2\nmodel_set = ["n_group=1"]'
    )
    config = parse_config([str(file), "--batch-size", "5", "--max-minutes", "2"])
    assert str(config.data) == "corpus"
    assert (config.batch_size, config.learning_rate, config.max_minutes) == (5, 1e-2, 2.0)
    assert config.model_set == ("n_group=1",)
    assert parse_config([str(file), "--data", "other"]).data.name == "other"


def test_a_run_from_start_to_end_and_again(train, tmp_path):
    code, output, errors = train("--total-tokens=320")
    assert (code, errors) == (0, "")
    assert "bits/byte" in output
    assert "step     10" in output
    assert latest_checkpoint(tmp_path / "run").name == "step-00000010"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines].count("train") == 10
    assert_refused(train("--total-tokens=320"), "holds checkpoints already", "--resume")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("no end", "total_tokens", "max_minutes")),
        (("--total-tokens=320", "--max-minutes=1"), ("contradict",)),
        (("--total-tokens=320", "--model=huge"), ("'huge'", "tiny")),
        (("--total-tokens=320", "--tokenizer=words"), ("'words'",)),
        (("--total-tokens=320", "--learning-rat=1"), ("--learning-rat",)),
        (("--total-tokens=many",), ("--total-tokens", "'many'")),
        (("--total-tokens=320", "--precision=fp4"), ("fp4", "bf16")),
        (("missing.toml",), ("no configuration file at missing.toml",)),
        (("--total-tokens=320", "--resume"), ("there is no checkpoint in",)),
        (("--total-tokens=320", "--micro-batch-size=3"), ("must be a multiple",)),
        (("--total-tokens=320", "--device=cuda:7"), ("cuda:7",)),
    ],
)
def test_wrong_input_is_one_sentence(train, tmp_path, options, words):
    assert_refused(train(*options), *words)
    assert not (tmp_path / "run").exists()


def test_missing_data_is_named(train, tmp_path):
    result = train("--total-tokens=320", data=tmp_path / "nowhere")
    assert_refused(result, f"no directory or file at {tmp_path / 'nowhere'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b""])
def test_data_without_text_is_refused(train, tmp_path, content):
    empty = tmp_path / "empty"
    empty.mkdir()
    if content is not None:
        (empty / "a.txt").write_bytes(content)
    assert_refused(train("--total-tokens=320", data=empty), str(empty))
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_the_file_is_named_with_the_file(train, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("total_tokens = 320\nlearning_rat = 0.1\n")
    assert_refused(train(str(file)), str(file), "unknown setting 'learning_rat'")


@pytest.mark.parametrize("name", [STATE_FILE, "model.safetensors", "tokenizer.json", "config.json"])
def test_a_truncated_checkpoint_is_refused(train, tmp_path, name):
    assert train("--total-tokens=320")[0] == 0
    file = latest_checkpoint(tmp_path / "run") / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert_refused(train("--total-tokens=320", "--resume"), str(file.parent))


def test_a_foreign_checkpoint_is_refused(train, tmp_path):
    assert train("--total-tokens=320")[0] == 0
    (latest_checkpoint(tmp_path / "run") / STATE_FILE).unlink()
    assert_refused(train("--total-tokens=320", "--resume"), "not a checkpoint of `abyssal train`")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_continues(text, tmp_path, train, number):
    """A real process, a real signal, between any two of its steps."""
    command = [sys.executable, "-m", "abyssal", "train", f"--data={text}", "--log-every=1"]
    command += [f"--run-dir={tmp_path / 'run'}", "--total-tokens=1000000", *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        for line in process.stdout:
            if "tok/s" in line:
                break
        time.sleep(0.1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert f"by {number.name} after step" in output
    [checkpoint] = list_checkpoints(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    step = json.loads(lines[-1])["step"]
    assert checkpoint.name == f"step-{step:08d}"
    assert_refused(train("--total-tokens=2000000", "--resume"), "total_tokens=2000000 contradicts")
