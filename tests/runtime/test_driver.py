"""The driver table and the launcher, against a stand-in for libcuda that writes down its calls."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from abyssal import runtime

SOURCE = Path(__file__).with_name("fake_driver.cpp")

try:
    IMAGES = runtime.extension().kernel_images()
except runtime.ExtensionMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

# Every kernel of the build, and the bytes of its struct.
PARAMS = {
    name: bytes_
    for image in IMAGES.values()
    for name, bytes_ in re.findall(r"\.param \.align \d+ \.b8 (\w+)_param_0\[(\d+)\]", image["ptx"])
}

pytestmark = pytest.mark.skipif(not IMAGES, reason="this build has no kernels")

PRELUDE = """
import ctypes, json, os, sys, threading
from abyssal import _extension as extension
fake = ctypes.CDLL("libcuda.so.1")
fake.fake_calls.restype = ctypes.c_char_p
fake.fake_set_context.argtypes = [ctypes.c_size_t]
def calls():
    return fake.fake_calls().decode().splitlines()
def quantize(device=0, stream=0, x=4096, bf16=True, codes=8192, scale=16384, stride=256, pitch=36,
             rows=33, columns=256, floor=1.0, pow2=True):
    extension.quantize_1x128(device, stream, x, bf16, codes, scale, stride, pitch, rows, columns,
                             floor, pow2)
def sentence(function, *arguments):
    try:
        function(*arguments)
    except extension.DeviceError as error:
        return str(error)
"""


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory):
    """A folder that holds the stand-in as libcuda.so.1."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to build the stand-in with")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    command = [compiler, "-std=c++17", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def run(fake_driver):
    """Run Python code in a process with that driver; returns what it printed as JSON."""

    sizes = "".join(f" {name}={bytes_}" for name, bytes_ in PARAMS.items())

    def run(code: str, **environment: str):
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + code],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(fake_driver),
                "FAKE_PARAMS_BYTES": sizes,
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_a_launch(run):
    """Image, kernel and function are loaded once; then a launch is one call."""
    first, second = run("""
quantize(stream=77)
first = calls()
quantize(stream=78, rows=32, columns=513, stride=520, pow2=False)
print(json.dumps([first, calls()]))
""")
    assert first == [
        "cuInit",
        "cuDevicePrimaryCtxRetain 10",
        "cuCtxPushCurrent 256",
        # 2: relaxed, so that both work while the thread captures a graph.
        "cuLibraryLoadData elf mode 2",
        "cuLibraryGetKernel quantize_1x128_bf16",
        "cuKernelGetFunction context 256 mode 2",
        # 33 rows are 2 blocks; 256 columns are 2 tiles, one block of 4.
        "cuLaunchKernelEx quantize_1x128_bf16 grid 2 1 1 block 256 1 1 shared 0 stream 77 "
        "attributes 0 extra 0 context 256 x 4096 codes 8192 scale 16384 strides 256 36 "
        "shape 33 256 floor 3f800000 pow2 1",
        "cuCtxPopCurrent",
    ]
    # Odd columns: the codes of a row start anywhere.
    assert second == [
        "cuCtxPushCurrent 256",
        "cuLibraryGetKernel quantize_1x128_bf16_unaligned",
        "cuKernelGetFunction context 256 mode 2",
        "cuLaunchKernelEx quantize_1x128_bf16_unaligned grid 2 1 1 block 256 1 1 shared 0 "
        "stream 78 attributes 0 extra 0 context 256 x 4096 codes 8192 scale 16384 "
        "strides 520 36 shape 32 513 floor 3f800000 pow2 0",
        "cuCtxPopCurrent",
    ]


@pytest.mark.parametrize(
    ("arguments", "entry"),
    [
        ("bf16=False", "quantize_1x128_fp32"),
        ("bf16=False, stride=257", "quantize_1x128_fp32_unaligned"),
        ("bf16=False, columns=254", "quantize_1x128_fp32_unaligned"),
        ("x=4098", "quantize_1x128_bf16_unaligned"),
        ("codes=8196", "quantize_1x128_bf16_unaligned"),
        ("stride=260", "quantize_1x128_bf16_unaligned"),
        ("columns=8", "quantize_1x128_bf16"),
        ("stride=0", "quantize_1x128_bf16"),
    ],
)
def test_the_variant_fits_the_alignment(run, arguments, entry):
    calls = run(f"quantize({arguments}); print(json.dumps(calls()))")
    assert f"cuLibraryGetKernel {entry}" in calls


