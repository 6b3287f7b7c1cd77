"""The 1x128 quantiser beside its PyTorch reference, plain and compiled."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from abyssal import ops
from abyssal.ops.block_scaled import BlockScaled
from abyssal.reference import quantize as reference
from benchmarks.harness import OURS, Case, Inputs

OP = "quantize_1x128"

# Widths of the model: latents, experts, hidden, attention output, dense FFN.
WIDTHS = (512, 1536, 2048, 7168, 16384, 18432)
TOKENS = (1, 16, 128, 1024, 4096, 8192, 16384)

# One for all cases: after two shapes, torch compiles for any.
_compiled_reference = torch.compile(reference.quantize_1x128)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    for tokens in TOKENS[:3] if quick else TOKENS:
        for width in (2048, 7168) if quick else WIDTHS:
            yield make_case(tokens, width, torch.bfloat16, device)
    if not quick:
        for tokens in (128, 8192):
            yield make_case(tokens, 7168, torch.float32, device)
            yield make_case(tokens, 7168, torch.bfloat16, device, pow2=True)
            yield make_case(tokens, 7161, torch.bfloat16, device)  # one value a load


def make_case(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device, pow2: bool = False
) -> Case:
    def make_inputs(seed: int) -> Inputs:
        generator = torch.Generator(device=device).manual_seed(seed)
        x = torch.randn(tokens, width, device=device, generator=generator).to(dtype)
        return x, ops.quantize_1x128(x, pow2=pow2)

    def ours(x: Tensor, out: BlockScaled) -> BlockScaled:
        return ops.quantize_1x128(x, pow2=pow2, out=out)

    def eager(x: Tensor, out: BlockScaled) -> tuple[Tensor, Tensor]:
        return reference.quantize_1x128(x, pow2=pow2)

    def compiled(x: Tensor, out: BlockScaled) -> tuple[Tensor, Tensor]:
        return _compiled_reference(x, pow2=pow2)

    def check(x: Tensor, out: BlockScaled) -> None:
        codes, scale = reference.quantize_1x128(x, pow2=pow2)
        result = ours(x, out)
        assert torch.equal(result.data.view(torch.uint8), codes.view(torch.uint8))
        assert torch.equal(result.scale, scale)

    value_bytes = torch.empty(0, dtype=dtype).element_size()
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return Case(
        label=f"{tokens} x {width} {name}{' pow2' if pow2 else ''}",
        make_inputs=make_inputs,
        bytes_moved=tokens * (width * (value_bytes + 1) + 4 * math.ceil(width / 128)),
        contenders={OURS: ours, "torch": eager, "torch.compile": compiled},
        check=check,
    )
