"""How a kernel is timed beside its peers.

One *case* is an op on inputs of one shape. Its *contenders* (our kernel, PyTorch, a peer) are run
on the same inputs in the same process. On a GPU, each contender's launches over several copies of
the inputs (more than the L2 cache holds together) are recorded into a CUDA graph, which is replayed
between two events: neither Python nor launch latency is part of the time, and data come from
memory. Contenders take turns in rounds, so that a clock that drifts hits all of them.

A benchmark file gives `OP` and `cases(device)`; the rest is here.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import abyssal
from abyssal import runtime

Inputs = tuple[Any, ...]
Contender = Callable[..., Any]

# Together, the copies of the inputs and outputs exceed every cache (H200: 60 MB of L2), unless the
# most copies are still too few: below 0.9 MiB a case, it stays in L2.
BYTES_IN_ROTATION = 256 * 2**20
MOST_COPIES = 64
ROUNDS = 5
REPLAYS = 10

# FP8 operations a second without sparsity, of the datasheet of H100 and H200 (SXM): the roofline's.
FP8_PEAK = 1979e12

# What our contender is called, unless a case says otherwise.
OURS = "abyssal"

QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"


@dataclasses.dataclass(frozen=True)
class Case:
    """An op on one shape.

    make_inputs(seed): fresh random inputs, buffers for outputs included. bytes_moved: the least
    that must be read and written once. operations: multiplications and additions on tensor cores, 0
    if they do not matter. contenders: name -> function of those inputs. check(inputs):
    raises AssertionError unless our result is right. ours: the contender that the others are
    compared with, and that must not fail.
    """

    label: str
    make_inputs: Callable[[int], Inputs]
    bytes_moved: int
    contenders: dict[str, Contender]
    check: Callable[..., None]
    ours: str = OURS
    operations: int = 0


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds a call: the median over all replays, and the median of each round."""

    microseconds: float
    rounds: list[float]

    @property
    def spread(self) -> float:
        """(slowest - fastest round) / median: smaller differences are noise."""
        return (max(self.rounds) - min(self.rounds)) / self.microseconds


def assert_same_bits(result: Any, expected: list[Tensor]) -> None:
    """result: a tensor or BlockScaled, or a tuple of them; expected: their parts, in order."""
    parts: list[Tensor] = []
    for matrix in result if isinstance(result, tuple) else (result,):
        parts += [matrix] if isinstance(matrix, Tensor) else [matrix.data, matrix.scale]
    for part, wanted in zip(parts, expected, strict=True):
        if part.dtype == torch.float8_e4m3fn:
            part, wanted = part.view(torch.uint8), wanted.view(torch.uint8)
        assert torch.equal(part, wanted)


