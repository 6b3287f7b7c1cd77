"""The numerics study: its committed figures, and what docs/numerics_study.md says of them."""

import json
import re
from pathlib import Path

import pytest
import torch

from abyssal import runtime

if runtime.why_not_emulator() is not None:
    pytest.skip(runtime.why_not_emulator(), allow_module_level=True)

from benchmarks import numerics_study as study

REPORT = json.loads(study.RESULTS.read_text())
PAGE = (Path(__file__).parents[2] / "docs" / "numerics_study.md").read_text()


def errors(family, metric, promotion, depth):
    """Percent, of both preparations."""
    column = REPORT["depths"].index(depth)
    of_family = REPORT["errors"][family]
    return [100 * of_family[p][promotion][metric][column] for p in study.PREPARATIONS]


@pytest.mark.parametrize(("family", "preparation"), [("normal", "scaled"), ("uniform", "direct")])
def test_the_committed_figures_are_what_the_study_computes(family, preparation):
    promotions = [128, study.NEVER]
    found = study.errors_of(family, preparation, REPORT["depths"], promotions)
    for promotion in promotions:
        assert found[str(promotion)] == REPORT["errors"][family][preparation][str(promotion)]


def test_promotion_every_instruction_and_sums_that_are_exact():
    """Where nothing is cut, nothing is lost: small integers, whatever the promotion."""
    codes = torch.randint(-3, 4, (study.ROWS, 256)).float().to(torch.float8_e4m3fn)
    exact, magnitude = study.products(codes, codes, [128, 256])
    for promotion in (32, 128, None):
        sums = study.accumulate(codes, codes, [128, 256], promotion)
        for values, wanted, products in zip(sums, exact, magnitude, strict=True):
            assert set(study.metrics(values, wanted, products).values()) == {0.0}


def test_what_the_page_says():
    """Data of both signs and of one, without promotion and with it, at K = 4096."""
    largest = [e for f in ("normal", "centred") for e in errors(f, "of_largest", "never", 4096)]
    rows = [e for f in ("normal", "centred") for e in errors(f, "of_row", "never", 4096)]
    assert min(largest) >= 0.25 and max(largest) <= 0.37
    assert min(rows) >= 0.15 and max(rows) <= 0.21
    one_sign = [
        e
        for family in ("positive", "uniform")
        for metric in study.METRICS
        for e in errors(family, metric, "never", 4096)
    ]
    assert min(one_sign) >= 6.6 and max(one_sign) <= 7.9
    for family in ("positive", "uniform"):
        for depth, low, high in ((1024, 1.4, 1.9), (2048, 3.1, 4.0)):
            found = errors(family, "of_largest", "never", depth)
            assert low <= min(found) and max(found) <= high
    promoted = [
        e
        for family in study.FAMILIES
        for metric in ("of_largest", "of_row")
        for e in errors(family, metric, "128", 4096)
    ]
    assert min(promoted) >= 0.012 and max(promoted) <= 0.074


def test_the_pages_table():
    """Every cell, from the committed figures."""
    rows = re.findall(r"^\| (\w+), (\w+) \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(rows) == len(study.FAMILIES) * len(study.PREPARATIONS)
    for family, preparation, cells in rows:
        of_both = REPORT["errors"][family][preparation]
        column = REPORT["depths"].index(4096)
        for metric, cell in zip(study.METRICS, cells.split("|"), strict=True):
            never, promoted = (float(number) for number in cell.split(" -> "))
            assert never == float(f"{100 * of_both['never'][metric][column]:.2g}")
            assert promoted == float(f"{100 * of_both['128'][metric][column]:.2g}")


def test_the_plot(tmp_path):
    study.plot(REPORT, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
