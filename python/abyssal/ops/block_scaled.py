"""`BlockScaled`: a matrix in FP8 with the scales of its tiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree  # not public, but what torch.compile and torch.export read


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class BlockScaled:
    """A matrix whose value at [i, j] is data[i, j] * scale[i // block[0], j // block[1]].

    data    float8_e4m3fn [rows, columns], contiguous along `axis`
    scale   float32 [ceil(rows / block[0]), ceil(columns / block[1])]; NaN where a tile held NaN
            or Inf. For activations (block (1, 128)) the scales of neighbouring rows are neighbours
            in memory and columns start at multiples of 16 bytes: strides (1, 4 ceil(rows / 4)).
    block   rows and columns that share a scale: (1, 128) or (128, 1) for activations and
            gradients, (128, 128) for weights
    axis    the dimension that a matrix product sums over, 0 or 1 ("K"); FP8 tensor cores read
            operands that are contiguous along it
    """

    data: Tensor
    scale: Tensor
    block: tuple[int, int]
    axis: int = 1

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def device(self) -> torch.device:
        return self.data.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values [rows, columns]: exact in float64, rounded once in float32 and bfloat16."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = self.scale.to(wide)
        # By index: compiled for CPUs, repeat_interleave cut to a ragged width reads past its end
        # (torch 2.13).
        for dimension, (length, extent) in enumerate(zip(self.shape, self.block, strict=True)):
            if extent > 1:
                tile = torch.arange(length, device=self.device) // extent
                scale = scale.index_select(dimension, tile)
        return (self.data.to(wide) * scale).to(dtype)

    def t(self) -> BlockScaled:
        """The transposed matrix, over the same memory: only a new label, no data moves."""
        return BlockScaled(self.data.t(), self.scale.t(), self.block[::-1], 1 - self.axis)

    def __reduce__(self) -> tuple[Any, ...]:
        # As bytes: torch does not unpickle FP8 tensors outside torch.load.
        codes = self.data.view(torch.uint8)
        return _from_bytes, (codes, self.data.dtype, self.scale, self.block, self.axis)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return (
            f"BlockScaled({rows} x {columns} {str(self.data.dtype).removeprefix('torch.')}, "
            f"one scale for {self.block[0]} x {self.block[1]}, sums along axis {self.axis}, "
            f"{self.device})"
        )


def _from_bytes(codes: Tensor, dtype: torch.dtype, *fields: Any) -> BlockScaled:
    return BlockScaled(codes.view(dtype), *fields)


def _flatten(matrix: BlockScaled) -> tuple[list[Any], Any]:
    return [matrix.data, matrix.scale], (matrix.block, matrix.axis)


def _unflatten(tensors: Any, labels: Any) -> BlockScaled:
    return BlockScaled(*tensors, *labels)


_pytree.register_pytree_node(
    BlockScaled, _flatten, _unflatten, serialized_type_name="abyssal.ops.BlockScaled"
)
