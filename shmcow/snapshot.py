"""A version as Python sees it: its value, where it comes from, and whether this process holds it."""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from typing_extensions import TypeVar

from shmcow import _core, codecs
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError
from shmcow.frozen import freeze, thaw

if TYPE_CHECKING:
    from types import TracebackType

    from shmcow.codecs import Codec

T = TypeVar("T", default=Any)

CHECKED_BYTES = 1 << 20  # payloads up to here always carry a CRC, and are always checked


class Publisher(NamedTuple):
    """Who published a version: process and user, as numbered where the writer ran."""

    pid: int
    uid: int


class Decoding(NamedTuple):
    """How a process turns a version's bytes into a value.

    Attributes:
        codec: None: the built-in codec that the version names, with ``type``.
        type: what to decode to when ``codec`` is None.
        freeze: whether the value is deeply frozen.
        transform: applied to the value once for each version and process.
        verify: whether to check a CRC above 1 MiB too, where there is one.
        made: keeps the built-in codecs made so far, by name: making one walks the whole type.
    """

    codec: Codec[Any] | None = None
    type: Any = Any
    freeze: bool = True
    transform: Callable[[Any], Any] | None = None
    verify: bool = False
    made: dict[str, Codec[Any]] | None = None


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
        publisher: (pid, uid) of the writer.
        author, message, source: what the writer said.
        codec: name of the codec.
        type_name: the type that the writer published, for people.
        fingerprint: of that type's schema, hexadecimal; "" when untyped.
        rollback_of: the version whose content this one repeats, or None.
        size_bytes: of the payload.

    Concurrency: any thread. Holds are counted: each ``with`` and each ``hold()`` lets go of its own. A forked child
    has a copy, and counts as a holder of its own from its next read on.
    """

    __slots__ = (
        "__weakref__",
        "_holds",
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

    def __init__(self, store: _core.Store, entry: dict[str, Any], value: T) -> None:
        self._store = store
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
            VersionGoneError: it was reclaimed before anybody held it.
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

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            f"a Snapshot cannot be pickled or copied: send its value, or its version ({self.version}) and call "
            f"Reader({self.store!r}).at() there"
        )

    def __repr__(self) -> str:
        return f"<Snapshot {self.store} version {self.version}, {self.size_bytes} bytes of {self.codec}>"


def load(hold: _core.Hold, how: Decoding) -> Snapshot[Any]:
    """Decode a held version.

    Returns:
        Its snapshot; it holds the version if the value looks into it.

    Raises:
        CodecMismatchError: it was published with another codec.
        CorruptSegmentError: its checksum is wrong.
        DecodeError: it does not decode, or ``transform`` raised.

    Concurrency: any thread, no lock held: decoders and ``transform`` may use the same store again.
    """
    entry = hold.entry
    where = f"version {entry['version']} of store {hold.store.name}"
    codec = choose(how, entry, where)
    views = [hold.view(k) for k in range(len(entry["parts"]))]
    for view, part in zip(views, entry["parts"], strict=True):
        check_payload(view, part, how.verify, where)
    try:
        value = codec.decode_parts(views)
        if how.freeze:
            value = freeze(value)
    except DecodeError as exc:
        raise DecodeError(f"{where}{_published_as(entry)}: {exc}") from exc
    except RecursionError as exc:
        raise DecodeError(f"{where} is nested too deeply to be frozen") from exc
    if how.transform is not None:
        try:
            value = how.transform(value)
        except Exception as exc:
            raise DecodeError(f"transform= raised {type(exc).__name__} for {where}: {exc}") from exc
    snapshot = Snapshot(hold.store, entry, value)
    if codec.holds:
        snapshot._holds.append(hold)
    return snapshot


def choose(how: Decoding, entry: dict[str, Any], where: str) -> Codec[Any]:
    """Return the codec to decode an entry with.

    Raises:
        CodecMismatchError: the entry names another codec than the one given, or one that is not built in.
    """
    found = entry["codec"]
    if how.codec is None:
        codec = how.made.get(found) if how.made is not None else None
        if codec is None:
            codec = codecs.for_name(found, how.type)
            if how.made is not None:
                how.made[found] = codec
        return codec
    if how.codec.name != found:
        raise CodecMismatchError(
            f"{where} was published with the codec {found!r}, expected {how.codec.name!r}: "
            "give reader and writer the same codec"
        )
    return how.codec


def _published_as(entry: dict[str, Any]) -> str:
    return f" (published as {entry['type_name']})" if entry["type_name"] else ""


def check_payload(view: memoryview, part: dict[str, Any], verify: bool, where: str) -> None:
    """Check a payload's CRC: always up to 1 MiB, above on request.

    Raises:
        CorruptSegmentError: it is wrong.
    """
    if not part["flags"] & _core.HAS_CRC or (part["length"] > CHECKED_BYTES and not verify):
        return
    found = zlib.crc32(view)
    if found != part["crc"]:
        raise CorruptSegmentError(
            f"the payload of {where} has the CRC {found:08x}, expected {part['crc']:08x}: it was overwritten from "
            "outside; publish again"
        )
