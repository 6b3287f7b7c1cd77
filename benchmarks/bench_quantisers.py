"""The quantisers of both orientations, of weights, and the re-tiling, beside their references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from abyssal import ops
from abyssal.reference import quantize as reference
from benchmarks.harness import OURS, Case, Inputs, assert_same_bits

OP = "quantisers"

# Activations: tokens and channels. Weights: an expert's, o_proj's, the fused q_a and kv_a's.
ACTIVATIONS = [(4096, 7168), (8192, 7168), (32768, 2048), (4096, 16384)]
WEIGHTS = [(4096, 7168), (7168, 16384), (2112, 7168)]


def _weight_both(w: Tensor) -> list[Tensor]:
    codes, scale = reference.quantize_128x128(w)
    return [codes, scale, codes.t().contiguous(), scale.t()]


_compiled = {
    function: torch.compile(function)
    for function in (
        reference.quantize_1x128_both,
        _weight_both,
        reference.retile_128x1,
    )
}


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    for tokens, channels in [(256, 512)] if quick else ACTIVATIONS:
        yield both(tokens, channels, device)
        yield retile(tokens, channels, device)
    for rows, columns in [(256, 512)] if quick else WEIGHTS:
        yield weight(rows, columns, device)


def both(tokens: int, channels: int, device: torch.device) -> Case:
    def make_inputs(seed: int) -> Inputs:
        x = _random(tokens, channels, seed, device)
        return x, ops.quantize_1x128_both(x)

    return _case(
        f"both {tokens} x {channels}",
        make_inputs,
        tokens * channels * (2 + 2) + tokens * channels // 128 * 8,
        lambda x, out: ops.quantize_1x128_both(x, out=out),
        lambda x: [part for pair in reference.quantize_1x128_both(x) for part in pair],
        reference.quantize_1x128_both,
    )


def weight(rows: int, columns: int, device: torch.device) -> Case:
    def make_inputs(seed: int) -> Inputs:
        w = _random(rows, columns, seed, device)
        return w, ops.quantize_128x128(w, transpose="both")

    return _case(
        f"weight, both {rows} x {columns}",
        make_inputs,
        rows * columns * (2 + 2),
        lambda w, out: ops.quantize_128x128(w, transpose="both", out=out),
        _weight_both,
        _weight_both,
    )


def retile(tokens: int, channels: int, device: torch.device) -> Case:
    def make_inputs(seed: int) -> Inputs:
        q = ops.quantize_1x128(_random(tokens, channels, seed, device), pow2=True)
        return q, ops.retile_128x1(q)

    case = _case(
        f"re-tile {tokens} x {channels}",
        make_inputs,
        tokens * channels * 2 + tokens * channels // 128 * 8,
        lambda q, out: ops.retile_128x1(q, out=out),
        lambda q: list(reference.retile_128x1(q.data, q.scale)),
        reference.retile_128x1,
    )
    compiled = _compiled[reference.retile_128x1]
    case.contenders["torch"] = lambda q, out: reference.retile_128x1(q.data, q.scale)
    case.contenders["torch.compile"] = lambda q, out: compiled(q.data, q.scale)
    return case


def _case(
    label: str,
    make_inputs: Callable[[int], Inputs],
    bytes_moved: int,
    ours: Callable[..., Any],
    wanted: Callable[[Any], list[Tensor]],
    function: Callable[..., Any],
) -> Case:
    def check(x: Any, out: Any) -> None:
        assert_same_bits(ours(x, out), wanted(x))

    return Case(
        label=label,
        make_inputs=make_inputs,
        bytes_moved=bytes_moved,
        contenders={
            OURS: ours,
            "torch": lambda x, out: function(x),
            "torch.compile": lambda x, out: _compiled[function](x),
        },
        check=check,
    )


def _random(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(rows, columns, device=device, generator=generator).bfloat16()
