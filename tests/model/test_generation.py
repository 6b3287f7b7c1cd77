"""Generation against transformers' `generate` and against full forward passes without a cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model.cache import LatentCache
from abyssal.model.config import DeepseekV3Config
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM

TINY = DeepseekV3Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_nextn_predict_layers=0,
    num_attention_heads=2,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    first_k_dense_replace=1,
    max_position_embeddings=512,
    # Wide enough that the next token depends on the text: a narrow model repeats itself.
    initializer_range=0.3,
    bos_token_id=None,
    eos_token_id=None,
)
YARN = {
    "type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
VARIANTS = {
    "compressed query": {},
    "full query, YaRN": {"q_lora_rank": None, "rope_scaling": YARN},
    "YaRN, MTP, tied": {
        "rope_scaling": YARN,
        "num_nextn_predict_layers": 1,
        "tie_word_embeddings": True,
    },
    "halves, biases": {"rope_interleave": False, "attention_bias": True, "norm_topk_prob": False},
}


def make_model(seed: int = 0, **changes) -> DeepseekV3ForCausalLM:
    model = DeepseekV3ForCausalLM(TINY.replace(**changes))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def prompts(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def transformers_twin(model: DeepseekV3ForCausalLM) -> torch.nn.Module:
    """The same weights in transformers' model, which has no MTP modules."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DeepseekV3Config(**model.config.to_dict())
    twin = transformers.DeepseekV3ForCausalLM(config).eval()
    mtp = tuple(
        f"model.layers.{layer}."
        for layer in range(model.config.num_hidden_layers, model.config.num_layers_with_mtp)
    )
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if not (mtp and name.startswith(mtp))
    }
    twin.load_state_dict(weights, strict=True)
    return twin


@pytest.fixture(scope="module")
def model() -> DeepseekV3ForCausalLM:
    return make_model()


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_equals_transformers_for_300_tokens(name):
    model = make_model(seed=len(name), **VARIANTS[name])
    input_ids = prompts(1, 2, 9)
    ours = model.generate(input_ids, max_new_tokens=300)
    theirs = transformers_twin(model).generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=300,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert ours.shape == (2, 309) and ours.dtype == torch.int64
    # A model that repeats a few tokens would prove little.
    assert ours.unique().numel() > 15
    assert torch.equal(ours, theirs)


def test_unequal_prompts_equal_transformers_and_each_alone(model):
    lengths = [11, 1, 6]
    alone = [prompts(20 + length, 1, length) for length in lengths]
    batch = torch.zeros(3, 11, dtype=torch.int64)
    mask = torch.zeros(3, 11, dtype=torch.bool)
    for row, ids in enumerate(alone):
        batch[row, 11 - ids.shape[1] :] = ids
        mask[row, 11 - ids.shape[1] :] = True
    ours = model.generate(batch, attention_mask=mask, max_new_tokens=120)
    theirs = transformers_twin(model).generate(
        batch,
        attention_mask=mask.long(),
        max_new_tokens=120,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(ours, theirs)
    for row, ids in enumerate(alone):
        single = model.generate(ids, max_new_tokens=120)
        assert torch.equal(single[0, ids.shape[1] :], ours[row, 11:])


def test_padding_content_does_not_matter(model):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    first = prompts(4, 2, 5)
    second = first.clone()
    second[0, :2] = (first[0, :2] + 17) % TINY.vocab_size
    outputs = [
        model.generate(ids, attention_mask=mask.to(kind), max_new_tokens=40)[:, 5:]
        for ids in (first, second)
        for kind in (torch.int64, torch.int32, torch.uint8, torch.bool)
    ]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 2**31))
