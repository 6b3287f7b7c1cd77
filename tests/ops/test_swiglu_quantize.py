"""SwiGLU with its quantiser, on every backend, against models in NumPy and float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled
from abyssal.reference import fused
from tests.ops import swiglu_model
from tests.ops.quantiser_model import (
    as_bytes,
    emulated_and_reference,
    poisoned_rowwise,
    quantize_tiles,
    random_values,
    scales_of,
)

# (T, I): one value; ragged tiles, pieces and blocks of rows; widths of the model's experts.
SHAPES = [(1, 1), (5, 7), (33, 136), (32, 256), (3, 2048), (70, 129), (65, 384)]


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def gates_and_ups(shape, device, seed=0):
    """Gates around 0, where SiLU bends, and up to the ends; ups over many octaves."""
    gates = random_values(shape, torch.bfloat16, "cpu", seed)
    some = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4
    gates = torch.where(some.abs() < 8, some.bfloat16(), gates)
    ups = random_values(shape, torch.bfloat16, "cpu", seed + 1000)
    return torch.cat([gates, ups], dim=1).to(device)


def row_weights(rows, device, seed=0):
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed)).to(device)


def check(gate_up, row_weight, q, pow2=False, rows=None):
    """Rows beyond `rows` are still poison."""
    codes, scales = quantize_tiles(swiglu_model.forward(gate_up, row_weight), (1, 128), pow2)
    if rows is not None:
        codes[rows:], scales[rows:] = 0x7F, np.nan
    np.testing.assert_array_equal(as_bytes(q), codes)
    np.testing.assert_array_equal(scales_of(q), scales)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_numpy_bitwise(shape, pow2, weighted, device):
    gate_up = gates_and_ups(shape, device)
    row_weight = row_weights(shape[0], device) if weighted else None
    out = poisoned_rowwise(*shape, device)
    assert ops.swiglu_quantize(gate_up, row_weight, pow2=pow2, out=out) is out
    check(gate_up, row_weight, out, pow2)


@pytest.mark.parametrize("offsets", [[0, 40], [0, 3, 3, 33], [0, 0, 0], [0, 32, 64], [0, 70]])
@pytest.mark.parametrize("columns", [128, 13])
def test_rows_of_no_group_are_left_alone(offsets, columns, device):
    gate_up = gates_and_ups((70, columns), device)
    gate_up[offsets[-1] :] = float("nan")
    row_weight = row_weights(70, device)
    out = poisoned_rowwise(70, columns, device)
    where = torch.tensor(offsets, dtype=torch.int32, device=device)
    ops.swiglu_quantize(gate_up, row_weight, where, out=out)
    check(gate_up, row_weight, out, rows=offsets[-1])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    """Hypothesis takes no fixture: whatever backend the fixture has set."""
    rows, columns = data.draw(st.integers(0, 80)), data.draw(st.integers(1, 400))
    gate_up = gates_and_ups((rows, columns), "cpu", data.draw(st.integers(0, 99)))
    row_weight = row_weights(rows, "cpu") if data.draw(st.booleans()) else None
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=1, max_size=5)))
    offsets = torch.tensor([0, *cuts], dtype=torch.int32) if data.draw(st.booleans()) else None
    out = poisoned_rowwise(rows, columns, "cpu")
    with abyssal.backend(data.draw(st.sampled_from(emulated_and_reference()))):
        ops.swiglu_quantize(gate_up, row_weight, offsets, out=out)
    check(gate_up, row_weight, out, rows=None if offsets is None else cuts[-1])


@pytest.mark.parametrize("policy", ["late", "early", "random"])
def test_any_schedule(policy, backend, device):
    if backend != "emulator":
        pytest.skip("schedules are the emulator's")
    from abyssal.emulator import Device

    gate_up, row_weight = gates_and_ups((40, 256), device), row_weights(40, device)
    for seed in range(3):
        out = poisoned_rowwise(40, 256, device)
        with Device(num_sms=4, policy=policy, seed=seed).for_ops():
            ops.swiglu_quantize(gate_up, row_weight, out=out)
        check(gate_up, row_weight, out)


def test_sigmoid_against_float64():
    """The bound that the docstring names, over all of BF16's gates and many others."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    others = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 20
    x = torch.cat([every[every.isfinite()], others])
    x = x[x >= -86.5]
    exact = torch.sigmoid(x.double())
    error = (fused.sigmoid(x) - exact).abs() / exact
    assert (error <= 1e-7 * (3 + x.abs())).all()
    ends = fused.sigmoid(torch.tensor([0.0, -0.0, 1e9, -1e9, -86.5]))
    assert ends.tolist() == [0.5, 0.5, 1, float(ends[4]), float(ends[4])]


def test_against_torch_in_float64(device):
    """Of the values before they are quantised, as far as codes can tell: E4M3's half unit, BF16's
    and a little. And the tile's largest value is next to 448 scales."""
    gate_up = (torch.randn(64, 512, device=device) * 3).bfloat16()
    row_weight = row_weights(64, device)
    gate, up = gate_up.double().chunk(2, dim=1)
    exact = torch.nn.functional.silu(gate) * up * row_weight.double()[:, None]
    q = ops.swiglu_quantize(gate_up, row_weight)
    error = (q.dequantize(torch.float64) - exact).abs()
    smallest = q.scale.double().repeat_interleave(128, dim=1) * 2.0**-10
    assert (error <= exact.abs() * (2**-4 + 2**-8) + smallest).all()


