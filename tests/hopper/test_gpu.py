"""Every case on a GPU."""

import pytest

from tests.hopper.case import check
from tests.hopper.cases import CASES, make_case
from tests.hopper.gpu_worker import GpuWorker

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def worker(microkernels):
    worker = GpuWorker()
    yield worker
    worker.close()


@pytest.mark.parametrize("name", CASES)
def test_case(name, worker, microkernels):
    case = make_case(name)
    microkernels(case.source)  # skips where there is no nvcc
    check(case, worker.run(name))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("wgmma") or "_to_" in n])
def test_fresh_numbers(name, seed, worker, microkernels):
    case = make_case(name, seed)
    microkernels(case.source)
    check(case, worker.run(name, seed))
