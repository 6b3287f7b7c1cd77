"""The compiled microkernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hopper import compiler


@pytest.fixture(scope="session")
def microkernels() -> Callable[[str], compiler.Compiled]:
    """A function from the stem of a file of tests/hopper/kernels to its PTX, cubin and log. Skips
    where there is no nvcc."""

    def compile_or_skip(source: str) -> compiler.Compiled:
        try:
            return compiler.compile_kernels(source)
        except compiler.CompilerMissing as missing:
            pytest.skip(str(missing))

    return compile_or_skip
