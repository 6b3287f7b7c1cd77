"""Random changes of a text of PTX: bytes, tokens, statements, numbers, modifiers, nesting."""

from __future__ import annotations

import random
import re

# Words, numbers, strings, comments, single characters, and the blanks between them.
TOKENS = re.compile(r'"[^"\n]*"|//[^\n]*|[\w.$%]+(?:::[\w.]+)*|\s+|.', re.DOTALL)
NUMBER = re.compile(r"(?<![\w.$%])-?\d[\w.]*")

NUMBERS = [
    *["0", "1", "-1", "2", "3", "7", "8", "15", "16", "31", "32", "33", "63", "64", "127", "128"],
    *["255", "256", "1023", "1024", "1025", "4095", "4096", "16384", "65535", "65536", "232448"],
    *["1048576", "1048577", "2147483647", "2147483648", "-2147483648", "4294967295", "4294967296"],
    *["4294967297", "9223372036854775807", "9223372036854775808", "-9223372036854775808"],
    *["18446744073709551615", "18446744073709551616", "0xffffffffffffffff", "0x10000000000000000"],
    *["0x", "0b", "0b2", "08", "0U", "1UU", "1.5", "1.5.5", "1e400", "1e-400", "9" * 400, "0f"],
    *["0f7FC00000", "0f3f80000", "0fFF800000", "0d7FF0000000000000", "0d7FF8000000000000", "1_0"],
]
MODIFIERS = """
    u8 u16 u32 u64 s8 s16 s32 s64 b8 b16 b32 b64 b128 f16 f16x2 bf16 bf16x2 tf32 f32 f64 e4m3 e5m2
    e4m3x2 e5m2x2 u16x2 s16x2 pred v2 v4 v8 sync aligned shared shared::cta shared::cluster global
    local param const param::entry param::func relaxed acquire release acq_rel volatile weak cta
    cluster gpu sys rn rz rm rp rni rzi sat satfinite ftz NaN relu wide lo hi cc to x1 x2 x4 trans
    uni idx ballot any all up down bfly add min max and or xor cas exch inc dec noinc expect_tx
    no_complete test_wait try_wait parity arrive init inval bulk tensor 1d 2d 3d 4d 5d tile im2col
    mbarrier::complete_tx::bytes bulk_group multicast::cluster L2::cache_hint read commit_group
    wait_group m64n8k32 m64n256k16 m64n8k8 m8n8 a b clamp wrap approx full rna mmio nc proxy async
    """.split()  # noqa: SIM905
WORDS = """
    { } ( ) [ ] < > , ; : | + - ! @ = _ . % $ " /* */ // ' \\ # .reg .b32 .pred .shared .local
    .global .const .param .entry .func .visible .extern .align .v4 .loc .file .pragma .section
    .branchtargets .maxntid .reqntid .reqnctapercluster ret bra brx.idx mov.b32 call WARP_SZ %tid.x
    %laneid %envreg3 %clock64 %dynamic_smem_size %cluster_ctarank vprintf __assertfail LOOP é \x00
    """.split()  # noqa: SIM905


def mutate(text: str, chance: random.Random, others: list[str]) -> str:
    """A text after one to four changes; `others` are texts to take pieces of."""
    for _ in range(chance.choice([1, 1, 1, 2, 2, 3, 4])):
        change = chance.choices(CHANGES, weights=WEIGHTS)[0]
        text = change(text, chance, others)
    return text


def change_byte(text: str, chance: random.Random, others: list[str]) -> str:
    """A flipped bit, a byte in addition, or one less. What is no ASCII then stays one character."""
    data = bytearray(text.encode("latin-1", "replace"))
    if not data:
        return chr(chance.randrange(256))
    at = chance.randrange(len(data))
    kind = chance.randrange(3)
    if kind == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data.insert(at, chance.randrange(256))
    else:
        del data[at]
    return data.decode("latin-1")


def change_token(text: str, chance: random.Random, others: list[str]) -> str:
    """A token less, twice, at another's place, or another one."""
    tokens = TOKENS.findall(text)
    full = [i for i, token in enumerate(tokens) if not token.isspace()]
    if not full:
        return chance.choice(WORDS)
    i, j = chance.choice(full), chance.choice(full)
    kind = chance.randrange(5)
    if kind == 0:
        tokens[i] = ""
    elif kind == 1:
        tokens[i] += " " + tokens[i]
    elif kind == 2:
        tokens[i], tokens[j] = tokens[j], tokens[i]
    elif kind == 3:
        tokens[i] = tokens[j]
    else:
        tokens[i] = chance.choice(WORDS)
    return "".join(tokens)


def change_operand(text: str, chance: random.Random, others: list[str]) -> str:
    """A register, variable or label for another of the text; or `{a}`, `a|a`, `[a]`, `!a` of it."""
    names = list(re.finditer(r"(?<=[\s,\[{(@!])[%$A-Za-z_][\w$]*(?=[,;\]})|+\s])", text))
    if not names:
        return text
    at = chance.choice(names)
    other = chance.choice(names).group()
    new = chance.choice(
        [other, other, other, "{%s}", "{%s, %s}", "%s|%s", "[%s]", "!%s", "{}", "_", "%s, %s"]
    ).replace("%s", at.group())
    return text[: at.start()] + new + text[at.end() :]


