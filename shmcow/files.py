"""A version in a file: exported with where it comes from and a checksum, and imported again, after a reboot say.

The file, format 1 (all numbers little-endian)::

    offset  bytes
    0       8      the magic number: 93 'shmcow' 0a
    8       4      format: 1
    12      4      N, the length of the header
    16      N      the header: JSON, an object with the fields of ``Exported``, on one line with a newline at its end
    16 + N  ...    the payloads of the parts, one after the other, as they lie in shared memory; each begins at the next
                   multiple of 64, with zeros in between
    end-32  32     BLAKE2b of 32 bytes, of everything before it

So its size follows from its header. Nothing in a file is code or names code that would be run: what is imported is
decoded by built-in codecs, or by the codec that the importer gives. The checksum finds accidents; who can write the
file can forge it, as who can write a store can.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import io
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Annotated, Any, Final

import msgspec
from typing_extensions import Buffer

from shmcow import _core, codecs, segments
from shmcow.arguments import check_mode, check_version
from shmcow.codecs import Bundle, Codec, Part, StoredPart
from shmcow.decoding import check_payload
from shmcow.documents import Progress, contents
from shmcow.errors import (
    CodecMismatchError,
    CorruptSegmentError,
    DecodeError,
    IncompatibleStoreError,
    StoreDestroyedError,
    ValidationError,
)
from shmcow.publishing import Published, publish
from shmcow.store import Settings, attach, hold_at
from shmcow.validators import Validator

__all__ = ["FORMAT", "Exported", "ExportedPart", "export_file", "import_file", "read_file", "sweep_partial"]

FORMAT: Final = 1
_MAGIC: Final = b"\x93shmcow\n"
_HEAD: Final = len(_MAGIC) + 8
_HEADER_MOST: Final = 1 << 16
_ALIGN: Final = 64
_DIGEST: Final = 32
_CHUNK: Final = 4 << 20
_DEAD: Final = 60.0  # seconds without a byte: whoever wrote a partial file was killed

_Text = Annotated[str, msgspec.Meta(max_length=512)]
_Codec = Annotated[str, msgspec.Meta(pattern=r"\A[ -~]{1,31}\Z")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class ExportedPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part of an exported version.

    Attributes:
        name: "" for a value of one part.
        codec: name of the codec that encoded it.
        size_bytes: of its payload.
        typed: whether its writer checked it against a type.
    """

    name: Annotated[str, msgspec.Meta(max_length=32)]
    codec: _Codec
    size_bytes: _Count
    typed: bool


