"""A version as Python sees it: its value, where it comes from, and whether this process holds it."""

from __future__ import annotations

import copy
import datetime
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn

from typing_extensions import TypeVar

from shmcow import _core
from shmcow.decoding import Decoding, decode, dump, strip, undump
from shmcow.errors import StoreDestroyedError, StoreNotFoundError, VersionGoneError
from shmcow.frozen import thaw
from shmcow.segments import header_path
from shmcow.store import attach, lock_of_process

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T", default=Any)


class Publisher(NamedTuple):
    """Who published a version: process and user, as numbered where the writer ran."""

    pid: int
    uid: int


class Snapshot(Generic[T]):
    """One published version: immutable, and the same object for everybody in a process while it is current.

    A value that was decoded by copying needs nothing more. To keep the version itself openable (for another process,
    for ``data``), hold it: ``with snapshot:``, or ``hold()`` and ``release()``.

    Attributes:
        value: the decoded value; shared, do not change it.
        version: its number, from 1.

    Picklable: what is sent is the store, the epoch, the version and how to decode it. The sender holds the version from
    then on (until ``release()``, or its last reference to the snapshot goes), the receiver as long as it has the
    snapshot. A pool pickles later, in a thread of its own: hold the snapshot before (``with``). In the receiver a value
    is decoded once, however often it is received (a view into the version may be made anew: nothing is kept that would
    hold the version). If it cannot be had there, because the sender let go first, say, using the snapshot raises why.

    Concurrency: any thread. Holds are counted: each ``with`` and each ``hold()`` lets go of its own. A forked child
    has a copy, and counts as a holder of its own from its next read on.
    """

    __slots__ = ("__weakref__", "_entry", "_holds", "_how", "_store", "value", "version")

    def __init__(self, store: _core.Store, entry: dict[str, Any], value: T, how: Decoding) -> None:
        self._store = store
        self._entry = entry  # what most readers never ask for is made when it is asked for
        self._how = how
        self._holds: list[_core.Hold] = []
        self.value = value
        self.version: int = entry["version"]

    @property
    def store(self) -> str:
        """The store's name."""
        return self._store.name

    @property
    def epoch(self) -> str:
        """Of the store, 32 hexadecimal digits; versions of different epochs do not compare."""
        return self._store.epoch.hex()

    @property
    def published_at(self) -> datetime.datetime:
        """When, in UTC."""
        return datetime.datetime.fromtimestamp(self._entry["published_ns"] / 1e9, datetime.UTC)

    @property
    def publisher(self) -> Publisher:
        """Process and user of the writer, as its own pid and user namespaces number them."""
        return Publisher(self._entry["pid"], self._entry["uid"])

    @property
    def author(self) -> str:
        """Who published it, as the writer said."""
        return self._entry["author"]  # type: ignore[no-any-return]

    @property
    def message(self) -> str:
        """Why, as the writer said."""
        return self._entry["message"]  # type: ignore[no-any-return]

    @property
    def source(self) -> str:
        """From what, as the writer said."""
        return self._entry["source"]  # type: ignore[no-any-return]

    @property
    def codec(self) -> str:
        """Name of the codec."""
        return self._entry["codec"]  # type: ignore[no-any-return]

    @property
    def type_name(self) -> str:
        """The type that the writer published, for people."""
        return self._entry["type_name"]  # type: ignore[no-any-return]

    @property
    def fingerprint(self) -> str:
        """Of that type's schema, hexadecimal; "" when untyped."""
        found: bytes = self._entry["fingerprint"]
        return found.hex() if any(found) else ""

    @property
    def rollback_of(self) -> int | None:
        """The version whose content this one repeats, or None."""
        return self._entry["origin"] or None

    @property
    def size_bytes(self) -> int:
        """Of the payload."""
        return sum(part["length"] for part in self._entry["parts"])

    @property
    def held(self) -> bool:
        """Tell whether this snapshot holds its version."""
        return bool(self._holds)

    def hold(self) -> Snapshot[T]:
        """Hold the version until the matching ``release()``: it stays openable, and ``wait_unused`` waits for it.

        Returns:
            The snapshot itself.

        Raises:
            VersionGoneError: it was reclaimed before anybody held it: more than ``retain`` newer versions were
                published since it was current. Take a new snapshot.
        """
        self._holds.append(self._store.hold(self.version))  # in a forked child, what was inherited is marked here
        return self

    def release(self) -> None:
        """Let go of one ``hold()``. The value stays usable; without a hold this does nothing."""
        if self._holds:
            self._holds.pop()

    def __enter__(self) -> Snapshot[T]:
        return self.hold()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    @property
    def data(self) -> memoryview:
        """The payload as it was written, read-only; the version is held as long as the view lives.

        It lies in shared memory, but for up to 16 kB of MessagePack or JSON: these are read, not mapped.

        Raises:
            VersionGoneError: the version was reclaimed, and nobody in this process holds it.
            TypeError: it has several parts: see ``part``.
        """
        hold = self._store.hold(self.version)
        names = [part["name"] for part in hold.entry["parts"]]
        if len(names) > 1:
            raise TypeError(
                f"version {self.version} of store {self.store} has several parts ({', '.join(names)}): "
                "take one with part(name)"
            )
        return hold.view()

    def part(self, name: str) -> memoryview:
        """Return the payload of one part of a bundle, as ``data`` does of a version with only one.

        Raises:
            KeyError: there is no part of that name.
            VersionGoneError: the version was reclaimed, and nobody in this process holds it.
        """
        hold = self._store.hold(self.version)
        names = [part["name"] for part in hold.entry["parts"]]
        if name not in names:
            raise KeyError(f"version {self.version} of store {self.store} has no part {name!r}: it has {names}")
        return hold.view(names.index(name))

    def copy(self) -> T:
        """Return a plain, mutable, deep copy of the value."""
        return thaw(self.value)

    def __copy__(self) -> Snapshot[T]:
        return self

    def __deepcopy__(self, memo: object) -> Snapshot[T]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        sent = self.store, self.epoch, self.version, dump("a Snapshot", self._how._replace(made=None))
        if self._holds:
            self._store.refresh_claims()  # in a forked child: what was inherited is held by it from here on
        else:
            self.hold()  # for the receiver: until release(), or the last reference here goes
        with lock_of_process():
            _alive[_core.forks(), sent] = self  # should it arrive in this very process
        return receive, sent

    def __repr__(self) -> str:
        return f"<Snapshot {self.store} version {self.version}, {self.size_bytes} bytes of {self.codec}>"