def test_no_rows_no_launch(run):
    assert run("quantize(rows=0); print(json.dumps(calls()))") == ["cuInit"]


def test_the_devices_own_context_stays(run):
    """0x101 is current and is device 1's: nothing is pushed for device 1, its own for device 0."""
    ours, others = run("""
extension.load_kernels(0)
fake.fake_set_context(0x101)
calls()
quantize(device=1)
ours = calls()
quantize(device=0)
print(json.dumps([ours, calls()]))
""")
    assert not any("CtxPush" in call or "CtxPop" in call or "Retain" in call for call in ours)
    assert any("context 257" in call for call in ours if "Launch" in call)
    assert others[0] == "cuCtxPushCurrent 256" and others[-1] == "cuCtxPopCurrent"
    assert "context 256" in others[1]


def test_kernels_are_loaded_for_each_device_and_images_once(run):
    calls = run("""
extension.load_kernels(0); extension.load_kernels(1); extension.load_kernels(1)
print(json.dumps(calls()))
""")
    assert len([call for call in calls if call.startswith("cuLibraryLoadData")]) == len(IMAGES)
    kernels = Counter(call.split()[1] for call in calls if call.startswith("cuLibraryGetKernel"))
    assert kernels == dict.fromkeys(PARAMS, 2)
    functions = [call for call in calls if call.startswith("cuKernelGetFunction")]
    assert len(functions) == 2 * len(PARAMS)
    assert len([call for call in calls if "Retain" in call]) == 2


def test_threads(run):
    """Threads have no context of their own; each gets the device's for its launches."""
    calls = run("""
threads = [threading.Thread(target=lambda: [quantize() for _ in range(50)]) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(calls()))
""")
    launches = [call for call in calls if call.startswith("cuLaunchKernelEx")]
    assert len(launches) == 400 and all("context 256" in call for call in launches)
    assert sum(call.startswith("cuLibraryLoadData") for call in calls) == 1


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            {"FAKE_DRIVER_VERSION": "12080"},
            "the NVIDIA driver supports CUDA 12.8; the kernels need driver R580 (CUDA 13.0) or "
            "newer",
        ),
        (
            {"FAKE_DRIVER_FAIL": "cuInit"},
            "initialising the NVIDIA driver failed: unknown error (CUDA_ERROR_UNKNOWN)",
        ),
        (
            {"FAKE_DRIVER_FAIL": "cuLaunchKernelEx"},
            "launching quantize_1x128_bf16 failed: unknown error (CUDA_ERROR_UNKNOWN)",
        ),
        (
            {"FAKE_DRIVER_FAIL": "cuLibraryLoadData"},
            "loading the kernel image quantize_1x128 failed: unknown error (CUDA_ERROR_UNKNOWN)",
        ),
        (
            {"FAKE_PARAMS_BYTES": " quantize_1x128_bf16=48"},
            "quantize_1x128_bf16 takes 48 bytes of parameters and the host has 56: a broken build",
        ),
    ],
)
def test_failures_are_one_sentence_each_time(run, environment, sentence):
    code = "print(json.dumps([sentence(quantize), sentence(quantize)]))"
    assert run(code, **environment) == [sentence, sentence]


def test_a_failed_launch_leaves_no_context_behind(run):
    code = """
sentence(quantize)
current = ctypes.c_size_t(7)
fake.cuCtxGetCurrent(ctypes.byref(current))
print(json.dumps(current.value))
"""
    assert run(code, FAKE_DRIVER_FAIL="cuLaunchKernelEx") == 0


def test_after_a_fork(run):
    answers = run("""
quantize()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, (sentence(quantize) or "launched").encode())
    os._exit(0)
os.wait()
child = os.read(read, 1000).decode()
quantize()
print(json.dumps(child))
""")
    assert answers == (
        "this process was forked after the GPU was used, and CUDA does not survive a fork: start "
        "it with the multiprocessing method 'spawn'"
    )


def test_a_child_may_use_the_gpu_first(run):
    assert (
        run("""
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, (sentence(quantize) or "launched").encode())
    os._exit(0)
os.wait()
print(json.dumps(os.read(read, 1000).decode()))
""")
        == "launched"
    )


def test_importing_calls_no_driver(run):
    assert run("print(json.dumps(calls()))") == []
