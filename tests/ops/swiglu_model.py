"""An independent model of SwiGLU and its gradient in NumPy, operation by operation in float32."""

from __future__ import annotations

import numpy as np
import torch

from tests.ops.quantiser_model import add_pairs, add_up

F32 = np.float32
# Of 2^r around 0, highest power first.
POLYNOMIAL = [
    float.fromhex(c)
    for c in (
        "0x1.5bba14p-10",
        "0x1.3cea88p-7",
        "0x1.c6b752p-5",
        "0x1.ebf9bcp-3",
        "0x1.62e42ap-1",
        "0x1p+0",
    )
]


def sigmoid(x: np.ndarray) -> np.ndarray:
    t = np.fmin(np.fmax(x, F32(-86.5)), F32(41.5)) * F32(-float.fromhex("0x1.715476p+0"))
    n = np.rint(t)
    r, power = t - n, np.full_like(t, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        power = power * r + F32(coefficient)
    return F32(1) / (F32(1) + np.ldexp(power, n.astype(np.int32)))


def to_bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().float().numpy()


def forward(gate_up: torch.Tensor, row_weight: torch.Tensor | None) -> np.ndarray:
    with np.errstate(all="ignore"):
        gate, up, weight = _split(gate_up, row_weight)
        return to_bf16(gate * sigmoid(gate) * up * weight)


def backward(
    dy: torch.Tensor, gate_up: torch.Tensor, row_weight: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(d_gate_up, h, d_row_weight)"""
    with np.errstate(all="ignore"):
        gate, up, weight = _split(gate_up, row_weight)
        dys = dy.float().cpu().numpy()
        sigma = sigmoid(gate)
        silu = gate * sigma
        d_gate = dys * weight * up * (sigma + silu * (F32(1) - sigma))
        d_up = dys * weight * silu
        product = silu * up
        terms = (dys * product).reshape(dys.shape[0], dys.shape[1] // 128, 16, 8)
        squares = add_pairs(add_up([terms[..., i] for i in range(8)]))
        blocks = min(8, squares.shape[1])
        of_blocks = [add_up(list(squares[:, b::blocks].T)) for b in range(blocks)]
        return (
            to_bf16(np.concatenate([d_gate, d_up], axis=1)),
            to_bf16(product * weight),
            add_up(of_blocks),
        )


def _split(gate_up: torch.Tensor, row_weight: torch.Tensor | None):
    gate, up = np.split(gate_up.float().cpu().numpy(), 2, axis=1)
    rows = gate.shape[0]
    weight = np.ones(rows, F32) if row_weight is None else row_weight.cpu().numpy()
    return gate, up, weight[:, None]
