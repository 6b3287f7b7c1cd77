"""SwiGLU with a quantiser behind it, and its gradient with quantisers of both orientations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError
from abyssal.ops.backend import choose_backend, launch_target
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.quantiser_checks import (
    MOST_COLUMNS,
    MOST_ROWS,
    check_contiguous,
    check_offsets,
    check_options,
)
from abyssal.ops.registration import define
from abyssal.ops.tiles import (
    check_alignment,
    check_rowwise,
    check_transposed,
    empty_rowwise,
    empty_transposed,
    matrix,
    nothing,
    scale_pitch,
    write_groups,
    write_rows,
)
from abyssal.reference import fused, quantize
from abyssal.reference.quantize import AMAX_FLOOR, TILE


class SwigluGradients(NamedTuple):
    """What `swiglu_quantize_backward` returns.

    d_gate_up       [T, 2 I], as `quantize_1x128` gives it: for the gradient of the input
    d_gate_up_t     [2 I, Tp], transposed as by `quantize_1x128_both`: for the weight gradient of
                    the projections to gate and up
    h_t             [I, Tp], transposed: SwiGLU's result, for the weight gradient of the
                    down-projection
    d_row_weight    float32 [T], or None if there are no weights
    """

    d_gate_up: BlockScaled
    d_gate_up_t: BlockScaled
    h_t: BlockScaled
    d_row_weight: Tensor | None


def swiglu_quantize(
    gate_up: Tensor,
    row_weight: Tensor | None = None,
    offsets: Tensor | None = None,
    *,
    pow2: bool = False,
    amax_floor: float = AMAX_FLOOR,
    out: BlockScaled | None = None,
) -> BlockScaled:
    """silu(gate) * up * row_weight, quantised as by `quantize_1x128`: the down-projection's input.

    Computed in FP32, rounded to bfloat16, quantised (report, sections 2.1.2 and 3.3.2); every
    backend gives the same bits. `abyssal.reference.fused` has every operation. The routing weight
    belongs here if the experts' results are then only added up.

    Args:
        gate_up: bfloat16 [T, 2 I], I gates and then I ups, contiguous along them; rows may be
            further apart. Fastest with I a multiple of 8.
        row_weight: float32 [T], contiguous: a weight of each row. None: 1.
        offsets: int32 [G + 1], as for `quantize_1x128_both`; only offsets[G] counts: rows from
            there on are neither read nor written, so that a buffer may be larger than its
            contents. Without `out` what they hold is undefined.
        pow2, amax_floor: as for `quantize_1x128`.
        out: a result of the same shape to overwrite; it is returned.

    Returns:
        BlockScaled [T, I] as of `quantize_1x128`. No gradient flows through it.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    shape = _check_gate_up(gate_up)
    _check_row_weight(row_weight, gate_up)
    check_offsets(offsets, gate_up.device)
    check_options(pow2, amax_floor)
    backend = choose_backend(gate_up)
    inputs = (gate_up.detach(), None if row_weight is None else row_weight.detach(), offsets)
    options = (pow2, amax_floor, backend)
    if out is None:
        return matrix(*torch.ops.abyssal.swiglu_quantize(*inputs, *options))
    check_rowwise("out", out, shape, gate_up.device)
    torch.ops.abyssal.swiglu_quantize_out(*inputs, out.data, out.scale, *options)
    return out


