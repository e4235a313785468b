"""A value on its way into shared memory: its encoded parts, and what the writer says about it, bounded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from shmcow import _core, segments
from shmcow.codecs import Part, StoredPart
from shmcow.decoding import CHECKED_BYTES, stored_parts
from shmcow.errors import CorruptSegmentError, ValidationError


class Schema(NamedTuple):
    """What a version says of its type, bounded and encoded."""

    fingerprint: bytes
    codec: bytes
    type_name: bytes


class EncodedPart(NamedTuple):
    """One part of a value, encoded: views to be written one after the other, and all of it as one."""

    name: bytes
    codec: bytes
    views: list[memoryview]
    whole: memoryview
    typed: bool

    @property
    def stored(self) -> StoredPart:
        """The part as a codec decodes it."""
        return StoredPart(self.whole, self.name.decode(), self.codec.decode(), typed=self.typed)

    def listed(self, verify: bool) -> Listed:
        """Return what a version lists for it when it goes into a segment of its own.

        Args:
            verify: whether to compute the CRC of a long payload, too.
        """
        length = self.whole.nbytes
        flags = _core.HAS_CRC if length <= CHECKED_BYTES or verify else 0
        crc = zlib.crc32(self.whole) if flags else 0
        return self.name, 0, length, crc, flags | (_core.IS_TYPED if self.typed else 0), self.codec, self.views


# What a version lists for a part: name, segment (0: a fresh one), length, crc, flags, codec, buffers.
Listed: TypeAlias = tuple[bytes, int, int, int, int, bytes, list[memoryview] | None]


def listed_again(part: dict[str, Any]) -> Listed:
    """Return what a version lists for a part that shares the segment of a published one, which must be held."""
    name = bounded("a part's name", part["name"], 32)
    return name, part["segment"], part["length"], part["crc"], part["flags"], b"", None


class Shared:
    """The parts of the current version, which the next one may share. Made and used under the writer lock only.

    Nothing is held unless bytes must be looked at: only a writer reclaims, and that is us.
    """

    def __init__(self, store: _core.Store, entry: dict[str, Any]) -> None:
        self._store = store
        self._version: int = entry["version"]
        self._entries = {part["name"]: part for part in entry["parts"]}
        self._stored: dict[str, StoredPart] | None = None

    @classmethod
    def of(cls, store: _core.Store) -> Shared | None:
        """Look at the current version of a store; None: there is none, or its entry is damaged."""
        entry = store.entry()
        return None if entry is None else cls(store, entry)

    @property
    def stored(self) -> dict[str, StoredPart]:
        """The parts, by name, as a codec decodes them; the version is held from here on.

        Raises:
            CorruptSegmentError: a segment is missing or damaged.
        """
        if self._stored is None:
            hold = self._store.hold(self._version)
            self._stored = {part.name: part for part in stored_parts(hold, hold.entry)}
        return self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def size_bytes(self, name: str) -> int:
        """The payload of a part."""
        return int(self._entries[name]["length"])

    def let_go(self) -> None:
        """Hold nothing any more: what is replaced can then be reclaimed by the publish that replaces it."""
        self._stored = None

    def again(self, name: str) -> Listed:
        """Return what a version lists that shares this part.

        Raises:
            CorruptSegmentError: its segment is missing, or not what its entry says.
        """
        if not self._is_whole(name):
            raise CorruptSegmentError(
                f"the segment of part {name!r} of version {self._version} of store {self._store.name} is missing, or "
                "is not what it was: was it removed from outside? Publish all parts"
            )
        return listed_again(self._entries[name])

    def _is_whole(self, name: str) -> bool:
        part = self._entries[name]
        return segments.is_whole(self._store, part["segment"], part["length"])

    def listed(self, part: EncodedPart, verify: bool) -> Listed:
        """Return what a version lists for a part: the segment that has it already, byte by byte, or a fresh one."""
        fresh = part.listed(verify)
        name = part.name.decode()
        there = self._entries.get(name)
        if there is None or there["length"] != fresh[2] or (there["flags"] ^ fresh[4]) & _core.IS_TYPED:
            return fresh
        if there["flags"] == fresh[4] and there["crc"] != fresh[3]:
            return fresh
        if not self._is_whole(name):  # removed from outside; we may hold it still, others find nothing
            return fresh
        try:
            stored = self.stored[name]
        except CorruptSegmentError:
            return fresh
        same = stored.codec.encode() == part.codec and _core.same(stored.view, part.whole)
        return listed_again(there) if same else fresh


def list_parts(given: list[EncodedPart], shared: Shared | None, kept: list[str], verify: bool) -> tuple[Listed, ...]:
    """Return what a version lists for its parts.

    Args:
        given: those that may be new.
        shared: the current version; None: nothing can be shared.
        kept: the names of those that stay as they are, which are in the current version's order.
        verify: whether to compute the CRCs of long payloads, too.
    """
    if shared is None:
        return tuple(part.listed(verify) for part in given)
    listed = {part.name.decode(): shared.listed(part, verify) for part in given}
    if kept:
        order = [name for name in shared if name in listed or name in kept]
        order += [name for name in listed if name not in shared]
        return tuple(listed.get(name) or shared.again(name) for name in order)
    return tuple(listed.values())


class Encoded(NamedTuple):
    """A value that is ready to be published: encoded, and decoded again as a check. Or some parts of one."""

    parts: list[EncodedPart]
    decoded: Any
    some: bool = False  # whether the parts that are not here stay as they are

    @property
    def size_bytes(self) -> int:
        """These parts' payloads together."""
        return sum(part.whole.nbytes for part in self.parts)


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


def encode_part(part: Part) -> EncodedPart:
    """Return one part as views of bytes, whatever buffers its codec gave."""
    try:
        views = [_as_view(buffer) for buffer in part.buffers]
        whole = views[0] if len(views) == 1 else _as_view(b"".join(views))
        name = bounded("a part's name", part.name, 32) if part.name else b""
        codec = part.codec.encode("ascii")
    except (TypeError, ValueError, AttributeError, BufferError) as exc:
        raise ValidationError(
            f"the codec gave a part that cannot be written: expected C-contiguous buffers, and texts for its name and "
            f"codec, found: {exc}"
        ) from exc
    if not 0 < len(codec) < _core.CODEC_BYTES or b"\0" in codec:
        raise ValidationError(f"a part's codec is named by 1 to 31 ASCII characters, found {part.codec!r}")
    return EncodedPart(name, codec, views, whole, bool(part.typed))


def _as_view(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    if not view.readonly and view.nbytes <= CHECKED_BYTES:
        view = memoryview(view.tobytes())  # whoever changes it meanwhile must not spoil the checksum
    view = view.toreadonly()
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
