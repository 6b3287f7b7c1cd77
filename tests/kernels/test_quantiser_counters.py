"""What the emulator counts of the quantisers that go through shared memory, and of the producers
with one behind them: no bank conflicts, and hardly a sector of global memory that is not needed."""

import numpy as np
import pytest

from abyssal import runtime
from tests.kernels import quantiser_launches

try:
    PTX = quantiser_launches.ptx()
except runtime.ExtensionMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)
if not PTX:
    pytest.skip("this build has no kernels", allow_module_level=True)

from abyssal.emulator import Device

ROWS, COLUMNS = 256, 384
OFFSETS = np.array([0, ROWS], np.int32)


def values(dtype):
    x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    x = x if dtype == "fp32" else (x.view(np.uint32) >> 16).astype(np.uint16)
    return quantiser_launches.aligned(x)


def both(load, dtype):
    return quantiser_launches.both(load, values(dtype), OFFSETS, dtype)


def weights(load, dtype):
    return quantiser_launches.weights(load, values(dtype)[None], dtype)


def retile(load, dtype):
    codes = quantiser_launches.aligned(values("bf16").view(np.uint8)[:, :COLUMNS])
    scale = quantiser_launches.aligned(np.ones((COLUMNS // 128, ROWS), np.float32))
    return quantiser_launches.retile(load, codes, scale, OFFSETS)


def rms_norm(load, dtype):
    weight = quantiser_launches.aligned(values(dtype)[0])
    return quantiser_launches.rms_norm(load, values(dtype), weight, f"{dtype}_short")


def swiglu_backward(load, dtype):
    gate_up = np.concatenate([values(dtype), values(dtype)], axis=1)
    of_rows = quantiser_launches.aligned(np.ones(ROWS, np.float32))
    return quantiser_launches.swiglu_backward(
        load, values(dtype), quantiser_launches.aligned(gate_up), of_rows, OFFSETS
    )


# `others`: bytes beside x for each of its values.
@pytest.mark.parametrize(
    ("kernel", "launch", "dtype", "others"),
    [
        ("quantize_1x128_both", both, "bf16", 2),
        ("quantize_1x128_both", both, "fp32", 2),
        ("quantize_128x128", weights, "bf16", 2),
        ("quantize_128x128", weights, "fp32", 2),
        ("retile_128x1", retile, "fp8", 1),
        # Codes, normalised values, the weight for each row.
        ("rms_norm_quantize", rms_norm, "fp32", 1 + 4 + 4),
        # Of dy: gates and ups, codes of both and of h.
        ("swiglu_quantize_backward", swiglu_backward, "bf16", 4 + 5),
    ],
)
def test_no_bank_conflicts_and_few_sectors(kernel, launch, dtype, others):
    module = Device().load_ptx(PTX[kernel])
    launch(lambda stem: module, dtype)
    counted = module.counters.instructions
    shared = [i for i in counted if i.ideal_wavefronts]
    assert shared and all(i.shared_wavefronts == i.ideal_wavefronts for i in shared), (
        module.counters
    )
    value_bytes = {"bf16": 2, "fp32": 4, "fp8": 1}[dtype]
    needed = ROWS * COLUMNS * (value_bytes + others) / 32
    sectors = sum(i.global_sectors for i in counted)
    # Scales, offsets, and stores of 16 bytes whose other half of a sector comes with the next.
    assert needed < sectors <= 1.2 * needed
