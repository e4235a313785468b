"""The loop that feeds a store: ask the source, check, publish, say how it went, wait."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from shmcow import files, publishing
from shmcow.agreement import agreed_codec, untyped
from shmcow.codecs import Codec
from shmcow.encoded import Encoded, say
from shmcow.errors import CodecMismatchError, FollowerBusyError, ShmcowError, ValidationError
from shmcow.feed.lock import Feed
from shmcow.feed.origin import Content, Origin
from shmcow.feed.wake import StopEvent, Wake
from shmcow.validators import Validator, check
from shmcow.writer import Writer

__all__ = ["Event", "follow"]

_log = logging.getLogger("shmcow")
_LONGEST_PAUSE: Final = 300.0  # seconds, after many failures (or ``every``, if that is longer)


_Kind: TypeAlias = Literal["following", "restored", "published", "unchanged", "failed", "recovered", "ended"]


class Event(NamedTuple):
    """Something that a follower tells.

    Attributes:
        kind: "following": it has the feed lock; "restored": it published what was saved; "published"; "unchanged": the
            store had it already when the follower started, or at a reload; "failed"; "recovered": it is good again,
            with nothing new; "ended".
        version: the version that it is about; for "failed" the one that stays in service; 0: none.
        error: what went wrong; "" if nothing did.
    """

    kind: _Kind
    store: str
    source: str
    version: int
    error: str = ""


def follow(
    origin: Origin,
    name: str,
    *,
    type: Any = None,  # noqa: A002
    codec: Codec[Any] | None = None,
    validators: Iterable[Validator] = (),
    retain: int | None = None,
    max_total_bytes: int | None = None,
    mode: int | None = None,
    group: int | str | None = None,
    lock_timeout: float = 5.0,
    message: str = "",
    author: str = "",
    force: bool = False,
    save: str | os.PathLike[str] | None = None,
    stop: StopEvent | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> None:
    """Feed a store from a source, until SIGTERM or SIGINT, or until ``stop`` is set.

    What the source has is published when it really changed: its content, not its times. A content that is malformed,
    does not fit the type or is refused by a validator is logged, counted, and kept as the feed's last error; the last
    good version stays in service, and the source is asked again. A version that somebody else publishes meanwhile (a
    rollback by hand, say) stays until the source changes. A store that is destroyed or removed is made again. A
    validator (or a type) that calls ``sys.exit()`` refuses a value, and ends nothing.

    In the main thread SIGTERM and SIGINT end it, and SIGHUP has it read the source at once and publish what differs
    from the current version; the handlers that were there before come back at the end.

    Args:
        origin: what to feed from: ``File``, ``Directory``, ``poll(...)``, or an object with the methods of ``Origin``.
            It is closed at the end.
        name: of the store, which is made if there is none.
        type: of the values; what does not fit is refused.
        codec: a codec object; excludes ``type``. Default: what the store has, or what suits the source.
        validators, retain, max_total_bytes, mode, group, lock_timeout, force: as for ``Writer``.
        message, author: kept with each version.
        save: a file for a cold start: each version that is published is saved there (whole, with a checksum; see
            ``shmcow.files.export_file``), and a store without a version gets it back before the source is asked.
        stop: ends it, too: a ``threading.Event``, for a follower in a thread.
        on_event: called with each ``Event``, in this thread; what it raises ends the follower.

    Raises:
        FollowerBusyError: another process feeds the store.
        NotOwnerError: the store belongs to another user.
        CodecMismatchError: ``codec`` is not the one that the store uses; or what the source has first does not follow
            from what the store has: it has a type and none was given, or another one, or another kind of value. Once
            something of the source was published this is a failure like others: whoever changed the store may go back.
        IncompatibleStoreError, CorruptSegmentError: what has its name cannot be used.
        OutOfSharedMemoryError, WriterBusyError: the store could not be made.
        TypeError, ValueError: an argument is none.

    Concurrency: one follower for each store in the system (the feed lock), in the thread that calls this. Other writers
    of the store go on as they were.
    """
    if not isinstance(origin, Origin):
        raise TypeError(f"expected an Origin (File, Directory, poll(...)), found {origin!r}")
    if type is not None and codec is not None:
        raise TypeError("give type= or codec=, not both")
    wake = Wake(stop)
    follower = _Follower(origin, name, wake)
    follower.given = type if codec is None else codec
    follower.save = None if save is None else os.path.abspath(os.fspath(save))
    follower.said = message, author
    follower.force = force
    follower.on_event = on_event
    follower.options = {"validators": check(validators), "lock_timeout": lock_timeout, "force": force}
    follower.settings = {"retain": retain, "max_total_bytes": max_total_bytes, "mode": mode, "group": group}
    with _signals(wake):
        try:
            follower.run()
        finally:
            follower.close()


@contextlib.contextmanager
def _signals(wake: Wake) -> Iterator[None]:
    """Have signals end the follower, or wake it. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        wake.stop()

    def reload(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        wake.reload()

    before = {}
    try:
        for number, handler in ((signal.SIGTERM, end), (signal.SIGINT, end), (signal.SIGHUP, reload)):
            before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)


