"""Lanes that part and meet, and the instructions that lanes run together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.emulator import Device, EmulatorError, In, InOut, Out
from tests.emulator.lane_kernels import HEAD, run_lanes

LANES = np.arange(64, dtype=np.uint32)


def kernel(params: str, body: str) -> str:
    return f"{HEAD}.visible .entry kernel({params})\n{{\n{body}\nret;\n}}\n"


def test_loops_of_different_length():
    """Collatz steps: every lane leaves the loop when it is done, and all meet behind it."""
    code = """
    .reg .b32 %b; mov.b32 %x, 0; mov.b32 %b, %a;
    LOOP:
    setp.le.u32 %p, %b, 1;
    @%p bra DONE;
    .reg .b32 %odd, %half;
    and.b32 %odd, %b, 1;
    setp.eq.u32 %q, %odd, 0;
    @%q bra EVEN;
    mad.lo.u32 %b, %b, 3, 1;
    bra.uni NEXT;
    EVEN:
    shr.u32 %b, %b, 1;
    NEXT:
    add.u32 %x, %x, 1;
    bra.uni LOOP;
    DONE:
    activemask.b32 %y;
    """
    steps, together = run_lanes(code, [LANES + 1], [np.uint32, np.uint32])
    expected = []
    for n in range(1, 65):
        count = 0
        while n > 1:
            n = 3 * n + 1 if n % 2 else n // 2
            count += 1
        expected.append(count)
    assert steps.tolist() == expected
    assert (together == 0xFFFFFFFF).all()


# Programs of nested conditions and loops over a variable, as PTX and as Python.

statements = st.recursive(
    st.tuples(st.just("add"), st.integers(1, 9)),
    lambda inner: st.one_of(
        st.tuples(
            st.just("if"),
            st.integers(1, 5),
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3),
        ),
        st.tuples(st.just("loop"), st.integers(1, 4), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("leave"), st.integers(5, 23)),
        st.tuples(st.just("break"), st.integers(3, 7)),
    ),
    max_leaves=12,
)


class Writer:
    """PTX of a program. `%v` is its variable, `%lane` the thread."""

    def __init__(self):
        self.labels = 0

    def write(self, program, stop=None):
        return "\n".join(self.statement(s, stop) for s in program)

    def statement(self, s, stop):
        self.labels += 1
        n = self.labels
        if s[0] == "add":
            return f"mad.lo.u32 %v, %v, 5, {s[1]};"
        if s[0] == "if":
            return (
                f"add.u32 %t, %v, %lane; rem.u32 %t, %t, {s[1] + 1}; setp.eq.u32 %p, %t, 0;\n"
                f"@%p bra ELSE{n};\n{self.write(s[2], stop)}\nbra.uni FI{n};\n"
                f"ELSE{n}:\n{self.write(s[3], stop)}\nFI{n}:"
            )
        if s[0] == "loop":
            return (
                f"{{ .reg .b32 %count; add.u32 %count, %lane, {s[1]}; rem.u32 %count, %count, 4;\n"
                f"LOOP{n}:\nsetp.eq.u32 %p, %count, 0; @%p bra OUT{n};\n"
                "sub.u32 %count, %count, 1;\n"
                f"{self.write(s[2], f'OUT{n}')}\nbra.uni LOOP{n};\nOUT{n}: }}"
            )
        test = f"add.u32 %t, %v, %lane; rem.u32 %t, %t, {s[1]}; setp.eq.u32 %p, %t, 0;"
        if s[0] == "leave":
            return f"{test} @%p st.global.b32 [%out], %v; @%p exit;"
        return f"{test} @%p bra {stop};" if stop else ""


class Left(Exception):
    pass


class Broke(Exception):
    pass


def execute(program, lane, v, in_loop=False):
    for s in program:
        if s[0] == "add":
            v = (5 * v + s[1]) % 2**32
        elif s[0] == "if":
            v = execute(s[3] if (v + lane) % 2**32 % (s[1] + 1) == 0 else s[2], lane, v, in_loop)
        elif s[0] == "loop":
            for _ in range((lane + s[1]) % 4):
                try:
                    v = execute(s[2], lane, v, True)
                except Broke as broke:
                    v = broke.args[0]
                    break
        elif (v + lane) % 2**32 % s[1] == 0:
            if s[0] == "leave":
                raise Left(v)
            if in_loop:
                raise Broke(v)
    return v


@settings(max_examples=150, deadline=None)
@given(st.lists(statements, min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_random_programs(program, start):
    body = Writer().write(program)
    ptx = kernel(
        ".param .u64 result",
        f""".reg .pred %p; .reg .b32 %v, %t, %lane; .reg .b64 %out, %o;
        mov.u32 %lane, %tid.x; mov.b32 %v, {start};
        ld.param.u64 %out, [result]; mul.wide.u32 %o, %lane, 4; add.u64 %out, %out, %o;
        {body}
        st.global.b32 [%out], %v;""",
    )
    result = np.full(32, 0xAAAAAAAA, np.uint32)
    Device().load_ptx(ptx).launch("kernel", 1, 32, [Out(result)])
    expected = []
    for lane in range(32):
        try:
            expected.append(execute(program, lane, start))
        except Left as left:
            expected.append(left.args[0])
    assert result.tolist() == expected


def test_indexed_branches():
    code = """
    .reg .b32 %k; rem.u32 %k, %a, 3;
    TABLE: .branchtargets ZERO, ONE, TWO;
    brx.idx %k, TABLE;
    ZERO: mov.b32 %x, 10; bra.uni END;
    ONE: mov.b32 %x, 11; bra.uni END;
    TWO: mov.b32 %x, 12;
    END: activemask.b32 %y;
    """
    result, mask = run_lanes(code, [LANES], [np.uint32, np.uint32])
    assert (result == 10 + LANES % 3).all()
    assert (mask == 0xFFFFFFFF).all()


def test_lanes_that_wait_for_lanes_of_their_own_warp():
    """A lock that each lane takes in turn needs lanes to make progress one by one."""
    ptx = kernel(
        ".param .u64 lock, .param .u64 count",
        """.reg .pred %p; .reg .b32 %old, %n; .reg .b64 %lock, %count;
        ld.param.u64 %lock, [lock]; ld.param.u64 %count, [count];
        TAKE: atom.acquire.gpu.global.cas.b32 %old, [%lock], 0, 1;
        setp.ne.u32 %p, %old, 0; @%p bra TAKE;
        ld.volatile.global.b32 %n, [%count]; add.u32 %n, %n, 1; st.volatile.global.b32 [%count], %n;
        atom.release.gpu.global.exch.b32 %old, [%lock], 0;""",
    )
    lock, count = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    for policy in ("late", "early", "random"):
        count[:] = 0
        module = Device(policy=policy, num_sms=2).load_ptx(ptx)
        module.launch("kernel", 3, 64, [InOut(lock), InOut(count)])
        assert count[0] == 3 * 64


def test_shuffles():
    a = np.arange(64, dtype=np.uint32) * 7
    warps = a.reshape(2, 32)
    lane = np.arange(32)
    shuffled = {
        "idx.b32 %x|%p, %a, 5, 0x1f": np.full(32, 5),
        "up.b32 %x|%p, %a, 3, 0": np.where(lane >= 3, lane - 3, lane),
        "down.b32 %x|%p, %a, 3, 0x1f": np.where(lane + 3 < 32, lane + 3, lane),
        "bfly.b32 %x|%p, %a, 6, 0x1f": lane ^ 6,
        # Segments of 8: a source beyond the lane's own segment is none.
        "bfly.b32 %x|%p, %a, 8, 0x181f": np.where(lane ^ 8 <= (lane | 7), lane ^ 8, lane),
        "down.b32 %x|%p, %a, 2, 0x181f": np.where(lane % 8 + 2 < 8, lane + 2, lane),
    }
    valid = {"up": lane >= 3, "down.b32 %x|%p, %a, 3": lane + 3 < 32}
    for code, source in shuffled.items():
        result, flag = run_lanes(
            f"shfl.sync.{code}, -1; selp.u32 %y, 1, 0, %p;", [a], [np.uint32, np.uint32]
        )
        np.testing.assert_array_equal(result.reshape(2, 32), warps[:, source])
        for prefix, expected in valid.items():
            if code.startswith(prefix):
                np.testing.assert_array_equal(flag.reshape(2, 32)[0] != 0, expected)


def test_votes_matches_and_reductions():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, 64).astype(np.uint32)
    warps = a.reshape(2, 32)
    bits = lambda flags: [int(sum(1 << i for i in np.flatnonzero(w))) for w in flags]  # noqa: E731
    ballot = run_lanes("setp.eq.u32 %p, %a, 1; vote.sync.ballot.b32 %x, %p, -1;", [a], [np.uint32])[
        0
    ]
    assert ballot.reshape(2, 32)[:, 7].tolist() == bits(warps == 1)
    code = "setp.lt.u32 %p, %a, {}; vote.sync.{}.pred %q, %p, -1; selp.u32 %x, 1, 0, %q;"
    for limit, name, expected in [
        (3, "all", 1),
        (2, "all", 0),
        (1, "any", 1),
        (0, "any", 0),
        (2, "uni", 0),
        (0, "uni", 1),
    ]:
        assert (run_lanes(code.format(limit, name), [a], [np.uint32])[0] == expected).all()
    match = run_lanes("match.any.sync.b32 %x, %a, -1;", [a], [np.uint32])[0].reshape(2, 32)
    for warp, row in enumerate(warps):
        assert match[warp].tolist() == [bits([row == value])[0] for value in row]
    for name, function in {"add": np.sum, "min": np.min, "max": np.max}.items():
        total = run_lanes(f"redux.sync.{name}.u32 %x, %a, -1;", [a], [np.uint32])[0].reshape(2, 32)
        np.testing.assert_array_equal(total, np.repeat(function(warps, axis=1)[:, None], 32, 1))


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_lanes_side_by_side(seed):
    """Lanes with the same label exchange values while others do so at the same instruction."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, 64).astype(np.uint32)
    value = rng.integers(0, 2**20, 64).astype(np.uint32)
    group = ".reg .b32 %mates, %first, %odd; match.any.sync.b32 %mates, %a, -1;"
    first = "brev.b32 %first, %mates; clz.b32 %first, %first;"
    odd = "and.b32 %odd, %b, 1; setp.eq.u32 %p, %odd, 1;"
    codes = {
        f"{first} bar.warp.sync %mates; shfl.sync.idx.b32 %x, %b, %first, 0x1f, %mates;": (
            lambda mates: value[mates[0]]
        ),
        "redux.sync.add.u32 %x, %b, %mates;": lambda mates: value[mates].sum(),
        f"{odd} vote.sync.ballot.b32 %x, %p, %mates;": (
            lambda mates: sum(1 << mate % 32 for mate in mates if value[mate] % 2)
        ),
    }
    for code, expected in codes.items():
        result = run_lanes(group + code, [label, value], [np.uint32])[0]
        for lane in range(64):
            warp = lane // 32 * 32
            mates = warp + np.flatnonzero(label[warp : warp + 32] == label[lane])
            assert result[lane] == expected(mates)


