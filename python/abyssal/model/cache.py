"""The latent cache: all that multi-head latent attention keeps of past tokens.

Per layer and token it holds the normed latent (kv_lora_rank values) and the rotated key that all
heads share (qk_rope_head_dim values), and nothing else (report, section 2.1.1): 70 272 bytes a
token for the 671B model in BF16, where full keys and values would take 57 times as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abyssal.errors import InputError
from abyssal.model.config import DeepseekV3Config


class LatentCache:
    """A contiguous cache [num_hidden_layers, batch_size, max_length, kv_lora_rank + rope].

    `length` counts the tokens that every layer holds. A forward pass writes its layers one by one
    with `append` and then calls `advance` once.
    """

    def __init__(
        self,
        config: DeepseekV3Config,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or max_length < 1:
            raise InputError(
                f"a cache needs batch_size and max_length of at least 1, not {batch_size} and "
                f"{max_length}"
            )
        width = config.kv_lora_rank + config.qk_rope_head_dim
        shape = (config.num_hidden_layers, batch_size, max_length, width)
        self.data = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def batch_size(self) -> int:
        """Rows that are cached side by side."""
        return self.data.shape[1]

    @property
    def max_length(self) -> int:
        """Tokens a row can hold."""
        return self.data.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.data.nbytes

    def append(self, layer_idx: int, latent_and_key: Tensor) -> Tensor:
        """Write [B, T, width] behind what the layer holds.

        Returns all that the layer holds then, [B, length + T, width]. Raises InputError when the
        rows do not fit, or come in another dtype than the cache has (rounding them would be a
        loss that nobody asked for).
        """
        batch, tokens, _ = latent_and_key.shape
        end = self.length + tokens
        if latent_and_key.dtype != self.data.dtype:
            raise InputError(
                f"the cache holds {self.data.dtype} and the model computes {latent_and_key.dtype}; "
                "call new_cache after the last change of precision"
            )
        if batch != self.batch_size or end > self.max_length:
            raise InputError(
                f"the cache holds {self.batch_size} rows of {self.max_length} tokens; "
                f"{batch} rows reaching token {end} do not fit"
            )
        self.data[layer_idx, :, self.length : end] = latent_and_key
        return self.data[layer_idx, :, :end]

    def advance(self, tokens: int) -> None:
        """All layers have appended this many tokens."""
        self.length += tokens
