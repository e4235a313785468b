"""Who holds what: the kernel shows each process's markers in its fdinfo; psutil says who the process is.

Needs no cooperation of the holder, writes nothing, and sees the processes that this user may look into (root: all).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from shmcow import _core


class Holder(NamedTuple):
    """A process with markers on a store, as seen from this process's pid namespace."""

    pid: int
    held: tuple[tuple[int, int], ...]  # (first, last) versions that it holds
    seen: tuple[tuple[int, int], ...]  # (first, last) versions that its readers return


def holders(store: _core.Store) -> Iterator[Holder]:
    """Yield every process with a marker on a store, by pid.

    A process that this user may not look into is left out.
    """
    target = os.stat(store.prefix + "holds")
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        ranges = [found for number in _open_on(pid, target) for found in _locks(pid, number)]
        if ranges:
            yield Holder(pid, _within(ranges, _core.HELD_AT), _within(ranges, _core.SEEN_AT))


def _within(ranges: list[tuple[int, int]], base: int) -> tuple[tuple[int, int], ...]:
    top = base + _core.VERSION_MAX
    return tuple(
        sorted((max(first - base, 1), min(last, top) - base) for first, last in ranges if first <= top and last > base)
    )


def _open_on(pid: int, target: os.stat_result) -> Iterator[str]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # ended, or another user's
        return
    for number in numbers:
        try:
            st = os.stat(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
        if (st.st_dev, st.st_ino) == (target.st_dev, target.st_ino):
            yield number


def _locks(pid: int, number: str) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of the locks of one descriptor; the kernel joins neighbours into one."""
    try:
        with open(f"/proc/{pid}/fdinfo/{number}") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("lock:") and "OFDLCK" in line:
            first, last = line.split()[-2:]
            yield int(first), (1 << 63) - 1 if last == "EOF" else int(last)


def name_holders(store: _core.Store, first: int, last: int, seen: bool = False, most: int = 5) -> str:
    """Say, for an error message, which processes hold (or have seen) versions ``first`` to ``last``."""
    try:
        found = [
            (holder.pid, max(first, low), min(last, high))
            for holder in holders(store)
            for low, high in (holder.seen if seen else holder.held)
            if low <= last and high >= first
        ]
    except OSError:
        found = []
    if not found:
        return "by processes that this user may not look into (root may)"
    said = [f"{_versions(low, high)} by {_process(pid)}" for pid, low, high in found[:most]]
    if len(found) > most:
        said.append(f"{len(found) - most} more")
    return ", ".join(said)


def _versions(low: int, high: int) -> str:
    return f"version {low}" if low == high else f"versions {low} to {high}"


def _process(pid: int) -> str:
    try:
        import psutil  # only where people are told who it is

        process = psutil.Process(pid)
        return f"pid {pid} ({' '.join(process.cmdline())[:60] or process.name()}, {process.status()})"
    except Exception:
        return f"pid {pid}"
