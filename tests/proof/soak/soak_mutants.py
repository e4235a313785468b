"""Weakened builds of shmcow that the soak must find."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import copies


class Mutant(NamedTuple):
    """One change of the source.

    Attributes:
        found_as: the kinds of violation that are expected, any of them.
        times: how often the old text is there.
        more_old, more_new: a second change in the same file; "": none.
        asked: of the soak that finds it, what is different.
    """

    name: str
    found_as: tuple[str, ...]
    file: str
    old: str
    new: str
    times: int = 1
    more_old: str = ""
    more_new: str = ""
    asked: Mapping[str, float] = MappingProxyType({})

    @property
    def edits(self) -> tuple[copies.Edit, ...]:
        """The changes."""
        second = (copies.Edit(self.file, self.more_old, self.more_new),) if self.more_old else ()
        return (copies.Edit(self.file, self.old, self.new, self.times), *second)


MUTANTS = (
    Mutant(
        "no writer lock: it is shared",
        ("lost", "order", "error"),
        "csrc/core_writer.c",
        "F_WRLCK, SHMCOW_WRITER_AT)",
        "F_RDLCK, SHMCOW_WRITER_AT)",
        2,
    ),
    Mutant(
        "update reads before its turn",
        ("lost",),
        "shmcow/writer.py",
        "        with self._turn(recreate=False) as turn:\n"
        "            self._committer.check_follows(turn)\n"
        "            new = function(self._committer.load(turn.store.hold()).value)",
        "        new = function(self._committer.load(self._store.hold()).value)\n"
        "        with self._turn(recreate=False) as turn:",
    ),
    Mutant(
        "expected= is not compared",
        ("lost",),
        "shmcow/committing.py",
        "if expected not in (None, current):",
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
    Mutant(
        "nothing is recovered",
        ("at rest",),
        "csrc/shmcow_protocol.h",
        "    int repaired = 0;\n",
        "    int repaired = 0;\n    return repaired;\n",
        asked={"kills": 40, "destroy_every": 1000},
    ),
)


def build_all(directory: Path, wanted: tuple[Mutant, ...]) -> dict[str, Path]:
    """Build mutants; returns the directory that holds each one's package, by name."""
    made = [copies.Copy(m.name, m.edits, "core_writer" if m.file.startswith("csrc") else "") for m in wanted]
    return {copy.name: place for copy, place in zip(made, copies.build(directory, made), strict=True)}
