"""The change of tiles from 1x128 to 128x1, on every backend, against float64 in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import abyssal
from abyssal import ops, runtime
from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.tiles import scale_strides_1x128
from tests.ops.quantiser_model import (
    FLOOR,
    POSITIVE,
    as_bytes,
    blocks_of_groups,
    encode,
    poisoned_transposed,
    random_values,
    scales_of,
)
from tests.ops.test_quantize_both import GROUPED, int32

# The values of all codes.
VALUES = np.concatenate([POSITIVE, [np.nan], -POSITIVE, [np.nan]])


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def make(codes, scale, device):
    """A matrix of given codes [T, K] and scales [T, tiles]."""
    codes = torch.as_tensor(np.asarray(codes, np.uint8)).to(device)
    scale = torch.as_tensor(np.asarray(scale, np.float32)).to(device)
    laid_out = torch.empty_strided(
        scale.shape, scale_strides_1x128(scale.shape[0]), device=device
    ).copy_(scale)
    return BlockScaled(codes.view(torch.float8_e4m3fn), laid_out, (1, 128), axis=1)


def random_q(shape, device, seed=0, octaves=8):
    """All codes but NaN, and power-of-two scales; the rows of a tile are octaves apart."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 0x7F, shape) | random.integers(0, 2, shape) << 7
    scale = np.exp2(random.integers(-octaves, octaves + 1, (shape[0], -(-shape[1] // 128))))
    return make(codes, scale, device)


def retile_block(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of values [K, rows <= 128], float64: codes [K, 128] and scales [K]."""
    values = np.zeros((q.shape[0], 128))
    values[:, : q.shape[1]] = q
    codes, scales = np.empty(values.shape, np.uint8), np.empty(len(values), np.float32)
    for k, row in enumerate(values):
        amax = np.abs(row).max()
        if not amax < 2.0**129:
            codes[k], scales[k] = 0x7F, np.nan
            continue
        scale = 1.0 if amax == 0 else 2.0 ** np.ceil(np.log2(max(amax, FLOOR) / 448))
        codes[k], scales[k] = encode(np.clip(row / scale, -448, 448)), scale
    return codes, scales


def check(q, result, offsets, rounded_to_fp32=False):
    values = (
        VALUES[as_bytes(q)] * np.repeat(scales_of(q).astype(np.float64), 128, 1)[:, : q.shape[1]]
    )
    if rounded_to_fp32:
        values = values.astype(np.float32).astype(np.float64)
    codes = np.full(result.shape, 0x7F, np.uint8)
    scales = np.full(result.scale.shape, np.nan, np.float32)
    for column, first, end in blocks_of_groups(offsets):
        place = np.s_[:, column : column + 128]
        codes[place], scales[:, column // 128] = retile_block(values[first:end].T)
    np.testing.assert_array_equal(as_bytes(result), codes)
    np.testing.assert_array_equal(scales_of(result), scales)


def retiled(q, offsets=None):
    groups = None if offsets is None else len(offsets) - 1
    out = poisoned_transposed(*q.shape, groups, q.device)
    given = None if offsets is None else int32(offsets, q.device)
    assert ops.retile_128x1(q, given, out=out) is out
    return out


@pytest.mark.parametrize("shape", [(1, 1), (3, 129), (128, 128), (130, 208), (257, 72)])
def test_equals_numpy_bitwise(shape, device):
    q = random_q(shape, device)
    check(q, retiled(q), [0, shape[0]])


@pytest.mark.parametrize(("rows", "columns", "offsets"), GROUPED)
def test_groups(rows, columns, offsets, device):
    q = random_q((rows, columns), device)
    check(q, retiled(q, offsets), offsets)


def test_any_power_of_two_scales(device):
    q = ops.quantize_1x128(random_values((200, 144), torch.float32, device), pow2=True)
    check(q, retiled(q), [0, 200])


def test_other_scales_round_to_fp32_once(device):
    random = np.random.default_rng(1)
    codes = random.integers(0, 0x7F, (140, 144))
    q = make(codes, random.lognormal(0, 3, (140, 2)), device)
    check(q, retiled(q), [0, 140], rounded_to_fp32=True)


def test_the_same_as_quantising_the_values(device):
    """Where nothing overflows: through FP32 and `quantize_1x128_both`."""
    offsets = [0, 130, 131, 200]
    q = random_q((200, 144), device)
    _, expected = ops.quantize_1x128_both(q.dequantize(), int32(offsets, device), pow2=True)
    result = ops.retile_128x1(q, int32(offsets, device))
    for column, _, _ in blocks_of_groups(offsets):
        place = np.s_[:, column : column + 128]
        np.testing.assert_array_equal(as_bytes(result)[place], as_bytes(expected)[place])
        column //= 128
        np.testing.assert_array_equal(scales_of(result)[:, column], scales_of(expected)[:, column])


def test_exact_unless_below_the_normal_numbers_of_the_new_scale(device):
    q = ops.quantize_1x128(random_values((128, 128), torch.float32, device), pow2=True)
    result = ops.retile_128x1(q)
    values, got = q.dequantize(torch.float64).t(), result.dequantize(torch.float64)
    scale = result.scale.double()
    normal = values.abs() >= 2.0**-6 * scale
    assert 0 < int(normal.sum()) < normal.numel()
    assert torch.equal(values[normal], got[normal])
    assert ((values - got).abs() <= 2.0**-10 * scale)[~normal].all()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_groups(data):
    """Hypothesis takes no fixture: whatever backend the fixture has set."""
    rows = data.draw(st.integers(1, 300))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), min_size=1, max_size=6)))
    q = random_q(
        (rows, data.draw(st.integers(1, 140))), "cpu", octaves=data.draw(st.integers(0, 99))
    )
    backends = ["reference"] + ["emulator"] * (runtime.why_not_emulator() is None)
    with abyssal.backend(data.draw(st.sampled_from(backends))):
        check(q, retiled(q, [0, *cuts]), [0, *cuts])


@pytest.mark.parametrize("policy", ["late", "early", "random"])
def test_any_schedule(policy, backend, device):
    if backend != "emulator":
        pytest.skip("schedules are the emulator's")
    from abyssal.emulator import Device

    q, offsets = random_q((210, 144), device), [0, 130, 131, 200]
    for seed in range(3):
        with Device(num_sms=4, policy=policy, seed=seed).for_ops():
            check(q, retiled(q, offsets), offsets)


@pytest.mark.parametrize("largest", [3.4e38, 2.0**-126, 2.0**-140, 2.0**-149])
def test_extremes_of_fp32(largest, device):
    """The largest numbers come back as 2^128: nothing on the way may overflow."""
    x = torch.tensor([[largest, -largest, 0.0], [largest / 4, 0.0, largest / 2]], device=device)
    q = ops.quantize_1x128(x, pow2=True)
    result = retiled(q)
    check(q, result, [0, 2])
    assert result.scale.isfinite().all()


def test_scales_far_apart_in_one_tile(device):
    """A zero whose scale is huge, and a small number below a huge one."""
    scale = [[2.0**120], [2.0**-126], [2.0**-126], [1.0]]
    q = make([[0x80, 0x08], [0x7E, 0x7E], [0x01, 0x01], [0, 0]], scale, device)
    result = retiled(q)
    check(q, result, [0, 4])
    assert result.scale.flatten().tolist() == [2.0**-126, 2.0**106]
    assert as_bytes(result)[0, :4].tolist() == [0x80, 0x7E, 0x01, 0]


@pytest.mark.parametrize(
    ("code", "scale"),
    [(0x7F, 1.0), (0xFF, 1.0), (0, float("nan")), (0x38, float("inf")), (0x7E, 2.0**121)],
)
def test_a_tile_with_nan_or_too_large_is_nan_and_its_neighbours_are_not(code, scale, device):
    healthy = random_q((150, 272), device)
    codes, scales = as_bytes(healthy).copy(), scales_of(healthy).copy()
    codes[140, 128:256] = 0
    codes[140, 130], scales[140, 1] = code, scale
    q = make(codes, scales, device)
    result = retiled(q)
    # A bad scale reaches the whole row of its tile, a code one column.
    columns = 1 if np.isfinite(scale) else 128
    assert int(result.scale.isnan().sum()) == columns and result.scale[130, 1].isnan()
    assert (as_bytes(result)[130, 128:] == 0x7F).all()
    if not np.isinf(scale):
        check(q, result, [0, 150])


def test_zeros_have_scale_one_and_padding_is_plus_zero(device):
    result = retiled(make(np.full((3, 16), 0x80), np.full((3, 1), 2.0**60), device))
    assert (result.scale == 1).all()
    assert (as_bytes(result)[:, :3] == 0x80).all() and (as_bytes(result)[:, 3:] == 0).all()


@pytest.mark.parametrize("offset", [0, 1, 16])
def test_rows_may_be_apart_and_unaligned(offset, device):
    q = random_q((37, 144), device)
    wide = torch.full((37, 208), 0x7F, dtype=torch.uint8, device=device)
    codes = wide[:, offset : offset + 144]
    codes.copy_(q.data.view(torch.uint8))
    scales = torch.full((2, 50), float("nan"), device=device)
    scale = scales.t()[:37].copy_(q.scale)
    apart = BlockScaled(codes.view(torch.float8_e4m3fn), scale, (1, 128), axis=1)
    check(q, retiled(apart), [0, 37])


def test_writes_nothing_beyond_its_outputs(device):
    q = random_q((130, 133), device)
    guarded = torch.full((133 * 256 + 512,), 0xA5, dtype=torch.uint8, device=device)
    data = guarded[256:-256].view(133, 256).view(torch.float8_e4m3fn)
    storage = torch.full((2, 136), -7.0, device=device)
    ops.retile_128x1(q, out=BlockScaled(data, storage.t()[:133], (1, 128), axis=1))
    assert (guarded[:256] == 0xA5).all() and (guarded[-256:] == 0xA5).all()
    assert (storage[:, 133:] == -7).all() and (storage[:, :133] > 0).all()


def test_same_bits_every_time(device):
    q = random_q((200, 144), device)
    first = retiled(q)
    for _ in range(3):
        again = retiled(q)
        np.testing.assert_array_equal(as_bytes(first), as_bytes(again))
        np.testing.assert_array_equal(scales_of(first), scales_of(again))


def test_layout_of_the_result(device):
    result = ops.retile_128x1(random_q((300, 130), device), int32([0, 7, 300], device))
    assert result.shape == (130, 512) and result.data.is_contiguous()
    assert result.scale.shape == (130, 4) and result.scale.stride() == (1, 132)
    assert result.block == (1, 128) and result.axis == 1


def test_no_rows(device):
    q = ops.quantize_1x128(torch.empty(0, 130, device=device), pow2=True)
    assert ops.retile_128x1(q).shape == (130, 0)
    assert (as_bytes(retiled(q, [0, 0, 0])) == 0x7F).all()


def test_opcheck(backend, device):
    q = random_q((9, 140), device)
    offsets = int32(range(10), device)  # as many blocks as there may be: all are written
    op = torch.ops.abyssal.retile_128x1
    # As in test_quantize.py; here the inputs are FP8, too.
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op.default, (q.data, q.scale, offsets, backend), test_utils=utils)
    out = retiled(q)
    torch.library.opcheck(
        torch.ops.abyssal.retile_128x1_out.default,
        (q.data, q.scale, None, out.data, out.scale, backend),
        test_utils=utils,
    )


def test_compiles_into_one_graph(device):
    def doubled(x):
        return ops.retile_128x1(ops.quantize_1x128(x, pow2=True)).dequantize() * 2

    x = random_values((37, 140), torch.bfloat16, device)
    assert torch.equal(torch.compile(doubled, fullgraph=True)(x), doubled(x))


def test_refuses(device):
    q = random_q((6, 300), device)
    for wrong, sentence in [
        ((3,), "q must be a BlockScaled, not int"),
        ((q.t(),), r"q must have block \(1, 128\) and axis 1"),
        ((q, torch.zeros(2, device=device)), r"offsets must be int32 \[G \+ 1\]"),
        ((BlockScaled(q.data, q.scale.contiguous(), (1, 128)),), "q.scale must have the scales of"),
        (
            (BlockScaled(q.data.t().contiguous().t(), q.scale, (1, 128)),),
            "q.data must be contiguous along K",
        ),
    ]:
        with pytest.raises(InputError, match=sentence):
            ops.retile_128x1(*wrong)
    with pytest.raises(InputError, match=r"out.data must be .* \[300, 128\]"):
        ops.retile_128x1(q, out=q)
    with pytest.raises(InputError, match="out must be a BlockScaled, not tuple"):
        ops.retile_128x1(q, out=(1, 2))
