"""DeepSeekMoE: the sigmoid router with its balancing bias, routed and shared experts.

Report, section 2.1.2, equations 12 to 20. Shape suffixes: B sequences, T tokens of a sequence,
N = B * T tokens, E experts, K experts a token, I moe_intermediate_size, H hidden_size.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abyssal.errors import InputError
from abyssal.model.activations import ACTIVATIONS
from abyssal.model.config import EXPERTS_PER_GROUP_SCORE, DeepseekV3Config
from abyssal.model.layers import MLP
from abyssal.model.precision import PRECISIONS, Precision


@dataclasses.dataclass(frozen=True)
class Routing:
    """What the router decided for N tokens.

    topk_idx: int64 [N, K]; topk_weight: float [N, K]; counts: int64 [E], tokens an expert got;
    balance_loss: the sequence-wise loss of equation 17 without its factor alpha, averaged over the
    sequences (1.0 in perfect balance), or None when it was not asked for.
    """

    topk_idx: Tensor
    topk_weight: Tensor
    counts: Tensor
    balance_loss: Tensor | None


class Gate(nn.Module):
    """Group-limited top-k routing on sigmoid affinities.

    The balancing bias takes part in the choice of groups and experts and never in the weights
    (equation 16). It is a buffer without a gradient that `update_bias` moves after each step.

    A token with a NaN logit has NaN weights, so that nothing is hidden: NaN counts as the largest
    score and is therefore always chosen. The loss and the sampler report it.
    """

    e_score_correction_bias: Tensor

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer(
            "e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32)
        )

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Move with the module, but stay FP32: steps of 0.001 vanish in a BF16 bias near 1."""
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if moved.dtype != bias.dtype:
            self.e_score_correction_bias = bias.to(moved.device)
        return self

    def forward(self, hidden: Tensor, *, with_balance_loss: bool = False) -> Routing:
        """hidden [B, T, H] -> Routing of the B * T tokens, computed in FP32 (FP64 stays FP64)."""
        config = self.config
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        scores = F.linear(wide, self.weight.to(wide.dtype)).sigmoid().flatten(0, 1)
        with torch.no_grad():
            choice = scores + self.e_score_correction_bias
            topk_idx = self._choose(choice)
        topk_weight = scores.gather(1, topk_idx)
        if config.norm_topk_prob:
            topk_weight = topk_weight / (topk_weight.sum(-1, keepdim=True) + 1e-20)
        topk_weight = topk_weight * config.routed_scaling_factor
        counts = torch.bincount(topk_idx.flatten(), minlength=config.n_routed_experts)
        balance = None
        if with_balance_loss:
            balance = sequence_balance_loss(
                scores.unflatten(0, hidden.shape[:2]), config.num_experts_per_tok
            )
        return Routing(topk_idx, topk_weight, counts, balance)

    def _choose(self, choice: Tensor) -> Tensor:
        """The K experts of each token, from biased scores [N, E]: int64 [N, K]."""
        config = self.config
        if config.topk_group < config.n_group:
            groups = choice.unflatten(-1, (config.n_group, -1))
            group_score = groups.topk(EXPERTS_PER_GROUP_SCORE, dim=-1).values.sum(-1)
            kept = _stable_topk(group_score, config.topk_group)
            dropped = torch.ones_like(group_score, dtype=torch.bool).scatter(1, kept, False)
            choice = groups.masked_fill(dropped.unsqueeze(-1), float("-inf")).flatten(1)
        return _stable_topk(choice, config.num_experts_per_tok)

    @torch.no_grad()
    def update_bias(self, counts: Tensor, gamma: float) -> None:
        """Balance without a loss (report, section 2.1.2): b += gamma * sign(mean load - load).

        counts: int64 [E], tokens each expert got in the whole batch of the step. Raises InputError
        for another shape.
        """
        if counts.shape != self.e_score_correction_bias.shape:
            raise InputError(
                f"counts must have shape {tuple(self.e_score_correction_bias.shape)}, "
                f"not {tuple(counts.shape)}"
            )
        # mean - load has the sign of sum - E * load, which integers hold exactly at any batch size.
        excess = counts * counts.numel() - counts.sum()
        step = -gamma * torch.sign(excess).to(self.e_score_correction_bias)
        self.e_score_correction_bias += step


def _stable_topk(scores: Tensor, k: int) -> Tensor:
    """The k largest along the last dimension, the lower index first among equals."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def sequence_balance_loss(scores: Tensor, top_k: int) -> Tensor:
    """sum_i f_i P_i of equations 17 to 20, averaged over the sequences. Without the factor alpha.

    scores [B, T, E]: unbiased affinities. f_i counts how often expert i is among the token's top K
    of the *unbiased* scores; P_i is the mean of the normalised affinity. Returns a scalar.
    """
    experts, tokens = scores.shape[-1], scores.shape[1]
    chosen = _stable_topk(scores.detach(), top_k)
    hits = torch.zeros_like(scores).scatter_(-1, chosen, 1.0)
    frequency = hits.sum(1) * (experts / (top_k * tokens))
    probability = (scores / (scores.sum(-1, keepdim=True) + 1e-20)).mean(1)
    return (frequency * probability).sum(-1).mean()


class Experts(nn.Module):
    """The routed experts: all weights in two tensors, gate rows before up rows."""

    precision: Precision = PRECISIONS["stored"]

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        experts, inner = config.n_routed_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, config.hidden_size, inner))
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor, routing: Routing) -> Tensor:
        """hidden [N, H] -> the weighted sum of each token's experts [N, H].

        Rows are sorted by expert (stably: by token within an expert), multiplied expert by
        expert, and added up per token in the order of k: no atomics, the same bits every time.
        """
        tokens, top_k = routing.topk_idx.shape
        order = routing.topk_idx.flatten().argsort(stable=True)
        counts = routing.counts.tolist()
        rows = hidden.index_select(0, order // top_k)
        gate, up = self.precision.grouped_linear(rows, self.gate_up_proj, counts).chunk(2, dim=-1)
        expert_out = self.precision.grouped_linear(
            self.activation(gate) * up, self.down_proj, counts
        )
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        per_token = expert_out.index_select(0, inverse).view(tokens, top_k, -1)
        weight = routing.topk_weight.to(per_token.dtype)
        return torch.einsum("nkh,nk->nh", per_token, weight)


class MoE(nn.Module):
    """Shared experts plus the routed experts of each token (equation 12)."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = (
            MLP(config, config.moe_intermediate_size * config.n_shared_experts)
            if config.n_shared_experts
            else None
        )

    def forward(self, hidden: Tensor, *, with_balance_loss: bool = False) -> tuple[Tensor, Routing]:
        """hidden [B, T, H] -> ([B, T, H], what the router decided)."""
        routing = self.gate(hidden, with_balance_loss=with_balance_loss)
        output = self.experts(hidden.flatten(0, 1), routing).view_as(hidden)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden)
        return output, routing
