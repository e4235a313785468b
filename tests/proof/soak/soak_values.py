"""The values of the soak: one to three parts, each of which says the same in every word."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from shmcow import Codec, Part, StoredPart

_HEAD = struct.Struct("<QQQI")
_STAMP = struct.Struct("<Q")

MOST_WORDS = 1 << 14
Parts = tuple[bytes, ...]


class Content(NamedTuple):
    """What a value says; see soak_history.Record."""

    stamp: int
    prev: int
    total: int


def make(content: Content, parts: int, words: int) -> Parts:
    """Make a value of so many parts, with its stamp so many times in each."""
    head = _HEAD.pack(*content, words)
    body = _STAMP.pack(content.stamp) * words
    return tuple(head + body + head + bytes([k, parts]) for k in range(parts))


def read(value: Parts) -> Content | None:
    """Return what a value says; None if its parts or words do not agree: it is torn."""
    try:
        *content, words = _HEAD.unpack_from(value[0])
        found = Content(*content)
        return found if words <= MOST_WORDS and value == make(found, len(value), words) else None
    except (struct.error, IndexError):
        return None


class SoakCodec(Codec[Parts]):
    """Each part is a segment."""

    name = "soak"

    def split(self, value: Parts) -> list[Part]:
        return [Part(f"part {k}", self.name, [part]) for k, part in enumerate(value)]

    def join(self, parts: Sequence[StoredPart]) -> Parts:
        return tuple(bytes(part.view) for part in parts)
