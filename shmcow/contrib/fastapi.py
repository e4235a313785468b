"""One snapshot for each request of a FastAPI application, as a dependency. For Starlette: ``shmcow.contrib.asgi``."""

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

__all__ = ["SnapshotMiddleware", "SnapshotOf", "current_snapshot", "current_value", "holding"]


def SnapshotOf(reader: Reader[Any]) -> Any:  # noqa: N802 - stands where Depends() does
    """Make a dependency that is the request's snapshot: ``Annotated[Snapshot[Config], SnapshotOf(config)]``.

    All dependencies and endpoints of a request (``def`` or ``async def``) get the same one, and ``current_snapshot``
    returns it, too. It is let go when the response is done, streams and background tasks included. With
    ``app.add_middleware(SnapshotMiddleware, config)`` it is taken at the start of the request, for other middleware as
    well; without, when the first dependency asks. Not for websockets: it would be held as long as the connection lives.

    Args:
        reader: of which.

    Returns:
        What ``Depends`` returns. If there is no version the request fails as ``current_snapshot`` says.

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
