"""`abyssal bench`: why a GEMM runs as it does; and the kernel benchmarks of a source checkout."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from abyssal.errors import InputError

DESCRIPTION = """\
`abyssal bench gemm --explain M N K` lists the kernels that could compute the FP8 product
D [M, N] = A [M, K] B [N, K]^T, with the time that a model gives each; the first one runs. Cycles
are of one multiprocessor, as modelled, not measured.

`abyssal bench [OP ...]` runs the kernel benchmarks on this machine's GPU, in a source checkout: all
further options are those of `python -m benchmarks`."""
# Sustained by FP8 GEMMs, as others report; a GPU's power decides it.
CLOCK_GHZ = 1.6


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `abyssal bench --help` explains the options")


def main(argv: list[str]) -> int:
    """Explain, or run the benchmarks. Returns the exit code."""
    if "--explain" in argv or "-h" in argv or "--help" in argv:
        return _explain(argv)
    if importlib.util.find_spec("benchmarks") is None:
        raise InputError(
            "the benchmarks are not part of the installed package: run `abyssal bench` in a source "
            "checkout's folder, or `abyssal bench gemm --explain M N K` anywhere"
        )
    names = [_OP_OF.get(name, name) for name in argv]
    return subprocess.run([sys.executable, "-m", "benchmarks", *names], check=False).returncode


_OP_OF = {"gemm": "fp8_gemm"}


def _explain(argv: Sequence[str]) -> int:
    from abyssal.ops.gemm_choice import GROUPS, MULTIPROCESSORS

    parser = _Parser(
        prog="abyssal bench",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("op", choices=["gemm"])
    parser.add_argument(
        "--explain", nargs=3, type=int, metavar=("M", "N", "K"), required=True, help="the shape"
    )
    parser.add_argument("--groups", type=int, default=1, help="groups, as experts (default 1)")
    parser.add_argument(
        "--groups-are",
        choices=GROUPS,
        default="none",
        help="rows: of a, by offsets; masked: of matrices of a; depth: ranges of K (default none)",
    )
    parser.add_argument("--row-scales", action="store_true", help="b has 1x128 blocks, not 128x128")
    parser.add_argument("--fp32", action="store_true", help="d is float32, not bfloat16")
    parser.add_argument("--beta", type=int, choices=(0, 1), default=0, help="1 adds to d")
    parser.add_argument(
        "--multiprocessors", type=int, default=MULTIPROCESSORS, help="of the GPU (default 132)"
    )
    parser.add_argument("--all", action="store_true", help="every candidate, not the best eight")
    print(explain(parser.parse_args(argv)))
    return 0


def explain(options: argparse.Namespace) -> str:
    """The candidates as a table, the best first."""
    import torch

    from abyssal.ops.gemm_choice import rank_candidates

    m, n, k = options.explain
    candidates = rank_candidates(
        m,
        n,
        k,
        groups_are=options.groups_are,
        groups=options.groups,
        square_scales=not options.row_scales,
        out_dtype=torch.float32 if options.fp32 else torch.bfloat16,
        beta=options.beta,
        multiprocessors=options.multiprocessors,
    )
    shown = candidates if options.all else candidates[:8]
    head = (
        f"{'kernel':<24}{'share':>6}{'split':>6}{'tiles':>8}{'in turn':>8} |"
        f"{'tensor':>8}{'promote':>8}{'shared':>8}{'L2':>8} |{'epilogue':>9} |{'us':>9}  bound by"
    )
    lines = [
        f"D [{m}, {n}] = A [{m}, {k}] B [{n}, {k}]^T on {options.multiprocessors} multiprocessors",
        "modelled cycles: of a block of 128 of K (tensor to L2), of a tile (epilogue)",
        f"us: modelled, at {CLOCK_GHZ} GHz",
        "",
        head,
        "-" * len(head),
    ]
    for x in shown:
        lines.append(
            f"{x.kernel:<24}{x.share:>6}{x.split_k:>6}{x.tiles:>8}{x.tiles_in_turn:>8} |"
            f"{x.tensor:>8.0f}{x.promotion:>8.0f}{x.shared:>8.0f}{x.l2:>8.0f} |"
            f"{x.epilogue:>9.0f} |{x.cycles / CLOCK_GHZ / 1e3:>9.1f}  {x.bound}"
        )
    if len(shown) < len(candidates):
        lines.append(f"... and {len(candidates) - len(shown)} more (--all)")
    return "\n".join(lines)
