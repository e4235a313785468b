"""What happens to a store, one thing after the other: new versions, and what is in the way of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from shmcow import _core
from shmcow.errors import ClosedError, ShmcowError, StoreDestroyedError, WaitTimeoutError
from shmcow.snapshot import Snapshot
from shmcow.waiting import Sleep, check_wait, until
from shmcow.watching import Watch

if TYPE_CHECKING:
    from shmcow.reader import Reader

__all__ = ["Event", "Events"]

T = TypeVar("T")


class Event(NamedTuple):
    """One thing that happened to a store.

    Attributes:
        kind: "version": there is another newest version; "destroyed": the store has gone; "unusable": the newest
            version cannot be used, or what has the store's name now is no store.
        snapshot: the newest version; None for another kind.
        anew: whether it is the first one of a store that was created again: its versions start anew.
        problem: what is wrong, for another kind.
    """

    kind: Literal["version", "destroyed", "unusable"]
    snapshot: Snapshot[Any] | None = None
    anew: bool = False
    problem: Exception | None = None


class _GoneError(Exception):
    """The store has gone since the last look."""


class _Watch(Watch[T]):
    """The snapshots; tells once of a store that has gone."""

    _told_gone = False

    def look(self) -> tuple[int, int, Any, Snapshot[T]] | Sleep:
        found = super().look()
        if not isinstance(found, Sleep):
            self._told_gone = False
        elif self._last is not None and not self._told_gone and self._is_gone():
            self._told_gone = True
            raise _GoneError
        return found

    def _is_gone(self) -> bool:
        store = self._reader._store
        return isinstance(self._reader.problem, StoreDestroyedError) or (
            store is not None and store.word == _core.DESTROYED
        )


class Events:
    """Iterate over what happens to a store: the current version first, then each newest one, and troubles.

    It goes on for ever: a store that is destroyed is waited for, an unusable version is told once. Versions that were
    published while the loop body ran are skipped but for the newest. Closing the reader ends it.

    Args:
        reader: of the store. With ``on_bad="keep"`` nothing is told of unusable versions.
        timeout: in seconds from now until it ends with WaitTimeoutError; None: never.

    Raises:
        StoreNotFoundError: by ``next()``, when there is no store at the start (after the reader's ``attach_timeout``).
        ShmcowError: by ``next()``, when what has the store's name at the start cannot be read.
        WaitTimeoutError: by ``next()``, when the time is up.
        ClosedError: the reader is closed already.

    Concurrency: one thread at a time; it sleeps in the kernel, as ``Reader.watch`` does.
    """

    def __init__(self, reader: Reader[Any], timeout: float | None = None) -> None:
        check_wait(timeout)
        self._reader = reader
        self._watch: _Watch[Any] = _Watch(reader)
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._epoch = ""

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        watch = self._watch
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            found = until(watch.look, left, self._late)
        except ClosedError:
            raise StopIteration from None
        except _GoneError:
            return Event("destroyed", problem=StoreDestroyedError(f"store {self._reader.name} was destroyed"))
        except WaitTimeoutError:
            raise
        except (ShmcowError, OSError) as exc:
            watch._saw_error()
            # What is said of a version may pass with the next one; at the start anything else is final.
            if not self._epoch and self._reader._bad is None:
                raise
            return Event("unusable", problem=exc)
        watch._last = found[:2]
        snapshot: Snapshot[Any] = found[3]
        anew = self._epoch not in ("", snapshot.epoch)
        self._epoch = snapshot.epoch
        return Event("version", snapshot, anew)

    def _late(self) -> WaitTimeoutError:
        return WaitTimeoutError(f"the time to watch store {self._reader.name} is up: {self._timeout} s")
