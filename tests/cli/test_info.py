"""`abyssal info`: figures of presets, files and run directories, as tables and as JSON."""

import json

import pytest

from abyssal.cli.common import first_sentence
from abyssal.cli.main import main
from abyssal.model.presets import PRESETS


def info(capsys, *argv: str) -> dict:
    assert main(["info", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_671b_model_as_json(capsys):
    figures = info(capsys, "671b")
    assert figures["parameters"]["main"] / 1e9 == pytest.approx(671.03, abs=5e-3)
    assert figures["parameters"]["active"] / 1e9 == pytest.approx(37.55, abs=5e-3)
    assert figures["training_flops_per_token"]["causal"] / 1e9 == pytest.approx(250.5, abs=0.06)
    assert figures["training_flops_per_token"]["non_causal_with_mtp"] / 1e9 == pytest.approx(
        291.9, abs=0.06
    )
    assert figures["cache_bytes_per_token"] == 70272
    assert figures["sequence_length"] == 4096
    memory = figures["training_memory_bytes"]["bf16"]
    assert memory["total"] == sum(memory.values()) - memory["total"]


def test_the_671b_model_as_a_table(capsys):
    assert main(["info", "671b"]) == 0
    printed = capsys.readouterr().out
    for figure in ("671.03 B", "37.55 B", "36.63 B", "187.11 M", "396.36 M", "44.04 M", "11.32 B"):
        assert figure in printed
    for figure in ("11.61 B", "250.45 GFLOP", "281.15 GFLOP", "70272 B", "(modelled)"):
        assert figure in printed


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_what_is_inferred(name, capsys):
    assert main(["info", name]) == 0
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line.startswith(f"{name}: ")
    assert ("inferred" in first_line) == (name in ("16b", "230b", "671b"))


def test_the_sequence_length_changes_attention_only(capsys):
    short = info(capsys, "small", "--sequence-length", "1024")
    long = info(capsys, "small", "--sequence-length", "2048")
    assert short["parameters"] == long["parameters"]
    flops = [figures["training_flops_per_token"]["causal"] for figures in (short, long)]
    config = PRESETS["small"]
    width = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    assert flops[1] - flops[0] == 3 * 2 * config.num_hidden_layers * width * 512
    assert info(capsys, "small")["sequence_length"] == config.max_position_embeddings


def test_config_files_and_runs(capsys, tmp_path):
    for step, layers in ((9, 3), (100, 5), (20, 4)):
        checkpoint = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        config = PRESETS["tiny"].replace(num_hidden_layers=layers)
        (checkpoint / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "run" / "checkpoints" / "step-00000300.partial").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-00000400").mkdir()
    assert info(capsys, str(tmp_path / "run"))["config"]["num_hidden_layers"] == 5
    assert info(capsys, str(checkpoint))["config"]["num_hidden_layers"] == 4
    file = info(capsys, str(checkpoint / "config.json"))
    assert file["config"]["num_hidden_layers"] == 4 and "nothing is inferred" in file["source"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tinny"], "'tinny' is neither a preset (tiny, small, 16b, 230b, 671b) nor"),
        ([], "Missing from abyssal info: STR"),
        (["tiny", "--lenght", "3"], "Unrecognized options: --lenght"),
        (["tiny", "--sequence-length", "x"], "--sequence-length"),
        (["tiny", "--sequence-length", "0"], "--sequence-length must be at least 1, not 0"),
    ],
)
def test_wrong_input_is_one_sentence(argv, message, capsys):
    assert main(["info", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert captured.err.startswith("abyssal: error: ") and captured.err.count("\n") == 1


def test_an_unreadable_config_is_one_sentence(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": ')
    assert main(["info", str(tmp_path)]) == 2
    assert "is not valid JSON" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"hidden_sizes": 3}')
    assert main(["info", str(tmp_path)]) == 2
    assert "unknown field(s) 'hidden_sizes'" in capsys.readouterr().err
    assert main(["info", str(tmp_path.parent / "empty")]) == 2


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["info", "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "--sequence-length" in printed and "a run directory" in printed


@pytest.mark.parametrize(
    "framed",
    [
        "\u256d\u2500 Value error \u2500\u256e\n\u2502 no such\n\u2502 thing. \u2502\n"
        "\u2502 \u2500\u2500\u2500 \u2502\n\u2502 advice \u2502\n\u2570\u2500\u2500\u256f\n",
        "\u256d\u2500 Value error \u2500\u256e\n\u2502 no such thing. \u2502\n"
        "\u2570\u2500\u2500\u256f\n",
        " Value error \n ----- \n  no such    \n thing. \n  -----\n advice\n",
    ],
)
def test_a_framed_message_becomes_a_sentence(framed):
    assert first_sentence(framed) == "no such thing"
