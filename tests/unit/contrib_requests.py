"""What the tests of the middleware share: one store, requests without a network, and what is held meanwhile."""

from __future__ import annotations

import asyncio
import gc
import io
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.util import setup_testing_defaults

import processes

from shmcow import Reader, Writer


class Store:
    """A store whose versions are their own numbers, and a reader of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.writer: Writer[Any] = Writer(name, type=int, initial=1)
        self.reader: Reader[int] = Reader(name, type=int)

    def publish(self) -> int:
        """Publish the next number, as another process would, in the middle of whatever goes on."""
        return self.writer.update(lambda old: old + 1)

    @property
    def held(self) -> set[int]:
        """The versions that this process holds, as the kernel says."""
        return processes.held_by(os.getpid(), self.name)


@contextmanager
def serving(name: str) -> Iterator[Store]:
    """Make a store; fail if anything of it is still held at the end."""
    store = Store(name)
    try:
        yield store
        assert store.held == set()
    finally:
        store.writer.destroy()
        store.writer.close()
        store.reader.close()


# ---- requests ----


def wsgi_environ(path: str = "/") -> dict[str, Any]:
    """Return the environ of a GET request."""
    environ: dict[str, Any] = {"PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "", "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    return environ


def wsgi_get(app: Any, path: str = "/") -> tuple[int, str]:
    """Do what a WSGI server does for one request; the status and the body."""
    began: list[Any] = []
    parts = app(wsgi_environ(path), lambda *given: began.append(given))
    try:
        body = b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()
    return int(began[-1][0].split()[0]), body.decode()


async def asgi_get(
    app: Callable[..., Awaitable[None]], path: str = "/", *, leave: str = "", kind: str = "http"
) -> tuple[int, str]:
    """Do what an ASGI server does for one request.

    Args:
        leave: the client goes away after the first piece of the body: "told", the application is told so and ends;
            "cancelled", the server cancels it.
    """
    scope = {
        "type": kind, "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"testserver")], "client": ("127.0.0.1", 1), "server": ("testserver", 80),
    }  # fmt: skip
    status, body, asked = 0, b"", False
    first, never = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await (first if leave == "told" else never).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, body
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            body += message.get("body", b"")
            if body:
                first.set()

    task = asyncio.ensure_future(app(scope, receive, send))
    if leave == "cancelled":
        await asyncio.wait_for(first.wait(), processes.WATCHDOG)
        task.cancel()
        await asyncio.wait([task])
    else:
        await task
    return status, body.decode()


def collected(store: Store) -> set[int]:
    """Return what is still held after a collection."""
    gc.collect()
    return store.held
