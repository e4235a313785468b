"""One snapshot for each request of a FastAPI application, as a dependency. For Starlette: ``shmcow.contrib.asgi``.

``SnapshotOf(reader)`` gives the snapshot, ``ValueOf(reader)`` its value, or the reader's ``default`` without a store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from shmcow.contrib import needed
from shmcow.contrib.asgi import SnapshotMiddleware
from shmcow.contrib.request import check_readers, current_snapshot, current_value, holding

with needed("fastapi", "0.118"):  # before, dependencies ended before a response was streamed
    from fastapi import Depends

if TYPE_CHECKING:
    from shmcow.reader import Reader
    from shmcow.snapshot import Snapshot

__all__ = ["SnapshotMiddleware", "SnapshotOf", "ValueOf", "current_snapshot", "current_value", "holding"]


def SnapshotOf(reader: Reader[Any]) -> Any:  # noqa: N802 - stands where Depends() does
    """Make a dependency that is the request's snapshot: ``Annotated[Snapshot[Config], SnapshotOf(config)]``.

    All dependencies and endpoints of a request (``def`` or ``async def``) get the same one, and ``current_snapshot``
    returns it, too. It is let go when the response is done, streams and background tasks included. With
    ``app.add_middleware(SnapshotMiddleware, config)`` it is taken at the start of the request, for other middleware as
    well; without, when the first dependency asks. Not for websockets: it would be held as long as the connection lives.

    Args:
        reader: of which.

    Returns:
        What ``Depends`` returns. If there is no version the request fails as ``current_snapshot`` says, also if the
        reader has a ``default``, which is a value and no snapshot: ``ValueOf`` knows it.

    Raises:
        TypeError: it is no Reader.

    Concurrency: as ``current_snapshot``.

    Example::

        config = Reader("app-config", type=Config)
        Current = Annotated[Snapshot[Config], SnapshotOf(config)]

        @app.get("/")
        def index(current: Current) -> float:
            return current.value.timeout
    """
    check_readers((reader,))

    async def snapshot() -> AsyncIterator[Snapshot[Any]]:
        with holding(reader):
            yield current_snapshot(reader)

    return Depends(snapshot)


def ValueOf(reader: Reader[Any]) -> Any:  # noqa: N802 - as SnapshotOf
    """Make a dependency that is the value of the request's snapshot: ``Annotated[Config, ValueOf(config)]``.

    As ``SnapshotOf``, of whose version it is; where a request began before there was one, it is the ``default`` of the
    reader, to the request's end.

    Args:
        reader: of which.

    Returns:
        What ``Depends`` returns. With neither version nor ``default`` the request fails as ``current_value`` says.

    Raises:
        TypeError: it is no Reader.

    Concurrency: as ``current_snapshot``.

    Example::

        config = Reader("app-config", type=Config, default=Config())
        Now = Annotated[Config, ValueOf(config)]

        @app.get("/")
        def index(now: Now) -> float:
            return now.timeout
    """
    check_readers((reader,))

    async def value() -> AsyncIterator[Any]:
        with holding(reader):
            yield current_value(reader)

    return Depends(value)
