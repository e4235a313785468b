"""Build tracer.c, and run victims under it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

TRACE, KILL_AT_ENTRY, KILL_AT_EXIT, FAIL, FAIL_FROM = range(5)
EXITED, DONE, HUNG, LOST = range(4)
ROOM = 20_000  # calls; whoever makes more between begin and end hangs
SECONDS = 30.0


# Calls that the interpreter's allocator makes now and then, beside those of ours (which map as well).
ALLOCATOR = frozenset(("brk", "mmap", "munmap", "madvise", "mremap"))


def without_allocator(names: Iterable[str]) -> list[str]:
    """Leave out what may differ from run to run."""
    return [name for name in names if name not in ALLOCATOR]


def without_more_listing(names: Iterable[str]) -> list[str]:
    """Leave out what the tracer does not count: of reads of a directory in a row all but the first two."""
    kept: list[str] = []
    for name in names:
        if name != "getdents64" or kept[-2:] != [name, name]:
            kept.append(name)
    return kept


class _Plan(ctypes.Structure):
    _fields_ = (
        ("what", ctypes.c_int),
        ("at", ctypes.c_int),
        ("error", ctypes.c_int),
        ("seconds", ctypes.c_double),
        ("end", ctypes.c_int),
        ("status", ctypes.c_int),
        ("struck", ctypes.c_int),
        ("calls", ctypes.c_int),
        ("room", ctypes.c_int),
        ("numbers", ctypes.POINTER(ctypes.c_int)),
    )


class Trace(NamedTuple):
    """What became of a victim.

    Attributes:
        end: EXITED (before the end mark), DONE (it runs on, untraced), HUNG or LOST.
        exit: its exit status or minus the signal, with EXITED.
        struck: how many calls failed, or whether it was killed.
        names: of the system calls, in order.
    """

    end: int
    exit: int
    struck: int
    names: list[str]


def compiler() -> str | None:
    """Return the C compiler, or None."""
    return shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")


def build(directory: Path) -> None:
    """Build the tracer, and write the names of this machine's system calls beside it."""
    cc = compiler() or "cc"
    source = Path(__file__).with_name("tracer.c")
    command = [cc, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", str(source)]
    subprocess.run([*command, "-o", str(directory / "tracer.so")], check=True)
    macros = subprocess.run(
        [cc, "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = re.findall(r"^#define __NR_(\w+) (\d+)$", macros, re.MULTILINE)
    (directory / "names.txt").write_text("".join(f"{number} {name}\n" for name, number in names))


class Tracer:
    """The tracer in this process: victims are its children."""

    def __init__(self, directory: Path) -> None:
        self._library = ctypes.PyDLL(str(directory / "tracer.so"))  # the lock is kept: no thread, so no futex
        lines = (directory / "names.txt").read_text().splitlines()
        self._names = {int(number): name for number, name in (line.split() for line in lines)}
        self._numbers = (ctypes.c_int * ROOM)()

    def begin(self, traced: bool) -> None:
        """Mark, in the victim, the begin of what is under test."""
        self._library.sweep_begin(int(traced))

    def end(self) -> None:
        """Mark, in the victim, the end of what is under test."""
        self._library.sweep_end()

    def let_trace(self) -> None:
        """Let anybody of this user trace this process."""
        self._library.sweep_let_trace()

    def run(self, pid: int, what: int = TRACE, at: int = 0, error: int = 0) -> Trace:
        """Follow a victim to its end mark or its death, and strike at a call."""
        plan = _Plan(what=what, at=at, error=error, seconds=SECONDS, room=ROOM, numbers=self._numbers)
        self._library.sweep_run(pid, ctypes.byref(plan))
        code = 0
        if plan.end != DONE:
            code = os.waitstatus_to_exitcode(plan.status)
        return Trace(plan.end, code, plan.struck, self.names(self._numbers[: min(plan.calls, ROOM)]))

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Return the names of system calls."""
        return [self._names.get(number, f"#{number}") for number in numbers]