def swiglu_quantize_backward(
    dy: Tensor,
    gate_up: Tensor,
    row_weight: Tensor | None = None,
    offsets: Tensor | None = None,
    *,
    pow2: bool = False,
    amax_floor: float = AMAX_FLOOR,
    out: SwigluGradients | None = None,
) -> SwigluGradients:
    """The gradient of `swiglu_quantize`, in all the forms that the products around it read.

    The result h = silu(gate) * up * row_weight is computed anew from gate_up, so that nothing else
    need be kept (report, section 3.2.3), and as before it is rounded to bfloat16 and quantised; so
    are d_gate and d_up. The quantiser passes gradients on unchanged. Every backend gives the same
    bits; `abyssal.reference.fused` has every operation.

    Args:
        dy: bfloat16 [T, I], the gradient of h, contiguous along I. Rows begin at multiples of 16
            bytes.
        gate_up: bfloat16 [T, 2 I] as for `swiglu_quantize`; I is a multiple of 128, so that no
            tile has both gates and ups. Rows begin at multiples of 16 bytes.
        row_weight: as for `swiglu_quantize`.
        offsets: groups of rows, as for `quantize_1x128_both`. Rows of no group are neither read nor
            written.
        pow2, amax_floor: as for `quantize_1x128`, for all results.
        out: a result of the same shapes to overwrite; it is returned.

    Returns:
        SwigluGradients.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    shape = _check_gate_up(gate_up, backward=True)
    _check_dy(dy, shape, gate_up.device)
    _check_row_weight(row_weight, gate_up)
    check_offsets(offsets, gate_up.device)
    check_options(pow2, amax_floor)
    backend = choose_backend(gate_up)
    weight = None if row_weight is None else row_weight.detach()
    inputs = (dy.detach(), gate_up.detach(), weight, offsets)
    options = (pow2, amax_floor, backend)
    if out is None:
        parts = torch.ops.abyssal.swiglu_quantize_backward(*inputs, *options)
        d_gate_up, d_gate_up_t, h_t = (matrix(*parts[i : i + 2]) for i in (0, 2, 4))
        d_row_weight = None if row_weight is None else parts[6]
        return SwigluGradients(d_gate_up, d_gate_up_t, h_t, d_row_weight)
    tensors = _check_gradients(out, gate_up, row_weight, offsets)
    torch.ops.abyssal.swiglu_quantize_backward_out(*inputs, *tensors, *options)
    return out


def _check_gate_up(gate_up: object, *, backward: bool = False) -> tuple[int, int]:
    """Rows and columns of the result."""
    if not isinstance(gate_up, Tensor):
        raise InputError(f"gate_up must be a tensor, not {type(gate_up).__name__}")
    multiple = 2 * TILE if backward else 2
    if (
        gate_up.dim() != 2
        or gate_up.shape[0] > MOST_ROWS
        or not 1 <= gate_up.shape[1] <= MOST_COLUMNS
        or gate_up.shape[1] % multiple
    ):
        raise InputError(
            f"gate_up must be [T, 2 I] with T below 2**31 and 2 I a multiple of {multiple} up to "
            f"2**30, not {list(gate_up.shape)}"
        )
    _check_rows("gate_up", gate_up, backward)
    return gate_up.shape[0], gate_up.shape[1] // 2


def _check_dy(dy: object, shape: tuple[int, int], device: torch.device) -> None:
    if not isinstance(dy, Tensor):
        raise InputError(f"dy must be a tensor, not {type(dy).__name__}")
    if tuple(dy.shape) != shape:
        raise InputError(f"dy must be {list(shape)}, half of gate_up, not {list(dy.shape)}")
    _check_rows("dy", dy, aligned=True)
    if dy.device != device:
        raise InputError(f"dy is on {dy.device} and must be on {device}")


def _check_rows(name: str, x: Tensor, aligned: bool) -> None:
    if x.dtype != torch.bfloat16:
        raise InputError(f"{name} must be bfloat16, not {x.dtype}")
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise InputError(
            f"{name} must be contiguous along its last dimension, and its strides are {x.stride()}"
        )
    if not aligned:
        return
    if x.stride(0) % 8 and x.shape[0] > 1:
        raise InputError(
            f"{name} must have rows at multiples of 16 bytes, and its strides are {x.stride()}"
        )
    check_alignment(name, x)


def _check_row_weight(row_weight: object, gate_up: Tensor) -> None:
    if row_weight is not None:
        shape = gate_up.shape[:1]
        check_contiguous("row_weight", row_weight, shape, torch.float32, gate_up.device)


def _check_gradients(
    out: object, gate_up: Tensor, row_weight: Tensor | None, offsets: Tensor | None
) -> list[Tensor | None]:
    if not isinstance(out, SwigluGradients):
        raise InputError(f"out must be SwigluGradients, not {type(out).__name__}")
    device, (rows, columns) = gate_up.device, gate_up.shape
    check_rowwise("out.d_gate_up", out.d_gate_up, gate_up.shape, device)
    check_transposed("out.d_gate_up_t", out.d_gate_up_t, gate_up.shape, offsets, device)
    check_transposed("out.h_t", out.h_t, (rows, columns // 2), offsets, device)
    if row_weight is not None:
        check_contiguous("out.d_row_weight", out.d_row_weight, (rows,), torch.float32, device)
    elif out.d_row_weight is not None:
        raise InputError("out.d_row_weight must be None where row_weight is None")
    tensors: list[Tensor | None] = []
    for part in (out.d_gate_up, out.d_gate_up_t, out.h_t):
        tensors += [part.data, part.scale]
    return [*tensors, out.d_row_weight]


def _forward_into(
    gate_up: Tensor,
    row_weight: Tensor | None,
    offsets: Tensor | None,
    data: Tensor,
    scale: Tensor,
    pow2: bool,
    amax_floor: float,
    backend: str,
) -> None:
    if backend == "reference":
        h = fused.swiglu(gate_up, row_weight)
        codes, scales = quantize.quantize_1x128(h, pow2=pow2, amax_floor=amax_floor)
        write_rows(codes, data, offsets)
        write_rows(scales, scale, offsets)
        return
    others = [tensor for tensor in (row_weight, offsets) if tensor is not None]
    target = launch_target(backend, gate_up, data, scale, *others)
    runtime.extension().swiglu_quantize(
        target.device,
        target.stream,
        gate_up.data_ptr(),
        0 if row_weight is None else row_weight.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        data.data_ptr(),
        scale.data_ptr(),
        gate_up.stride(0),
        scale_pitch(scale),
        *data.shape,
        0 if offsets is None else offsets.shape[0] - 1,
        amax_floor,
        pow2,
    )


def _empty_forward(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    return empty_rowwise(gate_up, (gate_up.shape[0], gate_up.shape[1] // 2))


def _forward(
    gate_up: Tensor,
    row_weight: Tensor | None,
    offsets: Tensor | None,
    pow2: bool,
    amax_floor: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    results = _empty_forward(gate_up)
    _forward_into(gate_up, row_weight, offsets, *results, pow2, amax_floor, backend)
    return results


def _write_reference(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    offsets: Tensor | None,
    results: Sequence[Tensor],
    pow2: bool,
    amax_floor: float,
) -> None:
    rows = inputs[0].shape[0]
    data, scale, data_t, scale_t, h_data_t, h_scale_t, *d_row_weight = results
    d_gate_up, h, of_rows = fused.swiglu_backward(*inputs)
    both, h_both = (
        quantize.quantize_1x128_both(x, offsets, pow2=pow2, amax_floor=amax_floor)
        for x in (d_gate_up, h)
    )
    write_rows(both[0][0], data, offsets)
    write_rows(both[0][1], scale, offsets)
    write_groups(both[1], data_t, scale_t, rows, offsets)
    write_groups(h_both[1], h_data_t, h_scale_t, rows, offsets)
    for written in d_row_weight:
        write_rows(of_rows, written, offsets)


def _write(
    dy: Tensor,
    gate_up: Tensor,
    row_weight: Tensor | None,
    offsets: Tensor | None,
    results: Sequence[Tensor],
    pow2: bool,
    amax_floor: float,
    backend: str,
) -> None:
    """results: data and scale of the three matrices, then, with weights, d_row_weight."""
    if backend == "reference":
        _write_reference((dy, gate_up, row_weight), offsets, results, pow2, amax_floor)
        return
    scale, data_t, scale_t, h_scale_t = (results[i] for i in (1, 2, 3, 5))
    others = [tensor for tensor in (row_weight, offsets) if tensor is not None]
    target = launch_target(backend, dy, gate_up, *results, *others)
    addresses = [result.data_ptr() for result in results]
    runtime.extension().swiglu_quantize_backward(
        target.device,
        target.stream,
        dy.data_ptr(),
        gate_up.data_ptr(),
        0 if row_weight is None else row_weight.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        *addresses,
        *([0] if row_weight is None else []),
        dy.stride(0),
        gate_up.stride(0),
        scale_pitch(scale),
        data_t.shape[1],
        scale_pitch(scale_t),
        scale_pitch(h_scale_t),
        *dy.shape,
        0 if offsets is None else offsets.shape[0] - 1,
        amax_floor,
        pow2,
    )


def _empty_backward(
    gate_up: Tensor, row_weight: Tensor | None, offsets: Tensor | None
) -> list[Tensor]:
    rows, columns = gate_up.shape
    results = [
        *empty_rowwise(gate_up, gate_up.shape),
        *empty_transposed(gate_up, gate_up.shape, offsets),
        *empty_transposed(gate_up, (rows, columns // 2), offsets),
    ]
    if row_weight is not None:
        results.append(torch.empty_like(row_weight))
    return results


def _backward(
    dy: Tensor,
    gate_up: Tensor,
    row_weight: Tensor | None,
    offsets: Tensor | None,
    pow2: bool,
    amax_floor: float,
    backend: str,
) -> list[Tensor]:
    results = _empty_backward(gate_up, row_weight, offsets)
    _write(dy, gate_up, row_weight, offsets, results, pow2, amax_floor, backend)
    return results


def _backward_into(
    dy: Tensor,
    gate_up: Tensor,
    row_weight: Tensor | None,
    offsets: Tensor | None,
    *results_and_options: Any,
) -> None:
    *results, pow2, amax_floor, backend = results_and_options
    written = [result for result in results if result is not None]
    _write(dy, gate_up, row_weight, offsets, written, pow2, amax_floor, backend)


define(
    "swiglu_quantize(Tensor gate_up, Tensor? row_weight, Tensor? offsets, bool pow2, "
    "float amax_floor, str backend) -> (Tensor, Tensor)",
    _forward,
    fake=lambda gate_up, *others: _empty_forward(gate_up),
)
define(
    "swiglu_quantize_out(Tensor gate_up, Tensor? row_weight, Tensor? offsets, Tensor(a!) data, "
    "Tensor(b!) scale, bool pow2, float amax_floor, str backend) -> ()",
    _forward_into,
    fake=nothing,
)
define(
    "swiglu_quantize_backward(Tensor dy, Tensor gate_up, Tensor? row_weight, Tensor? offsets, "
    "bool pow2, float amax_floor, str backend) -> Tensor[]",
    _backward,
    fake=lambda dy, gate_up, row_weight, offsets, *options: _empty_backward(
        gate_up, row_weight, offsets
    ),
)
define(
    "swiglu_quantize_backward_out(Tensor dy, Tensor gate_up, Tensor? row_weight, Tensor? offsets, "
    "Tensor(a!) data, Tensor(b!) scale, Tensor(c!) data_t, Tensor(d!) scale_t, "
    "Tensor(e!) h_data_t, Tensor(f!) h_scale_t, Tensor(g!)? d_row_weight, bool pow2, "
    "float amax_floor, str backend) -> ()",
    _backward_into,
    fake=nothing,
)
