"""What ptxas and the disassembly say of every kernel: the gate that needs no GPU.

A kernel that spills, keeps arrays in local memory or lost its wide loads still computes the right
numbers, only slowly. Each entry point of the build stands in BUDGETS, or the test fails.
"""

import dataclasses
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from abyssal import runtime

try:
    IMAGES = runtime.extension().kernel_images()
except runtime.ExtensionMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

if not IMAGES:
    pytest.skip("this build has no kernels", allow_module_level=True)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an entry point may use, and the instructions it must have, counted in its SASS."""

    registers: int
    instructions: dict[str, int]


# 80 registers are 768 threads on a multiprocessor: 96 KB of loads in flight.
_NORM_BF16 = {"LDG.E.NA.128.CONSTANT": 8, "LDG.E.128.CONSTANT": 24, "STG.E.64": 8}
_NORM_FP32 = {
    "LDG.E.NA.128.CONSTANT": 8,
    "LDG.E.128.CONSTANT": 8,
    "STG.E.NA.128": 8,
    "BAR.SYNC.DEFER_BLOCKING": 1,
}

# 64 registers are 4 blocks of 256 threads on a multiprocessor: 128 KB of loads in flight.
#
# The GEMMs have 384 threads, one block on a multiprocessor: 168 registers each at the launch, which
# setmaxnreg then divides anew. FFMA: one for each sum and block of K, and two of 1x128 scales would
# show as FMUL.
BUDGETS = {
    "fp8_gemm": {
        "fp8_gemm_256x128": Budget(168, {"FFMA": 128}),
        "fp8_gemm_128x192": Budget(168, {"FFMA": 96}),
        "fp8_gemm_128x128": Budget(168, {"FFMA": 64}),
        "fp8_gemm_128x64": Budget(168, {"FFMA": 32}),
        "fp8_gemm_64x128": Budget(168, {"FFMA": 32}),
        "fp8_gemm_64x64": Budget(168, {"FFMA": 16}),
        "fp8_gemm_64x32": Budget(168, {"FFMA": 8}),
        "fp8_gemm_256x128_rows": Budget(168, {"FFMA": 128, "FMUL": 128}),
        "fp8_gemm_128x128_rows": Budget(168, {"FFMA": 64, "FMUL": 64}),
        "fp8_gemm_64x64_rows": Budget(168, {"FFMA": 16, "FMUL": 16}),
    },
    "quantize_1x128": {
        "quantize_1x128_bf16": Budget(64, {"LDG.E.NA.128.CONSTANT": 8, "STG.E.64": 8}),
        "quantize_1x128_fp32": Budget(64, {"LDG.E.NA.128.CONSTANT": 8}),
        "quantize_1x128_bf16_unaligned": Budget(128, {}),
        "quantize_1x128_fp32_unaligned": Budget(128, {}),
    },
    # Stores of 16 bytes are the transposed codes': 4, 2 and 8 a thread.
    "quantize_1x128_both": {
        "quantize_1x128_both_bf16": Budget(
            64,
            {
                "LDG.E.NA.128.CONSTANT": 8,
                "STG.E.64": 8,
                "STG.E.NA.128": 4,
                "BAR.SYNC.DEFER_BLOCKING": 3,
            },
        ),
        "quantize_1x128_both_fp32": Budget(
            64, {"LDG.E.NA.128.CONSTANT": 8, "STG.E.NA.128": 2, "BAR.SYNC.DEFER_BLOCKING": 3}
        ),
        "quantize_1x128_both_bf16_unaligned": Budget(128, {}),
        "quantize_1x128_both_fp32_unaligned": Budget(128, {}),
    },
    "quantize_128x128": {
        "quantize_128x128_bf16": Budget(
            64,
            {
                "LDG.E.NA.128.CONSTANT": 8,
                "STG.E.64": 8,
                "STG.E.NA.128": 4,
                "BAR.SYNC.DEFER_BLOCKING": 2,
            },
        ),
        "quantize_128x128_fp32": Budget(
            64, {"LDG.E.NA.128.CONSTANT": 8, "STG.E.NA.128": 2, "BAR.SYNC.DEFER_BLOCKING": 2}
        ),
        "quantize_128x128_bf16_unaligned": Budget(128, {}),
        "quantize_128x128_fp32_unaligned": Budget(128, {}),
    },
    # 80 registers are 6 blocks of 128 threads: 96 KB of loads in flight.
    "retile_128x1": {
        "retile_128x1": Budget(
            80, {"LDG.E.NA.128.CONSTANT": 8, "STG.E.NA.128": 8, "BAR.SYNC.DEFER_BLOCKING": 3}
        ),
        "retile_128x1_unaligned": Budget(128, {}),
    },
    # Loads with NA are of x, others of 16 bytes of the weight, in either type.
    "rms_norm_quantize": {
        "rms_norm_quantize_bf16_short": Budget(80, {**_NORM_BF16, "BAR.SYNC.DEFER_BLOCKING": 0}),
        "rms_norm_quantize_bf16_short_unaligned": Budget(128, {}),
        "rms_norm_quantize_bf16_long": Budget(80, {**_NORM_BF16, "BAR.SYNC.DEFER_BLOCKING": 1}),
        "rms_norm_quantize_bf16_long_unaligned": Budget(128, {}),
        "rms_norm_quantize_fp32_short": Budget(80, _NORM_FP32),
        "rms_norm_quantize_fp32_short_unaligned": Budget(128, {}),
        "rms_norm_quantize_fp32_long": Budget(80, _NORM_FP32),
        "rms_norm_quantize_fp32_long_unaligned": Budget(128, {}),
    },
    # FADD and FMUL: 9 and 10 a value of the result, 32 a thread. No FMA but the inverses' two,
    # for other bits would follow.
    "swiglu_quantize": {
        "swiglu_quantize": Budget(
            64, {"LDG.E.NA.128.CONSTANT": 8, "STG.E.64": 4, "FADD": 288, "FMUL": 320}
        ),
        "swiglu_quantize_unaligned": Budget(128, {}),
    },
    # Stores of 16 bytes: 4 for each of three transposed matrices.
    "swiglu_quantize_backward": {
        "swiglu_quantize_backward": Budget(
            128,
            {
                "LDG.E.NA.128.CONSTANT": 24,
                "STG.E.64": 16,
                "STG.E.NA.128": 12,
                "SHFL.IDX": 16,
            },
        ),
    },
}
ENTRIES = [(image, entry) for image, entries in BUDGETS.items() for entry in entries]


@dataclasses.dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def read_log(log: str) -> dict[str, Usage]:
    """Each entry point's usage, from ptxas' report."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for 'sm_90a'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return {
        found["name"]: Usage(
            int(found["registers"]), int(found["stack"]), int(found["stores"]), int(found["loads"])
        )
        for found in pattern.finditer(log)
    }


