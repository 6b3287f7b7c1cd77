"""Launches that run together: streams, programmatic dependent launches, several devices."""

import gc
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import abyssal
from abyssal import ops
from abyssal.emulator import Cluster, Device, EmulatorError, In, InOut, Out, concurrent
from abyssal.errors import InputError
from tests.emulator.test_asynchronous import kernel


@contextmanager
def reported(*kinds):
    """The block must end with a report of one of these kinds."""
    with pytest.raises(EmulatorError) as raised:
        yield raised
    assert raised.value.kind in kinds


POLICIES = ("late", "early", "random")

# Writes 7 and raises a flag / waits for the flag and copies, at a scope.
SIGNAL = """.reg .b64 %data, %flag; .reg .b32 %v;
    ld.param.u64 %data, [data]; ld.param.u64 %flag, [flag]; mov.u32 %v, 7;
    st.global.u32 [%data], %v; mov.u32 %v, 1;
    st.release.SCOPE.global.u32 [%flag], %v;"""
AWAIT = """.reg .b64 %data, %flag, %out; .reg .b32 %v; .reg .pred %p;
    ld.param.u64 %data, [data]; ld.param.u64 %flag, [flag]; ld.param.u64 %out, [out];
    AGAIN: ld.acquire.SCOPE.global.u32 %v, [%flag]; setp.eq.u32 %p, %v, 0; @%p bra AGAIN;
    ld.global.u32 %v, [%data]; st.global.u32 [%out], %v;"""


def signal(scope):
    return kernel(".param .u64 data, .param .u64 flag", SIGNAL.replace("SCOPE", scope))


def wait(scope):
    return kernel(
        ".param .u64 data, .param .u64 flag, .param .u64 out", AWAIT.replace("SCOPE", scope)
    )


def words(n=1):
    return np.zeros(n, np.uint32)


@pytest.mark.parametrize("policy", POLICIES)
def test_devices_wait_for_each_other(policy):
    cluster = Cluster(2, policy=policy)
    data, flag, out = words(), words(), words()
    with concurrent():
        cluster[0].load_ptx(wait("sys")).launch("kernel", 1, 1, [In(data), InOut(flag), Out(out)])
        cluster[1].load_ptx(signal("sys")).launch("kernel", 1, 1, [Out(data), InOut(flag)])
        assert out[0] == 0, "nothing runs before the block ends"
    assert out[0] == 7


def test_the_scope_of_a_device_does_not_reach_another():
    cluster = Cluster(2)
    data, flag, out = words(), words(), words()
    with reported("race"), concurrent():
        cluster[0].load_ptx(wait("gpu")).launch("kernel", 1, 1, [In(data), InOut(flag), Out(out)])
        cluster[1].load_ptx(signal("gpu")).launch("kernel", 1, 1, [InOut(data), InOut(flag)])


def test_streams_of_one_device_run_together():
    device = Device()
    data, flag, out = words(), words(), words()
    with concurrent():
        device.load_ptx(wait("gpu")).launch(
            "kernel", 1, 1, [In(data), InOut(flag), Out(out)], stream=1
        )
        device.load_ptx(signal("gpu")).launch("kernel", 1, 1, [Out(data), InOut(flag)], stream=2)
    assert out[0] == 7


def test_one_stream_runs_in_order():
    device = Device()
    data, flag, out = words(), words(), words()
    with reported("deadlock"), concurrent():
        device.load_ptx(wait("gpu")).launch("kernel", 1, 1, [In(data), InOut(flag), Out(out)])
        device.load_ptx(signal("gpu")).launch("kernel", 1, 1, [InOut(data), InOut(flag)])


COPY = """.reg .b64 %from, %to; .reg .b32 %v, %t; .reg .b64 %o;
    ld.param.u64 %from, [from]; ld.param.u64 %to, [to]; mov.u32 %t, %tid.x;
    mul.wide.u32 %o, %t, 4; add.u64 %from, %from, %o; add.u64 %to, %to, %o;
    WAIT ld.global.u32 %v, [%from]; add.u32 %v, %v, 1; st.global.u32 [%to], %v; RELEASE"""


