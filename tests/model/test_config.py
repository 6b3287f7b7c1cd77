"""The configuration: what it reads and writes, and that it refuses what contradicts itself."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model.config import DeepseekV3Config
from tests.model.model_cases import TINY, YARN, random_config, tiny_config

# The fields of the released config.json (report, section 4.2, and the release's own metadata).
RELEASED = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def test_defaults_are_the_released_model_before_long_context():
    long_context = {"max_position_embeddings", "rope_scaling"}
    for name, value in RELEASED.items():
        if hasattr(DeepseekV3Config(), name) and name not in {*long_context, "initializer_range"}:
            assert getattr(DeepseekV3Config(), name) == value, name
    assert DeepseekV3Config().initializer_range == 0.006


def test_reads_the_released_configuration():
    config = DeepseekV3Config.from_dict(RELEASED)
    assert config.max_position_embeddings == 163840
    assert config.rope_scaling == RELEASED["rope_scaling"]
    assert config.qk_head_dim == 192
    assert config.initializer_range == 0.02
    assert [config.is_moe_layer(idx) for idx in (0, 2, 3, 60, 61)] == [
        False,
        False,
        True,
        True,
        True,
    ]


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_round_trip(seed):
    config = random_config(seed)
    through_json = json.loads(json.dumps(config.to_dict()))
    assert DeepseekV3Config.from_dict(through_json) == config
    assert config.replace() == config


def test_reads_a_file_or_its_directory(tmp_path):
    config = tiny_config(rope_scaling=YARN, eos_token_id=[3, 4])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert DeepseekV3Config.from_file(path) == DeepseekV3Config.from_file(tmp_path) == config


def test_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration at .*config\.json"):
        DeepseekV3Config.from_file(tmp_path)
    path = tmp_path / "config.json"
    for content, message in [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "must hold a JSON object, not a list"),
        (b'{"hiden_size": 3}', r"unknown field\(s\) 'hiden_size'"),
        (b'{"hidden_size": 0}', "hidden_size must be at least 1, not 0"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as error:
            DeepseekV3Config.from_file(path)
        assert str(path) in str(error.value)


def test_aliases():
    values = tiny_config().to_dict()
    del values["num_nextn_predict_layers"], values["n_routed_experts"]
    read = DeepseekV3Config.from_dict(values | {"num_mtp_layers": 2, "num_local_experts": 16})
    assert (read.num_nextn_predict_layers, read.n_routed_experts) == (2, 16)
    with pytest.raises(InputError, match="num_mtp_layers=2 contradicts num_nextn_predict_layers=1"):
        DeepseekV3Config.from_dict(values | {"num_mtp_layers": 2, "num_nextn_predict_layers": 1})


def test_rope_parameters_are_unfolded():
    values = tiny_config().to_dict()
    del values["rope_theta"], values["rope_scaling"]
    plain = DeepseekV3Config.from_dict(
        values | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
    )
    assert (plain.rope_theta, plain.rope_scaling) == (77.0, None)
    yarn = {name: value for name, value in YARN.items() if name != "type"}
    folded = values | {"rope_parameters": {**yarn, "rope_type": "yarn", "rope_theta": 77.0}}
    read = DeepseekV3Config.from_dict(folded)
    assert (read.rope_theta, read.rope_scaling) == (77.0, YARN)
    # Both forms at once, as long as they agree; a YaRN kind may be called type or rope_type.
    both = folded | {"rope_theta": 77, "rope_scaling": YARN}
    assert DeepseekV3Config.from_dict(both) == read
    with pytest.raises(InputError, match=r"rope_parameters contradicts rope_theta=5\.0"):
        DeepseekV3Config.from_dict(both | {"rope_theta": 5.0})
    with pytest.raises(InputError, match="rope_parameters contradicts rope_scaling="):
        DeepseekV3Config.from_dict(both | {"rope_scaling": YARN | {"factor": 5.0}})
    with pytest.raises(InputError, match="rope_parameters must be a dictionary, not 'yarn'"):
        DeepseekV3Config.from_dict(values | {"rope_parameters": "yarn"})


def test_replace():
    config = tiny_config()
    wider = config.replace(num_attention_heads=6)
    assert (wider.num_attention_heads, wider.num_key_value_heads) == (6, 6)
    assert config.num_attention_heads == TINY["num_attention_heads"]
    with pytest.raises(InputError, match="no field 'heads'"):
        config.replace(heads=3)
    with pytest.raises(InputError, match="hidden_size must be at least 1, not -2"):
        config.replace(hidden_size=-2)


def test_is_frozen_and_shares_no_dictionary():
    scaling = dict(YARN)
    config = tiny_config(rope_scaling=scaling)
    scaling["factor"] = 99.0
    config.to_dict()["rope_scaling"]["factor"] = 99.0
    assert config.rope_scaling == YARN
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 3


def test_whole_numbers_are_floats_where_floats_belong():
    """transformers refuses `rms_norm_eps: 1`, and JSON does not always say 1.0."""
    config = tiny_config(routed_scaling_factor=2, rope_theta=10000)
    assert isinstance(config.routed_scaling_factor, float)
    assert isinstance(config.rope_theta, float)


def test_end_of_text_ids():
    for none in (None, -1, [-1]):
        assert tiny_config(eos_token_id=none).eos_token_ids == ()
    assert tiny_config(eos_token_id=[-1, 3]).eos_token_ids == (3,)
    assert tiny_config(eos_token_id=3).eos_token_ids == (3,)
    assert tiny_config(eos_token_id=[3, 4]).eos_token_ids == (3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size must be int, not '32'"),
        ({"hidden_size": 32.0}, r"hidden_size must be int, not 32\.0"),
        ({"hidden_size": True}, "hidden_size must be int, not True"),
        ({"q_lora_rank": 1.5}, r"q_lora_rank must be int \| None, not 1\.5"),
        ({"q_lora_rank": 0}, "q_lora_rank must be None or at least 1, not 0"),
        ({"norm_topk_prob": 1}, "norm_topk_prob must be bool, not 1"),
        ({"eos_token_id": [1, "a"]}, "eos_token_id must be"),
        ({"eos_token_id": [1, 61]}, "eos_token_id 61 is outside vocab_size=61"),
        ({"bos_token_id": 61}, "bos_token_id 61 is outside vocab_size=61"),
        ({"pad_token_id": -2}, "pad_token_id -2 is outside vocab_size=61"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be positive and finite"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be positive and finite, not nan"),
        ({"rope_theta": float("inf")}, "rope_theta must be positive and finite, not inf"),
        ({"n_shared_experts": -1}, "n_shared_experts must not be negative, not -1"),
        ({"qk_rope_head_dim": 3}, "qk_rope_head_dim must be even, not 3"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, not 0"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1 must equal num_attention_heads=2"),
        ({"n_group": 3}, "n_routed_experts=8 must be a multiple of n_group=3"),
        ({"n_group": 8}, r"leaves 1 expert\(s\) a group"),
        ({"topk_group": 5}, "topk_group=5 exceeds n_group=4"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok=5 exceeds the 4 experts in topk_group=2"),
        ({"scoring_func": "softmax"}, "scoring_func must be 'sigmoid', not 'softmax'"),
        ({"attention_dropout": 0.1}, r"attention_dropout must be 0\.0, not 0\.1"),
        ({"hidden_act": "xielu"}, "hidden_act must be one of silu, .*; not 'xielu'"),
        ({"rope_scaling": 4.0}, r"rope_scaling must be dict\[str, Any\] \| None, not 4\.0"),
        ({"rope_scaling": {}}, "rope_scaling type must be 'yarn', not absent"),
        ({"rope_scaling": YARN | {"type": ["yarn"]}}, r"rope_scaling type must .* not \['yarn'\]"),
        ({"rope_scaling": YARN | {"rope_type": "linear"}}, "not 'yarn' and 'linear'"),
        ({"rope_scaling": YARN | {"speed": 1}}, r"unknown field\(s\) 'speed'"),
        ({"rope_scaling": {"type": "default", "factor": 2.0}}, r"unknown field\(s\) 'factor'"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, r"factor must be a number .* 1, not 0\.5"),
        ({"rope_scaling": YARN | {"factor": float("nan")}}, "factor must be a number"),
        ({"rope_scaling": YARN | {"factor": True}}, "factor must be a number of at least 1"),
        ({"rope_scaling": YARN | {"mscale": "1"}}, "mscale must be a number of at least 0"),
        ({"rope_scaling": YARN | {"beta_slow": -1}}, "beta_slow must be a number of at least 0"),
        ({"rope_scaling": YARN | {"beta_fast": 0.1}}, r"beta_fast=0\.1 must exceed beta_slow=0\.5"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate must be a bool, not 1"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta must exceed 1 with YaRN, not 1.0"),
    ],
    ids=str,
)
def test_refuses(changes, message):
    with pytest.raises(InputError, match=message) as error:
        tiny_config(**changes)
    assert "\n" not in str(error.value)


def test_unknown_fields_are_named():
    with pytest.raises(InputError, match=r"unknown field\(s\) 'head_count', 'sliding_window'"):
        DeepseekV3Config.from_dict(TINY | {"sliding_window": 4096, "head_count": 3})
    with pytest.raises(InputError, match="model_type is 'llama'; only 'deepseek_v3' can be read"):
        DeepseekV3Config.from_dict(TINY | {"model_type": "llama"})


def test_no_rope_scaling_may_be_said_in_two_ways():
    assert tiny_config(rope_scaling={"type": "default"}) == tiny_config(rope_scaling=None)