class _Follower:
    """One run of ``follow``, whose arguments the attributes are."""

    given: Any
    save: str | None
    said: tuple[str, str]
    force: bool
    on_event: Callable[[Event], object] | None
    options: dict[str, Any]
    settings: dict[str, Any]

    def __init__(self, origin: Origin, name: str, wake: Wake) -> None:
        self._origin, self._name, self._wake = origin, name, wake
        self._feed: Feed | None = None
        self._writer: Writer[Any] | None = None
        self._wrote: tuple[Any, ...] = ()  # the schema that the writer is for
        self._tag: str | None = None  # of the content that was published last
        self._digest = b""  # of the bytes that were published last
        self._anew = True  # the store may lack what the source has, whatever is known of it
        self._row = 0  # failures in a row, of any kind
        self._bad = 0  # those of the source, after which it is asked less often
        self._told = ""  # the error that was logged last
        self._unsaved = False
        self._misfit = False  # whether the first content is not what the store can have

    # ---- the loop ----

    def run(self) -> None:
        """Feed until the end."""
        self._settle()
        self._tell("following", self._version())
        self._restore()
        while not self._wake.stopping:
            self._look()
            self._origin.wait(self._pause(), self._wake)
        self._tell("ended", self._version())

    def close(self) -> None:
        """Let go of everything; the store stays."""
        self._origin.close()
        if self._writer is not None:
            self._writer.close()
        if self._feed is not None:
            self._feed.release()

    def _pause(self) -> float | None:
        every = self._origin.every
        if self._bad:
            first = every or 1.0
            every = min(first * 2.0 ** min(self._bad - 1, 60), max(first, _LONGEST_PAUSE))
        if every is None:
            return None
        return every * (1.0 + self._origin.jitter * random.uniform(-1.0, 1.0))

    def _look(self) -> None:
        """Ask the source once."""
        # Not forgotten before it was done: at this moment the source may be bad.
        self._anew |= self._wake.take_reload()
        try:
            if self._feed is None or not self._feed.is_current():
                self._settle()
                self._restore()
            kind, version = self._ask()
        except FollowerBusyError:
            raise
        except Exception as exc:
            if not self._wake.stopping:  # what is cut short at the end is no failure
                self._bad += 1
                self._fail(exc)
                if self._misfit:
                    raise _as_ours(exc) from None
            return
        self._bad = 0
        if kind is not None:  # what the receiver raises is not the source's fault
            self._tell(kind, version)
        if self._unsaved and not self._save():
            return
        if self._row and kind != "published":
            _log.info("the feed of store %s from %s is good again", self._name, self._origin.description)
            self._tell("recovered", version)
        self._row, self._told = 0, ""

    def _ask(self) -> tuple[_Kind | None, int]:
        """Fetch, publish if it is another value, and say so in the store. -> what there is to tell, and the version"""
        assert self._feed is not None
        self._feed.contact()
        content = self._origin.fetch(None if self._anew else self._tag, self._wake)
        if not self._feed.is_current():  # it went while the source was asked, which may take long
            self._settle()
            self._feed.contact()
            if content is None:
                content = self._origin.fetch(None, self._wake)
        kind, version = (None, self._version()) if content is None else self._publish(content, self._anew)
        if content is not None:
            self._tag = content.tag or None
        self._anew = False
        feed = self._feed
        if not feed.is_current():  # the Writer made it again, or it has gone since
            feed = self._settle()
            self._anew = kind != "published"
        feed.succeed(kind == "published")
        return kind, version

    def _fail(self, exc: Exception, doing: str = "") -> None:
        self._row += 1
        error = doing + _words(exc)
        version = self._version()
        level = logging.DEBUG if error == self._told else logging.ERROR
        self._told = error
        stays = f"version {version} stays in service" if version else "there is no version yet"
        _log.log(level, "the feed of store %s: %s (%s)", self._name, error, stays)
        if self._feed is not None:
            self._feed.fail(error)
        self._tell("failed", version, error)

    # ---- the store ----

    def _settle(self) -> Feed:
        """Have a store, and its feed lock."""
        if self._feed is not None:
            self._feed.release()
            self._feed = None
        self._anew = True
        Writer(self._name, lock_timeout=self.options["lock_timeout"], **self.settings).close()
        self._feed = Feed(self._name, self._origin.description, self._origin.every)
        if isinstance(self.given, Codec):
            agreed_codec(self._feed.store, self.given, None, True, self.force)
        return self._feed

    def _version(self) -> int:
        if self._feed is None:
            return 0
        with contextlib.suppress(ShmcowError):
            return self._feed.store.version
        return 0

    def _publish(self, content: Content, anew: bool) -> tuple[_Kind | None, int]:
        """Publish a content, if it makes another value. -> what became of it, and the version that has it"""
        try:
            with contextlib.ExitStack() as stack:
                codec, value = content.make(self._name, self.given, stack)
                writer = self._writer_with(codec)
                encoded = publishing.proved(codec, value)
            digest = _digest_of(encoded)
            if digest == self._digest and not anew:
                return None, self._version()
            said = say(*self.said, self._origin.description)
            version, changed = writer._publish(encoded, said, None, True)
        except SystemExit as exc:  # whether to end is for signals and ``stop`` to say
            raise ValidationError(f"the type or a validator called sys.exit({exc.code!r})") from exc
        except CodecMismatchError:
            if not self._digest:  # asking again mends nothing: another option does, or another name
                self._misfit = True
            raise
        self._digest = digest
        self._unsaved = self.save is not None
        return "published" if changed else "unchanged" if anew else None, version

    def _writer_with(self, codec: Codec[Any]) -> Writer[Any]:
        schema = codec.name, codec.fingerprint, codec.type_name
        if self._writer is None or self._wrote != schema:
            writer: Writer[Any] = Writer(self._name, codec=codec, **self.options)
            if self._writer is not None:
                self._writer.close()
            self._writer, self._wrote = writer, schema
        return self._writer

    # ---- the file of a cold start ----

    def _restore(self) -> None:
        if self.save is None or self._version() or not os.path.lexists(self.save):
            return
        try:
            published, _ = files.import_file(self._name, self.save, type=self.given, force=self.force)
        except Exception as exc:
            self._fail(exc, f"restoring {self.save}: ")
            return
        _log.info("restored version %d of store %s from %s", published.version, self._name, self.save)
        self._tell("restored", published.version)

    def _save(self) -> bool:
        """Save the current version. -> whether that is done"""
        assert self.save is not None
        with contextlib.suppress(OSError):  # one may write into the directory, and not read it
            files.sweep_partial(self.save)
        try:
            files.export_file(self._name, self.save)
        except Exception as exc:
            self._fail(exc, f"saving to {self.save}: ")
            return False
        self._unsaved = False
        return True

    def _tell(self, kind: _Kind, version: int, error: str = "") -> None:
        if self.on_event is not None:
            self.on_event(Event(kind, self._name, self._origin.description, version, error))


def _as_ours(exc: Exception) -> Exception:
    """Return an error of a writer's as one of the follower that made it."""
    if not isinstance(exc, CodecMismatchError) or not exc.published:
        return exc
    text = str(exc).replace("this writer", "this follower").replace("give Writer(", "give follow(")
    return untyped(text, exc.published)


def _words(exc: Exception) -> str:
    if isinstance(exc, CodecMismatchError) and exc.published:
        what = str(_as_ours(exc)).rpartition(": give ")[0]
        return f"{what}: start it with --type MODULE:CLASS, or follow(..., type=)"
    if isinstance(exc, ShmcowError):
        return str(exc)
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename is not None else exc.strerror
    return f"{type(exc).__name__}: {exc}"


def _digest_of(encoded: Encoded) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in encoded.parts:
        digest.update(part.name + b"\0" + part.codec + b"\0" + part.stored.view.nbytes.to_bytes(8, "little"))
        digest.update(part.stored.view)
    return digest.digest()
