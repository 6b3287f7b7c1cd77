"""Run kernel benchmarks: `python -m benchmarks [OP ...]`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import abyssal
import benchmarks
from abyssal import runtime
from benchmarks import harness


def main() -> int:
    modules = {module.OP: module for module in _benchmark_modules()}
    options = _parse(sorted(modules))
    device = torch.device("cpu" if options.rehearse else "cuda")
    if not options.rehearse:
        reason = runtime.why_not_cuda()
        if reason is not None:
            print(
                f"benchmarks: {reason}; --rehearse runs them on the CPU, without meaning",
                file=sys.stderr,
            )
            return 2
    peers = _load(options.peer).CONTENDERS if options.peer else {}
    report: dict[str, Any] = harness.describe_machine(device)
    report["copy_bytes_per_second"] = ceiling = harness.copy_bandwidth(device)
    report["results"], report["geometric_means"] = {}, {}
    report["sustained_seconds"] = options.sustained
    print(f"{report['device']}: a copy moves {ceiling / 1e9:.0f} GB/s", flush=True)
    for op in options.ops or sorted(modules):
        report["results"][op] = results = []
        for case in modules[op].cases(device, options.quick):
            _add_peers(case, peers.get(op, {}))
            results.append(harness.run_case(case, device, sustained=options.sustained))
            print("\n".join(harness.table_rows(results[-1], ceiling)), flush=True)
            _write(report, options.out)  # whatever ends the run, this much is measured
        means = report["geometric_means"][op] = harness.geometric_means(results)
        for name, mean in means.items():
            print(f"{op}: geometric mean of {name}'s times over ours: {mean:.2f}", flush=True)
    report["gpu_state_after"] = harness.query_gpu()
    _write(report, options.out)
    failed = [
        f"{op} {label}"
        for op in report["results"]
        for label in harness.failed_cases(report["results"][op])
    ]
    if failed:
        print(f"benchmarks: our contender failed on {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parse(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"default: {', '.join(names)}")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--quick", action="store_true", help="small shapes only")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU; no results")
    parser.add_argument(
        "--sustained",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="run each contender so long before each of its rounds, for clocks under load",
    )
    parser.add_argument(
        "--peer",
        type=Path,
        help="a Python file with CONTENDERS = {OP: {name: function of the case's inputs}}",
    )
    options = parser.parse_args()
    unknown = sorted(set(options.ops) - set(names))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; one of {', '.join(names)}")
    if options.peer and not options.peer.is_file():
        parser.error(f"there is no file {options.peer}")
    return options


def _benchmark_modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    return [importlib.import_module(f"benchmarks.{n}") for n in names if n.startswith("bench_")]


def _add_peers(case: harness.Case, peers: dict[str, harness.Contender]) -> None:
    taken = sorted(case.contenders.keys() & peers.keys())
    if taken:
        sys.exit(f"benchmarks: a peer needs a name of its own, and {', '.join(taken)} is taken")
    case.contenders.update(peers)


def _load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("peer", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _write(report: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(f"Abyssal {abyssal.__version__}")
    sys.exit(main())
