"""The small layers that everything is built of: linear, norm, gated MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abyssal.model.activations import ACTIVATIONS
from abyssal.model.config import DeepseekV3Config
from abyssal.model.precision import PRECISIONS, Precision


class Linear(nn.Linear):
    """torch's Linear, multiplied as the precision policy says. Its weights are filled later."""

    precision: Precision = PRECISIONS["stored"]

    def reset_parameters(self) -> None:
        """Nothing: `DeepseekV3ForCausalLM.init_weights` fills all parameters in one place."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return self.precision.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, the statistics in FP32 (FP64 stays FP64)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape and dtype."""
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        # An FP32 weight multiplies in FP32; BF16 times BF16 stays so, as transformers has it.
        product_dtype = torch.promote_types(x.dtype, self.weight.dtype)
        return (self.weight * normed.to(product_dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)): the dense layers' FFN and the shared experts."""

    def __init__(self, config: DeepseekV3Config, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, config.hidden_size, bias=False)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> [..., hidden_size]."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
