"""Every byte of a store's files, by field: read from the pinned layout, so that no field can be forgotten.

What a wrong bit does is said for each field by name (KINDS). A field that the layout has and KINDS has not is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

ABI = Path(__file__).resolve().parents[2] / "unit" / "abi_2.txt"
GENERATIONS = 64
COUNTERS_USED = 9

# sealed: under a checksum, so a wrong bit is always found (reserved bytes, too)
# number: no checksum; another well-formed number cannot be told from the right one, and decides nothing about values
# current, word: no checksum; what they name is checked against what it says itself
# entry, entries: an entry is sealed where its generation is published, and unused where it is FREE
# feed: one slot of the feed's state is shown, and sealed; of a store that was never fed nobody reads it
# unused: nobody reads it
Kind = Literal["sealed", "number", "current", "word", "entry", "feed", "unused", "payload"]
KINDS: dict[str, Kind] = {
    "retain": "number",
    "max_total_bytes": "number",
    "next_segment": "number",
    "lock_pid": "number",
    "current": "current",
    "counters": "number",
    "words": "word",
    "entries": "entry",
    "feed_turn": "number",
    "feeds": "feed",
}


class Region(NamedTuple):
    """Some bytes of one file.

    Attributes:
        file: "header" or "segment" (of the current version).
        field: its name in the layout; "a.b" in a struct.
        index: of the generation, for words and entries; of the counter; else 0.
    """

    file: str
    field: str
    index: int
    start: int
    length: int
    kind: Kind


def structs() -> dict[str, list[tuple[str, int, int]]]:
    """Return (field, offset, size) of each struct of the layout, in order."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    for line in ABI.read_text().splitlines():
        match = re.fullmatch(r"  shmcow_(\w+)\.(\w+) at (\d+), (\d+) bytes", line)
        if match:
            found.setdefault(match[1], []).append((match[2], int(match[3]), int(match[4])))
    return found


def header_regions() -> list[Region]:
    """Return all regions of the header, gaps included, in order and without overlap."""
    layout = structs()
    regions: list[Region] = []
    at = 0
    for field, start, size in layout["header"]:
        if start > at:
            regions.append(Region("header", f"padding before {field}", 0, at, start - at, "unused"))
        at = start + size
        if field == "identity":
            for name, offset, length in layout["identity"]:
                regions.append(Region("header", f"identity.{name}", 0, start + offset, length, "sealed"))
        elif field == "entries":
            each = size // GENERATIONS
            for i in range(GENERATIONS):
                for name, offset, length in layout["entry"]:
                    where = start + i * each + offset
                    regions.append(Region("header", f"entry.{name}", i, where, length, KINDS[field]))
        elif field == "feeds":
            for i in range(2):
                for name, offset, length in layout["feed"]:
                    regions.append(
                        Region("header", f"feed.{name}", i, start + i * size // 2 + offset, length, KINDS[field])
                    )
        elif field == "counters":
            for i in range(size // 8):
                kind = KINDS[field] if i < COUNTERS_USED else "unused"
                regions.append(Region("header", "counters", i, start + 8 * i, 8, kind))
        elif field == "words":
            regions += [Region("header", field, i, start + 8 * i, 8, KINDS[field]) for i in range(GENERATIONS)]
        else:
            regions.append(Region("header", field, 0, start, size, KINDS[field]))
    return regions


def segment_regions(payload_bytes: int) -> list[Region]:
    """Return all regions of a data segment."""
    align = 64
    footer = (payload_bytes + align - 1) // align * align
    regions = [Region("segment", "payload", 0, 0, payload_bytes, "payload")]
    if footer > payload_bytes:
        regions.append(Region("segment", "padding", 0, payload_bytes, footer - payload_bytes, "unused"))
    for name, offset, length in structs()["footer"]:
        regions.append(Region("segment", f"footer.{name}", 0, footer + offset, length, "sealed"))
    return regions