def test_members_that_come_by_different_ways():
    """A shuffle among all lanes, which half of them reach by another path."""
    code = """
    .reg .b32 %lane, %v; mov.u32 %lane, %laneid; mov.b32 %v, %a;
    and.b32 %t, %lane, 1; setp.eq.u32 %p, %t, 0;
    @%p bra MEET;
    add.u32 %v, %v, 1000;
    MEET:
    bar.warp.sync -1;
    shfl.sync.bfly.b32 %x, %v, 1, 0x1f, -1;
    """
    result = run_lanes(code, [LANES], [np.uint32])[0]
    partner = LANES ^ 1
    np.testing.assert_array_equal(result, partner + 1000 * (partner % 2))


def test_elect():
    code = "elect.sync %t|%p, -1; mov.b32 %x, %t; selp.u32 %y, 1, 0, %p;"
    for seed in range(4):
        leader, flag = run_lanes(code, [LANES], [np.uint32] * 2, policy="random", seed=seed)
        warps = flag.reshape(2, 32)
        assert (warps.sum(1) == 1).all()
        np.testing.assert_array_equal(warps.argmax(1), leader.reshape(2, 32)[:, 0])


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            "setp.lt.u32 %p, %a, 3; @%p shfl.sync.idx.b32 %x, %a, 9, 0x1f, 7;",
            "diverged",
            "reads lane 9",
        ),
        ("shfl.sync.idx.b32 %x, %a, 0, 0x1f, 7;", "diverged", "its member mask 0x7 does not name"),
        (
            "setp.lt.u32 %p, %a, 8; selp.b32 %t, 0x1ff, 0xffffff00, %p;"
            "shfl.sync.idx.b32 %x, %a, 8, 0x1f, %t;",
            "diverged",
            "different member masks, and lane 8, which 0x1ff names",
        ),
        ("setp.lt.u32 %p, %a, 3; @%p bar.sync 0;", "diverged", "is .aligned"),
        ("trap;", "trap", "stopped itself"),
        ("bar.sync 16;", "invalid", "no barrier 16"),
        ("bar.sync 1, 48;", "invalid", "multiple of 32"),
        ("bar.sync 1, 64;", "invalid", "the block has 32"),
    ],
)
def test_misuse(code, kind, message):
    a = np.arange(32, dtype=np.uint32)
    with pytest.raises(EmulatorError, match=message) as error:
        run_lanes(code, [a], [np.uint32])
    assert error.value.kind == kind
    assert "block (0, 0, 0), warp 0" in str(error.value)


def test_deadlock_names_who_waits():
    ptx = kernel(
        ".param .u64 x",
        """.reg .pred %p; .reg .b32 %t; mov.u32 %t, %tid.x; setp.lt.u32 %p, %t, 32;
        @%p bra SKIP; bar.sync 3, 64; SKIP:""",
    )
    with pytest.raises(EmulatorError, match=r"deadlock.*\n.*warp 1.*barrier \(3\)") as error:
        Device().load_ptx(ptx).launch("kernel", 1, 64, [In(np.zeros(1))])
    assert error.value.kind == "deadlock"
