"""The 1x128 quantiser, on every backend, against NumPy and against the numbers' own meaning."""

import numpy as np
import pytest
import torch

import abyssal
from abyssal import ops
from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.tiles import scale_strides_1x128
from tests.ops.quantiser_model import encode

SHAPES = [
    (1, 1),
    (1, 128),
    (3, 129),
    (5, 7),
    (31, 576),
    (32, 512),
    (33, 640),
    (65, 1100),
    (7, 2056),
]


@pytest.fixture(autouse=True)
def on_backend(backend):
    with abyssal.backend(backend):
        yield


def random_x(shape, dtype, device, seed=0):
    """Values whose magnitude changes over many octaves, from tile to tile and within."""
    generator = torch.Generator().manual_seed(seed)
    octaves = torch.randint(-40, 40, (shape[0], 1), generator=generator)
    spread = torch.randint(-12, 3, shape, generator=generator)
    x = torch.ldexp(torch.randn(shape, generator=generator), octaves + spread)
    return x.to(dtype).to(device)


def as_bytes(matrix: BlockScaled) -> torch.Tensor:
    return matrix.data.view(torch.uint8)


def poisoned(x: torch.Tensor) -> BlockScaled:
    """Memory for a result, every byte of it NaN."""
    rows, columns = x.shape
    data = torch.full((rows, columns), 0x7F, dtype=torch.uint8, device=x.device)
    scale = torch.empty_strided(
        (rows, -(-columns // 128)), scale_strides_1x128(rows), device=x.device
    ).fill_(float("nan"))
    return BlockScaled(data.view(torch.float8_e4m3fn), scale, (1, 128), axis=1)


def quantize_with_numpy(x: torch.Tensor, pow2: bool, amax_floor: float):
    values = x.float().cpu().numpy()
    rows, columns = values.shape
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, -(-columns // 128)), np.float32)
    for row in range(rows):
        for tile in range(scales.shape[1]):
            part = slice(128 * tile, min(128 * tile + 128, columns))
            amax = np.abs(values[row, part]).max()
            scale = np.float32(max(amax, np.float32(amax_floor))) / np.float32(448)
            if pow2:
                scale = np.float32(2.0 ** np.ceil(np.log2(np.float64(scale))))
            scale = np.float32(1) if amax == 0 else scale
            scaled = np.clip(values[row, part] * (np.float32(1) / scale), -448, 448)
            codes[row, part] = encode(scaled)
            scales[row, tile] = scale
    return codes, scales


@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_numpy_bitwise(shape, dtype, pow2, device):
    x = random_x(shape, dtype, device, seed=hash((shape, pow2)) % 2**31)
    out = poisoned(x)
    result = ops.quantize_1x128(x, pow2=pow2, out=out)
    assert result is out
    codes, scales = quantize_with_numpy(x, pow2, ops.quantize.AMAX_FLOOR)
    np.testing.assert_array_equal(out.scale.cpu().numpy(), scales)
    np.testing.assert_array_equal(as_bytes(out).cpu().numpy(), codes)


def test_the_floor_of_public_code(device):
    x = torch.full((2, 128), 1e-7, dtype=torch.float32, device=device)
    result = ops.quantize_1x128(x, amax_floor=1e-4)
    codes, scales = quantize_with_numpy(x, False, 1e-4)
    assert result.scale[0, 0].item() == scales[0, 0] == np.float32(1e-4) / np.float32(448)
    np.testing.assert_array_equal(as_bytes(result).cpu().numpy(), codes)


@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_error_is_that_of_four_significant_bits(dtype, pow2, device):
    """Against float64: at most half a step of E4M3, relative to the value or the smallest step."""
    x = random_x((64, 1000), dtype, device)
    result = ops.quantize_1x128(x, pow2=pow2)
    exact, got = x.double(), result.dequantize(torch.float64)
    scale = result.scale.double().repeat_interleave(128, 1)[:, : x.shape[1]]
    # 1 + 2^-22: the inverse of the scale and the product are rounded, too.
    bound = torch.maximum(exact.abs() * 2**-4, scale * 2**-10) * (1 + 2**-22)
    assert ((exact - got).abs() <= bound).all()
    amax = exact.abs().amax(1)
    assert ((exact - got).abs().amax(1) <= amax * 2**-4 * (1 + 2**-22)).all()


def test_zeros_have_scale_one(device):
    x = torch.zeros(2, 300, dtype=torch.bfloat16, device=device)
    x[1] = -0.0
    result = ops.quantize_1x128(x, out=poisoned(x))
    assert (result.scale == 1).all()
    assert (as_bytes(result)[0] == 0).all() and (as_bytes(result)[1] == 0x80).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [384, 387])
def test_a_tile_with_nan_or_inf_is_nan_and_its_neighbours_are_not(columns, dtype, bad, device):
    x = random_x((40, columns), dtype, device)
    healthy = ops.quantize_1x128(x)
    x[17, 130] = bad
    result = ops.quantize_1x128(x)
    assert result.scale[17, 1].isnan()
    assert (as_bytes(result)[17, 128:256] == 0x7F).all()
    assert result.dequantize()[17, 128:256].isnan().all()
    others = torch.ones(40, columns, dtype=torch.bool, device=device)
    others[17, 128:256] = False
    assert torch.equal(as_bytes(result)[others], as_bytes(healthy)[others])
    assert int(result.scale.isnan().sum()) == 1


@pytest.mark.parametrize("value", [2.0**-149, 2.0**-133, 2.0**-126, 1e-30, 1e30, 3.3e38])
@pytest.mark.parametrize("pow2", [False, True])
def test_extremes_of_fp32(value, pow2, device):
    x = torch.tensor([[value, -value, value / 2, 0.0]], device=device)
    result = ops.quantize_1x128(x, pow2=pow2)
    codes, scales = quantize_with_numpy(x, pow2, ops.quantize.AMAX_FLOOR)
    np.testing.assert_array_equal(result.scale.cpu().numpy(), scales)
    np.testing.assert_array_equal(as_bytes(result).cpu().numpy(), codes)
    assert result.dequantize(torch.float64).isfinite().all()


def test_power_of_two_scales_lose_nothing_that_fits(device):
    """Numbers of four significant bits come back exactly, whatever their tile's octave."""
    generator = torch.Generator().manual_seed(3)
    octave = torch.randint(-60, 60, (50, 1), generator=generator)
    x = torch.randint(8, 16, (50, 256), generator=generator).float()
    x = torch.ldexp(x, octave).to(device)
    assert torch.equal(ops.quantize_1x128(x, pow2=True).dequantize(), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_rows_may_be_apart_and_unaligned(dtype, offset, device):
    wide = random_x((37, 700), dtype, device)
    x = wide[:, offset : offset + 384]
    assert not x.is_contiguous()
    result, expected = ops.quantize_1x128(x), ops.quantize_1x128(x.contiguous())
    assert torch.equal(as_bytes(result), as_bytes(expected))
    assert torch.equal(result.scale, expected.scale)


def test_writes_nothing_beyond_its_outputs(device):
    """Guard bytes around the codes, the rows of padding in the scale."""
    x = random_x((33, 130), torch.bfloat16, device)
    rows, columns = x.shape
    guarded = torch.full((rows * columns + 512,), 0xA5, dtype=torch.uint8, device=device)
    data = guarded[256:-256].view(rows, columns).view(torch.float8_e4m3fn)
    storage = torch.full((2, 36), -7.0, device=device)
    out = BlockScaled(data, storage.t()[:rows], (1, 128), axis=1)
    ops.quantize_1x128(x, out=out)
    assert (guarded[:256] == 0xA5).all() and (guarded[-256:] == 0xA5).all()
    assert (storage[:, rows:] == -7).all() and (storage[:, :rows] > 0).all()


def test_same_bits_every_time(device):
    x = random_x((129, 1000), torch.bfloat16, device)
    first = ops.quantize_1x128(x)
    for _ in range(3):
        again = ops.quantize_1x128(x, out=poisoned(x))
        assert torch.equal(as_bytes(first), as_bytes(again))
        assert torch.equal(first.scale, again.scale)


def test_layout_of_the_result(device):
    x = random_x((5, 300), torch.bfloat16, device)
    result = ops.quantize_1x128(x)
    assert result.data.dtype == torch.float8_e4m3fn and result.data.is_contiguous()
    assert result.scale.shape == (5, 3) and result.scale.stride() == (1, 8)
    assert result.block == (1, 128) and result.axis == 1


def test_no_rows(device):
    result = ops.quantize_1x128(torch.empty(0, 256, device=device))
    assert result.data.shape == (0, 256) and result.scale.shape == (0, 2)


def test_no_gradient_flows(device):
    x = torch.randn(2, 128, device=device, requires_grad=True)
    assert not ops.quantize_1x128(x).data.requires_grad


def test_opcheck(backend, device):
    x = random_x((9, 300), torch.bfloat16, device)
    out = poisoned(x)
    torch.library.opcheck(torch.ops.abyssal.quantize_1x128.default, (x, True, 1e-4, backend))
    # Its check of the schema compares tensors with allclose, which FP8 lacks; the test on
    # guard bytes and the comparison with NumPy show what is written.
    torch.library.opcheck(
        torch.ops.abyssal.quantize_1x128_out.default,
        (x, out.data, out.scale, True, 1e-4, backend),
        test_utils=(
            "test_autograd_registration",
            "test_faketensor",
            "test_aot_dispatch_dynamic",
        ),
    )


def test_compiles_into_one_graph(device):
    def doubled(x):
        return ops.quantize_1x128(x, pow2=True).dequantize() * 2

    x = random_x((37, 300), torch.bfloat16, device)
    assert torch.equal(torch.compile(doubled, fullgraph=True)(x), doubled(x))


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(4), r"x must be \[M, K\]"),
        (torch.zeros(2, 3, 4), r"x must be \[M, K\]"),
        (torch.zeros(2, 0), r"x must be \[M, K\]"),
        (torch.zeros(2, 128, dtype=torch.float16), "bfloat16 or float32, not torch.float16"),
        (torch.zeros(128, 2).t(), "contiguous along its last dimension"),
    ],
)
def test_refuses_x(x, sentence, device):
    with pytest.raises(InputError, match=sentence):
        ops.quantize_1x128(x.to(device))


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf"), 1e-37])
def test_refuses_amax_floor(floor, device):
    with pytest.raises(InputError, match="amax_floor"):
        ops.quantize_1x128(torch.zeros(2, 128, device=device), amax_floor=floor)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"x": "text"}, "x must be a tensor, not str"),
        ({"x": None}, "x must be a tensor, not NoneType"),
        ({"pow2": "yes"}, "pow2 must be True or False, not 'yes'"),
        ({"pow2": 1}, "pow2 must be True or False, not 1"),
        ({"amax_floor": None}, "amax_floor must be a number, not None"),
        ({"amax_floor": "1e-4"}, "amax_floor must be a number, not '1e-4'"),
        ({"out": (1, 2)}, "out must be a BlockScaled, not tuple"),
    ],
)
def test_refuses_wrong_types(wrong, sentence, device):
    arguments = {"x": torch.zeros(2, 128, device=device), **wrong}
    with pytest.raises(InputError, match=sentence):
        ops.quantize_1x128(arguments.pop("x"), **arguments)


def test_refuses_out(device):
    x = torch.zeros(6, 300, device=device)
    good = ops.quantize_1x128(x)
    columns_first = torch.zeros(300, 6, device=device).to(torch.float8_e4m3fn).t()
    for name, data, scale in [
        ("data", good.data[:5], good.scale[:5]),
        ("data", columns_first, good.scale),
        ("scale", good.data, good.scale.contiguous()),
    ]:
        with pytest.raises(InputError, match=f"out.{name} must be"):
            ops.quantize_1x128(x, out=BlockScaled(data, scale, block=(1, 128), axis=1))
    with pytest.raises(InputError, match="block"):
        ops.quantize_1x128(x, out=good.t())
