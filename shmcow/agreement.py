"""What a writer and a store agree on: the codec, and a schema that readers can go on with."""

from __future__ import annotations

import logging
from typing import Any

from shmcow import _core, codecs
from shmcow.codecs import Bundle, Codec
from shmcow.decoding import Decoding, choose, stored_parts
from shmcow.errors import CodecMismatchError, CorruptSegmentError, ShmcowError

_log = logging.getLogger("shmcow")


def agreed_codec(
    store: _core.Store,
    given: Codec[Any] | None,
    type: Any,  # noqa: A002
    frozen: bool,
    force: bool = False,
) -> Codec[Any]:
    """Return the codec to publish with: the one that was given, or what the store has, or MsgPack.

    Args:
        store: where.
        given: by the user; None: there was none.
        type: of the values, if ``given`` is None; None: plain ones.
        frozen: whether a codec whose values would be mutable is refused.
        force: whether ``given`` is right whatever the store has.

    Raises:
        CodecMismatchError: the store is published with another one.
        ValidationError: the type is not supported, or not frozen.
    """
    entry = store.entry()
    codec = given
    if entry is not None and codec is None:
        codec = codecs.for_name(entry["codec"], type)
        if isinstance(codec, Bundle):
            hold = store.hold()
            codec = Bundle.like(stored_parts(hold, hold.entry))
        if frozen:
            codec.check_frozen()
    if codec is None:
        codec = codecs.MsgPack(Any if type is None else type)
    if entry is not None and entry["codec"] != codec.name and not force:
        raise CodecMismatchError(
            f"store {store.name} is published with the codec {entry['codec']!r}, found {codec.name!r}: use that one, "
            "another name, or destroy the store first"
        )
    return codec


def untyped(text: str, published: str) -> CodecMismatchError:
    """Make the error for a writer that lacks the type that values were published as."""
    made = CodecMismatchError(text)  # no variable of who raises it: its traceback would keep the version held
    made.published = published
    return made


def check_schema(store: _core.Store, codec: Codec[Any]) -> None:
    """Refuse to change a store's schema to one that cannot read what is current.

    Raises:
        CodecMismatchError: says what was published, and what to do.
    """
    try:
        hold = store.hold()
    except CorruptSegmentError:
        return  # nothing to compare with: the next version mends it
    entry = hold.entry
    where = f"version {entry['version']} of store {store.name}"
    choose(Decoding(codec), entry, where)
    if bytes(entry["fingerprint"]).strip(b"\0") == codec.fingerprint.strip(b"\0"):
        return
    published = entry["type_name"] or "plain values"
    if not codec.is_typed and not isinstance(codec, codecs.Bundle):  # a Bundle looks at each of its parts
        how = "codec" if "(" in published or "[" in published else "type"
        raise untyped(
            f"{where} was published as {published}, and this writer has no type to check values with: "
            f"give Writer(..., {how}={published})",
            published,
        )
    try:
        codec.check_follows(stored_parts(hold, entry))
    except ShmcowError as exc:
        raise CodecMismatchError(
            f"{where} was published as {published} and cannot be read as {codec.type_name}: {exc}; give the new fields "
            "defaults, use another name, or destroy the store first"
        ) from exc
    _log.info("store %s: the schema changes from %s to %s", store.name, published, codec.type_name)
