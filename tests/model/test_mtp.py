"""Multi-token prediction against equations 21 to 25 written out position by position."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model.deepseek_v3 import MTPLayer
from tests.model.model_cases import YARN, random_tokens, tiny_config, tiny_model

DEPTHS = [1, 2, 3]


def norm(x, weight, eps):
    return x / (x.square().mean() + eps).sqrt() * weight


def slow_mtp_losses(model, input_ids, targets):
    """The loss of each module for one row of tokens [T] and their successors [T].

    Module k joins token i + k with the state at i, in the order [embedding; hidden]; its block and
    norm give the state of the next module, the shared head predicts token i + k + 1.
    """
    config, parts = model.config, dict(model.named_parameters())
    embedding, head = parts["model.embed_tokens.weight"], model.lm_head.weight
    hidden, _ = model.model(input_ids[None])  # after the final norm
    hidden = hidden[0]
    losses = []
    for depth in range(1, config.num_nextn_predict_layers + 1):
        index = config.num_hidden_layers + depth - 1
        prefix = f"model.layers.{index}."
        weights = {
            name: parts[f"{prefix}{name}.weight"]
            for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm")
        }
        joined = []
        for i in range(len(input_ids) - depth):
            token = norm(embedding[input_ids[i + depth]], weights["enorm"], config.rms_norm_eps)
            state = norm(hidden[i], weights["hnorm"], config.rms_norm_eps)
            joined.append(weights["eh_proj"] @ torch.cat((token, state)))
        rotated = model.model.rotation(torch.arange(len(joined))[None])
        output, _ = model.model.layers[index](torch.stack(joined)[None], rotated)
        hidden = torch.stack(
            [norm(h, weights["shared_head.norm"], config.rms_norm_eps) for h in output[0]]
        )
        loss = 0.0
        for i, state in enumerate(hidden):
            target = targets[i + depth]  # the successor of token i + depth: token i + depth + 1
            if target != -100:
                loss = loss - (head @ state).log_softmax(0)[target]
        losses.append(loss / (targets != -100).sum())
    return losses


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(DEPTHS), st.integers(4, 9), st.integers(0, 10**6))
def test_equals_the_equations(depths, tokens, seed):
    model = tiny_model(
        seed, num_nextn_predict_layers=depths, num_hidden_layers=2, rope_scaling=YARN
    ).double()
    row = random_tokens(model.config, 1, tokens + 1, seed)
    targets = row[:, 1:].clone()
    targets[0, seed % tokens] = -100
    got = model(row[:, :-1], shift_labels=targets, mtp_loss_weight=0.3)
    expected = torch.stack(slow_mtp_losses(model, row[0, :-1], targets[0]))
    torch.testing.assert_close(torch.stack(got.mtp_losses), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.loss, got.main_loss + 0.3 * expected.mean())


def test_a_batch_is_the_mean_of_its_rows():
    model = tiny_model(num_nextn_predict_layers=2).double()
    rows = random_tokens(model.config, 3, 9)
    batch = model(rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=1.0).mtp_losses
    alone = [model(r[None, :-1], shift_labels=r[None, 1:], mtp_loss_weight=1.0) for r in rows]
    for depth in range(2):
        mean = torch.stack([output.mtp_losses[depth] for output in alone]).mean()
        torch.testing.assert_close(batch[depth], mean)


def test_labels_and_shifted_labels_agree():
    """labels are shifted inside; the last position then has no target, for module k the last k."""
    model = tiny_model(num_nextn_predict_layers=2).double()
    input_ids = random_tokens(model.config, 2, 8)
    shifted = torch.cat((input_ids[:, 1:], torch.full((2, 1), -100)), dim=1)
    weights = {"mtp_loss_weight": 0.5, "balance_loss_weight": 0.1}
    got = model(input_ids, labels=input_ids, **weights)
    expected = model(input_ids, shift_labels=shifted, **weights)
    assert torch.equal(got.loss, expected.loss)


@pytest.mark.parametrize("depths", DEPTHS)
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_reach_everything(depths, tied):
    """Each module's own parameters and, through the modules alone, all of the main model."""
    model = tiny_model(num_nextn_predict_layers=depths, tie_word_embeddings=tied)
    rows = random_tokens(model.config, 4, 20)
    output = model(rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=1.0)
    sum(output.mtp_losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_modules_do_not_change_the_main_model():
    model = tiny_model(num_nextn_predict_layers=2)
    rows = random_tokens(model.config, 2, 9)
    without = model(rows[:, :-1], shift_labels=rows[:, 1:])
    with_modules = model(rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3)
    assert torch.equal(without.logits, with_modules.logits)
    assert torch.equal(without.main_loss, with_modules.main_loss)
    assert without.mtp_losses == ()
    assert torch.equal(without.loss, without.main_loss)


def test_expert_counts_have_a_row_per_gate_that_ran():
    model = tiny_model(num_nextn_predict_layers=2)  # 3 layers, the first dense
    rows = random_tokens(model.config, 2, 9)
    assert len(model.gates()) == 4
    assert model(rows[:, :-1]).expert_counts.shape == (2, 8)
    counts = model(rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3).expert_counts
    # Each token chooses 3 experts; module k sees k tokens a row fewer.
    assert counts.sum(1).tolist() == [2 * 8 * 3, 2 * 8 * 3, 2 * 7 * 3, 2 * 6 * 3]
    assert counts.dtype == torch.int64


def test_dense_modules():
    """An MTP module has experts as its layer index says, like any layer."""
    model = tiny_model(num_nextn_predict_layers=1, first_k_dense_replace=9)
    rows = random_tokens(model.config, 2, 9)
    output = model(
        rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3, balance_loss_weight=0.1
    )
    assert len(output.mtp_losses) == 1
    assert output.balance_loss is None
    assert output.expert_counts is None


def test_concatenation_is_embedding_first():
    """The released eh_proj reads [embedding; hidden]: its left half is what reads tokens."""
    layer = MTPLayer(tiny_config(num_nextn_predict_layers=1), 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
        layer.eh_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
        layer.eh_proj.weight[:, :32] = 0
    generator = torch.Generator().manual_seed(1)
    first, second, hidden, other = torch.randn(4, 1, 2, 32, generator=generator)
    assert torch.equal(layer.combine(first, hidden), layer.combine(second, hidden))
    assert not torch.equal(layer.combine(first, hidden), layer.combine(first, other))


def test_input_errors():
    model = tiny_model(num_nextn_predict_layers=2)
    row = random_tokens(model.config, 1, 2)
    with pytest.raises(InputError, match="needs more than 2 tokens a row, not 2"):
        model(row, shift_labels=row, mtp_loss_weight=0.3)
    row = random_tokens(model.config, 1, 6)
    with pytest.raises(InputError, match="need labels or shift_labels"):
        model(row, mtp_loss_weight=0.3)
    with pytest.raises(InputError, match="attention_mask must be None"):
        model(row, labels=row, attention_mask=torch.ones_like(row), mtp_loss_weight=0.3)
