"""A store in this process: attach to it, create it, take its writer lock, end it.

The order of things, which is what makes a crash between any two of them harmless:

- *create*: lock file, holds file, then the header, which appears whole. Before the header there is no store, and what
  lies about is swept by the next writer of that name.
- *destroy*: ``current`` says DESTROYED, data, holds, header, lock file. As long as the header has a name, a writer that
  finds it finishes the job. The lock file goes last, because it is what keeps two finishers from unlinking by name
  what one of their successors has just created.
- A *lost lock file* (removed from outside) cannot be made anew: the old one may still be locked by somebody who does
  not know. Such a store is ended, and created again with a new epoch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from functools import partial
from typing import NamedTuple, Self

from shmcow import _core, fdinfo, segments
from shmcow.errors import (
    ClosedError,
    NotOwnerError,
    StoreDestroyedError,
    StoreNotFoundError,
    VersionGoneError,
    WriterBusyError,
)

_log = logging.getLogger("shmcow")

# Counters of the header, by their place in csrc/shmcow_layout.h.
COUNTERS = (
    "published",
    "rolled_back",
    "conflicts",
    "refused",
    "reclaimed",
    "given_up",
    "forced",
    "recovered",
    "swept",
)
STATES = ("free", "building", "ready", "held", "condemned", "doomed")
DEFAULT_RETAIN = 4
DEFAULT_LOCK_TIMEOUT = 5.0  # seconds


class Settings(NamedTuple):
    """What a writer wants of a store; None: whatever it has (or the default, when it is created)."""

    mode: int | None = None
    gid: int = -1
    retain: int | None = None
    max_total_bytes: int | None = None


_attached: dict[str, weakref.ref[_core.Store]] = {}


def attach(name: str) -> _core.Store:
    """Attach to a store, once for each process.

    Raises:
        StoreNotFoundError: there is none of that name.
        IncompatibleStoreError: what has its name is of another ABI or byte order, or is no store.
        CorruptSegmentError: its header is damaged.
        NotOwnerError: its permissions do not let this process read it.

    Concurrency: any thread; two threads that come first get the same object. A forked child shares the mapping and
    becomes a reader of its own at its next hold.
    """
    with lock_of_process():
        while True:
            known = _attached.get(name)
            store = known() if known is not None else None
            if store is not None and store.named():
                return store
            made = _core.Store(segments.header_path(name))
            mine = weakref.ref(made, partial(_forget, name))
            # A signal handler or a finalizer that ran meanwhile may have attached, too: its Store is the one. After a
            # call of get() a handler could run; between these instructions none does.
            if (_attached[name] if name in _attached else None) is known:  # noqa: SIM401
                _attached[name] = mine
                return made


def openable(store: _core.Store) -> str:
    """Say, for an error message, which versions can be opened: "3 to 7", "1, 3 to 7" or "none"."""
    current = store.word & _core.VERSION_MAX
    found: list[list[int]] = []
    for version in sorted(row[0] for row in store.generations() if 0 < row[0] <= current and _can_open(row[1])):
        if found and found[-1][1] == version - 1:
            found[-1][1] = version
        else:
            found.append([version, version])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in found) or "none"


def _can_open(state: int) -> bool:
    return state >= len(STATES) or STATES[state] in ("ready", "held", "condemned")


def gone(store: _core.Store, version: int) -> VersionGoneError:
    """Make the error for a version that cannot be opened: it says which ones can."""
    there = openable(store)
    current = store.word & _core.VERSION_MAX
    if store.word != _core.DESTROYED and version > current:
        return VersionGoneError(
            f"version {version} of store {store.name} was never published: {current} is current; can be opened: {there}"
        )
    return VersionGoneError(
        f"version {version} of store {store.name} cannot be opened any more: it was reclaimed or dropped; can be "
        f"opened: {there} (hold a version to keep it, or let the store retain more)"
    )


def closed(name: str) -> ClosedError:
    """Make the error for a writer that was closed."""
    return ClosedError(f"the writer of store {name} was closed: make a new one")


def hold_at(store: _core.Store, version: int) -> _core.Hold:
    """Hold a version by its number.

    Raises:
        VersionGoneError: it was reclaimed or dropped, or never published; says which ones can be opened.
        NotPublishedError, StoreDestroyedError, CorruptSegmentError: as ``store.hold``.
    """
    try:
        return store.hold(version)
    except VersionGoneError as exc:
        raise gone(store, version) from exc


def _forget(name: str, gone: weakref.ref[_core.Store]) -> None:
    if name in _attached and _attached[name] is gone:
        del _attached[name]


_locks: dict[int, threading.RLock] = {}


def lock_of_process() -> contextlib.AbstractContextManager[object]:
    """Return a lock for a few instructions at a time; a forked child has its own, as its parent's may be held."""
    if sys.is_finalizing():  # a daemon thread may have died with it, and nobody else runs any more
        return contextlib.nullcontext()
    forks = _core.forks()
    lock = _locks.get(forks)
    return lock if lock is not None else _locks.setdefault(forks, threading.RLock())


