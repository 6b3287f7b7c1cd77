"""Texts of PTX that fuzzing mutates, and how each is launched.

The microkernels of tests/hopper where there is nvcc, one kernel at a time and with the launches of
their cases; and, always, small texts written by hand, which hold the syntax that these lack.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np

from abyssal import emulator
from tests.emulator.lane_kernels import HEAD
from tests.hopper import compiler
from tests.hopper.case import Case, run
from tests.hopper.cases import CASES, make_case
from tests.hopper.on_emulator import EmulatorDevice, EmulatorModule


@dataclasses.dataclass(frozen=True)
class Subject:
    """launch: runs what a mutant of `text` was loaded as; raises what the emulator raises."""

    name: str
    text: str
    launch: Callable[[emulator.Device, emulator.Module], None]


@functools.cache
def subjects() -> list[Subject]:
    return [*written_by_hand(), *microkernels()]


def microkernels() -> list[Subject]:
    """For each kernel of the microkernels, its text and one case that launches it."""
    found: dict[tuple[str, ...], Subject] = {}
    for name in CASES:
        case = make_case(name)
        entries = tuple(sorted({launch.entry for launch in case.launches}))
        key = (case.source, *entries)
        if key in found:
            continue
        try:
            ptx = compiler.compile_kernels(case.source).ptx
        except compiler.CompilerMissing:
            return []
        text = only_kernels(ptx, entries)
        found[key] = Subject(name, text, functools.partial(launch_case, case))
    return list(found.values())


def only_kernels(ptx: str, names: tuple[str, ...]) -> str:
    """The text without the other kernels, and without sections of debug information."""
    head, *kernels = re.split(r"(?m)^(?=(?:\.visible |//.*\n)*\.(?:visible )?\.?entry )", ptx)
    kept = [k for k in kernels if re.search(r"\.entry (\w+)", k).group(1) in names]
    ends = [kernel[: kernel.rindex("\n}\n") + 3] for kernel in kept]
    files = "".join(re.findall(r"(?m)^\s*\.file\s.*\n", ptx))
    return head + "".join(ends) + files


def launch_case(case: Case, device: emulator.Device, module: emulator.Module) -> None:
    on = EmulatorDevice()
    on.device = device
    run(on, EmulatorModule(module), case)


def launch_any(device: emulator.Device, module: emulator.Module) -> None:
    """Each kernel with arguments that fit its parameters."""
    for name, parameters in module._kernels.items():
        memory = [np.arange(1024, dtype=np.uint32) for _ in range(4)]
        arguments = []
        for index, (_, _, size, is_float) in enumerate(parameters):
            if size == 8 and not is_float:
                arguments.append(emulator.InOut(memory[index % 4]))
            elif size == 128:
                words = memory[index % 4].reshape(32, 32)
                arguments.append(device.tensor_map(words, (8, 32), 128))
            elif size in (4, 8):
                arguments.append(3.5 if is_float else 3)
            else:
                arguments.append(b"\1" * min(size, 4096))
        module.launch(name, 1, 128, arguments, shared_bytes=1024)


def written_by_hand() -> list[Subject]:
    return [
        Subject(f"by_hand_{i}", HEAD + text, launch_any) for i, text in enumerate(BY_HAND_TEXTS)
    ]


BY_HAND_TEXTS = [
    # Declarations of every space, vectors, contents, scopes that hide names, a table of branches.
    """
.file 1 "tests/by_hand.cu", 1700000000, 100
.extern .func (.param .b32 result) vprintf (.param .b64 a, .param .b64 b);
.global .align 4 .u32 counts[4] = {1, 2, 0x3, 04};
.const .align 8 .b8 table[16] = {1, 2, 3};
.global .align 1 .b8 format[7] = {104, 105, 32, 37, 100, 10, 0};
.extern .shared .align 16 .b8 dynamic[];
.weak .global .v4 .f32 vector;
.visible .entry declarations(.param .u64 .ptr .global .align 4 x, .param .u32 n, .param .f32 f)
.maxntid 128, 1, 1
.minnctapersm 1
{
    .shared .align 16 .b8 memory[256];
    .local .align 8 .b8 frame[32];
    .reg .b16 %h<4>; .reg .b32 %r<16>; .reg .b64 %d<8>; .reg .pred %p<4>; .reg .f32 %f<4>;
    .loc 1 5 3
    ld.param.u64 %d0, [x]; ld.param.u32 %r0, [n]; ld.param.f32 %f0, [f];
    cvta.to.global.u64 %d0, %d0;
    mov.u32 %r1, %tid.x; mov.u32 %r2, memory;
    and.b32 %r3, %r1, 3;
    LOOP: .branchtargets A, B, A, B;
    brx.idx %r3, LOOP;
    A: add.s32 %r4, %r1, 1; bra.uni END;
    B: { .reg .b32 %r1; mov.b32 %r1, -7; mul.lo.s32 %r4, %r1, %r0; }
    END:
    .loc 1 9 1, function_name $L__info0, inlined_at 1 5 3
    shl.b32 %r5, %r1, 2; add.u32 %r6, %r2, %r5;
    setp.lt.u32 %p0|%p1, %r1, 64;
    @%p0 st.shared.u32 [%r6], %r4;
    bar.sync 0;
    @!%p1 ld.shared.u32 %r7, [%r6+0];
    st.local.v2.u32 [frame+8], {%r7, %r4};
    ld.local.v2.b32 {%r8, _}, [frame+8];
    fma.rn.f32 %f1, %f0, 0f3F800000, %f0; mov.f64 %d5, 1.5;
    mov.b64 {%r9, %r10}, %d5; cvt.rn.bf16x2.f32 %r11, %f1, %f0;
    mul.wide.u32 %d1, %r1, 4; add.s64 %d2, %d0, %d1;
    st.global.u32 [%d2], %r8;
    setp.eq.u32 %p2, %r1, 0; @%p2 st.shared.b32 [dynamic], %r8;
    @!%p2 bra DONE;
    { .param .b64 p0; .param .b64 p1; .param .b32 back;
      mov.u64 %d3, format; st.param.b64 [p0+0], %d3; cvta.local.u64 %d4, 0;
      st.param.b64 [p1+0], %d4;
      call.uni (back), vprintf, (p0, p1); ld.param.b32 %r12, [back+0]; }
    DONE:
    ret;
}
""",
    # Loops, warp instructions, atomics, lanes that part.
    """
