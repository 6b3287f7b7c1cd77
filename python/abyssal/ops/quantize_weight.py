"""FP8 quantiser of weights: tiles of 128x128, as they lie, transposed, or both."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError
from abyssal.ops.backend import choose_backend, launch_target
from abyssal.ops.block_scaled import BlockScaled, unchecked
from abyssal.ops.quantiser_checks import (
    MOST_COLUMNS,
    check_block_scaled,
    check_layout,
    check_options,
    check_values,
)
from abyssal.ops.registration import define
from abyssal.reference import quantize as reference
from abyssal.reference.quantize import AMAX_FLOOR, TILE

BLOCK_128X128 = (TILE, TILE)

Pair = tuple[BlockScaled, BlockScaled]


@overload
def quantize_128x128(
    w: Tensor,
    *,
    pow2: bool = ...,
    transpose: bool = ...,
    amax_floor: float = ...,
    out: BlockScaled | None = ...,
) -> BlockScaled: ...


@overload
def quantize_128x128(
    w: Tensor,
    *,
    pow2: bool = ...,
    transpose: Literal["both"],
    amax_floor: float = ...,
    out: Pair | None = ...,
) -> Pair: ...


def quantize_128x128(
    w: Tensor,
    *,
    pow2: bool = False,
    transpose: bool | Literal["both"] = False,
    amax_floor: float = AMAX_FLOOR,
    out: BlockScaled | Pair | None = None,
) -> BlockScaled | Pair:
    """Quantise a weight, or a stack of them, to E4M3 with one scale for each 128x128 tile.

    Report, section 3.3.2. A forward product reads w, its input gradient reads w transposed: square
    tiles have the same scales in both, and the codes are the same. The numerics are those of
    `abyssal.reference.quantize`; every backend gives the same bits.

    Args:
        w: [N, K] or [G, N, K], bfloat16 or float32, contiguous along K. N and K need not be
            multiples of 128; multiples of 16 are fastest.
        pow2: round scales up to powers of two.
        transpose: whether the result is that of w, of w transposed, or "both" from one read.
        amax_floor: as for `quantize_1x128`.
        out: a result of the same kind to overwrite; it is returned. Of a pair, out[1].scale must be
            out[0].scale transposed, over the same memory.

    Returns:
        BlockScaled with data [.., N, K] and scale [.., ceil(N / 128), ceil(K / 128)], both
        contiguous, block (128, 128), axis 1. Transposed: data [.., K, N], contiguous; the scale is
        a transposed view. "both": the pair of them; they share the scale's memory. No gradient
        flows through it.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    _check_w(w)
    check_options(pow2, amax_floor)
    if transpose is not True and transpose is not False and transpose != "both":
        raise InputError(f"transpose must be True, False or 'both', not {transpose!r}")
    backend = choose_backend(w)
    plain, transposed = transpose is not True, transpose is not False
    if out is None:
        data, data_t, scale = torch.ops.abyssal.quantize_128x128(
            w.detach(), plain, transposed, pow2, amax_floor, backend
        )
        q = unchecked(data, scale, BLOCK_128X128, axis=1)
        q_t = unchecked(data_t, scale.mT, BLOCK_128X128, axis=1)
        return (q, q_t) if transpose == "both" else q_t if transposed else q
    q_out, q_t_out = _check_out(out, w, transpose)
    scale = q_out.scale if q_out is not None else q_t_out.scale.mT  # type: ignore[union-attr]
    torch.ops.abyssal.quantize_128x128_out(
        w.detach(),
        None if q_out is None else q_out.data,
        None if q_t_out is None else q_t_out.data,
        scale,
        pow2,
        amax_floor,
        backend,
    )
    return out


def _check_w(w: Tensor) -> None:
    if not isinstance(w, Tensor):
        raise InputError(f"w must be a tensor, not {type(w).__name__}")
    if w.dim() not in (2, 3) or not all(1 <= n <= MOST_COLUMNS for n in w.shape[-2:]):
        raise InputError(
            f"w must be [N, K] or [G, N, K] with N and K from 1 to 2**30, not {list(w.shape)}"
        )
    check_values("w", w)


