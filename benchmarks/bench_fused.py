"""RMSNorm, SwiGLU and SwiGLU's gradient with quantisers behind them, beside torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal import ops
from abyssal.reference import fused, quantize
from benchmarks.harness import OURS, Case, Inputs, assert_same_bits

OP = "fused"
EPS = 1e-6

# Tokens and channels: hidden states, the query's latents. Rows and channels of experts (8 for each
# of 4096 tokens), and the dense layers' and the shared expert's.
NORMS = [(4096, 7168), (8192, 7168), (4096, 1536)]
SWIGLUS = [(32768, 2048), (4096, 2048), (4096, 18432)]


def _norm(x: Tensor, weight: Tensor) -> list[Tensor]:
    return list(quantize.quantize_1x128(F.rms_norm(x, x.shape[1:], weight, EPS)))


def _swiglu(gate_up: Tensor, row_weight: Tensor) -> list[Tensor]:
    gate, up = gate_up.chunk(2, dim=1)
    return list(quantize.quantize_1x128((F.silu(gate) * up * row_weight[:, None]).bfloat16()))


def _swiglu_backward(dy: Tensor, gate_up: Tensor, row_weight: Tensor) -> list[Tensor]:
    gate, up = gate_up.float().chunk(2, dim=1)
    sigma = torch.sigmoid(gate)
    silu, weighted = gate * sigma, dy * row_weight[:, None]
    product = silu * up
    d_gate_up = torch.cat([weighted * up * (sigma + silu * (1 - sigma)), weighted * silu], dim=1)
    rowwise, transposed = quantize.quantize_1x128_both(d_gate_up.bfloat16())
    h = (product * row_weight[:, None]).bfloat16()
    h_t = quantize.quantize_1x128(h.t())  # tokens are a multiple of 128
    return [*rowwise, *transposed, *h_t, (dy * product).sum(1)]


_compiled = {function: torch.compile(function) for function in (_norm, _swiglu, _swiglu_backward)}


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    for tokens, channels in [(256, 512)] if quick else NORMS:
        yield norm(tokens, channels, device)
    for rows, channels in [(256, 256)] if quick else SWIGLUS:
        yield swiglu(rows, channels, device)
        yield swiglu_backward(rows, channels, device)


def norm(tokens: int, channels: int, device: torch.device) -> Case:
    def make_inputs(seed: int) -> Inputs:
        x, weight = _random(tokens, channels, seed, device), _random(1, channels, 0, device)[0]
        return x, weight, ops.rms_norm_quantize(x, weight, EPS)

    def wanted(x: Tensor, weight: Tensor) -> list[Tensor]:
        return list(quantize.quantize_1x128(fused.rms_norm(x, weight, EPS)[0]))

    return _case(
        f"norm {tokens} x {channels}",
        make_inputs,
        tokens * channels * (2 + 1) + tokens * channels // 128 * 4,
        lambda x, weight, out: ops.rms_norm_quantize(x, weight, EPS, out=out),
        wanted,
        _norm,
    )


def swiglu(rows: int, channels: int, device: torch.device) -> Case:
    def make_inputs(seed: int) -> Inputs:
        gate_up = _random(rows, 2 * channels, seed, device)
        row_weight = torch.rand(rows, device=device)
        return gate_up, row_weight, ops.swiglu_quantize(gate_up, row_weight)

    def wanted(gate_up: Tensor, row_weight: Tensor) -> list[Tensor]:
        return list(quantize.quantize_1x128(fused.swiglu(gate_up, row_weight)))

    return _case(
        f"swiglu {rows} x {channels}",
        make_inputs,
        rows * channels * (4 + 1) + rows * channels // 128 * 4,
        lambda gate_up, row_weight, out: ops.swiglu_quantize(gate_up, row_weight, out=out),
        wanted,
        _swiglu,
    )


def swiglu_backward(rows: int, channels: int, device: torch.device) -> Case:
    def make_inputs(seed: int) -> Inputs:
        inputs = (
            _random(rows, channels, seed, device),
            _random(rows, 2 * channels, seed + 1, device),
            torch.rand(rows, device=device),
        )
        return *inputs, ops.swiglu_quantize_backward(*inputs)

    def wanted(dy: Tensor, gate_up: Tensor, row_weight: Tensor) -> list[Tensor]:
        d_gate_up, h, d_row_weight = fused.swiglu_backward(dy, gate_up, row_weight)
        rowwise, transposed = quantize.quantize_1x128_both(d_gate_up)
        return [*rowwise, *transposed, *quantize.quantize_1x128_both(h)[1], d_row_weight]

    return _case(
        f"swiglu backward {rows} x {channels}",
        make_inputs,
        rows * channels * (6 + 5) + rows * channels // 128 * 5 * 4,
        lambda dy, gate_up, row_weight, out: ops.swiglu_quantize_backward(
            dy, gate_up, row_weight, out=out
        ),
        wanted,
        _swiglu_backward,
    )


def _case(
    label: str,
    make_inputs: Callable[[int], Inputs],
    bytes_moved: int,
    ours: Callable[..., Any],
    wanted: Callable[..., list[Tensor]],
    torchs: Callable[..., list[Tensor]],
) -> Case:
    """wanted: of the inputs, our results' parts, bit for bit. torchs: to compare speed with."""

    def check(*arguments: Any) -> None:
        assert_same_bits(ours(*arguments), wanted(*arguments[:-1]))

    return Case(
        label=label,
        make_inputs=make_inputs,
        bytes_moved=bytes_moved,
        contenders={
            OURS: ours,
            "torch": lambda *arguments: torchs(*arguments[:-1]),
            "torch.compile": lambda *arguments: _compiled[torchs](*arguments[:-1]),
        },
        check=check,
    )


def _random(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(rows, columns, device=device, generator=generator).bfloat16()
