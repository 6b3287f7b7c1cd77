"""What the checkpoint tests share: small models, and an FP8 format written out in numpy."""

import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from abyssal.model.block_fp8 import scale_grid
from abyssal.model.checkpoint_names import disk_tensors
from abyssal.model.config import DeepseekV3Config
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "moe_intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "initializer_range": 0.2,
}
# Wider than one block, and no extent a multiple of 128.
RAGGED_SIZES = SIZES | {
    "hidden_size": 200,
    "intermediate_size": 300,
    "moe_intermediate_size": 130,
    "num_hidden_layers": 2,
    "kv_lora_rank": 140,
}


def make_model(sizes=SIZES, seed=0, **changes):
    """A small model in which no tensor is constant: a mix-up of two cannot go unnoticed."""
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**(sizes | changes)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator) * 0.2
            tensor.copy_(noise + 1.0 if "norm" in name else noise)
    return model


def load(path, **options):
    return DeepseekV3ForCausalLM.from_pretrained(path, **options)


def assert_same_state(got, expected):
    got, expected = got.state_dict(), expected.state_dict()
    assert list(got) == list(expected)
    for name in expected:
        assert got[name].dtype == expected[name].dtype, name
        assert torch.equal(got[name], expected[name]), name


def assert_same_files(first, second):
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


FINITE = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)


def decode(codes: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """E4M3 by its bits, then one FP32 product for each value, block by block."""
    result = np.full(codes.shape, np.nan, np.float32)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = np.s_[
                i * block[0] : (i + 1) * block[0],
                j * block[1] : (j + 1) * block[1],
            ]
            bits = codes[part].astype(np.int32)
            exponent, fraction = (bits >> 3) & 15, bits & 7
            value = np.where(
                exponent == 0,
                np.ldexp(fraction / 8.0, -6),
                np.ldexp(1 + fraction / 8.0, exponent - 7),
            )
            signed = np.where(bits & 0x80, -value, value).astype(np.float32)
            result[part] = signed * scale[i, j]
    return result


def write_random_fp8(path, block, **changes):
    """An FP8 checkpoint of random codes and scales. Returns the values that numpy decodes."""
    model = make_model(RAGGED_SIZES, **changes).bfloat16()
    model.save_pretrained(path)
    stored = load_file(path / "model.safetensors")
    released = {item.name for item in disk_tensors(model) if item.released_in_fp8}
    random = np.random.default_rng(7)
    values = {}
    for name in list(stored):
        values[name] = stored[name].float()
        if name in released:
            shape = tuple(stored[name].shape)
            codes = random.choice(FINITE, shape)
            scale = np.exp2(random.uniform(-14, -9, scale_grid(shape, block)))
            scale = scale.astype(np.float32)
            stored[name] = torch.from_numpy(codes).view(torch.float8_e4m3fn)
            stored[name + "_scale_inv"] = torch.from_numpy(scale)
            values[name] = torch.from_numpy(decode(codes, scale, block))
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((path / "config.json").read_text())
    fields["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(block),
    }
    (path / "config.json").write_text(json.dumps(fields))
    return values


def stored_values(model):
    """The model's tensors under their names on disk."""
    tensors = model.state_dict()
    return {item.name: item.part_of(tensors) for item in disk_tensors(model) if item.written}
