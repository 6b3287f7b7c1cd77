"""Fixtures of the whole suite: the backends, and who has them; the tests that take long."""

from __future__ import annotations

import pytest

BACKENDS = [
    pytest.param("reference"),
    pytest.param("emulator"),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take long are not part of a run that did not ask for them."""
    if config.getoption("--nightly"):
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        _skip_without_cuda()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend in turn. One that is absent here is skipped, with the reason."""
    if request.param == "emulator":
        from abyssal import runtime

        reason = runtime.why_not_emulator()
        if reason is not None:
            pytest.skip(reason)
    return request.param


@pytest.fixture
def device(backend: str) -> str:
    """Where tensors for `backend` live."""
    return "cuda" if backend == "cuda" else "cpu"


def _skip_without_cuda() -> None:
    from abyssal import runtime

    reason = runtime.why_not_cuda()
    if reason is not None:
        pytest.skip(reason)
