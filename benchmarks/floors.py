"""What the kernels must at least do for DeepSeek-V3's shapes, counted, and how long that takes.

    python -m benchmarks.floors         writes results/floors.json, the table and the plot of docs

Columns, and what they are:

    counted   by the emulator, from the real PTX: multiply-adds of the tensor cores (rows and
              columns that pad a tile included), warp instructions, bytes that TMA delivers to
              shared memory. On a small problem, per tile and 128 of K (or per value), times how
              many the shape has.
    floor     a count over the datasheet's rate of what does it, of an H200; the least time that
              any schedule needs. Instructions are PTX's without moves, most of which only change a
              type: ptxas may still make fewer or more of them.
              "memory": the least bytes that the op must read and write, for any kernel.
    modelled  what the choice of the tile expects (`abyssal bench gemm --explain`).
    measured  by `python -m benchmarks` on a GPU; empty until then.

A modelled time is never divided by a measured one.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

import abyssal
from abyssal import ops
from abyssal.emulator import Device, concurrent
from abyssal.emulator.counters import Counters
from abyssal.ops import gemm
from abyssal.ops.gemm_choice import MULTIPROCESSORS, Candidate, rank_candidates
from benchmarks import bench_fp8_gemm, bench_fused, bench_quantisers
from benchmarks.harness import FP8_PEAK

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "floors.json"
PAGE = ROOT / "docs" / "kernels" / "floors.md"
FIGURE = ROOT / "docs" / "images" / "floors.png"
BEGIN, END = "<!-- table of benchmarks/floors.py -->", "<!-- end of the table -->"

# An H200's, from its datasheet: bytes a second; the clock follows from the FP8 peak, 4096
# multiply-adds a cycle of each multiprocessor.
BANDWIDTH = 4.8e12
CLOCK = FP8_PEAK / (2 * 4096 * MULTIPROCESSORS)
WARPS_ISSUED = 4  # instructions a cycle of a multiprocessor
SHARED_BYTES = 128  # written into shared memory a cycle of a multiprocessor

TOKENS = (64, 4096)


def main() -> None:
    report = {
        "what": "counts of the emulator and the floors they imply; nothing here was measured",
        "date": datetime.date.today().isoformat(),
        "abyssal": abyssal.__version__,
        "rates": {"fp8": FP8_PEAK, "bandwidth": BANDWIDTH, "clock": CLOCK},
        "gemms": gemms(),
        "bandwidth_bound": bandwidth_bound(),
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{tables(report)}\n{END}{rest.split(END)[1]}")
    plot(report, FIGURE)


# FP8 products ------------------------------------------------------------------------------------


def gemms() -> list[dict[str, Any]]:
    found = []
    for n, k in bench_fp8_gemm.LINEARS:
        for tokens in TOKENS:
            found.append(product("dense", tokens, n, k))
        found.append(product("input gradient", TOKENS[-1], k, n))
    for groups, rows in bench_fp8_gemm.EXPERTS:
        for n, k in bench_fp8_gemm.EXPERT_LINEARS:
            found.append(product("experts", rows, n, k, groups))
            found.append(product("weight gradient", n, k, rows, groups))
    return found


def product(job: str, m: int, n: int, k: int, groups: int = 1) -> dict[str, Any]:
    """Of one group: [m, n] = [m, k] [n, k]^T. Groups of the same size."""
    depth = job == "weight gradient"
    groups_are = {"experts": "rows", "weight gradient": "depth"}.get(job, "none")
    all_m, all_k = (m, k * groups) if depth else (m * groups, k)
    out_bytes = 4 if depth else 2
    candidate = rank_candidates(
        all_m,
        n,
        all_k,
        groups_are=groups_are,
        groups=groups,
        square_scales=not depth,
        out_dtype=torch.float32 if depth else torch.bfloat16,
    )[0]
    rows, columns = candidate.tile
    blocks = math.ceil(m / rows) * math.ceil(n / columns) * math.ceil(k / 128) * groups
    per_block = counts_of_block(candidate.kernel, candidate.share, candidate.split_k, not depth)
    counted = {name: count * blocks for name, count in per_block.items()}
    least_bytes = groups * (m * k + n * k + out_bytes * m * n)
    floors = {
        "tensor cores": 2 * counted["multiply_adds"] / FP8_PEAK,
        "instructions": counted["instructions"] / (MULTIPROCESSORS * WARPS_ISSUED * CLOCK),
        "shared memory": counted["delivered"] / (MULTIPROCESSORS * SHARED_BYTES * CLOCK),
        "memory": least_bytes / BANDWIDTH,
    }
    return {
        "job": job,
        "shape": [m, n, k],
        "groups": groups,
        "kernel": candidate.kernel,
        "share": candidate.share,
        "split_k": candidate.split_k,
        "useful": groups * m * n * k / counted["multiply_adds"],
        "counted": counted,
        "least_bytes": least_bytes,
        "floors": {name: seconds * 1e6 for name, seconds in floors.items()},
        "modelled": candidate.cycles / CLOCK * 1e6,
        "measured": None,
    }


@cache
def counts_of_block(kernel: str, share: str, split_k: int, square: bool) -> dict[str, float]:
    """What a tile takes for 128 of K: the difference of two products, so that nothing that is done
    once for a tile counts."""
    short, long = (counts_of_product(kernel, share, split_k, square, k) for k in (1024, 2048))
    return {name: (long[name] - short[name]) / (4 * 8) for name in short}


def counts_of_product(
    kernel: str, share: str, split_k: int, square: bool, k: int
) -> dict[str, float]:
    """Of two by two tiles."""
    candidate = _candidate(kernel, share, split_k, square, k)
    rows, columns = candidate.tile
    a = ops.quantize_1x128(torch.ones(2 * rows, k))
    ones = torch.ones(2 * columns, k)
    b = ops.quantize_128x128(ones) if square else ops.quantize_1x128(ones)
    out = torch.empty(2 * rows, 2 * columns, dtype=torch.bfloat16)

    def launch() -> None:
        operands = (a.data, a.scale, b.data, b.scale, None, out)
        gemm.launch(*operands, "none", square, 0, "emulator", candidate.choice)

    counters = count(launch)
    return {
        "multiply_adds": counters.products,
        "instructions": instructions_of(counters),
        "delivered": counters.copies["to_shared"].delivered,
    }


def _candidate(kernel: str, share: str, split_k: int, square: bool, k: int) -> Candidate:
    """For two by two tiles on as many multiprocessors as that takes."""
    rows, columns = map(int, kernel.removeprefix("fp8_gemm_").removesuffix("_rows").split("x"))
    for candidate in rank_candidates(
        2 * rows, 2 * columns, k, square_scales=square, multiprocessors=4 * split_k
    ):
        if (candidate.kernel, candidate.share, candidate.split_k) == (kernel, share, split_k):
            return candidate
    raise AssertionError(f"no such candidate: {kernel}, {share} shared, K in {split_k}")


# Kernels that move bytes -------------------------------------------------------------------------


def bandwidth_bound() -> list[dict[str, Any]]:
    """Each with the shapes of its benchmark, counted at 256 rows."""
    found = []
    for name, (launch, values, least_bytes, shapes) in _launches().items():
        counters = count(launch)
        instructions = instructions_of(counters) / values
        found += [of_shape(name, shape, instructions, least_bytes) for shape in shapes]
    return found


def of_shape(
    name: str, shape: tuple[int, int], instructions: float, least_bytes: float
) -> dict[str, Any]:
    """instructions (of warps) and least_bytes: for each value."""
    values = math.prod(shape)
    floors = {
        "instructions": values * instructions / (MULTIPROCESSORS * WARPS_ISSUED * CLOCK),
        "memory": values * least_bytes / BANDWIDTH,
    }
    return {
        "job": name,
        "shape": list(shape),
        # A thread's, of the 32 of a warp.
        "instructions_of_value": instructions * 32,
        "least_bytes_of_value": least_bytes,
        "floors": {bound: seconds * 1e6 for bound, seconds in floors.items()},
        "measured": None,
    }


def _launches() -> dict[str, tuple[Callable[[], object], int, float, list[tuple[int, int]]]]:
    """name -> (a launch, how many values it is for, the least bytes of a value, shapes)"""
    rows, columns, scale = 256, 2048, 4 / 128
    x, wide = torch.randn(rows, columns).bfloat16(), torch.randn(rows, 7168).bfloat16()
    gate_up = torch.randn(rows, 2 * columns).bfloat16()
    weight, row_weight = torch.ones(7168).bfloat16(), torch.rand(rows)
    q = ops.quantize_1x128(x, pow2=True)
    activations, values = bench_quantisers.ACTIVATIONS, rows * columns
    norms, short_norms = (
        [shape for shape in bench_fused.NORMS if (shape[1] > 2048) == long]
        for long in (True, False)
    )
    return {
        "quantize_1x128": (lambda: ops.quantize_1x128(x), values, 3 + scale, activations),
        "quantize_1x128_both": (
            lambda: ops.quantize_1x128_both(x),
            values,
            4 + 2 * scale,
            activations,
        ),
        "retile_128x1": (lambda: ops.retile_128x1(q), values, 2 + 2 * scale, activations),
        "quantize_128x128, both": (
            lambda: ops.quantize_128x128(x, transpose="both"),
            values,
            4,
            bench_quantisers.WEIGHTS,
        ),
        "rms_norm_quantize": (
            lambda: ops.rms_norm_quantize(wide, weight, 1e-6),
            wide.numel(),
            3 + scale,
            norms,
        ),
        "rms_norm_quantize, short": (
            lambda: ops.rms_norm_quantize(x[:, :1536], weight[:1536], 1e-6),
            rows * 1536,
            3 + scale,
            short_norms,
        ),
        "swiglu_quantize": (
            lambda: ops.swiglu_quantize(gate_up, row_weight),
            values,
            5 + scale,
            bench_fused.SWIGLUS,
        ),
        "swiglu_quantize_backward": (
            lambda: ops.swiglu_quantize_backward(x, gate_up, row_weight),
            values,
            11 + 5 * scale,
            bench_fused.SWIGLUS,
        ),
    }


def count(launch: Callable[[], object]) -> Counters:
    """The emulator's counts of an op's launch; copies end as early as they can, so that little of
    what is counted is waiting."""
    device = Device(policy="early", strict=False)
    with device.for_ops(), abyssal.backend("emulator"), concurrent():
        launch()
    assert device.counters is not None
    return device.counters


def instructions_of(counters: Counters) -> int:
    return sum(count for pipe, count in counters.pipes.items() if pipe != "move")


# What is shown -----------------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> str:
    columns = ["job", "shape", "kernel", "useful", *report["gemms"][0]["floors"]]
    lines = _head([*columns, "modelled", "measured"])
    for row in report["gemms"]:
        groups = f"{row['groups']} x " if row["groups"] > 1 else ""
        kernel = row["kernel"].removeprefix("fp8_gemm_")
        kernel += f", K in {row['split_k']}" if row["split_k"] > 1 else ""
        cells = [row["job"], groups + _shape(row), kernel, f"{row['useful']:.0%}", *_floors(row)]
        lines.append(_line([*cells, f"{row['modelled']:.1f}", _measured(row)]))
    floors = list(report["bandwidth_bound"][0]["floors"])
    lines += ["", *_head(["job", "shape", "instructions of a value", *floors, "measured"])]
    for row in report["bandwidth_bound"]:
        cells = [row["job"], _shape(row), f"{row['instructions_of_value']:.1f}", *_floors(row)]
        lines.append(_line([*cells, _measured(row)]))
    return "\n".join(lines)


def _head(columns: list[str]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns))]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shape(row: dict[str, Any]) -> str:
    return " x ".join(map(str, row["shape"]))


def _floors(row: dict[str, Any]) -> list[str]:
    return [_emphasised(row["floors"], name) for name in row["floors"]]


def _emphasised(floors: dict[str, float], name: str) -> str:
    text = f"{floors[name]:.1f}"
    return f"**{text}**" if floors[name] == max(floors.values()) else text


def _measured(row: dict[str, Any]) -> str:
    return "-" if row["measured"] is None else f"{row['measured']:.1f}"


def plot(report: dict[str, Any], path: Path) -> None:
    """Floors of each job as dots on one line: the rightmost is its bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    jobs = [row for row in report["gemms"] if row["job"] != "dense" or row["shape"][0] > 64]
    jobs += report["bandwidth_bound"]
    names = ["tensor cores", "shared memory", "instructions", "memory"]
    figure, panel = pyplot.subplots(figsize=(11, 0.22 * len(jobs) + 1.5))
    for name, colour in zip(names, pyplot.get_cmap("tab10").colors, strict=False):
        points = [(row["floors"].get(name), at) for at, row in enumerate(jobs)]
        points = [(floor, at) for floor, at in points if floor is not None]
        panel.plot(*zip(*points, strict=True), "o", color=colour, label=name, markersize=5)
    modelled = [(row["modelled"], at) for at, row in enumerate(jobs) if "modelled" in row]
    panel.plot(*zip(*modelled, strict=True), "|", color="grey", label="modelled", markersize=9)
    labels = [f"{row['job']}  {_shape(row)}" for row in jobs]
    panel.set_yticks(range(len(jobs)), labels, fontsize=7)
    panel.invert_yaxis()
    panel.set(xscale="log", xlabel="microseconds: floors counted, bars modelled, nothing measured")
    panel.grid(alpha=0.3)
    panel.legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=60)


if __name__ == "__main__":
    main()
