"""The writing side: ``Writer``."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, overload

from typing_extensions import TypeForm, TypeVar

from shmcow import _core, draft
from shmcow.agreement import agreed_codec
from shmcow.arguments import check_count, check_group, check_mode, check_version, given_codec
from shmcow.codecs import Bundle, Codec
from shmcow.committing import REFUSED, Committer, check_expected, schema_in
from shmcow.encoded import Encoded, Said, Schema, say
from shmcow.errors import (
    ShmcowError,
    StoreDestroyedError,
    StoreNotFoundError,
    ValidationError,
    VersionConflictError,
    VersionGoneError,
    WaitTimeoutError,
    WriterBusyError,
)
from shmcow.holders import name_holders
from shmcow.segments import check_name
from shmcow.snapshot import Snapshot
from shmcow.store import Keeper, Settings, Turn, check_timeout, closed, end, gone, hold_at, openable
from shmcow.validators import check as check_validators
from shmcow.waiting import Pause, Sleep, check_wait, until

if TYPE_CHECKING:
    from types import TracebackType

    from shmcow.dropping import Dropped
    from shmcow.validators import Validator

__all__ = ["Writer", "destroy"]

T = TypeVar("T", default=Any)

_log = logging.getLogger("shmcow")


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


_MISSING: Final = _Missing()


class Writer(Generic[T]):
    """Publish versions of a value to every process on this machine that reads the store.

    Attaches at once; creates the store if there is none. The store outlives its writers. Any number of processes of
    the same user may write: they take turns, and none loses another's update.

    Args:
        name: of the store: 1 to 64 of ``A-Z a-z 0-9 _ -``.
        type: of the values; what does not fit is refused before anybody sees it.
        codec: a codec object, such as ``JSON(Config)``; excludes ``type``. Default: MsgPack, or what the store has.
        initial: published if the store has no version yet. If it is refused, a store that was made for it is removed.
        create: False attaches only, and raises StoreNotFoundError if there is no store.
        retain: how many older versions stay openable (default 4); None: leave it as it is.
        max_total_bytes: limit of all segments together; retained versions are given up first. 0: no limit; None:
            leave it as it is.
        mode: permission bits of a new store: 0o600 (the default), with read permission for the group or for others
            as wanted. A store keeps those of its first writer, and its owner, also when it was removed from outside and
            is created again; another ``mode`` or ``group`` is warned about.
        group: group of a new store, a gid or a name.
        validators: callables ``(old, new)`` that raise to refuse a value; see ``shmcow.validators``.
        lock_timeout: how long to wait for another writer, in seconds.
        freeze: False allows mutable Struct types.
        verify: write a CRC for payloads above 1 MiB too (smaller ones always have one).
        force: publish also what does not follow from what is current: with another codec, another type or none, or
            without some of its parts. Readers that cannot use it keep their last good value. The source that is kept
            with each version then ends in "(forced)".

    Attributes:
        created: whether this Writer made the store.

    Raises:
        StoreNotFoundError: there is no store, with ``create=False``.
        NotOwnerError: the store belongs to another user.
        IncompatibleStoreError: something else has its name, or it is of another ABI.
        CodecMismatchError: ``codec`` is not the one that the store uses.
        ValidationError: ``initial`` does not fit, or the type is not supported or not frozen.
        OutOfSharedMemoryError: no room for it.

    Concurrency: any thread; publishing takes turns. A forked child may go on with it, but not inside a turn.

    Example:
        >>> from shmcow import Writer
        >>> with Writer("doc-writer", initial={"hosts": ["a"]}) as w:
        ...     w.patch(timeout=2.0)
        ...     w.update(lambda old: {**old, "hosts": [*old["hosts"], "b"]})
        ...     w.snapshot().value
        ...     w.destroy()
        2
        3
        {'hosts': ['a', 'b'], 'timeout': 2.0}
    """

    @overload
    def __init__(
        self,
        name: str,
        *,
        type: TypeForm[T],
        initial: T = ...,
        create: bool = ...,
        retain: int | None = ...,
        max_total_bytes: int | None = ...,
        mode: int | None = ...,
        group: int | str | None = ...,
        validators: Iterable[Validator] = ...,
        lock_timeout: float = ...,
        freeze: bool = ...,
        verify: bool = ...,
        force: bool = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        codec: Codec[T],
        initial: T = ...,
        create: bool = ...,
        retain: int | None = ...,
        max_total_bytes: int | None = ...,
        mode: int | None = ...,
        group: int | str | None = ...,
        validators: Iterable[Validator] = ...,
        lock_timeout: float = ...,
        freeze: bool = ...,
        verify: bool = ...,
        force: bool = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Writer[Any],
        name: str,
        *,
        initial: Any = ...,
        create: bool = ...,
        retain: int | None = ...,
        max_total_bytes: int | None = ...,
        mode: int | None = ...,
        group: int | str | None = ...,
        validators: Iterable[Validator] = ...,
        lock_timeout: float = ...,
        freeze: bool = ...,
        verify: bool = ...,
        force: bool = ...,
    ) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        type: Any = None,  # noqa: A002
        codec: Codec[Any] | None = None,
        initial: Any = _MISSING,
        create: bool = True,
        retain: int | None = None,
        max_total_bytes: int | None = None,
        mode: int | None = None,
        group: int | str | None = None,
        validators: Iterable[Validator] = (),
        lock_timeout: float = 5.0,
        freeze: bool = True,
        verify: bool = False,
        force: bool = False,
    ) -> None:
        self._name = check_name(name)
        self._closed = False
        committer = functools.partial(
            Committer, checks=check_validators(validators), freeze=freeze, verify=verify, force=force
        )
        given = given_codec(type, codec, freeze)
        settings = Settings(
            None if mode is None else check_mode(mode),
            check_group(group),
            check_count("retain", retain),
            check_count("max_total_bytes", max_total_bytes),
        )
        check_timeout("lock_timeout", lock_timeout)
        first = committer(given).prove(initial) if initial is not _MISSING and given is not None else None
        self._keeper = Keeper(name, settings, lock_timeout)
        store, _ = self._keeper.attach(create=create)
        self._committer: Committer = committer(agreed_codec(store, given, type, freeze, force))
        self._committer.store = store
        made = store if self._keeper.created else None
        try:
            self._configure(settings)
            self._warn_of_permissions(mode, settings)
            if initial is not _MISSING and self._store.word == 0:
                self._publish_first(first or self._encode(initial))
        except BaseException:
            self._unmake(made)
            raise

    # ---- attributes ----

    @property
    def name(self) -> str:
        """The store's name."""
        return self._name

    @property
    def created(self) -> bool:
        """Whether this Writer made the store (or made it again, after it was removed)."""
        return self._keeper.created

    @property
    def version(self) -> int:
        """The current version; 0 before the first.

        Raises:
            StoreDestroyedError: the store was destroyed.
        """
        self._check_open()
        return self._store.version

    def snapshot(self) -> Snapshot[T]:
        """Return the current version's Snapshot.

        Raises:
            NotPublishedError: there is none yet.
            DecodeError, CorruptSegmentError: it cannot be used.
        """
        self._check_open()
        return self._committer.load(self._store.hold())

    # ---- publishing ----

    def publish(
        self,
        value: T,
        *,
        expected: int | None = None,
        message: str = "",
        author: str = "",
        source: str = "",
        if_changed: bool = False,
    ) -> int:
        """Publish a value as the new current version.

        It is encoded, decoded again with the type, and validated; only then does it become visible, to everybody at
        once. On any error the current version stays, and nothing is left behind.

        Args:
            value: the value.
            expected: publish only if this version is current (0: only if there is none).
            message: why (at most 256 bytes of UTF-8 are kept).
            author: who (64 bytes).
            source: from what (128 bytes).
            if_changed: publish nothing if the current version has these very bytes and this type.

        Returns:
            The new version; with ``if_changed`` the current one, if nothing changed.

        Raises:
            ValidationError: the value does not encode, does not fit the type, or was refused by a validator.
            VersionConflictError: ``expected`` is not the current version.
            WriterBusyError: another writer did not finish within ``lock_timeout``.
            OutOfSharedMemoryError: no room, and no retained version left to give up.
            StoreDestroyedError: only with ``expected``: the store is gone. Without, it is created again.
            KeyboardInterrupt: may come after the value has become visible, while old versions are being reclaimed.

        Concurrency: any thread and process; linearized by one compare-and-swap (csrc/PROTOCOL.md).
        """
        self._check_open()
        said = say(message, author, source)
        if expected is not None:
            check_version("expected", expected, 0)
        return self._publish(self._encode(value), said, expected, if_changed)[0]

    def update(self, function: Callable[[T], T], *, message: str = "", author: str = "", source: str = "") -> int:
        """Replace the current value by ``function(current value)``, under the writer lock: no update is ever lost.

        Args:
            function: gets the current (frozen) value and returns the new one. It must not publish.
            message, author, source: as for ``publish``.

        Returns:
            The new version.

        Raises:
            NotPublishedError: there is no current value.
            ValidationError: ``function`` returned None, or what it returned is refused.
            StoreDestroyedError: the store is gone.
            Exception: whatever ``function`` raises; nothing is published.

        Concurrency: as ``publish``; a child that ``function`` forks gets WriterBusyError when it returns.
        """
        self._check_open()
        said = say(message, author, source)
        with self._turn(recreate=False) as turn:
            self._committer.check_follows(turn)
            new = function(self._committer.load(turn.store.hold()).value)
            return self._commit_new(turn, new, said, "update's function")

    def patch(self, /, **changes: Any) -> int:
        """Replace fields (of a Struct, dataclass or attrs class), keys (of a dict) or parts of the current value.

        Every argument is a field; to give a message, use ``update`` or ``edit``.

        Returns:
            The new version.

        Raises:
            ValidationError: a field is unknown, or its value does not fit.
        """
        if isinstance(self._committer.codec, Bundle):
            return self.publish_parts(changes)
        return self.update(lambda old: draft.patched(old, changes))

    @contextlib.contextmanager
    def edit(self, *, message: str = "", author: str = "", source: str = "") -> Iterator[Any]:
        """Edit a private, mutable copy: published on a clean exit, dropped on an exception.

        The writer lock is held meanwhile: be quick. A clean exit publishes even if nothing was changed. Dicts and
        lists are plain ones; a frozen Struct, dataclass or attrs object is a stand-in whose fields can be set.

        Yields:
            The copy.

        Raises:
            ValidationError: the result does not fit, or the value is not one that can be edited.
        """
        self._check_open()
        said = say(message, author, source)
        with self._turn(recreate=False) as turn:
            self._committer.check_follows(turn)
            copy = draft.open_draft(self._committer.load(turn.store.hold()).value)
            yield copy
            self._commit_new(turn, draft.close_draft(copy), said, "edit")

    def publish_parts(
        self,
        parts: Mapping[str, Any] | None = None,
        /,
        *,
        expected: int | None = None,
        message: str = "",
        author: str = "",
        source: str = "",
        **more: Any,
    ) -> int:
        """Publish a version with other values for some parts of a ``Bundle``; it shares the segments of the rest.

        What the other parts are is decided under the writer lock: two writers that publish different parts lose
        nothing. It costs what the given parts cost, however large the rest is.

        Args:
            parts: new values, by part; for parts with names such as ``message``.
            expected, message, author, source: as for ``publish``.
            more: new values, by part.

        Returns:
            The new version.

        Raises:
            TypeError: the codec is no Bundle.
            NotPublishedError: there is no version yet: publish one with all parts.
            ValidationError: a part is unknown, does not fit, was never published, or a validator refused the whole.
            VersionConflictError, WriterBusyError, OutOfSharedMemoryError: as for ``publish``.
            StoreDestroyedError: the store is gone.

        Concurrency: as ``publish``.
        """
        self._check_open()
        codec = self._committer.codec
        if not isinstance(codec, Bundle):
            raise TypeError(
                f"publish_parts is for stores of several parts: give Writer(..., codec=Bundle(...)), found {codec!r}"
            )
        said = say(message, author, source)
        if expected is not None:
            check_version("expected", expected, 0)
        values = {**(parts or {}), **more}
        encoded = self._encode(values, some=True)
        with self._turn(recreate=False) as turn:
            if turn.store.version == 0:
                turn.store.hold()  # raises NotPublishedError
            return self._commit(turn, encoded, said, expected)

    def _update_part(self, part: str, function: Callable[[Any], Any], said: Said) -> int:
        """Publish another value of one part of a bundle: ``function(the bundle)``, under the writer lock.

        Other parts need not be in this writer's Bundle: they stay as they are. Where nothing but plain values was and
        is in the part, so does what the version says of its type.
        """
        self._check_open()
        codec = self._committer.codec
        assert isinstance(codec, Bundle)
        with self._turn(recreate=False) as turn:
            snapshot = self._committer.load(turn.store.hold())
            encoded = self._encode({part: function(snapshot.value)}, some=True)
            del snapshot
            entry = turn.store.entry()
            plain = not codec.codecs[part].is_typed and entry is not None and not _is_typed(entry, part)
            return self._commit(turn, encoded, said, None, schema_in(entry) if entry and plain else None)

    def swap(self, value: T, *, message: str = "", author: str = "", source: str = "") -> Snapshot[T]:
        """Publish a value and return the Snapshot of the version that it replaced.

        Raises:
            NotPublishedError: there was none.
        """
        self._check_open()
        said = say(message, author, source)
        encoded = self._encode(value)
        with self._turn(recreate=False) as turn:
            previous = self._committer.load(turn.store.hold())
            self._commit(turn, encoded, said, previous.version)
            return previous

    def rollback(
        self,
        to: int | None = None,
        *,
        expected: int | None = None,
        message: str = "",
        author: str = "",
        source: str = "",
    ) -> int:
        """Publish a *new* version with an older one's content. Nothing is copied: both list the same segments.

        Args:
            to: the version to repeat; None: the one before the current, or, if that is itself a rollback, the one
                before the version that it went back to. So one rollback after the other goes further back.
            expected: roll back only if this version is current.
            message, author, source: as for ``publish``; the default message says what was rolled back.

        Returns:
            The new version.

        Raises:
            VersionGoneError: that version is no longer openable (see ``retain``).
            NotPublishedError: there is none.
            VersionConflictError: ``expected`` is not the current version.
        """
        self._check_open()
        if to is not None:
            check_version("to", to, 1)
        if expected is not None:
            check_version("expected", expected, 1)
        with self._turn(recreate=False) as turn:
            current = turn.store.version
            if current == 0:
                turn.store.hold()  # raises NotPublishedError
            check_expected(turn, current, expected)
            target = self._before(turn.store, current) if to is None else to
            if target < 1:
                raise VersionGoneError(
                    f"version {current} of store {self._name} has the content of the first: there is none before it"
                )
            hold = hold_at(turn.store, target) if to is not None else self._hold_earlier(turn.store, target)
            self._committer.check_good(hold)
            said = say(message or f"roll back from {current} to {target}", author, source)
            return self._committer.commit_shared(turn, hold.entry, said)

    # ---- keeping house ----

    def reclaim(self) -> int:
        """Reclaim now every version that nobody holds beyond ``retain``, and sweep what belongs to nothing.

        Each publish does the first by itself; what a reader held then goes with the next.

        Returns:
            How many versions were reclaimed.
        """
        self._check_open()
        with self._turn(recreate=False) as turn:
            turn.sweep()
            return turn.core.reclaim(turn.store.retain)

    def drop(self, version: int) -> Dropped:
        """Give up an older version now, although it is retained: nobody can open it any more.

        For what must not stay, such as a secret published by mistake. Its segments are unlinked, but for those that
        another version lists, too (a rollback to it, parts of a Bundle that did not change). A process that holds it
        keeps its mapping; the memory is free when the last one lets go, which ``wait_unused`` waits for. A value that
        a reader has decoded is a copy, out of reach until that reader's next ``get()``.

        Args:
            version: an older version.

        Returns:
            What went, which versions have parts of it still, and who holds it or has read it.

        Raises:
            ValueError: it is the current version: publish another or roll back first.
            VersionGoneError: it cannot be opened any more, or was never published.
            StoreDestroyedError: the store is gone.
            WriterBusyError: another writer did not finish within ``lock_timeout``.

        Concurrency: any thread and process; takes a turn as ``publish`` does. A writer that is killed half-way is
        finished by the next one.

        Example:
            >>> import shmcow
            >>> with shmcow.Writer("doc-drop", initial={"password": "hunter2"}) as w:
            ...     version = w.publish({"password_file": "/run/secret"})
            ...     w.drop(1).held
            ...     w.destroy()
            False
        """
        self._check_open()
        check_version("version", version, 1)
        from shmcow.dropping import discard, with_holders  # hardly ever asked for, and it would cost every worker

        with self._turn(recreate=False) as turn:
            found = discard(turn, version)
            store = turn.store
        return with_holders(store, found)

    def wait_unused(self, version: int, timeout: float | None = None) -> None:
        """Wait until no process holds a version: the grace period.

        Holds are what ``with snapshot:``, ``snapshot.hold()`` and views (Raw, ``snapshot.data``) make. A value that
        ``get()`` decoded is a copy and holds nothing: this does not tell whether workers have moved on from it.

        For a version that is still openable this is a moment, not a promise: somebody may hold it again. Once it is
        reclaimed nobody can.

        Args:
            version: an older version.
            timeout: in seconds; None: for ever.

        Raises:
            WaitTimeoutError: it is still held; the message names who holds it.
            ValueError: the version is current, or was never published.
            StoreDestroyedError: the store has gone.
            ClosedError: the writer is closed, also by another thread meanwhile.

        Concurrency: any thread; takes no lock. It asks the kernel now and then; readers notice nothing.
        """
        self._check_open()
        check_version("version", version, 1)
        check_wait(timeout)
        store = self._store
        current = store.version
        if version >= current:
            raise ValueError(
                f"version {version} of store {self._name} is "
                + ("current: publish a newer one first" if version == current else f"unknown: {current} is current")
            )
        pause = Pause()

        def look() -> Sleep | None:
            self._check_open()
            if not store.named():
                raise StoreDestroyedError(f"store {self._name} was destroyed, or removed from outside")
            return pause.sleep() if store.marked(version) else None

        def late() -> WaitTimeoutError:
            who = name_holders(store, version, version)
            return WaitTimeoutError(f"version {version} of store {self._name} is still held after {timeout} s: {who}")

        until(look, timeout, late)

    def destroy(self) -> None:
        """Remove the store. Readers keep their last good value, and find a new store of that name by themselves.

        Raises:
            StoreDestroyedError: it is gone already.
        """
        self._check_open()
        with self._turn(recreate=False, ending=True) as turn:
            end(turn.store, turn.core)

    def close(self) -> None:
        """Let go of the store, which stays. Closing twice is fine."""
        self._closed = True
        self._keeper.close()
        self._committer.store = None  # its mapping and its descriptors
        _core.ring()

    def __enter__(self) -> Writer[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"a Writer cannot be pickled or copied: make one in the other process, Writer({self._name!r})")

    def __repr__(self) -> str:
        return f"<Writer {self._name}{', closed' if self._closed else ''}>"

    # ---- how it is done ----

    def _check_open(self) -> None:
        if self._closed:
            raise closed(self._name)

    @property
    def _store(self) -> _core.Store:
        store = self._committer.store
        if store is None:  # by another thread, since we looked
            raise closed(self._name)
        return store

    def _turn(self, *, recreate: bool, ending: bool = False) -> Turn:
        return Turn(self._keeper, recreate=recreate, ending=ending)

    def _before(self, store: _core.Store, current: int) -> int:
        entry = store.entry()
        return (int(entry["origin"]) if entry is not None and entry["origin"] else current) - 1

    def _hold_earlier(self, store: _core.Store, target: int) -> _core.Hold:
        try:
            return store.hold(target)
        except VersionGoneError as exc:
            there = openable(store)
            if any(number < target for number, _, entry in store.generations() if entry is not None):
                raise VersionGoneError(f"{gone(store, target)}; name the one to go back to") from exc
            raise VersionGoneError(
                f"there is no earlier version of store {self._name} to go back to: {target} was reclaimed or dropped; "
                f"can be opened: {there} (shmcow history {self._name})"
            ) from exc

    def _configure(self, settings: Settings) -> None:
        store = self._store
        retain = store.retain if settings.retain is None else settings.retain
        limit = store.max_total_bytes if settings.max_total_bytes is None else settings.max_total_bytes
        changes = (retain, limit) != (store.retain, store.max_total_bytes)
        try:
            with Turn(self._keeper, recreate=True, timeout=None if changes else 0) as turn:
                self._committer.adopt(turn.store)
                if (retain, limit) != (turn.store.retain, turn.store.max_total_bytes):
                    turn.core.configure(retain, limit)
        except WriterBusyError:
            if changes:
                raise
            # Somebody is publishing, and recovers and sweeps as well as we would.

    def _warn_of_permissions(self, mode: int | None, settings: Settings) -> None:
        store = self._store
        if (mode is not None and mode != store.mode) or settings.gid not in (-1, store.gid):
            _log.warning(
                "store %s keeps mode %s and group %d of its first writer: destroy it first to change them",
                self._name,
                oct(store.mode),
                store.gid,
            )

    def _unmake(self, made: _core.Store | None) -> None:
        """Remove the store that this writer has made, unless somebody has published in it, or is about to."""
        with contextlib.suppress(ShmcowError, OSError):
            if made is not None:
                with Turn(self._keeper, recreate=False, timeout=0, ending=True) as turn:
                    if turn.store is made and made.version == 0:
                        end(made, turn.core)
        self.close()

    def _publish_first(self, encoded: Encoded) -> None:
        with contextlib.suppress(VersionConflictError), self._turn(recreate=True) as turn:
            self._commit(turn, encoded, say("initial", "", ""), 0)

    def _encode(self, value: Any, *, some: bool = False) -> Encoded:
        try:
            return self._committer.prove_some(value) if some else self._committer.prove(value)
        except ValidationError:
            core = self._keeper._core
            if core is not None:
                core.count(REFUSED, 1)
            raise

    def _publish(self, encoded: Encoded, said: Said, expected: int | None, if_changed: bool) -> tuple[int, bool]:
        """Publish what is encoded; returns the version that is current now, and whether it is a new one."""
        with self._turn(recreate=expected is None) as turn:
            if if_changed and expected in (None, turn.store.version) and self._committer.repeats(turn, encoded):
                return turn.store.version, False
            return self._commit(turn, encoded, said, expected), True

    def _commit_new(self, turn: Turn, value: Any, said: Said, who: str) -> int:
        turn.check_still_ours()
        if value is None:
            raise ValidationError(f"{who} returned None: it must return the new value (to publish None, use publish)")
        return self._commit(turn, self._encode(value), said, None)

    def _commit(
        self, turn: Turn, encoded: Encoded, said: Said, expected: int | None, schema: Schema | None = None
    ) -> int:
        self._check_open()  # it may have been closed while we waited, or by a caller's function
        return self._committer.commit(turn, encoded, said, expected, schema)


def _is_typed(entry: dict[str, Any], part: str) -> bool:
    return any(listed["name"] == part and listed["flags"] & _core.IS_TYPED for listed in entry["parts"])


def destroy(name: str, *, lock_timeout: float = 5.0) -> None:
    """Remove a store, whatever is in it. Readers keep their last good value.

    Args:
        name: of the store.
        lock_timeout: how long to wait for its writers, in seconds.

    Raises:
        StoreNotFoundError: there is none.
        NotOwnerError: it belongs to another user.
        WriterBusyError: a writer did not finish in time.
    """
    check_timeout("lock_timeout", lock_timeout)
    keeper = Keeper(check_name(name), Settings(), lock_timeout)
    try:
        keeper.attach(create=False)
    except StoreNotFoundError:
        if keeper.finished:
            return
        raise
    with (
        contextlib.suppress(StoreNotFoundError, StoreDestroyedError),
        Turn(keeper, recreate=False, ending=True) as turn,
    ):
        end(turn.store, turn.core)
