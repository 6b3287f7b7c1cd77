"""Cycles of single instructions on a GPU: what the emulator's timing mode is calibrated with.

    python -m benchmarks.bench_microkernels [--out results.json] [--quick]

Tensor cores alone and beside copies and FFMA, two warpgroups in turn, TMA latency and rate from
memory and from L2, with one block and with all, with and without multicast, stores, barriers. The
clock is logged beside it and left alone: cycles are those of the multiprocessor. There is nothing
to compare with and nothing on the CPU: `python -m benchmarks` passes over it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Case, query_gpu
from tests.hopper import compiler
from tests.hopper.gpu import DriverError, GpuDevice

OP = "microkernels"

MULTIPROCESSORS = 16  # CUdevice_attribute
STAGE_BYTES = 16384
BOX_ROWS, BOX_BYTES = 128, 16384
# Of the kernels' structs, rounded up.
TENSOR_CORE_SHARED = 8192 + 32768 + 4 * STAGE_BYTES + 1024
MEMORY_SHARED = 4 * BOX_BYTES + 1024

SHAPES = [(kind, n) for kind in ("e4m3", "bf16") for n in (64, 128, 192, 256)]
COMPANY = ("alone", "loads", "fma", "fma_half", "fma_quarter")


def cases(device: Any, quick: bool) -> Iterator[Case]:
    """Nothing that the harness could time."""
    yield from ()


class Timings:
    """device: of tests/hopper/case.py. quick: the fewest repetitions, to see that all runs."""

    def __init__(self, device: Any, num_sms: int, quick: bool, load: Any) -> None:
        self.device = device
        self.num_sms = num_sms
        self.repeats = 2 if quick else 256
        self.rounds = 1 if quick else 5
        self.tensor_cores = load("tensor_core_timing")
        self.memory = load("memory_timing")

    def run(self) -> Iterator[tuple[str, Any]]:
        """(name, result) as each is measured; cycles unless the name says otherwise."""
        for kind, n in SHAPES:
            for company in range(len(COMPANY)):
                name = f"wgmma_{kind}_n{n}/{COMPANY[company]}"
                yield name, self.products(kind, n, company)
            yield f"wgmma_{kind}_n{n}/two_warpgroups", self.turns(kind, n)
        yield "instructions", self.instructions()
        yield from self.copies()
        yield "clock", self.clock()

    # Tensor cores --------------------------------------------------------------------------------

    def products(self, kind: str, n: int, company: int) -> dict[str, float]:
        """Of one instruction, by the median of the rounds; what the company did meanwhile."""
        groups = self.repeats
        samples = []
        for _ in range(self.rounds):
            out = self.launch(
                self.tensor_cores,
                f"time_wgmma_{kind}_n{n}",
                [np.zeros(2**20, np.uint8), np.int32(groups), np.int32(company)],
                np.zeros(3, np.int64),
                block=256,
                shared_bytes=TENSOR_CORE_SHARED,
            )
            samples.append(out)
        cycles, loaded, fmas = np.median(np.stack(samples), axis=0)
        return {
            "per_instruction": cycles / (4 * groups),
            "loaded_bytes_per_cycle": loaded / max(cycles, 1),
            "fma_per_thread_and_cycle": fmas / max(cycles, 1),
        }

    def turns(self, kind: str, n: int) -> list[list[list[int]]]:
        """[warpgroup][group][begin, end], from the first begin on."""
        groups = min(self.repeats, 16)
        out = self.launch(
            self.tensor_cores,
            f"time_turns_{kind}_n{n}",
            [np.int32(groups)],
            np.zeros((2, groups, 2), np.int64),
            block=256,
            shared_bytes=TENSOR_CORE_SHARED,
        )
        return (out - out.min()).tolist()

    # Copies --------------------------------------------------------------------------------------

    def copies(self) -> Iterator[tuple[str, Any]]:
        """From a tensor that L2 cannot hold (memory) and from one that it can (l2)."""
        boxes = self.repeats
        for place, all_boxes in (("memory", 8 if boxes < 8 else 16384), ("l2", 8)):
            yield f"tma_latency/{place}", self.tma_latency(min(boxes, all_boxes), all_boxes)
            for blocks in (1, self.num_sms):
                arguments = (boxes, all_boxes, blocks)
                yield f"tma_load/{place}/{blocks}_blocks", self.rate("loads", *arguments)
                yield f"tma_store/{place}/{blocks}_blocks", self.rate("stores", *arguments)
                yield (
                    f"tma_store_and_load/{place}/{blocks}_blocks",
                    self.rate("stores", *arguments, with_loads=1),
                )
            yield (
                f"tma_multicast/{place}/{self.num_sms // 2 * 2}_blocks",
                self.rate("multicast", boxes, all_boxes, self.num_sms // 2 * 2),
            )

    def tma_latency(self, boxes: int, all_boxes: int) -> dict[str, float]:
        tensor = self.tensor(all_boxes)
        result = {}
        # The second pass finds in L2 what the first has brought there.
        for turn in ("first", "second"):
            out = self.launch(
                self.memory,
                "time_tma_latency",
                [self.map(tensor), np.int32(boxes)],
                np.zeros(boxes, np.int64),
                sink=False,
                shared_bytes=MEMORY_SHARED,
            )
            result[turn] = float(np.median(out))
        return result

    def rate(
        self, what: str, boxes: int, all_boxes: int, blocks: int, with_loads: int | None = None
    ) -> dict[str, float]:
        """Bytes a cycle of a multiprocessor, and of the GPU a nanosecond (GB/s)."""
        tensor = self.tensor(all_boxes)
        rows = BOX_ROWS // 2 if what == "multicast" else BOX_ROWS
        arguments = [self.map(tensor, rows)]
        if what == "stores":
            arguments.append(self.map(self.tensor(all_boxes)))
        arguments += [np.int32(boxes), np.int32(all_boxes)]
        if what == "stores":
            arguments.append(np.int32(with_loads or 0))
        samples = []
        for _ in range(self.rounds):
            out = self.launch(
                self.memory,
                f"time_tma_{what}",
                arguments,
                np.zeros((blocks, 2), np.int64),
                sink=False,
                grid=blocks,
                cluster=2 if what == "multicast" else 1,
                shared_bytes=MEMORY_SHARED,
            )
            samples.append(out)
        cycles, nanoseconds = np.median(np.stack(samples), axis=(0, 1))
        each = boxes * BOX_BYTES
        return {
            "bytes_per_cycle_and_sm": each / max(cycles, 1),
            "gigabytes_per_second": each * blocks / max(nanoseconds, 1),
        }

    # The rest ------------------------------------------------------------------------------------

    def instructions(self) -> dict[str, float]:
        """Of one of 64 in a row, less an empty loop."""
        names = ["try_wait", "arrive", "bar_sync_128", "stmatrix_x4", "ld_shared", "ex2", "fma"]
        samples = []
        for _ in range(self.rounds):
            out = self.launch(
                self.memory, "time_instructions", [], np.zeros(8, np.int64), block=128
            )
            samples.append(out)
        cycles = np.median(np.stack(samples), axis=0)
        return {name: (cycles[i] - cycles[7]) / 64 for i, name in enumerate(names)}

    def clock(self) -> dict[str, float]:
        """MHz: cycles beside nanoseconds over about a millisecond at each sample."""
        steps = 400_000 if self.repeats > 2 else 100
        samples = []
        for _ in range(self.rounds):
            out = self.launch(
                self.memory, "time_clock", [np.int32(steps)], np.zeros((1, 2), np.int64), block=1
            )
            samples.append(1e3 * out[0, 0] / max(out[0, 1], 1))
        return {"megahertz": statistics.median(samples)}

    # Launches ------------------------------------------------------------------------------------

    def tensor(self, all_boxes: int) -> np.ndarray:
        return np.zeros((all_boxes * BOX_ROWS, 128), np.uint8)

    def map(self, tensor: np.ndarray, rows: int = BOX_ROWS) -> Any:
        return self.device.tensor_map(
            self.device.upload(tensor, "inout"),
            (rows, 128),
            128,
            shape=tensor.shape,
            strides=tensor.strides,
            kind="uint8",
            element_strides=(1, 1),
            fill="zeros",
        )

    def launch(
        self,
        module: Any,
        name: str,
        arguments: list[Any],
        out: np.ndarray,
        *,
        sink: bool = True,
        grid: int = 1,
        block: int = 128,
        cluster: int = 1,
        shared_bytes: int = 0,
    ) -> np.ndarray:
        """`out` as the kernel leaves it; the kernel's last arguments are it and the sink."""
        values = [
            self.device.upload(a, "inout") if isinstance(a, np.ndarray) else a for a in arguments
        ]
        result = self.device.upload(out, "inout")
        values.append(result)
        if sink:
            values.append(self.device.upload(np.zeros(grid * block, np.float32), "inout"))
        module.launch(
            name,
            grid,
            block,
            values,
            cluster=cluster,
            shared_bytes=shared_bytes,
            dependent=False,
        )
        return self.device.download(result, out)


