"""The public ops. They take plain tensors, check them, and run on the backend that fits.

Every op has the same parts in the same places: the kernel in csrc/, the numerics in
`abyssal.reference`, the tests in tests/ops, the page in docs/ops.
"""

from __future__ import annotations

from abyssal.ops.backend import backend
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.gemm import fp8_gemm, fp8_grouped_gemm, fp8_grouped_gemm_masked, fp8_wgrad
from abyssal.ops.linear import fp8_linear
from abyssal.ops.quantize import quantize_1x128
from abyssal.ops.quantize_transposed import quantize_1x128_both, retile_128x1
from abyssal.ops.quantize_weight import quantize_128x128
from abyssal.ops.rms_norm_quantize import rms_norm_quantize
from abyssal.ops.swiglu_quantize import (
    SwigluGradients,
    swiglu_quantize,
    swiglu_quantize_backward,
)
from abyssal.ops.warmup import warmup

__all__ = [
    "BlockScaled",
    "SwigluGradients",
    "backend",
    "fp8_gemm",
    "fp8_grouped_gemm",
    "fp8_grouped_gemm_masked",
    "fp8_linear",
    "fp8_wgrad",
    "quantize_1x128",
    "quantize_1x128_both",
    "quantize_128x128",
    "retile_128x1",
    "rms_norm_quantize",
    "swiglu_quantize",
    "swiglu_quantize_backward",
    "warmup",
]
