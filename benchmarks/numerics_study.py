"""How much Hopper's FP8 tensor cores lose in long sums, and what promotion to FP32 gives back.

    python -m benchmarks.numerics_study [--quick] [--out results.json] [--plot figure.png]

DeepSeek-V3's report (section 3.3.2) says that sums of FP8 products keep about 14 bits, that for
K = 4096 the maximum relative error is "nearly 2 %" for two random matrices, and promotes partial
sums to FP32 every 128 of K. It names neither the data nor the metric. This computes the error for
several of both, bit by bit as the tensor cores would (`abyssal.emulator.tensor_core`, whose
arithmetic equals recorded H100 results): nothing here is timed or depends on a GPU.

Fixed before anything was computed:

data        codes [128, K] and [128, K] of E4M3, from one seed for each family
              normal      N(0, 1)
              positive    |N(0, 1)|
              uniform     U[0, 1)
              centred     U[-1, 1)
preparation direct        values cast to E4M3 as they are
            scaled        each 1x128 tile of both operands first divided by its amax / 448; scales
                          are left out of the product, which stays one of codes
promotion   every 32, 64, ... of K the tensor cores' sum is added to an FP32 sum and begins anew at
            0; "never": one sum over all of K
reference   the same codes in FP64: the quantisation of the data is no part of the error
metrics     of_largest    max |error| / max |exact|
            of_element    max (|error| / |exact|), where exact is not 0
            of_row        max over rows of the error's L2 norm / the row's
            of_products   max (|error| / sum |a| |b|)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import abyssal
from abyssal.emulator import tensor_core
from abyssal.reference.quantize import E4M3_MAX, quantize_1x128

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "numerics_study.json"
FIGURE = ROOT / "docs" / "images" / "numerics_study.png"

ROWS = 128
STEP = 32  # of K in one instruction
FAMILIES = ("normal", "positive", "uniform", "centred")
PREPARATIONS = ("direct", "scaled")
METRICS = ("of_largest", "of_element", "of_row", "of_products")
NEVER = "never"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="K up to 1024 instead of 16384")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON (default: committed file)")
    parser.add_argument("--plot", type=Path, default=FIGURE, help="PNG (default: the docs' figure)")
    options = parser.parse_args()
    report = study(1024 if options.quick else 16384)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(report, options.plot)
    print(table(report, report["depths"][-1] if options.quick else 4096))


def study(deepest: int) -> dict[str, Any]:
    """All errors: report["errors"][family][preparation][promotion][metric] is a list over
    report["depths"], None where K is below the promotion's interval."""
    depths = [128 << i for i in range((deepest // 128).bit_length())]
    promotions: list[Any] = [STEP << i for i in range((deepest // STEP).bit_length() - 1)]
    errors = {
        family: {
            preparation: errors_of(family, preparation, depths, [*promotions, NEVER])
            for preparation in PREPARATIONS
        }
        for family in FAMILIES
    }
    return {
        "what": "errors of FP8 tensor-core sums, computed bit-exactly on a CPU",
        "abyssal": abyssal.__version__,
        "torch": torch.__version__,
        "rows": ROWS,
        "depths": depths,
        "promotions": [str(promotion) for promotion in [*promotions, NEVER]],
        "errors": errors,
    }


def errors_of(
    family: str, preparation: str, depths: list[int], promotions: list[Any]
) -> dict[str, dict[str, list[float | None]]]:
    generator = torch.Generator().manual_seed(FAMILIES.index(family))
    a, b = (codes(family, preparation, depths[-1], generator) for _ in range(2))
    exact, magnitude = products(a, b, depths)
    found = {}
    for promotion in promotions:
        sums = accumulate(a, b, depths, None if promotion == NEVER else promotion)
        rows = [metrics(*both) for both in zip(sums, exact, magnitude, strict=True)]
        # A K of one interval has no promotion; it is the column "never".
        skip = 0 if promotion == NEVER else sum(depth < promotion for depth in depths)
        found[str(promotion)] = {
            name: [None if i < skip else float(f"{row[name]:.4g}") for i, row in enumerate(rows)]
            for name in METRICS
        }
    return found


def codes(family: str, preparation: str, depth: int, generator: torch.Generator) -> Tensor:
    shape = (ROWS, depth)
    if family in ("normal", "positive"):
        values = torch.randn(shape, generator=generator)
    else:
        values = torch.rand(shape, generator=generator)
    values = values.abs() if family == "positive" else values
    values = 2 * values - 1 if family == "centred" else values
    if preparation == "scaled":
        return quantize_1x128(values)[0]
    return values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def products(a: Tensor, b: Tensor, depths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """For each depth, the exact product and that of the magnitudes, in FP64."""
    exact, magnitude = [], []
    for depth in depths:
        x, y = a[:, :depth].double(), b[:, :depth].double()
        exact.append(x @ y.T)
        magnitude.append(x.abs() @ y.abs().T)
    return exact, magnitude


def accumulate(a: Tensor, b: Tensor, depths: list[int], promotion: int | None) -> list[Tensor]:
    """The sums at each depth, as tensor cores and FP32 additions make them."""
    promoted = torch.zeros(ROWS, ROWS)
    partial = torch.zeros(ROWS, ROWS)
    found = []
    for k in range(0, depths[-1], STEP):
        steps = (x[:, k : k + STEP].contiguous() for x in (a, b))
        x, y = steps
        partial = tensor_core(x[:, None], y[None], partial)
        end = k + STEP
        if promotion is not None and end % promotion == 0:
            promoted += partial
            partial = torch.zeros(ROWS, ROWS)
        if end in depths:
            found.append((promoted + partial).double())
    return found


def metrics(sums: Tensor, exact: Tensor, magnitude: Tensor) -> dict[str, float]:
    error = (sums - exact).abs()
    return {
        "of_largest": float(error.max() / exact.abs().max()),
        "of_element": float((error / exact.abs())[exact != 0].max()),
        "of_row": float((error.norm(dim=1) / exact.norm(dim=1)).max()),
        "of_products": float((error / magnitude).max()),
    }


def table(report: dict[str, Any], depth: int) -> str:
    """Errors at one K, without promotion and with one every 128."""
    column = report["depths"].index(depth)
    lines = [f"K = {depth}: percent, never promoted -> promoted every 128", ""]
    lines.append(f"{'data':<20}" + "".join(f"{name:>22}" for name in METRICS))
    for family in FAMILIES:
        for preparation in PREPARATIONS:
            of_both = report["errors"][family][preparation]
            cells = (
                f"{100 * of_both[NEVER][name][column]:.3g} -> "
                f"{100 * of_both['128'][name][column]:.2g}"
                for name in METRICS
            )
            lines.append(f"{family + ', ' + preparation:<20}" + "".join(f"{c:>22}" for c in cells))
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """A row of panels for each metric, a column for each family; scaled codes dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [p for p in report["promotions"] if p in ("32", "128", "512", "2048", NEVER)]
    colours = dict(zip(shown, pyplot.get_cmap("viridis")([0, 0.25, 0.5, 0.75, 0.95]), strict=False))
    figure, axes = pyplot.subplots(
        len(METRICS), len(FAMILIES), figsize=(14, 11), sharex=True, sharey="row"
    )
    for row, name in enumerate(METRICS):
        for column, family in enumerate(FAMILIES):
            panel = axes[row][column]
            for promotion in shown:
                for preparation, style in zip(PREPARATIONS, ("-", "--"), strict=True):
                    values = report["errors"][family][preparation][promotion][name]
                    points = [
                        (depth, value)
                        for depth, value in zip(report["depths"], values, strict=True)
                        if value is not None
                    ]
                    panel.plot(*zip(*points, strict=True), style, color=colours[promotion])
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3)
            if row == 0:
                panel.set_title(family)
            if column == 0:
                panel.set_ylabel(name)
            if row == len(METRICS) - 1:
                panel.set_xlabel("K")
    handles = [pyplot.Line2D([], [], color=colours[p], label=f"promoted: {p}") for p in shown]
    handles += [
        pyplot.Line2D([], [], color="grey", linestyle=style, label=preparation)
        for preparation, style in zip(PREPARATIONS, ("-", "--"), strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles))
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=60)


if __name__ == "__main__":
    main()
