"""Sampling: supports against a brute-force reference, laws by chi-square, streams by equality."""

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from abyssal.errors import InputError
from abyssal.model.sampling import Sampler, SamplingOptions, pick, probabilities

SINGLE_FLOATS = st.floats(0, 1, width=32, allow_subnormal=False)
logit_rows = st.lists(st.integers(-12, 12).map(lambda tenth: tenth / 4), min_size=1, max_size=12)


def reference(logits, temperature, top_k, top_p):
    """The distribution by definition, in Python floats; None when top_p lies on an edge."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    kept = order[:top_k] if top_k else order
    weight = {token: math.exp((logits[token] - logits[order[0]]) / temperature) for token in kept}
    total = sum(weight.values())
    chosen, reached = [], 0.0
    for token in kept:
        if top_p is not None and top_p < 1:
            if abs(reached - top_p) < 1e-5:
                return None
            if reached > top_p:
                break
        chosen.append(token)
        reached += weight[token] / total
    total = sum(weight[token] for token in chosen)
    return [weight[token] / total if token in chosen else 0.0 for token in range(len(logits))]


@settings(max_examples=150, deadline=None)
@given(
    logit_rows,
    st.floats(0.2, 3.0),
    st.none() | st.integers(1, 14),
    st.none() | st.floats(0.01, 1.0),
)
def test_probabilities_follow_the_definition(logits, temperature, top_k, top_p):
    """Few distinct logits, so that ties are common: the lower id is kept."""
    expected = reference(logits, temperature, top_k, top_p)
    assume(expected is not None)
    actual = probabilities(
        torch.tensor([logits]), temperature=temperature, top_k=top_k, top_p=top_p
    )
    assert actual.dtype == torch.float32
    assert (actual[0] > 0).tolist() == [value > 0 for value in expected]
    assert actual[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_top_p_acts_on_what_top_k_left():
    """0.4 / (0.4 + 0.3) reaches 0.5 although 0.4 alone does not: top-k comes first."""
    logits = torch.tensor([[0.3, 0.2, 0.4, 0.1]]).log()
    after_top_k = probabilities(logits, top_k=2, top_p=0.5)
    assert after_top_k[0].nonzero().flatten().tolist() == [2]
    assert probabilities(logits, top_p=0.5)[0].nonzero().flatten().tolist() == [0, 2]


def test_the_token_that_reaches_top_p_is_the_last():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert probabilities(logits, top_p=0.5)[0].tolist() == [1, 0, 0]
    assert probabilities(logits, top_p=0.75)[0].count_nonzero() == 2


def test_temperature_comes_before_top_p():
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert probabilities(logits, top_p=0.6)[0].count_nonzero() == 1
    assert probabilities(logits, temperature=4.0, top_p=0.6)[0].count_nonzero() == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-37, 1e-3, 1e6])
def test_extreme_temperatures_stay_finite(dtype, temperature):
    logits = torch.tensor([[1000.0, 999.0, -1000.0, float("-inf")]], dtype=dtype)
    actual = probabilities(logits, temperature=temperature)
    assert actual.isfinite().all() and actual.sum() == pytest.approx(1, abs=1e-6)
    assert actual[0, 3] == 0
    assert actual[0].argmax() == 0


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    return (((counts - expected) ** 2)[kept] / expected[kept]).sum().item()


# Values that chi-square exceeds with probability 1e-4, by degrees of freedom (standard tables).
CHI_SQUARE_1E4 = {2: 18.42, 3: 21.11, 7: 29.88, 15: 44.26}


@pytest.mark.parametrize(
    ("top_k", "top_p", "degrees"), [(None, None, 7), (4, None, 3), (None, 0.7, 3), (6, 0.7, 2)]
)
def test_samples_follow_the_distribution(top_k, top_p, degrees):
    logits = torch.tensor([[1.0, -0.5, 2.0, 0.2, 0.9, -1.0, 1.8, 0.0]])
    options = SamplingOptions(temperature=1.3, top_k=top_k, top_p=top_p, seed=7)
    sampler = Sampler(options, 1)
    expected = probabilities(logits, temperature=1.3, top_k=top_k, top_p=top_p)[0].double()
    assert expected.count_nonzero() == degrees + 1
    draws = 6000
    counts = torch.zeros(8, dtype=torch.float64)
    for _ in range(draws):
        counts[sampler.choose(logits)] += 1
    assert chi_square(counts, draws * expected) < CHI_SQUARE_1E4[degrees]


def test_rows_and_steps_are_independent():
    """Pairs (row 0, row 1) and (step t, step t + 1) over four tokens each: 15 degrees."""
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=0), 2)
    draws = torch.stack([sampler.choose(weights.log().expand(2, 4)) for _ in range(6000)])
    joint = torch.outer(weights, weights).flatten().double()
    pairs = [draws[:, 0] * 4 + draws[:, 1], draws[0::2, 0] * 4 + draws[1::2, 0]]
    for pair in pairs:
        counts = pair.bincount(minlength=16).double()
        assert chi_square(counts, joint * pair.numel()) < CHI_SQUARE_1E4[15]


def test_a_row_draws_the_same_alone_and_in_any_batch():
    generator = torch.Generator().manual_seed(3)
    steps = [torch.randn(5, 300, generator=generator) for _ in range(20)]
    together = Sampler(SamplingOptions(temperature=0.9, top_p=0.95, seed=11), 5)
    batch = torch.stack([together.choose(logits) for logits in steps])
    for row in range(5):
        single = Sampler(SamplingOptions(temperature=0.9, top_p=0.95, seed=11 + row), 1)
        alone = [single.choose(logits[row : row + 1]).item() for logits in steps]
        assert alone == batch[:, row].tolist()


def test_fresh_seeds_come_from_the_global_generator():
    logits = torch.zeros(4, 1000)

    def draw() -> list[int]:
        return Sampler(SamplingOptions(temperature=1.0), 4).choose(logits).tolist()

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert draw() == first != second


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.1, 0.7]) | SINGLE_FLOATS, min_size=1, max_size=9),
    st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-53]),
)
def test_pick_never_takes_an_impossible_token(weights, uniform):
    assume(sum(weights) > 0)
    token = pick(torch.tensor([weights]), torch.tensor([uniform], dtype=torch.float64))
    assert token.shape == (1,) and weights[token] > 0


def test_greedy_takes_the_lowest_id_among_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0], [-1.0, -2.0, -3.0, 0.0]])
    chosen = Sampler(SamplingOptions(), 3).choose(logits)
    assert chosen.tolist() == [1, 0, 3] and chosen.dtype == torch.int64


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "all -inf"])
def test_logits_without_a_distribution_raise(temperature, bad):
    logits = torch.zeros(3, 5)
    if bad == "all -inf":
        logits[1] = float("-inf")
    else:
        logits[1, 4] = bad
    with pytest.raises(InputError, match="logits of row 1 are not finite"):
        Sampler(SamplingOptions(temperature), 3).choose(logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 .* not -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        SamplingOptions(**options)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_suppressed_tokens_are_never_chosen(temperature):
    """The best tokens are suppressed; what is chosen is what the others alone give."""
    logits = torch.randn(64, 9)
    suppress = (1, 4, 5)
    rest = [token for token in range(9) if token not in suppress]
    logits[:, suppress] += 20
    options = SamplingOptions(temperature, seed=3)
    expected = torch.tensor(rest)[Sampler(options, 64).choose(logits[:, rest])]
    options = dataclasses.replace(options, suppress_tokens=suppress)
    assert Sampler(options, 64).choose(logits).equal(expected)


def test_suppressing_every_token_is_an_error():
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, float("-inf"), 2.0]])
    sampler = Sampler(SamplingOptions(suppress_tokens=(0, 2)), 2)
    with pytest.raises(InputError, match="suppress_tokens"):
        sampler.choose(logits)
    assert sampler.choose(logits[:1]).tolist() == [1]
