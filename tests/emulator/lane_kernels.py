"""Kernels of one instruction: thread i computes result[i] from a[i], b[i], c[i]."""

from __future__ import annotations

import numpy as np

from abyssal import emulator

# Register class and load/store type by bytes.
REGISTERS = {1: "b16", 2: "b16", 4: "b32", 8: "b64", 16: "b128"}
TYPES = {1: "b8", 2: "b16", 4: "b32", 8: "b64", 16: "b128"}

HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"


def lane_kernel(code: str, sources: list[int], results: list[int]) -> str:
    """PTX of a kernel that runs `code` in each thread.

    `code` reads %a, %b, %c (sources of that many bytes) and writes %x, %y (results).
    """
    names = "abcd"[: len(sources)] + "xy"[: len(results)]
    sizes = [*sources, *results]
    params = ", ".join(f".param .u64 p{name}" for name in names)
    body = []
    for name, size in zip(names, sizes, strict=True):
        body.append(f".reg .{REGISTERS[size]} %{name};")
    body.append(".reg .pred %p, %q; .reg .b32 %i, %t, %u; .reg .b64 %address, %offset;")
    body.append("mov.u32 %i, %ctaid.x; mov.u32 %t, %ntid.x; mov.u32 %u, %tid.x;")
    body.append("mad.lo.u32 %i, %i, %t, %u;")

    def address(name: str, size: int) -> None:
        body.append(f"ld.param.u64 %address, [p{name}]; mul.wide.u32 %offset, %i, {size};")
        body.append("add.u64 %address, %address, %offset;")

    for name, size in zip(names, sizes, strict=True):
        if name in "abcd":
            address(name, size)
            body.append(f"ld.global.{TYPES[size]} %{name}, [%address];")
    body.append(code)
    for name, size in zip(names, sizes, strict=True):
        if name in "xy":
            address(name, size)
            body.append(f"st.global.{TYPES[size]} [%address], %{name};")
    lines = "\n".join(body)
    return f"{HEAD}.visible .entry kernel({params})\n{{\n{lines}\nret;\n}}\n"


def run_lanes(
    code: str, inputs: list[np.ndarray], results: list[type | np.dtype], **device: object
) -> list[np.ndarray]:
    """Runs `code` for each element of the inputs; the results as arrays of these types."""
    count = len(inputs[0])
    assert count % 32 == 0
    outputs = [
        np.frombuffer(b"\xa5" * (count * np.dtype(t).itemsize), dtype=t).copy() for t in results
    ]
    ptx = lane_kernel(
        code, [a.dtype.itemsize for a in inputs], [np.dtype(t).itemsize for t in results]
    )
    module = emulator.Device(**device).load_ptx(ptx)
    arguments = [*map(emulator.In, inputs), *map(emulator.Out, outputs)]
    module.launch("kernel", grid=count // 32, block=32, args=arguments)
    return outputs
