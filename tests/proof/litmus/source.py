"""Read csrc: every atomic operation, with the function that it is in, and the order of what a function does.

The style of csrc makes this easy: a function's name is on a line that begins in column 0, and its braces are alone in
column 0. Text is never changed in length, so that positions in the stripped text are positions in the file.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from .program import ABSENT

KINDS = {
    "atomic_load": "load",
    "atomic_store": "store",
    "atomic_exchange": "exchange",
    "atomic_fetch_add": "add",
    "atomic_compare_exchange_strong": "cas",
    "atomic_compare_exchange_weak": "cas",
    "atomic_thread_fence": "fence",
}
PARTS = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)+'", re.DOTALL)
BODY = re.compile(
    r"^(?P<head>[A-Za-z_][^;{}#]*?\b(?P<name>\w+)\([^;{}]*\))\s*^\{$(?P<body>.*?)^\}", re.DOTALL | re.MULTILINE
)
# what has an atomic operation in it, whatever its name: nothing may go unseen
ATOMIC = re.compile(r"\b(atomic_\w+|__atomic_\w+|__sync_\w+|_mm_[a-z]*fence)\s*\(")


@dataclass(frozen=True)
class Operation:
    """One atomic operation. `site` names it: function, kind and object, numbered when there are several."""

    site: str
    file: str
    function: str
    order: str
    failure: str  # of a compare-and-swap
    at: int
    order_span: tuple[int, int]  # where the order stands; empty when it is the default


@dataclass(frozen=True)
class Function:
    file: str
    name: str
    start: int  # with the comment above it
    end: int
    text: str  # as in the file
    code: str  # the body, without comments and strings
    code_at: int


def blank(text: str) -> str:
    """Comments and strings become spaces."""
    return PARTS.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def closing(code: str, opened: int) -> int:
    """Where the bracket that opens at `opened` ends."""
    depth = 0
    for at in range(opened, len(code)):
        depth += {"(": 1, ")": -1}.get(code[at], 0)
        if depth == 0:
            return at
    raise ValueError("an unclosed bracket")


def arguments(code: str, opened: int) -> list[tuple[int, int]]:
    """The spans of a call's arguments."""
    end, spans, start, depth = closing(code, opened), [], opened + 1, 0
    for at in range(opened + 1, end):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(code[at], 0)
        if depth == 0 and code[at] == ",":
            spans.append((start, at))
            start = at + 1
    return [*spans, (start, end)]


@functools.cache
def functions(file: str, text: str) -> list[Function]:
    code, found = blank(text), []
    for match in BODY.finditer(code):
        above = text.rfind("\n\n", 0, match.start())
        start = above + 2 if above >= 0 else 0
        found.append(
            Function(
                file, match["name"], start, match.end(), text[start : match.end()], match["body"], match.start("body")
            )
        )
    return found


def order_of(code: str, span: tuple[int, int]) -> str:
    return code[slice(*span)].strip().removeprefix("memory_order_")


@functools.cache
def operations(file: str, text: str) -> list[Operation]:
    """Every atomic operation of a file. One that this cannot read is an error."""
    found: list[Operation] = []
    code = blank(text)
    counts: dict[str, int] = {}
    inside = functions(file, text)
    for match in ATOMIC.finditer(code):
        name, opened = match[1], match.end() - 1
        kind = KINDS.get(name.removesuffix("_explicit"))
        owner = next((f for f in inside if f.code_at <= match.start() < f.end), None)
        if kind is None or owner is None:
            raise ValueError(f"{file}: {name}: an atomic operation that the litmus tests do not know")
        spans = arguments(code, opened)
        failure = ""
        if kind == "fence":
            site, at = f"{owner.name} fence", spans[0]
        else:
            target = re.sub(r"\[[^\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", code[slice(*spans[0])]))
            site, at = f"{owner.name} {kind} {re.findall('[A-Za-z_]+', target)[-1]}", (opened, opened)
            if name.endswith("_explicit"):
                at = spans[-2] if kind == "cas" else spans[-1]
                failure = order_of(code, spans[-1]) if kind == "cas" else ""
            elif kind == "cas":
                failure = "seq_cst"
        order = order_of(code, at) if at[0] < at[1] else "seq_cst"
        counts[site] = counts.get(site, 0) + 1
        if counts[site] > 1:
            site = f"{site} #{counts[site]}"
        found.append(Operation(site, file, owner.name, order, failure, match.start(), at))
    return found


def read_all(csrc: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted([*csrc.glob("*.h"), *csrc.glob("*.c")])}


def all_operations(texts: dict[str, str]) -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    for file, text in texts.items():
        for operation in operations(file, text):
            if operation.site in found:
                raise ValueError(f"two functions called {operation.function} have an atomic operation on one object")
            found[operation.site] = operation
    return found


def steps(function: Function, names: tuple[str, ...]) -> tuple[str, ...]:
    """What a function does, in the order of its text: atomic operations and calls of `names`."""
    pattern = "|".join([r"\batomic_\w+", *(rf"(?<!\w){re.escape(name)}(?=\()" for name in names)])
    return tuple(KINDS.get(word.removesuffix("_explicit"), word) for word in re.findall(pattern, function.code))


def weakened(text: str, operation: Operation, order: str) -> str:
    """The file's text with another order for this operation; a fence that is ABSENT is taken out."""
    start, end = operation.order_span
    if order == ABSENT:
        return f"{text[: operation.at]}(void)0{text[end + 1 :]}"
    if start < end:
        lead = text[start:end][: len(text[start:end]) - len(text[start:end].lstrip())]
        return f"{text[:start]}{lead}memory_order_{order}{text[end:]}"
    opened = text.index("(", operation.at)
    shut = closing(blank(text), opened)
    name = text[operation.at : opened]
    extra = f", memory_order_{order}" + (", memory_order_relaxed" if "compare_exchange" in name else "")
    return f"{text[: operation.at]}{name}_explicit{text[opened:shut]}{extra}{text[shut:]}"
