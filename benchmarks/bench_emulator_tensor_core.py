"""The emulated tensor core: multiply-accumulates a second on one CPU core, on every path.

    python -m benchmarks.bench_emulator_tensor_core [--out results.json]

It has nothing to measure on a GPU: `python -m benchmarks` passes over it, and only rehearses it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abyssal.emulator.tensor_core import accumulate_into, paths
from benchmarks import harness
from benchmarks.harness import Case, Inputs

OP = "emulator_tensor_core"

# name -> (torch's type, products of one instruction)
TYPES = {
    "e4m3": (torch.float8_e4m3fn, 32),
    "e5m2": (torch.float8_e5m2, 32),
    "f16": (torch.float16, 16),
    "bf16": (torch.bfloat16, 16),
    "tf32": (torch.float32, 8),
}
# Columns of instructions with 64 rows.
WIDTHS = (8, 64, 128, 256)
INSTRUCTIONS = 64  # in one call, so that Python's part vanishes
ROUNDS = 5
SECONDS = 0.1  # of a round, at least


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    if device.type == "cpu":
        for type_ in ("e4m3",) if quick else TYPES:
            yield make_case(type_, 128)


def make_case(type_: str, columns: int) -> Case:
    dtype, depth = TYPES[type_]

    def make_inputs(seed: int) -> Inputs:
        return make_operands(type_, columns, seed)

    def contender(path: str) -> Callable[[Tensor, Tensor, Tensor], None]:
        return lambda a, b, d: accumulate_into(d, a, b, (type_, type_), path=path)

    def check(a: Tensor, b: Tensor, d: Tensor) -> None:
        results = [d.clone() for _ in paths()]
        for path, result in zip(paths(), results, strict=True):
            accumulate_into(result, a, b, (type_, type_), path=path)
            assert torch.equal(result, results[0])

    operand_bytes = INSTRUCTIONS * (64 + columns) * depth * dtype.itemsize
    return Case(
        label=f"m64n{columns} {type_}",
        make_inputs=make_inputs,
        bytes_moved=operand_bytes + 2 * INSTRUCTIONS * 64 * columns * 4,
        contenders={path: contender(path) for path in reversed(paths())},
        check=check,
        ours=paths()[-1],
    )


def make_operands(type_: str, columns: int, seed: int) -> Inputs:
    dtype, depth = TYPES[type_]
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(INSTRUCTIONS, 64, 1, depth, generator=generator).to(dtype)
    b = torch.randn(INSTRUCTIONS, 1, columns, depth, generator=generator).to(dtype)
    return a, b, torch.zeros(INSTRUCTIONS, 64, columns)


def measure(type_: str, columns: int, path: str) -> float:
    """Multiply-accumulates a second: the median of the rounds."""
    a, b, d = make_operands(type_, columns, seed=0)

    def calls(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            accumulate_into(d, a, b, (type_, type_), path=path)
        return time.perf_counter() - begin

    count = 1
    while (seconds := calls(count)) < SECONDS:
        count = max(2 * count, int(1.2 * count * SECONDS / max(seconds, 1e-6)))
    products = count * INSTRUCTIONS * 64 * columns * TYPES[type_][1]
    return products / statistics.median(calls(count) for _ in range(ROUNDS))


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args()
    report: dict[str, Any] = harness.describe_machine(torch.device("cpu"))
    report["device"] = cpu_model()
    report["macs_per_second"] = results = {}
    print(f"{report['device']}, one core, median of {ROUNDS}; 1e9 multiply-accumulates a second")
    print(f"{'':<16}" + "".join(f"{path:>9}" for path in paths()))
    for type_ in TYPES:
        for columns in WIDTHS:
            label = f"m64n{columns} {type_}"
            results[label] = {path: measure(type_, columns, path) for path in paths()}
            row = "".join(f"{value / 1e9:9.2f}" for value in results[label].values())
            print(f"{label:<16}{row}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