def find_nvdisasm() -> str | None:
    """On the PATH, or in this environment as the PyPI package nvidia-cuda-nvdisasm."""
    installed = (Path(folder) / "nvidia" / "cu13" / "bin" / "nvdisasm" for folder in sys.path)
    return shutil.which("nvdisasm") or next((str(f) for f in installed if f.is_file()), None)


@pytest.fixture(scope="module")
def disassembly(tmp_path_factory):
    """(image, entry) -> how often each opcode, with its modifiers, is in the SASS."""
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        pytest.skip("nvdisasm is not installed (PyPI: nvidia-cuda-nvdisasm)")
    counts = {}
    for name, image in IMAGES.items():
        cubin = tmp_path_factory.mktemp("cubin") / f"{name}.cubin"
        cubin.write_bytes(image["cubin"])
        done = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True)
        for section in re.split(r"^\.section\s+|^\s*\.section\s+", done.stdout, flags=re.M)[1:]:
            found = re.match(r"\.text\.(\w+)", section)
            if found:
                opcodes = re.findall(
                    r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", section
                )
                counts[name, found[1]] = Counter(opcodes)
    return counts


def test_every_entry_point_has_a_budget():
    for name, image in IMAGES.items():
        in_ptx = set(re.findall(r"\.entry\s+(\w+)", image["ptx"]))
        assert in_ptx == set(BUDGETS[name]) == set(read_log(image["ptxas_log"]))
    assert set(IMAGES) == set(BUDGETS)


