"""Statistics of a configuration, against the report's figures and against real modules."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from abyssal.errors import InputError
from abyssal.model.config import DeepseekV3Config
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from abyssal.model.presets import PRESETS
from abyssal.model.statistics import (
    activation_bytes_per_token,
    cache_bytes_per_token,
    count_parameters,
    flops_per_token,
    forward_flops_per_token,
    training_memory,
)

V3 = PRESETS["671b"]


def test_671b_parameters_match_the_report():
    counts = count_parameters(V3)
    assert counts.main / 1e9 == pytest.approx(671.03, abs=5e-3)
    assert counts.active / 1e9 == pytest.approx(37.55, abs=5e-3)
    assert counts.active_one_embedding / 1e9 == pytest.approx(36.63, abs=5e-3)
    assert counts.attention / 1e6 == pytest.approx(187.11, abs=5e-3)
    assert counts.dense_ffn / 1e6 == pytest.approx(396.36, abs=5e-3)
    assert counts.expert / 1e6 == pytest.approx(44.040, abs=5e-4)
    assert counts.moe_layer / 1e9 == pytest.approx(11.3202, abs=5e-5)
    assert counts.mtp / 1e9 == pytest.approx(11.61, abs=5e-3)
    assert cache_bytes_per_token(V3) == 70272


@pytest.mark.parametrize(
    ("causal", "mtp", "gigaflops"),
    [(False, False, 281.2), (True, False, 250.5), (False, True, 291.9), (True, True, 260.6)],
)
def test_671b_training_flops_match_the_published_rate(causal, mtp, gigaflops):
    flops = flops_per_token(V3, 4096, causal=causal, mtp=mtp)
    assert flops / 1e9 == pytest.approx(gigaflops, abs=0.06)
    assert flops == 3 * forward_flops_per_token(V3, 4096, causal=causal, mtp=mtp)


@st.composite
def configurations(draw) -> DeepseekV3Config:
    layers = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    return DeepseekV3Config(
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=draw(st.integers(1, 24)),
        intermediate_size=draw(st.integers(1, 40)),
        moe_intermediate_size=draw(st.integers(1, 24)),
        num_hidden_layers=layers,
        num_nextn_predict_layers=draw(st.integers(0, 2)),
        num_attention_heads=draw(st.integers(1, 4)),
        q_lora_rank=draw(st.none() | st.integers(1, 16)),
        kv_lora_rank=draw(st.integers(1, 16)),
        qk_nope_head_dim=draw(st.integers(1, 8)),
        qk_rope_head_dim=2 * draw(st.integers(1, 4)),
        v_head_dim=draw(st.integers(1, 8)),
        n_routed_experts=groups * draw(st.integers(2, 4)),
        n_shared_experts=draw(st.integers(0, 2)),
        num_experts_per_tok=draw(st.integers(1, 2)),
        n_group=groups,
        topk_group=draw(st.integers(1, groups)),
        first_k_dense_replace=draw(st.integers(0, layers + 1)),
        attention_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(configurations())
def test_parameters_equal_those_of_the_modules(config):
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(config)
    counts = count_parameters(config)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    mtp = sum(parameter.numel() for parameter in model.model.mtp_layers.parameters())
    assert counts.mtp == mtp
    layer = model.model.layers[0]
    attention = sum(parameter.numel() for parameter in layer.self_attn.parameters())
    assert counts.attention == attention
    ffn = sum(parameter.numel() for parameter in layer.mlp.parameters())
    assert ffn == (counts.moe_layer if config.is_moe_layer(0) else counts.dense_ffn)


@settings(max_examples=25, deadline=None)
@given(configurations(), st.integers(1, 12))
def test_flops_of_the_weights_equal_those_that_torch_counts(config, tokens):
    """Products with weights are mm and addmm; attention and the experts' weighted sum are not."""
    model = DeepseekV3ForCausalLM(config)
    ids = torch.randint(0, config.vocab_size, (1, tokens))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids)
    by_operator = counter.get_flop_counts()["Global"]
    aten = torch.ops.aten
    counted = by_operator.get(aten.mm, 0) + by_operator.get(aten.addmm, 0)
    width = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    attention = 2 * config.num_hidden_layers * width * tokens
    ours = forward_flops_per_token(config, tokens, causal=False) - attention
    assert ours * tokens == counted


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_modelled_activations_are_near_what_autograd_keeps(name):
    """The slope of the kept bytes over tokens; a model of memory within a quarter is of use."""
    model = DeepseekV3ForCausalLM(PRESETS[name])
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept_bytes(tokens: int) -> int:
        kept = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage
            return tensor

        ids = torch.randint(0, model.config.vocab_size, (1, tokens))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(ids, shift_labels=ids, mtp_loss_weight=0.3)
        return sum(storage.nbytes() for storage in kept.values())

    measured = (kept_bytes(256) - kept_bytes(128)) / 128
    assert activation_bytes_per_token(model.config, 4) == pytest.approx(measured, rel=0.25)


def test_training_memory_of_the_report():
    counts = count_parameters(V3)
    memory = training_memory(V3, 4096)
    assert memory.weights == memory.gradients == memory.moments == 4 * counts.total
    assert memory.compute_copy == 2 * counts.total
    parts = dataclasses.asdict(memory).values()
    assert memory.total == sum(parts) and memory.activations > 0
    in_fp32 = training_memory(V3, 4096, compute_bytes=4, moment_bytes=4, mtp=False)
    assert in_fp32.compute_copy == 0
    assert in_fp32.moments == 8 * counts.main


def test_wrong_arguments():
    with pytest.raises(InputError, match="sequence_length must be at least 1, not 0"):
        flops_per_token(V3, 0)
    with pytest.raises(InputError, match="tokens must be at least 1"):
        training_memory(V3, 0)
    with pytest.raises(InputError, match="moment_bytes must be 2 .* not 8"):
        training_memory(V3, 1, moment_bytes=8)
