"""Barriers, bulk copies, tensor maps and warpgroup products, under every policy."""

import numpy as np
import pytest
import torch

from abyssal.emulator import Device, EmulatorError, In, InOut, Out
from abyssal.errors import InputError
from tests.emulator.lane_kernels import HEAD

POLICIES = [("late", 0), ("early", 0), *[("random", seed) for seed in range(5)]]


@pytest.fixture(params=POLICIES, ids=lambda p: f"{p[0]}{p[1]}")
def device(request):
    policy, seed = request.param
    return Device(policy=policy, seed=seed, num_sms=4)


def kernel(params: str, body: str, shared: int = 0, before: str = "") -> str:
    declared = f".shared .align 1024 .b8 memory[{shared}];" if shared else ""
    return (
        f"{HEAD}{before}.visible .entry kernel({params})\n{{\n{declared}\n"
        ".reg .pred %p, %q; .reg .b32 %r<32>; .reg .b64 %d<32>; .reg .f32 %f<256>;\n"
        f"{body}\nret;\n}}\n"
    )


def test_reversal_through_shared_memory(device):
    ptx = kernel(
        ".param .u64 x",
        """mov.u32 %r0, %tid.x; ld.param.u64 %d0, [x]; mul.wide.u32 %d1, %r0, 4;
        add.u64 %d0, %d0, %d1; ld.global.b32 %r1, [%d0]; shl.b32 %r2, %r0, 2;
        mov.u32 %r3, memory; add.u32 %r4, %r3, %r2;
        st.shared.b32 [%r4], %r1; bar.sync 0;
        sub.u32 %r5, 1020, %r2; add.u32 %r5, %r5, %r3; ld.shared.b32 %r6, [%r5];
        st.global.b32 [%d0], %r6;""",
        shared=1024,
    )
    x = np.arange(256, dtype=np.uint32)
    device.load_ptx(ptx).launch("kernel", 1, 256, [InOut(x)])
    assert x.tolist() == list(range(255, -1, -1))


# One thread announces the bytes and starts the copy, all wait, each stores its part.
LOAD = """
    mov.u32 %r0, %tid.x; mov.u32 %r1, memory; add.u32 %r2, %r1, {bytes};
    setp.eq.u32 %p, %r0, 0;
    @%p mbarrier.init.shared::cta.b64 [%r2], 1;
    @%p fence.mbarrier_init.release.cluster;
    bar.sync 0;
    @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {bytes};
    {copy}
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%r2], 0; @!%q bra WAIT;
    ld.param.u64 %d2, [out]; mul.wide.u32 %d3, %r0, 4; add.u64 %d2, %d2, %d3;
    shl.b32 %r3, %r0, 2; add.u32 %r3, %r1, %r3;
    mov.u32 %r5, 0;
    COPY: ld.shared.b32 %r4, [%r3]; st.global.b32 [%d2], %r4;
    add.u32 %r3, %r3, 128; add.u64 %d2, %d2, 128; add.u32 %r5, %r5, 128;
    setp.lt.u32 %q, %r5, {bytes}; @%q bra COPY;
"""


@pytest.mark.parametrize("strict", [True, False])
def test_bulk_load(device, strict):
    device.strict = strict
    copy = (
        "ld.param.u64 %d0, [x]; @%p cp.async.bulk.shared::cluster.global"
        ".mbarrier::complete_tx::bytes [%r1], [%d0], 1024, [%r2];"
    )
    ptx = kernel(".param .u64 x, .param .u64 out", LOAD.format(bytes=1024, copy=copy), shared=1032)
    x = np.random.default_rng(0).integers(0, 2**32, 256, dtype=np.uint32)
    out = np.zeros(256, np.uint32)
    device.load_ptx(ptx).launch("kernel", 1, 32, [In(x), Out(out)])
    np.testing.assert_array_equal(out, x)


