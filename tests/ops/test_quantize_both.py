"""The quantiser of both orientations, on every backend, against a model in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled
from abyssal.reference.quantize import transposed_group_start
from tests.ops.quantiser_model import (
    as_bytes,
    blocks_of_groups,
    emulated_and_reference,
    poisoned_rowwise,
    poisoned_transposed,
    quantize_tiles,
    random_values,
    scales_of,
)

SHAPES = [(1, 1), (3, 129), (128, 128), (130, 200), (257, 72)]
# (rows, columns, offsets): empty groups, groups of one, whole blocks, rows of no group, no rows in
# any group, more groups than a warp has lanes.
GROUPED = [
    (340, 136, [0, 3, 3, 140, 300]),
    (256, 128, [0, 128, 256]),
    (129, 24, [0, 1, 129]),
    (200, 40, [0, 0, 0]),
    (1, 16, [0, 1]),
    (5, 7, [0, 0, 5, 5]),
    (45, 33, list(range(41))),
    (300, 16, [0] * 35 + [150] * 30 + [299, 299]),
]


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def int32(offsets, device):
    return torch.tensor(offsets, dtype=torch.int32, device=device)


def poisoned(x, groups):
    return (
        poisoned_rowwise(*x.shape, x.device),
        poisoned_transposed(*x.shape, groups, x.device),
    )


def check(x, result, offsets, pow2=False):
    """Rowwise and transposed; what belongs to no group is still poison."""
    rowwise, transposed = result
    values = x.float().cpu().numpy()
    codes, scales = quantize_tiles(values, (1, 128), pow2)
    np.testing.assert_array_equal(as_bytes(rowwise), codes)
    np.testing.assert_array_equal(scales_of(rowwise), scales)
    got_codes, got_scales = as_bytes(transposed), scales_of(transposed)
    codes = np.full_like(got_codes, 0x7F)
    scales = np.full_like(got_scales, np.nan)
    for column, first, end in blocks_of_groups(offsets):
        padded = np.zeros((values.shape[1], 128), np.float32)
        padded[:, : end - first] = values[first:end].T
        place = np.s_[:, column : column + 128]
        codes[place], block_scales = quantize_tiles(padded, (1, 128), pow2)
        scales[:, column // 128] = block_scales[:, 0]
    np.testing.assert_array_equal(got_codes, codes)
    np.testing.assert_array_equal(got_scales, scales)


@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_numpy_bitwise(shape, dtype, pow2, device):
    x = random_values(shape, dtype, device)
    out = poisoned(x, None)
    assert ops.quantize_1x128_both(x, pow2=pow2, out=out) is out
    check(x, out, [0, shape[0]], pow2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns", "offsets"), GROUPED)
def test_groups(rows, columns, offsets, dtype, device):
    x = random_values((rows, columns), dtype, device)
    out = poisoned(x, len(offsets) - 1)
    ops.quantize_1x128_both(x, int32(offsets, device), out=out)
    check(x, out, offsets)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_groups(data):
    """Hypothesis takes no fixture: whatever backend the fixture has set."""
    rows = data.draw(st.integers(0, 300))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=1, max_size=6)))
    columns = data.draw(st.integers(1, 140))
    x = random_values((rows, columns), torch.bfloat16, "cpu", data.draw(st.integers(0, 99)))
    out = poisoned(x, len(cuts))
    with abyssal.backend(data.draw(st.sampled_from(emulated_and_reference()))):
        ops.quantize_1x128_both(x, int32([0, *cuts], "cpu"), out=out)
    check(x, out, [0, *cuts])


@pytest.mark.parametrize("policy", ["late", "early", "random"])
def test_any_schedule(policy, backend, device):
    if backend != "emulator":
        pytest.skip("schedules are the emulator's")
    from abyssal.emulator import Device

    offsets = [0, 130, 131, 200]
    x = random_values((210, 136), torch.bfloat16, device)
    for seed in range(3):
        out = poisoned(x, 3)
        with Device(num_sms=4, policy=policy, seed=seed).for_ops():
            ops.quantize_1x128_both(x, int32(offsets, device), out=out)
        check(x, out, offsets)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [144, 147])
def test_a_tile_with_nan_or_inf_is_nan_and_its_neighbours_are_not(columns, dtype, bad, device):
    x = random_values((150, columns), dtype, device)
    offsets = [0, 9, 140, 150]  # 137 to 139: the end of a group, in its second block
    x[138, 130] = bad
    out = poisoned(x, 3)
    ops.quantize_1x128_both(x, int32(offsets, device), out=out)
    check(x, out, offsets)
    start = transposed_group_start(int32(offsets, device))[1] + 128
    assert out[1].scale[130, start // 128].isnan() and int(out[0].scale.isnan().sum()) == 1
    assert (as_bytes(out[1])[130, start : start + 128] == 0x7F).all()


def test_zeros_have_scale_one_and_padding_is_plus_zero(device):
    x = torch.full((3, 16), -0.0, dtype=torch.bfloat16, device=device)
    rowwise, transposed = ops.quantize_1x128_both(x, out=poisoned(x, None))
    assert (rowwise.scale == 1).all() and (transposed.scale == 1).all()
    codes = as_bytes(transposed)
    assert (codes[:, :3] == 0x80).all() and (codes[:, 3:] == 0).all()


@pytest.mark.parametrize("value", [2.0**-149, 2.0**-126, 1e-30, 3.3e38])
@pytest.mark.parametrize("pow2", [False, True])
def test_extremes_of_fp32(value, pow2, device):
    x = torch.tensor([[value, 0.0, -value], [0.0, value / 2, value]], device=device)
    out = poisoned(x, None)
    ops.quantize_1x128_both(x, pow2=pow2, out=out)
    check(x, out, [0, 2], pow2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_rows_may_be_apart_and_unaligned(dtype, offset, device):
    wide = torch.full((37, 200), float("nan"), dtype=dtype, device=device)
    x = wide[:, offset : offset + 136]
    x.copy_(random_values((37, 136), dtype, device))
    out = poisoned(x, None)
    ops.quantize_1x128_both(x, out=out)
    check(x, out, [0, 37])


def test_writes_nothing_beyond_its_outputs(device):
    """Guard bytes around the transposed codes; the padding of both scales."""
    x = random_values((130, 133), torch.bfloat16, device)
    guarded = torch.full((133 * 256 + 512,), 0xA5, dtype=torch.uint8, device=device)
    data = guarded[256:-256].view(133, 256).view(torch.float8_e4m3fn)
    storage = torch.full((2, 136), -7.0, device=device)
    transposed = BlockScaled(data, storage.t()[:133], (1, 128), axis=1)
    rowwise = poisoned_rowwise(130, 133, device)
    ops.quantize_1x128_both(x, out=(rowwise, transposed))
    assert (guarded[:256] == 0xA5).all() and (guarded[-256:] == 0xA5).all()
    assert (storage[:, 133:] == -7).all() and (storage[:, :133] > 0).all()


def test_the_same_as_each_quantiser_alone_and_every_time(device):
    x = random_values((256, 256), torch.bfloat16, device)
    expected = (
        ops.quantize_1x128(x, amax_floor=1e-4),
        ops.quantize_1x128(x.t().contiguous(), amax_floor=1e-4),
    )
    for _ in range(3):
        for got, want in zip(ops.quantize_1x128_both(x, amax_floor=1e-4), expected, strict=True):
            np.testing.assert_array_equal(as_bytes(got), as_bytes(want))
            np.testing.assert_array_equal(scales_of(got), scales_of(want))


def test_layout_of_the_result(device):
    x = random_values((300, 130), torch.bfloat16, device).requires_grad_()
    rowwise, transposed = ops.quantize_1x128_both(x, int32([0, 7, 300], device))
    assert rowwise.shape == (300, 130) and rowwise.scale.stride() == (1, 300)
    assert transposed.shape == (130, 512) and transposed.data.is_contiguous()
    assert transposed.scale.shape == (130, 4) and transposed.scale.stride() == (1, 132)
    assert transposed.block == (1, 128) and transposed.axis == 1
    assert not rowwise.data.requires_grad and not transposed.data.requires_grad


def test_no_rows(device):
    x = torch.empty(0, 130, device=device)
    rowwise, transposed = ops.quantize_1x128_both(x)
    assert rowwise.shape == (0, 130) and transposed.shape == (130, 0)
    out = poisoned(x, 2)
    ops.quantize_1x128_both(x, int32([0, 0, 0], device), out=out)
    assert out[1].shape == (130, 256) and (as_bytes(out[1]) == 0x7F).all()


def test_opcheck(backend, device):
    x = random_values((9, 140), torch.bfloat16, device)
    offsets = int32(range(10), device)  # as many blocks as there may be: all are written
    name = torch.ops.abyssal.quantize_1x128_both
    torch.library.opcheck(name.default, (x, offsets, True, 1e-4, backend))
    rowwise, transposed = poisoned(x, None)
    torch.library.opcheck(
        torch.ops.abyssal.quantize_1x128_both_out.default,
        (
            x,
            None,
            rowwise.data,
            rowwise.scale,
            transposed.data,
            transposed.scale,
            True,
            1e-4,
            backend,
        ),
        # As in test_quantize.py.
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_compiles_into_one_graph(device):
    def doubled(x):
        rowwise, transposed = ops.quantize_1x128_both(x, pow2=True)
        return rowwise.dequantize() * 2, transposed.dequantize() * 2

    x = random_values((37, 140), torch.bfloat16, device)
    compiled = torch.compile(doubled, fullgraph=True)(x)
    for got, want in zip(compiled, doubled(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"x": torch.zeros(4)}, r"x must be \[M, K\]"),
        ({"x": torch.zeros(2, 128).half()}, "x must be bfloat16 or float32, not torch.float16"),
        ({"pow2": 1}, "pow2 must be True or False, not 1"),
        ({"amax_floor": 0.0}, "amax_floor must be a finite number"),
        ({"offsets": [0, 1]}, "offsets must be a tensor or None, not list"),
        ({"offsets": torch.zeros(2)}, r"offsets must be int32 \[G \+ 1\]"),
        ({"offsets": torch.zeros(1, dtype=torch.int32)}, r"offsets must be int32 \[G \+ 1\]"),
        ({"offsets": torch.zeros(4, dtype=torch.int32)[::2]}, "offsets must be contiguous"),
        ({"out": 3}, "out must be a pair of BlockScaled, not int"),
        ({"out": (1, 2)}, r"out\[0\] must be a BlockScaled, not int"),
    ],
)
def test_refuses(wrong, sentence, device):
    arguments = {"x": torch.zeros(2, 128), **wrong}
    arguments = {k: v.to(device) if hasattr(v, "to") else v for k, v in arguments.items()}
    if "offsets" in wrong and "contiguous" in sentence:
        arguments["offsets"] = torch.zeros(4, dtype=torch.int32, device=device)[::2]
    with pytest.raises(InputError, match=sentence):
        ops.quantize_1x128_both(arguments.pop("x"), arguments.pop("offsets", None), **arguments)


def test_refuses_out(device):
    x = torch.zeros(6, 300, device=device)
    rowwise, transposed = ops.quantize_1x128_both(x)
    with pytest.raises(InputError, match=r"out\[1\].data must be .*\[300, 128\]"):
        ops.quantize_1x128_both(x, out=(rowwise, rowwise))
    with pytest.raises(InputError, match=r"out\[1\].data must be .*\[300, 256\]"):
        ops.quantize_1x128_both(x, int32([0, 1, 6], device), out=(rowwise, transposed))
    memory = torch.zeros(300 * 128 + 16, dtype=torch.uint8, device=device)
    unaligned = memory[8:-8].view(torch.float8_e4m3fn).view(300, 128)
    wrong = BlockScaled(unaligned, transposed.scale, (1, 128), axis=1)
    with pytest.raises(InputError, match=r"out\[1\].data must begin at a multiple of 16 bytes"):
        ops.quantize_1x128_both(x, out=(rowwise, wrong))