def change_statement(text: str, chance: random.Random, others: list[str]) -> str:
    """A statement less, twice, at another's place, or one of another text."""
    statements = re.split(r"(?<=[;{}])", text)
    i, j = chance.randrange(len(statements)), chance.randrange(len(statements))
    kind = chance.randrange(4)
    if kind == 0:
        del statements[i]
    elif kind == 1:
        statements.insert(j, statements[i])
    elif kind == 2:
        statements[i], statements[j] = statements[j], statements[i]
    else:
        statements.insert(i, chance.choice(re.split(r"(?<=[;{}])", chance.choice(others))))
    return "".join(statements)


def change_number(text: str, chance: random.Random, others: list[str]) -> str:
    found = list(NUMBER.finditer(text))
    if not found:
        return text + chance.choice(NUMBERS)
    at = chance.choice(found)
    return text[: at.start()] + chance.choice(NUMBERS) + text[at.end() :]


def change_modifier(text: str, chance: random.Random, others: list[str]) -> str:
    """A modifier of an instruction less, more, or another one; or another instruction's all."""
    words = list(re.finditer(r"(?<=[\s;}])[a-z]\w*(?:\.[\w:]+)+(?=\s)", text))
    if not words:
        return text
    at = chance.choice(words)
    parts = at.group().split(".")
    i = chance.randrange(1, len(parts))
    kind = chance.randrange(4)
    if kind == 0:
        del parts[i]
    elif kind == 1:
        parts.insert(i, chance.choice(MODIFIERS))
    elif kind == 2:
        parts[i] = chance.choice(MODIFIERS)
    else:
        parts = chance.choice(words).group().split(".")
    return text[: at.start()] + ".".join(parts) + text[at.end() :]


def truncate(text: str, chance: random.Random, others: list[str]) -> str:
    at = chance.randrange(len(text) + 1)
    return text[:at] if chance.random() < 0.8 else text[at:]


def splice(text: str, chance: random.Random, others: list[str]) -> str:
    """The beginning of one text and the end of another."""
    other = chance.choice(others)
    return text[: chance.randrange(len(text) + 1)] + other[chance.randrange(len(other) + 1) :]


def repeat(text: str, chance: random.Random, others: list[str]) -> str:
    """A token very often: nesting, long lists, long names."""
    tokens = TOKENS.findall(text) or [""]
    i = chance.randrange(len(tokens))
    word = chance.choice([*WORDS, tokens[i], "{ ", "[", "(", "!", "a", "%r", ".b32 ", "1,", "x:"])
    tokens[i] += word * chance.choice([3, 50, 200, 3000, 30000])
    return "".join(tokens)


def declare(text: str, chance: random.Random, others: list[str]) -> str:
    """A declaration too large, in the module or in a kernel."""
    number = chance.choice([*NUMBERS, "1000000", "300000000", "4294967295"])
    declaration = chance.choice(DECLARATIONS).replace("N", number)
    ends = [m.end() for m in re.finditer(r"[;{}]", text)] or [0]
    at = chance.choice([ends[0], ends[-1], chance.choice(ends)])
    return text[:at] + "\n" + declaration + "\n" + text[at:]


DECLARATIONS = [
    ".reg .b32 %many<N>;",
    ".reg .b128 %r<N>;",
    ".reg .pred %r, %many<N>, %more<N>;",
    ".shared .align 16 .b8 large[N];",
    ".shared .align N .b8 aligned[16];",
    ".shared .v4 .b128 large[N][N];",
    ".local .b64 deep[N];",
    ".local .b64 deep[N][N][N], deeper[N];",
    ".global .b8 large[N];",
    ".const .b64 large[N][2] = {1, 2};",
    ".global .b32 list[N] = {1, 2, 3};",
    ".global .b32 open[] = {N, N};",
    ".param .b8 argument[N];",
    ".entry big(.param .b8 argument[N], .param .b8 more[N]) { ret; }",
    ".entry wide() .maxntid N, N, N .reqnctapercluster N { ret; }",
    ".entry sized() .reqntid N .maxnreg N { ret; }",
    ".loc N N N",
    '.file N "name"',
    "T: .branchtargets T;",
    "T: .branchtargets U, T; U: .branchtargets T, U; brx.idx %r1, T;",
    "add.u32 %r1, %r1, N;",
    "ld.global.u32 %r1, [%d0+N];",
    "st.shared.u32 [N], %r1;",
    "ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r2+-N];",
    "bar.sync N, N;",
    "mbarrier.init.shared.b64 [N], N;",
    "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], N;",
    "cp.async.wait_group N;",
    "wgmma.wait_group.sync.aligned N;",
    "setmaxnreg.dec.sync.aligned.u32 N;",
    "shfl.sync.idx.b32 %r1, %r2, N, N, N;",
    "lop3.b32 %r1, %r2, %r3, %r4, N;",
    "mov.b64 %d1, {N, N};",
]

CHANGES = [
    change_byte,
    change_token,
    change_operand,
    change_statement,
    change_number,
    change_modifier,
    truncate,
    splice,
    repeat,
    declare,
]
WEIGHTS = [4, 6, 10, 6, 6, 8, 1, 1, 2, 3]
