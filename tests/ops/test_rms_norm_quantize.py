"""RMSNorm with its quantiser, on every backend, against models in NumPy and float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from abyssal.model.layers import RMSNorm
from abyssal.ops.block_scaled import BlockScaled
from tests.ops.quantiser_model import (
    add_pairs,
    add_up,
    as_bytes,
    emulated_and_reference,
    poisoned_rowwise,
    quantize_tiles,
    random_values,
    scales_of,
)

# Rows of one warp and of several; one step and eight; ragged tiles, pieces and lanes; widths of the
# model (512, 1536, 7168); too long for registers.
SHAPES = [(1, 1), (5, 512), (3, 130), (2, 1536), (9, 2048), (2, 2056), (3, 7168), (2, 8200)]
TYPES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
]
EPS = 1e-6


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def model(x, weight, eps):
    """(normalized, inverse_rms) in float32, operation by operation."""
    values, columns = x.float().cpu().numpy(), x.shape[1]
    lanes = 256 if columns <= 2048 else 1024
    squares = np.zeros((x.shape[0], -(-columns // lanes) * lanes), np.float32)
    with np.errstate(all="ignore"):
        squares[:, :columns] = values * values
        steps = np.split(squares, squares.shape[1] // lanes, axis=1)
        mean = add_pairs(add_up(steps)) / np.float32(columns)
        inverse = np.float32(1) / np.sqrt(mean + np.float32(eps))
        normalized = values * inverse[:, None]
        if weight.dtype == torch.bfloat16:
            normalized = torch.from_numpy(normalized).bfloat16().float().numpy()
        y = weight.float().cpu().numpy() * normalized
    return torch.from_numpy(y).to(x.dtype), inverse


def poisoned(x):
    nan = float("nan")
    return (
        poisoned_rowwise(*x.shape, x.device),
        torch.full(x.shape, nan, dtype=x.dtype, device=x.device),
        torch.full(x.shape[:1], nan, device=x.device),
    )


def check(x, weight, result, eps=EPS, pow2=False):
    q, normalized, inverse_rms = result
    y, inverse = model(x, weight, eps)
    np.testing.assert_array_equal(inverse_rms.cpu().numpy(), inverse)
    np.testing.assert_array_equal(normalized.float().cpu().numpy(), y.float().numpy())
    codes, scales = quantize_tiles(y.float().numpy(), (1, 128), pow2)
    np.testing.assert_array_equal(as_bytes(q), codes)
    np.testing.assert_array_equal(scales_of(q), scales)


def weights(columns, dtype, device):
    return random_values((columns,), dtype, device, seed=7)


@pytest.mark.parametrize(("dtype", "weight_dtype"), TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_numpy_bitwise(shape, dtype, weight_dtype, device):
    x, weight = random_values(shape, dtype, device), weights(shape[1], weight_dtype, device)
    out = poisoned(x)
    assert ops.rms_norm_quantize(x, weight, EPS, return_normalized=True, out=out) is out
    check(x, weight, out)
    # And with nothing but codes and scales.
    alone = poisoned_rowwise(*shape, device)
    assert ops.rms_norm_quantize(x, weight, EPS, out=alone) is alone
    np.testing.assert_array_equal(as_bytes(alone), as_bytes(out[0]))
    np.testing.assert_array_equal(scales_of(alone), scales_of(out[0]))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    """Hypothesis takes no fixture: whatever backend the fixture has set."""
    rows, columns = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 2600))
    dtype, weight_dtype = data.draw(st.sampled_from(TYPES))
    x = random_values((rows, columns), dtype, "cpu", data.draw(st.integers(0, 99)))
    weight = weights(columns, weight_dtype, "cpu")
    eps, pow2 = data.draw(st.sampled_from([0.0, 1e-6, 0.5])), data.draw(st.booleans())
    out = poisoned(x)
    with abyssal.backend(data.draw(st.sampled_from(emulated_and_reference()))):
        ops.rms_norm_quantize(x, weight, eps, pow2=pow2, return_normalized=True, out=out)
    check(x, weight, out, eps, pow2)


@pytest.mark.parametrize("policy", ["late", "early", "random"])
def test_any_schedule(policy, backend, device):
    if backend != "emulator":
        pytest.skip("schedules are the emulator's")
    from abyssal.emulator import Device

    x = random_values((3, 4096), torch.bfloat16, device)
    weight = weights(4096, torch.bfloat16, device)
    for seed in range(3):
        out = poisoned(x)
        with Device(num_sms=4, policy=policy, seed=seed).for_ops():
            ops.rms_norm_quantize(x, weight, EPS, return_normalized=True, out=out)
        check(x, weight, out)


@pytest.mark.parametrize("columns", [1536, 7168])
def test_against_float64_and_the_model(columns, device):
    """FP32's precision before rounding to BF16 or quantising; the model's module computes the same
    function."""
    x = torch.randn(8, columns, device=device) * 3
    weight = torch.rand(columns, device=device) + 0.5
    _, y, inverse = ops.rms_norm_quantize(x, weight, EPS, return_normalized=True)
    wide = x.double()
    exact = 1 / (wide.square().mean(1) + EPS).sqrt()
    assert ((inverse - exact).abs() <= 3e-7 * exact).all()
    expected = wide * exact[:, None] * weight
    assert ((y - expected).abs() <= 5e-7 * expected.abs()).all()
    module = RMSNorm(columns, EPS).to(device)
    with torch.no_grad():
        module.weight.copy_(weight)
        torch.testing.assert_close(y, module(x), rtol=1e-6, atol=0)
        # In BF16 they round alike but for values next to a tie.
        module, narrow = module.bfloat16(), x.bfloat16()
        got = ops.rms_norm_quantize(narrow, module.weight, EPS, return_normalized=True)[1]
        same = (got == module(narrow)).float().mean()
        assert same > 0.99
        torch.testing.assert_close(got, module(narrow), rtol=2**-7, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_show(bad, device):
    """In all of their row: NaN by the mean. Other rows do not notice."""
    x = random_values((3, 300), torch.bfloat16, device)
    x[1, 200] = bad
    weight = weights(300, torch.bfloat16, device)
    out = poisoned(x)
    ops.rms_norm_quantize(x, weight, EPS, return_normalized=True, out=out)
    check(x, weight, out)
    scale = out[0].scale
    assert scale[1, 1].isnan() and not scale[[0, 2]].isnan().any()
    assert out[1][1, 200].isnan()


@pytest.mark.parametrize("value", [0.0, 2.0**-149, 1e-30, 1e19, 3e38])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_extremes(value, eps, device):
    """Squares that vanish or overflow: as float32 has it. No eps and no values: NaN."""
    x = torch.full((2, 130), value, device=device)
    x[1, ::2] = 0
    weight = torch.ones(130, device=device)
    out = poisoned(x)
    ops.rms_norm_quantize(x, weight, eps, return_normalized=True, out=out)
    check(x, weight, out, eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", [0, 1, 64])
def test_rows_may_be_apart_and_unaligned(dtype, offset, device):
    """As the latent part of kv_a's output is."""
    wide = torch.full((7, 640), float("nan"), dtype=dtype, device=device)
    x = wide[:, offset : offset + 512]
    x.copy_(random_values((7, 512), dtype, device))
    weight = weights(512 + offset, dtype, device)[offset:]
    out = poisoned(x)
    ops.rms_norm_quantize(x, weight, EPS, return_normalized=True, out=out)
    check(x, weight, out)


