"""The emulator as a `Device` of the microkernels' cases."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from abyssal import emulator

_ROLES = {"in": emulator.In, "out": emulator.Out, "inout": emulator.InOut}
_TYPES = {
    "uint8": torch.uint8,
    "int32": torch.int32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
}


class EmulatorDevice:
    """options: of emulator.Device (policy, seed, strict)."""

    def __init__(self, **options: Any) -> None:
        self.device = emulator.Device(**options)

    def load_ptx(self, text: str) -> EmulatorModule:
        return EmulatorModule(self.device.load_ptx(text))

    def queue(self) -> AbstractContextManager[None]:
        return emulator.concurrent()

    def upload(self, values: np.ndarray, role: str) -> Any:
        memory = values.copy()
        if role == "out":
            memory.reshape(-1).view(np.uint8)[:] = 0xA5
        return _ROLES[role](memory)

    def download(self, buffer: Any, like: np.ndarray) -> np.ndarray:
        return buffer.array

    def tensor_map(
        self,
        buffer: Any,
        box: tuple[int, ...],
        swizzle: int,
        *,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        kind: str,
        element_strides: tuple[int, ...],
        fill: str,
    ) -> Any:
        window = np.lib.stride_tricks.as_strided(buffer.array, shape, strides)
        return self.device.tensor_map(
            type(buffer)(window),
            box,
            swizzle,
            element_strides=element_strides,
            fill_nan=fill == "nan",
            dtype=_TYPES[kind],
        )


class EmulatorModule:
    def __init__(self, module: Any) -> None:
        self.module = module

    def launch(
        self,
        name: str,
        grid: int,
        block: int,
        args: list[Any],
        *,
        cluster: int,
        shared_bytes: int,
        dependent: bool,
    ) -> None:
        self.module.launch(
            name,
            grid,
            block,
            args,
            cluster=cluster if cluster > 1 else None,
            shared_bytes=shared_bytes,
            dependent=dependent,
        )
