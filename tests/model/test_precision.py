"""Precision policies: what is BF16, what stays FP32, and that the stored weights never change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model.layers import Linear, RMSNorm
from abyssal.model.moe import Gate
from abyssal.model.precision import PRECISIONS, get_precision
from tests.model.model_cases import random_tokens, relative_error, tiny_model

FIELDS = {"num_nextn_predict_layers": 1, "attention_bias": True}


def train_step(model, seed=0):
    rows = random_tokens(model.config, 3, 13, seed)
    output = model(
        rows[:, :-1], shift_labels=rows[:, 1:], mtp_loss_weight=0.3, balance_loss_weight=1e-3
    )
    output.loss.backward()
    return output


def outputs_of(model, kind):
    """The dtypes that modules of a kind put out during one step, by module name."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, kind):

            def record(module, inputs, output, name=name):
                seen[name] = (inputs[0], output)

            handles.append(module.register_forward_hook(record))
    train_step(model)
    for handle in handles:
        handle.remove()
    assert seen
    return seen


def test_bf16_is_close_to_float32_but_not_equal():
    model = tiny_model(**FIELDS)
    exact = train_step(model)
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_precision("bf16")
    rounded = train_step(model)
    difference = rounded.logits.float() - exact.logits
    assert 1e-4 < difference.norm() / exact.logits.norm() < 0.03
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.01, atol=0)
    got = {name: p.grad for name, p in model.named_parameters()}
    flat = [torch.cat([g.flatten() for g in grads.values()]) for grads in (got, expected)]
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=0)
    assert 0.99 < cosine < 1.0 - 1e-7


def test_master_weights_and_gradients_stay_fp32():
    model = tiny_model(**FIELDS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_precision("bf16")
    output = train_step(model)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    for loss in (output.loss, output.main_loss, *output.mtp_losses, output.balance_loss):
        assert loss.dtype == torch.float32


def test_products_are_bf16_and_the_residual_stream_fp32():
    model = tiny_model(**FIELDS)
    model.set_precision("bf16")
    for name, (_, output) in outputs_of(model, Linear).items():
        assert output.dtype == torch.bfloat16, name
    for name, (hidden, output) in outputs_of(model, RMSNorm).items():
        latent = name.endswith(("q_a_layernorm", "kv_a_layernorm"))
        expected = torch.bfloat16 if latent else torch.float32
        assert hidden.dtype == output.dtype == expected, name


def test_router_is_fp32():
    """The gate's choice and weights are those of FP32 on the very input it got."""
    model = tiny_model(**FIELDS)
    model.set_precision("bf16")
    for name, (hidden, routing) in outputs_of(model, Gate).items():
        gate = model.get_submodule(name)
        scores = (hidden.float().flatten(0, 1) @ gate.weight.T).sigmoid()
        chosen = scores.gather(1, routing.topk_idx)
        expected = chosen / chosen.sum(-1, keepdim=True) * gate.config.routed_scaling_factor
        assert routing.topk_weight.dtype == torch.float32
        torch.testing.assert_close(routing.topk_weight, expected, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_norm_rounds_once(seed, weight_dtype):
    """BF16 in, BF16 out: with an FP32 weight within half a last place of the exact value."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(5, 24, generator=generator) * 10 ** (seed % 5 - 2)).bfloat16()
    norm = RMSNorm(24, 1e-6)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(24, generator=generator))
    norm.to(weight_dtype)
    got = norm(x)
    assert got.dtype == torch.bfloat16
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    half_last_place = 2.0**-8
    roundings = 1 if weight_dtype == torch.float32 else 2
    bound = exact.abs() * half_last_place * roundings * 1.01
    assert ((got.double() - exact).abs() <= bound).all()


def test_float64_stays_float64():
    model = tiny_model(**FIELDS).double()
    output = train_step(model)
    assert output.logits.dtype == output.loss.dtype == torch.float64
    assert (
        relative_error(
            tiny_model(**FIELDS)(random_tokens(model.config, 3, 12)).logits,
            model(random_tokens(model.config, 3, 12)).logits.float(),
        )
        < 1e-5
    )


def test_stored_is_the_default_and_follows_the_parameters():
    model = tiny_model()
    input_ids = random_tokens(model.config, 2, 9)
    default = model(input_ids).logits
    model.set_precision("bf16")
    assert model(input_ids).logits.dtype == torch.bfloat16
    model.set_precision("stored")
    assert torch.equal(model(input_ids).logits, default)
    model.bfloat16()
    assert model(input_ids).logits.dtype == torch.bfloat16
    model.set_precision("float32")
    widened = model(input_ids).logits
    assert widened.dtype == torch.float32
    assert relative_error(widened, tiny_model().bfloat16().float()(input_ids).logits) < 0.02


def test_stored_bf16_is_as_close_to_float32_as_transformers_bf16():
    transformers = pytest.importorskip("transformers")
    model = tiny_model(first_k_dense_replace=3)  # no expert to be chosen differently
    config = model.config.to_dict()
    theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**config)).eval()
    theirs.load_state_dict(model.state_dict())
    input_ids = random_tokens(model.config, 4, 16)
    with torch.no_grad():
        exact = model(input_ids).logits
        ours = (model.bfloat16()(input_ids).logits.float() - exact).norm()
        their = (theirs.bfloat16()(input_ids).logits.float() - exact).norm()
    assert 0 < ours <= 1.5 * their


def test_bf16_decode_follows_bf16_prefill():
    model = tiny_model(first_k_dense_replace=3)  # no expert to be chosen differently
    model.set_precision("bf16")
    input_ids = random_tokens(model.config, 2, 12)
    with torch.no_grad():
        full = model(input_ids).logits.float()
        cache = model.new_cache(2, 12)
        steps = [model(input_ids[:, t : t + 1], cache=cache).logits.float() for t in range(12)]
    assert relative_error(torch.cat(steps, dim=1), full) < 0.03


def test_unknown_name():
    assert set(PRECISIONS) == {"stored", "float32", "bf16"}
    with pytest.raises(InputError, match="precision must be one of stored, float32, bf16; not 'f'"):
        get_precision("f")
    model = tiny_model()
    with pytest.raises(InputError, match="not 'fp4'"):
        model.set_precision("fp4")
    assert model.lm_head.precision.name == "stored"


@pytest.mark.parametrize("precision", ["bf16", "stored"])
def test_softmax_is_float32_in_prefill_and_decode(precision, monkeypatch):
    model = tiny_model(num_nextn_predict_layers=0)
    model.set_precision(precision)
    if precision == "stored":
        model = model.bfloat16()
    seen = []
    softmax = torch.Tensor.softmax

    def record(scores, *args, **named):
        weights = softmax(scores, *args, **named)
        seen.append(weights.dtype)
        return weights

    monkeypatch.setattr(torch.Tensor, "softmax", record)
    tokens = random_tokens(model.config, 2, 6, 0)
    cache = model.new_cache(2, 6)
    with torch.no_grad():
        model(tokens[:, :5], cache=cache)
        model(tokens[:, 5:], cache=cache)
    assert len(seen) >= model.config.num_hidden_layers  # decode; prefill may be fused
    assert set(seen) == {torch.float32}
