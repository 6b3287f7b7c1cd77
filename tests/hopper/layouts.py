"""How TMA lays boxes in shared memory and WGMMA expects tiles there, in NumPy."""

from __future__ import annotations

import numpy as np

# Address bits that are exchanged: (address >> 7 & mask) << 4.
_MASK = {0: 0, 32: 1, 64: 3, 128: 7}


def swizzle(image: np.ndarray, span: int) -> np.ndarray:
    """The bytes of shared memory, from a multiple of 1024 on, after a swizzle; its own inverse."""
    flat = image.reshape(-1).view(np.uint8)
    address = np.arange(flat.size)
    result = np.empty_like(flat)
    result[address ^ ((address >> 7 & _MASK[span]) << 4)] = flat
    return result


def panels(tile: np.ndarray, span: int) -> np.ndarray:
    """A tile [rows, columns] (columns contiguous) as bytes: panels of `span` bytes of the columns
    (16 without swizzle), one behind the other, each [rows, span bytes]; swizzled."""
    rows = len(tile)
    as_bytes = np.ascontiguousarray(tile).view(np.uint8).reshape(rows, -1, span or 16)
    return swizzle(np.ascontiguousarray(as_bytes.transpose(1, 0, 2)), span)


def read_box(
    tensor: np.ndarray,
    at: tuple[int, ...],
    box: tuple[int, ...],
    fill: float | int = 0,
    element_strides: tuple[int, ...] | None = None,
) -> np.ndarray:
    """The box whose first element is `at`, outermost first; `fill` where there is no tensor."""
    strides = element_strides or (1,) * tensor.ndim
    axes = [
        start + np.arange(0, extent, stride)
        for start, extent, stride in zip(at, box, strides, strict=True)
    ]
    inside = np.ones([len(axis) for axis in axes], bool)
    for dimension, axis in enumerate(axes):
        shape = [1] * tensor.ndim
        shape[dimension] = len(axis)
        inside &= ((axis >= 0) & (axis < tensor.shape[dimension])).reshape(shape)
    clipped = [np.clip(a, 0, n - 1) for a, n in zip(axes, tensor.shape, strict=True)]
    return np.where(inside, tensor[np.ix_(*clipped)], np.asarray(fill, tensor.dtype))


def write_box(tensor: np.ndarray, at: tuple[int, ...], values: np.ndarray) -> None:
    """Stores a box in place; what is outside of the tensor is left out."""
    target, source = [], []
    for start, extent, size in zip(at, values.shape, tensor.shape, strict=True):
        first, last = max(start, 0), min(start + extent, size)
        if first >= last:
            return
        target.append(slice(first, last))
        source.append(slice(first - start, last - start))
    tensor[tuple(target)] = values[tuple(source)]
