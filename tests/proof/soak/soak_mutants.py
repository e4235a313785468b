"""Weakened builds of shmcow that the soak must find."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "csrc"


class Mutant(NamedTuple):
    """One change of the source.

    Attributes:
        found_as: the kinds of violation that are expected, any of them.
        times: how often the old text is there.
        more_old, more_new: a second change in the same file.
        asked: of the soak that finds it, what is different.
    """

    name: str
    found_as: tuple[str, ...]
    file: str
    old: str
    new: str
    times: int = 1
    more_old: str = "    "
    more_new: str = "    "
    asked: Mapping[str, float] = MappingProxyType({})


MUTANTS = (
    Mutant(
        "no writer lock: it is shared",
        ("lost", "order", "error"),
        "csrc/core_writer.c",
        "F_WRLCK, 0)",
        "F_RDLCK, 0)",
        2,
    ),
    Mutant(
        "update reads before its turn",
        ("lost",),
        "shmcow/writer.py",
        "        with self._turn(recreate=False) as turn:\n"
        "            new = function(self._load(turn.store.hold()).value)",
        "        new = function(self._load(self._store.hold()).value)\n"
        "        with self._turn(recreate=False) as turn:",
    ),
    Mutant(
        "expected= is not compared",
        ("lost",),
        "shmcow/writer.py",
        "if expected not in (_ANY_VERSION, current):",
        "if False:",
    ),
    Mutant(
        "one flip of 64 is left out",
        ("lost", "stale", "order"),
        "csrc/shmcow_protocol.h",
        "r = shmcow_flip(h, &now, shmcow_current_word(i, entry->version));",
        "r = SHMCOW_OK;\n    if (entry->segments[0].id % 64 != 0)\n"
        "        r = shmcow_flip(h, &now, shmcow_current_word(i, entry->version));",
    ),
    Mutant(
        "flip before fill",
        ("error", "stale", "lost", "nowhere"),
        "csrc/shmcow_protocol.h",
        '    SHMCOW_STEP("publish.building");\n',
        "    uint64_t early = shmcow_load_current(h);\n"
        "    (void)shmcow_flip(h, &early, shmcow_current_word(i, entry->version));\n",
        1,
        "r = shmcow_flip(h, &now, shmcow_current_word(i, entry->version));",
        "r = SHMCOW_OK;",
    ),
    Mutant(
        "a reader does not mind being one version behind",
        ("stale",),
        "shmcow/reader.py",
        "if cached is not None and cached[:2] == seen:",
        "if cached is not None and cached[0] == seen[0] and seen[1] - cached[1] < 2:",
    ),
    Mutant(
        "markers are not heeded",
        ("held and gone",),
        "csrc/shmcow_protocol.h",
        "if (held != 0 && !force) {",
        "if (held < 0 && !force) {",
    ),
)


def compiler() -> str | None:
    """Return the C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def _command(sources: Path, out: Path, *more: str) -> list[str]:
    command = [compiler() or "cc", "-std=c11", "-O0", "-fPIC", "-pthread", "-D_GNU_SOURCE"]
    command += ["-DPy_LIMITED_API=0x030B0000", f"-I{sysconfig.get_paths()['include']}", f"-I{sources}"]
    return [*command, *more, "-o", str(out)]


def build_all(directory: Path, wanted: tuple[Mutant, ...]) -> dict[str, Path]:
    """Build mutants; returns the directory that holds each one's package, by name."""
    objects = directory / "objects"
    objects.mkdir()

    def compile_one(file: Path) -> None:
        subprocess.run(_command(SOURCES, objects / f"{file.stem}.o", "-c", str(file)), check=True)

    def build_one(number: int) -> tuple[str, Path]:
        mutant = wanted[number]
        place = directory / f"mutant{number}"
        for folder, pattern in (("shmcow", "*.py"), ("csrc", "*.[ch]")):
            for file in (ROOT / folder).rglob(pattern):
                target = place / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        text = (place / mutant.file).read_text()
        assert text.count(mutant.old) == mutant.times, f"the mutant {mutant.name!r} does not fit the source any more"
        assert mutant.more_old in text
        text = text.replace(mutant.old, mutant.new).replace(mutant.more_old, mutant.more_new)
        (place / mutant.file).write_text(text)
        parts = {file.stem: file for file in objects.glob("*.o")}
        if mutant.file.startswith("csrc"):  # all of them are about what writers do
            parts["core_writer"] = place / "core_writer.o"
            source = place / "csrc" / "core_writer.c"
            subprocess.run(_command(place / "csrc", parts["core_writer"], "-c", str(source)), check=True)
        library = place / "shmcow" / "_core.abi3.so"
        subprocess.run(_command(SOURCES, library, "-shared", *map(str, parts.values())), check=True)
        return mutant.name, place

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sorted(SOURCES.glob("*.c"))))
        return dict(pool.map(build_one, range(len(wanted))))
