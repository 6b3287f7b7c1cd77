"""Run Hopper kernels on a CPU: the PTX that nvcc wrote, executed instruction by instruction.

    device = emulator.Device()
    module = device.load_ptx(open("kernel.ptx").read())
    module.launch("scale", grid=4, block=256, args=[x, emulator.Out(y), 3.0])

See docs/emulator.md.
"""

from abyssal.emulator.counters import Counters
from abyssal.emulator.device import (
    Cluster,
    Device,
    EmulatorError,
    In,
    InOut,
    Module,
    Out,
    TensorMap,
    concurrent,
)
from abyssal.emulator.tensor_core import tensor_core

__all__ = [
    "Cluster",
    "Counters",
    "Device",
    "EmulatorError",
    "In",
    "InOut",
    "Module",
    "Out",
    "TensorMap",
    "concurrent",
    "tensor_core",
]
