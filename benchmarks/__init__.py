"""Kernel benchmarks: `python -m benchmarks --help`, and docs/benchmarks.md."""
