"""Weakened builds of shmcow, each of which a sweep must find a violation in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import copies
import sweep_tracer


class Mutant(NamedTuple):
    """One change of the source.

    Attributes:
        file: below the root.
        build: the C file to compile anew, "" for a change in Python.
        task: the sweep that must find it.
        more_old, more_new: a second change that it needs in the same file; "": none.
    """

    name: str
    file: str
    old: str
    new: str
    build: str
    task: dict[str, Any]
    more_old: str = ""
    more_new: str = ""

    @property
    def edits(self) -> tuple[copies.Edit, ...]:
        """The changes."""
        second = (copies.Edit(self.file, self.more_old, self.more_new),) if self.more_old else ()
        return (copies.Edit(self.file, self.old, self.new), *second)


def _kill(name: str, where: int = sweep_tracer.KILL_AT_ENTRY) -> dict[str, Any]:
    return {"do": "kill", "name": name, "wheres": [where], "where_to_stop": 1}


def _fail(name: str, error: str) -> dict[str, Any]:
    return {"do": "fail", "name": name, "errors": [error], "stop": 1}


MUTANTS = (
    Mutant(
        "recovery leaves what was half-built",
        "csrc/shmcow_protocol.h",
        "case SHMCOW_BUILDING: /* never seen by a reader */\n            r = shmcow_drop(h, ops, ctx, i);",
        "case SHMCOW_BUILDING:\n            r = SHMCOW_OK;",
        "core_writer",
        _kill("publish"),
    ),
    Mutant(
        "flip before fill",
        "csrc/shmcow_protocol.h",
        '    SHMCOW_STEP("publish.building");\n',
        "    uint64_t early = shmcow_load_current(h);\n"
        "    (void)shmcow_flip(h, &early, shmcow_current_word(i, entry->version));\n",
        "core_writer",
        _kill("publish"),
        "r = shmcow_flip(h, &now, shmcow_current_word(i, entry->version));",
        "r = SHMCOW_OK;",
    ),
    Mutant(
        "segments unlinked that another version lists",
        "csrc/shmcow_protocol.h",
        "if (segment == 0 || shmcow_listed(h, segment, i))",
        "if (segment == 0)",
        "core_writer",
        _kill("rollback"),
    ),
    Mutant(
        "no DOOMED: what is half-removed is judged again",
        "csrc/shmcow_protocol.h",
        "    r = shmcow_advance(h, i, version, SHMCOW_CONDEMNED, SHMCOW_DOOMED);\n",
        "    r = SHMCOW_OK;\n",
        "core_writer",
        _kill("reclaim, readers come late"),
    ),
    Mutant(
        "the header is visible before it is whole",
        "csrc/shmcow_os.h",
        "open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)",
        "open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600 + 0 * (int)directory[0])",
        "core_module",
        _kill("create"),
        "linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0",
        "self[0] == 0",
    ),
    Mutant(
        "nothing is swept",
        "shmcow/segments.py",
        "    items = list(found(store))\n",
        "    items: list[Found] = []\n",
        "",
        _kill("create"),
    ),
    Mutant(
        "a segment keeps its permissions if they cannot be set",
        "csrc/core_fill.c",
        "if (fchmod(fd, store->identity.mode & 0444) < 0)\n        return -errno;",
        "(void)fchmod(fd, store->identity.mode & 0444);",
        "core_fill",
        _fail("publish", "EIO"),
    ),
    Mutant(
        "a segment that cannot be mapped stays open",
        "csrc/core_hold.c",
        "    close(fd);\n    if (r < 0)\n        return r;\n    shmcow_footer footer;",
        "    if (r < 0)\n        return r;\n    close(fd);\n    shmcow_footer footer;",
        "core_hold",
        _fail("hold", "ENOMEM"),
    ),
    Mutant(
        "a lock file that cannot be looked at counts as lost",
        "shmcow/store.py",
        "    except FileNotFoundError:\n        return True\n    return False",
        "    except OSError:\n        return True\n    return False",
        "",
        _fail("attach a writer", "EIO"),
    ),
)


def build_all(directory: Path) -> dict[str, Path]:
    """Build every mutant; returns the directory that holds its package, by name."""
    made = [copies.Copy(m.name, m.edits, m.build) for m in MUTANTS]
    return {copy.name: place for copy, place in zip(made, copies.build(directory, made), strict=True)}
