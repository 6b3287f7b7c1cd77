"""RMSNorm with a quantiser behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError
from abyssal.ops.backend import choose_backend, launch_target
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.quantiser_checks import check_contiguous, check_options, check_x
from abyssal.ops.registration import define
from abyssal.ops.tiles import check_rowwise, empty_rowwise, matrix, nothing, scale_pitch
from abyssal.reference import fused, quantize
from abyssal.reference.quantize import AMAX_FLOOR

Normalized = tuple[BlockScaled, Tensor, Tensor]


def rms_norm_quantize(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    pow2: bool = False,
    amax_floor: float = AMAX_FLOOR,
    return_normalized: bool = False,
    out: BlockScaled | Normalized | None = None,
) -> BlockScaled | Normalized:
    """x / sqrt(mean of x^2 + eps) * weight, quantised as by `quantize_1x128`, in one pass over x.

    The input of the projections that follow a norm (report, sections 3.2.3 and 3.3.2; RMSNorm:
    Zhang and Sennrich 2019). Equal to the norm, rounded to x's type, and then the quantiser; every
    backend gives the same bits. `abyssal.reference.fused` has every operation.

    Args:
        x: [T, K], bfloat16 or float32, contiguous along K; rows may be further apart. Fastest with
            K up to 8192 and a multiple of 8.
        weight: [K], contiguous, of x's type or float32.
        eps: what is added to the mean of squares; at least 0.
        pow2, amax_floor: as for `quantize_1x128`.
        return_normalized: also return the normalised values before they are quantised (the router
            reads them) and 1 / sqrt(...) of each row (the norm's gradient reads it).
        out: a result of the same kind and shapes to overwrite; it is returned.

    Returns:
        BlockScaled as of `quantize_1x128`. With return_normalized: (BlockScaled, normalized
        [T, K] of x's type, inverse_rms float32 [T]). No gradient flows through them.

    Raises:
        InputError: a wrong shape, type, layout or device.
    """
    check_x(x)
    _check_weight(weight, x)
    _check_eps(eps)
    check_options(pow2, amax_floor)
    if not isinstance(return_normalized, bool):
        raise InputError(f"return_normalized must be True or False, not {return_normalized!r}")
    backend = choose_backend(x)
    x, weight = x.detach(), weight.detach()
    if out is None:
        parts = torch.ops.abyssal.rms_norm_quantize(
            x, weight, eps, return_normalized, pow2, amax_floor, backend
        )
        q = matrix(parts[0], parts[1])
        return (q, parts[2], parts[3]) if return_normalized else q
    q, normalized, inverse_rms = _check_out(out, x, return_normalized)
    torch.ops.abyssal.rms_norm_quantize_out(
        x,
        weight,
        eps,
        q.data,
        q.scale,
        normalized,
        inverse_rms,
        pow2,
        amax_floor,
        backend,
    )
    return out


def _check_weight(weight: object, x: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise InputError(f"weight must be a tensor, not {type(weight).__name__}")
    if tuple(weight.shape) != (x.shape[1],) or weight.dtype not in (x.dtype, torch.float32):
        accepted = " or ".join(dict.fromkeys(map(str, (x.dtype, torch.float32))))
        raise InputError(
            f"weight must be {accepted} [{x.shape[1]}], not {weight.dtype} {list(weight.shape)}"
        )
    if not weight.is_contiguous():
        raise InputError(f"weight must be contiguous, and its stride is {weight.stride(0)}")
    if weight.device != x.device:
        raise InputError(f"weight is on {weight.device} and must be on {x.device}")


def _check_eps(eps: object) -> None:
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise InputError(f"eps must be a number, not {eps!r}")
    if not 0 <= eps <= torch.finfo(torch.float32).max:
        raise InputError(f"eps must be a finite number of at least 0, not {eps}")


def _check_out(
    out: object, x: Tensor, return_normalized: bool
) -> tuple[BlockScaled, Tensor | None, Tensor | None]:
    if not return_normalized:
        return check_rowwise("out", out, x.shape, x.device), None, None
    if not isinstance(out, tuple) or len(out) != 3:
        raise InputError(
            "out must be (BlockScaled, normalized, inverse_rms) with return_normalized, not "
            f"{type(out).__name__}"
        )
    q, normalized, inverse_rms = out
    check_contiguous("out[1]", normalized, x.shape, x.dtype, x.device)
    check_contiguous("out[2]", inverse_rms, x.shape[:1], torch.float32, x.device)
    return check_rowwise("out[0]", q, x.shape, x.device), normalized, inverse_rms


def _into(
    x: Tensor,
    weight: Tensor,
    eps: float,
    data: Tensor,
    scale: Tensor,
    normalized: Tensor | None,
    inverse_rms: Tensor | None,
    pow2: bool,
    amax_floor: float,
    backend: str,
) -> None:
    if backend == "reference":
        y, inverse = fused.rms_norm(x, weight, eps)
        codes, scales = quantize.quantize_1x128(y, pow2=pow2, amax_floor=amax_floor)
        data.copy_(codes)
        scale.copy_(scales)
        if normalized is not None and inverse_rms is not None:
            normalized.copy_(y)
            inverse_rms.copy_(inverse)
        return
    kept = [tensor for tensor in (normalized, inverse_rms) if tensor is not None]
    target = launch_target(backend, x, weight, data, scale, *kept)
    rows, columns = x.shape
    runtime.extension().rms_norm_quantize(
        target.device,
        target.stream,
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        weight.data_ptr(),
        weight.dtype == torch.float32,
        data.data_ptr(),
        scale.data_ptr(),
        0 if normalized is None else normalized.data_ptr(),
        0 if inverse_rms is None else inverse_rms.data_ptr(),
        x.stride(0),
        scale_pitch(scale),
        rows,
        columns,
        eps,
        amax_floor,
        pow2,
    )


def _empty(x: Tensor, return_normalized: bool) -> list[Tensor]:
    results = list(empty_rowwise(x, x.shape))
    if return_normalized:
        normalized = x.new_empty(x.shape)
        results += [normalized, x.new_empty(x.shape[:1], dtype=torch.float32)]
    return results


def _functional(
    x: Tensor,
    weight: Tensor,
    eps: float,
    return_normalized: bool,
    pow2: bool,
    amax_floor: float,
    backend: str,
) -> list[Tensor]:
    results = _empty(x, return_normalized)
    data, scale, normalized, inverse_rms = [*results, None, None][:4]
    assert data is not None and scale is not None
    _into(x, weight, eps, data, scale, normalized, inverse_rms, pow2, amax_floor, backend)
    return results


define(
    "rms_norm_quantize(Tensor x, Tensor weight, float eps, bool return_normalized, bool pow2, "
    "float amax_floor, str backend) -> Tensor[]",
    _functional,
    fake=lambda x, weight, eps, return_normalized, *options: _empty(x, return_normalized),
)
define(
    "rms_norm_quantize_out(Tensor x, Tensor weight, float eps, Tensor(a!) data, Tensor(b!) scale, "
    "Tensor(c!)? normalized, Tensor(d!)? inverse_rms, bool pow2, float amax_floor, str backend) "
    "-> ()",
    _into,
    fake=nothing,
)
