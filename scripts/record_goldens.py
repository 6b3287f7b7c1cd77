"""Record what the kernels compute on a GPU: `python -m scripts.record_goldens OUT.npz`.

The file goes to tests/goldens/, where every machine compares the reference with it, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

import abyssal
from abyssal import ops
from tests.goldens.quantize_1x128 import CASES, make_input
from tests.hopper import cases as microkernels
from tests.hopper.case import expected_of
from tests.hopper.gpu_worker import CaseFailed, GpuWorker


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--backend", default="cuda", help="reference: for a rehearsal; its file proves nothing"
    )
    options = parser.parse_args()
    arrays = record(options.backend)
    results, failures = record_microkernels(options.backend)
    partial = options.out.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays, **results)
    partial.replace(options.out)
    print(
        f"{options.out}: {len(CASES)} cases of quantize_1x128 and "
        f"{len(microkernels.CASES) - len(failures)} of the microkernels by {options.backend}"
    )
    for failure in failures:
        print(f"not recorded: {failure}")
    return 1 if failures else 0


def record(backend: str) -> dict[str, np.ndarray]:
    """ "<op>/<case>/codes" and "/scale", and "meta": where they come from, as JSON."""
    device = "cuda" if backend == "cuda" else "cpu"
    arrays = {}
    with abyssal.backend(backend):
        for name, (*_, case_options) in CASES.items():
            result = ops.quantize_1x128(make_input(name).to(device), **case_options)
            arrays[f"quantize_1x128/{name}/codes"] = result.data.view(torch.uint8).cpu().numpy()
            arrays[f"quantize_1x128/{name}/scale"] = result.scale.cpu().contiguous().numpy()
    meta = {
        "backend": backend,
        "device": torch.cuda.get_device_name() if backend == "cuda" else "CPU",
        "abyssal": abyssal.__version__,
        "torch": torch.__version__,
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    return arrays


def record_microkernels(backend: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """ "hopper/<case>/<array>" for each case that gave results, right or wrong, and a sentence for
    each other. reference: what is expected."""
    arrays: dict[str, np.ndarray] = {}
    failures = []
    worker = GpuWorker()
    try:
        for name in microkernels.CASES:
            try:
                if backend == "cuda":
                    results = worker.run(name)
                else:
                    results = expected_of(microkernels.make_case(name))
            except CaseFailed as failure:
                failures.append(str(failure))
                continue
            arrays.update({f"hopper/{name}/{array}": results[array] for array in results})
    finally:
        worker.close()
    return arrays, failures


if __name__ == "__main__":
    sys.exit(main())
