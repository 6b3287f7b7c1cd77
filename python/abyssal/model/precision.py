"""The precision policy: in what type the matrix products of a model run.

A policy is an object that every linear layer asks to multiply; the model itself has one code. The
stored parameters (the FP32 master weights, in training) never change type: a policy casts what it
multiplies. Norms, the router, softmax statistics and the loss stay in FP32 under every policy
(report, section 3.3.1).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.errors import InputError


@dataclasses.dataclass(frozen=True)
class Precision:
    """Matrix products in `compute_dtype`; None computes in the dtype of the stored weight."""

    name: str
    compute_dtype: torch.dtype | None

    def cast(self, x: Tensor, weight: Tensor) -> Tensor:
        """`x` in the type that it meets `weight` in."""
        return x.to(self.compute_dtype or weight.dtype)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K], weight [N, K], bias [N] -> x @ weight.T + bias [..., N]."""
        dtype = self.compute_dtype or weight.dtype
        bias = None if bias is None else bias.to(dtype)
        return F.linear(x.to(dtype), weight.to(dtype), bias)

    def grouped_linear(self, x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        """One product per expert over rows that are sorted by expert.

        x [M, K] with the first counts[0] rows for expert 0, and so on; weight [E, N, K];
        sum(counts) = M. Returns [M, N].
        """
        # unbind, not indexing: its backward stacks the experts' gradients once, where indexing
        # would fill a whole [E, N, K] tensor with zeros for every expert. An expert without rows
        # is not even cast.
        products = [
            self.linear(rows, expert)
            for rows, expert, count in zip(x.split(counts), weight.unbind(0), counts, strict=True)
            if count
        ]
        return torch.cat(products) if products else x.new_zeros(0, weight.shape[1])


PRECISIONS = {
    "stored": Precision("stored", None),
    "float32": Precision("float32", torch.float32),
    "bf16": Precision("bf16", torch.bfloat16),
}


def get_precision(name: str) -> Precision:
    """The policy of that name: "stored", "float32" or "bf16". Others raise InputError."""
    if name not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}; not {name!r}")
    return PRECISIONS[name]
