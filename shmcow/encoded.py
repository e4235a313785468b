"""A value on its way into shared memory: its encoded parts, and what the writer says about it, bounded."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from shmcow import _core
from shmcow.codecs import Codec, Part, StoredPart
from shmcow.decoding import CHECKED_BYTES
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError, ValidationError


class Schema(NamedTuple):
    """What a version says of its type, bounded and encoded."""

    fingerprint: bytes
    codec: bytes
    type_name: bytes


def schema_of(codec: Codec[Any]) -> Schema:
    """Return what a version says that is published with a codec."""
    return Schema(codec.fingerprint, codec.name.encode(), bounded("type", codec.type_name, 88))


class EncodedPart(msgspec.Struct, frozen=True):
    """One part of a value, encoded: views to be written one after the other, and how it will be stored, as one view."""

    name: bytes
    codec: bytes
    views: list[memoryview]
    stored: StoredPart

    def listed(self, verify: bool) -> Listed:
        """Return what a version lists for it when it goes into a segment of its own.

        Args:
            verify: whether to compute the CRC of a long payload, too.
        """
        whole = self.stored.view
        length = whole.nbytes
        flags = _core.HAS_CRC if length <= CHECKED_BYTES or verify else 0
        crc = _core.crc32(whole) if flags else 0
        return self.name, 0, length, crc, flags | (_core.IS_TYPED if self.stored.typed else 0), self.codec, self.views


# What a version lists for a part: name, segment (0: a fresh one), length, crc, flags, codec, buffers.
Listed: TypeAlias = tuple[bytes, int, int, int, int, bytes, list[memoryview] | None]


class Encoded(msgspec.Struct, frozen=True):
    """A value that is ready to be published: encoded, and decoded again as a check. Or some parts of one."""

    parts: list[EncodedPart]
    decoded: Any
    some: bool = False  # whether the parts that are not here stay as they are

    @property
    def size_bytes(self) -> int:
        """These parts' payloads together."""
        return sum(part.stored.view.nbytes for part in self.parts)


def prove(codec: Codec[Any], value: Any, freeze: bool, *, some: bool = False) -> Encoded:
    """Encode a value, and prove that it decodes to what it should.

    Args:
        codec: for it.
        value: what to publish; of a Bundle of some parts with these.
        freeze: whether what it decodes to must freeze, too.
        some: whether these are some of the parts of a version only.

    Raises:
        ValidationError: it does not.
    """
    parts = list(map(encode_part, codec.encode_parts(value)))
    if not 1 <= len(parts) <= _core.MAX_SEGMENTS:
        raise ValidationError(f"a version has 1 to {_core.MAX_SEGMENTS} parts, found {len(parts)}")
    try:
        decoded = codec.decode_parts([part.stored for part in parts], freeze=freeze)
        codec.prove(decoded)
    except (DecodeError, CodecMismatchError, CorruptSegmentError) as exc:
        raise ValidationError(f"the value would not be readable: {exc}") from exc
    return Encoded(parts, decoded, some)


class Said(NamedTuple):
    """What a writer says about a version, bounded and encoded."""

    message: bytes
    author: bytes
    source: bytes


def bounded(what: str, text: str, room: int) -> bytes:
    """Encode a text, cut to its room at a character's border."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, found {text!r}")
    raw = text.encode("utf-8", "replace").replace(b"\0", b"?")
    return raw if len(raw) <= room else raw[:room].decode("utf-8", "ignore").encode()


_NOTHING_SAID: Final = Said(b"", b"", b"")


def say(message: str, author: str, source: str) -> Said:
    """Return what a writer says about a version, cut to its place in the entry."""
    if message == author == source == "":
        return _NOTHING_SAID
    return Said(bounded("message", message, 256), bounded("author", author, 64), bounded("source", source, 128))


_FORCED: Final = b" (forced)"


def as_forced(said: Said) -> Said:
    """Say as well that the schema was not compared with what was current."""
    source = bounded("source", said.source.decode(), 128 - len(_FORCED))
    return said._replace(source=(source + _FORCED).lstrip())


def is_forced(source: str) -> bool:
    """Tell whether a version's source says what ``as_forced`` says."""
    return f" {source}".encode().endswith(_FORCED)


def encode_part(part: Part) -> EncodedPart:
    """Return one part as views of bytes, whatever buffers its codec gave."""
    try:
        views = list(map(_as_view, part.buffers))
        whole = views[0] if len(views) == 1 else _as_view(b"".join(views))
        name = bounded("a part's name", part.name, 32) if part.name else b""
        codec = part.codec.encode("ascii")
        ended = "\0" in part.codec
    except (TypeError, ValueError, AttributeError, BufferError) as exc:
        raise ValidationError(
            f"the codec gave a part that cannot be written: expected C-contiguous buffers, and texts for its name and "
            f"codec, found: {exc}"
        ) from exc
    if not 0 < len(codec) < _core.CODEC_BYTES or ended:
        raise ValidationError(f"a part's codec is named by 1 to 31 ASCII characters, found {part.codec!r}")
    stored = StoredPart(whole, name.decode() if name else "", part.codec, typed=bool(part.typed))
    return EncodedPart(name, codec, views, stored)


def _as_view(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    if not view.readonly:
        # whoever changes it meanwhile must not spoil the checksum
        view = memoryview(view.tobytes()) if view.nbytes <= CHECKED_BYTES else view.toreadonly()
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
