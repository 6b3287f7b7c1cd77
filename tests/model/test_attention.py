"""Latent attention: both forms against the equations written out, and against each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.model.attention import MultiHeadLatentAttention
from abyssal.model.cache import LatentCache
from abyssal.model.rope import cos_sin_factor, inverse_frequencies, rotation, softmax_scale
from tests.model.model_cases import YARN, random_config, randomize, tiny_config

F64 = torch.float64


def make_attention(config, seed=0):
    attention = MultiHeadLatentAttention(config, 0).double()
    randomize(attention, seed)
    return attention


def angles(config, start, end):
    positions = torch.arange(start, end)[None]
    return rotation(positions, inverse_frequencies(config), cos_sin_factor(config))


def random_hidden(config, batch, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, config.hidden_size, dtype=F64, generator=generator)


def norm(x, weight):
    return x / (x.square().mean() + 1e-6).sqrt() * weight


def turn(x, position, config):
    """RoPE of one vector at one position, pair by pair."""
    half = len(x) // 2
    frequencies = inverse_frequencies(config)
    result = x.new_empty(len(x))
    for i in range(half):
        pair = (x[2 * i], x[2 * i + 1]) if config.rope_interleave else (x[i], x[i + half])
        # The angle and its functions are FP32, as in the model.
        angle = torch.tensor(float(position)) * frequencies[i]
        cos, sin = angle.cos() * cos_sin_factor(config), angle.sin() * cos_sin_factor(config)
        result[i] = pair[0] * cos - pair[1] * sin
        result[i + half] = pair[1] * cos + pair[0] * sin
    return result


def slow_attention(attention, hidden):
    """Equations 1 to 11 for one sequence [T, H], position by position, head by head."""
    config, p = attention.config, dict(attention.named_parameters())
    nope, rope, wide = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    queries, keys, values = [], [], []
    for t, h in enumerate(hidden):
        if config.q_lora_rank is None:
            query = p["q_proj.weight"] @ h
        else:
            compressed = p["q_a_proj.weight"] @ h + p.get("q_a_proj.bias", 0)
            query = p["q_b_proj.weight"] @ norm(compressed, p["q_a_layernorm.weight"])
        compressed = p["kv_a_proj_with_mqa.weight"] @ h + p.get("kv_a_proj_with_mqa.bias", 0)
        latent, key_rope = compressed.split([config.kv_lora_rank, rope])
        latent = norm(latent, p["kv_a_layernorm.weight"])
        key_rope = turn(key_rope, t, config)
        expanded = (p["kv_b_proj.weight"] @ latent).split(nope + wide)
        queries.append(
            [torch.cat((q[:nope], turn(q[nope:], t, config))) for q in query.split(nope + rope)]
        )
        keys.append([torch.cat((head[:nope], key_rope)) for head in expanded])
        values.append([head[nope:] for head in expanded])
    rows = []
    for t in range(len(hidden)):
        heads = []
        for i in range(config.num_attention_heads):
            scores = torch.stack([queries[t][i] @ keys[s][i] for s in range(t + 1)])
            weights = (scores * softmax_scale(config)).softmax(0)
            heads.append(sum(weights[s] * values[s][i] for s in range(t + 1)))
        rows.append(p["o_proj.weight"] @ torch.cat(heads) + p.get("o_proj.bias", 0))
    return torch.stack(rows)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_equals_the_equations(seed, tokens):
    config = random_config(seed)
    attention = make_attention(config, seed)
    hidden = random_hidden(config, 1, tokens, seed)
    got = attention(hidden, angles(config, 0, tokens))[0]
    torch.testing.assert_close(got, slow_attention(attention, hidden[0]), rtol=1e-9, atol=1e-11)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=4)
)
def test_absorbed_equals_expanded(seed, batch, chunks):
    """In float64, whatever the chunks in which the cache is filled."""
    config = random_config(seed)
    attention = make_attention(config, seed)
    tokens = sum(chunks)
    hidden = random_hidden(config, batch, tokens, seed)
    expected = attention(hidden, angles(config, 0, tokens))
    cache = LatentCache(config, batch, tokens, dtype=F64)
    got = []
    for size in chunks:
        start, end = cache.length, cache.length + size
        causal = torch.arange(end)[None, :] <= torch.arange(start, end)[:, None]
        with torch.no_grad():
            rotated = angles(config, start, end)
            got.append(attention(hidden[:, start:end], rotated, causal[None, None], cache))
        cache.advance(size)
    torch.testing.assert_close(torch.cat(got, dim=1), expected, rtol=1e-9, atol=1e-11)


def test_both_forms_on_the_same_entries():
    """Not through the cache: the two private methods on equal input, gradients included."""
    config = tiny_config(rope_scaling=YARN)
    attention = make_attention(config)
    hidden = random_hidden(config, 2, 6)
    rotated = angles(config, 0, 6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    weight = random_hidden(tiny_config(hidden_size=16), 2, 6, seed=1)

    def gradients(form):
        attention.zero_grad()
        query, (latent, key) = attention._query(hidden, rotated), attention._latent(hidden, rotated)
        if form == "absorbed":
            output = attention._attend_absorbed(query, torch.cat((latent, key), dim=-1), mask)
        else:
            output = attention._attend_expanded(query, latent, key, mask)
        (output.flatten(2) * weight).sum().backward()
        used = [p.grad.clone() for p in attention.parameters() if p.grad is not None]
        return [output.detach(), *used]

    for absorbed, expanded in zip(gradients("absorbed"), gradients("expanded"), strict=True):
        torch.testing.assert_close(absorbed, expanded, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("value_width", [3, 10, 17])
def test_value_width_is_free(value_width):
    """Narrower than, equal to and wider than queries and keys (here 10)."""
    config = tiny_config(v_head_dim=value_width)
    attention = make_attention(config)
    hidden = random_hidden(config, 1, 5)
    got = attention(hidden, angles(config, 0, 5))[0]
    torch.testing.assert_close(got, slow_attention(attention, hidden[0]), rtol=1e-9, atol=1e-11)


def test_is_causal():
    config = tiny_config()
    attention = make_attention(config)
    hidden = random_hidden(config, 1, 8)
    before = attention(hidden, angles(config, 0, 8))
    changed = hidden.clone()
    changed[:, 5] += 1.0
    after = attention(changed, angles(config, 0, 8))
    assert torch.equal(after[:, :5], before[:, :5])
    assert (after[:, 5:] != before[:, 5:]).any(-1).all()


def test_cache_holds_the_normed_latent_and_the_rotated_key():
    config = tiny_config()
    attention = make_attention(config)
    hidden = random_hidden(config, 1, 4)
    cache = LatentCache(config, 1, 4, dtype=F64)
    with torch.no_grad():
        attention(hidden, angles(config, 0, 4), None, cache)
    projected = hidden[0] @ attention.kv_a_proj_with_mqa.weight.T
    for t in range(4):
        latent = norm(projected[t, :10], attention.kv_a_layernorm.weight)
        expected = torch.cat((latent, turn(projected[t, 10:], t, config)))
        torch.testing.assert_close(cache.data[0, 0, t], expected)


def test_parameters_with_and_without_compressed_query():
    names = {name for name, _ in MultiHeadLatentAttention(tiny_config(), 0).named_parameters()}
    assert names == {
        "q_a_proj.weight",
        "q_a_layernorm.weight",
        "q_b_proj.weight",
        "kv_a_proj_with_mqa.weight",
        "kv_a_layernorm.weight",
        "kv_b_proj.weight",
        "o_proj.weight",
    }
    plain = MultiHeadLatentAttention(tiny_config(q_lora_rank=None, attention_bias=True), 0)
    assert {name for name, _ in plain.named_parameters()} - names == {
        "q_proj.weight",
        "kv_a_proj_with_mqa.bias",
        "o_proj.bias",
    }
