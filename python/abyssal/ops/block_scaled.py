"""`BlockScaled`: a matrix in FP8 with the scales of its tiles; or a stack of such matrices."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree  # not public, but what torch.compile and torch.export read

from abyssal.errors import InputError

BLOCKS = ((1, 128), (128, 1), (128, 128))


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class BlockScaled:
    """A matrix whose value at [i, j] is data[i, j] * scale[i // block[0], j // block[1]].

    Or a stack of them, as the weights of a layer's experts: data and scale then have a dimension
    [G] before these two.

    data    float8_e4m3fn [rows, columns], contiguous along `axis`
    scale   float32 [ceil(rows / block[0]), ceil(columns / block[1])]; NaN where a tile held NaN
            or Inf. For activations (block (1, 128)) the scales of neighbouring rows are neighbours
            in memory and columns start at multiples of 16 bytes: strides (1, 4 ceil(rows / 4)).
    block   rows and columns that share a scale: (1, 128) or (128, 1) for activations and
            gradients, (128, 128) for weights
    axis    the dimension that a matrix product sums over, 0 for the rows' or 1 for the columns'
            ("K"); FP8 tensor cores read operands that are contiguous along it

    Raises InputError for a wrong type, shape, dtype, block or axis, or tensors on two devices.
    Strides are for the ops to check.
    """

    data: Tensor
    scale: Tensor
    block: tuple[int, int]
    axis: int = 1

    def __post_init__(self) -> None:
        for name, dtype in (("data", torch.float8_e4m3fn), ("scale", torch.float32)):
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor):
                raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
            if tensor.dim() not in (2, 3) or tensor.dtype != dtype:
                raise InputError(
                    f"{name} must be {dtype} with 2 or 3 dimensions, not {tensor.dtype} "
                    f"{list(tensor.shape)}"
                )
        if self.block not in BLOCKS:
            raise InputError(f"block must be (1, 128), (128, 1) or (128, 128), not {self.block!r}")
        if type(self.axis) is not int or self.axis not in (0, 1):
            raise InputError(f"axis must be 0 or 1, not {self.axis!r}")
        (*stack, rows, columns), (down, across) = self.data.shape, self.block
        grid = [*stack, (rows + down - 1) // down, (columns + across - 1) // across]
        if list(self.scale.shape) != grid:
            raise InputError(
                f"scale must be {grid} for data {list(self.data.shape)} in blocks of {down} x "
                f"{across}, not {list(self.scale.shape)}"
            )
        if self.scale.device != self.data.device:
            raise InputError(f"scale is on {self.scale.device} and data on {self.data.device}")

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def device(self) -> torch.device:
        return self.data.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, of data's shape: exact in float64, rounded once in float32. Any other type
        is rounded from that: twice in all."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = self.scale.to(wide)
        # By an index that torch does not see through: compiled for CPUs, scales of one row of tiles
        # are else read past their end (torch 2.13; repeat_interleave and arange // extent alike).
        for dimension, extent in zip((-2, -1), self.block, strict=True):
            if extent > 1:
                rows = torch.arange(self.shape[dimension], device=self.device)
                starts = torch.arange(0, self.shape[dimension], extent, device=self.device)
                tile = torch.bucketize(rows, starts, right=True) - 1
                scale = scale.index_select(dimension, tile)
        return (self.data.to(wide) * scale).to(dtype)

    def t(self) -> BlockScaled:
        """The transposed matrix (of a stack: each), over the same memory: only a new label, no data
        moves."""
        return unchecked(self.data.mT, self.scale.mT, self.block[::-1], 1 - self.axis)

    def __reduce__(self) -> tuple[Any, ...]:
        # As bytes: torch does not unpickle FP8 tensors outside torch.load.
        codes = self.data.view(torch.uint8)
        return _from_bytes, (codes, self.data.dtype, self.scale, self.block, self.axis)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return (
            f"BlockScaled({shape} {str(self.data.dtype).removeprefix('torch.')}, "
            f"one scale for {self.block[0]} x {self.block[1]}, sums along axis {self.axis}, "
            f"{self.device})"
        )


def unchecked(data: Tensor, scale: Tensor, block: tuple[int, int], axis: int) -> BlockScaled:
    """A BlockScaled of parts that are known to fit, as an op's own results."""
    matrix = object.__new__(BlockScaled)
    for name, value in (("data", data), ("scale", scale), ("block", block), ("axis", axis)):
        object.__setattr__(matrix, name, value)
    return matrix


def _from_bytes(codes: Tensor, dtype: torch.dtype, *fields: Any) -> BlockScaled:
    return BlockScaled(codes.view(dtype), *fields)


def _flatten(matrix: BlockScaled) -> tuple[list[Any], Any]:
    return [matrix.data, matrix.scale], (matrix.block, matrix.axis)


def _unflatten(tensors: Any, labels: Any) -> BlockScaled:
    return unchecked(*tensors, *labels)  # a tree may hold anything in the tensors' places


_pytree.register_pytree_node(
    BlockScaled, _flatten, _unflatten, serialized_type_name="abyssal.ops.BlockScaled"
)
