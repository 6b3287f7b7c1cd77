"""Rotary embedding: closed forms, both layouts, YaRN against a scalar version and transformers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.model.config import DeepseekV3Config
from abyssal.model.rope import (
    cos_sin_factor,
    inverse_frequencies,
    magnitude_scale,
    rotate,
    rotation,
    softmax_scale,
)
from tests.model.model_cases import YARN, random_config, tiny_config

RELEASED_YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def yarn_frequency(pair, width, theta, scaling):
    """One pair of Peng et al., section 3.2, in Python's floats."""
    context = scaling["original_max_position_embeddings"]

    def boundary(turns):
        return width * math.log(context / (2 * math.pi * turns)) / (2 * math.log(theta))

    low = boundary(scaling.get("beta_fast") or 32)
    high = boundary(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    ramp = min(max((pair - low) / (high - low), 0.0), 1.0)
    plain = theta ** (-2 * pair / width)
    return ramp * plain / scaling["factor"] + (1 - ramp) * plain


def test_plain_frequencies():
    config = tiny_config(qk_rope_head_dim=8, rope_theta=10000.0)
    expected = torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(inverse_frequencies(config), expected)
    assert cos_sin_factor(config) == 1.0
    assert softmax_scale(config) == pytest.approx((6 + 8) ** -0.5)


def test_released_model():
    """Report, section 4.3: scores times (0.1 ln 40 + 1)^2 = 1.8738, cos and sin as they are."""
    config = DeepseekV3Config(rope_scaling=RELEASED_YARN)
    assert softmax_scale(config) == pytest.approx(1.8738 * 192**-0.5, rel=1e-4)
    assert cos_sin_factor(config) == 1.0
    frequencies = inverse_frequencies(config)
    plain = inverse_frequencies(DeepseekV3Config())
    # Over 4096 tokens, pairs up to 10 turn more than 32 times and pairs from 23 less than once.
    assert torch.equal(frequencies[:11], plain[:11])
    torch.testing.assert_close(frequencies[23:], plain[23:] / 40)
    assert (frequencies[11:23] < plain[11:23]).all()
    assert (frequencies[11:23] > plain[11:23] / 40).all()


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_yarn_frequencies(seed):
    config = random_config(seed)
    width, theta, scaling = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
    scaling = scaling or {"factor": 1.0, "original_max_position_embeddings": 64}
    expected = [yarn_frequency(pair, width, theta, scaling) for pair in range(width // 2)]
    got = inverse_frequencies(config)
    assert got.dtype == torch.float32
    # Where nearly all is interpolated, FP32 loses a factor of up to 40 in the rest.
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(20))
def test_equals_transformers(seed):
    """Frequencies, and cos and sin far out, where a last bit of the frequency shows."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3Attention,
        DeepseekV3RotaryEmbedding,
    )

    config = random_config(seed)
    values = config.to_dict()
    their_config = transformers.DeepseekV3Config(**values)
    theirs = DeepseekV3RotaryEmbedding(their_config)
    torch.testing.assert_close(inverse_frequencies(config), theirs.inv_freq, rtol=1e-6, atol=0)
    assert cos_sin_factor(config) == pytest.approx(theirs.attention_scaling, rel=1e-12)
    scaling = DeepseekV3Attention(their_config, 0).scaling
    assert softmax_scale(config) == pytest.approx(scaling, rel=1e-12)

    positions = torch.tensor([[0, 1, 17, 1000]])
    cos, sin = theirs(torch.zeros(1), positions)
    half = config.qk_rope_head_dim // 2
    got = rotation(positions, inverse_frequencies(config), cos_sin_factor(config))
    for ours, their in zip(got, (cos, sin), strict=True):
        torch.testing.assert_close(ours[:, :, 0], their[..., :half], rtol=1e-4, atol=1e-4)


def test_magnitude_scale():
    assert magnitude_scale(1.0) == magnitude_scale(0.5) == 1.0
    assert magnitude_scale(math.e, 0.7) == pytest.approx(1.07)
    only_factor = tiny_config(rope_scaling={**YARN, "mscale": None, "mscale_all_dim": None})
    assert cos_sin_factor(only_factor) == pytest.approx(0.1 * math.log(4) + 1)
    assert softmax_scale(only_factor) == pytest.approx(10**-0.5)
    both = tiny_config(rope_scaling=YARN)
    temperature = 0.09 * math.log(4) + 1
    assert cos_sin_factor(both) == pytest.approx((0.07 * math.log(4) + 1) / temperature)
    assert softmax_scale(both) == pytest.approx(10**-0.5 * temperature**2)
    assert cos_sin_factor(tiny_config(rope_scaling=YARN | {"attention_factor": 3})) == 3.0


def test_rotation_is_exact_far_out():
    """Angles in FP32: at position 163 839 an error below 0.01 rad against float64."""
    positions = torch.tensor([[163839]])
    frequencies = inverse_frequencies(DeepseekV3Config())
    cos, sin = rotation(positions, frequencies, 1.0)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (1, 1, 1, 32)
    angle = 163839 * frequencies.double()
    torch.testing.assert_close(cos[0, 0, 0].double(), angle.cos(), rtol=0, atol=0.01)
    torch.testing.assert_close(sin[0, 0, 0].double(), angle.sin(), rtol=0, atol=0.01)


@pytest.mark.parametrize("interleave", [True, False])
def test_rotate_is_a_complex_product(interleave):
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[3, 4, 5, 6, 7], [0, 0, 1, 2, 3]])
    frequencies = inverse_frequencies(tiny_config(qk_rope_head_dim=8))
    cos, sin = rotation(positions, frequencies, 1.5)
    pairs = x.unflatten(-1, (4, 2)) if interleave else x.unflatten(-1, (2, 4)).transpose(-1, -2)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    got = rotate(x, cos, sin, interleave=interleave)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected)


def test_layouts_differ_only_by_the_order_of_the_weights():
    x = torch.randn(1, 4, 2, 8, generator=torch.Generator().manual_seed(1))
    cos, sin = rotation(
        torch.arange(4)[None], inverse_frequencies(tiny_config(qk_rope_head_dim=8)), 1
    )
    halves = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    interleaved = rotate(x, cos, sin, interleave=True)
    assert torch.equal(interleaved, rotate(halves, cos, sin, interleave=False))
    assert not torch.allclose(interleaved, rotate(x, cos, sin, interleave=False))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 500))
def test_scores_depend_on_the_distance_only(first, second, shift):
    frequencies = inverse_frequencies(tiny_config(qk_rope_head_dim=8)).double()
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(2)).double()

    def score(at, other):
        positions = torch.tensor([[at, other]])
        angle = (positions[..., None] * frequencies).unsqueeze(2)
        turned = [
            rotate(x, angle[:, i : i + 1].cos(), angle[:, i : i + 1].sin(), interleave=True)
            for i, x in enumerate((query, key))
        ]
        return (turned[0] * turned[1]).sum()

    before, after = score(first, second), score(first + shift, second + shift)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-9)


def test_bf16_is_rotated_in_fp32():
    """The result is the FP32 product rounded once."""
    x = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(3)).bfloat16()
    cos, sin = rotation(
        torch.arange(3)[None], inverse_frequencies(tiny_config(qk_rope_head_dim=8)), 1
    )
    got = rotate(x, cos, sin, interleave=True)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, rotate(x.float(), cos, sin, interleave=True).bfloat16())


def test_frequencies_do_not_follow_the_default_device():
    with torch.device("meta"):
        assert inverse_frequencies(tiny_config(rope_scaling=YARN)).device.type == "cpu"
