"""The whole model: construction, weights, losses, repeatability, and what it refuses."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM, _position_ids
from abyssal.model.layers import RMSNorm
from tests.model.model_cases import (
    random_config,
    random_tokens,
    relative_error,
    tiny_config,
    tiny_model,
)

MTP = {"num_nextn_predict_layers": 2}


def is_norm(name):
    return "norm" in name


def test_initial_weights_are_normal_of_std_0006():
    """Report, section 4.2. Every weight tensor, measured; norms 1; biases 0."""
    config = tiny_config(
        initializer_range=0.006, hidden_size=96, vocab_size=400, attention_bias=True, **MTP
    )
    model = DeepseekV3ForCausalLM(config)
    pooled = []
    for name, parameter in model.named_parameters():
        if is_norm(name):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            tolerance = 5 / parameter.numel() ** 0.5
            assert parameter.std().item() == pytest.approx(0.006, rel=tolerance), name
            assert abs(parameter.mean().item()) < 0.006 * tolerance, name
            pooled.append(parameter.detach().flatten() / 0.006)
    pooled = torch.cat(pooled)
    assert pooled.std().item() == pytest.approx(1.0, rel=0.01)
    assert (pooled.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.01)
    for gate in model.gates():
        assert (gate.e_score_correction_bias == 0).all()


def test_default_initial_range():
    assert type(tiny_config())().initializer_range == 0.006


def test_generator_decides_the_weights():
    model = DeepseekV3ForCausalLM(tiny_config(**MTP))
    states = []
    for seed in (1, 1, 2):
        torch.rand(3)  # the global generator plays no part
        model.init_weights(torch.Generator().manual_seed(seed))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name, value in states[0].items():
        constant = is_norm(name) or name.endswith("bias")
        assert torch.equal(value, states[2][name]) == constant, name


def test_construction_follows_the_global_seed():
    first, second = (
        (torch.manual_seed(7), DeepseekV3ForCausalLM(tiny_config()))[1].state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("tied", [False, True])
def test_meta_device(tied):
    """No memory until it is asked for; then any values can be put in, ties kept."""
    config = tiny_config(tie_word_embeddings=tied, **MTP)
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(config)
    assert model.device.type == "meta"
    assert all(value.device.type == "meta" for value in model.state_dict().values())
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    real = DeepseekV3ForCausalLM(config)
    assert shapes == {name: value.shape for name, value in real.state_dict().items()}

    model.to_empty(device="cpu")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for value in model.state_dict().values():
        value.fill_(float("nan"))
    model.init_weights(torch.Generator().manual_seed(3))
    real.init_weights(torch.Generator().manual_seed(3))
    input_ids = random_tokens(config, 2, 7)
    assert torch.equal(model(input_ids).logits, real(input_ids).logits)


def test_released_model_on_meta_has_671_billion_parameters():
    from abyssal.model.config import DeepseekV3Config

    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(DeepseekV3Config(num_nextn_predict_layers=0))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == pytest.approx(671.03e9, rel=1e-5)


def test_names_and_shapes():
    model = DeepseekV3ForCausalLM(tiny_config(num_nextn_predict_layers=1))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    expected = {
        "model.embed_tokens.weight": (61, 32),
        "lm_head.weight": (61, 32),
        "model.norm.weight": (32,),
        "model.layers.0.mlp.gate_proj.weight": (44, 32),
        "model.layers.0.mlp.down_proj.weight": (32, 44),
        "model.layers.1.mlp.gate.weight": (8, 32),
        "model.layers.1.mlp.gate.e_score_correction_bias": (8,),
        "model.layers.1.mlp.experts.gate_up_proj": (8, 40, 32),
        "model.layers.1.mlp.experts.down_proj": (8, 32, 20),
        "model.layers.1.mlp.shared_experts.up_proj.weight": (20, 32),
        "model.layers.3.enorm.weight": (32,),
        "model.layers.3.hnorm.weight": (32,),
        "model.layers.3.eh_proj.weight": (32, 64),
        "model.layers.3.shared_head.norm.weight": (32,),
        "model.layers.3.self_attn.q_b_proj.weight": (20, 12),
        "model.layers.3.mlp.experts.down_proj": (8, 32, 20),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not any("embed" in name or "head.weight" in name for name in shapes if "layers" in name)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_one_tensor(tied):
    model = tiny_model(tie_word_embeddings=tied)
    for moved in (model, copy.deepcopy(model), model.double(), model.float()):
        embedding, head = moved.model.embed_tokens.weight, moved.lm_head.weight
        assert (embedding is head) == tied
        assert (embedding.data_ptr() == head.data_ptr()) == tied
    names = dict(model.named_parameters())
    assert ("lm_head.weight" in names) != tied
    input_ids = random_tokens(model.config, 2, 6)
    model(input_ids, labels=input_ids).loss.backward()
    unseen = [t for t in range(61) if t not in input_ids]
    # The embedding's gradient covers unseen tokens only where it is the head's as well.
    assert (model.model.embed_tokens.weight.grad[unseen].abs().max() > 0) == tied


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6))
def test_forward_and_backward_are_bitwise_repeatable(seed):
    config = random_config(seed).replace(num_nextn_predict_layers=1)
    model = DeepseekV3ForCausalLM(config)
    rows = random_tokens(config, 3, 12, seed)

    def run(model):
        model.zero_grad()
        output = model(
            rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3, balance_loss_weight=0.01
        )
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        counts = [] if output.expert_counts is None else [output.expert_counts]
        return [output.logits, output.loss, *counts, *gradients]

    first, again, copied = run(model), run(model), run(copy.deepcopy(model))
    for results in (again, copied):
        assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True))


def test_loss_is_the_sum_of_its_parts():
    model = tiny_model(**MTP)
    rows = random_tokens(model.config, 3, 10)
    output = model(
        rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3, balance_loss_weight=0.05
    )
    assert len(output.mtp_losses) == 2
    log_probability = output.logits.log_softmax(-1).gather(-1, rows[:, 1:, None])
    torch.testing.assert_close(output.main_loss, -log_probability.mean())
    expected = output.main_loss + 0.3 * sum(output.mtp_losses) / 2 + 0.05 * output.balance_loss
    torch.testing.assert_close(output.loss, expected)
    assert output.logits.shape == (3, 9, 61)
    assert 0.5 < output.balance_loss < 8


def test_balance_loss_is_the_mean_over_the_gates():
    model = tiny_model(**MTP)
    rows = random_tokens(model.config, 2, 10)
    seen = []
    for gate in model.gates():
        gate.register_forward_hook(lambda gate, inputs, routing: seen.append(routing))
    output = model(
        rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3, balance_loss_weight=0.05
    )
    assert len(seen) == 4
    losses = torch.stack([routing.balance_loss for routing in seen])
    torch.testing.assert_close(output.balance_loss, losses.mean())
    assert torch.equal(output.expert_counts, torch.stack([routing.counts for routing in seen]))


def test_labels():
    """Shifted inside, -100 ignored, the mean over what is left; as with shift_labels."""
    model = tiny_model()
    input_ids = random_tokens(model.config, 2, 8)
    labels = input_ids.clone()
    labels[0, :5] = -100
    output = model(input_ids, labels=labels)
    log_probability = output.logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None])
    kept = (labels[:, 1:] != -100)[..., None]
    torch.testing.assert_close(output.loss, -log_probability[kept].mean())
    shifted = torch.cat((labels[:, 1:], torch.full((2, 1), -100)), dim=1)
    assert torch.equal(model(input_ids, shift_labels=shifted).loss, output.loss)


def test_terms_without_a_module_are_absent():
    dense = tiny_model(first_k_dense_replace=3)
    rows = random_tokens(dense.config, 2, 6)
    output = dense(
        rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3, balance_loss_weight=0.1
    )
    assert (output.mtp_losses, output.balance_loss, output.expert_counts) == ((), None, None)
    assert torch.equal(output.loss, output.main_loss)
    assert dense.gates() == []


def test_gates_are_in_the_order_of_the_layers():
    model = tiny_model(**MTP)
    gates = [model.model.layers[idx].mlp.gate for idx in (1, 2, 3, 4)]
    assert all(a is b for a, b in zip(model.gates(), gates, strict=True))
    assert len(model.model.main_layers) == 3
    assert len(model.model.mtp_layers) == 2


def test_expert_counts_count_this_call():
    model = tiny_model()
    counts = model(random_tokens(model.config, 3, 7)).expert_counts
    assert counts.shape == (2, 8)
    assert counts.sum(1).tolist() == [3 * 7 * 3] * 2


def test_learns():
    """A few steps of SGD on one batch lower all parts of the loss."""
    model = tiny_model(**MTP)
    rows = random_tokens(model.config, 4, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        output = model(rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        return [output.main_loss.item(), *(loss.item() for loss in output.mtp_losses)]

    before = step()
    for _ in range(20):
        after = step()
    assert all(a < 0.9 * b for a, b in zip(after, before, strict=True))


def test_norms_follow_the_configured_epsilon():
    model = DeepseekV3ForCausalLM(tiny_config(rms_norm_eps=0.5, **MTP))
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            # transformers and the release keep 1e-6 for the two latents, whatever the field says.
            latent = name.endswith(("q_a_layernorm", "kv_a_layernorm"))
            assert module.eps == (1e-6 if latent else 0.5), name


def test_right_padding_is_harmless_to_what_stands_before_it():
    model = tiny_model()
    input_ids = random_tokens(model.config, 1, 9)
    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[:, 6:] = False
    with torch.no_grad():
        got = model(input_ids, attention_mask=mask).logits[:, :6]
        assert relative_error(got, model(input_ids[:, :6]).logits) <= 1e-6


def long(*values):
    return torch.tensor(values)


TWO_ROWS = torch.zeros(2, 4, dtype=torch.int64)
BAD_CALLS = [
    ({"input_ids": long([1, 61])}, "input_ids holds 61, outside the vocabulary of 61 tokens"),
    ({"input_ids": long([1, -1])}, "input_ids holds -1, outside the vocabulary"),
    ({"input_ids": long(1, 2)}, r"input_ids must be int64 \[batch, tokens\] .* \[2\]"),
    ({"input_ids": TWO_ROWS[:, :0]}, r"and not empty, not torch.int64 \[2, 0\]"),
    ({"input_ids": TWO_ROWS[:0]}, r"and not empty, not torch.int64 \[0, 4\]"),
    ({"input_ids": TWO_ROWS.float()}, "not torch.float32"),
    ({"input_ids": TWO_ROWS.int()}, "not torch.int32"),
    ({"input_ids": [[1, 2]]}, "input_ids must be an int64 tensor, not a list"),
    ({"input_ids": torch.zeros(1, 65, dtype=torch.int64)}, "65 tokens exceeds .*_embeddings=64"),
    (
        {"labels": TWO_ROWS[:, :3]},
        r"labels must have the shape of .* \[2, 4\], not \[2, 3\]",
    ),
    ({"shift_labels": TWO_ROWS + 61}, "shift_labels holds 61, outside the vocabulary"),
    ({"labels": TWO_ROWS - 99}, "labels holds -99, outside the vocabulary"),
    ({"labels": TWO_ROWS.float()}, "labels must be int64"),
    ({"labels": TWO_ROWS - 100}, "labels holds no target to predict"),
    ({"labels": TWO_ROWS, "shift_labels": TWO_ROWS}, "give labels or shift_labels, not both"),
    ({"labels": TWO_ROWS, "logits_to_keep": 1}, "labels need all logits and no cache"),
    ({"logits_to_keep": -1}, r"logits_to_keep must be 0 \(all\) to 4 \(the new tokens\), not -1"),
    ({"logits_to_keep": 5}, "logits_to_keep must be .* not 5"),
    ({"attention_mask": TWO_ROWS[0]}, r"attention_mask must have shape \[2, 4\] .* not \[4\]"),
    ({"attention_mask": [[1] * 4] * 2}, r"attention_mask must have shape \[2, 4\] .* not list"),
    (
        {"attention_mask": TWO_ROWS.float() + 1},
        "must be bool or integer, not torch.float32",
    ),
    ({"attention_mask": TWO_ROWS + 2}, "attention_mask must hold 0 .* and 1 .* only"),
    (
        {"attention_mask": long([0, 0, 1, 1], [0] * 4)},
        "is 0 everywhere in row 1",
    ),
    ({"balance_loss_weight": 0.1}, "need labels or shift_labels"),
    (
        {"labels": TWO_ROWS, "attention_mask": TWO_ROWS + 1, "balance_loss_weight": 0.1},
        "attention_mask must be None",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_refuses(arguments, message):
    model = tiny_model()
    with pytest.raises(InputError, match=message) as error:
        model(**({"input_ids": TWO_ROWS} | arguments))
    assert "\n" not in str(error.value)


def test_padding_takes_no_position():
    """Logits hardly show it, since rotary scores depend on distances; the positions do."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = _position_ids(mask, 0, 5, torch.device("cpu"))
    assert positions.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert _position_ids(mask, 3, 2, torch.device("cpu")).tolist() == [[1, 2], [3, 4]]
    assert _position_ids(None, 3, 2, torch.device("cpu")).tolist() == [[3, 4]]


def test_positions_with_a_cache_and_with_padding():
    model = tiny_model(max_position_embeddings=6)
    cache = model.new_cache(1, 9)
    row = random_tokens(model.config, 1, 7)
    model(row[:, :4], cache=cache)
    with pytest.raises(InputError, match="a row of 7 tokens exceeds max_position_embeddings=6"):
        model(row[:, :3], cache=cache)
    model(row[:, :2], cache=cache)
    # Padding takes no position.
    model(row, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1, 1]]))
