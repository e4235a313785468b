"""One snapshot for each request of an ASGI application: Starlette, FastAPI, Django, or none at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from shmcow.contrib.request import check_readers, holding

if TYPE_CHECKING:
    from shmcow.reader import Reader

__all__ = ["SnapshotMiddleware"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SnapshotMiddleware:
    """Let every request of an ASGI application see one version: ``app = SnapshotMiddleware(app, config)``.

    Inside of a request, ``current_snapshot(config)`` of ``shmcow.contrib.request`` is always the same. It is held until
    the application's call ends: after the last piece of a streamed response, after background tasks that the framework
    runs in that call, when the client goes away, when it raises. Websockets and lifespan pass: a connection that lives
    for hours should not hold a version; use ``with holding(config):`` for each message.

    Args:
        app: the application.
        readers: of which to take a snapshot at the start of each request. With large values give the reader
            ``refresh="background"``: the first request after a publish decodes, in the event loop.

    Raises:
        TypeError: there is no reader, or something else among them.

    Concurrency: any number of requests and event loops. The tasks of a request share its snapshot until its end.
    """

    def __init__(self, app: App, *readers: Reader[Any]) -> None:
        if not callable(app):
            raise TypeError(f"the first argument is the ASGI application, found {app!r}")
        self.app = app
        self._readers = check_readers(readers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass on what is none."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with holding(*self._readers):
            await self.app(scope, receive, send)
