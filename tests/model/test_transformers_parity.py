"""The model against transformers' DeepseekV3ForCausalLM: logits, loss, all gradients, decoding.

Bounds (float32). Logits: 1e-5 of the largest logit. Gradients: 1e-4 of the largest entry of the
tensor's gradient, or of 1e-3 of the largest entry of all gradients where that is more: a gate whose
weights are normalised to one expert has no gradient but rounding.
"""

import dataclasses
import functools
import math
import typing

import pytest
import torch

from tests.model.model_cases import (
    YARN,
    left_padding,
    random_config,
    random_tokens,
    randomize,
    relative_error,
    tiny_config,
)

transformers = pytest.importorskip("transformers")

from transformers.activations import ACT2CLS  # noqa: E402
from transformers.modeling_layers import MtpModel  # noqa: E402
from transformers.modeling_rope_utils import RopeParameters  # noqa: E402

from abyssal.errors import InputError  # noqa: E402
from abyssal.model.activations import ACTIVATIONS  # noqa: E402
from abyssal.model.config import DeepseekV3Config  # noqa: E402
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM  # noqa: E402

transformers.logging.set_verbosity_error()
# Where a configuration has no shared experts, theirs are empty tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")

SEEDS = range(42)
MORE_SEEDS = [pytest.param(seed, marks=pytest.mark.nightly) for seed in range(42, 400)]
BATCH, TOKENS = 3, 18
LOGIT_BOUND, GRADIENT_BOUND, GRADIENT_FLOOR = 1e-5, 1e-4, 1e-3
# A wrong field must show at least this much, far above the bound.
VISIBLE = 1e-3


def their_config(config, **changes):
    values = config.to_dict() | changes
    their = transformers.DeepseekV3Config(**values)
    # The plain loop over the experts: the grouped product wants aligned sizes.
    their._experts_implementation = "eager"
    return their


def their_model(config, seed=0, **changes):
    model = transformers.DeepseekV3ForCausalLM(their_config(config, **changes)).eval()
    randomize(model, seed)
    return model


def our_model(config, theirs):
    """Our model with their weights, by name; without shared experts theirs are empty tensors."""
    model = DeepseekV3ForCausalLM(config)
    weights = {name: value for name, value in theirs.state_dict().items() if value.numel()}
    model.load_state_dict(weights)
    return model


@functools.cache
def case(seed):
    """(config, ours, theirs, input_ids, attention_mask or None) of one random configuration."""
    config = random_config(seed)
    theirs = their_model(config, seed)
    ours = our_model(config, theirs)
    mask = left_padding(BATCH, TOKENS, seed) if seed % 2 else None
    for attempt in range(20):
        input_ids = random_tokens(config, BATCH, TOKENS, seed + 100 * attempt)
        if config.pad_token_id is not None:
            input_ids[:, -2] = config.pad_token_id
            if mask is not None:
                input_ids[mask == 0] = config.pad_token_id
        if routing_margin(ours, input_ids, mask) > 1e-5:
            return config, ours, theirs, input_ids, mask
    raise AssertionError("no input without a near tie in the router")


