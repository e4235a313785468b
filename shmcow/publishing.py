"""Publishing as tools do it: one value, once, into a store that may not exist yet, and may be only a trial.

A program that publishes again and again makes a ``Writer``, which is faster.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from shmcow import _core, segments
from shmcow import validators as checking
from shmcow.agreement import agreed_codec, check_schema, untyped
from shmcow.arguments import check_version
from shmcow.codecs import JSON, MMDB, Bundle, Codec, IPTable, MsgPack, Raw, Table, for_name
from shmcow.codecs.iprows import FileRows
from shmcow.decoding import Decoding, stored_parts
from shmcow.documents import Progress, Rows, csv_rows
from shmcow.encoded import Encoded, prove, say, schema_of
from shmcow.errors import (
    CodecMismatchError,
    CorruptSegmentError,
    DecodeError,
    NotPublishedError,
    OutOfSharedMemoryError,
    StoreNotFoundError,
    ValidationError,
    VersionConflictError,
)
from shmcow.sharing import Shared, kept_parts, list_parts, repeats
from shmcow.snapshot import load
from shmcow.store import Settings, attach, check_owner
from shmcow.validators import Validator
from shmcow.writer import Writer

__all__ = ["Published", "codec_for", "codec_to_change", "proved", "publish", "table_for", "table_of"]


class Published(NamedTuple):
    """What became of it.

    Attributes:
        version: the new version; or the current one, if nothing changed; or what it would be, for a trial.
        changed: whether it is (or would be) a new one.
        created: whether the store was (or would be) made for it.
        size_bytes: of the payload.
        codec: name of the codec.
        type_name: the type, for people; "" for plain values.
    """

    version: int
    changed: bool
    created: bool
    size_bytes: int
    codec: str
    type_name: str


def codec_for(name: str, type: Any = None, form: str = "json", *, force: bool = False) -> Codec[Any]:  # noqa: A002
    """Choose the codec to publish a document with: the one that the store has, as far as it takes documents.

    Args:
        name: of the store, which need not exist.
        type: of the values: a class, or a codec object; None: plain values.
        form: of the document, as in ``documents.FORMATS`` (but "csv", whose codec depends on the columns).
        force: whether the store's codec does not matter.

    Returns:
        The codec.

    Raises:
        CodecMismatchError: the store is published with a codec that does not take such a document.
        ValidationError: the type is not supported.

    Concurrency: any thread; reads only.
    """
    if isinstance(type, Codec):
        return type
    if form in ("raw", "mmdb"):
        return Raw() if form == "raw" else MMDB()
    store = _existing(name)
    entry = store.entry() if store is not None else None
    if entry is not None:
        if entry["codec"] in (MsgPack.name, JSON.name):
            return for_name(entry["codec"], type)
        if store is not None and entry["codec"] == Bundle.name and type is None:
            return agreed_codec(store, None, None, True)
        if not force:
            raise CodecMismatchError(
                f"store {name} is published with the codec {entry['codec']!r}, and a {form} document makes "
                f"{MsgPack.name!r}: name a codec object that is like the store's, publish a file of its kind, or use "
                "another name"
            )
    return MsgPack(Any if type is None else type)


def codec_to_change(name: str, part: str, type: Any = None, *, force: bool = False) -> Codec[Any]:  # noqa: A002
    """Choose the codec to change a value with, or one part of a bundle: the one that the store has.

    Args:
        name: of the store.
        part: of a bundle: the one that changes.
        type: a class, or a codec object: of the value, or, for a bundle, of that part or of the whole; None: plain.
        force: whether values of a type may be changed without it.

    Returns:
        The codec. For a bundle it is a Bundle of that part alone, unless one was given (or there is no such part).

    Raises:
        StoreNotFoundError, NotOwnerError: there is no store of that name, or it may not be read.
        CodecMismatchError: a part was published with a type, and none is given.
        CorruptSegmentError: the current version cannot be used.
        ValidationError: the type is not supported.

    Concurrency: any thread; reads only.
    """
    store = attach(segments.check_name(name))
    try:
        hold = store.hold()
    except NotPublishedError:
        return type if isinstance(type, Codec) else MsgPack(Any if type is None else type)
    entry = hold.entry
    if entry["codec"] != Bundle.name or isinstance(type, Bundle):
        return type if isinstance(type, Codec) else for_name(entry["codec"], type)
    parts = {stored.name: stored for stored in stored_parts(hold, entry)}
    stored = parts.get(part)
    if stored is None:
        return Bundle.like(parts.values())
    if stored.typed and type is None and not force:
        listed = re.search(rf"[(, ]{re.escape(part)}=([^,()]+)[,)]", entry["type_name"])
        published = listed[1] if listed else "a type"
        raise untyped(
            f"part {part!r} of store {name} was published as {published}, and here is none to "
            "check values with: give its type, or a codec",
            published,
        )
    return Bundle(**{part: type if isinstance(type, Codec) else for_name(stored.codec, type)})


def table_for(
    name: str,
    type: Any = None,  # noqa: A002
    key: Any = None,
    *,
    ip: bool = False,
) -> Table[Any, Any] | IPTable[Any]:
    """Choose the codec to publish rows with.

    Args:
        name: of the store, which need not exist.
        type: of the values: a class, or a Table or IPTable; None: plain values.
        key: str, int or bytes: of the keys of a Table; None: what the store has, or str.
        ip: whether the keys are IP ranges.

    Raises:
        CodecMismatchError: ``type`` is a codec object of another kind.
        ValidationError: the type is not supported.

    Concurrency: any thread; reads only.
    """
    if isinstance(type, Codec):
        if not isinstance(type, IPTable if ip else Table) or (isinstance(type, Table) and type.key is Any):
            raise CodecMismatchError(f"rows are published with an IPTable(...) or a Table(key=...), found {type!r}")
        return type
    values = Any if type is None else type
    if ip:
        return IPTable(values)
    if key is None:
        key = _key_of(name)
    return Table(key=key, value=values)


def table_of(
    name: str,
    file: io.BufferedReader,
    rows: Rows,
    type: Any = None,  # noqa: A002
    *,
    where: str,
    progress: Progress | None = None,
) -> tuple[Table[Any, Any] | IPTable[Any], FileRows]:
    """Choose the codec to publish a CSV file with, and stream its rows.

    Args:
        name: of the store, which need not exist.
        file: opened for reading bytes; it is read while the rows are taken.
        rows: how it becomes a table.
        type: of the values, as for ``table_for``.
        where: what messages call the file.
        progress: called now and then.

    Returns:
        The codec, and the rows.

    Raises:
        CodecMismatchError, ValidationError: as ``table_for``.
        ValueError: as ``documents.csv_rows``; nothing was read yet.

    Concurrency: the rows are for one thread.
    """
    codec = table_for(name, type, rows.key_type, ip=rows.ip)
    made = csv_rows(
        file,
        where=where,
        key=rows.key,
        columns=rows.columns,
        key_type=str if isinstance(codec, IPTable) else codec.key,
        values=codec.value if isinstance(codec, IPTable) else codec.values,
        delimiter=rows.delimiter or ("\t" if ".tsv" in where[-7:].lower() else ","),
        header=rows.header,
        ip=rows.ip,
        progress=progress,
    )
    return codec, made


def _key_of(name: str) -> type:
    store = _existing(name)
    held = _held(store)
    if held is not None and held.entry["codec"] == Table.name:
        kind: str = load(held, Decoding(Table())).value._kind
        return {"int": int, "bytes": bytes}.get(kind, str)
    return str


def publish(
    name: str,
    value: Any,
    *,
    codec: Codec[Any],
    expected: int | None = None,
    message: str = "",
    author: str = "",
    source: str = "",
    validators: Iterable[Validator] = (),
    create: bool = True,
    settings: Settings | None = None,
    if_changed: bool = False,
    dry_run: bool = False,
    force: bool = False,
    verify: bool = False,
) -> Published:
    """Publish one value.

    A store that does not exist is made only when the value was encoded, proven and validated, and is removed again if
    it cannot be published, as when there is no room for it.

    Args:
        name: of the store.
        value: the value, for the codec; rows of a file (``documents.csv_rows``) get errors that name the line.
        codec: to encode it with.
        expected, message, author, source: as for ``Writer.publish``.
        validators: as for ``Writer``.
        create: whether to make a store that does not exist. With ``expected`` above 0 it is not made.
        settings: of a store that is made; one that exists keeps its own. None: the defaults.
        if_changed: publish nothing if the current version has these very bytes and this type.
        dry_run: only look: whatever would be refused is, nothing is written, and the writer lock is not taken.
        force: as for ``Writer``.
        verify: as for ``Writer``.

    Returns:
        What became of it.

    Raises:
        StoreNotFoundError: there is none, with ``create=False`` or an ``expected`` above 0.
        NotOwnerError: it belongs to another user.
        ValidationError: the value does not encode, does not fit, or was refused by a validator.
        CodecMismatchError: it is of another codec or type than what is current, and not ``force``.
        VersionConflictError, WriterBusyError, OutOfSharedMemoryError: as for ``Writer.publish``.

    Concurrency: as ``Writer.publish``. What a trial finds may have changed when it returns.
    """
    if expected is not None:
        check_version("expected", expected, 0)
    checks = checking.check(validators)
    codec.check_frozen()
    store = _existing(name)
    if store is None:
        if not create or expected:
            raise StoreNotFoundError(
                f"there is no store {name} (no {segments.header_path(name)}), and none is made here"
            )
    else:
        check_owner(store)
        agreed_codec(store, codec, None, True, force)  # before the work, not only after it
    encoded = proved(codec, value)
    if store is None:
        checking.run(checks, None, encoded.decoded, encoded.size_bytes)
    made = Published(0, True, store is None, encoded.size_bytes, codec.name, codec.type_name)
    if dry_run:
        return _tried(store, made, codec, encoded, expected, checks, if_changed, force)
    given: dict[str, Any] = {}
    if store is None and settings is not None:
        given = settings._asdict()
        gid = given.pop("gid")
        given["group"] = None if gid == -1 else gid
    with Writer(name, codec=codec, create=create, validators=checks, verify=verify, force=force, **given) as writer:
        said = say(message, author, source)
        anew = writer._store if writer.created else None
        try:
            version, changed = writer._publish(encoded, said, expected, if_changed)
        except BaseException:
            writer._unmake(anew)
            raise
        return made._replace(version=version, changed=changed, created=writer.created)


def _existing(name: str) -> _core.Store | None:
    try:
        store = attach(segments.check_name(name))
    except StoreNotFoundError:
        return None
    return None if store.word == _core.DESTROYED else store


def proved(codec: Codec[Any], value: Any) -> Encoded:
    """Encode a value, and prove that it decodes to what it should; what is wrong with a row names its line.

    Raises:
        ValidationError: it does not.
    """
    try:
        return prove(codec, value, True)
    except ValidationError as exc:
        if isinstance(value, FileRows) and value.line and not str(exc).startswith("line "):
            raise ValidationError(f"{value.place(value.line)}: {exc}") from exc
        raise


def _tried(
    store: _core.Store | None,
    made: Published,
    codec: Codec[Any],
    encoded: Encoded,
    expected: int | None,
    checks: tuple[Validator, ...],
    if_changed: bool,
    force: bool,
) -> Published:
    """Do what a writer does before it publishes."""
    held = _held(store)  # what is compared with must not be reclaimed meanwhile
    current = held.version if held is not None else store.version if store is not None else 0
    if expected not in (None, current):
        assert expected is not None
        raise VersionConflictError(expected, current)
    if store is None:
        _check_room(None, encoded.size_bytes)
        return made._replace(version=1)
    if current and if_changed and repeats(store, schema_of(codec), encoded):
        return made._replace(version=current, changed=False)
    if current and not force:
        check_schema(store, codec)
    shared = Shared.of(store) if current else None
    if not force:
        kept_parts(codec, encoded, shared, store.name)
    if checks:
        try:
            old = load(store.hold(), Decoding(codec)).value
        except (NotPublishedError, DecodeError, CodecMismatchError, CorruptSegmentError):
            old = None
        checking.run(checks, old, encoded.decoded, encoded.size_bytes)
    _check_room(store, sum(part[2] for part in list_parts(encoded.parts, shared, [], False) if part[1] == 0))
    del held
    return made._replace(version=current + 1)


def _held(store: _core.Store | None) -> _core.Hold | None:
    try:
        return store.hold() if store is not None else None
    except (NotPublishedError, CorruptSegmentError):
        return None


def _check_room(store: _core.Store | None, needed: int) -> None:
    """Refuse what cannot fit, even if every older version is given up."""
    free, _ = segments.room()
    current = 0
    if store is not None:
        entry = store.entry()
        current = sum(part["length"] for part in entry["parts"]) if entry is not None else 0
        free += max(0, store.total_bytes - current)
        limit = store.max_total_bytes
        if limit and needed + current > limit:
            raise OutOfSharedMemoryError(
                f"the new version has {needed:,} bytes; beside the current one's {current:,} the store takes at most "
                f"{limit:,}"
            )
    if needed > free:
        raise OutOfSharedMemoryError(
            f"the new version has {needed:,} bytes; {free:,} can be had in {segments.DIRECTORY}"
        )
