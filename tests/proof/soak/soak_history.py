"""What each process of the soak writes down: one file a process, appended to by ``write()``, which outlives SIGKILL.

A record has a fixed size and ends with a CRC. The last one of a killed process may be torn: it is left out, and the
call that it was about counts as one whose end nobody knows.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# kinds of records
INVOKE, DONE, READ, AT, FORKED = range(1, 6)
# what a writer does
PUBLISH, EXPECT, UPDATE, SWAP, ROLLBACK, DESTROY = range(1, 7)
NAMES = {PUBLISH: "publish", EXPECT: "publish(expected=)", UPDATE: "update", SWAP: "swap", ROLLBACK: "rollback"}
NAMES[DESTROY] = "destroy"
# outcomes. REFUSED: a specific error, and nothing was done
OK, REFUSED, TORN, GONE, ERROR = range(1, 6)

_BODY = struct.Struct("<BBBBIQQQQQQQQQ")
_CRC = struct.Struct("<I")
SIZE = _BODY.size + _CRC.size


class Record(NamedTuple):
    """One line of a history; times are CLOCK_MONOTONIC in ns.

    Attributes:
        kind: INVOKE and DONE: a writer's call. READ: one read, or several in a row that returned the same object.
            AT: a look at a version that is held. FORKED: what the parent had read last.
        what: the writer's call; of a READ, 1 if the version is a rollback.
        count: of reads in a row.
        begin, end: of the call; of a READ, of its first.
        last: of a READ, when the last of them began.
        epoch: the first 64 bits of it.
        stamp: says which call made the value; unique. 0: unknown.
        prev: the stamp of the value that it was made from, or 0.
        total: how many calls in a row were made each from the value before.
        over: of a READ, when the last of them had surely ended.
    """

    kind: int
    what: int
    outcome: int
    spare: int
    count: int
    begin: int
    end: int
    last: int
    epoch: int
    version: int
    stamp: int
    prev: int
    total: int
    over: int


def record(kind: int, **fields: int) -> Record:
    """Return a record; what is not said is 0."""
    return Record(kind, *(fields.pop(name, 0) for name in Record._fields[1:]))


def packed(body: Sequence[int]) -> bytes:
    """Return a record's bytes."""
    raw = _BODY.pack(*body)
    return raw + _CRC.pack(zlib.crc32(raw))


class Log:
    """The history of this process: append only."""

    def __init__(self, directory: Path, role: str) -> None:
        self.directory = directory
        self.role = role
        self.path = directory / f"{role}-{os.getpid()}-{os.urandom(4).hex()}"
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, *body: int) -> None:
        """Append a record: all fields, in their order."""
        os.write(self._fd, packed(body))

    def say(self, text: str) -> None:
        """Keep the text of an error beside the history."""
        with self.path.with_suffix(".error").open("a") as file:
            file.write(text + "\n")

    def of_child(self) -> Log:
        """Begin the history of a forked child."""
        os.close(self._fd)
        return Log(self.directory, self.role + ".child")


def parse(raw: bytes) -> tuple[list[Record], bool]:
    """Return the whole records of a history, and whether its last one was torn.

    Raises:
        ValueError: a record in the middle is damaged: no death does that.
    """
    records = []
    whole = len(raw) - len(raw) % SIZE
    torn = whole != len(raw)
    for at in range(0, whole, SIZE):
        body = raw[at : at + _BODY.size]
        if _CRC.unpack_from(raw, at + _BODY.size)[0] != zlib.crc32(body):
            if at + SIZE < len(raw):
                raise ValueError(f"a damaged record at {at} of {len(raw)} bytes")
            return records, True
        records.append(Record._make(_BODY.unpack(body)))
    return records, torn


def load(directory: Path) -> dict[str, list[Record]]:
    """Return all histories of a soak, by process."""
    return {path.name: parse(path.read_bytes())[0] for path in sorted(directory.iterdir()) if path.suffix != ".error"}
