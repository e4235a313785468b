"""Builds of shmcow that lack one check each: a flip or a cut must show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import copies


class Mutant(NamedTuple):
    """One check taken out.

    Attributes:
        file: below the root.
        fields: where the damage is that must show it.
        build: the C file to compile anew; "" for a change in Python.
    """

    name: str
    file: str
    old: str
    new: str
    what: str
    fields: tuple[str, ...]
    build: str

    def task(self) -> dict[str, Any]:
        return {"what": [self.what], "fields": list(self.fields), "stop": 1, "hang": 1.5}


_FORMAT, _PROTOCOL = "csrc/shmcow_format.h", "csrc/shmcow_protocol.h"

MUTANTS = (
    Mutant(
        "no checksum of the identity",
        _FORMAT,
        "if (id->crc != shmcow_crc(table, id, offsetof(shmcow_identity, crc)))",
        "if (false)",
        "flips",
        ("header identity.created_ns",),
        "core_store",
    ),
    Mutant(
        "no check of the magic bytes",
        _FORMAT,
        "if (memcmp(id->magic, SHMCOW_MAGIC, sizeof id->magic) != 0)",
        "if (false)",
        "flips",
        ("header identity.magic",),
        "core_store",
    ),
    Mutant(
        "no checksum of an entry",
        _FORMAT,
        "if (entry->crc != shmcow_crc(table, entry, offsetof(shmcow_entry, crc)))",
        "if (false)",
        "flips",
        ("header entry.message",),
        "core_hold",
    ),
    Mutant(
        "no checksum of a footer",
        _FORMAT,
        "if (footer->crc != shmcow_crc(table, footer, offsetof(shmcow_footer, crc)))",
        "if (false)",
        "flips",
        ("segment footer.reserved",),
        "core_hold",
    ),
    Mutant(
        "no checksum of a payload",
        "shmcow/decoding.py",
        '    if found != part["crc"]:\n',
        "    if False:\n",
        "flips",
        ("segment payload",),
        "",
    ),
    Mutant(
        "no check of the header's size",
        _FORMAT,
        "if (file_bytes != sizeof(shmcow_header))",
        "if (false)",
        "cuts",
        ("header",),
        "core_store",
    ),
    Mutant(
        "no check of a segment's size",
        "csrc/core_hold.c",
        "(uint64_t)st.st_size != bytes || ",
        "",
        "cuts",
        ("segment",),
        "core_hold",
    ),
    Mutant(
        "no end when the same `current` comes twice",
        _PROTOCOL,
        "if (now == last || shmcow_index_of(now) >= SHMCOW_GENERATIONS)",
        "if (shmcow_index_of(now) >= SHMCOW_GENERATIONS)",
        "flips",
        ("header current",),
        "core_hold",
    ),
    Mutant(
        "no bound of a listed number of segments",
        _PROTOCOL,
        "return count <= SHMCOW_MAX_SEGMENTS ? count : SHMCOW_MAX_SEGMENTS;",
        "return count;",
        "flips",
        ("header entry.segment_count",),
        "core_store",
    ),
    Mutant(
        "an entry of another version is taken",
        _FORMAT,
        "if (entry->version != version)",
        "if (false)",
        "flips",
        ("header words",),
        "core_store",
    ),
)


def build_all(directory: Path) -> dict[str, Path]:
    """Build every mutant; returns the directory that holds its package, by name."""
    made = [copies.Copy(m.name, (copies.Edit(m.file, m.old, m.new),), m.build) for m in MUTANTS]
    return {copy.name: place for copy, place in zip(made, copies.build(directory, made), strict=True)}
