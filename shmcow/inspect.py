"""What there is to know about stores, as typed, read-only records: for tools, metrics and tests.

Reading writes nothing, takes no lock and needs no write permission. Workers import ``shmcow`` without this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmcow import _core, dropping, segments
from shmcow.differ import Change, Difference, Sealed, diff
from shmcow.dropping import Dropped
from shmcow.feeding import FeedState
from shmcow.rates import Activity, Holding, activity
from shmcow.readership import Hidden, ReaderProcess, ReadersReport, readers
from shmcow.reports import Generation, Overview, StoreReport, describe, held_by, list_stores, overview

if TYPE_CHECKING:
    from shmcow.diagnosis import Finding, diagnose
    from shmcow.garbage import Garbage, garbage

__all__ = [
    "Activity",
    "Change",
    "Difference",
    "Dropped",
    "FeedState",
    "Finding",
    "Garbage",
    "Generation",
    "Hidden",
    "Holding",
    "Overview",
    "ReaderProcess",
    "ReadersReport",
    "Sealed",
    "StoreReport",
    "activity",
    "describe",
    "diagnose",
    "diff",
    "garbage",
    "held_by",
    "list_stores",
    "overview",
    "readers",
    "would_drop",
]


def __getattr__(name: str) -> Any:
    # What few commands ask for.
    if name in ("Finding", "diagnose"):
        from shmcow import diagnosis

        return getattr(diagnosis, name)
    if name in ("Garbage", "garbage"):
        from shmcow import garbage

        return getattr(garbage, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def would_drop(name: str, version: int) -> Dropped:
    """Say what ``Writer.drop`` would do, and who holds the version now.

    Raises:
        StoreNotFoundError: there is no store of that name.
        StoreDestroyedError: it is being destroyed.
        ValueError: the version is the current one.
        VersionGoneError: it cannot be opened any more, or was never published.

    Concurrency: any thread; reads only.
    """
    store = _core.Store(segments.header_path(segments.check_name(name)))
    return dropping.with_holders(store, dropping.look(store, version))