def test_writes_nothing_beyond_its_outputs(device):
    x, weight = random_values((5, 133), torch.float32, device), torch.ones(133, device=device)
    guarded = torch.full((5 * 133 + 64,), 0xA5, dtype=torch.uint8, device=device)
    data = guarded[32:-32].view(5, 133).view(torch.float8_e4m3fn)
    storage = torch.full((2, 8), -7.0, device=device)
    ops.rms_norm_quantize(x, weight, EPS, out=BlockScaled(data, storage.t()[:5], (1, 128), axis=1))
    assert (guarded[:32] == 0xA5).all() and (guarded[-32:] == 0xA5).all()
    assert (storage[:, 5:] == -7).all() and (storage[:, :5] > 0).all()


def test_the_same_every_time_and_layout(device):
    x = random_values((6, 300), torch.bfloat16, device).requires_grad_()
    weight = weights(300, torch.bfloat16, device).requires_grad_()
    first = ops.rms_norm_quantize(x, weight, EPS)
    assert first.shape == (6, 300) and first.scale.stride() == (1, 8) and first.axis == 1
    assert first.block == (1, 128) and not first.data.requires_grad
    for _ in range(3):
        again = ops.rms_norm_quantize(x, weight, EPS)
        np.testing.assert_array_equal(as_bytes(again), as_bytes(first))
        np.testing.assert_array_equal(scales_of(again), scales_of(first))