def test_greedy_equals_forward_passes_without_a_cache(prompt, batch, seed):
    model = make_model(seed % 5, q_lora_rank=None if seed % 2 else 24)
    ids = prompts(seed, batch, prompt)
    ours = model.generate(ids, max_new_tokens=12)
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat((ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(ours, ids)


def test_sampling_draws_from_the_same_streams_alone_and_in_a_batch(model):
    ids = prompts(5, 3, 6)
    options = {"max_new_tokens": 30, "temperature": 1.0, "top_p": 0.9}
    together = model.generate(ids, seed=40, **options)
    assert torch.equal(model.generate(ids, seed=40, **options), together)
    assert not torch.equal(model.generate(ids, seed=43, **options), together)
    for row in range(3):
        alone = model.generate(ids[row : row + 1], seed=40 + row, **options)
        assert torch.equal(alone[0], together[row])


def test_stream_yields_the_tokens_of_generate(model):
    ids = prompts(6, 2, 4)
    expected = model.generate(ids, max_new_tokens=25, temperature=0.8, top_k=20, seed=1)
    produced = []
    for tokens in model.stream(ids, max_new_tokens=25, temperature=0.8, top_k=20, seed=1):
        assert tokens.shape == (2,) and tokens.dtype == torch.int64
        produced.append(tokens.clone())
        tokens.fill_(-1)  # What a caller does to its tokens must not reach the model.
    assert torch.equal(torch.stack(produced, dim=1), expected[:, 4:])


def test_rows_end_at_eos_and_are_padded(model):
    ids = prompts(7, 3, 5)
    free = model.generate(ids, max_new_tokens=60)[:, 5:]
    # Ends that the rows meet at different steps, from what they say when nothing ends them.
    ends = sorted({int(free[0, 3]), int(free[1, 20])})

    def first_end(row: torch.Tensor) -> int:
        hits = torch.isin(row, torch.tensor(ends)).nonzero()
        return int(hits[0]) if hits.numel() else 59

    lengths = [first_end(row) + 1 for row in free]
    assert len(set(lengths)) > 1 and max(lengths) > min(lengths)
    # With a padding token, and without one, where the first end takes its place.
    for options, filler in (({"pad_token_id": 60}, 60), ({}, ends[0])):
        output = model.generate(ids, max_new_tokens=60, eos_token_id=ends, **options)[:, 5:]
        assert output.shape[1] == max(lengths)
        for row, length in enumerate(lengths):
            assert torch.equal(output[row, :length], free[row, :length])
            assert (output[row, length:] == filler).all()


def test_ends_and_padding_of_the_configuration():
    plain = make_model()
    ids = prompts(7, 2, 5)
    free = plain.generate(ids, max_new_tokens=30)
    end = int(free[0, 9])
    model = make_model(eos_token_id=[end], pad_token_id=3)
    assert torch.equal(model.generate(ids, max_new_tokens=30, eos_token_id=None), free)
    by_config = model.generate(ids, max_new_tokens=30)
    assert torch.equal(
        by_config, plain.generate(ids, max_new_tokens=30, eos_token_id=end, pad_token_id=3)
    )
    assert by_config.shape[1] < free.shape[1] or (by_config == 3).any()
    # -1 is how some published configurations write "no padding token".
    without = make_model(eos_token_id=end, pad_token_id=-1).generate(ids, max_new_tokens=30)
    assert (without >= 0).all()


def test_only_latents_are_cached(monkeypatch):
    model = make_model(num_nextn_predict_layers=1)
    caches: list[LatentCache] = []
    new_cache = model.new_cache

    def recording(batch_size: int, max_length: int) -> LatentCache:
        caches.append(new_cache(batch_size, max_length))
        return caches[-1]

    monkeypatch.setattr(model, "new_cache", recording)
    model.generate(prompts(8, 2, 5), max_new_tokens=7)
    (cache,) = caches
    config = model.config
    values = config.kv_lora_rank + config.qk_rope_head_dim
    # 5 prompt tokens and 6 of the 7 new ones: the last is never read.
    assert cache.length == cache.max_length == 11
    assert cache.nbytes == 2 * 11 * config.num_hidden_layers * values * 4


def test_each_step_feeds_one_token(monkeypatch):
    """No recomputation of the past: the prompt once, then one token at a time."""
    model = make_model()
    fed = []
    hook = model.model.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    model.generate(prompts(9, 1, 6), max_new_tokens=5)
    hook.remove()
    assert fed == [6, 1, 1, 1, 1]


def test_the_training_mode_and_gradients_are_left_as_they_were(model):
    model.train()
    model.lm_head.eval()
    before = [module.training for module in model.modules()]
    steps = model.stream(prompts(10, 1, 3), max_new_tokens=3)
    next(steps)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(InputError):
        model.generate(prompts(10, 1, 3), max_new_tokens=0)
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())
    assert not model.generate(prompts(10, 1, 3), max_new_tokens=2).requires_grad
    model.eval()


def test_bf16_generates_from_a_bf16_cache():
    model = make_model().bfloat16()
    output = model.generate(prompts(11, 2, 4), max_new_tokens=20)
    assert output.shape == (2, 24)
    assert model.new_cache(1, 1).data.dtype == torch.bfloat16


def test_damaged_weights_raise():
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="logits of row 0 are not finite"):
        model.generate(prompts(12, 1, 4), max_new_tokens=2)


ONE = torch.ones(2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "the prompt is empty"),
        ({"input_ids": torch.zeros(4, dtype=torch.int64)}, r"shape \[batch, tokens\], not \[4\]"),
        ({"input_ids": torch.zeros(2, 4)}, "input_ids must be an int64 tensor .*float32"),
        ({"input_ids": ONE * 61}, r"input_ids\[0, 0\] is 61, outside the vocabulary of 61"),
        ({"input_ids": -ONE}, r"input_ids\[0, 0\] is -1, outside"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer"),
        ({"max_new_tokens": 509}, "length 4 plus max_new_tokens=509 exceeds .*=512"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p must be in"),
        ({"top_k": -3}, "top_k must be at least 1"),
        ({"suppress_tokens": [3, 61]}, "suppress_tokens 61 is outside the vocabulary"),
        ({"eos_token_id": 61}, "eos_token_id 61 is outside the vocabulary"),
        ({"eos_token_id": [3, -1]}, "eos_token_id -1 is outside"),
        ({"pad_token_id": 99}, "pad_token_id 99 is outside"),
        ({"attention_mask": ONE[:, 1:]}, r"shape of input_ids \[2, 4\], not \[2, 3\]"),
        ({"attention_mask": ONE * 2}, "must hold bool or integer 0 .* and 1"),
        ({"attention_mask": ONE.float()}, "must hold bool or integer"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}, "pads row 1 on the right"),
        ({"attention_mask": torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]])}, "a hole in row 0"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])}, "row 1 is empty"),
    ],
)
def test_wrong_input_is_named_before_anything_runs(model, change, message, monkeypatch):
    monkeypatch.setattr(model, "new_cache", lambda *_: pytest.fail("the model was used"))
    arguments = {"input_ids": ONE, "max_new_tokens": 3, **change}
    with pytest.raises(InputError, match=message):
        model.generate(**arguments)
    with pytest.raises(InputError, match=message):
        model.stream(**arguments)


def test_padding_does_not_count_as_length(model):
    """512 positions: 4 padded columns and 2 tokens leave room for 510 new ones."""
    mask = torch.tensor([[0, 0, 1, 1]])
    steps = model.stream(ONE[:1], attention_mask=mask, max_new_tokens=510)
    assert next(steps).shape == (1,)
    with pytest.raises(InputError, match="length 2 plus max_new_tokens=511 exceeds"):
        model.stream(ONE[:1], attention_mask=mask, max_new_tokens=511)
