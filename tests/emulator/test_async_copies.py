"""cp.async without bulk: sizes, groups, mbarriers, and what happens before it is waited for."""

import numpy as np
import pytest

from abyssal.emulator import Device, EmulatorError, In, Out
from tests.emulator.lane_kernels import HEAD

POLICIES = [("late", 0), ("early", 0), *[("random", seed) for seed in range(4)]]
THREADS = 64


@pytest.fixture(params=POLICIES, ids=lambda p: f"{p[0]}{p[1]}")
def device(request):
    policy, seed = request.param
    return Device(policy=policy, seed=seed)


def kernel(body: str, bytes_each: int) -> str:
    """Thread i has its part of x at %from, its part of shared memory at %to, and of y at %out."""
    return f"""{HEAD}.visible .entry kernel(.param .u64 x, .param .u64 y, .param .u64 sizes)
{{
    .shared .align 16 .b8 memory[{2 * THREADS * bytes_each + 8}];
    .reg .b32 %i, %to, %size, %bar, %peer, %v<4>; .reg .b64 %from, %out, %step, %s;
    .reg .pred %p, %q;
    mov.u32 %i, %tid.x; mul.wide.u32 %step, %i, {bytes_each};
    ld.param.u64 %from, [x]; add.u64 %from, %from, %step;
    ld.param.u64 %out, [y]; add.u64 %out, %out, %step;
    ld.param.u64 %s, [sizes]; mad.wide.u32 %s, %i, 4, %s;
    mov.u32 %to, memory; mad.lo.u32 %to, %i, {bytes_each}, %to;
    xor.b32 %peer, %i, {THREADS - 1};
    mov.u32 %bar, memory; add.u32 %bar, %bar, {2 * THREADS * bytes_each};
    {body}
    ret;
}}
"""


def store(bytes_each: int, offset: int = 0) -> str:
    """Stores what the thread at the other end of the block has copied."""
    code = f"mad.lo.u32 %to, %peer, {bytes_each}, {offset}; mov.u32 %v0, memory;"
    code += "add.u32 %to, %to, %v0;"
    for part in range(0, bytes_each, 4):
        code += f"ld.shared.b32 %v0, [%to+{part}]; st.global.b32 [%out+{part}], %v0;"
    return code


def run(device, body, bytes_each, sizes=None, data=None):
    words = THREADS * bytes_each // 4
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, words, dtype=np.uint32) if data is None else data
    y = np.zeros(words, np.uint32)
    sizes = np.zeros(THREADS, np.uint32) if sizes is None else sizes.astype(np.uint32)
    device.load_ptx(kernel(body, bytes_each)).launch(
        "kernel", 1, THREADS, [In(x), Out(y), In(sizes)]
    )
    rows = x.reshape(THREADS, -1).view(np.uint8)
    return rows, y.reshape(THREADS, -1).view(np.uint8)[::-1]


@pytest.mark.parametrize(("bytes_each", "cache"), [(4, "ca"), (8, "ca"), (16, "ca"), (16, "cg")])
def test_sizes(device, bytes_each, cache):
    copy = f"cp.async.{cache}.shared.global [%to], [%from], {bytes_each};"
    body = f"{copy} cp.async.commit_group; cp.async.wait_group 0; bar.sync 0; {store(bytes_each)}"
    x, y = run(device, body, bytes_each)
    np.testing.assert_array_equal(y, x)


def test_what_is_not_read_is_zero(device):
    sizes = np.random.default_rng(1).integers(0, 17, THREADS)
    body = f"""ld.global.b32 %size, [%s];
    cp.async.cg.shared::cta.global.L2::128B [%to], [%from], 16, %size;
    cp.async.wait_all; bar.sync 0; {store(16)}"""
    x, y = run(device, body, 16, sizes)
    np.testing.assert_array_equal(y, np.where(np.arange(16) < sizes[:, None], x, 0))


def test_a_predicate_ignores_the_source(device):
    body = f"""and.b32 %size, %i, 1; setp.eq.u32 %p, %size, 1;
    cp.async.ca.shared.global [%to], [%from], 8, %p; cp.async.wait_all; bar.sync 0; {store(8)}"""
    x, y = run(device, body, 8)
    np.testing.assert_array_equal(y, np.where(np.arange(THREADS)[:, None] % 2, 0, x))


