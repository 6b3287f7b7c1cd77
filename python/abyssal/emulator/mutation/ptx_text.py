"""PTX text cut into statements that know where they stand, so that one can be replaced or moved.

Nothing is interpreted here, and what is not a statement of a kernel (debug sections, initial
values) is passed over. The statements are those of nvcc or of hand-written PTX alike.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

Place = tuple[str, int]  # file, line

_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.S)
_BLANK = re.compile(r"\s*")
_ENTRY = re.compile(r"\.entry\s+([\w$%.]+)")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.M)
_LOCATION = re.compile(
    r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)"
    r"(?:\s*,\s*function_name\s+[\w$.]+(?:\s*\+\s*\d+)?\s*,\s*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?"
)
_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)")
_DIRECTIVE = re.compile(r"\.[^;]*;")
_STATEMENT = re.compile(r"(@!?[\w$%]+)?\s*([\w.:]+)\s*([^;]*);", re.S)
_NAME = re.compile(r"(?<![\w$%.])%?[A-Za-z_$][\w$]*(?:\.[xyzw]\b)?")

# After these, another basic block begins.
_LEAVES = ("bra", "brx", "ret", "exit", "trap", "call")


@dataclasses.dataclass(frozen=True)
class Statement:
    """One instruction.

    start, end: its characters in the text, from the guard to behind the semicolon.
    block: number of its basic block. scopes: the `{ }` that it is in, outermost first.
    names: the registers, variables and labels it names, each with the scope that declares it (0:
    none that was seen). places: its source lines, innermost first.
    """

    kernel: str
    start: int
    end: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    block: int
    scopes: tuple[int, ...]
    names: frozenset[tuple[str, int]]
    places: tuple[Place, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the opcode: ("mbarrier", "try_wait", "parity", ...)."""
        return tuple(self.opcode.split("."))


def read_statements(text: str) -> list[Statement]:
    """All instructions of all kernels, in the order of the text."""
    # Comments become blanks: positions stay.
    plain = _COMMENT.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\n]", " ", m[0]), text)
    files = {int(m[1]): m[2] for m in _FILE.finditer(plain)}
    statements: list[Statement] = []
    for entry in _ENTRY.finditer(plain):
        body = plain.find("{", entry.end())
        if body >= 0:
            statements += _Body(plain, body + 1, entry[1], files).statements()
    return statements


class _Body:
    def __init__(self, text: str, start: int, kernel: str, files: dict[int, str]) -> None:
        self.text = text
        self.at = start
        self.kernel = kernel
        self.files = files
        self.declared: dict[int, list[str]] = {1: []}  # scope -> names, `%r<8>` as "%r<"
        self.scopes = [1]
        self.block = 0
        self.places: tuple[Place, ...] = ()
        self.inlined: dict[tuple[str, ...], tuple[Place, ...]] = {}

    def statements(self) -> Iterator[Statement]:
        number_of_scopes = 1
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            character = self.text[self.at : self.at + 1]
            if character == "{":
                number_of_scopes += 1
                self.scopes.append(number_of_scopes)
                self.declared[number_of_scopes] = []
                self.at += 1
            elif character == "}":
                self.scopes.pop()
                self.at += 1
                if not self.scopes:
                    return
            elif found := _LOCATION.match(self.text, self.at):
                self._locate(found)
            elif found := _LABEL.match(self.text, self.at):
                self.block += 1
                self.at = found.end()
            elif found := _DIRECTIVE.match(self.text, self.at):
                self._declare(found[0])
                self.at = found.end()
            elif found := _STATEMENT.match(self.text, self.at):
                yield self._statement(found)
                self.at = found.end()
            else:
                return  # no PTX: the emulator says so

    def _locate(self, found: re.Match[str]) -> None:
        here = (self.files.get(int(found[1]), found[1]), int(found[2]))
        around: tuple[Place, ...] = ()
        if found[4]:
            caller = (found[4], found[5], found[6])
            outer = (self.files.get(int(found[4]), found[4]), int(found[5]))
            around = self.inlined.get(caller, (outer,))
        self.places = (here, *around)
        self.inlined[found[1], found[2], found[3]] = self.places
        self.at = found.end()

    def _declare(self, directive: str) -> None:
        if re.match(r"\.(reg|shared|local)\b", directive):
            self.declared[self.scopes[-1]] += re.findall(r"(%?[A-Za-z_$][\w$]*<?)\d*>?", directive)

    def _statement(self, found: re.Match[str]) -> Statement:
        guard, opcode, operands = found[1] or "", found[2], found[3]
        statement = Statement(
            kernel=self.kernel,
            start=found.start(),
            end=found.end(),
            guard=guard,
            opcode=opcode,
            operands=split_operands(operands),
            block=self.block,
            scopes=tuple(self.scopes),
            names=self._resolve(f"{guard.lstrip('@!')} {operands}"),
            places=self.places,
        )
        if opcode.split(".")[0] in _LEAVES:
            self.block += 1
        return statement

    def _resolve(self, operands: str) -> frozenset[tuple[str, int]]:
        return frozenset((name, self._scope_of(name)) for name in _NAME.findall(operands))

    def _scope_of(self, name: str) -> int:
        family = name.rstrip("0123456789") + "<"
        for scope in reversed(self.scopes):
            if name in self.declared[scope] or family in self.declared[scope]:
                return scope
        return 0


def split_operands(text: str) -> tuple[str, ...]:
    """At the commas outside of brackets and braces."""
    operands, depth, current = [], 0, ""
    for character in text:
        depth += character in "[{("
        depth -= character in "]})"
        if character == "," and depth == 0:
            operands.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        operands.append(current.strip())
    return tuple(operands)


def replace(text: str, edits: list[tuple[int, int, str]]) -> str:
    """The text with [start, end) replaced, for edits that do not overlap."""
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text
