"""What the model tests share: tiny and random configurations, weights that are nowhere constant."""

import random

import torch

from abyssal.model.activations import ACTIVATIONS
from abyssal.model.config import DeepseekV3Config
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "moe_intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}


def tiny_config(**changes) -> DeepseekV3Config:
    return DeepseekV3Config(**(TINY | changes))


def tiny_model(seed=0, **changes) -> DeepseekV3ForCausalLM:
    """A small model in which no tensor is constant, so that a mix-up of two cannot go unnoticed."""
    model = DeepseekV3ForCausalLM(tiny_config(**changes))
    randomize(model, seed)
    return model


@torch.no_grad()
def randomize(model, seed=0):
    """New values for all parameters and router biases, of this package's model or transformers'."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            tensor.copy_(1.0 + 0.2 * noise)
        else:
            tensor.copy_(0.15 * noise)


def random_tokens(config, batch, tokens, seed=0):
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(config.vocab_size, (batch, tokens), generator=generator)


def left_padding(batch, tokens, seed=0):
    """int64 [batch, tokens]: each row a different number of zeros, then ones."""
    draw = random.Random(seed)
    lengths = draw.sample(range(max(tokens // 2, 1), tokens + 1), batch)
    return torch.tensor([[0] * (tokens - n) + [1] * n for n in lengths])


def relative_error(got, expected):
    """The largest difference, in units of the largest expected entry."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def random_config(seed) -> DeepseekV3Config:
    """Small, valid, and different in every field that changes the mathematics."""
    draw = random.Random(seed)
    groups = draw.choice([1, 2, 3, 4])
    per_group = draw.choice([2, 3, 5])
    topk_group = draw.randint(1, groups)
    top_k = draw.choice([1, 2, 3, topk_group * per_group])
    layers = draw.randint(1, 3)
    vocabulary = draw.randint(50, 90)
    return DeepseekV3Config(
        vocab_size=vocabulary,
        hidden_size=draw.choice([23, 32, 48]),
        intermediate_size=draw.choice([17, 40]),
        moe_intermediate_size=draw.choice([9, 24]),
        num_hidden_layers=layers,
        num_nextn_predict_layers=0,
        num_attention_heads=draw.choice([1, 2, 3]),
        q_lora_rank=draw.choice([None, 11, 20]),
        kv_lora_rank=draw.choice([7, 16]),
        qk_nope_head_dim=draw.choice([5, 8, 12]),
        qk_rope_head_dim=draw.choice([2, 4, 8]),
        v_head_dim=draw.choice([3, 8, 24]),
        attention_bias=draw.random() < 0.5,
        n_routed_experts=groups * per_group,
        n_shared_experts=draw.choice([0, 1, 2]),
        num_experts_per_tok=min(top_k, topk_group * per_group),
        n_group=groups,
        topk_group=topk_group,
        norm_topk_prob=draw.random() < 0.5,
        routed_scaling_factor=draw.choice([0.7, 1.0, 2.5]),
        first_k_dense_replace=draw.randint(0, 2),
        # In turn, not at random: every activation has its configuration.
        hidden_act=list(ACTIVATIONS)[seed % len(ACTIVATIONS)],
        rms_norm_eps=draw.choice([1e-6, 1e-2]),
        max_position_embeddings=draw.choice([64, 128]),
        rope_theta=draw.choice([20.0, 100.0, 10000.0]),
        rope_scaling=_random_scaling(draw),
        rope_interleave=draw.random() < 0.5,
        tie_word_embeddings=draw.random() < 0.5,
        pad_token_id=draw.choice([None, draw.randrange(vocabulary)]),
    )


def _random_scaling(draw):
    """YaRN three times in four; every key is now there and now absent."""
    if draw.random() < 0.25:
        return None
    optional = {
        "beta_fast": draw.choice([2.0, 8.0, 32.0]),
        "beta_slow": draw.choice([0.25, 1.0]),
        "mscale": draw.choice([0.5, 0.707, 1.0]),
        "mscale_all_dim": draw.choice([0.6, 1.0]),
        "attention_factor": draw.choice([0.8, 1.3]),
        "truncate": draw.random() < 0.5,
    }
    return {
        "type": "yarn",
        "factor": draw.choice([1.0, 4.0, 40.0]),
        "original_max_position_embeddings": draw.choice([16, 64, 512]),
        **{name: value for name, value in optional.items() if draw.random() < 0.6},
    }