GROUPS = """cp.async.ca.shared.global [%to], [%from], 4; cp.async.commit_group;
    cp.async.ca.shared.global [%to+{second}], [%from], 4; cp.async.commit_group;
    cp.async.wait_group 1; bar.sync 0; {store}
    cp.async.wait_group 0;"""


def test_the_first_of_two_groups(device):
    x, y = run(device, GROUPS.format(second=4 * THREADS, store=store(4)), 4)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("noinc", [False, True])
def test_an_mbarrier_counts_copies(device, noinc):
    """Each thread arrives, and once more when its copies are done: with .noinc by itself, else for
    an arrival that was added."""
    arrivals = 2 * THREADS if noinc else THREADS
    body = f"""setp.eq.u32 %p, %i, 0; @%p mbarrier.init.shared::cta.b64 [%bar], {arrivals};
    bar.sync 0; cp.async.cg.shared.global [%to], [%from], 16;
    cp.async.mbarrier.arrive{".noinc" * noinc}.shared::cta.b64 [%bar];
    mbarrier.arrive.shared::cta.b64 _, [%bar];
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%bar], 0; @!%q bra WAIT;
    {store(16)}"""
    x, y = run(device, body, 16)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        # Nobody waits for the copy.
        (f"cp.async.ca.shared.global [%to], [%from], 4; bar.sync 0; {store(4)}", "race"),
        # It is waited for, in a group that was not committed.
        (
            "cp.async.ca.shared.global [%to], [%from], 4; cp.async.wait_group 0; bar.sync 0;"
            + store(4),
            "race",
        ),
        # The wait leaves the second group out.
        (GROUPS.format(second=4 * THREADS, store=store(4, 4 * THREADS)), "race"),
        # Each thread has waited, and reads what another has copied.
        (
            "cp.async.ca.shared.global [%to], [%from], 4; cp.async.wait_all;" + store(4),
            "race",
        ),
        # A copy may come before what the thread stores later, or after.
        (
            "cp.async.ca.shared.global [%to], [%from], 4; st.shared.b32 [%to], %i;"
            "cp.async.wait_all;",
            "race",
        ),
        # Two copies to one place have no order.
        (
            "cp.async.ca.shared.global [%to], [%from], 4;"
            "cp.async.ca.shared.global [%to], [%from], 4; cp.async.wait_all;",
            "race",
        ),
        ("add.u64 %from, %from, 2; cp.async.ca.shared.global [%to], [%from], 4;", "misaligned"),
        # Far from it: next to a buffer, another one may lie.
        (
            "cp.async.ca.shared.global [%to], [%from+1073741824], 4; cp.async.wait_all;",
            "out_of_bounds",
        ),
        ("mov.u32 %size, 5; cp.async.ca.shared.global [%to], [%from], 4, %size;", "invalid"),
    ],
)
@pytest.mark.parametrize("policy", ["late", "early"])
def test_mistakes(policy, body, kind):
    """Where a copy comes too late, what is read is reported before its order."""
    with pytest.raises(EmulatorError) as error:
        run(Device(policy=policy), body, 4)
    assert error.value.kind == kind or (kind, error.value.kind) == ("race", "uninitialised")
    assert error.value.kind == "uninitialised" or "cp.async" in str(error.value)


def test_only_these_sizes():
    for cache, size in [("ca", 2), ("ca", 32), ("cg", 8)]:
        ptx = kernel(f"cp.async.{cache}.shared.global [%to], [%from], {size};", 16)
        module = Device().load_ptx(ptx)
        with pytest.raises(EmulatorError, match="the size must be"):
            module.launch("kernel", 1, 1, [0, 0, 0])


@pytest.mark.parametrize("seed", range(3))
def test_fast_runs(seed):
    body = f"""cp.async.ca.shared.global [%to], [%from], 8; cp.async.commit_group;
    cp.async.wait_group 0; bar.sync 0; {store(8)}"""
    x, y = run(Device(strict=False, policy="random", seed=seed), body, 8)
    np.testing.assert_array_equal(y, x)
