"""What goes on in stores: how fast they are published, who is behind, who holds what; by looking twice."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from shmcow import _core, segments
from shmcow.errors import ShmcowError, StoreNotFoundError
from shmcow.fdinfo import command_of
from shmcow.holders import Holder, Ranges, holders_of

__all__ = ["Activity", "Holding", "activity"]

_UNMARKED: Final = "its holds file has gone: nobody can tell who reads it"


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """What a process holds of a store.

    Attributes:
        pid: of the process; 0: processes that this user may not look into.
        command: its command line, with the program's name without its directory; "" for pid 0.
        held: (first, last) versions.
        behind: how many versions the oldest of them is behind the current one.
    """

    pid: int
    command: str
    held: Ranges
    behind: int


@dataclasses.dataclass(frozen=True, slots=True)
class Activity:
    """What goes on in one store.

    Attributes:
        name: of the store.
        looked_at: when, in seconds of ``time.monotonic``.
        epoch: tells stores of one name apart.
        version: the current one; 0 before the first; -1 when the store is being destroyed.
        versions: how many are alive.
        total_bytes: of all its segments in shared memory.
        max_total_bytes: the most that there may be; 0: no limit.
        published_per_second: since the look before; None: there was none, or it was another store.
        readers: processes that hold or have seen a version, of those that this user may look into.
        lagging: how many of them are behind.
        behind: how many versions the last of them is behind the current one.
        holds: who holds what, the oldest first.
        problem: what is wrong, or ""; the figures are 0, and the epoch is "", if the store cannot be read.
    """

    name: str
    looked_at: float
    epoch: str = ""
    version: int = 0
    versions: int = 0
    total_bytes: int = 0
    max_total_bytes: int = 0
    published_per_second: float | None = None
    readers: int = 0
    lagging: int = 0
    behind: int = 0
    holds: tuple[Holding, ...] = ()
    problem: str = ""


class _Look(NamedTuple):
    """A store as it was found, before the look at the processes."""

    store: _core.Store
    seen: Activity
    marked: frozenset[int]


def activity(names: Sequence[str] = (), before: Iterable[Activity] = ()) -> list[Activity]:
    """Look at stores, and at all processes once, and tell what goes on.

    Args:
        names: of the stores; none: all of this machine.
        before: what an earlier look returned: the rates are those since then.

    Returns:
        What was found, by name. A store that cannot be read, or one of ``names`` that is not there, has a ``problem``.

    Raises:
        ValueError: what is no store's name.

    Concurrency: any thread; reads only, takes no lock, and no process notices. Stores and processes are looked at one
    after the other, so the figures are of a short while, and not of a moment.

    Example:
        >>> import shmcow
        >>> with shmcow.Writer("doc-rates", initial={"n": 0}) as w:
        ...     first = shmcow.inspect.activity(["doc-rates"])
        ...     version = w.publish({"n": 1})
        ...     (now,) = shmcow.inspect.activity(["doc-rates"], first)
        ...     w.destroy()
        >>> now.version, now.published_per_second > 0
        (2, True)
    """
    earlier = {item.name: item for item in before}
    found: dict[str, _Look | Activity] = {}
    for name in sorted({segments.check_name(name) for name in names}) or _all():
        try:
            found[name] = _look(name, earlier.get(name))
        except StoreNotFoundError as exc:
            if names:  # one of all that has gone meanwhile is no problem
                found[name] = Activity(name, time.monotonic(), problem=str(exc))
        except (ShmcowError, OSError) as exc:
            found[name] = Activity(name, time.monotonic(), problem=str(exc))
    holders = holders_of(look.store for look in found.values() if isinstance(look, _Look))
    return [
        _with_processes(look, holders[look.store.prefix]) if isinstance(look, _Look) else look
        for look in found.values()
    ]


def _all() -> list[str]:
    return [item.store for item in segments.found() if item.what == "header"]


def _look(name: str, before: Activity | None) -> _Look:
    store = _core.Store(segments.header_path(name))
    rows = store.generations()
    marked = _marked(store, {row[0] for row in rows})
    epoch = store.epoch.hex()
    word, at = store.word, time.monotonic()
    version = -1 if word == _core.DESTROYED else word & _core.VERSION_MAX
    rate = None
    if before is not None and before.epoch == epoch and 0 <= before.version <= version:
        rate = (version - before.version) / max(at - before.looked_at, 1e-9)
    seen = Activity(
        name=name,
        looked_at=at,
        epoch=epoch,
        version=version,
        versions=len(rows),
        total_bytes=store.total_bytes,
        max_total_bytes=store.max_total_bytes,
        published_per_second=rate,
        problem="" if os.path.exists(store.prefix + "holds") else _UNMARKED,
    )
    return _Look(store, seen, marked)


def _with_processes(look: _Look, holders: Sequence[Holder]) -> Activity:
    version = look.seen.version
    behind = [_behind(version, holder.held + holder.seen) for holder in holders]
    holds = [
        Holding(holder.pid, command_of(holder.pid), holder.held, _behind(version, holder.held))
        for holder in holders
        if holder.held
    ]
    # Whose it is cannot be seen; marked before and after the look at the processes: it is none that has just moved on.
    unseen = {item for item in look.marked if not any(a <= item <= b for hold in holds for a, b in hold.held)}
    ranges = tuple((item, item) for item in sorted(_marked(look.store, unseen)))
    if ranges:
        holds.append(Holding(0, "", ranges, _behind(version, ranges)))
    return dataclasses.replace(
        look.seen,
        readers=len(holders),
        lagging=sum(n > 0 for n in behind),
        behind=max(behind, default=0),
        holds=tuple(sorted(holds, key=lambda hold: (-hold.behind, hold.pid))),
    )


def _behind(version: int, ranges: Ranges) -> int:
    return max(0, version - min((first for first, _ in ranges), default=version))


def _marked(store: _core.Store, versions: Iterable[int]) -> frozenset[int]:
    """Return those versions that any process holds, also one that this user may not look into."""
    try:
        return frozenset(version for version in versions if store.marked(version))
    except (ShmcowError, OSError):
        return frozenset()
