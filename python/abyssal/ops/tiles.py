"""Matrices in tiles of 1x128 as ops return them, row by row and transposed: memory and layout.

Row by row: data [T, K], scale [T, ceil(K / 128)] of strides (1, 4 ceil(T / 4)). Transposed: the
layout that `abyssal.ops.quantize_transposed` describes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from abyssal.errors import InputError
from abyssal.ops.block_scaled import BlockScaled, unchecked
from abyssal.ops.quantiser_checks import check_block_scaled, check_layout
from abyssal.reference import quantize as reference
from abyssal.reference.quantize import TILE, transposed_columns

BLOCK_1X128 = (1, TILE)


def scale_strides_1x128(rows: int) -> tuple[int, int]:
    """Strides of a scale [rows, tiles]: columns begin at multiples of 16 bytes, as TMA needs."""
    return 1, math.ceil(rows / 4) * 4


def scale_pitch(scale: Tensor) -> int:
    """How far apart columns of a scale are; any number where there is only one."""
    return max(scale.stride(1), scale.shape[0])


def matrix(data: Tensor, scale: Tensor) -> BlockScaled:
    return unchecked(data, scale, BLOCK_1X128, axis=1)


def empty_rowwise(x: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Data and scale on x's device."""
    rows, columns = shape
    data = x.new_empty((rows, columns), dtype=torch.float8_e4m3fn)
    tiles, strides = math.ceil(columns / TILE), scale_strides_1x128(rows)
    return data, x.new_empty_strided((rows, tiles), strides, dtype=torch.float32)


def empty_transposed(
    x: Tensor, shape: Sequence[int], offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same for the transposed matrix of this shape."""
    rows, columns = shape
    return empty_rowwise(x, (columns, transposed_columns(rows, offsets)))


def check_rowwise(
    name: str, out: object, shape: Sequence[int], device: torch.device
) -> BlockScaled:
    """That a result of this shape can be written to `out`."""
    rows, columns = shape
    checked = check_block_scaled(name, out, BLOCK_1X128, device)
    tiles = math.ceil(columns / TILE)
    check_layout(f"{name}.data", checked.data, (rows, columns))
    check_layout(f"{name}.scale", checked.scale, (rows, tiles), scale_strides_1x128(rows))
    return checked


def check_transposed(
    name: str,
    out: object,
    shape: Sequence[int],
    offsets: Tensor | None,
    device: torch.device,
) -> BlockScaled:
    """That the transposed result of a matrix of this shape can be written to `out`."""
    rows, columns = shape
    checked = check_rowwise(name, out, (columns, transposed_columns(rows, offsets)), device)
    check_alignment(f"{name}.data", checked.data)
    return checked


def check_alignment(name: str, tensor: Tensor) -> None:
    # Fake tensors, inside torch.compile, have no address: the launch refuses theirs.
    if not torch.compiler.is_compiling() and tensor.data_ptr() % 16 != 0:
        raise InputError(f"{name} must begin at a multiple of 16 bytes")


def write_rows(result: Tensor, out: Tensor, offsets: Tensor | None) -> None:
    """Copies the rows of a result that belong to a group, as kernels do; others stay."""
    if offsets is None:
        out.copy_(result)
        return
    inside = torch.arange(out.shape[0], device=out.device) < offsets[-1]
    inside = inside.view(-1, *[1] * (out.dim() - 1))
    _keep_outside(result, out, inside)


def write_groups(
    result: tuple[Tensor, Tensor], data: Tensor, scale: Tensor, rows: int, offsets: Tensor | None
) -> None:
    """The same of a transposed result, data and scale, of a matrix of so many rows."""
    if offsets is None:
        data.copy_(result[0])
        scale.copy_(result[1])
        return
    _, group = reference.transposed_rows(rows, offsets)
    inside = group >= 0
    _keep_outside(result[0], data, inside)
    _keep_outside(result[1], scale, inside[::TILE])


def _keep_outside(result: Tensor, out: Tensor, inside: Tensor) -> None:
    if out.dtype == torch.float8_e4m3fn:
        result, out = result.view(torch.uint8), out.view(torch.uint8)
    out.copy_(torch.where(inside, result, out))


def nothing(*arguments: object) -> None:
    """What an op does to fake tensors that it overwrites."""
