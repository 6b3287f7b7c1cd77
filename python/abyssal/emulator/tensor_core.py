"""One tensor-core instruction's dot products, with the bits that a Hopper GPU gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from abyssal import runtime
from abyssal.errors import InputError

# Bytes of an operand's row that one instruction reads.
_ROW_BYTES = 32

_TYPE_NAMES = {
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e5m2: "e5m2",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "tf32",
}
_FP8 = ("e4m3", "e5m2")
_MOST_ROWS = 2**31 - 1


def tensor_core(a: Tensor, b: Tensor, c: Tensor, dtype: str | None = None) -> Tensor:
    """Dot products of one `wgmma` instruction, added to accumulators: c + sum over k of a * b.

    A Hopper tensor core aligns all terms of an output to the largest, cuts what is below, adds them
    exactly and rounds once (csrc/emulator/tensor_core.hpp has the rules and their sources). For FP8
    with FP32 accumulators, only 14 bits are left of every sum.

        x = torch.randn(64, 1, 32).to(torch.float8_e4m3fn)
        y = torch.randn(1, 128, 32).to(torch.float8_e4m3fn)
        d = emulator.tensor_core(x, y, torch.zeros(64, 128))       # one m64n128k32

    Longer dot products are chains of calls: d = tensor_core(a[..., 32:64], b[..., 32:64], d).

    Args:
        a: [..., K] on the CPU: float8_e4m3fn or float8_e5m2 with K = 32, float16 or bfloat16 with
            K = 16, or float32 with K = 8 and `dtype="tf32"`.
        b: [..., K] of the same type; the two FP8 types may be mixed.
        c: [...] accumulators, float32, or float16 for operands of FP8 or float16.
        dtype: "tf32" for float32 operands, whose low 13 bits are not read; else None.

    The dimensions before K of a and b, and those of c, are broadcast together.

    Returns:
        A tensor of the broadcast shape and of c's type. No gradient flows through it.

    Raises:
        InputError: a wrong shape, type or device.
    """
    types = _check_types(a, b, c, dtype)
    shape = _check_shapes(a, b, c)
    with torch.no_grad():
        d = c.detach().expand(shape).clone(memory_format=torch.contiguous_format)
        accumulate_into(d, a.detach(), b.detach(), types)
    return d


def paths() -> list[str]:
    """The instruction sets of this processor that can compute it, the fastest last."""
    return [path.name for path in runtime.extension().emulator.tensor_core_paths()]


def accumulate_into(
    d: Tensor,
    a: Tensor,
    b: Tensor,
    types: tuple[str, str],
    *,
    accumulate: bool = True,
    path: str | None = None,
) -> None:
    """d += a x b, or d = a x b, unchecked; of any `path`, which all give the same bits."""
    core: Any = runtime.extension().emulator
    a, b = (x if x.stride(-1) == 1 else x.contiguous() for x in (a, b))
    core.tensor_core(
        getattr(core.TensorType, types[0]),
        getattr(core.TensorType, types[1]),
        a.data_ptr(),
        b.data_ptr(),
        d.data_ptr(),
        list(d.shape),
        _byte_strides(a.expand(*d.shape, a.shape[-1])[..., 0]),
        _byte_strides(b.expand(*d.shape, b.shape[-1])[..., 0]),
        _byte_strides(d),
        d.dtype == torch.float16,
        accumulate,
        getattr(core.TensorCorePath, path or paths()[-1]),
    )


def _byte_strides(tensor: Tensor) -> list[int]:
    """Along dimensions with one entry, strides say nothing: 0."""
    return [
        stride * tensor.element_size() if extent > 1 else 0
        for extent, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]


def _check_types(a: Tensor, b: Tensor, c: Tensor, dtype: str | None) -> tuple[str, str]:
    if dtype not in (None, "tf32"):
        raise InputError(f'dtype must be "tf32" for float32 operands, else None, not {dtype!r}')
    for name, tensor in (("a", a), ("b", b), ("c", c)):
        if tensor.device.type != "cpu":
            raise InputError(f"{name} must be on the CPU, not on {tensor.device}")
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dtype not in _TYPE_NAMES:
            accepted = ", ".join(str(accepted) for accepted in _TYPE_NAMES)
            raise InputError(f"{name} must be one of {accepted}, not {tensor.dtype}")
        if (tensor.dtype == torch.float32) != (dtype == "tf32"):
            raise InputError(
                f'{name} is {tensor.dtype} and dtype is {dtype!r}: dtype="tf32" goes with '
                "float32 operands, and float32 operands need it"
            )
    types = _TYPE_NAMES[a.dtype], _TYPE_NAMES[b.dtype]
    both_fp8 = all(type_ in _FP8 for type_ in types)
    if types[0] != types[1] and not both_fp8:
        raise InputError(
            f"a is {a.dtype} and b {b.dtype}: they must be the same, or any two FP8 types"
        )
    if c.dtype not in (torch.float32, torch.float16):
        raise InputError(f"c must be float32 or float16, not {c.dtype}")
    if c.dtype == torch.float16 and not both_fp8 and types[0] != "f16":
        raise InputError(
            f"c must be float32 for {a.dtype} operands (float16 goes with FP8 and float16), "
            f"not {c.dtype}"
        )
    return types


def _check_shapes(a: Tensor, b: Tensor, c: Tensor) -> torch.Size:
    for name, tensor in (("a", a), ("b", b)):
        depth = _ROW_BYTES // tensor.element_size()
        if tensor.dim() == 0 or tensor.shape[-1] != depth:
            raise InputError(
                f"{name} must be [..., {depth}], the products of one instruction of "
                f"{tensor.dtype}, not {list(tensor.shape)}"
            )
    try:
        shape = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1], c.shape)
    except RuntimeError:
        raise InputError(
            f"a {list(a.shape)} and b {list(b.shape)} without their last dimensions, and "
            f"c {list(c.shape)}, must broadcast together"
        ) from None
    if any(extent > _MOST_ROWS for extent in shape):
        raise InputError(f"the broadcast shape must be below 2**31 everywhere, not {list(shape)}")
    return shape
