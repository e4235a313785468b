"""One version for a whole request: what the middleware holds, and ``current_snapshot`` returns.

A second ``reader.get()`` in the same request may be newer than the first. Inside a request that a middleware of this
package serves (or inside ``with holding(reader):``) ``current_snapshot`` is the same one from start to end; the version
stays held until the response is done, so that it can be sent to other processes and ``wait_unused`` waits for it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, overload

from typing_extensions import TypeVar

from shmcow.errors import ShmcowError, VersionGoneError
from shmcow.reader import Reader

if TYPE_CHECKING:
    from types import TracebackType

    from shmcow.snapshot import Snapshot

__all__ = ["OutsideRequestError", "RequestSnapshots", "current_snapshot", "current_value", "holding"]

T = TypeVar("T", default=Any)

_NO_VALUE: Final = object()


class OutsideRequestError(ShmcowError, RuntimeError):
    """There is no request here, it is over, or its middleware was not given the reader that was asked for."""


class _Missing(NamedTuple):
    """Why there was no version when the request began, and the reader's ``default``, if it has one."""

    error: Exception
    default: Any


class RequestSnapshots:
    """The snapshots of one request: taken and held when this is made, let go by ``release()``, or when it is collected.

    For who writes a middleware; everybody else uses one, or ``holding``.

    A request does not fail for want of a store: what is wrong is raised by ``current_snapshot``, where it is needed.
    Where a version cannot be held (its store was destroyed meanwhile, or a newer one cannot be decoded and this one was
    reclaimed), the last good value serves the request all the same, and ``snapshot.held`` says so.

    Args:
        readers: of which to take a snapshot each. Those of the request around this one are shared with it.

    Concurrency: any thread. A child forked meanwhile has a copy of its own.
    """

    __slots__ = ("_held", "_over", "_taken")

    def __init__(self, readers: Iterable[Reader[Any]]) -> None:
        self._held: list[Snapshot[Any]] = []
        self._over = False
        around = _request.get()
        self._taken: dict[Reader[Any], Snapshot[Any] | _Missing] = {} if around is None else dict(around._taken)
        for snapshot in self._taken.values():
            if not isinstance(snapshot, _Missing):
                self._hold(snapshot)
        for reader in readers:
            if reader not in self._taken:
                self._taken[reader] = self._take(reader)

    def _hold(self, snapshot: Snapshot[Any]) -> bool:
        """Hold a version if that is possible; False if it was reclaimed."""
        try:
            self._held.append(snapshot.hold())
        except VersionGoneError:
            return False
        except (ShmcowError, OSError):
            pass
        return True

    def _take(self, reader: Reader[Any]) -> Snapshot[Any] | _Missing:
        before: Snapshot[Any] | None = None
        while True:
            try:
                snapshot = reader.snapshot()
            except (ShmcowError, OSError) as exc:
                missing = _missing(reader, exc)
                if missing is None:
                    continue
                return missing
            # Reclaimed: newer ones were published between the two. The same again: the reader cannot use those.
            if self._hold(snapshot) or snapshot is before:
                return snapshot
            before = snapshot

    def of(self, reader: Reader[Any] | None) -> Snapshot[Any] | _Missing:
        """Return what was found of a reader when the request began, or of the only one."""
        taken = self._taken
        if self._over:
            raise OutsideRequestError(
                "this request is over, and its snapshots were let go: a task that outlives it takes one of its own, "
                "`with holding(reader):`"
            )
        if reader is None and len(taken) == 1:
            return next(iter(taken.values()))
        if reader is not None and reader in taken:
            return taken[reader]
        stores = ", ".join(known.name for known in taken) or "no reader"
        if reader is None:
            raise OutsideRequestError(f"say of which reader, current_snapshot(reader): this request has {stores}")
        raise OutsideRequestError(
            f"this request has no snapshot of {reader!r}, only of {stores}: give it to the middleware"
        )

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make these the current ones within ``with``, in this thread or task."""
        token = _request.set(self)
        try:
            yield
        finally:
            _reset(token)

    def release(self) -> None:
        """Let go of all of them; a second call does nothing."""
        self._over = True
        while True:
            try:
                snapshot = self._held.pop()  # one step: another thread that does the same gets another one
            except IndexError:
                break
            snapshot.release()
        self._taken = {}

    def __del__(self) -> None:
        self.release()


def _missing(reader: Reader[Any], exc: Exception) -> _Missing | None:
    """Say what a request gets that begins without a version; None: there is one by now."""
    try:
        default = reader.get()
        if reader.version:
            return None
    except (ShmcowError, OSError):
        default = _NO_VALUE
    return _Missing(exc.with_traceback(None), default)


_request: ContextVar[RequestSnapshots | None] = ContextVar("shmcow.request", default=None)


def _reset(token: Token[RequestSnapshots | None]) -> None:
    try:
        _request.reset(token)
    except ValueError:  # left in another context than entered, which ends with what was set in it
        pass


def _find(reader: Reader[Any] | None) -> Snapshot[Any] | _Missing:
    if reader is not None and not isinstance(reader, Reader):
        raise TypeError(f"current_snapshot() takes a Reader, found {reader!r}")
    found = _request.get()
    if found is None:
        raise OutsideRequestError(
            "there is no request here: add SnapshotMiddleware to the application, or use `with holding(reader):` (a "
            "thread of your own has no context: start it with contextvars.copy_context().run)"
        )
    return found.of(reader)


@overload
def current_snapshot(reader: Reader[T]) -> Snapshot[T]: ...
@overload
def current_snapshot(reader: None = None) -> Snapshot[Any]: ...
def current_snapshot(reader: Reader[Any] | None = None) -> Snapshot[Any]:
    """Return the snapshot of this request: the same one from its start to its end.

    Args:
        reader: of which; None: the only one that the middleware was given.

    Returns:
        The snapshot, which the request holds.

    Raises:
        OutsideRequestError: there is no request here, it is over, or it has no (or more than one) such reader.
        StoreNotFoundError, NotPublishedError, DecodeError and others: as ``reader.snapshot()`` when the request began.

    Concurrency: the tasks of a request, and what runs by ``asyncio.to_thread`` or a framework's thread pool, share it.

    Example:
        >>> from shmcow import Reader, Writer
        >>> from shmcow.contrib.request import current_snapshot, holding
        >>> with Writer("doc-request", initial="old") as w:
        ...     config = Reader("doc-request")
        ...     with holding(config):
        ...         version = w.publish("new")
        ...         print(current_snapshot().value, config.get())
        ...     w.destroy()
        old new
    """
    found = _find(reader)
    if isinstance(found, _Missing):
        raise copy.copy(found.error)  # what is kept must not collect the frames of those it is raised to
    return found


@overload
def current_value(reader: Reader[T]) -> T: ...
@overload
def current_value(reader: None = None) -> Any: ...
def current_value(reader: Reader[Any] | None = None) -> Any:
    """Return the value of this request's snapshot, or the reader's ``default`` if it began before there was any.

    Args, Raises, Concurrency: as ``current_snapshot``.
    """
    found = _find(reader)
    if not isinstance(found, _Missing):
        return found.value
    if found.default is _NO_VALUE:
        raise copy.copy(found.error)
    return found.default


class holding:  # noqa: N801 - used like closing() and suppress() of contextlib
    """Do for any piece of work what the middleware does for a request: ``with holding(config, flags):``.

    For a celery task, a websocket's message, a command. Inside of a request it is that request's version.

    Args:
        readers: of which ``current_snapshot`` has to answer.

    Concurrency: as ``current_snapshot``; each ``with`` needs a ``holding`` of its own.
    """

    __slots__ = ("_readers", "_snapshots", "_token")

    def __init__(self, *readers: Reader[Any]) -> None:
        self._readers = check_readers(readers)

    def __enter__(self) -> None:
        self._snapshots = RequestSnapshots(self._readers)
        self._token = _request.set(self._snapshots)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        _reset(self._token)
        self._snapshots.release()


def check_readers(readers: tuple[Reader[Any], ...]) -> tuple[Reader[Any], ...]:
    """Return readers as they are.

    Raises:
        TypeError: there is none, or something else among them.
    """
    if not readers:
        raise TypeError("give at least one Reader")
    for reader in readers:
        if not isinstance(reader, Reader):
            raise TypeError(f"expected a Reader, found {reader!r}")
    return readers


class Body:
    """A response's body that is made while it is sent: each step of it sees its request's snapshots.

    Whoever sends it calls ``close()`` at the end, also if nothing was sent: the snapshots are let go there.
    """

    __slots__ = ("_body", "_inside", "_iterator", "_snapshots")

    def __init__(self, snapshots: RequestSnapshots, body: Iterable[bytes]) -> None:
        self._snapshots = self._inside = snapshots
        self._body = body
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Self:
        token = _request.set(self._snapshots)
        try:
            self._iterator = iter(self._body)
        finally:
            _reset(token)
        return self

    def __next__(self) -> bytes:
        if self._iterator is None:
            iter(self)
        assert self._iterator is not None
        token = _request.set(_still(self._inside, self._snapshots))
        try:
            return next(self._iterator)
        finally:
            self._inside = _request.get() or self._snapshots
            _reset(token)

    def close(self) -> None:
        """Close the body, if it can be closed, and let go of the snapshots."""
        token = _request.set(_still(self._inside, self._snapshots))
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            _reset(token)
            self._inside = self._snapshots
            self._snapshots.release()


def _still(inside: RequestSnapshots, snapshots: RequestSnapshots) -> RequestSnapshots:
    """Return what the last step of a body left current, as in the middle of ``with holding``, if that is not over."""
    return snapshots if inside._over else inside


class SizedBody(Body):
    """A body that knows how many pieces it has: a server that sees one needs no other hint of the length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


class AsyncBody:
    """What ``Body`` is, for asyncio. The end of the iteration, whatever it is, lets go of the snapshots as well."""

    __slots__ = ("_inside", "_iterator", "_snapshots")

    def __init__(self, snapshots: RequestSnapshots, body: AsyncIterable[bytes]) -> None:
        self._snapshots = self._inside = snapshots
        self._iterator: AsyncIterator[bytes] = aiter(body)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        token = _request.set(_still(self._inside, self._snapshots))
        try:
            return await anext(self._iterator)
        except BaseException:  # StopAsyncIteration, or the client went away and the task was cancelled
            self._snapshots.release()
            raise
        finally:
            self._inside = _request.get() or self._snapshots
            _reset(token)

    def close(self) -> None:
        """Let go of the snapshots."""
        self._snapshots.release()
