"""ASGI requests: one version until the application's call ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from contrib_requests import Store, asgi_get, serving

from shmcow.contrib.asgi import SnapshotMiddleware
from shmcow.contrib.request import OutsideRequestError, current_snapshot, current_value


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    with serving(name) as store:
        yield store


async def send_piece(send: Any, piece: str, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": piece.encode(), "more_body": more})


def test_what_is_streamed_has_the_version_of_the_start(store: Store) -> None:
    """Held until the call ends: after the last piece, and after work in its background."""
    after: list[object] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for more in (True, True, False):
            store.publish()
            await send_piece(send, f"{current_value()} ", more=more)
        after.extend([current_value(), await asyncio.to_thread(current_value), store.held])

    assert asyncio.run(asgi_get(SnapshotMiddleware(app, store.reader))) == (200, "1 1 1 ")
    assert after == [1, 1, {1}]
    assert store.held == set()


def test_client_that_leaves_ends_the_request(store: Store) -> None:
    """The server cancels the call in the middle of a stream; what it holds goes with it."""
    found: list[object] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                store.publish()
                await send_piece(send, "piece")
                await asyncio.sleep(0)
        finally:
            found.extend([current_value(), store.held])

    asyncio.run(asgi_get(SnapshotMiddleware(app, store.reader), leave="cancelled"))
    assert found == [1, {1}]
    assert store.held == set()


def test_application_that_raises_holds_nothing_afterwards(store: Store) -> None:
    """The server gets the exception."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        assert store.held == {1}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(asgi_get(SnapshotMiddleware(app, store.reader)))
    assert store.held == set()


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_request_passes_without_a_snapshot(store: Store, kind: str) -> None:
    """A connection that lives for hours holds nothing, and is told to take one for each message."""
    passed: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        assert store.held == set()
        with pytest.raises(OutsideRequestError, match="holding"):
            current_snapshot()
        passed.append(scope["type"])

    asyncio.run(asgi_get(SnapshotMiddleware(app, store.reader), kind=kind))
    assert passed == [kind]


def test_requests_at_once_each_have_their_version(store: Store) -> None:
    """One that began before a publish and one that began after it, in one event loop."""

    async def both() -> list[Any]:
        arrived = asyncio.Barrier(2)

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            before = current_value()
            store.publish()
            await arrived.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send_piece(send, f"{before} {current_value()} {sorted(store.held)}", more=False)
            await arrived.wait()

        middleware = SnapshotMiddleware(app, store.reader)
        return await asyncio.gather(asgi_get(middleware), asgi_get(middleware))

    assert asyncio.run(both()) == [(200, "1 1 [1, 2]"), (200, "2 2 [1, 2]")]


def test_what_is_no_application_is_refused(store: Store) -> None:
    """The arguments in the wrong order, and none."""
    with pytest.raises(TypeError, match="the first argument is the ASGI application, found <Reader"):
        SnapshotMiddleware(store.reader)  # type: ignore[arg-type]