def load(hold: _core.Hold, how: Decoding) -> Snapshot[Any]:
    """Decode a held version into a snapshot; it holds the version if the value looks into it.

    Raises, Concurrency: as ``decoding.decode``.
    """
    entry = hold.entry
    value, holds = decode(hold, entry, how)
    snapshot = Snapshot(hold.store, entry, value, how)
    if holds:
        snapshot._holds.append(hold)
    return snapshot


class Alive(Generic[T]):
    """The snapshots that a reader has made and that are still in use: one for each version.

    A WeakValueDictionary would do the same at ten times the cost: a noticeable part of a version's first ``get()``.

    Concurrency: any thread.
    """

    def __init__(self) -> None:
        self._refs: dict[tuple[int, int], weakref.ref[Snapshot[T]]] = {}
        self._room = 8  # when there are more, those that died are forgotten

    def get(self, key: tuple[int, int]) -> Snapshot[T] | None:
        """Return the snapshot of (serial of the attach, version), or None."""
        ref = self._refs.get(key)
        return None if ref is None else ref()

    def keep(self, key: tuple[int, int], snapshot: Snapshot[T]) -> Snapshot[T]:
        """Keep a snapshot, unless another thread was first; return the one that is kept."""
        ref = weakref.ref(snapshot)
        if self._refs.setdefault(key, ref) is not ref:
            return self._keep_one(key, ref, snapshot)
        if len(self._refs) > self._room:
            self._forget_dead()
        return snapshot

    # Only with the lock is a reference that is there replaced or removed, so that nobody replaces a live one. After a
    # call a signal handler or a finalizer of this very thread may have been here; where nothing is called none was.

    def _keep_one(self, key: tuple[int, int], ref: weakref.ref[Snapshot[T]], snapshot: Snapshot[T]) -> Snapshot[T]:
        with lock_of_process():
            there = self._refs.setdefault(key, ref)
            while (known := there()) is None:
                if key in self._refs and self._refs[key] is there:
                    self._refs[key] = ref
                    return snapshot
                there = self._refs.setdefault(key, ref)
            return known

    def _forget_dead(self) -> None:
        with lock_of_process():
            for key, ref in self._refs.copy().items():
                if ref() is None and key in self._refs and self._refs[key] is ref:
                    del self._refs[key]
            self._room = 2 * len(self._refs) + 8


# ---- received from another process ----


class Unavailable(Snapshot[Any]):
    """A snapshot that was received and cannot be had in this process: whoever uses it is told why."""

    __slots__ = ("_sent", "_why")

    def __init__(self, sent: tuple[str, str, int, bytes], why: Exception) -> None:
        self._sent = sent
        self.version = sent[2]
        self._why = why
        self._holds = []

    def _fail(self) -> NoReturn:
        again = copy.copy(self._why)
        again.__cause__ = self._why.__cause__
        raise again

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Snapshot, name):
            raise AttributeError(f"a Snapshot has no attribute {name!r}")
        self._fail()

    @property
    def store(self) -> str:
        """The store's name."""
        return self._sent[0]

    @property
    def epoch(self) -> str:
        """Of the store that it was taken from."""
        return self._sent[1]

    def hold(self) -> NoReturn:
        """Raise why the snapshot cannot be had."""
        self._fail()

    @property
    def data(self) -> memoryview:
        """Raise why the snapshot cannot be had."""
        self._fail()

    def part(self, name: str) -> NoReturn:  # noqa: ARG002
        """Raise why the snapshot cannot be had."""
        self._fail()

    def copy(self) -> NoReturn:
        """Raise why the snapshot cannot be had."""
        self._fail()

    def __reduce__(self) -> tuple[Any, ...]:
        return receive, self._sent

    def __repr__(self) -> str:
        return f"<Snapshot {self.store} version {self.version}, unavailable: {type(self._why).__name__}>"


