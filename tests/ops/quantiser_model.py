"""An independent model of the quantisers, in NumPy with loops over tiles; their tests' inputs."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from abyssal import runtime
from abyssal.ops.block_scaled import BlockScaled

FLOOR = 448 * 2.0**-126

# The values of the codes 0 to 0x7E, and halfway between neighbours.
POSITIVE = np.array(
    [(c & 7) * 2.0**-9 if c < 8 else (1 + (c & 7) / 8) * 2.0 ** ((c >> 3) - 7) for c in range(0x7F)]
)
MIDDLE = (POSITIVE[1:] + POSITIVE[:-1]) / 2


def encode(values: np.ndarray) -> np.ndarray:
    """Nearest E4M3 code of values within +-448, ties to the even code."""
    magnitude = np.abs(values).astype(np.float64)
    below = np.searchsorted(MIDDLE, magnitude, side="left")
    above = np.searchsorted(MIDDLE, magnitude, side="right")
    code = np.where(below % 2 == 0, below, above)
    return (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def quantize_tiles(values: np.ndarray, tile: tuple[int, int], pow2: bool, floor: float = FLOOR):
    """(codes, scales) of a matrix in tiles of `tile`; those with Inf or NaN are NaN."""
    down, across = tile
    rows, columns = values.shape
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((-(-rows // down), -(-columns // across)), np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = np.s_[down * i : down * i + down, across * j : across * j + across]
            amax = np.abs(values[part]).max()
            if not np.isfinite(amax):
                codes[part], scales[i, j] = 0x7F, np.nan
                continue
            scale = np.float32(max(amax, np.float32(floor))) / np.float32(448)
            if pow2:
                scale = np.float32(2.0 ** np.ceil(np.log2(np.float64(scale))))
            scale = np.float32(1) if amax == 0 else scale
            scaled = values[part] * (np.float32(1) / scale)
            codes[part] = encode(np.clip(scaled, np.float32(-448), np.float32(448)))
            scales[i, j] = scale
    return codes, scales


def blocks_of_groups(offsets: list[int]) -> list[tuple[int, int, int]]:
    """(first column of the transposed layout, first row, row after the last) of each block."""
    return [
        (128 * (begin // 128 + group) + row - begin, row, min(row + 128, end))
        for group, (begin, end) in enumerate(itertools.pairwise(offsets))
        for row in range(begin, end, 128)
    ]


def random_values(shape, dtype, device, seed=0):
    """Values whose magnitude changes over many octaves, from row to row and within."""
    generator = torch.Generator().manual_seed(seed)
    octaves = torch.randint(-40, 40, (*shape[:-1], 1), generator=generator)
    spread = torch.randint(-12, 3, shape, generator=generator)
    x = torch.ldexp(torch.randn(shape, generator=generator), octaves + spread)
    return x.to(dtype).to(device)


def as_bytes(matrix: BlockScaled) -> np.ndarray:
    return matrix.data.view(torch.uint8).cpu().numpy()


def scales_of(matrix: BlockScaled) -> np.ndarray:
    return matrix.scale.cpu().numpy()


def poisoned(data_shape, scale_shape, scale_strides, device) -> BlockScaled:
    """Memory for a result in tiles of 1x128, every byte of it NaN."""
    data = torch.full(data_shape, 0x7F, dtype=torch.uint8, device=device)
    scale = torch.empty_strided(scale_shape, scale_strides, device=device).fill_(float("nan"))
    return BlockScaled(data.view(torch.float8_e4m3fn), scale, (1, 128), axis=1)


def poisoned_rowwise(rows: int, columns: int, device) -> BlockScaled:
    pitch = max(-(-rows // 4) * 4, 4)
    return poisoned((rows, columns), (rows, -(-columns // 128)), (1, pitch), device)


def poisoned_transposed(rows: int, columns: int, groups: int | None, device) -> BlockScaled:
    tiles = -(-rows // 128) if groups is None else rows // 128 + groups
    pitch = -(-columns // 4) * 4
    return poisoned((columns, 128 * tiles), (columns, tiles), (1, pitch), device)


def add_up(terms) -> np.ndarray:
    """Arrays added one after the other, from 0."""
    total = np.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def add_pairs(x: np.ndarray) -> np.ndarray:
    """The last dimension, a power of two long: neighbours added, then neighbouring sums, ..."""
    while x.shape[-1] > 1:
        x = x[..., ::2] + x[..., 1::2]
    return x[..., 0]


def emulated_and_reference() -> list[str]:
    """The backends of CPU tensors, for tests that choose one themselves."""
    return ["reference"] + ["emulator"] * (runtime.why_not_emulator() is None)
