"""Every kernel of the GEMMs, and every way to launch it, whatever the model would choose.

On the emulator, with asynchronous work as late and as early as PTX allows, and in random order.
"""

import contextlib
import functools

import pytest
import torch

from abyssal.ops import gemm
from abyssal.ops.block_scaled import BlockScaled
from abyssal.ops.gemm_choice import rank_candidates
from tests.ops.gemm_cases import activations, expected, generator, same_bits, stack, weight

# Few, so that a block gets several tiles and the ring of stages goes round several times.
MULTIPROCESSORS = 4


@pytest.fixture(params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request):
    if request.param == "emulator":
        from abyssal import runtime

        reason = runtime.why_not_emulator()
        if reason is not None:
            pytest.skip(reason)
    return request.param


def schedules(backend, seeds):
    """Contexts in which ops run, each another schedule."""
    if backend == "cuda":
        return [contextlib.nullcontext()]
    from abyssal.emulator import Device

    policies = [("late", 0), ("early", 0), *(("random", seed) for seed in range(seeds))]
    return [Device(MULTIPROCESSORS, policy, seed).for_ops() for policy, seed in policies]


def candidates(m, n, k, **options):
    try:
        return rank_candidates(m, n, k, multiprocessors=MULTIPROCESSORS, **options)
    except Exception:  # the extension is absent; the fixture says so
        return []


def run(candidate, a, b, offsets, out, kind, beta, backend):
    operands = (a.data, a.scale, b.data, b.scale, offsets)
    square = b.block == (128, 128)
    gemm.launch(*operands, out, kind, square, beta, backend, candidate.choice)


def name(candidate):
    share = f"-share_{candidate.share}" if candidate.share != "none" else ""
    split = f"-split_{candidate.split_k}" if candidate.split_k > 1 else ""
    return f"{candidate.kernel.removeprefix('fp8_gemm_')}{share}{split}"


# Ragged in every direction; six blocks of K.
M, N, K = 300, 264, 720
DENSE = [
    candidate for square in (True, False) for candidate in candidates(M, N, K, square_scales=square)
]


@functools.cache
def product(shape, square, beta_seed, dtype, split_k):
    """What activations of seed 1 and the weight of seed 2 give, added to numbers of `beta_seed`."""
    m, n, k = shape
    a, b = activations(m, k, 1), weight(n, k, 2, square=square)
    before = None
    if beta_seed is not None:
        before = torch.randn(m, n, generator=generator(beta_seed)).to(dtype)
    return expected(a, b, before, dtype, split_k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("candidate", DENSE, ids=name)
def test_dense(candidate, beta, dtype, backend, device):
    square = not candidate.kernel.endswith("rows")
    a = activations(M, K, 1, device=device)
    b = weight(N, K, 2, square=square, device=device)
    before = torch.randn(M, N, generator=generator(3)).to(device, dtype)
    wanted = product((M, N, K), square, 3 if beta else None, dtype, candidate.split_k)
    for schedule in schedules(backend, seeds=1):
        out = before.clone() if beta else torch.full_like(before, float("nan"))
        with schedule:
            run(candidate, a, b, None, out, "none", beta, backend)
        same_bits(out, wanted)


ROWS = [100, 0, 3, 260]
GROUPED = candidates(sum(ROWS), N, K, groups_are="rows", groups=len(ROWS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("candidate", GROUPED, ids=name)
def test_grouped(candidate, dtype, backend, device):
    a = activations(sum(ROWS), K, 1, device=device)
    b = stack([weight(N, K, seed, device=device) for seed in range(len(ROWS))])
    offsets = torch.tensor([0, *ROWS]).cumsum(0).to(device, torch.int32)
    for schedule in schedules(backend, seeds=2):
        out = torch.full((sum(ROWS), N), float("nan"), dtype=dtype, device=device)
        with schedule:
            run(candidate, a, b, offsets, out, "rows", 0, backend)
        begin = 0
        for group, rows in enumerate(ROWS):
            part = slice(begin, begin + rows)
            own = BlockScaled(a.data[part], a.scale[part], a.block)
            of_group = BlockScaled(b.data[group], b.scale[group], b.block)
            same_bits(out[part], expected(own, of_group, None, dtype))
            begin += rows


# Three groups of a range of K each: 2, 0 and 3 blocks.
DEPTH = candidates(M, N, 640, groups_are="depth", groups=3, square_scales=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("candidate", DEPTH, ids=name)
def test_ranges_of_k(candidate, dtype, backend, device):
    a, b = activations(M, 640, 1, device=device), activations(N, 640, 2, device=device)
    offsets = torch.tensor([0, 200, 200, 520], dtype=torch.int32, device=device)
    for schedule in schedules(backend, seeds=2):
        out = torch.full((3, M, N), float("nan"), dtype=dtype, device=device)
        with schedule:
            run(candidate, a, b, offsets, out, "depth", 0, backend)
        # Blocks offsets[g] // 128 + g and following.
        for group, (first, blocks) in enumerate([(0, 2), (2, 0), (3, 2)]):
            tokens = slice(128 * first, 128 * (first + blocks))
            scales = slice(first, first + blocks)
            parts = [BlockScaled(x.data[:, tokens], x.scale[:, scales], x.block) for x in (a, b)]
            wanted = expected(*parts, None, dtype) if blocks else torch.zeros(M, N, dtype=dtype)
            same_bits(out[group], wanted)


SMALL = (140, 136, 528)
OF_SMALL = [
    candidate for square in (True, False) for candidate in candidates(*SMALL, square_scales=square)
]


@pytest.mark.parametrize("candidate", OF_SMALL, ids=name)
def test_many_schedules(candidate, backend):
    if backend == "cuda":
        pytest.skip("a GPU has one schedule")
    m, n, k = SMALL
    square = not candidate.kernel.endswith("rows")
    a, b = activations(m, k, 1), weight(n, k, 2, square=square)
    wanted = product(SMALL, square, None, torch.bfloat16, candidate.split_k)
    for schedule in schedules(backend, seeds=6):
        out = torch.full((m, n), float("nan"), dtype=torch.bfloat16)
        with schedule:
            run(candidate, a, b, None, out, "none", 0, backend)
        same_bits(out, wanted)