class _Received(NamedTuple):
    """What is kept for the next time that the same snapshot arrives: no hold, only what was decoded."""

    store: _core.Store
    snapshot: Snapshot[Any] | None  # None where the value looks into the version: keeping it would hold the version


_KEPT: Final = 8
_kept: dict[tuple[str, str, int, bytes], _Received] = {}
# By fork as well. What a child inherited is held in the name of everything else that it inherited with the same store:
# a pool's worker, forked while its parent held a version, would hold that version as long as it lives.
_alive: weakref.WeakValueDictionary[tuple[int, tuple[str, str, int, bytes]], Snapshot[Any]]
_alive = weakref.WeakValueDictionary()
_own: weakref.WeakValueDictionary[tuple[int, str], _core.Store] = weakref.WeakValueDictionary()
_forks = _core.forks()


def receive(store: str, epoch: str, version: int, how: bytes) -> Snapshot[Any]:
    """Make the snapshot that another process has sent; called by pickle.

    Returns:
        The snapshot, held as long as it lives. Those that arrive meanwhile have the same value, and holds of their own.

    Raises:
        Nothing: what is wrong is raised by using the snapshot.
    """
    sent = (store, epoch, version, how)
    handled = sys.exc_info()[1]
    try:
        return _receive(sent)
    except Exception as exc:
        strip(exc, handled)
        return Unavailable(sent, exc)


def _receive(sent: tuple[str, str, int, bytes]) -> Snapshot[Any]:
    name, epoch, version, _ = sent
    here = _core.forks(), sent
    known = _alive.get(here)
    if known is not None and known.held:
        hold = known._store.hold(version)
    else:
        hold = _hold_sent(name, epoch, version)
        with lock_of_process():
            kept = _kept.pop(sent, None)
            if kept is not None:
                _kept[sent] = kept._replace(store=hold.store)  # used last
        known = known or (kept and kept.snapshot)
    snapshot = _twin(known if known is not None else _keep(sent, load(hold, _decoding_of(sent))), hold)
    with lock_of_process():
        _alive[here] = snapshot
    return snapshot


def _keep(sent: tuple[str, str, int, bytes], decoded: Snapshot[Any]) -> Snapshot[Any]:
    """Keep what was decoded for the next arrival, and forget stores that have gone; returns what is kept."""
    with lock_of_process():
        first = _kept.pop(sent, None)
        if first is not None and first.snapshot is not None:  # another thread was faster
            decoded = first.snapshot
        for key in [key for key, kept in _kept.items() if not kept.store.named()]:
            del _kept[key]
        while len(_kept) >= _KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[sent] = _Received(decoded._store, None if decoded.held else decoded)
    return decoded


def _twin(snapshot: Snapshot[Any], hold: _core.Hold) -> Snapshot[Any]:
    """Return another snapshot of the same value, with a hold of its own."""
    twin = Snapshot.__new__(Snapshot)
    for field in Snapshot.__slots__:
        if field not in ("__weakref__", "_holds", "_store"):
            setattr(twin, field, getattr(snapshot, field))
    twin._store = hold.store
    twin._holds = [hold]
    return twin


def _attach_own(name: str) -> _core.Store:
    """Attach as ``store.attach`` does, but in a forked child to a Store that is not its parent's."""
    forks = _core.forks()
    if forks == _forks:
        return attach(name)
    with lock_of_process():
        store = _own.get((forks, name))
        if store is None or not store.named():
            store = _own[forks, name] = _core.Store(header_path(name))
        return store


def _hold_sent(name: str, epoch: str, version: int) -> _core.Hold:
    where = f"version {version} of store {name}"
    try:
        store = _attach_own(name)
    except StoreNotFoundError:
        raise StoreDestroyedError(f"{where} was sent to this process, and the store is gone by now") from None
    if store.epoch.hex() != epoch:
        raise StoreDestroyedError(
            f"{where} was sent to this process, and the store was destroyed and created again since: its version "
            f"{version} is another one"
        )
    try:
        return store.hold(version)
    except VersionGoneError:
        raise VersionGoneError(
            f"{where} was sent to this process, and its sender let go before it arrived: keep the snapshot there "
            "(`with snapshot:`) until the other process has done its work (or so many versions were held that the "
            "oldest had to go)"
        ) from None


def _decoding_of(sent: tuple[str, str, int, bytes]) -> Decoding:
    name, _, version, how = sent
    decoding: Decoding = undump(how, f"version {version} of store {name}")
    return decoding._replace(made={})
