"""`abyssal generate`: prompts, holes, streaming of text, and one sentence per user error."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.cli.generate import GREEN, PLAIN, joined_text, until_end
from abyssal.cli.main import main
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from abyssal.model.presets import PRESETS

pytest.importorskip("tokenizers")

from abyssal.training.tokenizer import ByteTokenizer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 300,
    "initializer_range": 0.3,
}


def make_checkpoint(directory, seed: int = 0) -> DeepseekV3ForCausalLM:
    tokenizer = ByteTokenizer()
    config = PRESETS["tiny"].replace(
        vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id, **SHAPE
    )
    model = DeepseekV3ForCausalLM(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    model.save_pretrained(directory, progress=False)
    tokenizer.save(directory)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    make_checkpoint(directory)
    return directory


def generate(capfd, *argv: str) -> str:
    assert main(["generate", *argv]) == 0
    return capfd.readouterr().out


def continuation(checkpoint, tokens: list[int], **options) -> str:
    """What the model says in text after these tokens, from the Python interface."""
    model = DeepseekV3ForCausalLM.from_pretrained(checkpoint, progress=False)
    tokenizer = ByteTokenizer()
    options["suppress_tokens"] = list(tokenizer.control_ids - {tokenizer.eos_id})
    output = model.generate(torch.tensor([tokens]), **options)[0, len(tokens) :].tolist()
    return tokenizer.decode(list(until_end(iter(output), {tokenizer.eos_id})))


def test_a_prompt_is_continued(checkpoint, capfd):
    printed = generate(capfd, str(checkpoint), "--prompt", "def f(", "--max-new-tokens", "40")
    tokens = ByteTokenizer().encode("def f(")
    assert printed == "def f(" + continuation(checkpoint, tokens, max_new_tokens=40) + "\n"


def test_sampling_options_reach_the_model(checkpoint, capfd):
    flags = [
        "--temperature",
        "0.9",
        "--top-k",
        "50",
        "--top-p",
        "0.95",
        "--seed",
        "5",
        "--max-new-tokens",
        "30",
    ]
    printed = generate(capfd, str(checkpoint), "--prompt", "abc", *flags)
    options = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 5, "max_new_tokens": 30}
    assert printed == "abc" + continuation(checkpoint, [97, 98, 99], **options) + "\n"
    flags[flags.index("5")] = "6"
    assert generate(capfd, str(checkpoint), "--prompt", "abc", *flags) != printed


def test_control_tokens_are_not_printed_as_text(checkpoint, capfd, tmp_path):
    """A model that loves the tokens of holes."""
    tokenizer = ByteTokenizer()
    model = DeepseekV3ForCausalLM.from_pretrained(checkpoint, progress=False)
    with torch.no_grad():
        model.lm_head.weight[[tokenizer.fim_hole_id, tokenizer.pad_id]] *= 100
    model.save_pretrained(tmp_path / "model", progress=False)
    tokenizer.save(tmp_path / "model")
    free = model.generate(torch.tensor([[97]]), max_new_tokens=20)[0].tolist()
    assert set(free) & {tokenizer.fim_hole_id, tokenizer.pad_id}
    printed = generate(capfd, str(tmp_path / "model"), "--prompt", "a", "--max-new-tokens", "20")
    assert "fim" not in printed
    assert "pad" not in printed


def test_a_model_without_an_end_of_text(checkpoint, capfd, tmp_path):
    """-1 is how some published configurations write "none": the tokenizer's end counts then."""
    directory = tmp_path / "endless"
    shutil.copytree(checkpoint, directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": -1}))
    texts = []
    for folder in (checkpoint, directory):
        assert main(["generate", str(folder), "--prompt", "It was", "--max-new-tokens", "9"]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("It was")


def test_a_terminal_that_lacks_letters_gets_the_rest(checkpoint):
    result = subprocess.run(
        [sys.executable, "-m", "abyssal", "generate", checkpoint, "--prompt", "caf\u00e9 au lait"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"caf? au lait")


def test_several_prompts_are_continued_as_each_alone(checkpoint, capfd):
    prompts = ["x", "a longer prompt", "caf\u00e9 "]
    flags = itertools.chain.from_iterable(("--prompt", prompt) for prompt in prompts)
    printed = generate(capfd, str(checkpoint), *flags, "--max-new-tokens", "20")
    expected = ""
    for number, prompt in enumerate(prompts, start=1):
        text = continuation(checkpoint, ByteTokenizer().encode(prompt), max_new_tokens=20)
        expected += f"--- {number} of 3 ---\n{prompt}{text}\n"
    assert printed == expected


def test_a_prompt_file_is_continued_unchanged(checkpoint, capfd, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("zwei\r\nZeilen \u00fc\n".encode())
    printed = generate(capfd, str(checkpoint), "--prompt-file", str(file), "--max-new-tokens", "5")
    assert printed.startswith("zwei\r\nZeilen \u00fc\n")
    assert printed == generate(
        capfd, str(checkpoint), "--prompt", "zwei\r\nZeilen \u00fc\n", "--max-new-tokens", "5"
    )


@pytest.mark.parametrize(("prefix", "suffix"), [("def a(", "):"), ("", "tail"), ("head", "")])
def test_a_hole_is_filled_between_prefix_and_suffix(prefix, suffix, checkpoint, capfd):
    tokenizer = ByteTokenizer()
    tokens = [tokenizer.fim_begin_id, *tokenizer.encode(prefix), tokenizer.fim_hole_id]
    tokens += [*tokenizer.encode(suffix), tokenizer.fim_end_id]
    printed = generate(capfd, str(checkpoint), "--fim", prefix, suffix, "--max-new-tokens", "25")
    middle = continuation(checkpoint, tokens, max_new_tokens=25)
    assert printed == f"{prefix}{middle}{suffix}\n"


def test_a_run_directory_means_its_latest_checkpoint(checkpoint, capfd, tmp_path):
    for seed, step in enumerate((30, 100, 4)):
        make_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}", seed)
    printed = generate(capfd, str(tmp_path), "--prompt", "q", "--max-new-tokens", "30")
    latest = tmp_path / "checkpoints" / "step-00000100"
    assert printed == "q" + continuation(latest, [ord("q")], max_new_tokens=30) + "\n"
    assert printed != generate(capfd, str(checkpoint), "--prompt", "q", "--max-new-tokens", "30")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12) | st.text(max_size=6).map(str.encode))
def test_streamed_text_is_the_decoding_of_all_tokens(data):
    tokenizer = ByteTokenizer()
    pieces = list(joined_text(iter(data), tokenizer))
    assert "".join(pieces) == data.decode(errors="replace") == tokenizer.decode(list(data))


def test_text_is_streamed_as_soon_as_it_is_certain():
    tokens = "a\u20acb".encode()
    assert list(joined_text(iter(tokens), ByteTokenizer())) == ["a", "", "", "\u20ac", "b", ""]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_the_model_wrote_is_green_on_a_terminal(checkpoint, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["generate", str(checkpoint), "--fim", "a", "b", "--max-new-tokens", "3"]) == 0
    printed = terminal.getvalue()
    assert printed.startswith(f"a{GREEN}") and printed.endswith(f"{PLAIN}b\n")


def one_sentence(capfd, *argv: str) -> str:
    assert main(["generate", *argv]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("abyssal: error: ") and "Traceback" not in captured.err
    return last


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give one of --prompt TEXT, --prompt-file FILE, --fim PREFIX SUFFIX"),
        (["--prompt", "a", "--fim", "b", "c"], "give one of"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "a", "--prompt", ""], "--prompt is empty"),
        (["--fim", "", ""], "--fim needs a prefix or a suffix"),
        (["--prompt", "\udcff"], "is not valid UTF-8"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--prompt", "a", "--max-new-tokens", "300"], "exceeds max_position_embeddings=300"),
        (["--prompt", "a", "--temperature", "-1"], "temperature must be 0"),
        (["--prompt", "a", "--top-p", "2"], "top_p must be in (0, 1]"),
        (["--prompt", "a", "--device", "abacus"], "--device 'abacus' cannot be used"),
        (["--prompt", "a", "--device", "meta"], "--device 'meta' cannot be used"),
    ],
)
def test_wrong_options_are_one_sentence(argv, message, checkpoint, capfd):
    assert message in one_sentence(capfd, str(checkpoint), *argv)


