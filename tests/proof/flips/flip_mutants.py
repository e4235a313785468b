"""Builds of shmcow that lack one check each: a flip or a cut must show it."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "csrc"


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


def build_all(directory: Path, compiler: str) -> dict[str, Path]:
    """Build every mutant; returns the directory that holds its package, by name."""
    flags = ["-std=c11", "-O0", "-fPIC", "-pthread", "-D_GNU_SOURCE", "-DPy_LIMITED_API=0x030B0000"]
    include = f"-I{sysconfig.get_paths()['include']}"
    objects = directory / "objects"
    objects.mkdir()

    def compile_one(source: Path, out: Path) -> None:
        command = [compiler, *flags, include, f"-I{source.parent}", "-c", str(source), "-o", str(out)]
        subprocess.run(command, check=True)

    def build_one(number: int) -> tuple[str, Path]:
        mutant = MUTANTS[number]
        place = directory / f"mutant{number}"
        shutil.copytree(ROOT / "shmcow", place / "shmcow", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copytree(SOURCES, place / "csrc")
        text = (place / mutant.file).read_text()
        assert text.count(mutant.old) == 1, f"the mutant {mutant.name!r} does not fit the source any more"
        (place / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        parts = {file.stem: file for file in objects.glob("*.o")}
        if mutant.build:
            parts[mutant.build] = place / f"{mutant.build}.o"
            compile_one(place / "csrc" / f"{mutant.build}.c", parts[mutant.build])
        library = place / "shmcow" / "_core.abi3.so"
        command = [compiler, "-shared", "-pthread", *map(str, parts.values()), "-o", str(library)]
        subprocess.run(command, check=True)
        return mutant.name, place

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda file: compile_one(file, objects / f"{file.stem}.o"), sorted(SOURCES.glob("*.c"))))
        return dict(pool.map(build_one, range(len(MUTANTS))))