class Permissions(NamedTuple):
    """Whose a store is, and who may read it; -1: whoever creates it."""

    mode: int = 0o600
    uid: int = -1
    gid: int = -1


def _create(name: str, settings: Settings, former: Permissions) -> bool:
    """Make a store unless there is one. False: somebody else was first (or destroyed it at once): look again.

    Args:
        former: those of the store that this one takes the place of; what ``settings`` says goes first.
    """
    epoch = os.urandom(16)
    mode = former.mode if settings.mode is None else settings.mode
    uid = -1 if os.geteuid() == former.uid else former.uid
    gid = former.gid if settings.gid == -1 else settings.gid
    gid = -1 if os.getegid() == gid else gid
    made = []
    try:
        for what, bits in (("lock", 0o600), ("holds", mode & 0o444)):
            if not segments.create_empty(name, epoch, what, bits, uid, gid):
                return False  # somebody knew our random epoch: take another one
            made.append(what)
        retain = DEFAULT_RETAIN if settings.retain is None else settings.retain
        if _core.create_header(
            segments.header_path(name),
            segments.DIRECTORY,
            epoch,
            name,
            time.time_ns(),
            mode,
            uid,
            gid,
            retain,
            settings.max_total_bytes or 0,
        ):
            made.clear()
    finally:
        for what in made:
            segments.unlink(segments.object_name(name, epoch, what))
    return not made


TIMEOUT_MAX = threading.TIMEOUT_MAX  # seconds; about 292 years


