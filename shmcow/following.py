"""Daemon threads that follow a store for a reader, also after a fork: subscriptions and background refresh."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shmcow import _core
from shmcow.errors import ClosedError
from shmcow.store import lock_of_process
from shmcow.waiting import LONG, Sleep
from shmcow.watching import Watch

if TYPE_CHECKING:
    from types import TracebackType

    from shmcow.reader import Reader
    from shmcow.snapshot import Snapshot

T = TypeVar("T")

_log = logging.getLogger("shmcow")

_active: set[_Follower] = set()  # what a forked child starts again
_hooked = False


class _Follower:
    """A daemon thread of one reader."""

    name = ""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._forks = -1

    def start(self) -> None:
        """Start the thread, if this process does not have it: at first, and in a forked child."""
        global _hooked
        with lock_of_process():
            if self._forks == _core.forks():
                return
            self._forks = _core.forks()
            if not _hooked:
                _hooked = True
                os.register_at_fork(after_in_child=start_again)
        _active.add(self)
        self._before_start()
        try:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        except BaseException:
            self._forks = -1
            _active.discard(self)
            raise

    def try_start(self) -> None:
        """Start the thread if one is to be had: for want of a thread no read fails."""
        try:
            self.start()
        except RuntimeError as exc:
            _log.warning("could not start a thread to follow a store, going on without: %s", exc)

    @property
    def running(self) -> bool:
        """Whether this very process has the thread."""
        return self._forks == _core.forks() and self._thread is not None and self._thread.is_alive()

    def _before_start(self) -> None:
        pass

    def _run(self) -> None:
        forks = _core.forks()
        try:
            self.follow()
        finally:
            if forks == _core.forks():  # else it was a callback that forked: the child has a thread of its own
                _active.discard(self)

    def follow(self) -> None:
        """Do the work, until there is none any more."""
        raise NotImplementedError


def start_again() -> None:
    """Start the threads that a forked child lacks."""
    for follower in list(_active):
        follower.try_start()


class Subscription(_Follower, Generic[T]):
    """What ``Reader.subscribe`` returns: call it to unsubscribe, or use it with ``with``.

    After it was called no further call of the callback begins, in this process; one that has begun, or is just
    beginning, goes on to its end.
    """

    name = "shmcow-subscription"

    def __init__(self, reader: Reader[T], callback: Callable[[Snapshot[T] | None, Snapshot[T]], object]) -> None:
        super().__init__()
        self._reader = reader
        self._callback = callback
        self._old: Snapshot[T] | None = None
        self._call: tuple[int, Snapshot[T] | None] | None = None  # that goes on: (thread, old)
        self._stopped = False

    def _before_start(self) -> None:
        call, self._call = self._call, None
        if call is not None and call[0] != threading.get_ident():
            # Forked while our parent's thread was calling back: in here that call never ends, so it is made again.
            # (Not when the callback itself forked: its children would fork for ever.)
            self._old = call[1]

    def __call__(self) -> None:
        """Unsubscribe; any number of times, also from inside the callback."""
        self._stopped = True
        _active.discard(self)
        _core.ring()

    @property
    def active(self) -> bool:
        """Whether the callback will be called again."""
        return not self._stopped and not self._reader._closed

    def __enter__(self) -> Subscription[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self()

    def __repr__(self) -> str:
        return f"<Subscription to store {self._reader.name}{'' if self.active else ', ended'}>"

    def follow(self) -> None:
        """Call back for each newest version."""
        forks = _core.forks()
        try:
            self._follow(forks)
        finally:
            if forks == _core.forks():
                self._stopped = True  # also after a callback that raised SystemExit
                self._old = None  # a view holds its version

    def _follow(self, forks: int) -> None:
        watch = _StoppableWatch(self)
        complaint = ""
        while not self._stopped:
            try:
                for new in watch:
                    complaint = ""
                    self._tell(new)
                    if forks != _core.forks():  # the callback forked, and returned in the child
                        return
                return
            except Exception as exc:  # not the callback's: a store that this user may not read, say
                if str(exc) != complaint:
                    complaint = str(exc)
                    _log.error("a subscription waits, and tries again: %s", exc)
                _core.wait(_core.rings(), (), 1.0)

    def _tell(self, new: Snapshot[T]) -> None:
        if self._stopped:
            return
        old = self._old
        # In this order: at a fork in between the call counts as not made.
        call = threading.get_ident(), old
        self._call = call
        self._old = new
        try:
            self._callback(old, new)
        except Exception:
            what = getattr(self._callback, "__qualname__", type(self._callback).__name__)
            _log.exception("the callback %s raised for version %d of store %s", what, new.version, new.store)
        finally:
            if self._call is call:
                self._call = None


class _StoppableWatch(Watch[T]):
    """The snapshots of a subscription; in a forked child it goes on after the one that its parent was told of."""

    def __init__(self, subscription: Subscription[T]) -> None:
        super().__init__(subscription._reader, patient=True)
        self._subscription = subscription
        old = subscription._old
        cached = self._reader._cached()
        if old is not None and cached is not None and cached[3] is old:
            self._last = cached[:2]

    def look(self) -> tuple[int, int, Any, Snapshot[T]] | Sleep:
        if self._subscription._stopped:
            raise ClosedError("unsubscribed")
        return super().look()


class Refresher(_Follower):
    """Decodes each newest version for a reader, off the path of those who call ``get()``.

    It keeps no reader alive: with the last reference to the reader the thread ends.
    """

    name = "shmcow-refresh"

    def __init__(self, reader: Reader[Any]) -> None:
        super().__init__()
        self._reader = weakref.ref(reader)
        weakref.finalize(reader, _core.ring).atexit = False

    def follow(self) -> None:
        """Keep the reader's cache fresh."""
        while True:
            rings = _core.rings()
            sleep = self._refresh()
            if sleep is None:
                return
            _core.wait(rings, sleep.watched, sleep.seconds)
            del sleep  # with it the store: nothing is held while there is no reader

    def _refresh(self) -> Sleep | None:
        reader = self._reader()
        if reader is None or reader._closed:
            return None
        known = reader._store
        word = known.word if known is not None else 0
        if reader._others_work():
            return Sleep((), 1.0)
        try:
            error = reader._catch_up()
        except ClosedError:
            return None
        store = reader._store
        if store is None or store is not known:
            return Sleep((), 0 if store is not known else 1.0)  # look with the new store's word
        if word == _core.DESTROYED:  # and will never change: look for its successor now and then
            return Sleep((), 0.1)
        return Sleep(((store, word),), LONG if error is None else 1.0)
