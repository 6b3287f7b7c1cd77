"""The latent cache: its size, its limits, and any way of filling it gives the same logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model.cache import LatentCache
from abyssal.model.config import DeepseekV3Config
from tests.model.model_cases import (
    YARN,
    left_padding,
    random_tokens,
    relative_error,
    tiny_config,
    tiny_model,
)

CHUNKS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def test_released_model_takes_70272_bytes_a_token():
    cache = LatentCache(DeepseekV3Config(), 1, 1, dtype=torch.bfloat16, device="meta")
    assert cache.nbytes == 70272


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_holds_latent_and_rope_values_and_nothing_else(batch, length, dtype):
    config = tiny_config(num_nextn_predict_layers=1)
    cache = tiny_model(num_nextn_predict_layers=1).to(dtype).new_cache(batch, length)
    values = config.kv_lora_rank + config.qk_rope_head_dim
    assert cache.nbytes == config.num_hidden_layers * batch * length * values * dtype.itemsize
    assert (cache.batch_size, cache.max_length, cache.length) == (batch, length, 0)
    tensors = [value for value in vars(cache).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) == cache.nbytes


@settings(deadline=None, max_examples=25)
@given(CHUNKS, st.integers(1, 3), st.booleans(), st.integers(0, 1000))
def test_any_chunks_give_the_logits_of_a_full_pass(chunks, batch, padded, seed):
    """Left padding included; what the cache has not been filled with is poison."""
    model = tiny_model(rope_scaling=YARN)
    tokens = sum(chunks)
    input_ids = random_tokens(model.config, batch, tokens, seed)
    padded = padded and tokens >= 2 * batch
    mask = left_padding(batch, tokens, seed) if padded else None
    with torch.no_grad():
        expected = model(input_ids, attention_mask=mask).logits
    cache = model.new_cache(batch, tokens + 2)
    cache.data.fill_(float("nan"))
    got = []
    for size in chunks:
        start, end = cache.length, cache.length + size
        seen = None if mask is None else mask[:, :end]
        got.append(model(input_ids[:, start:end], attention_mask=seen, cache=cache).logits)
    got = torch.cat(got, dim=1)
    if mask is not None:
        got, expected = got[mask.bool()], expected[mask.bool()]
    assert relative_error(got, expected) <= 1e-5
    assert cache.length == tokens
    assert cache.data[:, :, tokens:].isnan().all()


def test_padding_does_not_change_a_row():
    """A row alone and the same row beside a longer one: the same logits."""
    model = tiny_model(rope_scaling=YARN)
    mask = left_padding(3, 10, seed=4)
    input_ids = random_tokens(model.config, 3, 10)
    with torch.no_grad():
        together = model(input_ids, attention_mask=mask).logits
        other_padding = torch.where(mask.bool(), input_ids, 5)
        changed = model(other_padding, attention_mask=mask).logits
        assert relative_error(changed[mask.bool()], together[mask.bool()]) <= 1e-6
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = model(input_ids[row : row + 1, -length:]).logits[0]
            assert relative_error(together[row, -length:], alone) <= 1e-5


def test_logits_to_keep():
    model = tiny_model()
    input_ids = random_tokens(model.config, 2, 7)
    everything = model(input_ids).logits
    cache = model.new_cache(2, 8)
    last = model(input_ids, cache=cache, logits_to_keep=1).logits
    torch.testing.assert_close(last, everything[:, -1:])
    torch.testing.assert_close(model(input_ids, logits_to_keep=3).logits, everything[:, -3:])


def test_keeps_no_graph():
    """A cached pass is without gradients, also where the caller forgot to say so."""
    model = tiny_model()
    cache = model.new_cache(1, 8)
    for _ in range(2):
        output = model(random_tokens(model.config, 1, 3), cache=cache)
        assert not output.logits.requires_grad
    assert not cache.data.requires_grad
    assert torch.is_grad_enabled()


def test_overflow_is_an_error_and_leaves_the_cache_as_it_was():
    model = tiny_model()
    cache = model.new_cache(2, 5)
    cache.data.zero_()
    model(random_tokens(model.config, 2, 3), cache=cache)
    before = cache.data.clone()
    with pytest.raises(InputError, match="2 rows of 5 tokens; 2 rows reaching token 6 do not fit"):
        model(random_tokens(model.config, 2, 3), cache=cache)
    with pytest.raises(InputError, match="2 rows of 5 tokens; 1 rows reaching token 4 do not fit"):
        model(random_tokens(model.config, 1, 1), cache=cache)
    assert cache.length == 3
    assert torch.equal(cache.data, before)
    model(random_tokens(model.config, 2, 2), cache=cache)
    assert cache.length == 5


def test_another_precision_needs_another_cache():
    model = tiny_model()
    cache = model.new_cache(1, 8)
    assert cache.data.dtype == torch.float32
    model.set_precision("bf16")
    message = r"the cache holds torch\.float32 and the model computes torch\.bfloat16"
    with pytest.raises(InputError, match=message):
        model(random_tokens(model.config, 1, 3), cache=cache)
    cache = model.new_cache(1, 8)
    assert cache.data.dtype == torch.bfloat16
    model(random_tokens(model.config, 1, 3), cache=cache)


def test_input_errors():
    model = tiny_model()
    with pytest.raises(InputError, match="at least 1, not 0 and 4"):
        model.new_cache(0, 4)
    with pytest.raises(InputError, match="at least 1, not 2 and 0"):
        model.new_cache(2, 0)
    input_ids = random_tokens(model.config, 2, 3)
    with pytest.raises(InputError, match="labels need all logits and no cache"):
        model(input_ids, labels=input_ids, cache=model.new_cache(2, 4))
    cache = model.new_cache(2, 8)
    model(input_ids, cache=cache)
    with pytest.raises(InputError, match=r"must have shape \[2, 6\] .* not \[2, 3\]"):
        model(input_ids, attention_mask=torch.ones(2, 3, dtype=torch.int64), cache=cache)
