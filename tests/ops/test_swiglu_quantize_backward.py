"""SwiGLU's gradient with its quantisers, on every backend, against NumPy, float64 and autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from abyssal.ops import SwigluGradients
from abyssal.reference import fused
from tests.ops import swiglu_model
from tests.ops.quantiser_model import (
    as_bytes,
    blocks_of_groups,
    emulated_and_reference,
    poisoned_rowwise,
    poisoned_transposed,
    quantize_tiles,
    scales_of,
)
from tests.ops.test_swiglu_quantize import gates_and_ups, row_weights

# (T, I): short and whole blocks; one square, several, more than a cluster has blocks.
SHAPES = [(1, 128), (130, 256), (128, 128), (3, 384), (2, 1280), (5, 2048)]


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def inputs_of(shape, device, weighted=True, seed=0):
    """(dy, gate_up, row_weight)"""
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(shape, generator=generator)
    dy = torch.ldexp(dy, torch.randint(-15, 5, shape, generator=generator)).bfloat16().to(device)
    row_weight = row_weights(shape[0], device, seed) if weighted else None
    return dy, gates_and_ups(shape, device, seed), row_weight


def int32(offsets, device):
    return torch.tensor(offsets, dtype=torch.int32, device=device)


def poisoned(dy, weighted, groups):
    rows, columns = dy.shape
    of_rows = torch.full((rows,), float("nan"), device=dy.device) if weighted else None
    return SwigluGradients(
        poisoned_rowwise(rows, 2 * columns, dy.device),
        poisoned_transposed(rows, 2 * columns, groups, dy.device),
        poisoned_transposed(rows, columns, groups, dy.device),
        of_rows,
    )


def check_transposed(values, q, offsets, pow2):
    codes, scales = np.full_like(as_bytes(q), 0x7F), np.full_like(scales_of(q), np.nan)
    for column, first, end in blocks_of_groups(offsets):
        padded = np.zeros((values.shape[1], 128), np.float32)
        padded[:, : end - first] = values[first:end].T
        codes[:, column : column + 128], of_block = quantize_tiles(padded, (1, 128), pow2)
        scales[:, column // 128] = of_block[:, 0]
    np.testing.assert_array_equal(as_bytes(q), codes)
    np.testing.assert_array_equal(scales_of(q), scales)


def check(inputs, result, offsets, pow2=False):
    """What belongs to no group is still poison."""
    d_gate_up, h, d_row_weight = swiglu_model.backward(*inputs)
    end = offsets[-1]
    codes, scales = quantize_tiles(d_gate_up, (1, 128), pow2)
    codes[end:], scales[end:], d_row_weight[end:] = 0x7F, np.nan, np.nan
    np.testing.assert_array_equal(as_bytes(result.d_gate_up), codes)
    np.testing.assert_array_equal(scales_of(result.d_gate_up), scales)
    check_transposed(d_gate_up, result.d_gate_up_t, offsets, pow2)
    check_transposed(h, result.h_t, offsets, pow2)
    if inputs[2] is None:
        assert result.d_row_weight is None
    else:
        np.testing.assert_array_equal(result.d_row_weight.cpu().numpy(), d_row_weight)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_numpy_bitwise(shape, pow2, weighted, device):
    inputs = inputs_of(shape, device, weighted)
    out = poisoned(inputs[0], weighted, None)
    assert ops.swiglu_quantize_backward(*inputs, pow2=pow2, out=out) is out
    check(inputs, out, [0, shape[0]], pow2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("rows", "offsets"),
    [(300, [0, 3, 3, 140, 290]), (256, [0, 128, 256]), (9, [0, 0, 0]), (40, list(range(41)))],
)
def test_groups(rows, offsets, weighted, device):
    inputs = inputs_of((rows, 256), device, weighted)
    for tensor in inputs[:2]:
        tensor[offsets[-1] :] = float("nan")
    out = poisoned(inputs[0], weighted, len(offsets) - 1)
    ops.swiglu_quantize_backward(*inputs, int32(offsets, device), out=out)
    check(inputs, out, offsets)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_groups(data):
    """Hypothesis takes no fixture: whatever backend the fixture has set."""
    rows, squares = data.draw(st.integers(0, 200)), data.draw(st.integers(1, 3))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=1, max_size=5)))
    weighted = data.draw(st.booleans())
    inputs = inputs_of((rows, 128 * squares), "cpu", weighted, data.draw(st.integers(0, 99)))
    out = poisoned(inputs[0], weighted, len(cuts))
    with abyssal.backend(data.draw(st.sampled_from(emulated_and_reference()))):
        ops.swiglu_quantize_backward(*inputs, int32([0, *cuts], "cpu"), out=out)
    check(inputs, out, [0, *cuts])


@pytest.mark.parametrize("policy", ["late", "early", "random"])
@pytest.mark.parametrize("weighted", [False, True])
def test_any_schedule(policy, weighted, backend, device):
    if backend != "emulator":
        pytest.skip("schedules are the emulator's")
    from abyssal.emulator import Device

    offsets = [0, 130, 131, 140]
    inputs = inputs_of((150, 1152), device, weighted)  # 9 squares: one more than a cluster has
    for seed in range(2):
        out = poisoned(inputs[0], weighted, 3)
        with Device(num_sms=16, policy=policy, seed=seed).for_ops():
            ops.swiglu_quantize_backward(*inputs, int32(offsets, device), out=out)
        check(inputs, out, offsets)


def test_h_is_what_the_forward_op_gave(device):
    """Transposed and in other tiles, but the same values."""
    dy, gate_up, row_weight = inputs_of((128, 256), device)
    h = fused.swiglu(gate_up, row_weight)
    forward = ops.swiglu_quantize(gate_up, row_weight)
    expected = ops.quantize_1x128_both(h)
    np.testing.assert_array_equal(as_bytes(forward), as_bytes(expected[0]))
    h_t = ops.swiglu_quantize_backward(dy, gate_up, row_weight).h_t
    np.testing.assert_array_equal(as_bytes(h_t), as_bytes(expected[1]))


def test_reference_against_autograd_in_float64():
    """Before they are rounded to BF16, gradients are those of torch's SiLU."""
    generator = torch.Generator().manual_seed(0)
    gate_up = (torch.randn(40, 512, generator=generator) * 3).bfloat16()
    dy = torch.randn(40, 256, generator=generator).bfloat16()
    row_weight = torch.rand(40, generator=generator)
    wide, weight = gate_up.double().requires_grad_(), row_weight.double().requires_grad_()
    gate, up = wide.chunk(2, dim=1)
    h = torch.nn.functional.silu(gate) * up * weight[:, None]
    h.backward(dy.double())
    d_gate_up, got_h, d_row_weight = fused.swiglu_backward(dy, gate_up, row_weight)
    # Half a unit of BF16's last place, and FP32's errors, where a derivative is nearly 0 too.
    scale = dy.double().abs() * torch.cat([up, gate], 1).abs().view(40, 2, 256).amax(1)
    small = torch.cat([scale, scale], 1) * 1e-6
    assert ((d_gate_up - wide.grad).abs() <= wide.grad.abs() * 2.0**-8 + small).all()
    assert ((got_h - h).abs() <= h.abs() * 2.0**-7.99).all()
    terms = (dy.double() * h / weight[:, None]).abs().sum(1)
    assert ((d_row_weight - weight.grad).abs() <= terms * 1e-6).all()


