"""Giving up a version by hand: what goes with it, what other versions keep, and who has it still."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

from shmcow import _core
from shmcow.holders import holders
from shmcow.store import Turn, gone

__all__ = ["Dropped", "discard", "look", "with_holders"]


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """A version that was given up, or would be.

    Attributes:
        version: its version.
        size_bytes: of shared memory that only this version takes. It is free again when nobody holds it.
        shared_with: other versions that list some of its segments: that content stays until they go, too.
        held: whether any process holds it. It keeps its memory until it lets go; nobody else can open it.
        holders: pids of those that do, as far as this user may look.
        seen_by: pids of processes whose last ``get()`` returned it: they may have a decoded copy in their own memory
            until they read again.
    """

    version: int
    size_bytes: int
    shared_with: tuple[int, ...]
    held: bool
    holders: tuple[int, ...]
    seen_by: tuple[int, ...]


def look(store: _core.Store, version: int) -> Dropped:
    """Say what giving up a version would do, but not who has it.

    Raises:
        ValueError: it is the current one.
        VersionGoneError: it cannot be opened any more, or was never published.

    Concurrency: reads only; what it says is true for a moment, unless the writer lock is held.
    """
    current = store.version
    if version == current:
        raise ValueError(
            f"version {version} of store {store.name} is current, and readers need it: publish another value or roll "
            "back first, then drop it"
        )
    segments: dict[int, set[int]] = {}  # of each version that is not free
    for number, _, entry in store.generations():
        segments[number] = _segments(entry)
    if version not in segments or version > current:
        raise gone(store, version)
    mine = segments.pop(version)
    shared_with = tuple(sorted(number for number, listed in segments.items() if listed & mine))
    own = mine.difference(*segments.values())
    return Dropped(version, sum(_bytes(store, k) for k in own), shared_with, False, (), ())


def with_holders(store: _core.Store, found: Dropped) -> Dropped:
    """Add who has a version: a look at all processes, so not under the writer lock.

    Concurrency: reads only. After a drop nobody new can come to hold it.
    """
    holding, seen = _who(store, found.version)
    return dataclasses.replace(found, held=store.marked(found.version), holders=holding, seen_by=seen)


def discard(turn: Turn, version: int) -> Dropped:
    """Give up an older version, in a turn: it cannot be opened from here on.

    Its names go even if somebody holds it. Whoever does keeps its mapping, and the kernel frees the memory with the
    last one; a segment that another version lists stays.

    Raises:
        ValueError, VersionGoneError: as ``look``.
    """
    found = look(turn.store, version)
    turn.check_still_ours()
    turn.core.discard(version, True)
    return found


def _segments(entry: dict[str, Any] | None) -> set[int]:
    return {part["segment"] for part in entry["parts"]} if entry is not None else set()


def _bytes(store: _core.Store, segment: int) -> int:
    with contextlib.suppress(OSError):
        return os.lstat(f"{store.prefix}{segment}").st_blocks * 512
    return 0


def _who(store: _core.Store, version: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    try:
        found = list(holders(store))
    except OSError:
        return (), ()
    return (
        tuple(holder.pid for holder in found if any(low <= version <= high for low, high in holder.held)),
        tuple(holder.pid for holder in found if any(low <= version <= high for low, high in holder.seen)),
    )
