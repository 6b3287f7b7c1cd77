"""Checkpoint directories: damaged or contradictory files, memory, and writing all or nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from abyssal.errors import InputError
from abyssal.model import checkpoint
from abyssal.model.checkpoint_writer import Output, plan_shards
from abyssal.model.config import DeepseekV3Config
from tests.model.checkpoint_cases import assert_same_state, load, make_model, write_random_fp8

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def edit_tensors(path, change, file=SINGLE):
    stored = load_file(path / file)
    change(stored)
    save_file(stored, path / file)


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def error_of(path):
    """The one sentence that loading gives, which must name the directory."""
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# Tensors that do not fit


def test_missing_unexpected_and_misshapen_tensors_are_named_together(tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_bytes=10**9)

    def damage(stored):
        del stored["model.layers.1.mlp.experts.3.up_proj.weight"]
        del stored["model.layers.2.mlp.gate.e_score_correction_bias"]
        stored["model.layers.7.input_layernorm.weight"] = torch.ones(24)
        stored["model.layers.0.self_attn.q_a_proj.bias"] = torch.ones(12)
        stored["model.norm.weight"] = torch.ones(25)
        stored["lm_head.weight"] = torch.ones(24, 61)
        stored["model.layers.0.mlp.up_proj.weight"] = torch.ones(40, 24, dtype=torch.int32)

    edit_tensors(tmp_path, damage)
    message = error_of(tmp_path)
    assert (
        "2 missing (model.layers.1.mlp.experts.3.up_proj.weight, model.layers.2.mlp.gate" in message
    )
    assert "2 unexpected" in message and "model.layers.7.input_layernorm.weight" in message
    assert "model.layers.0.self_attn.q_a_proj.bias" in message
    assert "2 misshapen" in message and "model.norm.weight is [25] and must be [24]" in message
    assert "lm_head.weight is [24, 61] and must be [61, 24]" in message
    assert "1 wrongly stored (model.layers.0.mlp.up_proj.weight is stored as I32" in message


def test_long_lists_are_shortened_with_a_count(tmp_path):
    make_model().save_pretrained(tmp_path)

    def damage(stored):
        for name in [name for name in stored if ".experts." in name]:
            del stored[name]

    edit_tensors(tmp_path, damage)
    message = error_of(tmp_path)
    assert "24 missing" in message and "and 16 more" in message and len(message) < 1000


def test_mtp_tensors_are_neither_dropped_nor_invented(tmp_path):
    make_model(num_nextn_predict_layers=1).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c.update(num_nextn_predict_layers=0))
    assert "unexpected" in error_of(tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c.update(num_nextn_predict_layers=2))
    assert "missing (model.layers.4." in error_of(tmp_path)


def test_checks_come_before_any_memory_is_taken(tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda stored: stored.pop("lm_head.weight"))
    monkeypatch.setattr(torch.nn.Module, "to_empty", None)
    assert "1 missing (lm_head.weight)" in error_of(tmp_path)


# FP8

WEIGHT = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
SCALE = WEIGHT + "_scale_inv"


def damage_scale(change):
    def damage(stored):
        stored[SCALE] = change(stored[SCALE].clone()).contiguous()

    return damage


def set_first(value):
    def change(scale):
        scale[0, 0] = value
        return scale

    return change


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda stored: stored.pop(SCALE), f"{WEIGHT} is FP8, but {SCALE} is missing"),
        (damage_scale(lambda s: s.t()[:1]), rf"{SCALE} must be F32 \[2, 2\] for a weight"),
        (damage_scale(lambda s: s[:1]), r"blocks of \[128, 128\], not F32 \[1, 2\]"),
        (damage_scale(lambda s: s.bfloat16()), r"not BF16 \[2, 2\]"),
        (damage_scale(set_first(float("nan"))), f"{SCALE} holds a scale that is NaN"),
        (damage_scale(set_first(float("inf"))), f"{SCALE} holds a scale that is NaN"),
        (damage_scale(set_first(-1.0)), f"{SCALE} holds a scale that is NaN"),
        (lambda stored: stored.pop(WEIGHT), rf"1 missing \({WEIGHT}\); 1 unexpected \({SCALE}\)"),
        (
            lambda stored: stored.update({WEIGHT: stored[WEIGHT].bfloat16()}),
            rf"1 unexpected \({SCALE}\)",
        ),
        (
            lambda stored: stored.update({WEIGHT: stored[WEIGHT].float().to(torch.float8_e5m2)}),
            f"{WEIGHT} is stored as F8_E5M2",
        ),
    ],
)
def test_fp8_weights_need_fitting_finite_scales(damage, expected, tmp_path):
    write_random_fp8(tmp_path, (128, 128))
    edit_tensors(tmp_path, damage)
    assert re.search(expected, error_of(tmp_path))


def test_fp8_without_a_quantization_config_is_refused(tmp_path):
    write_random_fp8(tmp_path, (128, 128))
    edit_json(tmp_path / "config.json", lambda c: c.pop("quantization_config"))
    assert "no quantization_config" in error_of(tmp_path)


def test_the_block_size_is_the_one_that_the_config_names(tmp_path):
    write_random_fp8(tmp_path, (128, 128))
    change = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}}
    edit_json(tmp_path / "config.json", lambda c: c.update(change))
    assert "in blocks of [64, 128]" in error_of(tmp_path)
    change["quantization_config"].pop("weight_block_size")
    edit_json(tmp_path / "config.json", lambda c: c.update(change))
    assert "weight_block_size" in error_of(tmp_path)


# Files


@settings(max_examples=25, deadline=None)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_named(tmp_path_factory, fraction):
    path = tmp_path_factory.mktemp("truncated")
    make_model(num_hidden_layers=1).save_pretrained(path)
    size = (path / SINGLE).stat().st_size
    os.truncate(path / SINGLE, int(fraction * size))
    assert re.search(r"model\.safetensors is truncated or not a safetensors", error_of(path))


def test_one_truncated_shard_is_named(tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_bytes=10_000)
    victim = sorted(tmp_path.glob("model-*"))[2]
    os.truncate(victim, victim.stat().st_size - 1)
    assert f"{victim} is truncated" in error_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\xff" * 4096])
def test_other_content_is_named(content, tmp_path):
    make_model().save_pretrained(tmp_path)
    (tmp_path / SINGLE).write_bytes(content)
    assert "truncated or not a safetensors file" in error_of(tmp_path)


def test_missing_files_are_named(tmp_path):
    assert "no checkpoint directory" in error_of(tmp_path / "nowhere")
    (tmp_path / "model").mkdir()
    assert "no configuration" in error_of(tmp_path / "model")
    make_model().save_pretrained(tmp_path / "model", overwrite=True)
    (tmp_path / "model" / SINGLE).unlink()
    assert "holds no weights" in error_of(tmp_path / "model")


def test_a_broken_config_is_named(tmp_path):
    make_model().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text[:-20])
    assert "config.json is not valid JSON" in error_of(tmp_path)
    (tmp_path / "config.json").write_text(text.replace("kv_lora_rank", "kv_lora_rang"))
    assert "kv_lora_rang" in error_of(tmp_path)


def sharded(path):
    make_model().save_pretrained(path, max_shard_bytes=10_000)
    return sorted(entry.name for entry in path.glob("model-*"))


def test_an_incomplete_set_of_shards_is_refused(tmp_path):
    shards = sharded(tmp_path)
    (tmp_path / shards[1]).rename(tmp_path / "elsewhere")
    assert f"do not exist: {shards[1]}" in error_of(tmp_path)
    (tmp_path / INDEX).unlink()
    assert f"lacks shard(s) {shards[1]}" in error_of(tmp_path)


def test_two_sets_of_shards_without_an_index_are_refused(tmp_path):
    sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00099.safetensors")
    assert "different sets" in error_of(tmp_path) or "lacks shard" in error_of(tmp_path)


def test_a_single_file_beside_shards_is_refused(tmp_path):
    sharded(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / SINGLE)
    assert f"both {SINGLE} and {INDEX}" in error_of(tmp_path)
    (tmp_path / INDEX).unlink()
    assert f"both {SINGLE} and shards" in error_of(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards = sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    extra = load_file(tmp_path / shards[0])
    name = next(iter(extra))
    edit_tensors(tmp_path, lambda stored: stored.update({name: extra[name]}), shards[1])
    assert f"{name} is in both {shards[0]} and {shards[1]}" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda index: index.pop("weight_map"), "weight_map"),
        (lambda index: index["weight_map"].update({"lm_head.weight": "../x"}), "same directory"),
        (lambda index: index["weight_map"].update({"lm_head.weight": 3}), "same directory"),
        (lambda index: index["weight_map"].update({"extra": "model-00001"}), "do not exist"),
        (lambda index: index["weight_map"].pop("lm_head.weight"), "lm_head.weight"),
        (
            lambda index: index["weight_map"].update(
                {"lm_head.weight": index["weight_map"]["model.embed_tokens.weight"]}
            ),
            "does not describe its files: lm_head.weight",
        ),
    ],
)
def test_a_wrong_index_is_named(change, expected, tmp_path):
    sharded(tmp_path)
    edit_json(tmp_path / INDEX, change)
    assert expected in error_of(tmp_path)


# Writing


def test_files_are_those_of_the_hub(tmp_path):
    shards = sharded(tmp_path)
    total = len(shards)
    assert shards == [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {*shards, INDEX, "config.json", "generation_config.json"}
    index = json.loads((tmp_path / INDEX).read_text())
    stored = {shard: load_file(tmp_path / shard) for shard in shards}
    assert index["weight_map"] == {
        name: shard for shard, tensors in stored.items() for name in tensors
    }
    sizes = {
        shard: sum(tensor.nbytes for tensor in tensors.values())
        for shard, tensors in stored.items()
    }
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert max(sizes.values()) <= 10_000
    assert DeepseekV3Config.from_file(tmp_path) == make_model().config


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), limit=st.integers(1, 100))
def test_shards_keep_order_and_limit(sizes, limit):
    outputs = [Output(str(i), torch.float32, (size,)) for i, size in enumerate(sizes)]
    shards = plan_shards(outputs, limit)
    assert [output for shard in shards for output in shard] == outputs
    totals = [sum(output.nbytes for output in shard) for shard in shards]
    for shard, total in zip(shards, totals, strict=True):
        assert shard and (total <= limit or len(shard) == 1)
    for shard, total, following in zip(shards, totals, shards[1:], strict=False):
        assert shard and total + following[0].nbytes > limit


def test_a_checkpoint_is_not_overwritten_unless_asked(tmp_path):
    first, second = make_model(seed=1), make_model(seed=2)
    first.save_pretrained(tmp_path / "model", max_shard_bytes=10_000)
    with pytest.raises(InputError, match=r"already holds a checkpoint.*overwrite=True"):
        second.save_pretrained(tmp_path / "model")
    assert_same_state(load(tmp_path / "model"), first)
    second.save_pretrained(tmp_path / "model", overwrite=True)
    assert_same_state(load(tmp_path / "model"), second)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_other_files_of_the_directory_stay(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    model = make_model()
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    assert_same_state(load(tmp_path), model)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match="not a directory"):
        make_model().save_pretrained(tmp_path / "model", overwrite=True)
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("exists", [False, True])
def test_an_error_while_writing_changes_nothing(exists, tmp_path, monkeypatch):
    before = make_model(seed=1)
    if exists:
        before.save_pretrained(tmp_path / "model")
    encode, calls = checkpoint._encode, []

    def fail_later(*arguments):
        calls.append(arguments)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(checkpoint, "_encode", fail_later)
    with pytest.raises(KeyboardInterrupt):
        make_model(seed=2).save_pretrained(
            tmp_path / "model", overwrite=True, max_shard_bytes=10_000
        )
    assert [entry.name for entry in tmp_path.iterdir()] == (["model"] if exists else [])
    if exists:
        assert_same_state(load(tmp_path / "model"), before)


@pytest.mark.parametrize("position", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_crash_while_replacing_never_leaves_a_mixture(position, tmp_path, monkeypatch):
    make_model(seed=1).save_pretrained(tmp_path / "model", max_shard_bytes=20_000)
    # Each old file is removed and each new one moved in: the crash comes before that operation.
    step = int(position * 2 * len(list((tmp_path / "model").iterdir())))
    done = []

    def crash_at_step(original):
        def operation(*arguments, **options):
            done.append(original)
            if len(done) > step:
                raise OSError("power cut")
            return original(*arguments, **options)

        return operation

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", crash_at_step(Path.unlink))
        patch.setattr(Path, "rename", crash_at_step(Path.rename))
        with pytest.raises(OSError, match="power cut"):
            make_model(seed=2).save_pretrained(
                tmp_path / "model", overwrite=True, max_shard_bytes=20_000
            )
    if step == 0:
        assert_same_state(load(tmp_path / "model"), make_model(seed=1))
    else:
        assert "no configuration" in error_of(tmp_path / "model")


def run_python(code, *arguments):
    """Run code in a fresh process, which finds the package and these tests."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