def test_wrong_prompt_files_are_one_sentence(checkpoint, capfd, tmp_path):
    file = tmp_path / "prompt"
    flags = ("--prompt-file", str(file))
    assert "no prompt file at" in one_sentence(capfd, str(checkpoint), *flags)
    file.write_bytes(b"")
    assert "is empty" in one_sentence(capfd, str(checkpoint), *flags)
    file.write_bytes(b"ok\xff")
    assert "is not valid UTF-8 (byte 2)" in one_sentence(capfd, str(checkpoint), *flags)


def test_missing_and_damaged_checkpoints_are_one_sentence(checkpoint, capfd, tmp_path):
    flags = ("--prompt", "a")
    assert "no checkpoint at" in one_sentence(capfd, str(tmp_path / "none"), *flags)
    assert "holds neither" in one_sentence(capfd, str(tmp_path), *flags)
    file = checkpoint / "config.json"
    assert "is a file" in one_sentence(capfd, str(file), *flags)

    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    (shard,) = damaged.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert shard.name in one_sentence(capfd, str(damaged), *flags)
    (damaged / "tokenizer.json").unlink()
    assert "tokenizer" in one_sentence(capfd, str(damaged), *flags)


def test_a_tokenizer_that_does_not_fit_the_model(checkpoint, capfd, tmp_path):
    smaller = tmp_path / "smaller"
    config = PRESETS["tiny"].replace(vocab_size=200, **SHAPE)
    DeepseekV3ForCausalLM(config).save_pretrained(smaller, progress=False)
    ByteTokenizer().save(smaller)
    message = one_sentence(capfd, str(smaller), "--prompt", "a")
    assert f"the tokenizer has {ByteTokenizer().vocab_size} tokens, the model only 200" in message
