"""The 128x128 quantiser, on every backend, against a model in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import abyssal
from abyssal import ops, runtime
from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled
from tests.ops.quantiser_model import as_bytes, quantize_tiles, random_values, scales_of

SHAPES = [(1, 1), (128, 128), (3, 129), (200, 144), (144, 40), (3, 130, 136), (2, 16, 32)]


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def poisoned(w, transpose):
    """Memory for a result, every byte of it NaN."""
    *stack, rows, columns = w.shape
    tiles = (*stack, -(-rows // 128), -(-columns // 128))
    scale = torch.full(tiles, float("nan"), device=w.device)

    def matrix(shape, scale):
        data = torch.full(shape, 0x7F, dtype=torch.uint8, device=w.device)
        return BlockScaled(data.view(torch.float8_e4m3fn), scale, (128, 128), axis=1)

    plain = matrix((*stack, rows, columns), scale)
    transposed = matrix((*stack, columns, rows), scale.mT)
    return (plain, transposed) if transpose == "both" else transposed if transpose else plain


def check(w, result, transpose, pow2=False):
    values = w.float().cpu().numpy()
    stack = values if values.ndim == 3 else values[None]
    each = [quantize_tiles(matrix, (128, 128), pow2) for matrix in stack]
    codes = np.stack([codes for codes, _ in each]).reshape(values.shape)
    scales = np.stack([scales for _, scales in each]).reshape(*values.shape[:-2], *each[0][1].shape)
    results = result if transpose == "both" else (result,)
    orientations = (False, True) if transpose == "both" else (transpose,)
    for matrix, is_transposed in zip(results, orientations, strict=True):
        turn = (lambda a: a.swapaxes(-1, -2)) if is_transposed else (lambda a: a)
        np.testing.assert_array_equal(as_bytes(matrix), turn(codes))
        np.testing.assert_array_equal(scales_of(matrix), turn(scales))


@pytest.mark.parametrize("transpose", [False, True, "both"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_numpy_bitwise(shape, dtype, transpose, device):
    w = random_values(shape, dtype, device)
    pow2 = transpose == "both"
    out = poisoned(w, transpose)
    assert ops.quantize_128x128(w, transpose=transpose, pow2=pow2, out=out) is out
    check(w, out, transpose, pow2)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    """Hypothesis takes no fixture: whatever backend the fixture has set."""
    shape = data.draw(st.tuples(st.integers(1, 140), st.integers(1, 140)))
    w = random_values(shape, torch.bfloat16, "cpu", data.draw(st.integers(0, 99)))
    backends = ["reference"] + ["emulator"] * (runtime.why_not_emulator() is None)
    out = poisoned(w, "both")
    with abyssal.backend(data.draw(st.sampled_from(backends))):
        ops.quantize_128x128(w, transpose="both", out=out)
    check(w, out, "both")


@pytest.mark.parametrize("policy", ["late", "early", "random"])
def test_any_schedule(policy, backend, device):
    if backend != "emulator":
        pytest.skip("schedules are the emulator's")
    from abyssal.emulator import Device

    w = random_values((144, 160), torch.bfloat16, device)
    for seed in range(3):
        out = poisoned(w, "both")
        with Device(num_sms=2, policy=policy, seed=seed).for_ops():
            ops.quantize_128x128(w, transpose="both", out=out)
        check(w, out, "both")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tile_with_nan_or_inf_is_nan_and_its_neighbours_are_not(dtype, bad, device):
    w = random_values((160, 272), dtype, device)
    w[130, 200] = bad
    out = poisoned(w, "both")
    ops.quantize_128x128(w, transpose="both", out=out)
    check(w, out, "both")
    assert int(out[0].scale.isnan().sum()) == 1
    assert (as_bytes(out[1])[128:256, 128:] == 0x7F).all()


def test_zeros_have_scale_one(device):
    w = torch.zeros(130, 16, dtype=torch.bfloat16, device=device)
    w[128:] = -0.0
    q, q_t = ops.quantize_128x128(w, transpose="both", out=poisoned(w, "both"))
    assert (q.scale == 1).all()
    assert (as_bytes(q)[:128] == 0).all() and (as_bytes(q_t)[:, 128:] == 0x80).all()


@pytest.mark.parametrize("value", [2.0**-149, 2.0**-126, 1e-30, 3.3e38])
def test_extremes_of_fp32(value, device):
    w = torch.tensor([[value, -value, value / 2, 0.0]], device=device)
    out = poisoned(w, "both")
    check(w, ops.quantize_128x128(w, transpose="both", pow2=True, out=out), "both", True)


def test_the_floor_of_public_code(device):
    w = torch.full((2, 16), 1e-7, device=device)
    result = ops.quantize_128x128(w, amax_floor=1e-4)
    codes, scales = quantize_tiles(w.cpu().numpy(), (128, 128), False, 1e-4)
    np.testing.assert_array_equal(as_bytes(result), codes)
    np.testing.assert_array_equal(scales_of(result), scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_rows_and_groups_may_be_apart_and_unaligned(dtype, offset, device):
    wide = torch.full((3, 70, 200), float("nan"), dtype=dtype, device=device)
    w = wide[::2, 3:67, offset : offset + 144]
    w.copy_(random_values((2, 64, 144), dtype, device))
    out = poisoned(w, "both")
    ops.quantize_128x128(w, transpose="both", out=out)
    check(w, out, "both")


@pytest.mark.parametrize("shape", [(130, 144), (144, 133)])
def test_writes_nothing_beyond_its_outputs(shape, device):
    w = random_values(shape, torch.bfloat16, device)
    size = shape[0] * shape[1]
    memory = torch.full((2, size + 512), 0xA5, dtype=torch.uint8, device=device)
    scales = torch.full((6 + 4,), -7.0, device=device)
    tiles = (-(-shape[0] // 128), -(-shape[1] // 128))
    scale = scales[2 : 2 + tiles[0] * tiles[1]].view(tiles)
    inside = [m[256:-256].view(torch.float8_e4m3fn) for m in memory]
    out = (
        BlockScaled(inside[0].view(shape), scale, (128, 128), axis=1),
        BlockScaled(inside[1].view(shape[::-1]), scale.mT, (128, 128), axis=1),
    )
    ops.quantize_128x128(w, transpose="both", out=out)
    check(w, out, "both")
    assert (memory[:, :256] == 0xA5).all() and (memory[:, -256:] == 0xA5).all()
    assert (scales[:2] == -7).all() and (scales[2 + scale.numel() :] == -7).all()


def test_same_bits_every_time(device):
    w = random_values((130, 300), torch.bfloat16, device)
    first = ops.quantize_128x128(w, transpose="both")
    for _ in range(3):
        again = ops.quantize_128x128(w, transpose="both", out=poisoned(w, "both"))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(as_bytes(a), as_bytes(b))
            np.testing.assert_array_equal(scales_of(a), scales_of(b))


def test_layout_of_the_result(device):
    w = random_values((4, 300, 130), torch.bfloat16, device).requires_grad_()
    q, q_t = ops.quantize_128x128(w, transpose="both")
    assert q.shape == (4, 300, 130) and q.data.is_contiguous() and q.scale.is_contiguous()
    assert q_t.shape == (4, 130, 300) and q_t.data.is_contiguous()
    assert q.scale.shape == (4, 3, 2) and q_t.scale.shape == (4, 2, 3)
    assert q.scale.data_ptr() == q_t.scale.data_ptr()
    assert q.block == q_t.block == (128, 128) and q.axis == q_t.axis == 1
    assert not q.data.requires_grad
    assert torch.equal(q.dequantize().mT, q_t.dequantize())
    assert ops.quantize_128x128(w[:0]).shape == (0, 300, 130)


def test_opcheck(backend, device):
    w = random_values((9, 140), torch.bfloat16, device)
    op = torch.ops.abyssal.quantize_128x128.default
    for plain, transposed in ((True, False), (False, True), (True, True)):
        torch.library.opcheck(op, (w, plain, transposed, True, 1e-4, backend))
    q, q_t = poisoned(w, "both")
    torch.library.opcheck(
        torch.ops.abyssal.quantize_128x128_out.default,
        (w, q.data, q_t.data, q.scale, True, 1e-4, backend),
        # As in test_quantize.py.
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_compiles_into_one_graph(device):
    def doubled(w):
        q, q_t = ops.quantize_128x128(w, transpose="both")
        return q.dequantize() * 2, q_t.dequantize() * 2

    w = random_values((37, 140), torch.bfloat16, device)
    for got, want in zip(torch.compile(doubled, fullgraph=True)(w), doubled(w), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"w": "text"}, "w must be a tensor, not str"),
        ({"w": torch.zeros(4)}, r"w must be \[N, K\] or \[G, N, K\] .*, not \[4\]"),
        ({"w": torch.zeros(0, 4)}, r"w must be \[N, K\] or \[G, N, K\] .*, not \[0, 4\]"),
        ({"w": torch.zeros(2, 128).half()}, "w must be bfloat16 or float32, not torch.float16"),
        ({"w": torch.zeros(128, 2).t()}, "w must be contiguous along its last dimension"),
        ({"pow2": None}, "pow2 must be True or False, not None"),
        ({"amax_floor": 0.0}, "amax_floor must be a finite number"),
        ({"transpose": "yes"}, "transpose must be True, False or 'both', not 'yes'"),
        ({"transpose": 1}, "transpose must be True, False or 'both', not 1"),
        ({"out": 3}, "out must be a BlockScaled, not int"),
        ({"out": 3, "transpose": "both"}, "out must be a pair of BlockScaled, not int"),
    ],
)
def test_refuses(wrong, sentence, device):
    arguments = {"w": torch.zeros(2, 128, device=device), **wrong}
    with pytest.raises(InputError, match=sentence):
        ops.quantize_128x128(arguments.pop("w"), **arguments)


def test_refuses_out(device):
    w = torch.zeros(6, 300, device=device)
    q, q_t = ops.quantize_128x128(w, transpose="both")
    with pytest.raises(InputError, match=r"out.data must be .* \[6, 300\]"):
        ops.quantize_128x128(w, out=q_t)
    with pytest.raises(InputError, match=r"out.data must be .* \[300, 6\]"):
        ops.quantize_128x128(w, transpose=True, out=q)
    own = BlockScaled(q_t.data, q_t.scale.clone(), (128, 128), axis=1)
    with pytest.raises(InputError, match=r"out\[1\].scale must be out\[0\].scale.mT"):
        ops.quantize_128x128(w, transpose="both", out=(q, own))
    with pytest.raises(InputError, match=r"out must have block \(128, 128\)"):
        ops.quantize_128x128(w, out=ops.quantize_1x128(w))
