"""FP8 quantisers."""

from __future__ import annotations

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.ops.backend import choose_backend, launch_target
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.quantiser_checks import check_options, check_x
from abyssal.ops.registration import define
from abyssal.ops.tiles import check_rowwise, empty_rowwise, matrix, nothing, scale_pitch
from abyssal.reference import quantize as reference
from abyssal.reference.quantize import AMAX_FLOOR


def quantize_1x128(
    x: Tensor,
    *,
    pow2: bool = False,
    amax_floor: float = AMAX_FLOOR,
    out: BlockScaled | None = None,
) -> BlockScaled:
    """Quantise activations to E4M3 with one scale for each token and 128 channels.

    Report, section 3.3.2 (fine-grained quantisation). The numerics are those of
    `abyssal.reference.quantize`; every backend gives the same bits.

    Args:
        x: [M, K], bfloat16 or float32, contiguous along K; rows may be further apart. M may be 0.
            K need not be a multiple of 128, and is fastest as a multiple of 8.
        pow2: round scales up to powers of two, which makes a later change of tiles exact.
        amax_floor: the amax that a tile is taken to have at least. 1e-4 is what public code
            uses; gradients need the default, which is as small as FP32 scales can go.
        out: a result of the same shape to overwrite; it is returned.

    Returns:
        BlockScaled with data [M, K], scale [M, ceil(K / 128)] of strides (1, 4 ceil(M / 4)),
        block (1, 128), axis 1. No gradient flows through it.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    check_x(x)
    check_options(pow2, amax_floor)
    backend = choose_backend(x)
    if out is None:
        data, scale = torch.ops.abyssal.quantize_1x128(x.detach(), pow2, amax_floor, backend)
        return matrix(data, scale)
    check_rowwise("out", out, x.shape, x.device)
    torch.ops.abyssal.quantize_1x128_out(x.detach(), out.data, out.scale, pow2, amax_floor, backend)
    return out


def _functional(x: Tensor, pow2: bool, amax_floor: float, backend: str) -> tuple[Tensor, Tensor]:
    data, scale = empty_rowwise(x, x.shape)
    _into(x, data, scale, pow2, amax_floor, backend)
    return data, scale


def _into(
    x: Tensor, data: Tensor, scale: Tensor, pow2: bool, amax_floor: float, backend: str
) -> None:
    if backend == "reference":
        result = reference.quantize_1x128(x, pow2=pow2, amax_floor=amax_floor)
        data.copy_(result[0])
        scale.copy_(result[1])
        return
    target = launch_target(backend, x, data, scale)
    rows, columns = x.shape
    runtime.extension().quantize_1x128(
        target.device,
        target.stream,
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        data.data_ptr(),
        scale.data_ptr(),
        x.stride(0),
        scale_pitch(scale),
        rows,
        columns,
        amax_floor,
        pow2,
    )


def _fake(x: Tensor, pow2: bool, amax_floor: float, backend: str) -> tuple[Tensor, Tensor]:
    return empty_rowwise(x, x.shape)


define(
    "quantize_1x128(Tensor x, bool pow2, float amax_floor, str backend) -> (Tensor, Tensor)",
    _functional,
    fake=_fake,
)
define(
    "quantize_1x128_out(Tensor x, Tensor(a!) data, Tensor(b!) scale, bool pow2, "
    "float amax_floor, str backend) -> ()",
    _into,
    fake=nothing,
)
