"""The same application as ASGI, for gunicorn's asyncio worker.

Run, in this directory (gunicorn 27 or later; with an older one, use the worker class of uvicorn-worker):

    gunicorn asgi:app --worker-class asgi

Reading the configuration takes no lock and waits for nobody, so it may be done in the event loop. Publishing may wait
for another writer, so that is done in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from publish import publish
from settings import answer

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:  # noqa: ARG001 - what ASGI calls it with
    """Answer every path with the current configuration; publish first if the method is POST."""
    assert scope["type"] == "http", "no lifespan, no websockets"
    if scope["method"] == "POST":
        await asyncio.to_thread(publish)
    body = answer()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