def test_an_mbarrier_that_ends_before_its_copy():
    """Who waits is told that there is none; and so is a copy that comes after its end."""
    copy = (
        "ld.param.u64 %d0, [x]; @%p cp.async.bulk.shared::cluster.global"
        ".mbarrier::complete_tx::bytes [%r1], [%d0], 1024, [%r2];"
        "@%p mbarrier.inval.shared::cta.b64 [%r2]; bar.sync 0;"
    )
    ptx = kernel(".param .u64 x, .param .u64 out", LOAD.format(bytes=1024, copy=copy), shared=1032)
    arguments = [In(np.zeros(256, np.uint32)), Out(np.zeros(256, np.uint32))]
    for policy in ("late", "early"):
        with pytest.raises(EmulatorError, match="there is no initialised mbarrier"):
            Device(policy=policy).load_ptx(ptx).launch("kernel", 1, 32, arguments)
    # Late copies come when all wait, here at two barriers.
    without_wait = ptx[: ptx.index("WAIT:")] + "shr.u32 %r5, %r0, 5; barrier.sync %r5; ret;\n}\n"
    with pytest.raises(EmulatorError, match="invalidated before the copy was over") as error:
        Device().load_ptx(without_wait).launch("kernel", 1, 64, arguments)
    assert error.value.kind == "in_flight"


def box_of(array, origin, box, fill):
    """The box as TMA delivers it: elements outside of the array are `fill`."""
    grids = np.meshgrid(
        *(np.arange(n) + o for n, o in zip(box, origin, strict=True)), indexing="ij"
    )
    inside = np.ones(box, bool)
    for grid, extent in zip(grids, array.shape, strict=True):
        inside &= (grid >= 0) & (grid < extent)
    clipped = [grid.clip(0, extent - 1) for grid, extent in zip(grids, array.shape, strict=True)]
    return np.where(inside, array[tuple(clipped)], fill)


def swizzled_rows(box, swizzle):
    """Bytes as they lie in shared memory that begins at a multiple of 1024."""
    flat = np.ascontiguousarray(box).reshape(-1).view(np.uint8)
    result = np.empty_like(flat)
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    for offset in range(0, len(flat), 16):
        to = offset ^ (offset >> 7 & mask) << 4
        result[to : to + 16] = flat[offset : offset + 16]
    return result


