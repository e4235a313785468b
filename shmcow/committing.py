"""From an encoded value to a new version, inside a turn under the writer lock: compare, validate, share, publish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from shmcow import _core, codecs, schema, segments, validators
from shmcow.agreement import check_schema
from shmcow.codecs import Bundle, Codec
from shmcow.decoding import Decoding
from shmcow.encoded import Encoded, Listed, Said, Schema, as_forced, bounded, prove, schema_of
from shmcow.errors import (
    CodecMismatchError,
    CorruptSegmentError,
    DecodeError,
    NotPublishedError,
    OutOfSharedMemoryError,
    ValidationError,
    VersionConflictError,
)
from shmcow.sharing import Shared, kept_parts, list_parts, listed_whole, repeats
from shmcow.snapshot import Snapshot, load
from shmcow.store import COUNTERS, Turn, closed

if TYPE_CHECKING:
    from shmcow.validators import Validator

REFUSED: Final = COUNTERS.index("refused")
_CONFLICTS: Final = COUNTERS.index("conflicts")


class Committer:
    """Commit values in a store, all with one codec.

    Args:
        codec: for all values.
        checks: validators, for each new value.
        freeze: whether readers freeze what they decode.
        verify: whether to compute the CRCs of long payloads, too.
        force: publish also what does not follow from what is current.

    Attributes:
        codec: for all values.
        store: what is committed to; after a turn another one, if it was created anew, by us or by somebody else. None:
            closed.

    Concurrency: ``prove`` and ``load``: any thread. Everything that gets a turn: the thread that is in it.
    """

    store: _core.Store | None

    def __init__(
        self, codec: Codec[Any], checks: Sequence[Validator], *, freeze: bool, verify: bool, force: bool
    ) -> None:
        self.codec = codec
        self._checks = checks
        self._freeze = freeze
        self._verify = verify
        self._force = force
        # As readers will: deep nesting may decode and yet be too deep to freeze. Where the type rules that out and
        # nobody looks at the value, only readers do.
        shallow = isinstance(codec, codecs.MsgPack | codecs.JSON) and schema.is_bounded(codec.type)
        self._freezes = freeze and (bool(checks) or not shallow)
        self._several = codec.name == Bundle.name
        self._schema: Schema | None = None  # what the codec says of itself, asked once
        self._fits = 0  # the last version that is known to fit the codec

    def prove(self, value: Any) -> Encoded:
        """Encode a value, and prove that readers can decode it.

        Raises:
            ValidationError: they could not.
        """
        return prove(self.codec, value, self._freezes)

    def prove_some(self, values: dict[str, Any]) -> Encoded:
        """Encode some parts of a Bundle, and prove that readers can decode them.

        Raises:
            ValidationError: they could not, or a part is unknown.
        """
        assert isinstance(self.codec, Bundle)
        return prove(self.codec.only(values), values, self._freezes, some=True)

    def load(self, hold: _core.Hold) -> Snapshot[Any]:
        """Decode a version that is held."""
        return load(hold, Decoding(self.codec, freeze=self._freeze, verify=self._verify))

    def check_good(self, hold: _core.Hold) -> None:
        """Decode a version that is to be published again.

        Raises:
            DecodeError, CorruptSegmentError: it cannot be used.
        """
        self.codec.prove(self.load(hold).value)

    def adopt(self, store: _core.Store) -> None:
        """Go on with a store, which may be the one of before.

        Raises:
            ClosedError: the writer was closed, by another thread or by a caller's function.
        """
        if store is not self.store:
            if self.store is None:
                raise closed(store.name)
            self.store, self._fits = store, 0

    def check_follows(self, turn: Turn) -> None:
        """Refuse to go on from a version of another schema, before a caller's function is given such a value.

        Raises:
            CodecMismatchError: it is of another one.
        """
        self.adopt(turn.store)
        current = turn.store.version
        if current not in (self._fits, 0) and not self._force:
            check_schema(turn.store, self.codec)
            self._fits = current

    def repeats(self, turn: Turn, encoded: Encoded) -> bool:
        """Tell whether the current version has these very bytes and this schema."""
        self.adopt(turn.store)
        return repeats(turn.store, self._own_schema(), encoded)

    def commit(
        self, turn: Turn, encoded: Encoded, said: Said, expected: int | None, schema: Schema | None = None
    ) -> int:
        """Publish what is encoded.

        Args:
            turn: whose lock is held.
            encoded: the value, or some parts of it.
            said: what the writer says about it.
            expected: the version that must be current; None: any.
            schema: what the version says of its type; None: what the codec says.

        Returns:
            The new version.

        Raises:
            VersionConflictError: ``expected`` is not the current version.
            CodecMismatchError: it does not follow from the current version.
            ValidationError: a validator refused it.
            OutOfSharedMemoryError: no room.
            WriterBusyError: this process was forked inside the turn.
        """
        check_expected(turn, turn.store.version, expected)
        self.check_follows(turn)
        if self._several or self._checks or len(encoded.parts) > 1:
            parts = self._listed_checked(turn, encoded)
        else:
            parts = list_parts(encoded.parts, None, [], self._verify)
        schema = schema or self._own_schema()
        try:
            version = turn.core.publish(0, schema, as_forced(said) if self._force else said, parts)
        except OutOfSharedMemoryError as exc:
            raise OutOfSharedMemoryError(f"{exc.strerror} ({_figures(turn.store, encoded)})") from exc
        self._fits = version
        return version

    def commit_shared(self, turn: Turn, entry: dict[str, Any], said: Said) -> int:
        """Publish a version that lists the segments of another, which must be held; returns the new version."""
        self.adopt(turn.store)
        parts = listed_whole(turn.store, entry)
        turn.check_still_ours()
        return turn.core.publish(entry["version"], schema_in(entry), said, parts)

    def _listed_checked(self, turn: Turn, encoded: Encoded) -> tuple[Listed, ...]:
        """Return what the version will list, validated, and with what it shares with the current one."""
        several = self._several or len(encoded.parts) > 1
        shared = Shared.of(turn.store) if several and turn.store.version != 0 else None
        forced = self._force and not encoded.some
        kept = [] if forced else kept_parts(self.codec, encoded, shared, turn.store.name)
        if self._checks:
            self._validate(turn, encoded, kept, shared)
        parts = list_parts(encoded.parts, shared, kept, self._verify)
        if shared is not None:
            shared.let_go()
        turn.check_still_ours()
        return parts

    def _validate(self, turn: Turn, encoded: Encoded, kept: list[str], shared: Shared | None) -> None:
        new, size = encoded.decoded, encoded.size_bytes
        if kept:
            assert shared is not None
            parts = [*(part.stored for part in encoded.parts), *(shared.stored[name] for name in kept)]
            new = self.codec.decode_parts(parts, freeze=self._freeze)
            size += sum(shared.size_bytes(name) for name in kept)
        try:
            old = self.load(turn.store.hold()).value
        except (NotPublishedError, DecodeError, CodecMismatchError, CorruptSegmentError):
            old = None  # unusable, or from before a part was added
        try:
            validators.run(self._checks, old, new, size)
        except ValidationError:
            turn.core.count(REFUSED, 1)
            raise

    def _own_schema(self) -> Schema:
        if self._schema is None:
            self._schema = schema_of(self.codec)
        return self._schema


def check_expected(turn: Turn, current: int, expected: int | None) -> None:
    """Refuse to go on from another version than the expected one.

    Raises:
        VersionConflictError: it is another one.
    """
    if expected not in (None, current):
        turn.core.count(_CONFLICTS, 1)
        raise VersionConflictError(expected, current)


def schema_in(entry: dict[str, Any]) -> Schema:
    """Return what a version says of its type, to be said again."""
    codec = bounded("codec", entry["codec"], _core.CODEC_BYTES)
    return Schema(entry["fingerprint"], codec, bounded("type", entry["type_name"], 88))


def _figures(store: _core.Store, encoded: Encoded) -> str:
    free, _ = segments.room()
    limit = f", of at most {store.max_total_bytes:,}" if store.max_total_bytes else ""
    return (
        f"the new version has {encoded.size_bytes:,} bytes; the store takes {store.total_bytes:,}{limit}; "
        f"{free:,} are free in {segments.DIRECTORY}"
    )
