"""What a version has in common with the one before: parts that did not change share its segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shmcow import _core, segments
from shmcow.codecs import Bundle, Codec, StoredPart
from shmcow.decoding import stored_parts
from shmcow.encoded import Encoded, EncodedPart, Listed, Schema, bounded
from shmcow.errors import CodecMismatchError, CorruptSegmentError, ValidationError


class Shared:
    """The parts of the current version, which the next one may share. Made and used under the writer lock only.

    Nothing is held unless bytes must be looked at: only a writer reclaims, and that is us.
    """

    def __init__(self, store: _core.Store, entry: dict[str, Any]) -> None:
        self._store = store
        self._entry = entry
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

    def has(self, schema: Schema) -> bool:
        """Tell whether the version says the same of its type."""
        there, ours = bytes(self._entry["fingerprint"]).strip(b"\0"), schema.fingerprint.strip(b"\0")
        names = self._entry["codec"].encode(), bounded("type", self._entry["type_name"], 88)
        return there == ours and names == (schema.codec, schema.type_name)

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
        same = stored.codec.encode() == part.codec and _core.same(stored.view, part.stored.view)
        return listed_again(there) if same else fresh


def kept_parts(codec: Codec[Any], encoded: Encoded, shared: Shared | None, store: str) -> list[str]:
    """Name the parts of a bundle that were not given: they stay as they are.

    Raises:
        CodecMismatchError: a part of the current version would be dropped.
        ValidationError: a part was neither given nor ever published.
    """
    if codec.name != Bundle.name:
        return []
    given = {part.stored.name for part in encoded.parts}
    others = [name for name in shared or () if name not in given]
    if others and not encoded.some:
        raise CodecMismatchError(
            f"the part {others[0]!r} of store {store} would be dropped, and readers may need it: name it in the "
            "Bundle, or publish some of the parts with publish_parts"
        )
    declared = codec.codecs if isinstance(codec, Bundle) else ()
    missing = [name for name in declared if name not in given and name not in others]
    if missing:
        raise ValidationError(f"the part {missing[0]!r} was never published: give it, too")
    return others


def list_parts(given: list[EncodedPart], shared: Shared | None, kept: list[str], verify: bool) -> tuple[Listed, ...]:
    """Return what a version lists for its parts.

    Args:
        given: those that may be new.
        shared: the current version; None: nothing can be shared.
        kept: the names of those that stay as they are, which are in the current version's order.
        verify: whether to compute the CRCs of long payloads, too.
    """
    if shared is None:
        return tuple([part.listed(verify) for part in given])
    listed = {part.name.decode(): shared.listed(part, verify) for part in given}
    if kept:
        order = [name for name in shared if name in listed or name in kept]
        order += [name for name in listed if name not in shared]
        return tuple(listed.get(name) or shared.again(name) for name in order)
    return tuple(listed.values())


def repeats(store: _core.Store, schema: Schema, encoded: Encoded) -> bool:
    """Tell whether the current version has these very bytes and this schema. Call it under the writer lock."""
    shared = Shared.of(store)
    if shared is None or not shared.has(schema) or list(shared) != [part.name.decode() for part in encoded.parts]:
        return False
    return all(segment != 0 for _, segment, *_ in list_parts(encoded.parts, shared, [], False))


def listed_again(part: dict[str, Any]) -> Listed:
    """Return what a version lists for a part that shares the segment of a published one, which must be held."""
    name = bounded("a part's name", part["name"], 32)
    return name, part["segment"], part["length"], part["crc"], part["flags"], b"", None


def listed_whole(store: _core.Store, entry: dict[str, Any]) -> tuple[Listed, ...]:
    """Return what a version lists that has the segments of another one, which must be held.

    Raises:
        CorruptSegmentError: one is missing, or not what its entry says: others would find nothing.
    """
    if not all(segments.is_whole(store, part["segment"], part["length"]) for part in entry["parts"]):
        raise CorruptSegmentError(
            f"a segment of version {entry['version']} of store {store.name} is missing, or is not what it was: was it "
            "removed from outside? This process holds it still, and others would find nothing"
        )
    return tuple(listed_again(part) for part in entry["parts"])
