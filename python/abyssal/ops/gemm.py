"""FP8 matrix products with block scales: dense, grouped by expert, and weight gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError
from abyssal.ops.backend import choose_backend, launch_target
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.registration import define
from abyssal.reference import gemm as reference

TILE = 128
_ROWS, _SQUARE = (1, TILE), (TILE, TILE)
_OUT_DTYPES = (torch.bfloat16, torch.float32)
# Bytes that addresses and strides are multiples of, for TMA.
_ALIGNMENT = 16
_MOST = 2**31 - 1


def fp8_gemm(
    a: BlockScaled,
    b: BlockScaled,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    beta: int = 0,
) -> Tensor:
    """D = beta * D + A B^T of FP8 matrices with block scales.

    Report, section 3.3.2: products are added up on tensor cores over 128 of K, and these partial
    sums, scaled, in FP32. The numerics are those of `abyssal.reference.gemm`.

    Args:
        a: [M, K] in blocks of 1x128, as `quantize_1x128` gives it. M may be 0.
        b: [N, K] in blocks of 128x128 (a weight) or 1x128. N is a multiple of 8, K of 16.
        out_dtype: bfloat16 or float32.
        out: [M, N] to write into, contiguous along N, rows at multiples of 16 bytes; returned. Its
            dtype replaces out_dtype.
        beta: 0, or 1 to add to what `out` holds: rounded to FP32, then to BF16 if it is.

    Returns:
        D [M, N]. No gradient flows through it; `fp8_linear` has one.

    Raises:
        InputError: a wrong shape, type, block, layout or device. Layouts are never copied.
    """
    _check_operand("a", a, dims=2, blocks=(_ROWS,))
    _check_operand("b", b, dims=2, blocks=(_SQUARE, _ROWS))
    _check_pair(a, b)
    shape = (a.shape[0], b.shape[0])
    return _product("none", a, b, None, shape, out_dtype, out, beta)


def fp8_grouped_gemm(
    a: BlockScaled,
    b: BlockScaled,
    offsets: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    beta: int = 0,
) -> Tensor:
    """Products of groups of rows with a matrix of their own, as of the experts of a layer.

    D[offsets[g] : offsets[g + 1]] = A[the same rows] B[g]^T. Offsets stay on the device: nothing
    waits for the host. Groups may be empty and begin at any row; no padding is asked for.

    Args:
        a: [M, K] in blocks of 1x128, M being room for the rows of all groups.
        b: a stack [G, N, K] in blocks of 128x128 or 1x128.
        offsets: int32 [G + 1], not decreasing, 0 <= offsets[g] <= M. What is beyond M is cut off.
        out_dtype, out, beta: as of `fp8_gemm`; D is [M, N]. Rows of no group are not written:
            without `out`, their values are undefined.

    Returns:
        D [M, N].

    Raises:
        InputError: as `fp8_gemm`.
    """
    _check_operand("a", a, dims=2, blocks=(_ROWS,))
    _check_operand("b", b, dims=3, blocks=(_SQUARE, _ROWS))
    _check_pair(a, b)
    _check_integers("offsets", offsets, b.shape[0] + 1, a)
    shape = (a.shape[0], b.shape[1])
    return _product("rows", a, b, offsets, shape, out_dtype, out, beta)


def fp8_grouped_gemm_masked(
    a: BlockScaled,
    b: BlockScaled,
    counts: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    beta: int = 0,
) -> Tensor:
    """`fp8_grouped_gemm` for groups that lie apart, each with the same room: for decoding.

    D[g, : counts[g]] = A[g, : counts[g]] B[g]^T.

    Args:
        a: a stack [G, M, K] in blocks of 1x128, M being the room of a group.
        b: a stack [G, N, K] in blocks of 128x128 or 1x128.
        counts: int32 [G], 0 <= counts[g] <= M. What is beyond M is cut off.
        out_dtype, out, beta: as of `fp8_gemm`; D is [G, M, N]. Other rows are not written: without
            `out`, their values are undefined.

    Returns:
        D [G, M, N].

    Raises:
        InputError: as `fp8_gemm`.
    """
    _check_operand("a", a, dims=3, blocks=(_ROWS,))
    _check_operand("b", b, dims=3, blocks=(_SQUARE, _ROWS))
    _check_pair(a, b)
    if a.shape[0] != b.shape[0]:
        raise InputError(
            f"a is {list(a.shape)} and b {list(b.shape)}: they must have as many groups"
        )
    _check_integers("counts", counts, b.shape[0], a)
    shape = (*a.shape[:2], b.shape[1])
    return _product("masked", a, b, counts, shape, out_dtype, out, beta)


def fp8_wgrad(
    dy_t: BlockScaled,
    x_t: BlockScaled,
    offsets: Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    beta: int = 0,
) -> Tensor:
    """Weight gradients: D = beta * D + dY^T X, a sum over tokens; of each group, if there are some.

    Both operands are transposed, as `quantize_1x128_both` gives them: tokens are contiguous, in
    blocks of 128, and each group begins at a block of its own (group g at block offsets[g] // 128
    + g). The groups are ranges of one matrix, so its description to TMA never changes.

    Args:
        dy_t: [N, T'] in blocks of 1x128.
        x_t: [K, T'] in blocks of 1x128. K is a multiple of 8, T' of 128.
        offsets: int32 [G + 1], the tokens of each group before padding; None: one group.
        out_dtype, out, beta: as of `fp8_gemm`; D is [N, K], or [G, N, K] with offsets. A group
            without tokens gives 0 (with beta 1, what was there).

    Returns:
        D.

    Raises:
        InputError: as `fp8_gemm`.
    """
    _check_operand("dy_t", dy_t, dims=2, blocks=(_ROWS,))
    _check_operand("x_t", x_t, dims=2, blocks=(_ROWS,))
    _check_pair(dy_t, x_t, "dy_t", "x_t")
    if dy_t.shape[1] % TILE:
        raise InputError(f"dy_t must be [N, T'] with T' a multiple of 128, not {list(dy_t.shape)}")
    shape: tuple[int, ...] = (dy_t.shape[0], x_t.shape[0])
    if offsets is None:
        return _product("none", dy_t, x_t, None, shape, out_dtype, out, beta)
    groups = offsets.shape[0] - 1 if isinstance(offsets, Tensor) and offsets.dim() == 1 else 0
    _check_integers("offsets", offsets, max(groups, 1) + 1, dy_t)
    if dy_t.shape[1] < TILE * groups:
        raise InputError(
            f"dy_t must have room for {groups} groups, a multiple of 128 columns from "
            f"{TILE * groups} on, and is {list(dy_t.shape)}"
        )
    return _product("depth", dy_t, x_t, offsets, (groups, *shape), out_dtype, out, beta)


def _product(
    kind: str,
    a: BlockScaled,
    b: BlockScaled,
    offsets: Tensor | None,
    shape: tuple[int, ...],
    out_dtype: torch.dtype,
    out: Tensor | None,
    beta: int,
) -> Tensor:
    if type(beta) is not int or beta not in (0, 1):
        raise InputError(f"beta must be 0 or 1, not {beta!r}")
    backend = choose_backend(a.data)
    tensors = (a.data.detach(), a.scale.detach(), b.data.detach(), b.scale.detach(), offsets)
    square = b.block == _SQUARE
    if out is None:
        if beta:
            raise InputError("beta is 1 and there is no out to add to")
        if out_dtype not in _OUT_DTYPES:
            raise InputError(f"out_dtype must be bfloat16 or float32, not {out_dtype}")
        return torch.ops.abyssal.fp8_product(*tensors, kind, square, shape, out_dtype, backend)
    _check_out(out, shape, a)
    torch.ops.abyssal.fp8_product_out(*tensors, out.detach(), kind, square, beta, backend)
    return out


def _check_operand(
    name: str, x: BlockScaled, dims: int, blocks: tuple[tuple[int, int], ...]
) -> None:
    if not isinstance(x, BlockScaled):
        raise InputError(f"{name} must be a BlockScaled, not {type(x).__name__}")
    if len(x.shape) != dims:
        wanted = "[rows, K]" if dims == 2 else "[groups, rows, K]"
        raise InputError(f"{name} must be {wanted}, not {list(x.shape)}")
    if x.block not in blocks or x.axis != 1:
        accepted = " or ".join(map(str, blocks))
        raise InputError(
            f"{name} must have blocks of {accepted} and be summed along axis 1, and is {x}: FP8 "
            "tensor cores read rows along K"
        )
    if max(x.shape) > _MOST:
        raise InputError(f"{name} must have dimensions below 2**31, not {list(x.shape)}")
    if x.shape[-1] % 16:
        raise InputError(f"{name} must have a multiple of 16 columns, not {list(x.shape)}")
    _check_layout(f"{name}.data", x.data, inner=-1)
    if x.block == _ROWS:
        _check_layout(f"{name}.scale", x.scale, inner=-2)


def _check_layout(name: str, tensor: Tensor, inner: int) -> None:
    """TMA's rules: one dimension contiguous, the others and the address multiples of 16 bytes."""
    if tensor.numel() == 0:
        return
    others = [dim for dim in range(-tensor.dim(), 0) if dim != inner and tensor.shape[dim] > 1]
    contiguous = tensor.stride(inner) == 1 or tensor.shape[inner] == 1
    bytes_ = tensor.element_size()
    if not contiguous or any(tensor.stride(dim) * bytes_ % _ALIGNMENT for dim in others):
        raise InputError(
            f"{name} must be contiguous along dimension {inner} and have strides of multiples of "
            f"16 bytes elsewhere; it is {list(tensor.shape)} with strides {tensor.stride()}"
        )


def _check_pair(a: BlockScaled, b: BlockScaled, name_a: str = "a", name_b: str = "b") -> None:
    if a.shape[-1] != b.shape[-1]:
        raise InputError(
            f"{name_b} must have {a.shape[-1]} columns, as {name_a} {list(a.shape)} has, and is "
            f"{list(b.shape)}"
        )
    if b.shape[-2] % 8 or b.shape[-2] == 0:
        raise InputError(f"{name_b} must have a multiple of 8 rows, not {list(b.shape)}")
    if a.device != b.device:
        raise InputError(f"{name_a} is on {a.device} and {name_b} on {b.device}")


def _check_integers(name: str, tensor: Tensor, length: int, a: BlockScaled) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype != torch.int32 or tuple(tensor.shape) != (length,):
        raise InputError(
            f"{name} must be int32 [{length}], not {tensor.dtype} {list(tensor.shape)}"
        )
    if tensor.stride(0) != 1:
        raise InputError(f"{name} must be contiguous, and its stride is {tensor.stride(0)}")
    if tensor.device != a.device:
        raise InputError(f"{name} is on {tensor.device} and the operands on {a.device}")


def _check_out(out: Tensor, shape: tuple[int, ...], a: BlockScaled) -> None:
    if not isinstance(out, Tensor):
        raise InputError(f"out must be a tensor, not {type(out).__name__}")
    if tuple(out.shape) != shape or out.dtype not in _OUT_DTYPES:
        raise InputError(
            f"out must be bfloat16 or float32 {list(shape)}, not {out.dtype} {list(out.shape)}"
        )
    if out.device != a.device:
        raise InputError(f"out is on {out.device} and the operands on {a.device}")
    _check_layout("out", out, inner=-1)


# ----- the op


def _functional(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    offsets: Tensor | None,
    kind: str,
    square: bool,
    shape: list[int],
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    out = a.new_empty(shape, dtype=out_dtype)
    _into(a, scale_a, b, scale_b, offsets, out, kind, square, 0, backend)
    return out


def _into(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    offsets: Tensor | None,
    out: Tensor,
    kind: str,
    square: bool,
    beta: int,
    backend: str,
) -> None:
    # A compiled graph may have laid out anew what was checked before.
    _check_memory("a.data", a, inner=-1)
    _check_memory("a.scale", scale_a, inner=-2)
    _check_memory("b.data", b, inner=-1)
    if not square:
        _check_memory("b.scale", scale_b, inner=-2)
    _check_memory("out", out, inner=-1)
    if backend == "reference":
        _reference(a, scale_a, b, scale_b, offsets, out, kind, square, beta)
    else:
        launch(a, scale_a, b, scale_b, offsets, out, kind, square, beta, backend)


def _check_memory(name: str, tensor: Tensor, inner: int) -> None:
    _check_layout(name, tensor, inner)
    if tensor.data_ptr() % _ALIGNMENT:
        raise InputError(f"{name} must begin at a multiple of 16 bytes, as fresh tensors do")


def _reference(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    offsets: Tensor | None,
    out: Tensor,
    kind: str,
    square: bool,
    beta: int,
) -> None:
    operands = (a, scale_a, b, scale_b)
    block = _SQUARE if square else _ROWS
    c = out.clone() if beta else None
    if kind == "none":
        out.copy_(reference.gemm(*operands, block, out_dtype=out.dtype, c=c))
    elif kind == "rows":
        assert offsets is not None
        reference.grouped_gemm(*operands, block, offsets, out=out, beta=beta)
    elif kind == "masked":
        assert offsets is not None
        reference.grouped_gemm_masked(*operands, block, offsets, out=out, beta=beta)
    else:
        assert offsets is not None
        out.copy_(reference.wgrad(*operands, offsets, out_dtype=out.dtype, c=c))


def launch(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    offsets: Tensor | None,
    out: Tensor,
    kind: str,
    square: bool,
    beta: int,
    backend: str,
    choice: tuple[Any, ...] | None = None,
) -> None:
    """Queue the kernel of `choice` (of `_extension.rank_gemm_choices`), or the shape's best."""
    tensors = (a, scale_a, b, scale_b, out) + (() if offsets is None else (offsets,))
    target = launch_target(backend, *tensors)
    if out.numel() == 0:
        return
    if a.shape[-1] == 0:  # no products: 0, or what is there
        if not beta:
            out.zero_()
        return
    description = _describe_product(a, scale_a, b, scale_b, offsets, out, kind, square, beta)
    runtime.extension().fp8_gemm(target.device, target.stream, *description, choice)


def prepare(
    a: BlockScaled,
    b: BlockScaled,
    offsets: Tensor | None,
    out: Tensor,
    kind: str,
    beta: int,
    choice: tuple[Any, ...],
) -> tuple[str, int, int, int, int, bytes]:
    """What `launch` would launch, for who runs the PTX on the emulator by `Module.launch`:
    (kernel, blocks, threads, blocks of a cluster, bytes of shared memory, its parameters)."""
    operands = (a.data, a.scale, b.data, b.scale, offsets)
    description = _describe_product(*operands, out, kind, b.block == _SQUARE, beta)
    result: tuple[str, int, int, int, int, bytes] = runtime.extension().prepare_fp8_gemm(
        *description, choice
    )
    return result


def _describe_product(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    offsets: Tensor | None,
    out: Tensor,
    kind: str,
    square: bool,
    beta: int,
) -> tuple[Any, ...]:
    """As the extension takes it."""
    return (
        _describe(a, inner=-1),
        _describe(scale_a, inner=-2),
        _describe(b, inner=-1),
        _describe(scale_b, inner=-2),
        _describe(out, inner=-1),
        square,
        out.dtype == torch.float32,
        bool(beta),
        getattr(runtime.extension().GemmGroups, kind),
        1 if kind == "none" else (out if kind == "depth" else b).shape[0],
        0 if offsets is None else offsets.data_ptr(),
    )


def _describe(tensor: Tensor, inner: int) -> tuple[int, ...]:
    """(address, 3 extents, 3 strides); the stride of a dimension with one entry, which torch leaves
    open, as a contiguous layout would have it."""
    if tensor.dim() == 2:
        tensor = tensor.unsqueeze(0)
    extents, strides = list(tensor.shape), list(tensor.stride())
    granule = _ALIGNMENT // tensor.element_size()
    step = 1
    for dim in sorted(range(-3, 0), key=lambda dim: (dim != inner, -dim)):
        if extents[dim] == 1:
            strides[dim] = step
        step = max(step, -(-strides[dim] * extents[dim] // granule) * granule)
    return (tensor.data_ptr(), *extents, *strides)


def _fake(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor,
    offsets: Tensor | None,
    kind: str,
    square: bool,
    shape: list[int],
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return a.new_empty(shape, dtype=out_dtype)


_OPERANDS = "Tensor a, Tensor scale_a, Tensor b, Tensor scale_b, Tensor? offsets"
define(
    f"fp8_product({_OPERANDS}, str kind, bool square, SymInt[] shape, ScalarType out_dtype, "
    "str backend) -> Tensor",
    _functional,
    fake=_fake,
)
define(
    f"fp8_product_out({_OPERANDS}, Tensor(a!) out, str kind, bool square, int beta, str backend) "
    "-> ()",
    _into,
    fake=lambda *arguments: None,
)
