"""Operands of the GEMM tests, what the products must be, and how near."""

from __future__ import annotations

import torch
from torch import Tensor

from abyssal import ops
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.gemm_choice import MULTIPROCESSORS, rank_candidates
from abyssal.reference import gemm as reference
from abyssal.reference import quantize

TILE = 128


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def activations(rows: int, columns: int, seed: int, *, device: str = "cpu") -> BlockScaled:
    """[rows, columns] in blocks of 1x128, their magnitudes over many octaves."""
    random = generator(seed)
    x = torch.randn(rows, columns, generator=random)
    octaves = torch.randint(-8, 8, (rows, -(-columns // TILE)), generator=random)
    x = torch.ldexp(x, octaves.repeat_interleave(TILE, 1)[:, :columns])
    return moved(ops.quantize_1x128(x), device)


def weight(
    rows: int, columns: int, seed: int, *, square: bool = True, device: str = "cpu"
) -> BlockScaled:
    """[rows, columns] in blocks of 128x128, or of 1x128."""
    if not square:
        return activations(rows, columns, seed, device=device)
    random = generator(seed)
    w = torch.randn(rows, columns, generator=random)
    grid = (-(-rows // TILE), -(-columns // TILE))
    octaves = torch.randint(-8, 8, grid, generator=random)
    octaves = octaves.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)[:rows, :columns]
    codes, scale = quantize.quantize_128x128(torch.ldexp(w, octaves))
    return moved(BlockScaled(codes, scale, (TILE, TILE)), device)


def stack(matrices: list[BlockScaled]) -> BlockScaled:
    """[G, rows, columns], with scales laid out as each matrix has them."""
    data = torch.stack([x.data.view(torch.uint8) for x in matrices])
    scale = torch.stack([x.scale for x in matrices])
    if matrices[0].block == (1, TILE):
        _, rows, blocks = scale.shape
        pitch = -(-rows // 4) * 4
        strides = (pitch * blocks, 1, pitch)
        scale = torch.empty_strided(scale.shape, strides, device=scale.device).copy_(scale)
    return BlockScaled(data.view(torch.float8_e4m3fn), scale, matrices[0].block)


def moved(x: BlockScaled, device: str) -> BlockScaled:
    return BlockScaled(x.data.to(device), x.scale.to(device), x.block, x.axis)


def on_cpu(x: BlockScaled) -> BlockScaled:
    return moved(x, "cpu")


def expected(
    a: BlockScaled, b: BlockScaled, c: Tensor | None, dtype: torch.dtype, split_k: int = 1
) -> Tensor:
    """The product, bit for bit as a kernel gives it."""
    return reference.gemm(
        a.data.cpu(),
        a.scale.cpu(),
        b.data.cpu(),
        b.scale.cpu(),
        b.block,
        out_dtype=dtype,
        c=None if c is None else c.cpu(),
        accumulate="hopper",
        split_k=split_k,
    )


def chosen_split(a: BlockScaled, b: BlockScaled, c: Tensor | None, dtype: torch.dtype) -> int:
    """Among how many blocks the kernel that runs divides K."""
    if not a.shape[0]:
        return 1
    multiprocessors = MULTIPROCESSORS
    if a.device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(a.device).multi_processor_count
    candidates = rank_candidates(
        a.shape[0],
        b.shape[0],
        a.shape[1],
        square_scales=b.block == (TILE, TILE),
        out_dtype=dtype,
        beta=0 if c is None else 1,
        multiprocessors=multiprocessors,
    )
    return candidates[0].split_k


def row_error(result: Tensor, exact: Tensor) -> float:
    """The worst row's L2 norm of the error, relative to the row's."""
    difference = (result.double().cpu() - exact).norm(dim=-1)
    return float((difference / exact.norm(dim=-1).clamp_min(1e-300)).max())


def assert_right(
    result: Tensor, a: BlockScaled, b: BlockScaled, backend: str, c: Tensor | None = None
) -> None:
    """Kernels: bit for bit. The reference: against float64 of the dequantised operands."""
    if backend == "reference":
        exact = on_cpu(a).dequantize(torch.float64) @ on_cpu(b).dequantize(torch.float64).T
        if c is not None:
            exact += c.double().cpu()
        limit = 1e-5 if result.dtype == torch.float32 else 2**-8
        if exact.numel():
            assert row_error(result, exact) <= limit
    else:
        split_k = chosen_split(a, b, c, result.dtype)
        same_bits(result, expected(a, b, c, result.dtype, split_k))


def same_bits(result: Tensor, wanted: Tensor) -> None:
    result = result.cpu()
    assert result.shape == wanted.shape and result.dtype == wanted.dtype
    whole = torch.int32 if result.dtype == torch.float32 else torch.int16
    equal = (result.view(whole) == wanted.view(whole)) | (result.isnan() & wanted.isnan())
    if not equal.all():
        where = (~equal).nonzero()
        raise AssertionError(
            f"{len(where)} of {equal.numel()} values differ, first at {where[0].tolist()}: "
            f"{result[tuple(where[0])]} instead of {wanted[tuple(where[0])]}"
        )
