"""Who has a lock on a file: the kernel shows the locks of each descriptor in /proc/<pid>/fdinfo.

Needs no cooperation, writes nothing, and sees the processes that this user may look into (root: all), in the pid
namespace that /proc shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Lock(NamedTuple):
    """A lock of one process on a file; the kernel joins neighbouring bytes into one."""

    pid: int
    write: bool
    first: int  # byte
    last: int


def pids() -> Iterator[int]:
    """Yield the pid of every process that /proc shows."""
    yield from sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def locks_on(path: str, of: Iterable[int]) -> Iterator[Lock]:
    """Yield the locks that some processes have on a file.

    Args:
        path: of the file.
        of: pids of the processes; who has gone or may not be looked into is left out.

    Raises:
        FileNotFoundError: there is no such file.
    """
    os.stat(path)
    return (lock for _, lock in locks_on_any([path], of))


def locks_on_any(paths: Iterable[str], of: Iterable[int]) -> Iterator[tuple[str, Lock]]:
    """Yield the locks that some processes have on any of some files, with the file's path, process by process.

    Args:
        paths: of the files; those that have gone are left out.
        of: as for ``locks_on``.
    """
    files = {}
    for path in paths:
        try:
            st = os.stat(path)
        except FileNotFoundError:
            continue
        files[f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"] = path  # as fdinfo writes it
    for pid in of:
        for line in _lock_lines(pid):
            words = line.split()
            for file in words:
                if file in files:
                    first, last = words[-2:]
                    top = (1 << 63) - 1 if last == "EOF" else int(last)
                    yield files[file], Lock(pid, "WRITE" in words, int(first), top)


def _lock_lines(pid: int) -> Iterator[str]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return
    for number in numbers:
        try:
            with open(f"/proc/{pid}/fdinfo/{number}") as info:
                yield from [line for line in info if line.startswith("lock:")]
        except OSError:
            continue


def command_of(pid: int) -> str:
    """Return a process's command line, the program's name without its directory; "" if it has gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            words = cmdline.read().rstrip(b"\0").split(b"\0")
        program, *arguments = [word.decode(errors="backslashreplace") for word in words]
        if program:
            return " ".join([os.path.basename(program), *arguments])
        with open(f"/proc/{pid}/comm", errors="backslashreplace") as name:
            return name.read().rstrip("\n")
    except OSError:
        return ""


def describe_process(pid: int) -> str:
    """Say for people which process a pid is."""
    try:
        import psutil  # only where people are told who it is

        process = psutil.Process(pid)
        program, *arguments = process.cmdline() or [process.name()]
        words = " ".join([os.path.basename(program), *arguments])
        shown = "".join(letter if letter.isprintable() else " " for letter in words)
        shown = shown if len(shown) <= 100 else shown[:100] + "…"
        mine = ", this process" if pid == os.getpid() else ""
        return f"pid {pid} ({shown}, {process.status()}{mine})"
    except Exception:
        return f"pid {pid}"


def locks_shown(path: str, *, write: bool = False) -> list[tuple[int, int]]:
    """Return the (first, last) bytes of every lock on a file, whoever has it: /proc/locks tells of all processes.

    Args:
        path: of the file, which need not be readable.
        write: whether to return the write locks, and not the read locks.

    Raises:
        OSError: there is no such file, or no /proc/locks.
    """
    st = os.stat(path)
    kind = "WRITE" if write else "READ"
    file = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
    with open("/proc/locks") as shown:
        lines = [line.split() for line in shown if file in line]
    return [
        (int(words[-2]), (1 << 63) - 1 if words[-1] == "EOF" else int(words[-1]))
        for words in lines
        if file in words and kind in words and "->" not in words  # an arrow: it waits for its lock
    ]


def refused(of: Iterable[int]) -> int:
    """Count the processes that this user may not look into.

    Args:
        of: pids of the processes; who has gone is not counted.
    """
    count = 0
    for pid in of:
        try:
            os.listdir(f"/proc/{pid}/fdinfo")
        except PermissionError:
            count += 1
        except OSError:
            continue
    return count
