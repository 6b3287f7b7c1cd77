"""Counted floors: the committed ones are what the emulator counts, and the page shows them."""

import json

import pytest

from abyssal import runtime

if runtime.why_not_emulator() is not None:
    pytest.skip(runtime.why_not_emulator(), allow_module_level=True)
if not runtime.extension().kernel_images():
    pytest.skip("this build has no kernels", allow_module_level=True)

from benchmarks import floors

REPORT = json.loads(floors.RESULTS.read_text())


def test_the_page_shows_the_committed_figures():
    assert floors.tables(REPORT) in floors.PAGE.read_text()


def test_the_committed_counts_of_products_are_counted_again():
    """Of every kernel, once: the rest is arithmetic."""
    seen = set()
    for row in REPORT["gemms"]:
        name = row["kernel"], row["share"], row["split_k"]
        if name in seen:
            continue
        seen.add(name)
        again = floors.product(row["job"], *row["shape"], row["groups"])
        for key in ("kernel", "counted", "least_bytes", "floors"):
            assert again[key] == row[key], (name, key)
    assert len(seen) > 5


def test_the_committed_counts_of_the_others_are_counted_again():
    assert floors.bandwidth_bound() == REPORT["bandwidth_bound"]


def test_a_block_of_k_has_the_products_of_its_tile():
    counted = floors.counts_of_block("fp8_gemm_128x128", "none", 1, True)
    assert counted["multiply_adds"] == 128**3
    assert counted["delivered"] >= 2 * 128 * 128
    # 128 FMAs of 128 threads twice, and whatever else.
    assert counted["instructions"] > 128 * 128 / 32


def test_floors_of_a_product_by_hand():
    row = floors.product("dense", 4096, 7168, 2048)
    macs = 4096 * 7168 * 2048
    assert row["floors"]["tensor cores"] == pytest.approx(2 * macs / 1979e12 * 1e6)
    least = 4096 * 2048 + 7168 * 2048 + 2 * 4096 * 7168
    assert row["floors"]["memory"] == pytest.approx(least / 4.8e12 * 1e6)
    assert row["measured"] is None
