"""Who holds what: each process's markers on a store, as the kernel shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shmcow import _core
from shmcow.fdinfo import describe_process, locks_on_any, pids

Ranges = tuple[tuple[int, int], ...]


class Holder(NamedTuple):
    """A process with markers on a store, as seen from this process's pid namespace."""

    pid: int
    held: Ranges  # (first, last) versions that it holds
    seen: Ranges  # (first, last) versions that its readers return


def holders(store: _core.Store) -> Iterator[Holder]:
    """Yield every process with a marker on a store, by pid.

    A process that this user may not look into is left out.
    """
    yield from holders_of([store])[store.prefix]


def holders_of(stores: Iterable[_core.Store]) -> dict[str, list[Holder]]:
    """Do for many stores, in one look at all processes, what ``holders`` does for one; by the stores' ``prefix``."""
    found: dict[str, dict[int, list[tuple[int, int]]]] = {store.prefix: {} for store in stores}
    for path, lock in locks_on_any([prefix + "holds" for prefix in found], pids()):
        found[path.removesuffix("holds")].setdefault(lock.pid, []).append((lock.first, lock.last))
    return {prefix: [holder_of(pid, ranges) for pid, ranges in by_pid.items()] for prefix, by_pid in found.items()}


def holder_of(pid: int, ranges: list[tuple[int, int]]) -> Holder:
    """Tell what the locks of a process on a store's holds file mean: (first, last) bytes of each."""
    return Holder(pid, _within(ranges, _core.HELD_AT), _within(ranges, _core.SEEN_AT))


def _within(ranges: list[tuple[int, int]], base: int) -> Ranges:
    top = base + _core.VERSION_MAX
    return tuple(
        sorted((max(first - base, 1), min(last, top) - base) for first, last in ranges if first <= top and last > base)
    )


def name_holders(
    store: _core.Store, first: int, last: int, seen: bool = False, most: int = 5, but: frozenset[int] = frozenset()
) -> str:
    """Say, for an error message, which processes hold (or have seen) versions ``first`` to ``last``.

    Those in ``but`` are left out, having been named before; "" if there are no others.
    """
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
    found = [each for each in found if each[0] not in but]
    said = [f"{_versions(low, high)} by {describe_process(pid)}" for pid, low, high in found[:most]]
    if len(found) > most:
        said.append(f"{len(found) - most} more")
    return ", ".join(said)


def holding(store: _core.Store, last: int) -> frozenset[int]:
    """Return the processes that hold a version up to ``last``, as far as this user may look into them."""
    try:
        return frozenset(holder.pid for holder in holders(store) if any(low <= last for low, _ in holder.held))
    except OSError:
        return frozenset()


def _versions(low: int, high: int) -> str:
    return f"version {low}" if low == high else f"versions {low} to {high}"
