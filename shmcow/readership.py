"""Who reads a store: each process, what it holds and has seen, and how far behind it is."""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
from collections import Counter
from typing import Final

from shmcow import _core, fdinfo
from shmcow.holders import Holder, Ranges, holder_of, holders
from shmcow.segments import DIRECTORY, PREFIX, check_name, header_path

__all__ = ["Hidden", "ReaderProcess", "ReadersReport", "readers"]

_LOOKS: Final = 4  # at the locks: what is there in all of them is no reader that just went on to another version


@dataclasses.dataclass(frozen=True, slots=True)
class ReaderProcess:
    """A process that reads a store.

    Attributes:
        pid: in the pid namespace of who asks.
        uid: its effective user.
        user: the name of that user, or else the number.
        command: its command line, with the program's name without its directory.
        state: "running" (or ready to, or asleep), "stopped" (by a signal), "traced" (by a debugger), or "dead".
        held: (first, last) versions that it holds.
        seen: (first, last) versions that its readers return.
        behind: how many versions the oldest of all these is behind the current one.
        mapped_bytes: of the store's segments in its address space, by whole pages; None: it is not known.
    """

    pid: int
    uid: int
    user: str
    command: str
    state: str
    held: Ranges
    seen: Ranges
    behind: int
    mapped_bytes: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Hidden:
    """What processes have that cannot be looked into: of other users, or outside this pid namespace.

    Attributes:
        processes: how many there are at least.
        held: (first, last) versions that they hold; equal ones come once for each process.
        seen: (first, last) versions that their readers return; of one that reads on meanwhile it is not known.
    """

    processes: int
    held: Ranges
    seen: Ranges


@dataclasses.dataclass(frozen=True, slots=True)
class ReadersReport:
    """The readers of one store, at one moment.

    Attributes:
        version: the current one; 0 before the first; -1 when the store is being destroyed.
        processes: those that can be looked into, the one that is most behind first.
        hidden: what others have, or None: nobody else reads it.
        refused: how many processes of this machine, readers or not, this user may not look into.
    """

    name: str
    epoch: str
    version: int
    processes: tuple[ReaderProcess, ...]
    hidden: Hidden | None
    refused: int


def readers(name: str) -> ReadersReport:
    """Report which processes read a store.

    A process counts from its first ``get()`` on, and until it ends or closes its readers: the kernel keeps the markers.
    One that was forked, and has not read since, does not count yet.

    Args:
        name: of the store.

    Returns:
        The report. Processes of other users can be looked into by root only; that they are there is told even so, by
        the kernel's list of all locks.

    Raises:
        StoreNotFoundError: there is no store of that name.
        IncompatibleStoreError, CorruptSegmentError: its header cannot be read.
        NotOwnerError: its permissions do not let this process read it.

    Concurrency: any thread; reads only, takes no lock, and no process notices. Processes are looked at one after the
    other: while versions are published the report is of a short while, and not of a moment.
    """
    store = _core.Store(header_path(check_name(name)))
    word = store.word
    version = -1 if word == _core.DESTROYED else word & _core.VERSION_MAX
    described = [_describe(store, holder, version) for holder in holders(store)]
    found = [process for process in described if process is not None]
    return ReadersReport(
        name=store.name,
        epoch=store.epoch.hex(),
        version=version,
        processes=tuple(sorted(found, key=lambda process: (-process.behind, process.pid))),
        hidden=_hidden(store),
        refused=fdinfo.refused(fdinfo.pids()),
    )


def _describe(store: _core.Store, holder: Holder, version: int) -> ReaderProcess | None:
    """Return what /proc tells of a process; None: it has gone."""
    try:
        with open(f"/proc/{holder.pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status if ":" in line)
        uid = int(fields["Uid"].split()[1])
        letter = fields["State"].split()[0]
    except (OSError, KeyError):
        return None
    oldest = min((first for first, _ in holder.held + holder.seen), default=version)
    return ReaderProcess(
        pid=holder.pid,
        uid=uid,
        user=_user(uid),
        command=fdinfo.command_of(holder.pid),
        state={"T": "stopped", "t": "traced", "Z": "dead", "X": "dead"}.get(letter, "running"),
        held=holder.held,
        seen=holder.seen,
        behind=max(0, version - oldest),
        mapped_bytes=_mapped(store, holder.pid),
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _mapped(store: _core.Store, pid: int) -> int | None:
    """Return how many bytes of a store's segments a process has mapped, the unlinked ones included."""
    # By the file's own name: a container may have mounted the directory elsewhere.
    segment = re.compile(rf"/{re.escape(PREFIX + store.name)}\.[0-9a-f]{{32}}\.[0-9]+(?: \(deleted\))?$")
    st = os.stat(DIRECTORY)
    device = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}"
    total = 0
    try:
        with open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                fields = line.rstrip("\n").split(maxsplit=5)
                if len(fields) == 6 and fields[3] == device and segment.search(fields[5]):
                    first, _, end = fields[0].partition("-")
                    total += int(end, 16) - int(first, 16)
    except OSError:
        return None
    return total


def _hidden(store: _core.Store) -> Hidden | None:
    """Return what nobody has that can be looked into, though the kernel knows of it."""
    path = store.prefix + "holds"
    always: Counter[tuple[int, int]] | None = None
    processes: int | None = None
    for _ in range(_LOOKS):
        try:
            before = Counter(fdinfo.locks_shown(path))
            known = Counter((lock.first, lock.last) for lock in fdinfo.locks_on(path, fdinfo.pids()))
            there = Counter(fdinfo.locks_shown(path)) & before
        except OSError:
            return None  # this kernel has no such list
        unknown = there - known
        always = unknown if always is None else always & unknown
        readers_there, readers_known = (
            sum(n for lock, n in locks.items() if lock[0] >= _core.SEEN_AT) for locks in (there, known)
        )
        processes = min(max(0, readers_there - readers_known), readers_there if processes is None else processes)
        if not always and not processes:
            return None
    assert always is not None
    assert processes is not None
    hidden = holder_of(0, list(always.elements()))
    return Hidden(max(processes, 1), hidden.held, hidden.seen)
