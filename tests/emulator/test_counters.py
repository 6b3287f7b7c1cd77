"""Counters of launches, against counts by hand and by NumPy."""

import numpy as np
import pytest

from abyssal.emulator import Device, In, Out
from tests.emulator.lane_kernels import HEAD
from tests.emulator.test_asynchronous import kernel


def count(ptx, args, *, block=32, grid=1, **launch):
    device = Device()
    module = device.load_ptx(ptx)
    module.launch("kernel", grid, block, args, **launch)
    assert device.counters is module.counters
    return device.counters


def only(counters, text):
    (found,) = [i for i in counters.instructions if i.text == text]
    return found


def shared_access(stride, width, lanes=32):
    """Each of `lanes` lanes stores `width` words, `stride` words after the lane before it."""
    values = "%r9" if width == 1 else "{" + ", ".join(["%r9"] * width) + "}"
    vector = "" if width == 1 else f".v{width}"
    return kernel(
        "",
        f"""mov.u32 %r0, %tid.x; mul.lo.u32 %r1, %r0, {4 * stride}; mov.u32 %r2, memory;
        add.u32 %r1, %r1, %r2; mov.u32 %r9, 1; setp.lt.u32 %p, %r0, {lanes};
        @%p st.shared{vector}.b32 [%r1], {values};""",
        shared=4 * 32 * 64,
    )


def conflicts(stride, width, lanes=32):
    """Wavefronts by definition: quarter warps of 16-byte and half warps of 8-byte accesses."""
    together = 32 // width
    total = 0
    for first in range(0, lanes, together):
        banks = {}
        for lane in range(first, min(first + together, lanes)):
            for word in range(lane * stride, lane * stride + width):
                banks.setdefault(word % 32, set()).add(word)
        total += max(len(words) for words in banks.values())
    return total


@pytest.mark.parametrize("lanes", [32, 7])
@pytest.mark.parametrize(
    ("stride", "width"),
    # Aligned, and no lane writes to another's words.
    [(s, w) for s in (0, 1, 2, 3, 4, 8, 12, 16, 32, 33, 36) for w in (1, 2, 4) if s % w == 0],
)
def test_bank_conflicts(stride, width, lanes):
    counters = count(shared_access(stride, width, lanes), [])
    store = only(counters, "st.shared" + (f".v{width}" if width > 1 else "") + ".b32")
    assert store.shared_wavefronts == conflicts(stride, width, lanes)
    assert store.ideal_wavefronts == -(-lanes // (32 // width))
    assert (store.warps, store.threads) == (1, lanes)


@pytest.mark.parametrize(
    ("stride", "offset", "sectors"),
    [(1, 0, 4), (1, 1, 5), (2, 0, 8), (8, 0, 32), (0, 0, 1), (-1, 31, 4), (-1, 32, 5)],
)
def test_sectors(stride, offset, sectors):
    words = np.zeros(32 * 8 + 40, np.uint32)
    first = (-words.ctypes.data // 4) % 8  # of a sector
    ptx = kernel(
        ".param .u64 x",
        f"""mov.u32 %r0, %tid.x; ld.param.u64 %d0, [x]; mul.lo.s32 %r1, %r0, {4 * stride};
        cvt.s64.s32 %d1, %r1; add.u64 %d0, %d0, %d1; ld.global.b32 %r2, [%d0+{4 * offset}];""",
    )
    counters = count(ptx, [In(words[first:])])
    load = only(counters, "ld.global.b32")
    assert (load.global_requests, load.global_sectors) == (1, sectors)


def test_pipes_and_warps():
    """Warp 0 adds floats, the others integers."""
    ptx = kernel(
        "",
        """mov.u32 %r0, %tid.x; setp.ge.u32 %p, %r0, 32; @%p bra OTHERS;
        add.f32 %f0, 0f3F800000, 0f3F800000; ex2.approx.f32 %f0, %f0; bra END;
        OTHERS: add.u32 %r1, %r0, 1; add.u32 %r1, %r1, 1; END:""",
    )
    counters = count(ptx, [], block=96, grid=5)
    first, *others = counters.warps
    assert first["float32"] == 5
    assert first["special"] == 5
    # setp counts as well.
    assert first["integer"] == 5
    assert [warp["integer"] for warp in others] == [15, 15]
    assert counters.pipes["integer"] == 35
    assert counters.pipes["special"] == 5
    report = str(counters)
    assert "warp 0, each: 5 integer, 5 float32, 5 special" in report
    assert "warps 1 to 2, each" in report


COPY = """.reg .pred %p; .reg .b32 %bar, %data, %rank; .reg .b64 %x, %y, %state;
    mov.u32 %bar, barrier; mov.u32 %data, memory; ld.param.u64 %x, [x]; ld.param.u64 %y, [y];
    mbarrier.init.shared::cta.b64 [%bar], 1; fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    mbarrier.arrive.expect_tx.shared::cta.b64 %state, [%bar], 256;
    mov.u32 %rank, %cluster_ctarank; setp.ne.u32 %p, %rank, 0; @%p bra WAIT;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
        [%data], [%x], 256, [%bar], 3;
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [%bar], 0; @!%p bra WAIT;
    setp.ne.u32 %p, %rank, 0; @%p bra END;
    cp.async.bulk.global.shared::cta.bulk_group [%y], [%data], 128;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END:
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"""


def test_copies_and_waits():
    x, y = np.arange(64, dtype=np.uint32), np.zeros(32, np.uint32)
    ptx = (
        f"{HEAD}.visible .entry kernel(.param .u64 x, .param .u64 y)\n{{\n"
        f".shared .align 128 .b8 memory[256]; .shared .align 8 .b8 barrier[8];\n{COPY}\nret;\n}}\n"
    )
    counters = count(ptx, [In(x), Out(y)], block=1, grid=2, cluster=2)
    assert (y == x[:32]).all()
    loads, stores = counters.copies["to_shared"], counters.copies["to_global"]
    assert (loads.count, loads.bytes, loads.delivered) == (1, 256, 512)
    assert (stores.count, stores.bytes, stores.delivered) == (1, 128, 128)
    assert sum(i.waits for i in counters.instructions if "try_wait" in i.text) >= 2
    assert "bulk copies to shared: 1, 256 bytes read, 512 written" in str(counters)


def test_products():
    ptx = kernel(
        "",
        """wgmma.fence.sync.aligned;
        mov.b64 %d0, 0x4000000000000000; mov.u32 %r0, memory; and.b32 %r0, %r0, 0x3ffff;
        shr.u32 %r0, %r0, 4; cvt.u64.u32 %d1, %r0; or.b64 %d0, %d0, %d1;
        wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%f0, %f1, %f2, %f3}, %d0, %d0, 0, 1, 1;
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;""",
        shared=8192,
    )
    device = Device(strict=False)
    device.load_ptx(ptx).launch("kernel", 3, 128, [])
    assert device.counters.products == 3 * 64 * 8 * 32


def test_lines_of_the_first_launch_only_after_it():
    module = Device().load_ptx(kernel("", ""))
    assert module.lines == {}
    assert module.counters is None