class Exported(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an exported file says of the version in it.

    Attributes:
        byte_order: of the machine that wrote it.
        store, epoch, version: which one it was; the epoch is 32 hexadecimal digits.
        published_ns, pid, uid: when (nanoseconds since 1970) and by whom it was published.
        author, message, source: what the writer said.
        codec, type_name, fingerprint: of its type; the fingerprint is hexadecimal, "" when untyped.
        rollback_of: the version whose content it repeated; 0: none.
        mode, retain, max_total_bytes: settings of its store.
        exported_ns: when the file was written.
        parts: in the order of their payloads.
    """

    byte_order: Annotated[str, msgspec.Meta(max_length=8)]
    store: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    epoch: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    version: Annotated[int, msgspec.Meta(ge=1, le=_core.VERSION_MAX)]
    published_ns: _Count
    pid: _Count
    uid: _Count
    author: _Text
    message: _Text
    source: _Text
    codec: _Codec
    type_name: _Text
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{32})?\Z")]
    rollback_of: _Count
    mode: _Count
    retain: _Count
    max_total_bytes: _Count
    exported_ns: _Count
    parts: Annotated[tuple[ExportedPart, ...], msgspec.Meta(min_length=1, max_length=_core.MAX_SEGMENTS)]

    @property
    def size_bytes(self) -> int:
        """All payloads together."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def published_at(self) -> datetime.datetime:
        """When it was published, in UTC."""
        return datetime.datetime.fromtimestamp(self.published_ns / 1e9, datetime.UTC)


# ---- export ----


def export_file(
    name: str, path: str | os.PathLike[str], *, version: int | None = None, progress: Progress | None = None
) -> Exported:
    """Save a version to a file, with where it comes from and a checksum.

    The file appears whole or not at all, on disk before this returns, and only this user may read it (mode 0600). An
    older export of that name is replaced; anything else is not. Nothing is copied in memory, however large it is.

    Args:
        name: of the store.
        path: of the file.
        version: an older one; None: the current.
        progress: called now and then with the bytes done, and all.

    Returns:
        What the file says.

    Raises:
        StoreNotFoundError, StoreDestroyedError, NotPublishedError, VersionGoneError: there is no such version.
        CorruptSegmentError: a checksum in shared memory is wrong: it was overwritten from outside.
        FileExistsError: the name of the file belongs to something that is no export.
        OSError: the file cannot be written.

    Concurrency: any thread; reads the store only, needs no write permission, and holds the version meanwhile. Two
    exports to one file: the last one stays.
    """
    store = attach(segments.check_name(name))
    if version is not None:
        check_version("version", version, 1)
    if store.word == _core.DESTROYED:
        raise StoreDestroyedError(f"store {name} was destroyed")
    hold = store.hold() if version is None else hold_at(store, version)
    entry = hold.entry
    where = f"version {entry['version']} of store {name}"
    views = [hold.view(k) for k in range(len(entry["parts"]))]
    for view, part in zip(views, entry["parts"], strict=True):
        check_payload(view, part, True, where)
    said = _said_of(store, entry, [hold.codec(k) for k in range(len(views))])
    path = os.fspath(path)
    _check_target(path)
    _write_whole(path, lambda file: _write(file, said, views, progress))
    return said


def _said_of(store: _core.Store, entry: dict[str, Any], names: Sequence[str]) -> Exported:
    fingerprint = bytes(entry["fingerprint"])
    return Exported(
        byte_order=sys.byteorder,
        store=store.name,
        epoch=store.epoch.hex(),
        version=entry["version"],
        published_ns=entry["published_ns"],
        pid=entry["pid"],
        uid=entry["uid"],
        author=entry["author"],
        message=entry["message"],
        source=entry["source"],
        codec=entry["codec"],
        type_name=entry["type_name"],
        fingerprint=fingerprint.hex() if any(fingerprint) else "",
        rollback_of=entry["origin"],
        mode=store.mode,
        retain=store.retain,
        max_total_bytes=store.max_total_bytes,
        exported_ns=time.time_ns(),
        parts=tuple(
            ExportedPart(part["name"], name, part["length"], part["flags"] & _core.IS_TYPED != 0)
            for name, part in zip(names, entry["parts"], strict=True)
        ),
    )


def _check_target(path: str) -> None:
    """Refuse to replace what is no export: a device, a link, the very configuration that was published."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise FileExistsError(errno.EEXIST, "it is there already, and is no regular file", path)
    with open(path, "rb") as file:
        start = file.read(len(_MAGIC))
    if start and start != _MAGIC:
        raise FileExistsError(errno.EEXIST, "it is there already, and is no export of a store: remove it first", path)


def _write_whole(path: str, write: Callable[[IO[bytes]], None]) -> None:
    folder, start = _partial_of(path)
    partial = os.path.join(folder, f"{start}{secrets.token_hex(8)}.partial")
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc  # the name that was asked for
    try:
        with open(fd, "wb", buffering=0) as file:
            write(file)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # one may write into it, and not read it
        os.sync()
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _partial_of(path: str) -> tuple[str, str]:
    """Return the directory of an export's partial file, and how its name begins."""
    folder, base = os.path.split(path)
    start = os.fsencode(base)[:100].decode(errors="ignore")  # a name has 255 bytes at most, not characters
    return folder or ".", f".{start}."


def sweep_partial(path: str | os.PathLike[str]) -> None:
    """Remove what exports to a file have left that were killed, once nothing was written to it for a minute.

    Args:
        path: as for ``export_file``.

    Raises:
        OSError: the directory cannot be read, or changed.

    Concurrency: any thread; an export that goes on is left alone.
    """
    folder, start = _partial_of(os.fspath(path))
    pattern = re.compile(re.escape(start) + r"[0-9a-f]{16}\.partial")
    with os.scandir(folder) as entries:
        for entry in entries:
            if not pattern.fullmatch(entry.name):
                continue
            try:
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > _DEAD:
                    os.unlink(entry.path)
            except FileNotFoundError:  # it was done this very moment
                continue


def _write(file: IO[bytes], said: Exported, views: Sequence[memoryview], progress: Progress | None) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    done = 0

    def put(data: Buffer) -> None:
        nonlocal done
        digest.update(data)
        rest = memoryview(data)
        while rest.nbytes:
            rest = rest[file.write(rest) :]
        done += memoryview(data).nbytes

    header = msgspec.json.encode(said) + b"\n"
    put(_MAGIC + FORMAT.to_bytes(4, "little") + len(header).to_bytes(4, "little") + header)
    written = 0
    for view in views:
        put(bytes(-done % _ALIGN))
        for at in range(0, view.nbytes, _CHUNK):
            put(view[at : at + _CHUNK])
            written += min(_CHUNK, view.nbytes - at)
            if progress is not None:
                progress(written, said.size_bytes)
    put(digest.digest())


# ---- import ----


def read_file(path: str | os.PathLike[str], *, progress: Progress | None = None) -> tuple[Exported, list[memoryview]]:
    """Read an exported file, and check all of it.

    Args:
        path: of the file.
        progress: called now and then with the bytes done, and all.

    Returns:
        What it says, and the payloads of its parts. Those of a large file point into the mapped file: see
        ``documents.contents``.

    Raises:
        IncompatibleStoreError: it is no export, of a newer format, or of a machine of the other byte order.
        CorruptSegmentError: it is truncated, or damaged; says where.
        OSError: it cannot be read.

    Concurrency: any thread.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise IncompatibleStoreError(f"{path} is no regular file")
        said, head = _read_header(file, path)
        total = os.fstat(file.fileno()).st_size
        places = _places(said, len(head))
        size = places[-1][1] + _DIGEST
        if total != size:
            what = "truncated" if total < size else "longer than it says"
            raise CorruptSegmentError(f"{path} is {what}: it has {total:,} bytes, expected {size:,}")
        file.seek(0)
        data = contents(file)
    if data.nbytes != size or data[: len(head)] != head:
        raise CorruptSegmentError(f"{path} was changed while it was read")
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for start in range(0, size - _DIGEST, _CHUNK):
        end = min(start + _CHUNK, size - _DIGEST)
        digest.update(data[start:end])
        if progress is not None:
            progress(end, size - _DIGEST)
    if digest.digest() != data[-_DIGEST:]:
        raise CorruptSegmentError(f"the checksum of {path} is wrong: it was damaged; export it again")
    return said, [data[first:last] for first, last in places]


def _read_header(file: io.BufferedReader, path: str) -> tuple[Exported, bytes]:
    start = file.read(_HEAD)
    if start[: len(_MAGIC)] != _MAGIC[: len(start)] or not start:
        raise IncompatibleStoreError(f"{path} is no export of a store")
    if len(start) < _HEAD:
        raise CorruptSegmentError(f"{path} is truncated: it has {len(start)} bytes")
    form, length = int.from_bytes(start[8:12], "little"), int.from_bytes(start[12:16], "little")
    if form != FORMAT:
        raise IncompatibleStoreError(
            f"{path} is of format {form}, and this shmcow knows format {FORMAT}: import it with the shmcow that "
            "exported it, or a newer one"
        )
    if not 2 <= length <= _HEADER_MOST:
        raise CorruptSegmentError(f"the header of {path} is damaged: it cannot have {length:,} bytes")
    header = file.read(length)
    if len(header) < length:
        raise CorruptSegmentError(f"{path} is truncated: it ends in its header")
    try:
        said = msgspec.json.decode(header, type=Exported)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptSegmentError(f"the header of {path} is damaged: {exc}") from exc
    if said.byte_order != sys.byteorder:
        raise IncompatibleStoreError(f"{path} was exported on a machine of another byte order ({said.byte_order})")
    names = [part.name for part in said.parts]
    if said.codec == Bundle.name and (len(set(names)) < len(names) or not all(names)):
        raise CorruptSegmentError(f"the header of {path} is damaged: its parts are {names}")
    return said, start + header


def _places(said: Exported, at: int) -> list[tuple[int, int]]:
    found = []
    for part in said.parts:
        at += -at % _ALIGN
        found.append((at, at + part.size_bytes))
        at += part.size_bytes
    return found


class _Stored(Codec[Any]):
    """Publishes parts that are encoded already, as they are; ``inner`` proves that they can be read.

    Without a type of the importer's the file's own word counts: its fingerprint must then be the store's.
    """

    holds = True

    def __init__(self, said: Exported, views: Sequence[memoryview], inner: Codec[Any] | None, given: bool) -> None:
        self.name = said.codec
        self._said, self._views, self._inner = said, views, inner
        self._schema = inner if given else None

    @property
    def fingerprint(self) -> bytes:
        return bytes.fromhex(self._said.fingerprint) if self._schema is None else self._schema.fingerprint

    @property
    def is_typed(self) -> bool:
        return bool(self._said.fingerprint) if self._schema is None else self._schema.is_typed

    @property
    def type_name(self) -> str:
        return self._said.type_name if self._schema is None else self._schema.type_name

    def check_frozen(self) -> None:
        if self._schema is not None:
            self._schema.check_frozen()

    def encode_parts(self, value: Any) -> list[Part]:  # noqa: ARG002
        return [
            Part(part.name, part.codec, [view], self._is_typed(part))
            for part, view in zip(self._said.parts, self._views, strict=True)
        ]

    def _is_typed(self, part: ExportedPart) -> bool:
        if self._schema is None:
            return part.typed
        if isinstance(self._schema, Bundle):
            known = self._schema.codecs.get(part.name)
            return part.typed if known is None else known.is_typed
        return self._schema.is_typed

    def decode_parts(self, parts: Sequence[StoredPart], *, freeze: bool = False) -> Any:
        if self._inner is None:
            return None
        return self._inner.decode_parts(parts, freeze=freeze)

    def prove(self, value: Any) -> None:
        if self._inner is not None:
            self._inner.prove(value)

    def check_follows(self, parts: Sequence[StoredPart]) -> None:
        if self._schema is None:
            raise CodecMismatchError("nobody can tell whether one follows from the other without the type: name it")
        self._schema.check_follows(parts)


def import_file(
    name: str,
    path: str | os.PathLike[str],
    *,
    type: Any = None,  # noqa: A002
    expected: int | None = None,
    message: str | None = None,
    author: str | None = None,
    validators: Iterable[Validator] = (),
    create: bool = True,
    mode: int | None = None,
    gid: int = -1,
    if_changed: bool = False,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Published, Exported]:
    """Publish what was exported, as a new version of a store, which is made if there is none.

    The bytes are published as they are, once the checksum was right and they were decoded as a check. The new version
    has the type that the old one had; its message and author, too, unless others are given; its source says which
    version it was, when and by whom it was published, and from what.

    Args:
        name: of the store; it may be another one than the file's.
        path: of the file.
        type: of the values, a class or a codec object: what does not fit it is refused. Needed where the file's type is
            not the store's, and where the codec is not built in.
        expected, if_changed, dry_run, force, create, validators: as for ``publishing.publish``.
        message, author: None: those of the file.
        mode: of a store that is made; None: as it was.
        gid: group of a store that is made; -1: this process's.
        progress: called now and then with the bytes checked, and all.

    Returns:
        What became of it, and what the file says.

    Raises:
        IncompatibleStoreError, CorruptSegmentError, OSError: the file cannot be used; see ``read_file``. Incompatible
            is also a table of another format number, and one with keys of another type than asked for.
        CodecMismatchError: its codec or type is not the store's.
        ShmcowError: as for ``publishing.publish``.

    Concurrency: as ``publishing.publish``.
    """
    said, views = read_file(path, progress=progress)
    if mode is None:
        mode = _as_mode(said.mode)
    codec = _Stored(said, views, _inner(said, type, path, force), type is not None)
    settings = Settings(mode, gid, said.retain, said.max_total_bytes)
    try:
        published = publish(
            name,
            None,
            codec=codec,
            expected=expected,
            message=said.message if message is None else message,
            author=said.author if author is None else author,
            source=_source(said),
            validators=validators,
            create=create,
            settings=settings,
            if_changed=if_changed,
            dry_run=dry_run,
            force=force,
        )
    except ValidationError as exc:
        cause = exc.__cause__
        if isinstance(cause, DecodeError | CorruptSegmentError | CodecMismatchError):  # the file's fault, not a value's
            kind = IncompatibleStoreError if isinstance(cause, CodecMismatchError) else CorruptSegmentError
            raise kind(f"what is in {os.fspath(path)} cannot be read: {cause}") from exc
        raise
    return published, said


def _as_mode(mode: int) -> int:
    try:
        return check_mode(mode)
    except ValueError:
        return 0o600


def _inner(said: Exported, type: Any, path: str | os.PathLike[str], force: bool) -> Codec[Any] | None:  # noqa: A002
    """Return the codec that can read it; None: nobody can, and it does not matter."""
    if isinstance(type, Codec):
        if type.name != said.codec:
            raise CodecMismatchError(
                f"{os.fspath(path)} was published with the codec {said.codec!r}, and the one given is {type.name!r}"
            )
        return type
    try:
        if said.codec == Bundle.name and type is None:
            return Bundle.like(StoredPart(memoryview(b""), part.name, part.codec) for part in said.parts)
        return codecs.for_name(said.codec, type)
    except CodecMismatchError as exc:
        if force and type is None:
            return None
        raise CodecMismatchError(f"{os.fspath(path)} cannot be checked: {exc}") from exc
    except (ValueError, TypeError) as exc:  # of a Bundle
        if type is not None:
            raise
        raise CorruptSegmentError(f"the header of {os.fspath(path)} is damaged: {exc}") from exc


def _source(said: Exported) -> str:
    """Say where it comes from: the most important first, as there is room for 128 bytes."""
    when = said.published_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    start = re.sub(r"^import of ", "", said.source)
    return f"import of {said.store} version {said.version}, {when}, uid {said.uid}, pid {said.pid}" + (
        f": {start}" if start else ""
    )
