"""What a store says of the process that feeds it from a source; ``shmcow.inspect`` has ``FeedState``, too."""

from __future__ import annotations

import math
import time

import msgspec

from shmcow import _core, fdinfo
from shmcow.errors import CorruptSegmentError, NotOwnerError

__all__ = ["FeedState", "feed_state", "staleness"]

_CLOCKS_DIFFER = 5.0  # seconds that a clock may be corrected by, and nobody minds


class FeedState(msgspec.Struct, frozen=True, kw_only=True):
    """The feed of a store, at one moment. Times are seconds since 1970; None: never.

    Attributes:
        source: what it is fed from, for people.
        pid: of the follower that wrote this, in its own pid namespace.
        running: whether some process has the feed lock now. False: nobody feeds the store any more.
        started_at: when that follower started.
        every: the source is asked at least so often, in seconds; None: no such promise.
        last_contact: when the source was asked last, however that went.
        last_success: when it was last found good: published, or unchanged.
        last_error_at, last_error: the last failure, which may be long ago; "" if there was none.
        contacts, publishes, failures: counts since the store was created, of all its followers one after the other.
        failures_in_a_row: since the last success; 0: all is well.
        damaged: whether the state in shared memory cannot be read; the other fields are then empty.
    """

    source: str = ""
    pid: int = 0
    running: bool = False
    started_at: float = 0.0
    every: float | None = None
    last_contact: float | None = None
    last_success: float | None = None
    last_error_at: float | None = None
    last_error: str = ""
    contacts: int = 0
    publishes: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    damaged: bool = False


def feed_state(store: _core.Store) -> FeedState | None:
    """Return what a store says of its feed; None: it was never fed.

    Concurrency: any thread; reads only.
    """
    try:
        found = store.feed()
    except CorruptSegmentError:
        return FeedState(running=_is_running(store), damaged=True)
    if found is None:
        return None
    return FeedState(
        source=found["source"],
        pid=found["pid"],
        running=_is_running(store),
        started_at=found["started_ns"] / 1e9,
        every=found["every_ns"] / 1e9 or None,
        last_contact=found["contact_ns"] / 1e9 or None,
        last_success=found["success_ns"] / 1e9 or None,
        last_error_at=found["failed_ns"] / 1e9 or None,
        last_error=found["error"],
        contacts=found["contacts"],
        publishes=found["publishes"],
        failures=found["failures"],
        failures_in_a_row=found["failures_in_a_row"],
    )


def staleness(store: _core.Store) -> float | None:
    """Return the seconds since the feed last found the source good; see ``Reader.staleness``."""
    try:
        found = store.feed()
    except CorruptSegmentError:
        return math.inf
    if found is None:
        return None
    success_ns: int = found["success_ns"]
    age = (time.time_ns() - success_ns) / 1e9
    if not success_ns or age < -_CLOCKS_DIFFER:  # the clock was set back: nobody knows how long ago it was
        return math.inf
    return max(0.0, age)


def _is_running(store: _core.Store) -> bool:
    try:
        return store.feeding()
    except NotOwnerError:  # only the owner may open the lock file; what is locked in it everybody may see
        try:
            shown = fdinfo.locks_shown(store.prefix + "lock", write=True)
        except OSError:
            return False
        return any(first <= _core.FEED_AT <= last for first, last in shown)
