"""Launch description of the quantisers, and of the producers with one behind them, that go through
shared memory, for mutation testing.

The aligned kernels only: the others synchronise in the same lines.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from tests.kernels import quantiser_launches
from tests.kernels.quantiser_launches import ptx  # noqa: F401

# A whole square and a short one, and rows of no group.
OFFSETS = np.array([0, 130], np.int32)
SHAPE = (140, 128)


def values(random, shape, suffix):
    x = random.standard_normal(shape).astype(np.float32)
    return x if suffix == "fp32" else (x.view(np.uint32) >> 16).astype(np.uint16)


def both(suffix):
    return lambda load, random: quantiser_launches.both(
        load, values(random, SHAPE, suffix), OFFSETS, suffix
    )


def weights(suffix):
    return lambda load, random: quantiser_launches.weights(
        load, values(random, (1, 128, 128), suffix), suffix
    )


def retile(load, random):
    codes = random.integers(0, 0x7F, SHAPE).astype(np.uint8)
    scale = np.exp2(random.integers(-3, 4, (1, SHAPE[0]))).astype(np.float32)
    return quantiser_launches.retile(load, codes, scale, OFFSETS)


def rms_norm(suffix):
    return lambda load, random: quantiser_launches.rms_norm(
        load, values(random, (4, 4096), suffix), values(random, (4096,), suffix), f"{suffix}_long"
    )


def swiglu_backward(load, random):
    """Three squares: a cluster of as many blocks. And as many squares as leave a block two."""
    results = {}
    for columns in (384, 1152):
        dy, gate_up = (values(random, (132, n), "bf16") for n in (columns, 2 * columns))
        row_weight = random.random(132, np.float32)
        result = quantiser_launches.swiglu_backward(load, dy, gate_up, row_weight, OFFSETS)
        results |= {f"{name}_{columns}": array for name, array in result.items()}
    return results


launches = {
    "both_bf16": both("bf16"),
    "both_fp32": both("fp32"),
    "weights_bf16": weights("bf16"),
    "weights_fp32": weights("fp32"),
    "retile": retile,
    "rms_norm_bf16": rms_norm("bf16"),
    "rms_norm_fp32": rms_norm("fp32"),
    "swiglu_backward": swiglu_backward,
}
