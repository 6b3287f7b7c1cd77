"""The optimiser: AdamW with the report's constants, and the router bias that no gradient moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from abyssal.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of `model` (report, section 4.2; moments in FP32).

    The report does not say what is decayed. Here: every parameter of two or more dimensions
    (projections, experts, router, embedding, head); norms and biases are not.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def update_router_bias(model: DeepseekV3ForCausalLM, counts: Tensor, speed: float) -> None:
    """Move every router's bias towards balance, once per optimiser step.

    counts: int64 [gates that ran, n_routed_experts], tokens of the whole batch of the step, in the
    order of `model.gates()`. Gates of MTP modules that did not run come last and have no row; their
    bias stays.
    """
    for gate, load in zip(model.gates(), counts, strict=False):
        gate.update_bias(load, speed)
