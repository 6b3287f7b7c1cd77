"""Named model shapes, from one that learns on two CPU cores in minutes to the report's 671B.

`PRESETS` maps a name to a configuration, `NOTES` to what is published about it and what is
inferred. `16b` and `230b` stand for the report's two small baselines ("15.7B total, 2.4B active"
and "228.7B total, 20.9B active": Tables 4 and 5), whose configurations are not published. They are
inferred here: the published shapes of DeepSeek-V2-Lite and DeepSeek-V2, which section 3.3 calls
similar, with the sigmoid gating and normalised top-K weights of section 4.5.2. The vocabulary of
`230b` and its three dense layers are chosen because all four sizes then agree with the report, cut
(not rounded) to one decimal: 15.706 and 2.451 B, 228.748 and 20.987 B, without MTP modules and with
one of embedding and head counted as active. `tiny` and `small` are this project's own.
"""

from __future__ import annotations

from pathlib import Path

from abyssal.errors import InputError
from abyssal.model.config import DeepseekV3Config

PRESETS: dict[str, DeepseekV3Config] = {
    # The byte tokenizer's vocabulary; the trainer sets it and the special ids from the tokenizer.
    # Weights of std 0.006 are tuned for width 7168 and start a narrow model on a plateau.
    "tiny": DeepseekV3Config(
        vocab_size=262,
        hidden_size=128,
        intermediate_size=384,
        moe_intermediate_size=96,
        num_hidden_layers=3,
        num_nextn_predict_layers=1,
        num_attention_heads=4,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.0,
        first_k_dense_replace=1,
        max_position_embeddings=1024,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
    ),
    # A byte-pair vocabulary of 8192; the trainer sets it and the special ids from the tokenizer.
    "small": DeepseekV3Config(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        moe_intermediate_size=192,
        num_hidden_layers=8,
        num_nextn_predict_layers=1,
        num_attention_heads=6,
        q_lora_rank=192,
        kv_lora_rank=128,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.0,
        first_k_dense_replace=1,
        max_position_embeddings=2048,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "16b": DeepseekV3Config(
        vocab_size=102400,
        hidden_size=2048,
        intermediate_size=10944,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_nextn_predict_layers=1,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "230b": DeepseekV3Config(
        vocab_size=129280,
        hidden_size=5120,
        intermediate_size=12288,
        moe_intermediate_size=1536,
        num_hidden_layers=60,
        num_nextn_predict_layers=1,
        num_attention_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        n_routed_experts=160,
        n_shared_experts=2,
        num_experts_per_tok=6,
        n_group=8,
        topk_group=3,
        first_k_dense_replace=3,
    ),
    "671b": DeepseekV3Config(),
}

NOTES: dict[str, str] = {
    "tiny": "this project's own shape: byte vocabulary, trains on two CPU cores in minutes",
    "small": "this project's own shape: byte-pair vocabulary, for a CPU and patience",
    "16b": (
        "inferred: the report publishes 15.7B total and 2.4B active parameters, sigmoid gating "
        "and normalised top-K weights; the shape is DeepSeek-V2-Lite's with its vocabulary of "
        "102400, and routed_scaling_factor 2.5 and the one MTP module are those of the 671B model"
    ),
    "230b": (
        "inferred: the report publishes 228.7B total and 20.9B active parameters, sigmoid gating "
        "and normalised top-K weights; the shape is DeepSeek-V2's, with the vocabulary (129280), "
        "three dense layers, routed_scaling_factor 2.5 and one MTP module of the 671B model"
    ),
    "671b": (
        "published: report, section 4.2, and the released config.json. As pre-trained: 4096 "
        "positions without YaRN (inferred from section 4.3) and initializer_range 0.006 (the "
        "released file says 0.02). routed_scaling_factor 2.5 is in the file, not in the report"
    ),
}


def get_preset(name_or_path: str | Path) -> DeepseekV3Config:
    """The configuration of a preset's name, a config.json, or a directory that holds one.

    A preset's name wins over a directory of the same name (write ./tiny for the directory).
    Raises InputError for what is neither, naming the presets.
    """
    if str(name_or_path) in PRESETS:
        return PRESETS[str(name_or_path)]
    if Path(name_or_path).exists():
        return DeepseekV3Config.from_file(name_or_path)
    raise InputError(
        f"{str(name_or_path)!r} is neither a preset ({', '.join(PRESETS)}) nor a configuration "
        "file or checkpoint directory"
    )