@pytest.mark.parametrize("where", ["gate", "up", "row_weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_show(where, bad, device):
    gate_up, row_weight = gates_and_ups((3, 256), device), row_weights(3, device)
    gate_up[1, 130] = 1.0
    gate_up[1, 256 + 130] = 2.0
    if where == "row_weight":
        row_weight[1] = bad
    else:
        gate_up[1, 130 + (256 if where == "up" else 0)] = bad
    out = poisoned_rowwise(3, 256, device)
    ops.swiglu_quantize(gate_up, row_weight, out=out)
    check(gate_up, row_weight, out)
    assert out.scale[1, 1].isnan() and not out.scale[[0, 2]].isnan().any()


@pytest.mark.parametrize("value", [0.0, -0.0, 2.0**-133, 1e-30, 3e38, -3e38])
def test_extremes(value, device):
    gate_up = torch.full((2, 256), value, dtype=torch.bfloat16, device=device)
    gate_up[1, ::2] = 1
    out = poisoned_rowwise(2, 128, device)
    ops.swiglu_quantize(gate_up, out=out)
    check(gate_up, None, out)


@pytest.mark.parametrize("offset", [0, 1, 8])
def test_rows_may_be_apart_and_unaligned(offset, device):
    wide = torch.full((9, 600), float("nan"), dtype=torch.bfloat16, device=device)
    gate_up = wide[:, offset : offset + 272]
    gate_up.copy_(gates_and_ups((9, 136), device))
    out = poisoned_rowwise(9, 136, device)
    ops.swiglu_quantize(gate_up, out=out)
    check(gate_up, None, out)


def test_writes_nothing_beyond_its_outputs(device):
    gate_up = gates_and_ups((5, 133), device)
    guarded = torch.full((5 * 133 + 64,), 0xA5, dtype=torch.uint8, device=device)
    data = guarded[32:-32].view(5, 133).view(torch.float8_e4m3fn)
    storage = torch.full((2, 8), -7.0, device=device)
    ops.swiglu_quantize(gate_up, out=BlockScaled(data, storage.t()[:5], (1, 128), axis=1))
    assert (guarded[:32] == 0xA5).all() and (guarded[-32:] == 0xA5).all()
    assert (storage[:, 5:] == -7).all() and (storage[:, :5] > 0).all()


def test_the_same_every_time_and_layout(device):
    gate_up = gates_and_ups((6, 300), device).requires_grad_()
    first = ops.swiglu_quantize(gate_up)
    assert first.shape == (6, 300) and first.scale.stride() == (1, 8) and first.axis == 1
    assert first.block == (1, 128) and not first.data.requires_grad
    for _ in range(3):
        again = ops.swiglu_quantize(gate_up)
        np.testing.assert_array_equal(as_bytes(again), as_bytes(first))
        np.testing.assert_array_equal(scales_of(again), scales_of(first))


def test_opcheck(backend, device):
    gate_up, row_weight = gates_and_ups((9, 140), device), row_weights(9, device)
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32, device=device)
    name = torch.ops.abyssal.swiglu_quantize
    torch.library.opcheck(name.default, (gate_up, row_weight, offsets, True, 1e-4, backend))
    q = poisoned_rowwise(9, 140, device)
    torch.library.opcheck(
        torch.ops.abyssal.swiglu_quantize_out.default,
        (gate_up, None, None, q.data, q.scale, True, 1e-4, backend),
        # As in test_quantize.py.
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_compiles_into_one_graph(device):
    def doubled(gate_up, row_weight):
        return ops.swiglu_quantize(gate_up, row_weight, pow2=True).dequantize() * 2

    gate_up, row_weight = gates_and_ups((7, 140), device), row_weights(7, device)
    compiled = torch.compile(doubled, fullgraph=True)(gate_up, row_weight)
    assert torch.equal(compiled, doubled(gate_up, row_weight))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"gate_up": 1}, "gate_up must be a tensor, not int"),
        ({"gate_up": torch.zeros(4)}, r"gate_up must be \[T, 2 I\]"),
        ({"gate_up": torch.zeros(4, 7).bfloat16()}, r"2 I a multiple of 2 .*, not \[4, 7\]"),
        ({"gate_up": torch.zeros(2, 128)}, "gate_up must be bfloat16, not torch.float32"),
        ({"row_weight": 0.5}, "row_weight must be a tensor, not float"),
        ({"row_weight": torch.ones(3)}, r"row_weight must be torch.float32 \[2\], contiguous"),
        ({"row_weight": torch.ones(2).bfloat16()}, "row_weight must be torch.float32"),
        ({"offsets": [0, 1]}, "offsets must be a tensor or None, not list"),
        ({"pow2": 1}, "pow2 must be True or False, not 1"),
        ({"amax_floor": 0.0}, "amax_floor must be a finite number"),
        ({"out": 3}, "out must be a BlockScaled, not int"),
    ],
)
def test_refuses(wrong, sentence, device):
    arguments = {"gate_up": torch.zeros(2, 256).bfloat16(), **wrong}
    arguments = {k: v.to(device) if hasattr(v, "to") else v for k, v in arguments.items()}
    with pytest.raises(InputError, match=sentence):
        ops.swiglu_quantize(arguments.pop("gate_up"), **arguments)


def test_refuses_columns_apart(device):
    with pytest.raises(InputError, match="gate_up must be contiguous along its last dimension"):
        ops.swiglu_quantize(torch.zeros(2, 512, device=device).bfloat16()[:, ::2])
