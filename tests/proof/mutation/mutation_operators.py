"""Mutants of a C header, one small change each: what a slip of the pen would do.

Operators: a condition negated; a statement dropped; == and !=, < and <=, > and >=, && and || exchanged; a number off by
one; `return r` without the r; a case of a switch that falls into the next. Only function bodies are changed; comments,
steps (SHMCOW_STEP) and memory orders are left alone: orders have their own mutants (test_litmus.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_SWAPS = {"==": "!=", "!=": "==", "<=": "<", ">=": ">", "<": "<=", ">": ">=", "&&": "||", "||": "&&"}
_SWAP = re.compile(r"(?<![<>=!&|\-])(==|!=|<=|>=|<|>|&&|\|\|)(?![<>=&|])")
_NUMBER = re.compile(r"(?<![\w.\[])(\d+)(u|U)?(?![\w.])")
_STATEMENT = re.compile(r"^(\s*)((?:\(void\))?[\w>.\-\[\]*+ ]+(?:\(.*\)|(?:=|\+=|-=|\^=|\|=) .*|\+\+|--));\s*$")
_TYPES = r"static|const|unsigned|int|bool|size_t|u?int\d+_t|shmcow_\w+|enum|return|typedef"
_DECLARATION = re.compile(rf"^\s*(?:{_TYPES})\b[^(=]*[\w\]]\s*(?:=|;|,)")
_CONDITION = re.compile(r"\b(if|while) \(")


class Mutant(NamedTuple):
    """One change of one line.

    Attributes:
        function: in which it is.
        line: its number, from 1.
    """

    file: str
    function: str
    line: int
    operator: str
    old: str
    new: str

    @property
    def name(self) -> str:
        """Say it in a way that survives a move of the lines."""
        return f"{self.function}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"

    def apply(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        assert lines[self.line - 1].rstrip("\n") == self.old, self
        lines[self.line - 1] = self.new + "\n"
        return "".join(lines)


def _mask(text: str) -> str:
    """Blank out comments, strings and the preprocessor, keeping every position."""
    pattern = r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|^#[^\n]*(?:\\\n[^\n]*)*'
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL | re.MULTILINE)


def _functions(masked: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (index, function) of each line in a function's body."""
    name, inside = "", False
    for n, line in enumerate(masked):
        found = re.match(r"static inline [\w *]+?\b(\w+)\(", line)
        if found:
            name = found[1]
        if inside and line.startswith("}"):
            inside = False
        if inside:
            yield n, name
        if line.rstrip() == "{":
            inside = True


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return -1


def _changes(line: str, seen: str) -> Iterator[tuple[str, str]]:
    """Yield (operator, new line); ``seen`` is the line with comments blanked out."""
    for match in _CONDITION.finditer(seen):
        end = _closing(seen, match.end() - 1)
        if end > 0:
            yield "negate", f"{line[: match.end()]}!({line[match.end() : end]}){line[end:]}"
    for match in _SWAP.finditer(seen):
        swapped = _SWAPS[match[1]]
        yield f"{match[1]} to {swapped}", line[: match.start(1)] + swapped + line[match.end(1) :]
    for match in _NUMBER.finditer(seen):
        more = str(int(match[1]) + 1) + (match[2] or "")
        yield "off by one", line[: match.start()] + more + line[match.end() :]
    statement = _STATEMENT.match(seen.rstrip())
    if statement and not _DECLARATION.match(seen) and "memory_order" not in seen.partition("fence")[0]:
        yield "drop", f"{statement[1]};"
    if re.match(r"\s*return r;\s*$", seen):
        yield "return 0", line.replace("return r;", "return 0;")
    if re.match(r"\s*(break|continue);\s*$", seen):
        yield "drop", re.sub(r"(break|continue);", ";", line)


def mutants(file: str, text: str) -> list[Mutant]:
    """Return all mutants of a header."""
    lines, masked = text.splitlines(), _mask(text).splitlines()
    found = []
    for n, function in _functions(masked):
        if "SHMCOW_STEP" in masked[n]:
            continue
        for operator, new in _changes(lines[n], masked[n]):
            if new != lines[n]:
                found.append(Mutant(file, function, n + 1, operator, lines[n], new))
    return found