@torch.no_grad()
def routing_margin(model, input_ids, mask):
    """The least distance of a chosen group or expert to the best that was not chosen.

    Below rounding, the two models may rightly choose differently (exact ties are excluded).
    """
    config, margins = model.config, [math.inf]

    def record(gate, inputs, output):
        hidden = inputs[0].double().flatten(0, 1)
        choice = (hidden @ gate.weight.double().T).sigmoid() + gate.e_score_correction_bias
        groups = choice.unflatten(-1, (config.n_group, -1))
        score = groups.topk(2, dim=-1).values.sum(-1).sort(dim=-1, descending=True)
        if config.topk_group < config.n_group:
            best, next_best = score.values[:, config.topk_group - 1 : config.topk_group + 1].T
            margins.append((best - next_best).min().item())
        kept = torch.zeros_like(score.values).scatter(1, score.indices[:, : config.topk_group], 1)
        allowed = groups.masked_fill(kept[:, :, None] == 0, -math.inf).flatten(1)
        ranked = allowed.sort(dim=-1, descending=True).values
        top_k = config.num_experts_per_tok
        if top_k < config.n_routed_experts:
            margins.append((ranked[:, top_k - 1] - ranked[:, top_k]).min().item())

    handles = [gate.register_forward_hook(record) for gate in model.gates()]
    model(input_ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    return min(margins)


def real(logits, mask):
    """The logits of real tokens; those of padding are nobody's business."""
    return logits if mask is None else logits[mask.bool()]


@pytest.mark.parametrize("seed", [*SEEDS, *MORE_SEEDS])
def test_logits_loss_and_gradients(seed):
    _, ours, theirs, input_ids, mask = case(seed)
    labels = input_ids.clone()
    labels[0, TOKENS // 2] = -100
    if mask is not None:
        # Neither padding nor the token behind it, which only padding could predict.
        labels[(mask.cumsum(-1) <= 1)] = -100
    got = ours(input_ids, labels=labels, attention_mask=mask)
    expected = theirs(input_ids, labels=labels, attention_mask=mask)
    assert relative_error(real(got.logits, mask), real(expected.logits, mask)) <= LOGIT_BOUND
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-6, atol=0)

    ours.zero_grad()
    theirs.zero_grad()
    got.loss.backward()
    expected.loss.backward()
    their_gradients = {
        name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.numel()
    }
    our_gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert our_gradients.keys() == their_gradients.keys()
    floor = GRADIENT_FLOOR * max(grad.abs().max() for grad in their_gradients.values())
    for name, expected_grad in their_gradients.items():
        error = (our_gradients[name] - expected_grad).abs().max()
        scale = max(expected_grad.abs().max(), floor)
        assert error <= GRADIENT_BOUND * scale, f"{name}: {error / scale:.1e}"


@pytest.mark.parametrize("seed", [*SEEDS, *MORE_SEEDS])
def test_cached_decoding(seed):
    """Prefill (expanded), single tokens and chunks (absorbed) give transformers' full logits."""
    _, ours, theirs, input_ids, mask = case(seed)
    with torch.no_grad():
        expected = theirs(input_ids, attention_mask=mask).logits
    cache = ours.new_cache(BATCH, TOKENS)
    prefill = (1, 2, TOKENS // 2)[seed % 3]
    got = []
    for size in (prefill, 1, 1, 3, TOKENS - prefill - 5):
        start = cache.length
        seen = None if mask is None else mask[:, : start + size]
        chunk = input_ids[:, start : start + size]
        got.append(ours(chunk, attention_mask=seen, cache=cache).logits)
    assert relative_error(real(torch.cat(got, dim=1), mask), real(expected, mask)) <= LOGIT_BOUND
    assert cache.length == TOKENS


def test_cached_decoding_against_their_cached_decoding():
    config = tiny_config(rope_scaling=YARN)
    theirs = their_model(config)
    ours = our_model(config, theirs)
    input_ids = random_tokens(config, 2, 12)
    cache, their_cache = ours.new_cache(2, 12), transformers.DynamicCache(config=theirs.config)
    with torch.no_grad():
        for start, end in ((0, 7), (7, 8), (8, 9), (9, 12)):
            chunk = input_ids[:, start:end]
            expected = theirs(chunk, past_key_values=their_cache, use_cache=True).logits
            got = ours(chunk, cache=cache).logits
            assert relative_error(got, expected) <= LOGIT_BOUND


def test_long_positions_with_yarn():
    """Where angles are large and the interpolation matters."""
    config = tiny_config(
        max_position_embeddings=4096,
        qk_rope_head_dim=16,
        rope_scaling=YARN | {"factor": 40.0, "original_max_position_embeddings": 32},
    )
    theirs = their_model(config)
    ours = our_model(config, theirs)
    input_ids = random_tokens(config, 1, 700)
    with torch.no_grad():
        expected = theirs(input_ids).logits
        assert relative_error(ours(input_ids).logits, expected) <= LOGIT_BOUND


@pytest.mark.parametrize("depths", [1, 3])
def test_mtp_modules(depths):
    """Logits of the modules equal those of transformers' MTP layers over the same weights."""
    config = tiny_config(num_nextn_predict_layers=depths, rope_scaling=YARN)
    ours = DeepseekV3ForCausalLM(config)
    randomize(ours)
    theirs = their_model(config)
    main = {name: value for name, value in ours.state_dict().items() if name in theirs.state_dict()}
    theirs.load_state_dict(main)
    modules = MtpModel(theirs, depths).eval()
    for depth in range(depths):
        prefix = f"model.layers.{config.num_hidden_layers + depth}."
        weights = {}
        for name, value in ours.state_dict().items():
            if name.startswith(prefix):
                name = name.removeprefix(prefix).replace("shared_head.norm", "post_norm")
                top = name.startswith(("enorm", "hnorm", "eh_proj", "post_norm"))
                weights[name if top else f"mtp_block.{name}"] = value
        modules.layers[depth].load_state_dict(weights)

    input_ids = random_tokens(config, 2, 11)
    shift_labels = random_tokens(config, 2, 11, seed=5)
    with torch.no_grad():
        hidden = theirs.model(input_ids).last_hidden_state
        expected = []
        for depth, module in enumerate(modules.layers, start=1):
            tokens = input_ids.shape[1] - depth
            embedding = modules.embed_tokens(input_ids[:, depth:])
            rotation = theirs.model.rotary_emb(embedding, torch.arange(tokens)[None])
            hidden = module(embedding, hidden[:, :tokens], rotation, None, None, None)
            logits = modules.shared_head(hidden)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), shift_labels[:, depth:].flatten(), reduction="sum"
            )
            expected.append(loss / shift_labels.numel())
        got = ours(input_ids, shift_labels=shift_labels, mtp_loss_weight=0.3).mtp_losses
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=2e-6, atol=0)