.visible .entry warps(.param .u64 x)
{
    .reg .b32 %r<16>; .reg .b64 %d<8>; .reg .pred %p<4>;
    ld.param.u64 %d0, [x]; mov.u32 %r0, %laneid; mov.b32 %r1, 0;
    $L_top:
    activemask.b32 %r6;
    shfl.sync.idx.b32 %r2|%p2, %r0, %r0, 31, %r6;
    shr.u32 %r2, %r2, 2; add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, 1;
    setp.ge.u32 %p0, %r1, %r0;
    @%p0 bra $L_out;
    setp.lt.u32 %p1, %r1, 4;
    @%p1 bra $L_top;
    $L_out:
    vote.sync.ballot.b32 %r3, %p0, 0xffffffff;
    redux.sync.add.s32 %r5, 1, -1;
    match.any.sync.b32 %r4, %r0, 0xffffffff;
    elect.sync %r7|%p3, -1;
    @%p3 atom.global.add.u32 %r8, [%d0], %r3;
    @%p3 red.global.max.s32 [%d0+4], %r4;
    atom.global.cas.b32 %r9, [%d0+8], 2, %r0;
    bfe.u32 %r10, %r3, 3, 5; bfi.b32 %r11, %r10, %r3, 8, 4; prmt.b32 %r12, %r10, %r11, 0x5410;
    lop3.b32 %r13, %r10, %r11, %r12, 0x96; shf.l.wrap.b32 %r14, %r10, %r11, 7;
    dp4a.s32.u32 %r15, %r10, %r11, %r12;
    mov.u32 %r1, %tid.x; mul.wide.u32 %d1, %r1, 4; add.u64 %d2, %d0, %d1;
    st.global.b32 [%d2+1024], %r15;
    exit;
}
""",
    # Asynchronous work: barriers, copies, tensor maps.
    """
.visible .entry copies(.param .align 64 .b8 map[128], .param .u64 x)
{
    .shared .align 1024 .b8 tile[1024];
    .shared .align 8 .b64 full;
    .reg .b32 %r<8>; .reg .b64 %d<8>; .reg .pred %p<4>;
    ld.param.u64 %d0, [x]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile; mov.u32 %r2, full;
    mov.b64 %d1, map; cvta.param.u64 %d2, %d1;
    setp.eq.u32 %p0, %r0, 0;
    @%p0 mbarrier.init.shared::cta.b64 [%r2], 1;
    fence.mbarrier_init.release.cluster;
    barrier.sync.aligned 0;
    @!%p0 bra WAIT;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 1024;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
        [%r1], [%d2, {0, 8}], [%r2];
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r2], 0;
    @!%p1 bra WAIT;
    ld.shared.v4.b32 {%r3, %r4, %r5, %r6}, [%r1+16];
    @%p0 st.shared.b32 [%r1+32], %r3;
    fence.proxy.async.shared::cta;
    bar.sync 0, 128;
    @!%p0 bra DONE;
    cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 256;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group.read 0;
    cp.async.bulk.wait_group 0;
    DONE:
    ret;
}
""",
    # Products, matrices, clusters, launch control.
    """
.visible .entry products(.param .u64 x)
.reqnctapercluster 1, 1, 1
{
    .shared .align 1024 .b8 tiles[8192];
    .reg .b32 %r<32>; .reg .b64 %d<8>; .reg .pred %p<4>; .reg .f32 %f<8>;
    mov.u32 %r0, tiles; mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 4; add.u32 %r3, %r0, %r2;
    st.shared.v4.b32 [%r3], {%r1, 0, 0, 0};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];
    stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%r3], {%r4, %r5};
    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
    mapa.shared::cluster.u32 %r8, %r3, 0; ld.shared::cluster.b32 %r9, [%r8];
    setmaxnreg.dec.sync.aligned.u32 240;
    fence.proxy.async.shared::cta; bar.sync 0;
    shr.u32 %r10, %r0, 4; cvt.u64.u32 %d2, %r10; or.b64 %d1, %d2, 0x0000001000080000;
    mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0;
    mov.f32 %f3, %f0;
    setp.ne.b32 %p0, %r1, %r1;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%f0, %f1, %f2, %f3}, %d1, %d1, %p0, 1, 1;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    griddepcontrol.wait; griddepcontrol.launch_dependents;
    ret;
}
""",
    "",
    ".visible .entry empty() { }\n.entry other { bra END; END: }\n",
]