@pytest.mark.parametrize("where", ["dy", "gate", "up", "row_weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_show(where, bad, device):
    dy, gate_up, row_weight = inputs_of((3, 256), device)
    place = {"dy": (dy, (1, 130)), "gate": (gate_up, (1, 130)), "up": (gate_up, (1, 386))}
    tensor, index = place.get(where, (row_weight, (1,)))
    tensor[index] = bad
    out = poisoned(dy, True, None)
    ops.swiglu_quantize_backward(dy, gate_up, row_weight, out=out)
    check((dy, gate_up, row_weight), out, [0, 3])
    shown = out.d_gate_up.scale[1].isnan()
    assert shown[[1, 3]].any() and not out.d_gate_up.scale[[0, 2]].isnan().any()
    assert where == "row_weight" or not out.d_row_weight[1].isfinite()


def test_padding_is_plus_zero(device):
    dy, gate_up, row_weight = inputs_of((3, 128), device)
    result = ops.swiglu_quantize_backward(dy, gate_up, -row_weight)
    for q in (result.d_gate_up_t, result.h_t):
        assert (as_bytes(q)[:, 3:] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_every_time_and_layout(weighted, device):
    inputs = inputs_of((130, 256), device, weighted)
    offsets = int32([0, 7, 130], device)
    first = ops.swiglu_quantize_backward(*inputs, offsets)
    assert first.d_gate_up.shape == (130, 512) and first.d_gate_up.scale.stride() == (1, 132)
    assert first.d_gate_up_t.shape == (512, 384) and first.d_gate_up_t.scale.stride() == (1, 512)
    assert first.h_t.shape == (256, 384) and first.h_t.scale.stride() == (1, 256)
    assert (first.d_row_weight is not None) == weighted
    for q in first[:3]:
        assert q.block == (1, 128) and q.axis == 1 and not q.data.requires_grad
    for _ in range(2):
        again = ops.swiglu_quantize_backward(*inputs, offsets)
        np.testing.assert_array_equal(as_bytes(again.d_gate_up), as_bytes(first.d_gate_up))
        if weighted:
            assert torch.equal(again.d_row_weight, first.d_row_weight)


def test_writes_nothing_beyond_its_outputs(device):
    inputs = inputs_of((5, 128), device)
    guarded = torch.full((5 + 16,), -7.0, device=device)
    out = poisoned(inputs[0], True, None)._replace(d_row_weight=guarded[8:-8])
    ops.swiglu_quantize_backward(*inputs, out=out)
    assert (guarded[:8] == -7).all() and (guarded[-8:] == -7).all()
    check(inputs, out, [0, 5])


def test_no_rows(device):
    inputs = inputs_of((0, 128), device)
    result = ops.swiglu_quantize_backward(*inputs)
    assert result.d_gate_up.shape == (0, 256) and result.d_gate_up_t.shape == (256, 0)
    assert result.d_row_weight.shape == (0,)


def test_opcheck(backend, device):
    dy, gate_up, row_weight = inputs_of((128, 128), device)
    name = torch.ops.abyssal.swiglu_quantize_backward
    for weight in (None, row_weight):
        torch.library.opcheck(name.default, (dy, gate_up, weight, None, True, 1e-4, backend))
    out = poisoned(dy, True, None)
    parts = [part for q in out[:3] for part in (q.data, q.scale)]
    torch.library.opcheck(
        torch.ops.abyssal.swiglu_quantize_backward_out.default,
        (dy, gate_up, row_weight, None, *parts, out.d_row_weight, True, 1e-4, backend),
        # As in test_quantize.py.
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_compiles_into_one_graph(device):
    def doubled(dy, gate_up, row_weight):
        result = ops.swiglu_quantize_backward(dy, gate_up, row_weight)
        return *(q.dequantize() * 2 for q in result[:3]), result.d_row_weight

    inputs = inputs_of((130, 128), device)
    compiled = torch.compile(doubled, fullgraph=True)(*inputs)
    for got, want in zip(compiled, doubled(*inputs), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"gate_up": torch.zeros(2, 128).bfloat16()}, r"2 I a multiple of 256 .*, not \[2, 128\]"),
        ({"gate_up": torch.zeros(2, 256)}, "gate_up must be bfloat16, not torch.float32"),
        ({"dy": 1}, "dy must be a tensor, not int"),
        ({"dy": torch.zeros(2, 256).bfloat16()}, r"dy must be \[2, 128\], half of gate_up, not"),
        ({"dy": torch.zeros(2, 128)}, "dy must be bfloat16, not torch.float32"),
        ({"row_weight": torch.ones(3)}, r"row_weight must be torch.float32 \[2\], contiguous"),
        ({"offsets": [0, 1]}, "offsets must be a tensor or None, not list"),
        ({"pow2": 1}, "pow2 must be True or False, not 1"),
        ({"out": 3}, "out must be SwigluGradients, not int"),
    ],
)
def test_refuses(wrong, sentence, device):
    arguments = {"dy": torch.zeros(2, 128).bfloat16(), "gate_up": torch.zeros(2, 256).bfloat16()}
    arguments |= wrong
    arguments = {k: v.to(device) if hasattr(v, "to") else v for k, v in arguments.items()}
    with pytest.raises(InputError, match=sentence):
        ops.swiglu_quantize_backward(arguments.pop("dy"), arguments.pop("gate_up"), **arguments)


def test_refuses_what_is_not_aligned(device):
    memory = torch.zeros(2 * 260, dtype=torch.bfloat16, device=device)
    gate_up = torch.zeros(2, 256, dtype=torch.bfloat16, device=device)
    with pytest.raises(InputError, match="dy must have rows at multiples of 16 bytes"):
        ops.swiglu_quantize_backward(memory.view(2, 260)[:, :128], gate_up)
    with pytest.raises(InputError, match="dy must begin at a multiple of 16 bytes"):
        ops.swiglu_quantize_backward(memory[1:257].view(2, 128), gate_up)


def test_refuses_outs_of_other_forms(device):
    dy, gate_up, row_weight = inputs_of((6, 256), device)
    result = ops.swiglu_quantize_backward(dy, gate_up, row_weight)
    wrong = result._replace(d_gate_up_t=result.h_t)
    with pytest.raises(InputError, match=r"out.d_gate_up_t.data must be .*\[512, 128\]"):
        ops.swiglu_quantize_backward(dy, gate_up, row_weight, out=wrong)
    with pytest.raises(InputError, match="out.d_row_weight must be None where row_weight is None"):
        ops.swiglu_quantize_backward(dy, gate_up, out=result)
    with pytest.raises(InputError, match="out.d_row_weight must be a tensor, not NoneType"):
        ops.swiglu_quantize_backward(
            dy, gate_up, row_weight, out=result._replace(d_row_weight=None)
        )