KILLED = """
import os, signal, sys
from tests.model.checkpoint_cases import make_model
from abyssal.model import checkpoint_writer
write, calls = checkpoint_writer._write_data, []
def write_then_die(file, tensor):
    calls.append(tensor)
    write(file, tensor)
    if len(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint_writer._write_data = write_then_die
make_model(seed=2).save_pretrained(sys.argv[1], overwrite=True, max_shard_bytes=10_000)
"""


def test_a_killed_process_leaves_the_old_checkpoint(tmp_path):
    before = make_model(seed=1)
    before.save_pretrained(tmp_path / "model")
    assert run_python(KILLED, tmp_path / "model").returncode == -9
    assert_same_state(load(tmp_path / "model"), before)
    # What it had written lies beside it, under a name that cannot be mistaken for a checkpoint.
    left = [entry.name for entry in tmp_path.iterdir() if entry.name != "model"]
    assert all(name.startswith(".model.incomplete-") for name in left)
    make_model(seed=2).save_pretrained(tmp_path / "model", overwrite=True)
    assert_same_state(load(tmp_path / "model"), make_model(seed=2))


# Memory

MEASURED = """
import ctypes
import sys
import torch
from tests.model.checkpoint_cases import SIZES
from abyssal.model.checkpoint import convert_checkpoint
from abyssal.model.config import DeepseekV3Config
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024

def used_by(action):
    # Give back what earlier steps left free in the heap, then count from what is resident now.
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    result = action()
    print(peak() - before)
    del result

directory = sys.argv[1]
# A first time for everything, on a small scale: lazy imports and thread pools are no one's peak.
small = DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES))
for dtype in ("float32", "fp8"):
    small.save_pretrained(f"{directory}/small-{dtype}", dtype=dtype)
    DeepseekV3ForCausalLM.from_pretrained(f"{directory}/small-{dtype}")

sizes = SIZES | dict(vocab_size=4096, hidden_size=1024, moe_intermediate_size=512,
                     intermediate_size=2048, n_routed_experts=20, num_experts_per_tok=2)
model = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes))
print(sum(tensor.nbytes for tensor in model.state_dict().values()))
used_by(lambda: model.save_pretrained(f"{directory}/float32", max_shard_bytes=24 << 20))
used_by(lambda: model.save_pretrained(f"{directory}/fp8", dtype="fp8", max_shard_bytes=24 << 20))
del model
for name, dtype in (("float32", torch.float32), ("fp8", torch.float32)):
    path = f"{directory}/{name}"
    used_by(lambda: DeepseekV3ForCausalLM.from_pretrained(path, dtype=dtype))
used_by(lambda: convert_checkpoint(f"{directory}/float32", f"{directory}/converted", dtype="fp8"))
"""


def test_peak_memory_is_the_model_and_one_shard(tmp_path):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux's /proc/self/clear_refs")
    run = run_python(MEASURED, tmp_path)
    assert run.returncode == 0, run.stderr
    model, save, save_fp8, load_, load_fp8, convert = map(int, run.stdout.split())
    # Beside the largest tensor (16 MB) a few bands of FP32 values while FP8 is coded.
    shard, slack, largest = 24 << 20, 16 << 20, 16 << 20
    assert model > 300e6
    assert len(list((tmp_path / "float32").glob("model-*"))) > 8
    # The bound has teeth: what was loaded was resident.
    assert model * 0.9 < load_ <= model + shard + slack
    assert model * 0.9 < load_fp8 <= model + shard + slack
    assert save <= slack
    assert save_fp8 <= largest + slack
    assert convert <= shard + largest + slack


def test_the_model_is_not_made_twice(tmp_path, monkeypatch):
    model = make_model()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(type(model), "init_weights", None)
    assert_same_state(load(tmp_path), model)
