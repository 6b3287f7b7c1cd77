"""What a model costs, counted from its configuration alone: parameters, FLOPs, cache, memory.

Pure functions without tensors. Everything is counted, except `TrainingMemory.activations`, which
is modelled. Conventions are stated where they matter:

- Parameters are those that are trained. The router's balancing bias (a buffer, n_routed_experts
  values a gate) is not among them.
- FLOPs are those of matrix products, a multiplication and an addition each counted, in the
  report's convention (derived from the throughput and utilisation that "Insights into
  DeepSeek-V3", Table 4, gives): training is 3 times forward; the embedding look-up costs nothing,
  the output head counts; attention to itself and half the sequence (causal) or the whole sequence
  (non-causal); MTP modules count only when asked for; recomputation never.
"""

from __future__ import annotations

import dataclasses

from abyssal.errors import InputError
from abyssal.model.config import DeepseekV3Config

# Forward is one product per weight, backward two: the gradients of the input and of the weight.
TRAINING_TO_FORWARD = 3


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
    """Trained parameters, whole and by part.

    `attention`, `dense_ffn`, `expert` (one routed expert) and `moe_layer` (its FFN side: all
    experts, shared experts, router) are for one layer. `head` is 0 when it is the embedding.
    `mtp` is what the MTP modules add; their embedding and head are the main model's.
    """

    embedding: int
    head: int
    attention: int
    dense_ffn: int
    expert: int
    moe_layer: int
    main: int  # without MTP modules
    mtp: int
    active: int  # used by one token in the main model, embedding and head both counted
    active_one_embedding: int  # the same, embedding and head counted once

    @property
    def total(self) -> int:
        """Main model and MTP modules: what is trained."""
        return self.main + self.mtp


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training process that holds the whole model (no sharding)."""

    weights: int  # FP32 master weights
    compute_copy: int  # the weights cast to the compute type; 0 when that is FP32
    gradients: int  # FP32
    moments: int  # AdamW's two moments
    activations: int  # modelled: see `activation_bytes_per_token`

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.weights + self.compute_copy + self.gradients + self.moments + self.activations


def count_parameters(config: DeepseekV3Config) -> ParameterCounts:
    """The parameters of a model of this configuration, exactly as the modules create them."""
    hidden = config.hidden_size
    embedding = config.vocab_size * hidden
    head = 0 if config.tie_word_embeddings else embedding
    layers = [_layer(config, idx) for idx in range(config.num_hidden_layers)]
    active = [_layer(config, idx, active_only=True) for idx in range(config.num_hidden_layers)]
    mtp_layers = range(config.num_hidden_layers, config.num_layers_with_mtp)
    # An MTP module adds to a layer: eh_proj [H, 2H] and the norms enorm, hnorm, shared_head.norm.
    mtp = [_layer(config, idx) + 2 * hidden**2 + 3 * hidden for idx in mtp_layers]
    outside = embedding + head + hidden
    return ParameterCounts(
        embedding=embedding,
        head=head,
        attention=_attention_matrices(config) + _attention_vectors(config),
        dense_ffn=3 * hidden * config.intermediate_size,
        expert=_expert(config),
        moe_layer=_moe(config, config.n_routed_experts),
        main=outside + sum(layers),
        mtp=sum(mtp),
        active=outside + sum(active),
        active_one_embedding=outside - head + sum(active),
    )


def forward_flops_per_token(
    config: DeepseekV3Config, sequence_length: int, *, causal: bool = True, mtp: bool = False
) -> float:
    """FLOPs of one token's forward pass, averaged over a sequence of `sequence_length` tokens.

    For the form with expanded keys and values, which training and prefill use. `mtp` adds the MTP
    modules: their layer, their combining projection and one more output head each.
    """
    if sequence_length < 1:
        raise InputError(f"sequence_length must be at least 1, not {sequence_length}")
    head = config.hidden_size * config.vocab_size
    attended = sequence_length / 2 if causal else sequence_length
    # Scores are products over qk_head_dim, outputs over v_head_dim, in every head.
    width = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    layers = config.num_layers_with_mtp if mtp else config.num_hidden_layers
    weights = head + sum(_active_matrices(config, idx) for idx in range(layers))
    if mtp:
        weights += config.num_nextn_predict_layers * (2 * config.hidden_size**2 + head)
    return 2.0 * (weights + layers * width * attended)


def flops_per_token(
    config: DeepseekV3Config, sequence_length: int, *, causal: bool = True, mtp: bool = False
) -> float:
    """FLOPs of one token in training: 3 times `forward_flops_per_token`.

    The default is the trainer's utilisation (MFU) convention: causal attention, MTP modules left
    out although they run. The 671B model at 4096 tokens: 250.5e9, and 281.2e9 non-causal.
    """
    forward = forward_flops_per_token(config, sequence_length, causal=causal, mtp=mtp)
    return TRAINING_TO_FORWARD * forward


def cache_bytes_per_token(config: DeepseekV3Config, bytes_per_value: int = 2) -> int:
    """Bytes that the latent cache keeps of a token, all main layers together (BF16: 2 a value)."""
    width = config.kv_lora_rank + config.qk_rope_head_dim
    return config.num_hidden_layers * width * bytes_per_value


def training_memory(
    config: DeepseekV3Config,
    tokens: int,
    *,
    compute_bytes: int = 2,
    moment_bytes: int = 2,
    mtp: bool = True,
) -> TrainingMemory:
    """Bytes to train the whole model in one process, `tokens` at a time in flight.

    `compute_bytes` is the width of the compute type (2: BF16, which needs a cast copy of the
    weights; 4: FP32), `moment_bytes` that of AdamW's moments (2: BF16, as in the report's section
    3.3.3; 4: FP32). `mtp` says whether the MTP modules are held and trained.
    """
    if tokens < 1:
        raise InputError(f"tokens must be at least 1, not {tokens}")
    for name, value in (("compute_bytes", compute_bytes), ("moment_bytes", moment_bytes)):
        if value not in (2, 4):
            raise InputError(f"{name} must be 2 (BF16) or 4 (FP32), not {value}")
    counts = count_parameters(config)
    trained = counts.total if mtp else counts.main
    return TrainingMemory(
        weights=4 * trained,
        compute_copy=compute_bytes * trained if compute_bytes < 4 else 0,
        gradients=4 * trained,
        moments=2 * moment_bytes * trained,
        activations=tokens * activation_bytes_per_token(config, compute_bytes, mtp=mtp),
    )


def activation_bytes_per_token(
    config: DeepseekV3Config, compute_bytes: int = 2, *, mtp: bool = True
) -> int:
    """Modelled, not measured: bytes that backward keeps of a token, without recomputation.

    Counts the operands that autograd must keep: inputs of matrix products, of norms (FP32) and of
    activations, attention's query, key, value and output, and the logits with their log-softmax
    (FP32). Attention scores are not kept (fused attention). Allocator overhead is left out.
    """
    layers = config.num_layers_with_mtp if mtp else config.num_hidden_layers
    passes_of_head = 1 + (config.num_nextn_predict_layers if mtp else 0)
    kept = sum(_layer_activations(config, idx, compute_bytes) for idx in range(layers))
    # Final norm: its input and normalised input in FP32, its output; then the FP32 logits.
    around = 2 * 4 * config.hidden_size + compute_bytes * config.hidden_size
    return kept + passes_of_head * (around + 2 * 4 * config.vocab_size)


def _layer_activations(config: DeepseekV3Config, layer_idx: int, compute_bytes: int) -> int:
    """Bytes of a token that one layer keeps for its backward pass."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    latents = config.kv_lora_rank + (config.q_lora_rank or 0)
    norms = 2 * hidden + latents
    attention = 2 * heads * config.qk_head_dim + 2 * heads * config.v_head_dim
    if config.is_moe_layer(layer_idx):
        inner = config.moe_intermediate_size
        # Per routed copy: its input row, its output row, and the FFN between.
        ffn = config.num_experts_per_tok * (2 * hidden + 4 * inner)
        ffn += 4 * config.n_shared_experts * inner
    else:
        # gate, up, activation(gate), and their product.
        ffn = 4 * config.intermediate_size
    return 2 * 4 * norms + compute_bytes * (norms + attention + ffn)


