"""Checkpoints carry a model unchanged: to and from transformers, between dtypes, as FP8."""

import json
import math
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from abyssal.errors import InputError
from abyssal.model.block_fp8 import scale_grid
from abyssal.model.checkpoint import convert_checkpoint
from abyssal.model.checkpoint_names import disk_tensors, is_correction_bias
from abyssal.model.checkpoint_reader import CheckpointReader
from abyssal.model.config import DeepseekV3Config
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from tests.model.checkpoint_cases import (
    RAGGED_SIZES,
    SIZES,
    assert_same_files,
    assert_same_state,
    load,
    make_model,
    stored_values,
    write_random_fp8,
)

VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "direct query": {"q_lora_rank": None},
    "biases": {"attention_bias": True},
    "no shared experts": {"n_shared_experts": 0},
    "two shared experts": {"n_shared_experts": 2},
    "all dense": {"first_k_dense_replace": 3},
    "yarn": {
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
        },
        "max_position_embeddings": 128,
    },
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def assert_close_logits(got, expected):
    difference = (got.float() - expected.float()).abs().max()
    assert difference <= 1e-5 * expected.float().abs().max()


def input_ids(vocab_size=SIZES["vocab_size"]):
    return torch.randint(0, vocab_size, (2, 17), generator=torch.Generator().manual_seed(1))


# Names


def test_names_and_bytes_are_those_of_the_release():
    # The released FP8 checkpoint holds 91991 tensors in 688574839360 bytes (counted from its
    # headers by a public tool). One wrong name rule, shape or dtype would change these.
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(DeepseekV3Config())
    count = nbytes = 0
    for item in disk_tensors(model):
        elements = math.prod(item.shape)
        count += 1 + item.released_in_fp8
        if item.released_in_fp8:
            nbytes += elements + 4 * math.prod(scale_grid(item.shape, (128, 128)))
        else:
            nbytes += elements * (4 if is_correction_bias(item.name) else 2)
    assert (count, nbytes) == (91991, 688_574_839_360)


def test_fp8_names_are_those_of_the_release():
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(DeepseekV3Config())
    items = {item.name: item for item in disk_tensors(model)}
    mtp = "model.layers.61"
    for name in (f"{mtp}.self_attn.kv_a_proj_with_mqa", f"{mtp}.mlp.experts.255.down_proj"):
        assert items[f"{name}.weight"].released_in_fp8
    assert items[f"{mtp}.self_attn.kv_a_proj_with_mqa.weight"].shape == (576, 7168)
    for name in ("eh_proj", "mlp.gate", "embed_tokens", "shared_head.head", "enorm"):
        assert not items[f"{mtp}.{name}.weight"].released_in_fp8
    assert not items["lm_head.weight"].released_in_fp8


# transformers


@variants
def test_reads_what_transformers_saves(changes, tmp_path):
    transformers = pytest.importorskip("transformers")
    fields = DeepseekV3Config(**(SIZES | changes)).to_dict()
    theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**fields)).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape) * 0.2 + ("norm" in name))
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.dtype == torch.float32
    ids = input_ids()
    with torch.no_grad():
        assert_close_logits(ours(ids).logits, theirs(ids).logits)


@variants
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_transformers_reads_what_we_save(changes, dtype, tmp_path):
    transformers = pytest.importorskip("transformers")
    make_model(**changes).save_pretrained(tmp_path, dtype=dtype, max_shard_bytes=20_000)
    theirs, info = transformers.DeepseekV3ForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    if changes.get("n_shared_experts") == 0:  # theirs has weights [0, hidden_size] then
        info["missing_keys"] = {key for key in info["missing_keys"] if "shared" not in key}
    assert not any(info.values()), info
    assert theirs.dtype == {"float32": torch.float32, "bf16": torch.bfloat16}[dtype]
    ours = load(tmp_path, dtype=torch.float32)
    ids = input_ids()
    with torch.no_grad():
        assert_close_logits(ours(ids).logits, theirs.float().eval()(ids).logits)