def check_timeout(what: str, seconds: object) -> None:
    """Refuse what is no time-out.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, NaN, or longer than a lock can wait for.
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError(f"{what} is a number of seconds, found {seconds!r}")
    if not 0 <= seconds <= TIMEOUT_MAX:
        hint = " (timeout=None waits for ever)" if what == "timeout" else ""
        raise ValueError(f"{what} is a number of seconds, 0 to {TIMEOUT_MAX:.0f}, found {seconds!r}{hint}")


class Keeper:
    """The writable side of one store name: creates and attaches, and holds the writer lock for one turn at a time.

    Concurrency: one turn at a time in the process (a mutex) and in the system (the writer lock). A turn inside a turn
    of the same thread is refused. A forked child has a mutex of its own and never releases its parent's lock.
    """

    def __init__(self, name: str, settings: Settings, lock_timeout: float) -> None:
        self.name = name
        self.lock_timeout = lock_timeout
        self.created = False
        self.finished = False  # whether it came upon a half-destroyed store, and destroyed the rest
        self._settings = settings
        self._former = Permissions()  # of a store that was removed from outside; a destroyed one has no heir
        self._store: _core.Store | None = None
        self._core: _core.WriterCore | None = None
        self._mutexes: dict[int, threading.RLock] = {}
        self._swept: _core.Store | None = None  # the attach whose leftovers were swept
        self._closed = False

    def attach(self, *, create: bool, end_lost: bool = True) -> tuple[_core.Store, _core.WriterCore]:
        """Attach for writing: create the store if there is none (and ``create``), finish a half-destroyed one.

        Args:
            create: whether to create the store if there is none.
            end_lost: whether to end a store that has lost its lock file.

        Raises:
            NotOwnerError: it belongs to another user.
            StoreNotFoundError: there is none, and ``create`` is False.
            StoreDestroyedError: it has lost its lock file, and ``end_lost`` is False.
            ClosedError: it was closed, by another thread meanwhile.
        """
        while True:
            if self._closed:  # who waited for a turn meanwhile must not make the store again
                raise closed(self.name)
            store, core = self._store, self._core  # close() in another thread takes them away at any moment
            if store is None or not store.named():
                if store is not None and store.word == _core.DESTROYED:
                    self._former = Permissions()
                self._forget()
                try:
                    store = attach(self.name)
                except StoreNotFoundError:
                    if not create:
                        raise
                    self.created = _create(self.name, self._settings, self._former) or self.created
                    continue
                check_owner(store)
                self._former = Permissions(store.mode, store.uid, store.gid)
                self._store, core = store, None
            if core is None:
                try:
                    core = self._core = _core.WriterCore(store, segments)
                except StoreDestroyedError:  # removed or replaced since we attached
                    continue
            if store.word == _core.DESTROYED or _lock_file_lost(store):
                if store.word == _core.DESTROYED:
                    self._former = Permissions()
                elif not end_lost:
                    raise StoreDestroyedError(f"the writer lock of store {self.name} was removed from outside")
                finish(store, core, self.lock_timeout)
                self.finished = True
                self._forget()
                continue
            if not self._closed:
                return store, core
            self._forget()

    def _forget(self) -> None:
        self._store = self._core = None

    def mutex(self) -> threading.RLock:
        """Return the mutex of this very process: a child's is new, its parent's may be held by a thread it lacks."""
        forks = _core.forks()
        mutex = self._mutexes.get(forks)
        return mutex if mutex is not None else self._mutexes.setdefault(forks, threading.RLock())

    def close(self) -> None:
        """Let go of everything, for good; the store stays."""
        self._closed = True
        self._forget()
        self._swept = None


class Turn(_core.TurnGuard):
    """One turn under the writer lock: recovered, and alone. Entered, it has ``store`` and ``core``.

    Leaving it is C (``_core.TurnGuard``), so that no interrupt can come between.

    Args:
        keeper: of the writer.
        recreate: whether a store that was destroyed or removed meanwhile is created again.
        timeout: how long to wait for the lock, in seconds; None: the keeper's ``lock_timeout``.
        ending: whether the turn is to destroy the store: then a damaged table, which cannot be recovered, is no
            obstacle.
    """

    store: _core.Store

    def __init__(self, keeper: Keeper, *, recreate: bool, timeout: float | None = None, ending: bool = False) -> None:
        self._keeper = keeper
        self._recreate = recreate
        self._ending = ending
        self._timeout = keeper.lock_timeout if timeout is None else timeout
        self._mutex = keeper.mutex()

    def __enter__(self) -> Self:
        keeper = self._keeper
        deadline = time.monotonic() + self._timeout
        if self._mutex._is_owned():
            raise WriterBusyError(
                f"this thread is already inside a turn of the writer of {keeper.name} (update, edit, or a signal "
                "handler during publish): return the new value instead of publishing it"
            )
        try:  # from here on an interrupt at any instruction gives back what was taken
            if not self.take_mutex(self._timeout):
                raise WriterBusyError(
                    f"another thread of this process is publishing in {keeper.name} and did not finish within "
                    f"{self._timeout} s"
                )
            self._take(deadline)
        except BaseException:
            self.give_back()
            raise
        return self

    def _take(self, deadline: float) -> None:
        store, core = self._keeper._store, self._keeper._core  # close() in another thread takes them away at any moment
        if store is not None and core is not None:
            # The ordinary case: nothing changed since the last turn, and the lock is free.
            self.store, self.core = store, core
            if core.enter():
                return
        self._take_long(deadline)

    def _take_long(self, deadline: float) -> None:
        while True:
            store, core = self.store, self.core = self._attach()
            try:
                taken = core.try_lock() or retry_lock(core, store, deadline, self._timeout)
            except FileNotFoundError:
                taken = False  # the lock file has gone: attach() ends such a store
            if not taken:
                continue
            if store.word != _core.DESTROYED and store.named():
                break
            core.unlock()
        store.refresh_claims()  # in a forked child, or after a closerange(): before this very writer reclaims
        if not core.ready_holds():
            segments.create_empty(store.name, store.epoch, "holds", store.mode & 0o444, *owner_of(store))
            core.ready_holds()
        repaired = 0 if self._ending else core.recover()
        if repaired:
            _log.info("recovered %d generations of store %s that a dead writer left half-done", repaired, store.name)
        if self._keeper._swept is not store:
            self.sweep()
            self._keeper._swept = store

    def _attach(self) -> tuple[_core.Store, _core.WriterCore]:
        keeper = self._keeper
        known, core = keeper._store, keeper._core
        if known is None or core is None or self._recreate:  # without a core: an interrupt came while it was made
            return keeper.attach(create=self._recreate)
        if not known.named():
            raise StoreDestroyedError(
                f"store {keeper.name} was destroyed, or removed or replaced from outside: publish() creates it again; "
                "update, rollback and expected= refuse to"
            )
        if known.word == _core.DESTROYED:
            raise StoreDestroyedError(f"store {keeper.name} was destroyed: publish() creates it again")
        if _lock_file_lost(known):
            raise StoreDestroyedError(
                f"the writer lock of store {keeper.name} was removed from outside: publish() creates the store again"
            )
        # Not keeper.attach(): should the store vanish just now, that would find none, or another one of that name.
        return known, core

    def check_still_ours(self) -> None:
        """Refuse to go on in a child that was forked during the turn.

        Raises:
            WriterBusyError: the lock is the parent's.
        """
        if not self.core.locked:
            raise WriterBusyError(
                f"this process was forked inside a turn of the writer of {self._keeper.name}: the writer lock is the "
                "parent's, and only the parent publishes"
            )

    def listed(self) -> frozenset[int]:
        """Return the ids of all segments that some generation lists.

        Raises:
            ValueError: an entry cannot be read, so nobody knows.
        """
        ids: set[int] = set()
        for version, _, entry in self.store.generations():
            if entry is None:
                raise ValueError(f"the entry of version {version} of store {self.store.name} is damaged")
            ids.update(part["segment"] for part in entry["parts"])
        return frozenset(ids)

    def sweep(self) -> int:
        """Unlink what belongs to nothing; returns how many names went."""
        try:
            listed = self.listed()
        except ValueError as exc:
            _log.warning("not sweeping: %s", str(exc))  # a handler may keep the record, and with exc all our frames
            return 0
        swept = segments.sweep(self.store.name, self.store.epoch, listed, self.store.uid, self.store.named)
        self.core.count(COUNTERS.index("swept"), len(swept))
        return len(swept)


def check_owner(store: _core.Store) -> None:
    """Refuse a store that this process may not write.

    Raises:
        NotOwnerError: it belongs to another user, and this is not root.
    """
    euid = os.geteuid()
    if euid not in (0, store.uid):
        raise NotOwnerError(
            f"store {store.name} belongs to user {store.uid}, this process runs as user {euid}: "
            "only its owner (or root) may write it"
        )


def _lock_file_lost(store: _core.Store) -> bool:
    """Tell whether the lock file has gone. Any other trouble is raised: a store must not be ended because of it."""
    try:
        os.lstat(store.prefix + "lock")
    except FileNotFoundError:
        return True
    return False


def owner_of(store: _core.Store) -> tuple[int, int]:
    """Return (uid, gid) that a new object of the store must be given, -1 where it has it anyway."""
    return (
        -1 if os.geteuid() == store.uid else store.uid,
        -1 if os.getegid() == store.gid else store.gid,
    )


def retry_lock(core: _core.WriterCore, store: _core.Store, deadline: float, timeout: float) -> bool:
    """Try to take the writer lock until the deadline, with jittered back-off.

    It is never stolen: a holder that is stopped may go on at any moment.

    Raises:
        WriterBusyError: naming the likely holder.
        FileNotFoundError: the lock file has gone.
    """
    pause = 0.0001
    while not core.try_lock():
        from random import uniform  # only who waits pays for it

        left = deadline - time.monotonic()
        if left <= 0:
            raise WriterBusyError(
                f"the writer lock of store {store.name} was not free within {timeout} s: {_likely_holder(store)}; "
                "raise lock_timeout, or end that process"
            )
        time.sleep(min(left, pause * uniform(0.5, 1.5)))
        pause = min(pause * 2, 0.01)
    return True


def _likely_holder(store: _core.Store) -> str:
    with contextlib.suppress(OSError, ValueError):
        me = int(os.readlink("/proc/self"))  # os.getpid() may be of another pid namespace than /proc
        # What the store says is the holder's own idea of its pid: it is a place to look first, not an answer.
        likely = dict.fromkeys([store.lock_pid, me, *fdinfo.pids()])
        for lock in fdinfo.locks_on(store.prefix + "lock", likely):
            if lock.write and lock.first <= _core.WRITER_AT:
                if lock.pid == me:
                    return "this very process holds it, through another Writer"
                return f"{fdinfo.describe_process(lock.pid)} holds it"
    return (
        f"it was last taken by a process that calls itself pid {store.lock_pid}; this one cannot see which has it now "
        "(it let go just now, is another user's, or is in another pid namespace)"
    )


def finish(store: _core.Store, core: _core.WriterCore, timeout: float) -> None:
    """End a store, from whatever point somebody else may have reached: idempotent.

    Concurrency: takes the writer lock, making its file anew if it was lost (whoever finds it lost comes here, so all
    of them meet at the new one).

    Raises:
        WriterBusyError: the lock was not free within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    # First of all, and without a lock: whoever still has the lost one can not flip any more.
    core.give_notice()
    while store.named():
        segments.create_empty(store.name, store.epoch, "lock", 0o600, *owner_of(store))
        try:
            if core.try_lock() or retry_lock(core, store, deadline, timeout):
                break
        except FileNotFoundError:
            continue
    else:
        return
    try:
        end(store, core)
    finally:
        core.unlock()


def end(store: _core.Store, core: _core.WriterCore) -> None:
    """Destroy a store whose writer lock is held: word first, then names, the header's and the lock's last."""
    core.ready_holds()
    core.end()
    mine = [item for item in segments.found(store.name) if item.epoch == store.epoch.hex()]
    for item in sorted(mine, key=lambda item: not item.what.isdigit()):
        if item.what != "lock" and segments.is_ours(item.filename, store.uid):
            segments.unlink("/" + item.filename)
    if store.named():
        segments.unlink(f"/{segments.PREFIX}{store.name}")
    segments.unlink(segments.object_name(store.name, store.epoch, "lock"))