def _attention_matrices(config: DeepseekV3Config) -> int:
    """Weights of one attention layer's projections."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    query_width = heads * config.qk_head_dim
    if config.q_lora_rank is None:
        query = hidden * query_width
    else:
        query = (hidden + query_width) * config.q_lora_rank
    down = hidden * (config.kv_lora_rank + config.qk_rope_head_dim)
    up = config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + down + up + heads * config.v_head_dim * hidden


def _attention_vectors(config: DeepseekV3Config) -> int:
    """The latents' norms and, where the configuration has them, biases."""
    query_rank = config.q_lora_rank or 0
    vectors = query_rank + config.kv_lora_rank
    if config.attention_bias:
        vectors += query_rank + config.kv_lora_rank + config.qk_rope_head_dim + config.hidden_size
    return vectors


def _expert(config: DeepseekV3Config) -> int:
    return 3 * config.hidden_size * config.moe_intermediate_size


def _moe(config: DeepseekV3Config, routed: int) -> int:
    """Router, shared experts and `routed` routed experts."""
    experts = (routed + config.n_shared_experts) * _expert(config)
    return experts + config.n_routed_experts * config.hidden_size


def _ffn(config: DeepseekV3Config, layer_idx: int, *, active_only: bool) -> int:
    if not config.is_moe_layer(layer_idx):
        return 3 * config.hidden_size * config.intermediate_size
    return _moe(config, config.num_experts_per_tok if active_only else config.n_routed_experts)


def _active_matrices(config: DeepseekV3Config, layer_idx: int) -> int:
    """Weights of the matrix products that one token meets in one layer."""
    return _attention_matrices(config) + _ffn(config, layer_idx, active_only=True)


def _layer(config: DeepseekV3Config, layer_idx: int, *, active_only: bool = False) -> int:
    """All parameters of one decoder layer, or those that one token uses."""
    norms = 2 * config.hidden_size + _attention_vectors(config)
    return norms + _attention_matrices(config) + _ffn(config, layer_idx, active_only=active_only)