# The tests above can fail: one wrong field in our configuration, with the same weights, shows.
WRONG_FIELDS = [
    {"rope_interleave": False},
    {"norm_topk_prob": False},
    {"routed_scaling_factor": 2.0},
    {"hidden_act": "gelu"},
    {"num_experts_per_tok": 2},
    {"n_group": 2},
    {"topk_group": 3},
    {"rms_norm_eps": 1e-2},
    {"rope_theta": 1000.0},
    {"rope_scaling": None},
    {"rope_scaling": YARN | {"factor": 8.0}},
    {"rope_scaling": YARN | {"original_max_position_embeddings": 64}},
    {"rope_scaling": YARN | {"beta_fast": 1.0}},
    {"rope_scaling": YARN | {"beta_slow": 0.01}},
    {"rope_scaling": YARN | {"mscale": 1.5}},
    {"rope_scaling": YARN | {"mscale_all_dim": 1.5}},
    {"rope_scaling": YARN | {"attention_factor": 1.5}},
    {"rope_scaling": YARN | {"truncate": False}},
]


def visible_config(**changes):
    """A configuration in which every field of WRONG_FIELDS has an effect."""
    fields = {"qk_rope_head_dim": 8, "rope_theta": 20.0, "rope_scaling": YARN}
    return tiny_config(**(fields | changes))


@pytest.mark.parametrize("wrong", WRONG_FIELDS, ids=str)
def test_a_wrong_field_shows(wrong):
    config = visible_config()
    theirs = their_model(config)
    input_ids = random_tokens(config, 2, 18)
    with torch.no_grad():
        expected = theirs(input_ids).logits
        assert relative_error(our_model(config, theirs)(input_ids).logits, expected) <= LOGIT_BOUND
        ours = our_model(visible_config(**wrong), theirs)
        assert relative_error(ours(input_ids).logits, expected) > VISIBLE


@pytest.mark.parametrize("tensor", ["bias", "e_score_correction_bias", "kv_a_layernorm.weight"])
def test_a_lost_tensor_shows(tensor):
    config = visible_config(attention_bias=True)
    theirs = their_model(config)
    ours = our_model(config, theirs)
    with torch.no_grad():
        for name, value in ours.state_dict().items():
            if name.endswith(tensor):
                value.fill_(1.0 if "norm" in tensor else 0.0)
        input_ids = random_tokens(config, 2, 18)
        assert relative_error(ours(input_ids).logits, theirs(input_ids).logits) > VISIBLE


def test_padding_row_gets_no_gradient():
    """pad_token_id changes no logit, but the gradient of its embedding, as in transformers."""
    for config in (tiny_config(pad_token_id=7), tiny_config(pad_token_id=None)):
        model = DeepseekV3ForCausalLM(config)
        randomize(model)
        input_ids = random_tokens(config, 2, 9)
        input_ids[:, 3] = 7
        model(input_ids, labels=input_ids).loss.backward()
        gradient = model.model.embed_tokens.weight.grad[7]
        assert (gradient == 0).all() == (config.pad_token_id == 7)


# Every field of transformers' configuration is one of these; a new one fails the test below.
VARIED = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "n_shared_experts",
    "n_routed_experts",
    "routed_scaling_factor",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_rope_head_dim",
    "v_head_dim",
    "qk_nope_head_dim",
    "n_group",
    "topk_group",
    "num_experts_per_tok",
    "first_k_dense_replace",
    "norm_topk_prob",
    "hidden_act",
    "rms_norm_eps",
    "pad_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "rope_interleave",
    "attention_bias",
}
# Fields that do not change logits or gradients, with another value that must change nothing.
IRRELEVANT = {
    "architectures": ["Other"],
    "bos_token_id": 5,
    "chunk_size_feed_forward": 4,
    "dtype": "bfloat16",
    "eos_token_id": [3, 4],
    "id2label": {0: "a", 1: "b", 2: "c"},
    "initializer_range": 0.5,
    "is_encoder_decoder": True,
    "label2id": {"a": 0, "b": 1, "c": 2},
    "max_position_embeddings": 4096,
    "num_nextn_predict_layers": 2,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_router_logits": True,
    "pretraining_tp": 2,
    "problem_type": "regression",
    "return_dict": False,
    "transformers_version": "4.0.0",
    "use_cache": False,
    "_name_or_path": "somewhere",
}
# Derived from other fields by transformers itself, whatever is given.
DERIVED = {"qk_head_dim", "head_dim"}
# What we refuse, see test_unsupported_values_raise.
REFUSED = {"num_key_value_heads", "attention_dropout", "model_type"}
# The same, for the keys of rope_parameters.
ROPE_VARIED = {
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
}
ROPE_OF_OTHERS = (
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mrope_section",
    "short_factor",
)
ROPE_REFUSED = {"rope_type", "partial_rotary_factor", *ROPE_OF_OTHERS}