def run_case(case: Case, device: torch.device, *, sustained: float = 0.0) -> dict[str, Any]:
    """Check our result, then time all contenders. One that fails is recorded under "failures", ours
    too: `failed_cases` finds it. sustained: seconds for which a contender runs before each of its
    rounds, so that clocks are those that its power allows."""
    copies = min(MOST_COPIES, max(2, BYTES_IN_ROTATION // case.bytes_moved))
    if device.type == "cpu":
        copies = 2
    rotation = [case.make_inputs(seed) for seed in range(copies)]
    case.check(*rotation[0])
    timers: dict[str, Callable[[], list[float]]] = {}
    failures: dict[str, str] = {}
    for name, contender in case.contenders.items():
        try:
            make_timer = _graph_timer if device.type == "cuda" else _host_timer
            timers[name] = make_timer(contender, rotation)
        except Exception as error:  # of any kind: the other contenders still count
            failures[name] = f"{type(error).__name__}: {error}"
    samples: dict[str, list[list[float]]] = {name: [] for name in timers}
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            end = time.perf_counter() + sustained
            while time.perf_counter() < end:
                timer()
            samples[name].append(timer())
    timings = {name: summarise(rounds) for name, rounds in samples.items()}
    return {
        "label": case.label,
        "ours": case.ours,
        "bytes_moved": case.bytes_moved,
        "operations": case.operations,
        "contenders": {
            name: {
                "microseconds": timing.microseconds,
                "spread": timing.spread,
                "bytes_per_second": case.bytes_moved / timing.microseconds * 1e6,
                "operations_per_second": case.operations / timing.microseconds * 1e6,
            }
            for name, timing in timings.items()
        },
        "failures": failures,
    }


def summarise(rounds: list[list[float]]) -> Timing:
    """From microseconds of each replay of each round."""
    return Timing(
        microseconds=statistics.median(sample for round_ in rounds for sample in round_),
        rounds=[statistics.median(round_) for round_ in rounds],
    )


def _graph_timer(contender: Contender, rotation: list[Inputs]) -> Callable[[], list[float]]:
    """Returns a function that times REPLAYS replays: microseconds a call of each."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # warm-up: loading, compiling, the allocator's blocks
        for inputs in rotation[:3]:
            contender(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for inputs in rotation:
            contender(*inputs)
    graph.replay()
    torch.cuda.synchronize()

    def timer() -> list[float]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
        graph.replay()  # the clock is up when the first event is recorded
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        milliseconds = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
        return [1e3 * total / len(rotation) for total in milliseconds]

    return timer


def _host_timer(contender: Contender, rotation: list[Inputs]) -> Callable[[], list[float]]:
    contender(*rotation[0])

    def timer() -> list[float]:
        samples = []
        for _ in range(REPLAYS):
            begin = time.perf_counter()
            for inputs in rotation:
                contender(*inputs)
            samples.append(1e6 * (time.perf_counter() - begin) / len(rotation))
        return samples

    return timer


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy: the ceiling for what memory bounds."""
    size = 2**30 if device.type == "cuda" else 2**26

    def make_inputs(seed: int) -> Inputs:
        generator = torch.Generator(device=device).manual_seed(seed)
        values = torch.randint(256, (size,), device=device, generator=generator, dtype=torch.uint8)
        return values, torch.empty_like(values)

    case = Case(
        label="copy",
        make_inputs=make_inputs,
        bytes_moved=2 * size,
        contenders={"torch": lambda source, target: target.copy_(source)},
        check=lambda source, target: None,
        ours="torch",
    )
    return float(run_case(case, device)["contenders"]["torch"]["bytes_per_second"])


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a result must be read with."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "abyssal": abyssal.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": runtime.report()["backends"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "measured_on_gpu": device.type == "cuda",
        "gpu_state": query_gpu(),
    }


def query_gpu() -> dict[str, str] | None:
    """Clocks, power and temperature at this moment, as nvidia-smi says; None without it."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = done.stdout.splitlines()[0].split(", ")
    return dict(zip(QUERY.split(","), values, strict=False))


def failed_cases(results: list[dict[str, Any]]) -> list[str]:
    """The labels of the cases in which our own contender failed."""
    return [result["label"] for result in results if result["ours"] in result["failures"]]


def geometric_means(results: list[dict[str, Any]]) -> dict[str, float]:
    """Of each contender's times over ours, over the cases that both finished."""
    ratios: dict[str, list[float]] = {}
    for result in results:
        ours = result["contenders"].get(result["ours"])
        for name, timing in result["contenders"].items():
            if ours is not None and name != result["ours"]:
                ratio = timing["microseconds"] / ours["microseconds"]
                ratios.setdefault(name, []).append(ratio)
    return {name: statistics.geometric_mean(values) for name, values in ratios.items()}


def table_rows(result: dict[str, Any], ceiling: float) -> Iterator[str]:
    """A line for each contender: time, its spread, share of the copy's rate, our speed-up."""
    ours = result["contenders"].get(result["ours"])
    for name, timing in result["contenders"].items():
        row = (
            f"{result['label']:<32} {name:<16} {timing['microseconds']:10.2f} us "
            f"(spread {timing['spread']:4.0%})  {timing['bytes_per_second'] / 1e9:8.1f} GB/s "
            f"{timing['bytes_per_second'] / ceiling:5.0%} of a copy"
        )
        if result["operations"]:
            floor = max(result["operations"] / FP8_PEAK, result["bytes_moved"] / ceiling)
            row += (
                f"  {timing['operations_per_second'] / 1e12:7.1f} TFLOP/s "
                f"{floor / timing['microseconds'] * 1e6:5.0%} of the roofline"
            )
        if ours is not None:
            row += f"  {timing['microseconds'] / ours['microseconds']:6.2f}x our time"
        yield row
    for name, failure in result["failures"].items():
        yield f"{result['label']:<32} {name:<16} failed: {failure}"