@pytest.mark.parametrize(
    ("shape", "box", "origin", "swizzle", "dtype"),
    [
        ((64,), (32,), (40,), 0, np.float32),
        ((20, 64), (8, 32), (-3, 40), 128, np.float32),
        ((20, 64), (16, 64), (0, 0), 128, np.float16),
        ((20, 64), (16, 32), (10, -8), 64, np.float16),
        ((20, 64), (32, 16), (4, 8), 32, np.float16),
        ((6, 7, 32), (2, 4, 32), (5, -1, 16), 0, np.uint8),
        ((3, 4, 5, 16), (2, 2, 2, 16), (2, 3, 4, 0), 32, np.uint16),
        ((2, 3, 4, 5, 16), (1, 2, 2, 2, 8), (1, 2, 3, 4, 12), 0, np.uint32),
    ],
)
@pytest.mark.parametrize("fill_nan", [False, True])
def test_tensor_load(shape, box, origin, swizzle, dtype, fill_nan):
    if fill_nan and np.dtype(dtype).kind != "f":
        with pytest.raises(InputError, match="oobFill"):
            Device().tensor_map(np.zeros(shape, dtype), box, swizzle, fill_nan=True)
        return
    rng = np.random.default_rng(1)
    x = rng.integers(1, 100, shape).astype(dtype)
    size = int(np.prod(box)) * np.dtype(dtype).itemsize
    coordinates = ", ".join(f"%r{10 + i}" for i in range(len(shape)))
    moves = " ".join(f"mov.b32 %r{10 + i}, {o};" for i, o in enumerate(reversed(origin)))
    copy = (
        f"{moves} mov.b64 %d0, map; cvta.param.u64 %d0, %d0; @%p cp.async.bulk.tensor.{len(shape)}d"
        ".shared::cluster.global.mbarrier::complete_tx::bytes "
        f"[%r1], [%d0, {{{coordinates}}}], [%r2];"
    )
    ptx = kernel(
        ".param .align 64 .b8 map[128], .param .u64 out",
        LOAD.format(bytes=size, copy=copy),
        size + 8,
    )
    for policy, seed in POLICIES:
        device = Device(policy=policy, seed=seed)
        out = np.zeros(size // 4, np.uint32)
        tensor_map = device.tensor_map(In(x), box, swizzle, fill_nan=fill_nan)
        device.load_ptx(ptx).launch("kernel", 1, 32, [tensor_map, Out(out)])
        fill = np.nan if fill_nan else 0
        expected = swizzled_rows(
            box_of(x.astype(np.float64), origin, box, fill).astype(dtype), swizzle
        )
        got = out.view(np.uint8)
        if fill_nan:
            np.testing.assert_array_equal(got.view(dtype), expected.view(dtype))
        else:
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("reduction", [None, "add", "min", "max"])
def test_tensor_store(device, reduction):
    """Clipped at the tensor's edges; a reduction changes what is there."""
    opcode = "cp.reduce.async.bulk.tensor" if reduction else "cp.async.bulk.tensor"
    suffix = f".{reduction}" if reduction else ""
    ptx = kernel(
        ".param .align 64 .b8 map[128]",
        f"""mov.u32 %r0, %tid.x; mov.u32 %r1, memory; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
        cvt.rn.f32.u32 %f0, %r0;
        st.shared.f32 [%r3], %f0; fence.proxy.async.shared::cta; bar.sync 0;
        setp.eq.u32 %p, %r0, 0; mov.b64 %d0, map; cvta.param.u64 %d0, %d0;
        mov.b32 %r10, 4; mov.b32 %r11, -2;
        @%p {opcode}.2d.global.shared::cta{suffix}.bulk_group [%d0, {{%r10, %r11}}], [%r1];
        @%p cp.async.bulk.commit_group; @%p cp.async.bulk.wait_group.read 0;""",
        shared=512,
    )
    before = np.random.default_rng(2).uniform(0, 128, (5, 8)).astype(np.float32)
    x = before.copy()
    tensor_map = device.tensor_map(InOut(x), (16, 8))
    device.load_ptx(ptx).launch("kernel", 1, 128, [tensor_map])
    box = np.arange(128, dtype=np.float32).reshape(16, 8)
    function = {None: lambda a, b: b, "add": np.add, "min": np.minimum, "max": np.maximum}[
        reduction
    ]
    expected = before.copy()
    expected[:, 4:] = function(before[:, 4:], box[2:7, :4])
    np.testing.assert_array_equal(x, expected)


def test_multicast_and_remote_arrival(device):
    """Block 0 loads for both; block 1 tells it by a remote arrival that it has read."""
    ptx = kernel(
        ".param .u64 x, .param .u64 out",
        """
        mov.u32 %r0, %tid.x; mov.u32 %r1, memory; add.u32 %r2, %r1, 128; add.u32 %r9, %r1, 136;
        mov.u32 %r8, %cluster_ctarank; setp.eq.u32 %p, %r0, 0;
        @%p mbarrier.init.shared::cta.b64 [%r2], 1;
        @%p mbarrier.init.shared::cta.b64 [%r9], 2;
        @%p fence.mbarrier_init.release.cluster;
        @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        setp.eq.and.u32 %q, %r8, 0, %p;
        ld.param.u64 %d0, [x]; .reg .b16 %mask; mov.b16 %mask, 3;
        @%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
            [%r1], [%d0], 128, [%r2], %mask;
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%r2], 0; @!%q bra WAIT;
        ld.param.u64 %d2, [out]; mad.lo.u32 %r4, %r8, 32, %r0; mul.wide.u32 %d3, %r4, 4;
        add.u64 %d2, %d2, %d3; shl.b32 %r3, %r0, 2; add.u32 %r3, %r1, %r3;
        ld.shared.b32 %r5, [%r3]; add.u32 %r5, %r5, %r8; st.global.b32 [%d2], %r5;
        bar.warp.sync -1;
        mapa.shared::cluster.u32 %r6, %r9, 0;
        @%p mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r6];
        setp.ne.u32 %q, %r8, 0; @%q bra END;
        DONE: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %q, [%r9], 0; @!%q bra DONE;
        END:
        """,
        shared=144,
    )
    x = np.arange(32, dtype=np.uint32) * 10
    out = np.zeros((2, 32), np.uint32)
    device.load_ptx(ptx).launch("kernel", 2, 32, [In(x), Out(out)], cluster=2)
    np.testing.assert_array_equal(out, np.stack([x, x + 1]))


def test_a_pipeline_of_two_stages(device):
    """A producer warp refills what a consumer warp has emptied, 9 times round two stages."""
    ptx = kernel(
        ".param .u64 x, .param .u64 out",
        """
        mov.u32 %r1, memory; mov.u32 %r0, %tid.x; setp.eq.u32 %p, %r0, 0;
        add.u32 %r20, %r1, 256;
        @%p mbarrier.init.shared::cta.b64 [%r20], 1;
        @%p mbarrier.init.shared::cta.b64 [%r20+8], 1;
        @%p mbarrier.init.shared::cta.b64 [%r20+16], 32;
        @%p mbarrier.init.shared::cta.b64 [%r20+24], 32;
        @%p fence.mbarrier_init.release.cluster;
        bar.sync 0;
        ld.param.u64 %d0, [x]; ld.param.u64 %d1, [out];
        mov.u32 %r2, 0; mov.u32 %r3, 0; mov.u32 %r4, 0;
        setp.ge.u32 %q, %r0, 32; @%q bra CONSUME;
        @!%p bra END;
        PRODUCE:
        shl.b32 %r5, %r3, 3; add.u32 %r6, %r20, %r5; xor.b32 %r7, %r4, 1;
        EMPTY: mbarrier.try_wait.parity.shared::cta.b64 %q, [%r6+16], %r7; @!%q bra EMPTY;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 128;
        shl.b32 %r8, %r3, 7; add.u32 %r8, %r1, %r8;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%d0], 128, [%r6];
        add.u64 %d0, %d0, 128; add.u32 %r2, %r2, 1;
        xor.b32 %r3, %r3, 1; setp.eq.u32 %q, %r3, 0; @%q xor.b32 %r4, %r4, 1;
        setp.lt.u32 %q, %r2, 9; @%q bra PRODUCE;
        bra.uni END;
        CONSUME:
        and.b32 %r9, %r0, 31; shl.b32 %r9, %r9, 2; cvt.u64.u32 %d2, %r9; add.u64 %d1, %d1, %d2;
        NEXT:
        shl.b32 %r5, %r3, 3; add.u32 %r6, %r20, %r5;
        FULL: mbarrier.try_wait.parity.shared::cta.b64 %q, [%r6], %r4; @!%q bra FULL;
        shl.b32 %r8, %r3, 7; add.u32 %r8, %r1, %r8; add.u32 %r8, %r8, %r9;
        ld.shared.b32 %r10, [%r8];
        mbarrier.arrive.shared::cta.b64 _, [%r6+16];
        st.global.b32 [%d1], %r10; add.u64 %d1, %d1, 128; add.u32 %r2, %r2, 1;
        xor.b32 %r3, %r3, 1; setp.eq.u32 %q, %r3, 0; @%q xor.b32 %r4, %r4, 1;
        setp.lt.u32 %q, %r2, 9; @%q bra NEXT;
        END:
        """,
        shared=288,
    )
    x = np.random.default_rng(3).integers(0, 2**32, 9 * 32, dtype=np.uint32)
    out = np.zeros_like(x)
    device.load_ptx(ptx).launch("kernel", 1, 64, [In(x), Out(out)])
    np.testing.assert_array_equal(out, x)


# Warpgroup products: one instruction, operands in shared memory without swizzle.

WGMMA = """
    mov.u32 %r0, %tid.x; mov.u32 %r1, memory; ld.param.u64 %d0, [ab];
    shl.b32 %r2, %r0, 4; cvt.u64.u32 %d1, %r2; add.u64 %d0, %d0, %d1; add.u32 %r3, %r1, %r2;
    .reg .b32 %w<4>;
    LOAD: ld.global.v4.b32 {{%w0, %w1, %w2, %w3}}, [%d0];
    st.shared.v4.b32 [%r3], {{%w0, %w1, %w2, %w3}};
    add.u64 %d0, %d0, 2048; add.u32 %r3, %r3, 2048; add.u32 %r2, %r2, 2048;
    setp.lt.u32 %p, %r2, {bytes}; @%p bra LOAD;
    fence.proxy.async.shared::cta; bar.sync 0;
    {before}
    // Matrices of 8 rows of 16 bytes: neighbours along K, then along M or N.
    shr.u32 %r4, %r1, 4; and.b32 %r4, %r4, 0x3fff; cvt.u64.u32 %d2, %r4;
    or.b64 %d2, %d2, {layout}; add.u64 %d3, %d2, {b_offset};
    setp.ne.u32 %p, {accumulate}, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{types} {{{d}}}, %d2, %d3, %p, 1, 1{major};
    wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
    ld.param.u64 %d4, [out]; mul.wide.u32 %d5, %r0, {stride}; add.u64 %d4, %d4, %d5;
    {after}
"""


def wgmma_kernel(n, k, types, major, accumulate):
    registers = [f"%f{i}" for i in range(n // 2)]
    size = (64 + n) * 32
    return kernel(
        ".param .u64 ab, .param .u64 out",
        WGMMA.format(
            bytes=size,
            before="\n".join(
                f"mov.f32 {r}, 0f{0x3F800000 + (i << 16):08X};" for i, r in enumerate(registers)
            ),
            layout=hex(128 >> 4 << 16 | 256 >> 4 << 32),
            b_offset=64 * 32 >> 4,
            accumulate=int(accumulate),
            n=n,
            k=k,
            types=types,
            d=", ".join(registers),
            major=major,
            stride=2 * n,
            after="\n".join(f"st.global.f32 [%d4+{4 * i}], {r};" for i, r in enumerate(registers)),
        ),
        shared=size,
    )


def core_matrices(rows):
    """[R, 32 bytes] as 8x16-byte matrices, the two of one group of rows behind each other."""
    data = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, 8, 2, 16)
    return np.ascontiguousarray(data.transpose(0, 2, 1, 3))


def accumulator_positions(n):
    """(row, column) of value i of thread t (PTX ISA 9.7.15.5)."""
    t, i = np.meshgrid(np.arange(128), np.arange(n // 2), indexing="ij")
    warp, lane = t // 32, t % 32
    return 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("n", [8, 64, 256])
@pytest.mark.parametrize(
    ("types", "k", "dtype"),
    [
        ("e4m3.e4m3", 32, torch.float8_e4m3fn),
        ("e5m2.e5m2", 32, torch.float8_e5m2),
        ("bf16.bf16", 16, torch.bfloat16),
        ("f16.f16", 16, torch.float16),
        ("tf32.tf32", 8, torch.float32),
    ],
)
def test_wgmma(device, types, k, dtype, n, accumulate):
    torch.manual_seed(0)
    a, b = (torch.randint(-3, 4, (rows, k)).to(dtype) for rows in (64, n))
    raw = [core_matrices(m.view(torch.uint8).reshape(m.shape[0], 32).numpy()) for m in (a, b)]
    ab = np.concatenate([m.reshape(-1) for m in raw])
    out = np.full((128, n // 2), np.nan, np.float32)
    major = ", 0, 0" if k == 16 else ""
    module = device.load_ptx(wgmma_kernel(n, k, types, major, accumulate))
    module.launch("kernel", 1, 128, [In(ab), Out(out)])
    product = a.double() @ b.double().T
    rows, columns = accumulator_positions(n)
    expected = product.numpy()[rows, columns]
    if accumulate:
        start = np.array([0x3F800000 + (i << 16) for i in range(n // 2)], np.uint32).view(
            np.float32
        )
        expected = expected + start
    # Small integers: exact but for the accumulator's last bits.
    tolerance = 2.0**-12 if accumulate else 0
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=64 * tolerance)


def test_kernels_that_wait_for_all_blocks(device):
    """A barrier of the whole grid, counted in global memory: all blocks must be resident."""
    ptx = kernel(
        ".param .u64 count",
        """ld.param.u64 %d0, [count]; mov.u32 %r0, %tid.x; setp.ne.u32 %p, %r0, 0; @%p bra END;
        mov.u32 %r1, %nctaid.x;
        red.release.gpu.global.add.u32 [%d0], 1;
        SPIN: ld.acquire.gpu.global.u32 %r2, [%d0]; setp.lt.u32 %q, %r2, %r1; @%q bra SPIN;
        red.relaxed.gpu.global.add.u32 [%d0+4], %r2;
        END:""",
    )
    count = np.zeros(2, np.uint32)
    device.load_ptx(ptx).launch("kernel", 8, 64, [InOut(count)])
    assert count.tolist() == [8, 64]


def test_a_grid_that_does_not_fit_waits_for_ever():
    ptx = kernel(
        ".param .u64 count",
        """ld.param.u64 %d0, [count]; mov.u32 %r1, %nctaid.x;
        red.relaxed.gpu.global.add.u32 [%d0], 1;
        SPIN: ld.acquire.gpu.global.u32 %r2, [%d0]; setp.lt.u32 %q, %r2, %r1; @%q bra SPIN;""",
    )
    count = np.zeros(1, np.uint32)
    with pytest.raises(EmulatorError, match="no progress") as error:
        Device(num_sms=1).load_ptx(ptx).launch("kernel", 33, 1, [InOut(count)])
    assert error.value.kind == "deadlock"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": (8, 8)}, "boxDim.0. is 8 bytes and must be a multiple of 16"),
        ({"box": (8, 256), "swizzle": 128}, "boxDim.0. is 256 bytes and the swizzle spans 128"),
        ({"box": (257, 64)}, "boxDim.1. is 257"),
        ({"box": (8,)}, "as many entries"),
        ({"swizzle": 16}, "0, 32, 64 or 128"),
        ({"element_strides": (9, 1)}, "elementStrides.1. is 9"),
        ({"array": np.zeros((8, 250), np.uint8)}, "globalStrides.0. is 250 bytes"),
        ({"array": np.zeros(4096, np.uint8)[1:2049].reshape(8, 256)}, "globalAddress"),
    ],
)
def test_tensor_maps_that_break_a_rule(change, message):
    arguments = {"array": np.zeros((8, 256), np.uint8), "box": (8, 64), **change}
    with pytest.raises(InputError, match=message):
        Device().tensor_map(arguments.pop("array"), arguments.pop("box"), **arguments)


def test_shared_variables_that_the_kernel_does_not_name_take_no_room():
    ptx = kernel(
        ".param .u64 out",
        """ld.param.u64 %d0, [out]; mov.u32 %r0, mine; mov.u32 %r1, dynamic;
        st.shared.b32 [mine], %r0; st.shared.b32 [dynamic], %r1;
        st.global.v2.b32 [%d0], {%r0, %r1};""",
        before=".shared .align 16 .b8 others[200000]; .shared .align 16 .b8 mine[48];"
        ".extern .shared .align 32 .b8 dynamic[]; .extern .shared .align 1024 .b8 aligned[];\n",
    )
    out = np.zeros(2, np.uint32)
    Device().load_ptx(ptx).launch("kernel", 1, 1, [Out(out)], shared_bytes=100000)
    assert out.tolist() == [1024, 1024 + 64]
