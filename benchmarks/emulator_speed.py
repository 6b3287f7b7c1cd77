"""How fast the emulator runs, on one core: `python -m benchmarks.emulator_speed [--out FILE]`.

Thread-instructions a second of kernels that stress one thing each, fast (`strict=False`) and
strict, and the time to read 8,000 instructions of PTX. Medians of five runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abyssal.emulator import Device, In, Out
from benchmarks import harness
from benchmarks.bench_emulator_tensor_core import cpu_model

ROUNDS = 5
GRID, BLOCK = 16, 256
STEPS = 400

_HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"
_BEGIN = """
.visible .entry kernel(.param .u64 x, .param .u64 y)
{
.shared .align 16 .b8 memory[2048];
.reg .pred %p; .reg .b32 %r<16>; .reg .b64 %d<8>; .reg .f32 %f<16>;
ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y];
mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 256, %r0;
mul.wide.u32 %d2, %r2, 4; add.u64 %d0, %d0, %d2; add.u64 %d1, %d1, %d2;
ld.global.f32 %f0, [%d0]; shl.b32 %r3, %r0, 2; mov.u32 %r4, memory; add.u32 %r3, %r3, %r4;
mov.u32 %r5, 0; mov.f32 %f1, %f0;
LOOP:
"""
_END = """
add.u32 %r5, %r5, 1; setp.lt.u32 %p, %r5, STEPS; @%p bra LOOP;
st.global.f32 [%d1], %f1;
ret;
}
"""

# Bodies of the loop.
BODIES = {
    "registers": "fma.rn.f32 %f1, %f1, %f0, %f0; mul.f32 %f2, %f1, %f0; add.f32 %f1, %f2, %f0;\n"
    "xor.b32 %r6, %r5, %r0; shr.u32 %r7, %r6, 3; add.u32 %r8, %r7, %r6;",
    "shared memory": "st.shared.f32 [%r3], %f1; bar.sync 0; ld.shared.f32 %f2, [%r3];\n"
    "add.f32 %f1, %f1, %f2; bar.sync 0;",
    "global memory": "ld.global.f32 %f2, [%d0]; fma.rn.f32 %f1, %f1, %f0, %f2;\n"
    "add.f32 %f1, %f1, %f0; st.global.f32 [%d1], %f1;",
    "divergence": "and.b32 %r6, %r0, 1; setp.eq.u32 %p, %r6, 0; @%p bra EVEN;\n"
    "add.f32 %f1, %f1, %f0; bra.uni MET; EVEN: mul.f32 %f1, %f1, %f0; MET:",
}


def source(body: str, repeat: int = 1) -> str:
    return _HEAD + _BEGIN + "\n".join([body] * repeat) + _END.replace("STEPS", str(STEPS))


def median_seconds(run: Callable[[], None]) -> float:
    run()
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def instructions_per_second(body: str, strict: bool) -> float:
    x = np.linspace(0.5, 1.5, GRID * BLOCK, dtype=np.float32)
    y = np.empty_like(x)
    module = Device(strict=strict).load_ptx(source(body))
    seconds = median_seconds(lambda: module.launch("kernel", GRID, BLOCK, [In(x), Out(y)]))
    assert module.counters is not None
    return sum(i.threads for i in module.counters.instructions) / seconds


def parse_seconds() -> float:
    """To load 8,000 instructions and decode them, as the first launch does."""
    text = source(BODIES["registers"], repeat=1330)
    x = np.ones(1, np.float32)

    def run() -> None:
        module = Device().load_ptx(text.replace(str(STEPS), "1"))
        module.launch("kernel", 1, 1, [In(x), Out(x.copy())])

    return median_seconds(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args()
    report: dict[str, Any] = harness.describe_machine(torch.device("cpu"))
    report["device"] = cpu_model()
    report["thread_instructions_per_second"] = results = {}
    print(f"{report['device']}, one core, median of {ROUNDS}; 1e6 thread-instructions a second")
    print(f"{'':<16}{'fast':>8}{'strict':>8}")
    for name, body in BODIES.items():
        results[name] = {
            mode: instructions_per_second(body, strict=mode == "strict")
            for mode in ("fast", "strict")
        }
        row = "".join(f"{value / 1e6:8.0f}" for value in results[name].values())
        print(f"{name:<16}{row}", flush=True)
    report["seconds_for_8000_instructions"] = parse_seconds()
    print(f"8,000 instructions are read in {report['seconds_for_8000_instructions']:.3f} s")
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