@pytest.mark.parametrize(("image", "entry"), ENTRIES)
def test_registers_spills_and_stack(image, entry):
    usage = read_log(IMAGES[image]["ptxas_log"])[entry]
    assert usage.registers <= BUDGETS[image][entry].registers
    assert (usage.stack, usage.spill_stores, usage.spill_loads) == (0, 0, 0)


@pytest.mark.parametrize("image", BUDGETS)
def test_ptxas_repaired_nothing(image):
    """C75xx: ptxas serialised WGMMA or ignored setmaxnreg. It calls that information."""
    log = IMAGES[image]["ptxas_log"]
    assert "(C75" not in log and "warning" not in log


@pytest.mark.parametrize(("image", "entry"), ENTRIES)
def test_instructions(image, entry, disassembly):
    counts = disassembly[image, entry]
    assert sum(counts.values()) > 50, "the disassembly was not understood"
    local = {opcode for opcode in counts if opcode.startswith(("LDL", "STL"))}
    assert not local
    for opcode, expected in BUDGETS[image][entry].instructions.items():
        assert counts[opcode] == expected, counts


@pytest.mark.parametrize(("image", "entry"), ENTRIES)
def test_matrix_products(image, entry, disassembly):
    """Every wgmma of the PTX is one instruction, and waits only where the source says so."""
    body = re.split(rf"\.entry\s+{entry}\b", IMAGES[image]["ptx"])[1].split(".entry")[0]
    counts = disassembly[image, entry]

    def in_sass(prefix):
        return sum(n for opcode, n in counts.items() if opcode.startswith(prefix))

    assert in_sass(("QGMMA", "HGMMA", "IGMMA")) == len(re.findall(r"wgmma\.mma_async", body))
    assert in_sass("WARPGROUP.DEPBAR") == len(re.findall(r"wgmma\.wait_group", body))


@pytest.mark.parametrize("image", BUDGETS)
def test_source_paths_are_relative(image):
    """Line tables name our files from the repository's root, and no build machine's folder."""
    ptx = IMAGES[image]["ptx"]
    files = re.findall(r'^\s*\.file\s+\d+\s+"([^"]+)"', ptx, flags=re.MULTILINE)
    assert any(file.startswith("csrc/") for file in files)
    assert not any(file.startswith("/") for file in files)
    assert ".target sm_90a" in ptx


def test_the_page_of_the_quantisers_has_the_builds_figures():
    """Registers no more than it says (another nvcc may need fewer), threads and shared memory."""
    page = (Path(__file__).parents[2] / "docs" / "kernels" / "quantisers.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| ([\d,]+)( \(dynamic\))? \|$", page, re.M)
    named = {entry: (int(registers), threads) for entry, threads, registers, *_ in rows}
    entries = [(image, entry) for image, entry in ENTRIES if image != "fp8_gemm"]
    assert set(named) == {entry for _, entry in entries}
    for image, entry in entries:
        registers, threads = named[entry]
        assert read_log(IMAGES[image]["ptxas_log"])[entry].registers <= registers
        declared = re.split(rf"\.entry\s+{entry}\b", IMAGES[image]["ptx"])[1]
        assert re.search(r"\.maxntid (\d+)", declared)[1] == threads


def test_the_log_reader_can_fail():
    log = next(iter(IMAGES.values()))["ptxas_log"].replace(
        "0 bytes spill loads", "4 bytes spill loads"
    )
    assert all(usage.spill_loads == 4 for usage in read_log(log).values())