class PowerLog:
    """Clock, power and temperature every 10 ms while it is open, where there is nvidia-smi."""

    QUERY = "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu"

    def __enter__(self) -> PowerLog:
        self._file = tempfile.TemporaryFile("w+")
        command = ["nvidia-smi", f"--query-gpu={self.QUERY}", "--format=csv,noheader", "-lms", "10"]
        try:
            self._process: subprocess.Popen | None = subprocess.Popen(
                command, stdout=self._file, stderr=subprocess.DEVNULL
            )
        except OSError:
            self._process = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._file.seek(0)
        self.lines = self._file.read().splitlines()
        self._file.close()


def load_cubin(device: GpuDevice, stem: str) -> Any:
    path = compiler.TIMING_KERNELS / f"{stem}.cu"
    return device.load_cubin(compiler.compile_kernels(str(path)).cubin)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--quick", action="store_true", help="the fewest repetitions")
    options = parser.parse_args(arguments)
    try:
        device = GpuDevice()
        num_sms = device.attribute(MULTIPROCESSORS)
        timings = Timings(device, num_sms, options.quick, lambda stem: load_cubin(device, stem))
    except (DriverError, compiler.CompilerMissing) as error:
        print(f"bench_microkernels: {error}", file=sys.stderr)
        return 2
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device.name,
        "driver": device.driver_version,
        "multiprocessors": num_sms,
        "gpu_state": query_gpu(),
        "results": {},
    }
    with PowerLog() as log:
        for name, result in timings.run():
            report["results"][name] = result
            print(name, json.dumps(result)[:160], flush=True)
            device.free()
            write(report, options.out)  # whatever ends the run, this much is measured
    report["power_log"] = {"columns": PowerLog.QUERY, "rows": log.lines}
    write(report, options.out)
    return 0


def write(report: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
