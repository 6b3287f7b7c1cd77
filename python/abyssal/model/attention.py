"""Multi-head latent attention (report, section 2.1.1, equations 1 to 11).

Queries and keys each have a part without position (nope) and a rotated part (rope); the rotated
key is one for all heads. Two forms compute the same thing:

- expanded: keys and values are made from the latents by `kv_b_proj`; for training and prefill;
- absorbed: `kv_b_proj` moves over to the query and the output, so that attention runs over the
  latents as they are cached; for decoding.

Shape suffixes: B batch, T new tokens, S all tokens so far, H heads, D qk_head_dim, C kv_lora_rank,
R qk_rope_head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abyssal.model.cache import LatentCache
from abyssal.model.config import DeepseekV3Config
from abyssal.model.layers import Linear, RMSNorm
from abyssal.model.rope import rotate, softmax_scale

# transformers norms both latents with this epsilon, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


class MultiHeadLatentAttention(nn.Module):
    """One attention layer, with or without the compressed query (`q_lora_rank`)."""

    def __init__(self, config: DeepseekV3Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        heads, bias = config.num_attention_heads, config.attention_bias
        query_width = heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, query_width, bias=False)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, query_width, bias=False)
        latent_width = config.kv_lora_rank + config.qk_rope_head_dim
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, latent_width, bias=bias)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        key_value_width = heads * (config.qk_nope_head_dim + config.v_head_dim)
        self.kv_b_proj = Linear(config.kv_lora_rank, key_value_width, bias=False)
        self.o_proj = Linear(heads * config.v_head_dim, config.hidden_size, bias=bias)
        self.softmax_scale = softmax_scale(config)

    def forward(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> Tensor:
        """hidden [B, T, hidden_size] -> [B, T, hidden_size].

        `rotation` is (cos, sin) [B or 1, T, 1, R/2] of the new tokens' positions. `mask` is bool
        [B, 1, T, S], True where a query may look; None means causal over T tokens without a past.
        """
        query = self._query(hidden, rotation)
        latent, key_rope = self._latent(hidden, rotation)
        if cache is None:
            output = self._attend_expanded(query, latent, key_rope, mask)
        else:
            past = cache.length
            entries = cache.append(self.layer_idx, torch.cat((latent, key_rope), dim=-1))
            if past == 0 and hidden.shape[1] > 1:
                output = self._attend_expanded(query, latent, key_rope, mask)
            else:
                output = self._attend_absorbed(query, entries, mask)
        return self.o_proj(output.flatten(2))

    def _query(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The two parts of the query, [B, T, H, nope] and [B, T, H, R]."""
        config = self.config
        if config.q_lora_rank is None:
            query = self.q_proj(hidden)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden)))
        query = query.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))
        nope, rope = query.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return nope, rotate(rope, *rotation, interleave=config.rope_interleave)

    def _latent(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What is cached: the normed latent [B, T, C] and the rotated shared key [B, T, R]."""
        config = self.config
        latent, key_rope = self.kv_a_proj_with_mqa(hidden).split(
            (config.kv_lora_rank, config.qk_rope_head_dim), dim=-1
        )
        key_rope = rotate(key_rope.unsqueeze(2), *rotation, interleave=config.rope_interleave)
        return self.kv_a_layernorm(latent), key_rope.squeeze(2)

    def _attend_expanded(
        self,
        query: tuple[Tensor, Tensor],
        latent: Tensor,
        key_rope: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Ordinary attention over keys and values expanded from the latents: [B, T, H, v]."""
        config = self.config
        key_value = self.kv_b_proj(latent).unflatten(-1, (config.num_attention_heads, -1))
        key_nope, value = key_value.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        key_rope = key_rope.unsqueeze(2).expand(*key_nope.shape[:3], -1)
        query_full = torch.cat(query, dim=-1)
        key_full = torch.cat((key_nope, key_rope), dim=-1)
        # The fused CPU attention needs keys and values of one width; zeros cost less than the
        # T x S score matrix that the unfused path writes.
        padding = config.qk_head_dim - config.v_head_dim
        if padding > 0 and value.device.type == "cpu":
            value = F.pad(value, (0, padding))
        output = F.scaled_dot_product_attention(
            query_full.transpose(1, 2),
            key_full.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
        )
        return output.transpose(1, 2)[..., : config.v_head_dim]

    def _attend_absorbed(
        self, query: tuple[Tensor, Tensor], entries: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention over the cached latents themselves, entries [B, S, C + R]: [B, T, H, v]."""
        config = self.config
        query_nope, query_rope = query
        up = self.kv_b_proj.precision.cast(self.kv_b_proj.weight, query_nope)
        up_key, up_value = up.unflatten(0, (config.num_attention_heads, -1)).split(
            (config.qk_nope_head_dim, config.v_head_dim), dim=1
        )
        query_latent = torch.einsum("bthn,hnc->bthc", query_nope, up_key)
        query_full = torch.cat((query_latent, query_rope), dim=-1).transpose(1, 2)
        keys = entries.to(query_full.dtype).unsqueeze(1)
        scores = (query_full @ keys.transpose(-1, -2)) * self.softmax_scale
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
        weights = scores.softmax(dim=-1, dtype=wide).to(keys.dtype)
        latent = (weights @ keys[..., : config.kv_lora_rank]).transpose(1, 2)
        return torch.einsum("bthc,hvc->bthv", latent, up_value)
