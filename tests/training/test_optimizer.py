"""The optimiser: what is decayed, AdamW's arithmetic, and balance through the router's bias."""

import dataclasses
from pathlib import Path

import pytest
import torch

from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from abyssal.model.presets import PRESETS
from abyssal.training.config import TrainConfig
from abyssal.training.metrics import load_imbalance
from abyssal.training.optimizer import build_optimizer, set_learning_rate, update_router_bias

CONFIG = TrainConfig(data=Path("unused"), total_tokens=10**6, learning_rate=0.01)
SHAPE = PRESETS["tiny"].replace(
    vocab_size=32, hidden_size=32, intermediate_size=32, moe_intermediate_size=16
)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return DeepseekV3ForCausalLM(SHAPE.replace(**changes))


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_decay_and_norms_and_biases_do_not(tied):
    model = build(tie_word_embeddings=tied, attention_bias=True)
    decayed, kept = build_optimizer(model, CONFIG).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in kept["params"]} == {
        name for name in names.values() if name.endswith(("norm.weight", ".bias"))
    }
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_a_step_is_adamw_as_published():
    """Two steps by hand: moments with bias correction, decoupled decay of the matrices only."""
    model = build()
    optimizer = build_optimizer(model, CONFIG)
    weights = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(1)
    for step, rate in ((1, 0.01), (2, 0.003)):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters():
            gradient = parameter.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.95**step)
            decay = 0.1 if parameter.dim() >= 2 else 0.0
            weights[name] = weights[name] * (1 - rate * decay) - rate * mean / (
                square.sqrt() + 1e-8
            )
        set_learning_rate(optimizer, rate)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), weights[name], rtol=1e-5, atol=1e-7)


def test_bias_updates_balance_a_skewed_router():
    """Without any gradient: the bias alone takes the load from the favoured experts."""
    model = build()
    generator = torch.Generator().manual_seed(2)
    skew = torch.linspace(-1, 1, SHAPE.n_routed_experts)
    hidden = torch.randn(8, 64, SHAPE.hidden_size, generator=generator)
    for gate in model.gates():
        with torch.no_grad():
            # Affinities lean towards the last experts for every token.
            gate.weight.normal_(0, 0.1, generator=generator)
            gate.weight += skew[:, None] * hidden.mean((0, 1)) / hidden.mean((0, 1)).square().sum()
    history = []
    for _ in range(300):
        counts = torch.stack([gate(hidden).counts for gate in model.gates()])
        history.append(load_imbalance(counts))
        update_router_bias(model, counts, speed=0.005)
    before, after = torch.tensor(history[0]), torch.tensor(history[-10:]).mean(0)
    assert (before > 1.8).all()
    assert (after < 1.15).all()


def test_the_bias_follows_its_own_gates_counts():
    model = build()
    gates = model.gates()
    rows = torch.randint(0, 100, (len(gates) - 1, SHAPE.n_routed_experts))
    rows[0] = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])  # mean 3.5: four under, four over
    update_router_bias(model, rows, speed=0.25)
    assert gates[0].e_score_correction_bias.tolist() == [0.25] * 4 + [-0.25] * 4
    for gate, row in zip(gates[1:], rows[1:], strict=False):
        expected = 0.25 * torch.sign(row.float().mean() - row)
        assert torch.equal(gate.e_score_correction_bias, expected)
    # The MTP module's gate did not run in this step.
    assert not gates[-1].e_score_correction_bias.any()


def test_load_imbalance_is_fullest_over_mean():
    counts = torch.tensor([[4, 4, 4, 4], [16, 0, 0, 0], [6, 2, 4, 4]])
    assert load_imbalance(counts) == [1.0, 4.0, 1.5]
    assert load_imbalance(None) == []


def test_fields_reach_the_optimizer():
    config = dataclasses.replace(
        CONFIG, adam_beta1=0.8, adam_beta2=0.9, adam_eps=1e-6, weight_decay=0.3
    )
    group = build_optimizer(build(), config).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-6, 0.3)
