"""Fixtures of the whole suite: the backends, and who has them."""

from __future__ import annotations

import pytest

BACKENDS = [
    pytest.param("reference"),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend in turn. One that is absent here is skipped, with the reason."""
    if request.param == "cuda":
        _skip_without_cuda()
    return request.param


@pytest.fixture
def device(backend: str) -> str:
    """Where tensors for `backend` live."""
    return "cuda" if backend == "cuda" else "cpu"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        _skip_without_cuda()


def _skip_without_cuda() -> None:
    from abyssal import runtime

    reason = runtime.why_not_cuda()
    if reason is not None:
        pytest.skip(reason)
