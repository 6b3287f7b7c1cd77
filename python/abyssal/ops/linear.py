"""A linear layer in FP8, forward and backward, dense or of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from abyssal.errors import InputError
from abyssal.ops.backend import choose_backend
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.quantiser_checks import check_block_scaled, check_offsets, check_values
from abyssal.ops.quantize_weight import BLOCK_128X128
from abyssal.reference.quantize import AMAX_FLOOR


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    *,
    quantized: tuple[BlockScaled, BlockScaled] | None = None,
    pow2: bool = False,
) -> Tensor:
    """x W^T with all three products in FP8: forward, input gradient and weight gradient.

    Report, section 3.3: activations and gradients are quantised in tiles of 1x128 (for the weight
    gradient in tiles of 128 tokens), the weight in tiles of 128x128, which its transpose shares.
    For backward, x is kept in FP8 alone. The result and the gradients are, bit for bit, those of

        q, q_t = quantize_1x128_both(x, offsets)
        w, w_t = quantize_128x128(weight, transpose="both")
        y  = fp8_gemm(q, w)                         or fp8_grouped_gemm(q, w, offsets)
        g, g_t = quantize_1x128_both(dy, offsets)
        dx = fp8_gemm(g, w_t)                       or fp8_grouped_gemm(g, w_t, offsets)
        dw = fp8_wgrad(g_t, q_t, offsets)           in weight's type

    on the backend that forward ran on.

    Args:
        x: [..., K], bfloat16 or float32; with offsets [T, K]. Contiguous along K,
            and rows equally far apart.
        weight: [N, K], bfloat16 or float32; with offsets a stack [G, N, K]. N and K are multiples
            of 16.
        offsets: int32 [G + 1], which rows of x each weight gets, as in `fp8_grouped_gemm`. Rows of
            no group give 0.
        quantized: the weight and its transpose in FP8, where they are made once for many calls:
            `quantize_128x128(weight, transpose="both")`. None: made here.
        pow2: scales of x and of gradients that are powers of two.

    Returns:
        [..., N] of x's type. Gradients flow to x and weight, of their types. Backward makes an
        incoming gradient contiguous if it is not.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    _check(x, weight, offsets, quantized, pow2)
    backend = choose_backend(x)
    rows = _rows_of(x)
    given: tuple[Any, ...] = (None,) * 3
    if quantized is not None:
        given = (quantized[0].data, quantized[1].data, quantized[0].scale)
    y = _Fp8Linear.apply(rows, weight, offsets, *given, pow2, backend)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])


def _rows_of(x: Tensor) -> Tensor:
    """x [..., K] as [T, K] over the same memory."""
    if x.dim() == 2:
        return x
    try:
        return x.view(x.shape[:-1].numel(), x.shape[-1])
    except RuntimeError:
        raise InputError(
            f"x must have rows that are equally far apart, and is {list(x.shape)} with strides "
            f"{x.stride()}: call x.contiguous()"
        ) from None


def _check(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    quantized: tuple[BlockScaled, BlockScaled] | None,
    pow2: bool,
) -> None:
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
    grouped = offsets is not None
    wanted = "[G, N, K]" if grouped else "[N, K]"
    if weight.dim() != (3 if grouped else 2) or weight.shape[-1] % 16 or weight.shape[-2] % 16:
        raise InputError(
            f"weight must be {wanted} with N and K multiples of 16, not {list(weight.shape)}"
        )
    if x.dim() < 1 or (grouped and x.dim() != 2) or x.shape[-1] != weight.shape[-1]:
        rows = "[T" if grouped else "[..."
        raise InputError(f"x must be {rows}, {weight.shape[-1]}], not {list(x.shape)}")
    check_values("x", x)
    check_values("weight", weight)
    if weight.device != x.device:
        raise InputError(f"weight is on {weight.device} and x on {x.device}")
    check_offsets(offsets, x.device)
    if offsets is not None and offsets.shape[0] != weight.shape[0] + 1:
        raise InputError(
            f"offsets must be int32 [{weight.shape[0] + 1}] for weight {list(weight.shape)}, not "
            f"{list(offsets.shape)}"
        )
    if not isinstance(pow2, bool):
        raise InputError(f"pow2 must be True or False, not {pow2!r}")
    if quantized is not None:
        _check_quantized(quantized, weight)


def _check_quantized(quantized: tuple[BlockScaled, BlockScaled], weight: Tensor) -> None:
    if not isinstance(quantized, tuple) or len(quantized) != 2:
        raise InputError("quantized must be a pair, as quantize_128x128(transpose='both') gives it")
    shapes = (weight.shape, weight.mT.shape)
    for i, (matrix, shape) in enumerate(zip(quantized, shapes, strict=True)):
        check_block_scaled(f"quantized[{i}]", matrix, BLOCK_128X128, weight.device)
        if matrix.shape != shape:
            raise InputError(f"quantized[{i}] must be {list(shape)}, not {list(matrix.shape)}")


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        offsets: Tensor | None,
        w: Tensor | None,
        w_t: Tensor | None,
        w_scale: Tensor | None,
        pow2: bool,
        backend: str,
    ) -> Tensor:
        kernels = torch.ops.abyssal
        if w is None:
            w, w_t, w_scale = kernels.quantize_128x128(
                weight, True, ctx.needs_input_grad[0], False, AMAX_FLOOR, backend
            )
        assert w is not None and w_scale is not None
        if ctx.needs_input_grad[1]:
            q, scale, q_t, scale_t = kernels.quantize_1x128_both(
                x, offsets, pow2, AMAX_FLOOR, backend
            )
        else:
            q, scale = kernels.quantize_1x128(x, pow2, AMAX_FLOOR, backend)
            q_t = scale_t = None
        ctx.save_for_backward(w_t, w_scale, q_t, scale_t, offsets)
        ctx.options = pow2, backend, x.dtype, weight.dtype, weight.shape
        return _product(q, scale, w, w_scale, offsets, x.dtype, backend)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kernels = torch.ops.abyssal
        w_t, w_scale, q_t, scale_t, offsets = ctx.saved_tensors
        pow2, backend, x_dtype, weight_dtype, weight_shape = ctx.options
        dy = dy.contiguous()
        dx = dw = None
        if ctx.needs_input_grad[1]:
            g, scale, g_t, g_scale_t = kernels.quantize_1x128_both(
                dy, offsets, pow2, AMAX_FLOOR, backend
            )
            operands = (g_t, g_scale_t, q_t, scale_t, offsets)
            kind = "none" if offsets is None else "depth"
            dw = kernels.fp8_product(*operands, kind, False, weight_shape, weight_dtype, backend)
        else:
            g, scale = kernels.quantize_1x128(dy, pow2, AMAX_FLOOR, backend)
        if ctx.needs_input_grad[0]:
            dx = _product(g, scale, w_t, w_scale.mT, offsets, x_dtype, backend)
        return dx, dw, None, None, None, None, None, None


def _product(
    q: Tensor,
    scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    offsets: Tensor | None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    shape = (q.shape[0], w.shape[-2])
    if offsets is None:
        return torch.ops.abyssal.fp8_product(
            q, scale, w, w_scale, None, "none", True, shape, dtype, backend
        )
    out = q.new_zeros(shape, dtype=dtype)
    torch.ops.abyssal.fp8_product_out(q, scale, w, w_scale, offsets, out, "rows", True, 0, backend)
    return out
