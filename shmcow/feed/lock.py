"""The feed of one store: the feed lock, and what the follower says in the header."""

from __future__ import annotations

import time

from shmcow import _core, fdinfo
from shmcow.encoded import bounded
from shmcow.errors import CorruptSegmentError, FollowerBusyError
from shmcow.store import attach

__all__ = ["Feed"]

_SOURCE, _ERROR = 128, 256  # bytes in the header


class Feed:
    """The feed lock of a store, taken, and the state that its holder writes.

    The counts, the last success and the last failure of the followers before are gone on with.

    Args:
        name: of the store, which exists.
        source: what it is fed from, for people.
        every: the interval that is promised, in seconds; None: none.

    Raises:
        FollowerBusyError: another process has the lock; names it.
        StoreNotFoundError, StoreDestroyedError, NotOwnerError: it cannot be written.

    Concurrency: one thread. The lock is this process's: a forked child has none, and the kernel drops it at any death.
    """

    def __init__(self, name: str, source: str, every: float | None) -> None:
        self._store = attach(name)
        self._core = _core.FeedCore(self._store)
        if not self._core.take():
            raise FollowerBusyError(
                f"store {name} is fed already, {_who(self._store)}: a store has one follower; end that one first"
            )
        self._source = bounded("source", source, _SOURCE)
        self._started, self._every = time.time_ns(), round((every or 0.0) * 1e9)
        try:
            before = self._store.feed() or {}
        except CorruptSegmentError:
            before = {}
        self._contact, self._success = before.get("contact_ns", 0), before.get("success_ns", 0)
        self._failed, self._error = before.get("failed_ns", 0), bounded("error", before.get("error", ""), _ERROR)
        self._contacts, self._publishes = before.get("contacts", 0), before.get("publishes", 0)
        self._failures, self._row = before.get("failures", 0), before.get("failures_in_a_row", 0)
        self._show()

    @property
    def store(self) -> _core.Store:
        """The store that it is the feed of."""
        return self._store

    def is_current(self) -> bool:
        """Tell whether the store is still the one of its name, and the lock still this process's."""
        return self._store.word != _core.DESTROYED and self._store.named() and self._core.taken

    def contact(self) -> None:
        """Note that the source is asked now; shown with how it went."""
        self._contact = time.time_ns()
        self._contacts += 1

    def succeed(self, published: bool) -> None:
        """Say that the source is good."""
        self._success = time.time_ns()
        self._publishes += published
        self._row = 0
        self._show()

    def fail(self, error: str) -> None:
        """Say what went wrong."""
        self._failed = time.time_ns()
        self._error = bounded("error", error, _ERROR)
        self._failures += 1
        self._row += 1
        self._show()

    def _show(self) -> None:
        if self._core.taken:  # else the next look takes it again
            times = self._started, self._every, self._contact, self._success, self._failed
            counts = self._contacts, self._publishes, self._failures, self._row
            self._core.show(times, counts, self._source, self._error)

    def release(self) -> None:
        """Give the lock back; what was said stays."""
        self._core.release()


def _who(store: _core.Store) -> str:
    said = 0
    try:
        found = store.feed()
        said = found["pid"] if found is not None else 0
        for lock in fdinfo.locks_on(store.prefix + "lock", dict.fromkeys([said, *fdinfo.pids()])):
            if lock.write and lock.first <= _core.FEED_AT <= lock.last:
                return f"by {fdinfo.describe_process(lock.pid)}"
    except (OSError, ValueError, CorruptSegmentError):
        pass
    return f"by a process that calls itself pid {said}" if said else "by another process"
