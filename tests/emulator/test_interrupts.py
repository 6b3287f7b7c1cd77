"""Ctrl-C ends a launch, and other threads of Python go on during one."""

import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from abyssal.emulator import Device, InOut
from tests.emulator.test_asynchronous import kernel

# Counts up to a number in memory; a store in each round, which is progress.
COUNT = kernel(
    ".param .u64 x, .param .u32 rounds",
    """ld.param.u64 %d0, [x]; ld.param.u32 %r1, [rounds]; mov.u32 %r0, 0;
    AGAIN: st.global.b32 [%d0], %r0; add.u32 %r0, %r0, 1;
    setp.lt.u32 %p, %r0, %r1; @%p bra AGAIN;""",
)


@pytest.mark.parametrize(
    "launch",
    [
        f"""
        from abyssal.emulator import Device
        module = Device().load_ptx({COUNT!r})
        print("ready", flush=True)
        module.launch("kernel", 1, 1, [np.zeros(1, np.uint32), 0xffffffff])
        """,
        """
        import torch, abyssal
        from abyssal import ops
        x = torch.ones(40000, 7168)
        with abyssal.backend("emulator"):
            print("ready", flush=True)
            ops.quantize_1x128(x)
        """,
    ],
    ids=["module", "op"],
)
def test_ctrl_c(launch):
    # A shell's background processes ignore the signal, and so would the child of such a one.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import numpy as np\ntry:\n{}\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    body = textwrap.indent(textwrap.dedent(launch), "    ")
    child = subprocess.Popen(
        [sys.executable, "-c", code.format(body)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):  # it is busy
            child.wait(0.5)
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=100)
    finally:
        child.kill()
    assert output == "interrupted\n"


def test_other_threads_go_on():
    x = np.zeros(1, np.uint32)
    module = Device(strict=False).load_ptx(COUNT)
    rounds = 3_000_000
    seen = []
    launching = threading.Thread(target=module.launch, args=("kernel", 1, 1, [InOut(x), rounds]))
    launching.start()
    while launching.is_alive():
        seen.append(int(x[0]))
    launching.join()
    assert x[0] == rounds - 1
    assert len({value for value in seen if 0 < value < rounds - 1}) > 2