def copy(wait="", release=""):
    text = COPY.replace("WAIT", wait).replace("RELEASE", release)
    return kernel(".param .u64 from, .param .u64 to", text)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_launch_sees_what_those_ahead_of_it_wrote(policy):
    device = Device(policy=policy)
    x = np.arange(64, dtype=np.uint32)
    y, z = np.empty_like(x), np.empty_like(x)
    with concurrent():
        device.load_ptx(copy()).launch("kernel", 1, 64, [In(x), Out(y)])
        device.load_ptx(copy()).launch("kernel", 1, 64, [In(y), Out(z)])
    assert (z == x + 2).all()


def test_what_an_earlier_launch_should_have_written_is_uninitialised():
    device = Device()
    x = np.arange(64, dtype=np.uint32)
    y, z = np.empty_like(x), np.empty_like(x)
    with reported("uninitialised"), concurrent():
        device.load_ptx(copy()).launch("kernel", 1, 32, [In(x), Out(y)])
        device.load_ptx(copy()).launch("kernel", 1, 64, [In(y), Out(z)])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_dependent_launches_overlap(policy, seed):
    device = Device(policy=policy, seed=seed)
    x = np.arange(64, dtype=np.uint32)
    y, z, last = (np.empty_like(x) for _ in range(3))
    first = copy(release="griddepcontrol.launch_dependents;")
    second = copy(wait="griddepcontrol.wait;")
    with concurrent():
        device.load_ptx(first).launch("kernel", 1, 64, [In(x), Out(y)])
        device.load_ptx(second).launch("kernel", 1, 64, [In(y), Out(z)], dependent=True)
        device.load_ptx(copy()).launch("kernel", 1, 64, [In(z), Out(last)])
    assert (last == x + 3).all()


def test_a_dependent_launch_that_does_not_wait():
    device = Device()
    x = np.arange(64, dtype=np.uint32)
    y, z = np.empty_like(x), np.empty_like(x)
    first = copy(wait="griddepcontrol.launch_dependents;")
    kinds = set()
    for policy, seed in [("late", 0), ("early", 0), *(("random", seed) for seed in range(6))]:
        device = Device(policy=policy, seed=seed)
        with reported("race", "uninitialised") as raised, concurrent():
            device.load_ptx(first).launch("kernel", 4, 64, [In(x), Out(y)])
            device.load_ptx(copy()).launch("kernel", 1, 64, [In(y), Out(z)], dependent=True)
        kinds.add(raised.value.kind)
    assert "race" in kinds


def test_ops_take_part():
    x = torch.randn(4, 256)
    expected = ops.quantize_1x128(x)
    with abyssal.backend("emulator"), concurrent():
        result = ops.quantize_1x128(x.clone())
        gc.collect()
    assert torch.equal(result.data.view(torch.uint8), expected.data.view(torch.uint8))
    assert torch.equal(result.scale, expected.scale)


def test_ops_run_on_a_device_of_ones_choice():
    x = torch.randn(4, 256)
    expected = ops.quantize_1x128(x)
    with abyssal.backend("emulator"), Device(num_sms=1, policy="random", seed=5).for_ops():
        result = ops.quantize_1x128(x)
    assert torch.equal(result.scale, expected.scale)


def test_what_fails_inside_runs_nothing():
    device = Device()
    x, y = np.zeros(64, np.uint32), np.zeros(64, np.uint32)

    def fail():
        with concurrent():
            device.load_ptx(copy()).launch("kernel", 1, 64, [In(x), Out(y)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (y == 0).all()
    with concurrent():
        device.load_ptx(copy()).launch("kernel", 1, 64, [In(x), Out(y)])
    assert (y == 1).all()


def test_refuses():
    x, y = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    first, second = (Device(seed=seed).load_ptx(copy()) for seed in (1, 2))
    with concurrent():
        first.launch("kernel", 1, 64, [In(x), Out(y)])
        with pytest.raises(InputError, match="must have the same"):
            second.launch("kernel", 1, 64, [In(x), Out(y)])
    with pytest.raises(InputError, match="do not nest"), concurrent(), concurrent():
        pass
    with pytest.raises(InputError, match="num_devices"):
        Cluster(0)
