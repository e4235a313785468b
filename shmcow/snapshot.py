"""A version as Python sees it: its value, where it comes from, and whether this process holds it."""

from __future__ import annotations

import copy
import datetime
import pickle
import weakref
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn

from typing_extensions import TypeVar

from shmcow import _core
from shmcow.decoding import Decoding, decode
from shmcow.errors import DecodeError, StoreDestroyedError, StoreNotFoundError, VersionGoneError
from shmcow.frozen import thaw
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
        store: the store's name.
        epoch: of the store, 32 hexadecimal digits; versions of different epochs do not compare.
        published_at: when, in UTC.
        publisher: (pid, uid) of the writer, as its own pid and user namespaces number them.
        author, message, source: what the writer said.
        codec: name of the codec.
        type_name: the type that the writer published, for people.
        fingerprint: of that type's schema, hexadecimal; "" when untyped.
        rollback_of: the version whose content this one repeats, or None.
        size_bytes: of the payload.

    Picklable: what is sent is the store, the epoch, the version and how to decode it. The sender holds the version from
    then on (until ``release()``, or its last reference to the snapshot goes), the receiver as long as it has the
    snapshot. In the receiver a value is decoded once, however often it is received. If it cannot be had there, because
    the sender let go first, say, using the snapshot raises why.

    Concurrency: any thread. Holds are counted: each ``with`` and each ``hold()`` lets go of its own. A forked child
    has a copy, and counts as a holder of its own from its next read on.
    """

    __slots__ = (
        "__weakref__",
        "_holds",
        "_how",
        "_store",
        "author",
        "codec",
        "epoch",
        "fingerprint",
        "message",
        "published_at",
        "publisher",
        "rollback_of",
        "size_bytes",
        "source",
        "store",
        "type_name",
        "value",
        "version",
    )

    def __init__(self, store: _core.Store, entry: dict[str, Any], value: T, how: Decoding) -> None:
        self._store = store
        self._how = how
        self._holds: list[_core.Hold] = []
        self.value = value
        self.version: int = entry["version"]
        self.store = store.name
        self.epoch = store.epoch.hex()
        self.published_at = datetime.datetime.fromtimestamp(entry["published_ns"] / 1e9, datetime.UTC)
        self.publisher = Publisher(entry["pid"], entry["uid"])
        self.author: str = entry["author"]
        self.message: str = entry["message"]
        self.source: str = entry["source"]
        self.codec: str = entry["codec"]
        self.type_name: str = entry["type_name"]
        self.fingerprint: str = entry["fingerprint"].hex() if any(entry["fingerprint"]) else ""
        self.rollback_of: int | None = entry["origin"] or None
        self.size_bytes: int = sum(part["length"] for part in entry["parts"])

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
        self._holds.append(self._holds[0] if self._holds else self._store.hold(self.version))
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
        """The payload as it is in shared memory, read-only; the version is held as long as the view lives.

        Raises:
            VersionGoneError: the version was reclaimed, and nobody in this process holds it.
        """
        hold = self._holds[0] if self._holds else self._store.hold(self.version)
        return hold.view()

    def copy(self) -> T:
        """Return a plain, mutable, deep copy of the value."""
        return thaw(self.value)

    def __copy__(self) -> Snapshot[T]:
        return self

    def __deepcopy__(self, memo: object) -> Snapshot[T]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._holds:
            self.hold()  # for the receiver: until release(), or the last reference here goes
        how = self._how
        # Bytes in bytes: a receiver that lacks the type finds out when it uses the snapshot. An error while a task is
        # being unpickled would take a pool's worker down, and its caller would wait for ever.
        return receive, (self.store, self.epoch, self.version, pickle.dumps(how._replace(made=None)))

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


# ---- received from another process ----


class Unavailable(Snapshot[Any]):
    """A snapshot that was received and cannot be had in this process: whoever uses it is told why."""

    __slots__ = ("_sent", "_why")

    def __init__(self, sent: tuple[str, str, int, bytes], why: Exception) -> None:
        self.store, self.epoch, self.version, _ = self._sent = sent
        self._why = why
        self._holds = []

    def _fail(self) -> NoReturn:
        again = copy.copy(self._why)
        again.__cause__ = self._why.__cause__
        raise again

    def __getattr__(self, name: str) -> Any:  # what a received snapshot would have
        if name.startswith("_"):
            raise AttributeError(name)
        self._fail()

    def hold(self) -> NoReturn:
        """Raise why the snapshot cannot be had."""
        self._fail()

    @property
    def data(self) -> memoryview:
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
_alive: weakref.WeakValueDictionary[tuple[str, str, int, bytes], Snapshot[Any]] = weakref.WeakValueDictionary()


def receive(store: str, epoch: str, version: int, how: bytes) -> Snapshot[Any]:
    """Make the snapshot that another process has sent; called by pickle.

    Returns:
        The snapshot, held as long as it lives: the same object for as many as arrive meanwhile.

    Raises:
        Nothing: what is wrong is raised by using the snapshot.
    """
    sent = (store, epoch, version, how)
    try:
        snapshot = _alive.get(sent)
        if snapshot is not None and snapshot.held:
            return snapshot
        return _receive(sent)
    except Exception as exc:
        exc.__traceback__ = None  # its frames would keep the version held
        return Unavailable(sent, exc)


def _receive(sent: tuple[str, str, int, bytes]) -> Snapshot[Any]:
    name, epoch, version, how = sent
    known = _kept.get(sent)
    hold = _hold_sent(name, epoch, version)
    if known is not None and known.snapshot is not None:
        snapshot = _twin(known.snapshot)
    else:
        decoded = load(hold, _decoding_of(how, name, version))
        with lock_of_process():
            _kept.pop(sent, None)
            while len(_kept) >= _KEPT:
                _kept.pop(next(iter(_kept)))
            _kept[sent] = _Received(hold.store, None if decoded.held else decoded)
        snapshot = _twin(decoded)
    snapshot._holds.append(hold)
    with lock_of_process():
        first = _alive.get(sent)
        if first is not None and first.held:  # another thread was faster
            return first
        _alive[sent] = snapshot
        return snapshot


def _twin(snapshot: Snapshot[Any]) -> Snapshot[Any]:
    """Return another snapshot of the same value, which holds nothing yet."""
    twin = Snapshot.__new__(Snapshot)
    for field in Snapshot.__slots__:
        if field not in ("__weakref__", "_holds"):
            setattr(twin, field, getattr(snapshot, field))
    twin._holds = []
    return twin


def _hold_sent(name: str, epoch: str, version: int) -> _core.Hold:
    where = f"version {version} of store {name}"
    try:
        store = attach(name)
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
            "(`with snapshot:`) until the other process has done its work"
        ) from None


def _decoding_of(how: bytes, name: str, version: int) -> Decoding:
    try:
        decoding: Decoding = pickle.loads(how)
    except Exception as exc:
        raise DecodeError(
            f"version {version} of store {name} was sent to this process, which lacks the type or the codec to decode "
            f"it: {type(exc).__name__}: {exc}"
        ) from exc
    return decoding._replace(made={})
