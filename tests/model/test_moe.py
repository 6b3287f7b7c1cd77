"""Router, experts and balancing, against cases by hand and slow versions in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model.activations import ACTIVATIONS
from abyssal.model.moe import Experts, Gate, MoE, Routing, sequence_balance_loss
from tests.model.model_cases import randomize, tiny_config

F64 = torch.float64


def logit(score):
    return math.log(score / (1 - score))


def make_gate(experts, *, bias=None, **changes):
    """A gate whose logits are its input: hidden_size = experts, weight = identity, in FP64."""
    gate = Gate(tiny_config(n_routed_experts=experts, hidden_size=experts, **changes)).double()
    with torch.no_grad():
        gate.weight.copy_(torch.eye(experts))
        if bias is not None:
            gate.e_score_correction_bias.copy_(torch.tensor(bias))
    return gate


def route(gate, *tokens):
    return gate(torch.tensor(tokens, dtype=F64)[None])


def slow_route(scores, bias, config):
    """(experts, weights) of one token from its sigmoid scores, in plain Python (12 to 16)."""
    choice = [score + offset for score, offset in zip(scores, bias, strict=True)]
    size = len(choice) // config.n_group

    def group_score(group):
        members = sorted(choice[group * size : (group + 1) * size], reverse=True)
        return members[0] + members[1]

    groups = sorted(range(config.n_group), key=lambda group: (-group_score(group), group))
    allowed = [e for e in range(len(choice)) if e // size in groups[: config.topk_group]]
    chosen = sorted(allowed, key=lambda e: (-choice[e], e))[: config.num_experts_per_tok]
    weights = [scores[e] for e in chosen]
    if config.norm_topk_prob:
        weights = [weight / sum(weights) for weight in weights]
    return chosen, [weight * config.routed_scaling_factor for weight in weights]


def test_weights_by_hand():
    """Scores 0.8 and 0.4 among the rest: normalised 2/3 and 1/3, times 2.5."""
    fields = {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    logits = [logit(score) for score in (0.1, 0.4, 0.2, 0.8)]
    routing = route(make_gate(4, **fields), logits)
    assert routing.topk_idx.tolist() == [[3, 1]]
    expected = torch.tensor([[2.5 * 2 / 3, 2.5 / 3]], dtype=F64)
    torch.testing.assert_close(routing.topk_weight, expected)
    unnormalised = route(make_gate(4, norm_topk_prob=False, **fields), logits)
    expected = torch.tensor([[2.0, 1.0]], dtype=F64)
    torch.testing.assert_close(unnormalised.topk_weight, expected)


def test_group_is_chosen_by_its_two_best():
    """0.9 is the best score, but its group sums to 1.0 and the other one to 1.1."""
    gate = make_gate(6, n_group=2, topk_group=1, num_experts_per_tok=2, norm_topk_prob=False)
    routing = route(gate, [logit(score) for score in (0.9, 0.1, 0.05, 0.5, 0.3, 0.6)])
    assert routing.topk_idx.tolist() == [[5, 3]]
    torch.testing.assert_close(routing.topk_weight, torch.tensor([[1.5, 1.25]], dtype=F64))


def test_bias_chooses_but_does_not_weigh():
    fields = {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 1, "norm_topk_prob": False}
    logits = [logit(score) for score in (0.9, 0.2, 0.3, 0.4)]
    assert route(make_gate(4, **fields), logits).topk_idx.tolist() == [[0]]
    biased = route(make_gate(4, bias=[0.0, 1.0, 0.0, 0.0], **fields), logits)
    assert biased.topk_idx.tolist() == [[1]]
    torch.testing.assert_close(biased.topk_weight, torch.tensor([[0.5]], dtype=F64))


def test_bias_takes_part_in_the_choice_of_groups():
    fields = {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 1}
    logits = [logit(score) for score in (0.5, 0.6, 0.2, 0.3)]
    assert route(make_gate(4, **fields), logits).topk_idx.tolist() == [[1]]
    biased = make_gate(4, bias=[0.0, 0.0, 0.5, 0.5], **fields)
    assert route(biased, logits).topk_idx.tolist() == [[3]]


def test_lower_index_wins_ties():
    """Of experts and of groups, whatever the sorting network does with more of them."""
    gate = make_gate(64, n_group=8, topk_group=3, num_experts_per_tok=7)
    assert route(gate, [0.25] * 64).topk_idx.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    scores = [0.0] * 64
    scores[40] = scores[41] = scores[50] = 1.0
    # Group 5 wins with 40 and 41, then group 6 with 50, then group 0 among equals.
    assert route(gate, scores).topk_idx.tolist() == [[40, 41, 50, 0, 1, 2, 3]]


GATES = st.builds(
    lambda groups, size, topk_group, top_k, norm, scale: {
        "n_routed_experts": groups * size,
        "n_group": groups,
        "topk_group": min(topk_group, groups),
        "num_experts_per_tok": min(top_k, min(topk_group, groups) * size),
        "norm_topk_prob": norm,
        "routed_scaling_factor": scale,
    },
    groups=st.integers(1, 5),
    size=st.integers(2, 6),
    topk_group=st.integers(1, 5),
    top_k=st.integers(1, 30),
    norm=st.booleans(),
    scale=st.sampled_from([0.5, 1.0, 2.5]),
)


@settings(deadline=None, max_examples=150)
@given(GATES, st.integers(0, 10**6), st.booleans())
def test_gate_equals_plain_python(fields, seed, with_ties):
    experts = fields.pop("n_routed_experts")
    gate = make_gate(experts, **fields)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 6, experts, dtype=F64, generator=generator)
    bias = torch.randn(experts, generator=generator) * 0.3
    if with_ties:
        logits, bias = (logits * 1.5).round(), (bias * 4).round() / 4
    gate.e_score_correction_bias.copy_(bias)
    routing = gate(logits)
    # The scores themselves are torch's: the order of near ties hangs on their last bit.
    for token, scores in enumerate(logits[0].sigmoid().tolist()):
        chosen, weights = slow_route(scores, bias.tolist(), gate.config)
        assert routing.topk_idx[token].tolist() == chosen
        assert routing.topk_weight[token].tolist() == pytest.approx(weights, rel=1e-12)
    occurrences = [routing.topk_idx.flatten().tolist().count(expert) for expert in range(experts)]
    assert routing.counts.tolist() == occurrences
    assert routing.counts.dtype == routing.topk_idx.dtype == torch.int64


@settings(deadline=None, max_examples=50)
@given(GATES, st.integers(0, 10**6))
def test_gate_properties(fields, seed):
    experts = fields.pop("n_routed_experts")
    gate = make_gate(experts, **fields).float()
    config = gate.config
    logits = torch.randn(2, 5, experts, generator=torch.Generator().manual_seed(seed))
    routing = gate(logits)
    idx = routing.topk_idx
    assert (idx.sort(-1).values.diff(dim=-1) > 0).all()  # no expert twice
    groups = idx // (experts // config.n_group)
    assert all(len(set(row)) <= config.topk_group for row in groups.tolist())
    assert routing.counts.sum() == 10 * config.num_experts_per_tok
    total = routing.topk_weight.sum(-1)
    if config.norm_topk_prob:
        expected = torch.full_like(total, config.routed_scaling_factor)
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    # Tokens do not see each other (a vectorised sigmoid may differ in the last bit).
    alone = gate(logits[1:, 2:3])
    assert torch.equal(alone.topk_idx[0], idx[7])
    torch.testing.assert_close(alone.topk_weight[0], routing.topk_weight[7], rtol=1e-6, atol=0)


def test_gradient_reaches_the_gate_but_not_the_bias():
    gate = Gate(tiny_config())
    randomize(gate)
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gate(hidden).topk_weight[:, 0].sum().backward()
    assert gate.weight.grad.abs().max() > 0
    assert hidden.grad.abs().max() > 0
    assert not gate.e_score_correction_bias.requires_grad
    assert "e_score_correction_bias" in gate.state_dict()
    assert "e_score_correction_bias" not in dict(gate.named_parameters())


@pytest.mark.parametrize("expert", [0, 3, 7])
def test_nan_is_never_hidden(expert):
    """Even where the expert's group would not have been chosen, the token's output is NaN."""
    moe = MoE(tiny_config())
    randomize(moe)
    hidden = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert moe(hidden)[0].isfinite().all()
        moe.gate.weight[expert] = float("nan")
        output, routing = moe(hidden)
    assert routing.topk_weight.isnan().all()
    assert output.isnan().all()
    poisoned = hidden.clone()
    poisoned[0, 2] = float("nan")
    randomize(moe)
    output, _ = moe(poisoned)
    assert output.isnan().all(-1).tolist() == [[False, False, True, False, False, False]]


def test_saturated_scores():
    """Logits so low that all scores vanish in FP32 give no NaN."""
    gate = make_gate(4, n_group=1, topk_group=1, num_experts_per_tok=2).float()
    routing = gate(torch.full((1, 3, 4), -200.0), with_balance_loss=True)
    assert torch.equal(routing.topk_weight, torch.zeros(3, 2))
    assert routing.balance_loss == 0


def test_gate_computes_in_fp32():
    """BF16 input and weight: their product, not rounded on the way."""
    gate = Gate(tiny_config()).bfloat16()
    randomize(gate)
    hidden = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    routing = gate(hidden)
    assert routing.topk_weight.dtype == torch.float32
    wide = Gate(tiny_config())
    wide.load_state_dict(gate.state_dict())
    expected = wide(hidden.float())
    assert torch.equal(routing.topk_idx, expected.topk_idx)
    assert torch.equal(routing.topk_weight, expected.topk_weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bias_stays_fp32(dtype):
    gate = Gate(tiny_config())
    randomize(gate)
    before = gate.e_score_correction_bias.clone()
    gate.to(dtype)
    assert gate.weight.dtype == dtype
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(gate.e_score_correction_bias, before)
    assert gate.to("meta").e_score_correction_bias.device.type == "meta"
    assert gate.to_empty(device="cpu").e_score_correction_bias.dtype == torch.float32


def test_update_bias_by_hand():
    gate = make_gate(4, n_group=1, topk_group=1, num_experts_per_tok=2, bias=[0.5, 0.0, -0.5, 1.0])
    gate.update_bias(torch.tensor([10, 2, 6, 6]), gamma=0.001)  # mean 6
    expected = torch.tensor([0.499, 0.001, -0.5, 1.0])
    torch.testing.assert_close(gate.e_score_correction_bias, expected, rtol=0, atol=1e-7)
    gate.update_bias(torch.tensor([10, 2, 6, 6]), gamma=0.0)
    torch.testing.assert_close(gate.e_score_correction_bias, expected, rtol=0, atol=1e-7)
    assert gate.e_score_correction_bias.dtype == torch.float32


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**40), min_size=8, max_size=8))
def test_update_bias_is_exact(counts):
    """b += gamma * sign(mean - load) with the mean not rounded, however many tokens there were."""
    gate = Gate(tiny_config())
    gate.update_bias(torch.tensor(counts), gamma=0.25)
    mean_times_8 = sum(counts)
    expected = [0.25 * ((mean_times_8 > 8 * load) - (mean_times_8 < 8 * load)) for load in counts]
    assert gate.e_score_correction_bias.tolist() == expected


def test_update_bias_sees_one_token_among_millions():
    """FP32 would round all of these loads to 2^25."""
    gate = Gate(tiny_config())
    gate.update_bias(torch.tensor([2**25 + 1, *[2**25] * 6, 2**25 - 1]), gamma=0.001)
    expected = torch.tensor([-0.001, 0, 0, 0, 0, 0, 0, 0.001])
    assert torch.equal(gate.e_score_correction_bias, expected)


def test_update_bias_refuses_other_shapes():
    gate = Gate(tiny_config())
    with pytest.raises(InputError, match=r"counts must have shape \(8,\), not \(2, 8\)"):
        gate.update_bias(torch.zeros(2, 8, dtype=torch.int64), gamma=0.1)


def test_update_bias_balances():
    """Report, section 2.1.2: on a fixed batch the updates even the load out."""
    gate = Gate(tiny_config(n_group=1, topk_group=1, num_experts_per_tok=2))
    randomize(gate, seed=1)
    hidden = torch.randn(1, 400, 32, generator=torch.Generator().manual_seed(0)) + 0.3

    def imbalance():
        counts = gate(hidden).counts
        return (counts.max() / counts.double().mean()).item()

    before = imbalance()
    for _ in range(300):
        gate.update_bias(gate(hidden).counts, gamma=0.003)
    assert before > 1.5
    assert imbalance() < 1.15


def slow_balance_loss(scores, top_k):
    """Equations 17 to 20 for one sequence, scores [T][E], without alpha."""
    tokens, experts = len(scores), len(scores[0])
    total = 0.0
    for i in range(experts):
        hits, affinity = 0, 0.0
        for row in scores:
            top = sorted(range(experts), key=lambda e: (-row[e], e))[:top_k]
            hits += i in top
            affinity += row[i] / sum(row)
        total += experts / (top_k * tokens) * hits * affinity / tokens
    return total


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 9), st.integers(1, 3), st.data())
def test_balance_loss_equals_the_formula(seed, experts, tokens, batch, data):
    top_k = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, tokens, experts, dtype=F64, generator=generator)
    got = sequence_balance_loss(scores, top_k).item()
    expected = sum(slow_balance_loss(rows, top_k) for rows in scores.tolist()) / batch
    assert got == pytest.approx(expected, rel=1e-12)


def test_balance_loss_extremes():
    """Perfect balance gives 1; all tokens on one of E experts, with all affinity, gives E."""
    experts = 6
    balanced = torch.eye(experts, dtype=F64)[None] + 1e-9
    assert sequence_balance_loss(balanced, 1).item() == pytest.approx(1.0)
    collapsed = torch.zeros(1, 10, experts, dtype=F64) + 1e-12
    collapsed[:, :, 2] = 1.0
    assert sequence_balance_loss(collapsed, 1).item() == pytest.approx(experts)


def test_balance_loss_is_per_sequence():
    """Two sequences that each collapse balance as a batch, and are not balanced."""
    scores = torch.full((2, 4, 2), 1e-9, dtype=F64)
    scores[0, :, 0] = scores[1, :, 1] = 1.0
    assert sequence_balance_loss(scores, 1).item() == pytest.approx(2.0)
    assert sequence_balance_loss(scores.view(1, 8, 2), 1).item() == pytest.approx(1.0)


def test_balance_loss_gradient():
    scores = torch.rand(2, 5, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sequence_balance_loss(x, 2), (scores,))


def test_gate_balance_loss_ignores_the_bias():
    gate = Gate(tiny_config())
    randomize(gate)
    hidden = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    assert gate(hidden).balance_loss is None
    scores = (hidden @ gate.weight.T).sigmoid()
    got = gate(hidden, with_balance_loss=True).balance_loss
    torch.testing.assert_close(got, sequence_balance_loss(scores, 3))
    gate.e_score_correction_bias.normal_(generator=torch.Generator().manual_seed(1))
    assert torch.equal(gate(hidden, with_balance_loss=True).balance_loss, got)


def slow_experts(experts, hidden, routing, config):
    """Token by token, choice by choice."""
    output = torch.zeros_like(hidden)
    for token, (chosen, weights) in enumerate(
        zip(routing.topk_idx.tolist(), routing.topk_weight, strict=True)
    ):
        for expert, weight in zip(chosen, weights, strict=True):
            gate, up = (experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
            inner = ACTIVATIONS[config.hidden_act](gate) * up
            output[token] += weight * (experts.down_proj[expert] @ inner)
    return output


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_experts_equal_a_loop(tokens, count, top_k, seed):
    """Some experts get nothing, some everything."""
    count, top_k = max(count, 2), min(top_k, max(count, 2))
    config = tiny_config(n_routed_experts=count, n_group=1, topk_group=1, num_experts_per_tok=top_k)
    experts = Experts(config).double()
    randomize(experts, seed)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 32, dtype=F64, generator=generator)
    topk_idx = torch.rand(tokens, count, generator=generator).argsort(-1)[:, :top_k]
    weights = torch.randn(tokens, top_k, dtype=F64, generator=generator)
    counts = torch.bincount(topk_idx.flatten(), minlength=count)
    routing = Routing(topk_idx, weights, counts, None)
    expected = slow_experts(experts, hidden, routing, config)
    torch.testing.assert_close(experts(hidden, routing), expected)


def test_experts_without_tokens_get_zero_gradient():
    experts = Experts(tiny_config())
    randomize(experts)
    topk_idx = torch.tensor([[1, 4, 6]])
    counts = torch.bincount(topk_idx.flatten(), minlength=8)
    routing = Routing(topk_idx, torch.ones(1, 3), counts, None)
    experts(torch.ones(1, 32), routing).sum().backward()
    for parameter in experts.parameters():
        used = parameter.grad.abs().amax((1, 2)) > 0
        assert used.nonzero().flatten().tolist() == [1, 4, 6]


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_shared_experts_see_every_token(shared):
    config = tiny_config(n_shared_experts=shared)
    moe = MoE(config).double()
    randomize(moe)
    hidden = torch.randn(2, 3, 32, dtype=F64, generator=torch.Generator().manual_seed(0))
    output, routing = moe(hidden)
    expected = slow_experts(moe.experts, hidden.flatten(0, 1), routing, config).view_as(hidden)
    if shared:
        mlp = moe.shared_experts
        assert mlp.gate_proj.weight.shape == (20 * shared, 32)
        inner = ACTIVATIONS["silu"](hidden @ mlp.gate_proj.weight.T) * (
            hidden @ mlp.up_proj.weight.T
        )
        expected = expected + inner @ mlp.down_proj.weight.T
    else:
        assert moe.shared_experts is None
    torch.testing.assert_close(output, expected)