def test_every_field_of_theirs_is_accounted_for():
    """The dictionary of their config, its declared fields and the aliases of both."""
    config_class = transformers.DeepseekV3Config
    names = set(config_class().to_dict())
    names |= {field.name for field in dataclasses.fields(config_class)}
    names = {config_class.attribute_map.get(name, name) for name in names}
    known = [VARIED, set(IRRELEVANT), DERIVED, REFUSED]
    assert sum(map(len, known)) == len(set().union(*known))
    # What old versions had and new ones lack may stay in the lists.
    assert names <= set().union(*known), names - set().union(*known)
    assert set(typing.get_type_hints(RopeParameters)) <= ROPE_VARIED | ROPE_REFUSED


def test_every_varied_field_varies():
    configs = [random_config(seed) for seed in SEEDS]
    for name in VARIED - {"rope_parameters"}:
        assert len({getattr(config, name) for config in configs}) > 1, name
    assert {config.hidden_act for config in configs} == set(ACTIVATIONS)
    assert len({config.rope_theta for config in configs}) > 1
    assert None in [config.rope_scaling for config in configs]
    scalings = [config.rope_scaling for config in configs if config.rope_scaling]
    for name in ROPE_VARIED - {"rope_theta"}:
        assert len({scaling.get(name) for scaling in scalings}) > 1, name


@pytest.mark.parametrize("name", IRRELEVANT)
def test_an_irrelevant_field_changes_nothing(name):
    """Read from their dictionary, our config stays what it computes; so does their model."""
    config = tiny_config(rope_scaling=YARN)
    values = their_config(config).to_dict() | {name: IRRELEVANT[name]}
    read = DeepseekV3Config.from_dict(values)
    kept = {"bos_token_id", "eos_token_id", "initializer_range", "max_position_embeddings"}
    if name in kept | {"num_nextn_predict_layers"}:
        read = read.replace(**{name: getattr(config, name)})
    assert read == config
    if name in ("dtype", "output_attentions", "return_dict", "transformers_version"):
        return  # these change the type of what transformers returns, not its values
    input_ids = random_tokens(config, 2, 9)
    models = [their_model(config), their_model(config, **{name: IRRELEVANT[name]})]
    with torch.no_grad():
        before, after = (model(input_ids).logits for model in models)
    assert torch.equal(before, after)


def test_their_saved_configuration_is_read_back():
    for seed in SEEDS:
        config = random_config(seed)
        assert DeepseekV3Config.from_dict(their_config(config).to_dict()) == config


UNSUPPORTED = [
    {"num_key_value_heads": 1},
    {"attention_dropout": 0.1},
    {"model_type": "deepseek_v2"},
    {"hidden_act": "no such function"},
    *({"hidden_act": name} for name in ACT2CLS if name not in ACTIVATIONS),
    {"scoring_func": "softmax"},
    {"topk_method": "greedy"},
    {"moe_layer_freq": 2},
    {"n_group": None},
    {"topk_group": None},
    {"num_experts_per_tok": None},
    {"first_k_dense_replace": None},
    {"norm_topk_prob": None},
    {"v_head_dim": None},
    {"rope_interleave": None},
    {"num_experts_per_tok": 5},
    {"qk_rope_head_dim": 5},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
    *({"rope_scaling": YARN | {name: 1.0}} for name in ROPE_OF_OTHERS),
    {"rope_scaling": YARN | {"partial_rotary_factor": 0.5}},
    {"rope_scaling": YARN | {"factor": None}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    {"layer_types": ["full_attention"]},
]


@pytest.mark.parametrize("values", UNSUPPORTED, ids=str)
def test_unsupported_values_raise(values):
    with pytest.raises(InputError, match=next(iter(values))):
        DeepseekV3Config.from_dict(tiny_config().to_dict() | values)
    named = {name for change in UNSUPPORTED for name in change}
    assert named >= REFUSED
