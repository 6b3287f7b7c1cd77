"""FP8 quantisers whose results weight gradients read: tiles of 128 tokens, transposed.

The transposed layout of a matrix [T, K] is BlockScaled with data [K, Tp] and scale [K, Tp / 128]
of strides (1, 4 ceil(K / 4)), block (1, 128): value [k, t]. Tokens come in groups, one for each
expert; group g begins at column 128 * (offsets[g] // 128 + g) and is padded to a multiple of 128
columns with zeros. Blocks of 128 columns that lie between groups are not written, and nobody reads
them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError
from abyssal.ops.backend import choose_backend, launch_target
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.quantiser_checks import (
    MOST_COLUMNS,
    MOST_ROWS,
    check_block_scaled,
    check_offsets,
    check_options,
    check_x,
)
from abyssal.ops.registration import define
from abyssal.ops.tiles import (
    BLOCK_1X128,
    check_rowwise,
    check_transposed,
    empty_rowwise,
    empty_transposed,
    matrix,
    nothing,
    scale_pitch,
    write_groups,
)
from abyssal.reference import quantize as reference
from abyssal.reference.quantize import AMAX_FLOOR


def quantize_1x128_both(
    x: Tensor,
    offsets: Tensor | None = None,
    *,
    pow2: bool = False,
    amax_floor: float = AMAX_FLOOR,
    out: tuple[BlockScaled, BlockScaled] | None = None,
) -> tuple[BlockScaled, BlockScaled]:
    """Quantise activations to E4M3 for both products that read them, in one pass over x.

    Report, section 3.3.2 and appendix B.2: the product of the next layer sums over channels and
    takes tiles of 128 channels of a token, weight gradients sum over tokens and take tiles of 128
    tokens of a channel. The numerics are those of `abyssal.reference.quantize`; every backend
    gives the same bits.

    Args:
        x: [T, K], as for `quantize_1x128`.
        offsets: int32 [G + 1], contiguous, on x's device: tokens of group g are rows offsets[g] to
            offsets[g + 1], offsets[0] is 0, none is below the one before and none above T. Not
            read by the host, and not checked. None: all tokens are one group.
        pow2, amax_floor: as for `quantize_1x128`, for both.
        out: results of the same shapes to overwrite; returned.

    Returns:
        (rowwise, transposed): rowwise as `quantize_1x128(x)`, all rows; transposed in the layout
        that this module describes, with Tp = 128 ceil(T / 128), or 128 (T // 128 + G) with
        offsets. Rows from offsets[G] on are in no group and only in rowwise.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    check_x(x)
    check_offsets(offsets, x.device)
    check_options(pow2, amax_floor)
    backend = choose_backend(x)
    if out is None:
        data, scale, data_t, scale_t = torch.ops.abyssal.quantize_1x128_both(
            x.detach(), offsets, pow2, amax_floor, backend
        )
        return (
            matrix(data, scale),
            matrix(data_t, scale_t),
        )
    if not isinstance(out, tuple) or len(out) != 2:
        raise InputError(f"out must be a pair of BlockScaled, not {type(out).__name__}")
    rowwise, transposed = out
    check_rowwise("out[0]", rowwise, x.shape, x.device)
    check_transposed("out[1]", transposed, x.shape, offsets, x.device)
    torch.ops.abyssal.quantize_1x128_both_out(
        x.detach(),
        offsets,
        rowwise.data,
        rowwise.scale,
        transposed.data,
        transposed.scale,
        pow2,
        amax_floor,
        backend,
    )
    return out


def retile_128x1(
    q: BlockScaled, offsets: Tensor | None = None, *, out: BlockScaled | None = None
) -> BlockScaled:
    """Change the tiles of quantised activations from 128 channels to 128 tokens, transposed.

    Report, section 3.5.2: activations kept in FP8 for the weight gradient are read, decoded,
    transposed and encoded again. With scales that are powers of two (`pow2=True`) values stay what
    they are, except those below 2^-6 of their new scale, which are rounded once, to nearest even.
    Other scales are taken, too; values are then rounded to FP32 and to E4M3. New scales are powers
    of two. `abyssal.reference.quantize.retile_128x1` has every operation; all backends give the
    same bits.

    Args:
        q: [T, K] in blocks (1, 128) along axis 1, as `quantize_1x128` returns it: contiguous along
            K (rows may be further apart), the scales of neighbouring rows neighbours.
        offsets: groups of tokens, as for `quantize_1x128_both`.
        out: a result of the same shape to overwrite; it is returned.

    Returns:
        q in the transposed layout, which this module describes, as `quantize_1x128_both` returns
        it. A tile that holds NaN has scale NaN and codes NaN. So has one with a value of 2^129 or
        more, which no quantiser makes.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    _check_q(q)
    check_offsets(offsets, q.device)
    backend = choose_backend(q.data)
    codes, scale = q.data.detach(), q.scale.detach()
    if out is None:
        data_t, scale_t = torch.ops.abyssal.retile_128x1(codes, scale, offsets, backend)
        return matrix(data_t, scale_t)
    check_transposed("out", out, q.shape, offsets, q.device)
    torch.ops.abyssal.retile_128x1_out(codes, scale, offsets, out.data, out.scale, backend)
    return out


def _check_q(q: BlockScaled) -> None:
    check_block_scaled("q", q, BLOCK_1X128)
    if q.data.dim() != 2 or q.shape[0] > MOST_ROWS or not 1 <= q.shape[1] <= MOST_COLUMNS:
        raise InputError(
            f"q must be [T, K] with T below 2**31 and K from 1 to 2**30, not {list(q.shape)}"
        )
    if q.data.stride(1) != 1 and q.shape[1] > 1:
        raise InputError(
            f"q.data must be contiguous along K, and its strides are {q.data.stride()}"
        )
    if q.scale.stride(0) != 1 and q.shape[0] > 1:
        raise InputError(
            "q.scale must have the scales of neighbouring rows as neighbours (strides (1, ...)), "
            f"and its strides are {q.scale.stride()}"
        )


def _both_into(
    x: Tensor,
    offsets: Tensor | None,
    data: Tensor,
    scale: Tensor,
    data_t: Tensor,
    scale_t: Tensor,
    pow2: bool,
    amax_floor: float,
    backend: str,
) -> None:
    rows, columns = x.shape
    if backend == "reference":
        rowwise, transposed = reference.quantize_1x128_both(
            x, offsets, pow2=pow2, amax_floor=amax_floor
        )
        data.copy_(rowwise[0])
        scale.copy_(rowwise[1])
        write_groups(transposed, data_t, scale_t, rows, offsets)
        return
    used = (x, data, scale, data_t, scale_t) + (() if offsets is None else (offsets,))
    target = launch_target(backend, *used)
    runtime.extension().quantize_1x128_both(
        target.device,
        target.stream,
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        data.data_ptr(),
        scale.data_ptr(),
        data_t.data_ptr(),
        scale_t.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        x.stride(0),
        scale_pitch(scale),
        data_t.shape[1],
        scale_pitch(scale_t),
        rows,
        columns,
        0 if offsets is None else offsets.shape[0] - 1,
        amax_floor,
        pow2,
    )


def _both(
    x: Tensor, offsets: Tensor | None, pow2: bool, amax_floor: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = (*empty_rowwise(x, x.shape), *empty_transposed(x, x.shape, offsets))
    _both_into(x, offsets, *results, pow2, amax_floor, backend)
    return results


def _both_fake(
    x: Tensor, offsets: Tensor | None, pow2: bool, amax_floor: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*empty_rowwise(x, x.shape), *empty_transposed(x, x.shape, offsets))


def _retile_into(
    codes: Tensor,
    scale: Tensor,
    offsets: Tensor | None,
    data_t: Tensor,
    scale_t: Tensor,
    backend: str,
) -> None:
    rows, columns = codes.shape
    if backend == "reference":
        result = reference.retile_128x1(codes, scale, offsets)
        write_groups(result, data_t, scale_t, rows, offsets)
        return
    used = (codes, scale, data_t, scale_t) + (() if offsets is None else (offsets,))
    target = launch_target(backend, *used)
    runtime.extension().retile_128x1(
        target.device,
        target.stream,
        codes.data_ptr(),
        scale.data_ptr(),
        data_t.data_ptr(),
        scale_t.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        codes.stride(0),
        scale_pitch(scale),
        data_t.shape[1],
        scale_pitch(scale_t),
        rows,
        columns,
        0 if offsets is None else offsets.shape[0] - 1,
    )


def _retile(
    codes: Tensor, scale: Tensor, offsets: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    results = empty_transposed(codes, codes.shape, offsets)
    _retile_into(codes, scale, offsets, *results, backend)
    return results


def _retile_fake(
    codes: Tensor, scale: Tensor, offsets: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    return empty_transposed(codes, codes.shape, offsets)


define(
    "quantize_1x128_both(Tensor x, Tensor? offsets, bool pow2, float amax_floor, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _both,
    fake=_both_fake,
)
define(
    "quantize_1x128_both_out(Tensor x, Tensor? offsets, Tensor(a!) data, Tensor(b!) scale, "
    "Tensor(c!) data_t, Tensor(d!) scale_t, bool pow2, float amax_floor, str backend) -> ()",
    _both_into,
    fake=nothing,
)
define(
    "retile_128x1(Tensor codes, Tensor scale, Tensor? offsets, str backend) -> (Tensor, Tensor)",
    _retile,
    fake=_retile_fake,
)
define(
    "retile_128x1_out(Tensor codes, Tensor scale, Tensor? offsets, Tensor(a!) data_t, "
    "Tensor(b!) scale_t, str backend) -> ()",
    _retile_into,
    fake=nothing,
)
