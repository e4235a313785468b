"""What waiting readers look for: the first version, the next one, each newest one in turn."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shmcow import _core
from shmcow.errors import (
    ClosedError,
    NotPublishedError,
    ShmcowError,
    StoreDestroyedError,
    StoreNotFoundError,
    WaitTimeoutError,
)
from shmcow.snapshot import Snapshot
from shmcow.waiting import Pause, Sleep, until

if TYPE_CHECKING:
    from shmcow.reader import Reader

T = TypeVar("T")


def _may_come(error: Exception | None) -> bool:
    """Tell whether an error is about a store or a version that may be there at the next look."""
    return isinstance(error, StoreNotFoundError | NotPublishedError | StoreDestroyedError)


def first(reader: Reader[Any], seconds: float) -> Exception | None:
    """Wait until a reader has its first value; return why it has none."""

    def look() -> Exception | Sleep | None:
        error = reader._catch_up()
        if not _may_come(error) or reader._cached() is not None:
            return error
        store = reader._store
        return Sleep(((store, 0),)) if store is not None and store.word == 0 and store.named() else pause.sleep()

    pause = Pause()
    try:
        return until(look, seconds, WaitTimeoutError)
    except WaitTimeoutError:
        return reader._catch_up()


def _sleep(store: _core.Store, word: int, error: Exception | None) -> Sleep:
    # What was in the way may pass without another version: no descriptor left, say.
    return Sleep(((store, word),)) if error is None else Sleep(((store, word),), 1.0)


class Newer(Generic[T]):
    """Looks for a version after a given one, of the same store: the same epoch."""

    def __init__(self, reader: Reader[T], after: Snapshot[T] | int | None, timeout: float | None) -> None:
        self._reader = reader
        self._timeout = timeout
        self._epoch: bytes | None = None
        self._version: int | None = None
        self._started = time.monotonic()
        self._pause = Pause()
        self._why: Exception | None = None
        self._decoded_elsewhere = False
        if isinstance(after, Snapshot):
            if after.store != reader.name:
                raise ValueError(f"after= is a snapshot of store {after.store}, expected one of store {reader.name}")
            self._epoch, self._version = bytes.fromhex(after.epoch), after.version
        elif after is not None:
            if not isinstance(after, int) or isinstance(after, bool):
                raise TypeError(f"after= is a Snapshot, a version or None, found {after!r}")
            if not 0 <= after <= _core.VERSION_MAX:
                raise ValueError(f"after= is a version, 0 or more, found {after}")
            self._version = after

    def start(self) -> None:
        """Settle what "now" is, for a look that another thread takes later; decodes nothing.

        Raises:
            ShmcowError: the store cannot be attached to; that there is none is for ``look`` to say.
        """
        self._reader._check_open()
        self._reader._check_not_decoding()
        try:
            store = self._reader._attach()
        except StoreNotFoundError:
            if self._version is None and self._reader._attach_timeout:
                self._version = 0
            return
        word = store.word
        if word != _core.DESTROYED:
            self._settle(store, word)

    def _settle(self, store: _core.Store, word: int) -> None:
        if self._epoch is None:
            self._epoch = store.epoch
        if self._version is None:
            self._version = word & _core.VERSION_MAX

    def look(self) -> Snapshot[T] | Sleep:
        """Return the newest snapshot if it is newer.

        Raises:
            StoreDestroyedError: the store has gone, or is another one by now.
            StoreNotFoundError: there is none, and none came within ``attach_timeout``.
            ShmcowError: the newest version cannot be used, with ``on_bad="raise"``.
        """
        reader = self._reader
        reader._check_open()
        reader._check_not_decoding()
        known = reader._store
        try:
            store = reader._attach()
        except StoreNotFoundError:
            if self._epoch is not None or known is not None:
                raise StoreDestroyedError(self._gone("was destroyed, or removed from outside")) from None
            if time.monotonic() - self._started >= reader._attach_timeout:
                raise
            if self._version is None:
                self._version = 0  # whatever is in the store when it comes is newer than now
            return self._pause.sleep()
        if self._epoch not in (None, store.epoch):
            raise StoreDestroyedError(self._gone("was destroyed and created again: its versions start anew"))
        word = store.word
        if word == _core.DESTROYED:
            raise StoreDestroyedError(self._gone("was destroyed"))
        self._settle(store, word)
        assert self._version is not None
        if word & _core.VERSION_MAX > self._version:
            self._decoded_elsewhere = reader._others_work()
            if self._decoded_elsewhere:
                return Sleep((), 1.0)
            error = reader._catch_up()
            cached = reader._cached()
            if cached is not None and cached[0] == store.serial and cached[1] > self._version:
                return cached[3]  # type: ignore[no-any-return]
            if error is not None and reader._raises:
                raise reader._reason(error)
            self._why = error
        return _sleep(store, word, self._why)

    def _gone(self, what: str) -> str:
        return f"store {self._reader.name} {what}; watch() goes on with a new store of that name"

    def late(self) -> WaitTimeoutError:
        """Make the error for a time-out."""
        name = self._reader.name
        if self._epoch is None:
            return WaitTimeoutError(
                f"there is no store {name}, even after {self._timeout} s: has its writer been started?"
            )
        text = f"no version of store {name} newer than {self._version} was published within {self._timeout} s"
        if self._decoded_elsewhere:
            text = f"after {self._timeout} s another thread still decodes a newer version of store {name}"
        if self._why is not None:
            text = f"there is no usable version of store {name} newer than {self._version}: {self._why}"
        return WaitTimeoutError(text)


class Watch(Generic[T]):
    """Iterates over a reader's snapshots: the current one first, then each newest one.

    Versions that were published while the loop body ran are skipped but for the newest. A store that is destroyed and
    created again goes on with the new one's versions; compare ``snapshot.epoch``. Closing the reader ends the loop.

    Concurrency: one thread (or task) at a time; make one for each.
    """

    def __init__(self, reader: Reader[T], *, patient: bool = False) -> None:
        if not patient:  # else it may have been closed since: the first look says so
            reader._check_open()
        self._reader = reader
        self._patient = patient  # waits for a store that never was, and raises nothing
        self._started = time.monotonic()
        self._last: tuple[int, int] | None = None
        self._raised: Exception | None = None
        self._raising: Exception | None = None
        self._pause = Pause(0.1)

    def look(self) -> tuple[int, int, Any, Snapshot[T]] | Sleep:
        """Return (serial, version, value, snapshot) if it is another one than the last."""
        reader = self._reader
        reader._check_open()
        reader._check_not_decoding()
        known = reader._store
        try:
            store = reader._attach()
        except StoreNotFoundError:
            waited = time.monotonic() - self._started >= reader._attach_timeout
            if self._last is None and known is None and waited and not self._patient:
                raise
            reader._catch_up()  # it says so in `problem`
            return self._pause.sleep()
        except (ShmcowError, OSError):  # what has the name now is no store, or may not be read
            if self._last is None or self._patient:
                raise
            reader._check_open()
            self._tell(reader._catch_up())
            return self._pause.sleep()
        word = store.word
        error = None
        cached = reader._cached()
        if cached is None or cached[:2] != (store.serial, word & _core.VERSION_MAX) or reader._problem is not None:
            if reader._others_work():
                return Sleep((), 1.0)
            error = reader._catch_up()
            cached = reader._cached()
        if cached is not None and cached[:2] != self._last:
            self._pause = Pause(0.1)
            return cached
        if word == _core.DESTROYED:  # and will never change: its successor is another file
            return self._pause.sleep()
        self._tell(error)
        return _sleep(store, word, error)

    def _tell(self, error: Exception | None) -> None:
        """Raise what is in the way, once, if the reader wants that."""
        reader = self._reader
        if error is None or not reader._raises or self._patient or _may_come(error):
            return
        error = reader._problem or error  # the same object as long as it is the same trouble
        if error is not self._raised:
            self._raising = error
            raise reader._reason(error)

    def _saw_error(self) -> None:
        """Do not raise it again. Not before it was raised: a cancelled wait has seen nothing."""
        self._raised, self._raising = self._raising or self._raised, None

    def __iter__(self) -> Iterator[Snapshot[T]]:
        return self

    def __next__(self) -> Snapshot[T]:
        try:
            found = until(self.look, None, WaitTimeoutError)
        except ClosedError:
            raise StopIteration from None
        except Exception:
            self._saw_error()
            raise
        self._last = found[:2]
        return found[3]

    def __repr__(self) -> str:
        at = f"at version {self._last[1]}" if self._last else "at its start"
        return f"<{type(self).__name__} of store {self._reader.name}, {at}>"


class AsyncWatch(Watch[T]):
    """The same for ``async for``."""

    def __aiter__(self) -> AsyncIterator[Snapshot[T]]:
        return self

    def __iter__(self) -> Iterator[Snapshot[T]]:
        raise TypeError("watch_async() is for `async for`; use watch()")

    async def __anext__(self) -> Snapshot[T]:
        from shmcow import aio  # asyncio is imported by those who use it

        try:
            found = await aio.until(self.look, None, WaitTimeoutError)
        except ClosedError:
            raise StopAsyncIteration from None
        except Exception:
            self._saw_error()
            raise
        self._last = found[:2]  # not before: a cancelled wait has seen nothing
        return found[3]