def test_opcheck(backend, device):
    x, weight = random_values((5, 140), torch.bfloat16, device), torch.ones(140, device=device)
    name = torch.ops.abyssal.rms_norm_quantize
    for keep in (False, True):
        torch.library.opcheck(name.default, (x, weight, EPS, keep, True, 1e-4, backend))
    q, normalized, inverse_rms = poisoned(x)
    torch.library.opcheck(
        torch.ops.abyssal.rms_norm_quantize_out.default,
        (x, weight, EPS, q.data, q.scale, normalized, inverse_rms, True, 1e-4, backend),
        # As in test_quantize.py.
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_compiles_into_one_graph(device):
    def doubled(x, weight):
        q, normalized, inverse = ops.rms_norm_quantize(x, weight, EPS, return_normalized=True)
        return q.dequantize() * 2, normalized + 1, inverse

    x, weight = random_values((7, 140), torch.bfloat16, device), torch.ones(140, device=device)
    compiled = torch.compile(doubled, fullgraph=True)(x, weight)
    for got, want in zip(compiled, doubled(x, weight), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"x": torch.zeros(4)}, r"x must be \[M, K\]"),
        ({"x": torch.zeros(2, 128).half()}, "x must be bfloat16 or float32, not torch.float16"),
        ({"weight": 1}, "weight must be a tensor, not int"),
        ({"weight": torch.ones(127)}, r"weight must be torch.float32 \[128\], not .* \[127\]"),
        ({"weight": torch.ones(128).bfloat16()}, r"weight must be torch.float32 \[128\], not"),
        ({"weight": torch.ones(256)[::2]}, "weight must be contiguous, and its stride is 2"),
        ({"eps": "1"}, "eps must be a number, not '1'"),
        ({"eps": -1e-6}, "eps must be a finite number of at least 0"),
        ({"eps": float("nan")}, "eps must be a finite number of at least 0"),
        ({"pow2": 1}, "pow2 must be True or False, not 1"),
        ({"return_normalized": 1}, "return_normalized must be True or False, not 1"),
        ({"out": 3}, "out must be a BlockScaled, not int"),
        ({"out": 3, "return_normalized": True}, r"out must be \(BlockScaled, normalized, inverse"),
        ({"out": (1, 2, 3), "return_normalized": True}, r"out\[1\] must be a tensor, not int"),
    ],
)
def test_refuses(wrong, sentence, device):
    arguments = {"x": torch.zeros(2, 128), "weight": torch.ones(128), "eps": EPS, **wrong}
    stays = "contiguous" in sentence  # a copy to a device would be
    arguments = {
        k: v.to(device) if hasattr(v, "to") and not (stays and k == "weight") else v
        for k, v in arguments.items()
    }
    with pytest.raises(InputError, match=sentence):
        ops.rms_norm_quantize(
            arguments.pop("x"), arguments.pop("weight"), arguments.pop("eps"), **arguments
        )


def test_refuses_outs_of_other_forms(device):
    x, weight = torch.zeros(6, 300, device=device), torch.ones(300, device=device)
    q, normalized, inverse = ops.rms_norm_quantize(x, weight, EPS, return_normalized=True)
    other = torch.zeros(6, 300, dtype=torch.bfloat16, device=device)
    with pytest.raises(InputError, match=r"out\[1\] must be torch.float32 \[6, 300\], contiguous"):
        ops.rms_norm_quantize(x, weight, EPS, return_normalized=True, out=(q, other, inverse))
    with pytest.raises(InputError, match=r"out\[2\] must be torch.float32 \[6\], contiguous"):
        ops.rms_norm_quantize(x, weight, EPS, return_normalized=True, out=(q, normalized, other))
    with pytest.raises(InputError, match="out must be a BlockScaled, not tuple"):
        ops.rms_norm_quantize(x, weight, EPS, out=(q, normalized, inverse))
