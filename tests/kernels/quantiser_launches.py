"""The quantisers' kernels, launched without their ops: for what only a module tells, its counters,
and for spoilt copies of them. Each returns what the kernel wrote."""

from __future__ import annotations

import struct

import numpy as np
import torch

from abyssal import runtime
from abyssal.emulator import In, Out
from abyssal.reference.quantize import AMAX_FLOOR, transposed_columns

KERNELS = (
    "quantize_1x128_both",
    "quantize_128x128",
    "retile_128x1",
    "rms_norm_quantize",
    "swiglu_quantize_backward",
)

SWIGLU_SHARED_BYTES = 22080 + 2 * 32768  # csrc/quant/swiglu_quantize_backward.hpp


def ptx() -> dict[str, str]:
    """Of this build; empty if it has no kernels."""
    images = runtime.extension().kernel_images()
    return {name: images[name]["ptx"] for name in KERNELS if name in images}


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 64 bytes, as torch has them: how many sectors an access touches
    depends on that."""
    memory = torch.empty(values.nbytes, dtype=torch.uint8).numpy()
    copy = memory.view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def _full(*arguments: object) -> np.ndarray:
    return aligned(np.full(*arguments))


def _transposed(columns: int, pitch: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales that nothing has been written to."""
    scale_pitch = -(-columns // 4) * 4
    codes = _full((columns, pitch), 0xA5, np.uint8)
    return codes, _full((pitch // 128, scale_pitch), -1, np.float32)


def _bytes(layout: str, *values: object) -> bytes:
    """The struct, padded as C++ pads it to its alignment."""
    arrays = [
        value.__array_interface__["data"][0] if isinstance(value, np.ndarray) else value
        for value in values
    ]
    return struct.pack(f"<{layout}0q", *arrays)


def both(load, x: np.ndarray, offsets: np.ndarray, suffix: str) -> dict[str, np.ndarray]:
    """x: BF16 as uint16, or float32."""
    rows, columns = x.shape
    pitch = transposed_columns(rows, torch.from_numpy(offsets))
    tiles, groups = -(-columns // 128), len(offsets) - 1
    codes = _full((rows, columns), 0xA5, np.uint8)
    scale = _full((tiles, rows), -1, np.float32)
    codes_t, scale_t = _transposed(columns, pitch)
    buffers = (x, codes, scale, codes_t, scale_t, offsets)
    params = _bytes(
        "6Q4q3ifI4x",
        *buffers,
        columns,
        rows,
        pitch,
        scale_t.shape[1],
        rows,
        columns,
        groups,
        AMAX_FLOOR,
        0,
    )
    load("quantize_1x128_both").launch(
        f"quantize_1x128_both_{suffix}",
        (rows // 128 + groups + 1) * tiles,
        128 * x.itemsize,
        [params],
        buffers=[In(x), Out(codes), Out(scale), Out(codes_t), Out(scale_t), In(offsets)],
    )
    return {"codes": codes, "scale": scale, "codes_t": codes_t, "scale_t": scale_t}


def weights(load, w: np.ndarray, suffix: str) -> dict[str, np.ndarray]:
    """w: [G, N, K], BF16 as uint16, or float32."""
    groups, rows, columns = w.shape
    tiles = (-(-rows // 128), -(-columns // 128))
    codes = _full(w.shape, 0xA5, np.uint8)
    codes_t = _full((groups, columns, rows), 0xA5, np.uint8)
    scale = _full((groups, *tiles), -1, np.float32)
    params = _bytes(
        "4Q2q3ifI4x",
        w,
        codes,
        codes_t,
        scale,
        rows * columns,
        columns,
        groups,
        rows,
        columns,
        AMAX_FLOOR,
        0,
    )
    load("quantize_128x128").launch(
        f"quantize_128x128_{suffix}",
        scale.size,
        128 * w.itemsize,
        [params],
        buffers=[In(w), Out(codes), Out(codes_t), Out(scale)],
    )
    return {"codes": codes, "codes_t": codes_t, "scale": scale}


def retile(
    load, codes: np.ndarray, scale: np.ndarray, offsets: np.ndarray, suffix: str = ""
) -> dict[str, np.ndarray]:
    """codes: [T, K] as uint8; scale: [tiles, T]."""
    rows, columns = codes.shape
    pitch = transposed_columns(rows, torch.from_numpy(offsets))
    groups = len(offsets) - 1
    codes_t, scale_t = _transposed(columns, pitch)
    params = _bytes(
        "5Q4q3i4x",
        codes,
        scale,
        codes_t,
        scale_t,
        offsets,
        columns,
        rows,
        pitch,
        scale_t.shape[1],
        rows,
        columns,
        groups,
    )
    load("retile_128x1").launch(
        f"retile_128x1{suffix}",
        pitch // 128 * -(-columns // 128),
        128,
        [params],
        buffers=[In(codes), In(scale), Out(codes_t), Out(scale_t), In(offsets)],
    )
    return {"codes_t": codes_t, "scale_t": scale_t}


def rms_norm(load, x: np.ndarray, weight: np.ndarray, suffix: str) -> dict[str, np.ndarray]:
    """x [T, K] and weight [K]: BF16 as uint16, or float32. T is a multiple of 4."""
    rows, columns = x.shape
    codes = _full(x.shape, 0xA5, np.uint8)
    scale = _full((-(-columns // 128), rows), -1, np.float32)
    normalized, inverse = _full(x.shape, 1, x.dtype), _full(rows, -1, np.float32)
    buffers = (x, weight, codes, scale, normalized, inverse)
    params = _bytes(
        "6Q2q2ifIfI",
        *buffers,
        columns,
        rows,
        rows,
        columns,
        1e-6,
        weight.itemsize == 4,
        AMAX_FLOOR,
        0,
    )
    threads = (256 if columns <= 2048 else 1024) * x.itemsize // 16
    block = max(threads, 128)
    load("rms_norm_quantize").launch(
        f"rms_norm_quantize_{suffix}",
        rows * threads // block,
        block,
        [params],
        buffers=[In(x), In(weight), Out(codes), Out(scale), Out(normalized), Out(inverse)],
    )
    return {"codes": codes, "scale": scale, "normalized": normalized, "inverse": inverse}


def swiglu_backward(
    load, dy: np.ndarray, gate_up: np.ndarray, row_weight: np.ndarray, offsets: np.ndarray
) -> dict[str, np.ndarray]:
    """dy [T, I] and gate_up [T, 2 I]: BF16 as uint16. T is a multiple of 4."""
    rows, columns = dy.shape
    groups, squares = len(offsets) - 1, columns // 128
    pitch = transposed_columns(rows, torch.from_numpy(offsets))
    codes = _full((rows, 2 * columns), 0xA5, np.uint8)
    scale = _full((2 * squares, rows), -1, np.float32)
    codes_t, scale_t = _transposed(2 * columns, pitch)
    h_codes_t, h_scale_t = _transposed(columns, pitch)
    of_rows = _full(rows, -1, np.float32)
    inputs = (dy, gate_up, row_weight, offsets)
    outputs = (codes, scale, codes_t, scale_t, h_codes_t, h_scale_t, of_rows)
    cluster = min(8, squares)
    params = _bytes(
        "11Q6q4ifI",
        *inputs,
        *outputs,
        columns,
        2 * columns,
        rows,
        pitch,
        scale_t.shape[1],
        h_scale_t.shape[1],
        rows,
        columns,
        groups,
        cluster,
        AMAX_FLOOR,
        0,
    )
    load("swiglu_quantize_backward").launch(
        "swiglu_quantize_backward",
        (rows // 128 + groups) * cluster,
        256,
        [params],
        cluster=cluster,
        shared_bytes=SWIGLU_SHARED_BYTES,
        buffers=[*map(In, inputs), *map(Out, outputs)],
    )
    names = ("codes", "scale", "codes_t", "scale_t", "h_codes_t", "h_scale_t", "of_rows")
    return dict(zip(names, outputs, strict=True))
