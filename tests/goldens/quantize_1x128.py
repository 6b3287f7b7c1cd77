"""The cases whose results a GPU has recorded: inputs by number, so that only results are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# name -> (rows, columns, type, what is special, options)
CASES: dict[str, tuple[int, int, torch.dtype, str, dict[str, Any]]] = {
    "bf16": (67, 1024, torch.bfloat16, "octaves", {}),
    "bf16_pow2": (67, 1024, torch.bfloat16, "octaves", {"pow2": True}),
    "bf16_ragged": (33, 700, torch.bfloat16, "octaves", {}),
    "bf16_odd": (9, 333, torch.bfloat16, "octaves", {"pow2": True}),
    "bf16_floor": (16, 256, torch.bfloat16, "tiny", {"amax_floor": 1e-4}),
    "bf16_not_finite": (40, 512, torch.bfloat16, "not finite", {}),
    "bf16_zeros": (5, 300, torch.bfloat16, "zeros", {}),
    "fp32": (67, 1024, torch.float32, "octaves", {}),
    "fp32_pow2": (67, 1024, torch.float32, "octaves", {"pow2": True}),
    "fp32_ragged": (33, 700, torch.float32, "octaves", {}),
    "fp32_odd": (9, 333, torch.float32, "octaves", {}),
    "fp32_subnormal": (16, 256, torch.float32, "tiny", {}),
    "fp32_huge": (16, 256, torch.float32, "huge", {}),
    "fp32_not_finite": (40, 512, torch.float32, "not finite", {"pow2": True}),
}


def make_input(name: str) -> Tensor:
    """x of a case, the same wherever and whenever it is made.

    NumPy promises that of the bits of PCG64, not of the numbers that its Generator makes of them:
    here, bits become mantissas, exponents and signs.
    """
    rows, columns, dtype, special, _ = CASES[name]
    bits = np.random.PCG64(list(name.encode()))
    values, octaves = bits.random_raw((rows, columns)), bits.random_raw((rows, 1))
    sign = np.where(values >> 63, -1.0, 1.0)
    low, high = {"octaves": (-30, 30), "tiny": (-149, -120), "huge": (100, 126)}.get(
        special, (0, 1)
    )
    exponent = low + (octaves % (high - low)).astype(int) - (values >> 32).astype(int) % 11
    x = sign * np.ldexp(1 + (values & 0xFFFFFF) / 2**24, exponent)
    if special == "zeros":
        x *= 0.0
    if special == "not finite":
        for value in (np.nan, np.inf, -np.inf):
            places = bits.random_raw(4)
            x[places % rows, (places >> 32) % columns] = value
    return torch.from_numpy(x.astype(np.float32)).to(dtype)