def _check_out(
    out: BlockScaled | Pair, w: Tensor, transpose: bool | str
) -> tuple[BlockScaled | None, BlockScaled | None]:
    """The results to overwrite: of w and of w transposed."""
    if transpose != "both":
        _check_one("out", out, w, bool(transpose))
        return (None, out) if transpose else (out, None)  # type: ignore[return-value]
    if not isinstance(out, tuple) or len(out) != 2:
        raise InputError(f"out must be a pair of BlockScaled, not {type(out).__name__}")
    plain, transposed = out
    _check_one("out[0]", plain, w, False)
    _check_one("out[1]", transposed, w, True)
    # Fake tensors, inside torch.compile, have no address.
    known = not torch.compiler.is_compiling()
    if known and plain.scale.data_ptr() != transposed.scale.data_ptr():
        raise InputError("out[1].scale must be out[0].scale.mT, and has memory of its own")
    return plain, transposed


def _check_one(name: str, out: object, w: Tensor, transposed: bool) -> None:
    matrix = check_block_scaled(name, out, BLOCK_128X128, w.device)
    shape, tiles = list(w.shape), list(_scale_shape(w))
    scale = matrix.scale
    if transposed:
        shape[-2:] = shape[:-3:-1]
        scale = scale.mT
    check_layout(f"{name}.data", matrix.data, shape)
    # The transposed scale is a view of one that is contiguous.
    check_layout(f"{name}.scale{'.mT' if transposed else ''}", scale, tiles)


def _scale_shape(w: Tensor) -> tuple[int, ...]:
    *stack, rows, columns = w.shape
    return (*stack, (rows + TILE - 1) // TILE, (columns + TILE - 1) // TILE)


def _empty(w: Tensor, plain: bool, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, transposed codes and scale; [0] in the place of what is not wanted."""
    *stack, rows, columns = w.shape

    def codes(wanted: bool, *shape: int) -> Tensor:
        return w.new_empty(shape if wanted else (0,), dtype=torch.float8_e4m3fn)

    return (
        codes(plain, *stack, rows, columns),
        codes(transposed, *stack, columns, rows),
        w.new_empty(_scale_shape(w), dtype=torch.float32),
    )


def _functional(
    w: Tensor, plain: bool, transposed: bool, pow2: bool, amax_floor: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    data, data_t, scale = results = _empty(w, plain, transposed)
    _into(
        w,
        data if plain else None,
        data_t if transposed else None,
        scale,
        pow2,
        amax_floor,
        backend,
    )
    return results


def _into(
    w: Tensor,
    data: Tensor | None,
    data_t: Tensor | None,
    scale: Tensor,
    pow2: bool,
    amax_floor: float,
    backend: str,
) -> None:
    if backend == "reference":
        codes, scales = reference.quantize_128x128(w, pow2=pow2, amax_floor=amax_floor)
        if data is not None:
            data.copy_(codes)
        if data_t is not None:
            data_t.copy_(codes.mT)
        scale.copy_(scales)
        return
    used = [tensor for tensor in (w, data, data_t, scale) if tensor is not None]
    target = launch_target(backend, *used)
    *stack, rows, columns = w.shape
    runtime.extension().quantize_128x128(
        target.device,
        target.stream,
        w.data_ptr(),
        w.dtype == torch.bfloat16,
        0 if data is None else data.data_ptr(),
        0 if data_t is None else data_t.data_ptr(),
        scale.data_ptr(),
        w.stride(0) if stack else 0,
        w.stride(-2),
        stack[0] if stack else 1,
        rows,
        columns,
        amax_floor,
        pow2,
    )


def _fake(
    w: Tensor, plain: bool, transposed: bool, pow2: bool, amax_floor: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(w, plain, transposed)


define(
    "quantize_128x128(Tensor w, bool plain, bool transposed, bool pow2, float amax_floor, "
    "str backend) -> (Tensor, Tensor, Tensor)",
    _functional,
    fake=_fake,
)
define(
    "quantize_128x128_out(Tensor w, Tensor(a!)? data, Tensor(b!)? data_t, Tensor(c!) scale, "
    "bool pow2, float amax_floor, str backend) -> ()",
    _into,
    fake=lambda *arguments: None,
)
