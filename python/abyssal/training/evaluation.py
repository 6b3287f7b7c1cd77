"""Validation: nats per token and bits per byte, a measure that no tokenizer can flatter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM


@dataclasses.dataclass(frozen=True)
class Validation:
    """The main model's loss on text that it was not trained on."""

    loss: float  # nats per token
    bits_per_byte: float
    tokens_measured: int


@torch.no_grad()
def evaluate(model: DeepseekV3ForCausalLM, windows: Iterable[tuple[Tensor, int]]) -> Validation:
    """Measure `model` on windows: pairs of int64 [B, T + 1] tokens and the bytes they stand for.

    Each window's tokens but the first are predicted from those before them; the bytes are those of
    the predicted tokens, so that bits per byte = nats / (ln 2 * bytes) is exact. The router's bias
    and the weights stay as they are.
    """
    nats, tokens, num_bytes = 0.0, 0, 0
    for window, window_bytes in windows:
        window = window.to(model.device)
        targets = window[:, 1:]
        loss = model(window[:, :-1], shift_labels=targets).main_loss
        nats += loss.item() * targets.numel()
        tokens += targets.numel()
        num_bytes += window_bytes
    return Validation(
        loss=nats / tokens, bits_per_byte=nats / (math.log(2) * num_bytes), tokens_measured=tokens
    )
