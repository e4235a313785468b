"""The reading side: ``Reader``."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypedDict, overload

from typing_extensions import TypeForm, TypeVar, Unpack

from shmcow import _core
from shmcow import store as stores
from shmcow.codecs import Codec, Raw
from shmcow.decoding import Decoding, dump, strip, undump
from shmcow.errors import (
    ClosedError,
    CorruptSegmentError,
    DecodeError,
    NotOwnerError,
    NotPublishedError,
    ShmcowError,
    StoreDestroyedError,
    StoreNotFoundError,
)
from shmcow.feeding import staleness
from shmcow.following import Refresher, Subscription, start_again
from shmcow.frozen import check_frozen
from shmcow.segments import check_name
from shmcow.snapshot import Alive, Snapshot, load
from shmcow.store import check_timeout, hold_at
from shmcow.waiting import check_wait, until
from shmcow.watching import AsyncWatch, Newer, Watch, first

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from shmcow.codecs import IPTable, IPTableView, Table, TableView

T = TypeVar("T", default=Any)
R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")

_log = logging.getLogger("shmcow")


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


_MISSING: Final = _Missing()


class _Options(TypedDict, total=False):
    on_bad: Literal["keep", "raise"]
    refresh: Literal["inline", "background"]
    attach_timeout: float
    freeze: bool
    owner: int | str | None
    verify: bool


class Reader(_core.Slot, Generic[T]):
    """Read the current version of a store, at the cost of one atomic load while it does not change.

    Attaches lazily: making a Reader touches nothing, and it may be made before the store exists.

    Args:
        name: of the store: 1 to 64 of ``A-Z a-z 0-9 _ -``.
        type: decode to this type, and check it. Without ``type`` and ``codec``: plain values.
        codec: the codec that the store was published with: tables and bundles of typed values need it, and codecs of
            your own; excludes ``type``. Without either, values are plain.
        default: returned by ``get()`` while there is no value yet; as it is, neither transformed nor frozen.
        transform: called with the decoded value of each version, once for each process (again, if another thread asks
            meanwhile); ``get()`` returns its result.
        on_bad: "keep": ``get()`` goes on with the last good value when the newest version cannot be decoded or the
            store was destroyed, and ``problem`` says so; "raise": it raises.
        refresh: "inline": the first ``get()`` after a publish decodes; "background": a daemon thread does, and
            ``get()`` returns the value before until it has.
        attach_timeout: how long to wait, in seconds from the first call in a process, for a store that does not exist
            yet or has no version yet; nothing else goes on meanwhile in this thread or event loop. Then, and by default
            at once, it is an error (or ``default``).
        freeze: whether values are deeply frozen (FrozenDict, FrozenList; a mutable Struct type is refused).
        owner: accept only a store of this user (a uid or a name): /dev/shm is writable for everybody.
        verify: check the CRC of payloads above 1 MiB too, where the writer wrote one.

    Raises:
        ValueError: a bad name, or both ``type`` and ``codec``.
        ValidationError: the type is not supported, or not frozen (with the path of the field).

    Concurrency: any number of threads may share one Reader; they get the same object. A forked child goes on with
    it, and counts as a reader of its own from its next ``get()``; it has its own threads for ``refresh="background"``
    and for ``subscribe``. Picklable, by name; in a process that lacks its type, using it raises DecodeError.

    Example:
        >>> from shmcow import Reader, Writer
        >>> with Writer("doc-reader", initial={"timeout": 1.5}) as w:
        ...     r = Reader("doc-reader")
        ...     print(r.get()["timeout"], r.snapshot().version)
        ...     w.destroy()
        1.5 1
    """

    @overload
    def __init__(self, name: str, *, type: TypeForm[T], default: T = ..., **options: Unpack[_Options]) -> None: ...
    @overload
    def __init__(
        self: Reader[memoryview],
        name: str,
        *,
        codec: Raw,
        default: memoryview | bytes = ...,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self: Reader[IPTableView[V]],
        name: str,
        *,
        codec: IPTable[V],
        default: Any = ...,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(
        self: Reader[TableView[K, V]],
        name: str,
        *,
        codec: Table[K, V],
        default: Mapping[K, V] = ...,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(self, name: str, *, codec: Codec[T], default: T = ..., **options: Unpack[_Options]) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        transform: Callable[[Any], T],
        type: Any = ...,
        codec: Codec[Any] | None = ...,
        default: T = ...,
        **options: Unpack[_Options],
    ) -> None: ...
    @overload
    def __init__(self: Reader[Any], name: str, *, default: Any = ..., **options: Unpack[_Options]) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        type: Any = None,  # noqa: A002
        codec: Codec[Any] | None = None,
        default: Any = _MISSING,
        transform: Callable[[Any], Any] | None = None,
        on_bad: Literal["keep", "raise"] = "keep",
        refresh: Literal["inline", "background"] = "inline",
        attach_timeout: float = 0.0,
        freeze: bool = True,
        owner: int | str | None = None,
        verify: bool = False,
    ) -> None:
        if type is not None and codec is not None:
            raise ValueError("give type= or codec=, not both: a codec has its type")
        if on_bad not in ("keep", "raise"):
            raise ValueError(f"on_bad is 'keep' or 'raise', found {on_bad!r}")
        if refresh not in ("inline", "background"):
            raise ValueError(f"refresh is 'inline' or 'background', found {refresh!r}")
        check_timeout("attach_timeout", attach_timeout)
        if codec is not None and not isinstance(codec, Codec):
            raise TypeError(f"codec= is a codec object such as MsgPack(Config), found {codec!r}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform= is a callable, found {transform!r}")
        if freeze and codec is not None:
            codec.check_frozen()
        elif freeze and type is not None:
            check_frozen(type)
        self._name = check_name(name)
        self._how = Decoding(codec, Any if type is None else type, freeze, transform, verify, {})
        self._default = default
        self._raises = on_bad == "raise"
        self._attach_timeout = attach_timeout
        self._attach_until: tuple[int, float] | None = None  # (forks, deadline)
        self._refresher = Refresher(self) if refresh == "background" else None
        self._owner = _uid_of(owner)
        self._store: _core.Store | None = None
        self._problem: Exception | None = None
        self._failures = 0
        self._bad: tuple[int, int, Exception] | None = None
        self._inside: dict[tuple[int, int], bool] = {}  # (forks, thread) of those in _catch_up: whether they decode
        self._awaited = False  # whether another thread waits for one of them
        self._alive: Alive[T] = Alive()
        self._closed = False
        self._unusable: Exception | None = None  # why this one, sent here by another process, cannot decode
        self._forks = _core.forks()

    if TYPE_CHECKING:  # both are C methods of Slot; the paths below are theirs for everything but "nothing changed"

        def get(self) -> T:
            """Return the current value, or ``default``."""
            raise NotImplementedError

        def snapshot(self) -> Snapshot[T]:
            """Return the current Snapshot: the same object until the version changes."""
            raise NotImplementedError

    @property
    def name(self) -> str:
        """The store's name."""
        return self._name

    @property
    def version(self) -> int:
        """The version of the value that ``get()`` returns now; 0 while there is none.

        It looks again: for a value and its version that belong together take ``snapshot()``.
        """
        cached = self._followed()
        if cached is None:
            self._catch_up()
            cached = self._cached()
        return cached[1] if cached else 0

    @property
    def problem(self) -> Exception | None:
        """Why ``get()`` does not return the newest version, or None: an unusable version, a destroyed store."""
        return self._problem

    @property
    def failures(self) -> int:
        """How many versions of this store this Reader could not use."""
        return self._failures

    def staleness(self) -> float | None:
        """Return the seconds since the store's feed last found its source good: published what is there, or unchanged.

        For health checks: compare it with a few times ``shmcow.describe(name).feed.every``. It says nothing about how
        old the version is, and costs some ten microseconds: for each health check, not for each request.

        Returns:
            The seconds; None: the store was never fed (``shmcow.feed``); infinity: its feed never found the source good
            yet, or its state is damaged, or the clock was set back since, or there is no store and this reader answers
            with its ``default``.

        Raises:
            StoreNotFoundError: there is no store, and no ``default``.
            IncompatibleStoreError, CorruptSegmentError, NotOwnerError: the store cannot be read.
            ClosedError: the reader was closed.

        Concurrency: any thread; reads only.
        """
        self._check_open()
        try:
            return staleness(self._look_up())
        except StoreNotFoundError:
            if self._default is _MISSING:
                raise
            return math.inf

    def refresh(self) -> bool:
        """Look now: has the store been replaced or removed, is there a newer version?

        ``get()`` sees a newer version by itself, at once; a store that was removed from outside it finds at latest
        after some thousand calls.

        Returns:
            True if ``get()`` returns another version than before.

        Raises:
            ClosedError: the reader was closed.
        """
        before = self._cached()
        self._bad = None  # once more: what was in the way (a time-out in transform=, say) may have passed
        self._catch_up()
        after = self._cached()
        return (before and before[:2]) != (after and after[:2])

    def at(self, version: int) -> Snapshot[T]:
        """Return an older version, if it can still be opened.

        Args:
            version: its number.

        Returns:
            Its snapshot; hold it to keep it openable.

        Raises:
            VersionGoneError: it was reclaimed, or never published.
            DecodeError, CodecMismatchError, CorruptSegmentError: it cannot be used.
            StoreNotFoundError, StoreDestroyedError: there is no store.
        """
        if not isinstance(version, int) or isinstance(version, bool):
            raise TypeError(f"a version is an int, found {version!r}")
        if not 1 <= version <= _core.VERSION_MAX:
            raise ValueError(f"versions start at 1, found {version}")
        self._check_open()
        if self._store is None and self._attach_timeout and (error := self._catch_up()) is not None:
            self._wait_for_first(error)
        store = self._attach()
        return self._load(store, hold_at(store, version))

    # ---- waiting ----

    def wait(self, *, after: Snapshot[T] | int | None = None, timeout: float | None = None) -> Snapshot[T]:
        """Wait for a version newer than a given one.

        Args:
            after: a snapshot, or a version of the store as it is now; None: the version that is current now.
            timeout: in seconds; None: for ever; 0: only look.

        Returns:
            The newest snapshot, at once if it is newer already.

        Raises:
            WaitTimeoutError: there was none in time, or another thread was still decoding it. A version that cannot be
                used does not count (see ``problem``).
            StoreDestroyedError: the store was destroyed, removed or created again: its versions start anew.
            StoreNotFoundError: there is no store (after ``attach_timeout``).
            NotOwnerError, IncompatibleStoreError: what has its name cannot be read.
            ClosedError: the reader is closed, also by another thread meanwhile; or the interpreter exits.
            KeyboardInterrupt: at once.

        Concurrency: any number of threads; each sleeps in the kernel without the interpreter lock, and looks again
        once a second in case that a wake-up was lost. A child forked meanwhile waits for nothing.
        """
        check_wait(timeout)
        newer = Newer(self, after, timeout)
        return until(newer.look, timeout, newer.late)

    async def wait_async(self, *, after: Snapshot[T] | int | None = None, timeout: float | None = None) -> Snapshot[T]:
        """Do what ``wait`` does, for asyncio.

        Args, Returns, Raises: as ``wait``; cancelling the task ends the wait and leaves nothing behind.

        Concurrency: any number of tasks and event loops. One helper thread for the whole process sleeps for all of
        them, only while one of them waits. It decodes, too, one version after the other, so that the event loop goes
        on meanwhile; a ``get()`` there would decode at once: with large values use ``refresh="background"``.
        """
        check_wait(timeout)
        newer = Newer(self, after, timeout)
        newer.start()  # here: versions that are published before the helper thread looks are newer than now
        from shmcow import aio  # asyncio is imported by those who use it

        return await aio.until(newer.look, timeout, newer.late)

    def watch(self) -> Watch[T]:
        """Iterate over snapshots: the current one first, then each newest one, for ever.

        A slow loop body misses versions in between, never the newest. After the store was destroyed it goes on with
        the new store of that name (compare ``snapshot.epoch``). Closing the reader, from any thread, ends the loop.

        Returns:
            An iterator; ``next()`` waits.

        Raises:
            StoreNotFoundError: by ``next()``, when there is no store at the start (after ``attach_timeout``).
            ShmcowError: by ``next()``, once for each unusable version, with ``on_bad="raise"``.
            ClosedError: the reader is closed already.

        Concurrency: one thread for each iterator, any number of iterators. Waiting is as in ``wait``.
        """
        return Watch(self)

    def watch_async(self) -> AsyncWatch[T]:
        """Do what ``watch`` does, for ``async for``.

        Concurrency: one task for each iterator; waiting is as in ``wait_async``. Nothing needs to be closed after
        ``break`` or a cancellation.
        """
        return AsyncWatch(self)

    def subscribe(self, callback: Callable[[Snapshot[T] | None, Snapshot[T]], object]) -> Subscription[T]:
        """Call ``callback(old, new)`` with snapshots, in a daemon thread of its own, for each newest version.

        The first call comes at once, as ``callback(None, current)``, or when the store has its first version: it may
        not exist yet. Afterwards ``old`` is the ``new`` of the call before. A slow callback misses versions in
        between, never the newest. An exception is logged, and the next version calls again.

        Args:
            callback: it may block, raise, publish and unsubscribe.

        Returns:
            A Subscription: call it to unsubscribe. Closing the reader does, too.

        Raises:
            TypeError: ``callback`` is not callable.
            ClosedError: the reader is closed.

        Concurrency: the thread is started here, and again in each forked child, which is told of what its parent was
        not told yet (after a fork in C without Python's hooks: at the child's next ``get()``).
        """
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError(f"callback is a callable, found {callback!r}; in asyncio use watch_async()")
        self._check_open()
        subscription = Subscription(self, callback)
        subscription.start()
        return subscription

    def close(self) -> None:
        """Let go of the store, its mapping and its markers; views and held snapshots stay usable.

        Concurrency: any thread; waits and watches of this reader in other threads end, and so do its subscriptions.
        """
        self._closed = True
        self._store = None
        self._forget()
        _core.ring()

    def __enter__(self) -> Reader[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        cached = self._cached()
        state = "closed" if self._closed else f"at version {cached[1]}" if cached else "nothing read yet"
        return f"<Reader {self._name}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        how = self._how
        given = {
            "type": None if how.codec is not None or how.type is Any else how.type,
            "codec": how.codec,
            "transform": how.transform,
            "on_bad": "raise" if self._raises else "keep",
            "refresh": "inline" if self._refresher is None else "background",
            "attach_timeout": self._attach_timeout,
            "freeze": how.freeze,
            "owner": self._owner,
            "verify": how.verify,
        }
        if self._default is not _MISSING:
            given["default"] = self._default
        return _remake, (type(self), self._name, dump("a Reader", given))

    # ---- the slow paths, called by the C slot ----

    def _slow_get(self) -> Any:
        cached, error = self._newest()
        if cached is not None and not (self._raises and error is not None):
            return cached[2]
        if self._default is not _MISSING and cached is None:
            return self._default
        raise self._reason(error)

    def _slow_snapshot(self) -> Any:
        cached, error = self._newest()
        if cached is not None and not (self._raises and error is not None):
            return cached[3]
        raise self._reason(error)

    def _newest(self) -> tuple[tuple[int, int, Any, Any] | None, Exception | None]:
        """Return what is cached after a look, and why it is not the newest."""
        if self._refresher is not None or _core.forks() != self._forks:
            cached = self._followed()
            if cached is not None:
                return cached, self._problem
        error = self._catch_up()
        if error is not None and self._attach_timeout:
            error = self._wait_for_first(error)
        cached = self._cached()
        if cached is None:
            self._check_open()  # closed meanwhile: that is why there is nothing
        elif self._refresher is not None:  # the next publish is the thread's
            self._refresher.try_start()
        return cached, error

    def _followed(self) -> tuple[int, int, Any, Any] | None:
        """Return what is cached if a thread sees to it that it is fresh; start that thread once there is something."""
        if _core.forks() != self._forks:
            self._forks = _core.forks()
            start_again()  # a fork in C does not run Python's hooks
        if self._refresher is None:
            return None
        self._check_open()
        cached = self._cached()
        if cached is not None:
            self._refresher.try_start()
        return cached if self._refresher.running else None

    def _wait_for_first(self, error: Exception) -> Exception | None:
        """Wait for the store's first version as ``attach_timeout`` says; return why there still is none."""
        if self._cached() is not None:
            return error
        now, forks = time.monotonic(), _core.forks()
        if self._attach_until is None or self._attach_until[0] != forks:
            self._attach_until = forks, now + self._attach_timeout
        return first(self, self._attach_until[1] - now) if now < self._attach_until[1] else error

    def _reason(self, error: Exception | None) -> Exception:
        if error is None:
            return NotPublishedError(
                f"get() of store {self._name} was called while this very thread decodes its first version: "
                "a decoder hook or transform cannot use the value that it is making"
            )
        # A copy: what is kept in `problem` must not collect the frames, and so the locals, of whoever it is raised to.
        again = copy.copy(error)
        again.__cause__ = error.__cause__
        return again

    def _check_open(self) -> None:
        if self._unusable is not None:
            raise copy.copy(self._unusable)
        if self._closed:
            raise ClosedError(f"the reader of store {self._name} was closed: make a new one")

    def _check_not_decoding(self) -> None:
        if (_core.forks(), threading.get_ident()) in self._inside:
            raise NotPublishedError(
                f"a decoder hook or transform= of store {self._name} waits for the version that it is making"
            )

    def _catch_up(self) -> Exception | None:
        """Bring the cache up to date; return why it is not."""
        self._check_open()
        me = (_core.forks(), threading.get_ident())
        if me in self._inside:
            # A decoder hook, finalizer or signal handler of this thread called get() in mid-decode: the last good
            # value is the answer, and decoding again in here would never end.
            return self._problem
        handled = sys.exception()
        try:
            self._inside[me] = False
            self._advance(me)
        except ClosedError:
            self._forget()
            raise
        except (ShmcowError, OSError) as exc:
            strip(exc, handled)
            self._note(exc)
            return exc
        finally:
            self._inside.pop(me, None)
        if self._closed:  # by another thread, meanwhile
            self._forget()
        return None

    def _look_up(self) -> _core.Store:
        store = stores.attach(self._name)
        if self._owner is not None and store.uid != self._owner:
            raise NotOwnerError(
                f"store {self._name} belongs to user {store.uid}, expected user {self._owner} (owner=): another user "
                "may have made a store of that name"
            )
        return store

    def _attach(self) -> _core.Store:
        known = self._store  # close() in another thread takes it away at any moment
        if known is not None and known.named():
            return known
        store = self._store = self._look_up()
        if self._closed:  # by another thread, meanwhile
            self._store = None
            self._check_open()
        return store

    def _advance(self, me: tuple[int, int]) -> None:
        known = self._store  # close() in another thread takes it away at any moment
        try:
            store = self._attach()
        except ShmcowError as exc:
            if known is None:
                raise
            # What we knew is not what has the name now: look again when the slot's countdown says so.
            self._settle(known, known.word)
            if isinstance(exc, StoreNotFoundError):
                raise StoreDestroyedError(
                    f"store {self._name} was destroyed, or removed from outside: start its writer again"
                ) from None
            raise
        word = store.word
        seen = (store.serial, word & _core.VERSION_MAX)
        cached = self._cached()
        if cached is not None and cached[:2] == seen:
            store.refresh_claims()
            self._accept(store, word)
            self._problem = None
            return
        if self._bad is not None and self._bad[:2] == seen:
            store.refresh_claims()
            self._settle(store, word)
            raise self._bad[2]
        try:
            self._inside[me] = True
            self._decode(store, word)
        finally:
            self._inside[me] = False
            if self._awaited and (self._cached() != cached or (self._bad is not None and self._bad[:2] == seen)):
                self._awaited = False
                _core.ring()

    def _others_work(self) -> bool:
        """Tell whether another thread is decoding: who waits need not do the same beside it. It rings at its end."""
        self._awaited = True  # first: the other thread looks at this after it has stopped working
        forks, me = _core.forks(), threading.get_ident()
        return any(works and at == forks and who != me for (at, who), works in self._inside.copy().items())

    def _decode(self, store: _core.Store, word: int) -> None:
        try:
            hold = store.hold()
        except CorruptSegmentError as exc:  # a damaged entry, a missing segment: bad news about this version
            self._remember_bad(store, word & _core.VERSION_MAX, exc)
            self._settle(store, word)
            raise
        except ShmcowError:  # a plain OSError (no descriptor left) is a passing trouble: tried again at the next call
            self._settle(store, word)
            raise
        if hold.version != word & _core.VERSION_MAX:
            word = store.word  # published meanwhile
        if hold.version != word & _core.VERSION_MAX:
            word = 0  # and again: 0 is no published word, so the next call looks again
        try:
            snapshot = self._load(store, hold)
        except ShmcowError as exc:
            self._remember_bad(store, hold.version, exc)
            self._settle(store, word)
            raise
        if self._install(store, word, hold.version, snapshot.value, snapshot):
            self._problem = None

    def _settle(self, store: _core.Store, word: int) -> None:
        """Let get() return the last good value without a second look, until `current` is no longer this word."""
        if not self._raises:
            self._accept(store, word)

    def _remember_bad(self, store: _core.Store, version: int, exc: Exception) -> None:
        if self._bad is None or self._bad[:2] != (store.serial, version):
            self._bad = (store.serial, version, exc)
            self._failures += 1
            _log.error("cannot use the newest version: %s", str(exc))

    def _load(self, store: _core.Store, hold: _core.Hold) -> Snapshot[T]:
        """Decode a version, or find what another thread decoded: one object for each version."""
        key = (store.serial, hold.version)
        known = self._alive.get(key)
        return known if known is not None else self._alive.keep(key, load(hold, self._how))

    def _note(self, exc: Exception) -> None:
        known = self._problem
        if known is None or type(known) is not type(exc) or str(known) != str(exc):
            self._problem = exc
            bad_version = self._bad is not None and exc is self._bad[2]  # said already
            if not bad_version and self._cached() is not None:
                _log.warning("going on with the last good value: %s", str(exc))
            elif (
                not bad_version
                and self._default is not _MISSING
                and not isinstance(exc, (StoreNotFoundError, NotPublishedError))
            ):
                _log.warning("answering with the default, although there is a store: %s", str(exc))


def _uid_of(owner: int | str | None) -> int | None:
    if owner is None or (isinstance(owner, int) and not isinstance(owner, bool) and owner >= 0):
        return owner
    if not isinstance(owner, str):
        raise ValueError(f"owner is a uid or a user's name, found {owner!r}")
    import pwd

    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {owner!r} on this machine") from None


def _remake(kind: type[Reader[Any]], name: str, given: bytes) -> Reader[Any]:
    try:
        return kind(name, **undump(given, f"the reader of store {name}"))
    except DecodeError as exc:  # raised by whoever uses it: an error while unpickling would take a pool's worker down
        strip(exc, None)
        reader = kind(name)
        reader._unusable = exc
        return reader
