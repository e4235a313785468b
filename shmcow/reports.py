"""What there is to know about stores, as typed, read-only records; ``shmcow.inspect`` has these, and more.

Reading writes nothing, takes no lock and needs no write permission.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from shmcow import _core, segments
from shmcow.errors import ShmcowError, StoreNotFoundError
from shmcow.feeding import FeedState, feed_state
from shmcow.holders import holders, holders_of
from shmcow.store import COUNTERS, STATES

__all__ = ["Generation", "Overview", "StoreReport", "describe", "held_by", "list_stores", "overview"]


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """One entry of a store's generation table.

    Attributes:
        version: its version.
        state: "building", "ready", "held" (published), "condemned" or "doomed".
        current: whether this is the version that readers get.
        marked: whether any process holds it.
        damaged: whether its entry cannot be read; the fields below are then empty.
        segments: ids of its segments.
        size_bytes: of its payload.
        parts: names of its parts; one empty name when it is no bundle.
        rollback_of: the version whose content it repeats, or None.
    """

    version: int
    state: str
    current: bool
    marked: bool
    damaged: bool
    segments: tuple[int, ...]
    size_bytes: int
    parts: tuple[str, ...]
    published_at: datetime.datetime | None
    pid: int
    uid: int
    author: str
    message: str
    source: str
    codec: str
    type_name: str
    rollback_of: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class StoreReport:
    """One store, at one moment.

    Attributes:
        version: the current one; 0 before the first; -1 when the store is being destroyed.
        total_bytes: of all its segments in shared memory.
        generations: newest first.
        counters: what its writers have counted since it was created.
        feed: the state of the process that feeds it from a source; None: it was never fed.
    """

    name: str
    epoch: str
    version: int
    uid: int
    gid: int
    mode: int
    created_at: datetime.datetime
    retain: int
    max_total_bytes: int
    total_bytes: int
    generations: tuple[Generation, ...]
    counters: dict[str, int]
    feed: FeedState | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Overview:
    """One store among others.

    Attributes:
        report: what ``describe`` says; None: it cannot be read.
        readers: how many processes hold or have seen a version, of those that this user may look into.
        problem: why it cannot be read; "" if it can.
    """

    name: str
    report: StoreReport | None
    readers: int
    problem: str


def overview() -> list[Overview]:
    """Report on all stores of this machine, sorted by name, with one look at all processes.

    A store that vanishes meanwhile is left out; one that cannot be read says why.

    Concurrency: any thread; reads only.
    """
    found: dict[str, tuple[_core.Store | None, StoreReport | None, str]] = {}
    for name in list_stores():
        try:
            store = _core.Store(segments.header_path(name))
            found[name] = store, _report(store), ""
        except StoreNotFoundError:
            continue
        except (ShmcowError, OSError) as exc:
            found[name] = None, None, str(exc)
    readers = holders_of(store for store, _, _ in found.values() if store is not None)
    return [
        Overview(name, report, len(readers[store.prefix]) if store is not None else 0, problem)
        for name, (store, report, problem) in found.items()
    ]


def list_stores() -> list[str]:
    """Return the names of all stores on this machine, sorted."""
    return [item.store for item in segments.found() if item.what == "header"]


def describe(name: str) -> StoreReport:
    """Report on one store.

    Raises:
        StoreNotFoundError: there is none of that name.
        IncompatibleStoreError, CorruptSegmentError: its header cannot be read.
        NotOwnerError: its permissions do not let this process read it.
    """
    return _report(_core.Store(segments.header_path(segments.check_name(name))))


def held_by(name: str) -> dict[int, tuple[int, ...]]:
    """Tell which processes hold which versions of a store, of those that this user may look into.

    Returns:
        Pids, ascending, by version; versions that nobody holds are left out.

    Raises:
        StoreNotFoundError, IncompatibleStoreError, CorruptSegmentError, NotOwnerError: as ``describe``.

    Concurrency: any thread; looks at all processes, one after the other.
    """
    store = _core.Store(segments.header_path(segments.check_name(name)))
    versions = [version for version, _, _ in store.generations()]
    found: dict[int, set[int]] = {}
    for holder in holders(store):
        for version in versions:
            if any(first <= version <= last for first, last in holder.held):
                found.setdefault(version, set()).add(holder.pid)
    return {version: tuple(sorted(pids)) for version, pids in sorted(found.items())}


def _report(store: _core.Store) -> StoreReport:
    word = store.word
    current = -1 if word == _core.DESTROYED else word & _core.VERSION_MAX
    rows = sorted(store.generations(), key=lambda row: row[0], reverse=True)
    return StoreReport(
        name=store.name,
        epoch=store.epoch.hex(),
        version=current,
        uid=store.uid,
        gid=store.gid,
        mode=store.mode,
        created_at=_time(store.created_ns),
        retain=store.retain,
        max_total_bytes=store.max_total_bytes,
        total_bytes=store.total_bytes,
        generations=tuple(_generation(store, current, *row) for row in rows),
        counters=dict(zip(COUNTERS, store.counters(), strict=True)),
        feed=feed_state(store),
    )


def _time(ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC)


def _generation(store: _core.Store, current: int, version: int, state: int, entry: dict[str, Any] | None) -> Generation:
    try:
        marked = store.marked(version)
    except (ShmcowError, OSError):
        marked = False
    known = entry or {}
    parts = known.get("parts", [])
    return Generation(
        version=version,
        state=STATES[state] if state < len(STATES) else f"unknown ({state})",
        current=version == current,
        marked=marked,
        damaged=entry is None,
        segments=tuple(part["segment"] for part in parts),
        size_bytes=sum(part["length"] for part in parts),
        parts=tuple(part["name"] for part in parts),
        published_at=_time(known["published_ns"]) if known else None,
        pid=known.get("pid", 0),
        uid=known.get("uid", 0),
        author=known.get("author", ""),
        message=known.get("message", ""),
        source=known.get("source", ""),
        codec=known.get("codec", ""),
        type_name=known.get("type_name", ""),
        rollback_of=known.get("origin") or None,
    )
