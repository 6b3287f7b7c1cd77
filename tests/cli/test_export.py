"""`abyssal export`: the Hugging Face layout, all of it or nothing."""

import json

import pytest
import torch
from safetensors import safe_open

from abyssal.cli.main import main
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from abyssal.model.presets import PRESETS

pytest.importorskip("tokenizers")

from abyssal.training.tokenizer import ByteTokenizer, load_tokenizer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run's directory with one checkpoint, as the trainer leaves it."""
    run = tmp_path_factory.mktemp("run")
    tokenizer = ByteTokenizer()
    model = DeepseekV3ForCausalLM(
        PRESETS["tiny"].replace(
            vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id, **SHAPE
        )
    )
    checkpoint = run / "checkpoints" / "step-00000010"
    model.save_pretrained(checkpoint, progress=False)
    tokenizer.save(checkpoint)
    (checkpoint / "trainer_state.pt").write_bytes(b"moments and so on")
    return run


def stored_dtypes(directory) -> dict[str, str]:
    dtypes = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            dtypes |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return dtypes


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", "F32"), ("bf16", "BF16"), ("fp8", "F8_E4M3")]
)
def test_an_export_holds_the_model_and_its_tokenizer(dtype, stored, run, tmp_path, capsys):
    target = tmp_path / "deep" / "export"
    assert main(["export", str(run), str(target), "--dtype", dtype]) == 0
    assert str(target) in capsys.readouterr().out
    assert not (target / "trainer_state.pt").exists()
    assert [path.name for path in target.parent.iterdir()] == ["export"]

    dtypes = stored_dtypes(target)
    assert dtypes["model.layers.1.mlp.experts.7.down_proj.weight"] == stored
    assert dtypes["model.layers.0.self_attn.o_proj.weight"] == stored
    scales = [name for name in dtypes if name.endswith("weight_scale_inv")]
    assert bool(scales) == (dtype == "fp8")

    original = DeepseekV3ForCausalLM.from_pretrained(run / "checkpoints" / "step-00000010")
    exported = DeepseekV3ForCausalLM.from_pretrained(target, dtype=torch.float32)
    tolerance = {"float32": 0.0, "bf16": 2**-8, "fp8": 2**-3}[dtype]
    pairs = zip(original.state_dict().items(), exported.state_dict().values(), strict=True)
    for (name, before), after in pairs:
        assert (before - after).abs().max() <= tolerance * before.abs().max(), name
    tokenizer = load_tokenizer(target)
    text = "def f(x):\n    return 'caf\u00e9'\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_loads_an_export_to_the_same_logits(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    target = tmp_path / "export"
    assert main(["export", str(run), str(target), "--dtype", "float32"]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    ours = DeepseekV3ForCausalLM.from_pretrained(target)
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = theirs(ids).logits, ours(ids).logits
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert tokenizer("abc\n")["input_ids"] == load_tokenizer(target).encode("abc\n")


def one_sentence(capsys, *argv: str) -> str:
    assert main(["export", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("abyssal: error: ")
    return last


def test_nothing_is_overwritten(run, tmp_path, capsys):
    target = tmp_path / "export"
    target.mkdir()
    (target / "precious").write_text("mine")
    assert "is not empty" in one_sentence(capsys, str(run), str(target))
    assert [path.name for path in target.iterdir()] == ["precious"]
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is not a directory" in one_sentence(capsys, str(run), str(file))
    assert file.read_text() == "mine"


def test_an_empty_directory_may_be_the_target(run, tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    assert main(["export", str(run), str(target)]) == 0
    assert json.loads((target / "config.json").read_text())["model_type"] == "deepseek_v3"


def test_missing_and_damaged_checkpoints_leave_nothing(run, tmp_path, capsys):
    target = tmp_path / "export"
    assert "no checkpoint at" in one_sentence(capsys, str(tmp_path / "none"), str(target))

    damaged = tmp_path / "damaged"
    assert main(["export", str(run), str(damaged)]) == 0
    (shard,) = damaged.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1000])
    capsys.readouterr()
    assert shard.name in one_sentence(capsys, str(damaged), str(target))
    deep = tmp_path / "new" / "folders" / "export"
    assert shard.name in one_sentence(capsys, str(damaged), str(deep))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


def test_a_folder_that_cannot_be_made_is_one_sentence_and_leaves_nothing(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file" / "export", tmp_path / "new" / ("x" * 300) / "export"):
        assert str(target.parent) in one_sentence(capsys, str(run), str(target))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_while_writing_leaves_nothing(run, tmp_path, monkeypatch):
    from abyssal.cli import export

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(export.shutil, "copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        main(["export", str(run), str(tmp_path / "export")])
    assert list(tmp_path.iterdir()) == []