def test_transformers_config_that_announces_absent_mtp_modules(tmp_path):
    transformers = pytest.importorskip("transformers")
    fields = DeepseekV3Config(**SIZES).to_dict() | {"num_nextn_predict_layers": 1}
    config = transformers.DeepseekV3Config(**fields)
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="num_nextn_predict_layers=1.*no MTP module"):
        model = load(tmp_path)
    assert model.config.num_nextn_predict_layers == 0
    assert len(model.model.layers) == SIZES["num_hidden_layers"]


def test_transformers_bf16_balancing_bias_becomes_float32(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.DeepseekV3Config(**DeepseekV3Config(**SIZES).to_dict())
    transformers.DeepseekV3ForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.dtype == torch.bfloat16
    assert {gate.e_score_correction_bias.dtype for gate in model.gates()} == {torch.float32}


# Our own round trips


@settings(max_examples=12, deadline=None)
@given(
    changes=st.sampled_from(list(VARIANTS.values())),
    mtp=st.integers(0, 2),
    shard=st.sampled_from([1, 5_000, 20_000, 10**9]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_save_and_load_change_no_bit(tmp_path_factory, changes, mtp, shard, dtype, seed):
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    changes = changes | {"num_nextn_predict_layers": mtp}
    model = make_model(seed=seed, **changes).to(dtype)
    model.save_pretrained(path, max_shard_bytes=shard)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(path)
    assert again.config == model.config
    assert_same_state(again, model)
    if model.config.tie_word_embeddings:
        assert again.lm_head.weight is again.model.embed_tokens.weight


def test_mtp_duplicates_are_on_disk_and_shared_in_memory(tmp_path):
    model = make_model(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(
        stored["model.layers.3.embed_tokens.weight"], model.model.embed_tokens.weight
    )
    assert torch.equal(stored["model.layers.3.shared_head.head.weight"], model.lm_head.weight)
    assert "model.layers.3.eh_proj.weight" in stored
    ids = input_ids()
    with torch.no_grad():
        losses = [
            m(ids, labels=ids, mtp_loss_weight=0.5).mtp_losses for m in (model, load(tmp_path))
        ]
    assert losses[0] == losses[1]


def test_duplicates_may_be_absent(tmp_path):
    model = make_model(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored["model.layers.3.embed_tokens.weight"]
    del stored["model.layers.3.shared_head.head.weight"]
    save_file(stored, tmp_path / "model.safetensors")
    assert_same_state(load(tmp_path), model)


def test_tied_checkpoint_may_repeat_the_head(tmp_path):
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors")
    assert_same_state(load(tmp_path), model)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("model.layers.3.embed_tokens.weight", {"num_nextn_predict_layers": 1}),
        ("model.layers.4.shared_head.head.weight", {"num_nextn_predict_layers": 2}),
        ("lm_head.weight", {"tie_word_embeddings": True}),
    ],
)
def test_a_duplicate_that_differs_in_one_bit_is_refused(name, changes, tmp_path):
    make_model(**changes).save_pretrained(tmp_path / "a")
    stored = load_file(tmp_path / "a" / "model.safetensors")
    stored.setdefault(name, stored["model.embed_tokens.weight"].clone())
    stored[name].view(torch.int32)[3, 5] ^= 1
    save_file(stored, tmp_path / "a" / "model.safetensors")
    with pytest.raises(InputError, match=f"{name} differs from "):
        load(tmp_path / "a")
    with pytest.raises(InputError, match=f"{name} differs from "):
        convert_checkpoint(tmp_path / "a", tmp_path / "b")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("dtype", ["bf16", torch.float32, "float64"])
def test_dtype_converts_all_but_the_balancing_bias(dtype, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "f32")
    model.save_pretrained(tmp_path / "given", dtype=dtype)
    expected = {"bf16": torch.bfloat16, "float64": torch.float64}.get(dtype, torch.float32)
    for name, tensor in load_file(tmp_path / "given" / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if is_correction_bias(name) else expected)
    fields = json.loads((tmp_path / "given" / "config.json").read_text())
    assert fields["torch_dtype"] == str(expected).removeprefix("torch.")
    assert_same_state(load(tmp_path / "given"), load(tmp_path / "f32", dtype=dtype))
    assert_same_state(load(tmp_path / "given"), model.to(expected))


def test_mixed_files_load_in_the_widest_of_their_dtypes(tmp_path):
    model = make_model().bfloat16()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.norm.weight"] = torch.linspace(0, 1, SIZES["hidden_size"])
    stored["lm_head.weight"] = stored["lm_head.weight"].half()
    save_file(stored, tmp_path / "model.safetensors")
    again = load(tmp_path)
    assert again.dtype == torch.float32
    assert torch.equal(again.model.norm.weight, stored["model.norm.weight"])
    assert torch.equal(again.lm_head.weight, stored["lm_head.weight"].float())


def test_values_that_bf16_cannot_hold_are_not_written(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = 3.4e38
    with pytest.raises(InputError, match=r"lm_head\.weight.*too large"):
        model.save_pretrained(tmp_path / "model", dtype="bf16")
    assert list(tmp_path.iterdir()) == []


def test_loading_on_meta_makes_no_tensor_but_checks_all(tmp_path):
    make_model().save_pretrained(tmp_path)
    model = load(tmp_path, device="meta")
    assert all(tensor.device.type == "meta" for tensor in model.state_dict().values())


def test_wrong_dtype_arguments_are_named(tmp_path):
    make_model().save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="dtype must be one of"):
        load(tmp_path / "a", dtype="fp8")
    with pytest.raises(InputError, match="dtype must be one of"):
        load(tmp_path / "a", dtype=torch.int8)
    with pytest.raises(InputError, match="dtype must be one of.*fp8"):
        make_model().save_pretrained(tmp_path / "b", dtype="fp4")
    with pytest.raises(InputError, match="max_shard_bytes"):
        make_model().save_pretrained(tmp_path / "b", max_shard_bytes=0)


# FP8


@pytest.mark.parametrize("block", [(128, 128), (64, 96)])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_fp8_loads_to_what_numpy_decodes(block, dtype, tmp_path):
    values = write_random_fp8(tmp_path, block, num_nextn_predict_layers=1)
    model = load(tmp_path, dtype=dtype)
    expected_dtype = torch.bfloat16 if dtype is None else dtype
    assert model.dtype == expected_dtype
    got = stored_values(model)
    assert got.keys() == values.keys()
    for name, value in values.items():
        value = value if is_correction_bias(name) else value.to(expected_dtype)
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_foreign_fp8_is_written_back_bitwise(dtype, tmp_path):
    write_random_fp8(tmp_path / "a", (128, 128), num_nextn_predict_layers=1)
    load(tmp_path / "a", dtype=dtype).save_pretrained(tmp_path / "b", dtype="fp8")
    convert_checkpoint(tmp_path / "a", tmp_path / "c")
    original = load_file(tmp_path / "a" / "model.safetensors")
    for copy in ("b", "c"):
        written = load_file(tmp_path / copy / "model.safetensors")
        assert written.keys() == original.keys()
        for name, tensor in original.items():
            assert written[name].dtype == tensor.dtype
            assert torch.equal(written[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_fp8_save_round_trips_without_remembered_scales(tmp_path):
    make_model(RAGGED_SIZES, num_nextn_predict_layers=1).save_pretrained(
        tmp_path / "a", dtype="fp8"
    )
    model = load(tmp_path / "a", dtype=torch.float32)
    del model.stored_fp8_scales
    model.save_pretrained(tmp_path / "b", dtype="fp8")
    assert_same_files(tmp_path / "a", tmp_path / "b")


def test_fp8_save_is_within_half_a_step_of_the_weights(tmp_path):
    model = make_model(RAGGED_SIZES)
    model.save_pretrained(tmp_path, dtype="fp8", max_shard_bytes=50_000)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    expected, got = stored_values(model), stored_values(load(tmp_path, dtype=torch.float32))
    for item in disk_tensors(model):
        error = (got[item.name] - expected[item.name]).abs()
        if item.released_in_fp8:
            # E4M3: 4 significant bits, and 2^-9 of a scale (amax / 448) near zero.
            step = expected[item.name].abs() / 16 + expected[item.name].abs().max() / 448 * 2**-10
            assert (error <= step * (1 + 1e-5)).all() and error.max() > 0, item.name
        elif is_correction_bias(item.name):
            assert error.max() == 0, item.name
        else:
            assert torch.equal(got[item.name], expected[item.name].bfloat16().float()), item.name


def test_training_an_fp8_checkpoint_requantises_only_what_changed(tmp_path):
    write_random_fp8(tmp_path / "a", (128, 128))
    model = load(tmp_path / "a")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    with torch.no_grad():
        model.model.layers[1].mlp.experts.gate_up_proj[2, 130:][0, 199] = 77.0
    model.save_pretrained(tmp_path / "b", dtype="fp8")
    before = load_file(tmp_path / "a" / "model.safetensors")
    after = load_file(tmp_path / "b" / "model.safetensors")
    changed = {
        key
        for key in before
        if not torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8))
    }
    assert changed == {name, name + "_scale_inv"}
    differs = before[name + "_scale_inv"] != after[name + "_scale_inv"]
    assert differs.tolist() == [[False, True], [False, False]]
    again = load(tmp_path / "b").model.layers[1].mlp.experts.gate_up_proj
    assert again[2, 130, 199] == 77.0


def test_nan_weights_are_not_written_as_fp8(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.3\.down_proj.*Inf or NaN"):
        model.save_pretrained(tmp_path / "model", dtype="fp8")
    assert list(tmp_path.iterdir()) == []


# Conversion and the reader


@pytest.mark.parametrize("dtype", ["bf16", "float32", "fp8"])
@pytest.mark.parametrize("source", ["bf16", "float32", "fp8"])
def test_conversion_writes_what_loading_and_saving_writes(source, dtype, tmp_path):
    model = make_model(RAGGED_SIZES, num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path / "source", dtype=source)
    convert_checkpoint(tmp_path / "source", tmp_path / "a", dtype=dtype, max_shard_bytes=90_000)
    loaded = load(tmp_path / "source", dtype=torch.float32 if dtype == "fp8" else dtype)
    loaded.save_pretrained(tmp_path / "b", dtype=dtype, max_shard_bytes=90_000)
    assert_same_files(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("source", ["bf16", "float32", "fp8"])
def test_conversion_without_a_dtype_copies(source, tmp_path):
    make_model(RAGGED_SIZES).save_pretrained(tmp_path / "a", dtype=source)
    convert_checkpoint(tmp_path / "a", tmp_path / "b")
    assert_same_files(tmp_path / "a", tmp_path / "b")


def test_reader_gives_raw_codes_scales_and_values(tmp_path):
    values = write_random_fp8(tmp_path, (128, 128))
    stored = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    with CheckpointReader(tmp_path) as reader:
        assert reader.block == (128, 128)
        assert set(reader.weights()) == set(values)
        assert reader.stored[name].is_fp8 and reader.stored[name].shape == (144, 200)
        raw = reader.read_raw(name)
        assert torch.equal(raw.view(torch.uint8), stored[name].view(torch.uint8))
        assert torch.equal(reader.read_scale(name), stored[name + "_scale_inv"])
        assert torch.equal(reader.read(name, dtype=torch.float32), values[name])
        assert reader.read("lm_head.weight").dtype == torch.bfloat16
        with pytest.raises(InputError, match="stored in FP8"):
            reader.read(name)


def test_scales_may_lie_in_another_file_than_their_weights(tmp_path):
    values = write_random_fp8(tmp_path, (128, 128))
    stored = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    scales = {name: tensor for name, tensor in stored.items() if name.endswith("_scale_inv")}
    rest = {name: tensor for name, tensor in stored.items() if name not in scales}
    save_file(scales, tmp_path / "model-00001-of-00002.safetensors")
    save_file(rest, tmp_path / "model-00002-of-00002.safetensors")
    got = stored_values(load(tmp_path, dtype=torch.float32))
    for name, value in values.items():
        assert torch.equal(got[name], value), name


def test_shards_are_read_without_their_index(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_bytes=10_000)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_same_state(load(tmp_path), model)
    shutil.copy(tmp_path / "config.json", tmp_path / "other.json")
    assert_same_state(load(str(tmp_path)), model)
