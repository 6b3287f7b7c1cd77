"""Launch description of gemm.cu, for mutation testing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from abyssal.emulator import In, InOut, Out

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[3]))

from tests.hopper import compiler, numerics  # noqa: E402

num_sms = 2


def ptx():
    return {"gemm": compiler.compile_kernels(str(FOLDER / "gemm.cu")).ptx}


def gemm(load, random):
    """Two tiles for each of two blocks, three steps of K; integers, so that sums are exact."""
    module = load()
    form = numerics.FORMATS["e4m3"]
    tiles, steps = 4, 3
    a = form.encode(random.integers(-3, 4, (64 * tiles, 64 * steps)))
    b = form.encode(random.integers(-3, 4, (64, 64 * steps)))
    c = torch.full((64 * tiles, 64), torch.nan, dtype=torch.bfloat16)
    maps = [
        module.device.tensor_map(In(a), (64, 64), 64),
        module.device.tensor_map(In(b), (32, 64), 64),
        module.device.tensor_map(Out(c), (64, 64)),
    ]
    module.launch("gemm", 2, 160, [*maps, tiles, steps], cluster=2)
    exact = form.decode(a) @ form.decode(b).T
    # Cut to BF16, as the kernel does.
    expected = (exact.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(c.view(torch.uint16).numpy(), expected)
    return {"c": c.view(torch.uint16).numpy()}


def split_sum(load, random):
    parts, columns = 3, 64
    values = random.integers(-1000, 1000, (parts, columns), np.int32)
    result = np.full(columns, -1, np.int32)
    arguments = [
        In(values),
        Out(np.full_like(values, -1)),
        InOut(np.zeros(columns // 32, np.uint32)),
        Out(result),
    ]
    load().launch("split_sum", (columns // 32, parts), 64, arguments)
    return {"out": result}


launches = {"gemm": gemm, "split_sum": split_sum}
