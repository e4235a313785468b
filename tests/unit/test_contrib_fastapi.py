"""FastAPI and Starlette: one version for each request, as a dependency and from the context."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from contrib_requests import Store, asgi_get, serving

from shmcow import Reader, Snapshot, StoreNotFoundError, Writer

try:
    from fastapi import BackgroundTasks, Depends, FastAPI
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route
except ImportError:
    pytest.skip("needs FastAPI: pip install -e '.[servers]'", allow_module_level=True)

from shmcow.contrib.fastapi import (
    SnapshotMiddleware,
    SnapshotOf,
    ValueOf,
    current_snapshot,
    current_value,
    holding,
)


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    with serving(name) as store:
        yield store


@pytest.fixture
def after() -> list[Any]:
    """What was seen in the background, after the response."""
    return []


@pytest.fixture(params=["with middleware", "dependency alone"])
def app(request: pytest.FixtureRequest, store: Store, after: list[Any]) -> FastAPI:
    """An application with an endpoint of each kind; each publishes between the moments at which it looks."""
    app = FastAPI()
    if request.param == "with middleware":
        app.add_middleware(SnapshotMiddleware, store.reader)
    current = SnapshotOf(store.reader)

    def earlier(snapshot: Annotated[Snapshot[int], current]) -> int:
        store.publish()
        return snapshot.value

    current_type = Annotated[Snapshot[int], current]
    again_type = Annotated[Snapshot[int], SnapshotOf(store.reader)]  # another dependency of the same reader
    earlier_type = Annotated[int, Depends(earlier)]

    def look(*versions: int) -> str:
        store.publish()
        return " ".join(str(version) for version in (*versions, current_value(), sorted(store.held)))

    async def pieces(snapshot: Snapshot[int]) -> AsyncIterator[str]:
        for _ in range(2):
            yield look(snapshot.version) + "\n"
            await asyncio.sleep(0)

    @app.get("/async")
    async def asynchronous(earlier: earlier_type, snapshot: current_type, again: again_type) -> PlainTextResponse:
        return PlainTextResponse(look(earlier, snapshot.value, again.value))

    @app.get("/threaded")
    def threaded(earlier: earlier_type, snapshot: current_type, again: again_type) -> PlainTextResponse:
        return PlainTextResponse(look(earlier, snapshot.value, again.value))

    @app.get("/stream")
    async def stream(snapshot: current_type) -> StreamingResponse:
        return StreamingResponse(pieces(snapshot))

    @app.get("/threaded-stream")
    def threaded_stream(snapshot: current_type) -> StreamingResponse:
        return StreamingResponse(look(snapshot.version) + "\n" for _ in range(2))

    @app.get("/background")
    async def background(_snapshot: current_type, tasks: BackgroundTasks) -> PlainTextResponse:
        tasks.add_task(lambda: after.append(look()))
        return PlainTextResponse(look())

    @app.get("/broken")
    async def broken(_snapshot: current_type) -> None:
        raise ZeroDivisionError

    return app


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/async", "1 1 1 1 [1]"),
        ("/threaded", "1 1 1 1 [1]"),
        ("/stream", "1 1 [1]\n1 1 [1]\n"),
        ("/threaded-stream", "1 1 [1]\n1 1 [1]\n"),
        ("/background", "1 [1]"),
    ],
)
def test_request_has_one_version(app: FastAPI, store: Store, after: list[Any], path: str, body: str) -> None:
    """Endpoints of both kinds, their dependencies, streams and background tasks; the next request is further."""
    assert asyncio.run(asgi_get(app, path)) == (200, body)
    assert store.held == set()
    assert after == ([body] if path == "/background" else [])
    version = store.writer.version
    assert asyncio.run(asgi_get(app, path)) == (200, body.replace("1", str(version)))


def test_endpoint_that_raises_holds_nothing_afterwards(app: FastAPI, store: Store) -> None:
    """The server gets the exception, as FastAPI hands it on."""
    with pytest.raises(ZeroDivisionError):
        asyncio.run(asgi_get(app, "/broken"))
    assert store.held == set()


def test_client_that_leaves_ends_the_request(app: FastAPI, store: Store) -> None:
    """After the first piece of a stream."""
    assert asyncio.run(asgi_get(app, "/stream", leave="told"))[1].startswith("1 1 [1]\n")
    assert store.held == set()


def test_request_without_a_store_fails_only_where_it_asks(name: str) -> None:
    """A health check answers while there is no store yet; the dependency says what is missing."""
    missing = Reader(name)
    app = FastAPI()
    app.add_middleware(SnapshotMiddleware, missing)

    @app.get("/health")
    async def health() -> PlainTextResponse:
        return PlainTextResponse("fine")

    @app.get("/")
    async def index(_snapshot: Annotated[Snapshot[int], SnapshotOf(missing)]) -> None:
        pytest.fail("was not to be called")

    assert asyncio.run(asgi_get(app, "/health")) == (200, "fine")
    with pytest.raises(StoreNotFoundError, match=name):
        asyncio.run(asgi_get(app))


@pytest.fixture
def readers(name: str) -> Iterator[tuple[Reader[int], Reader[int]]]:
    """A reader with a default and one without; FastAPI keeps dependencies, so they are closed."""
    with Reader(name, type=int, default=7) as reader, Reader(name, type=int) as bare:
        yield reader, bare


@pytest.mark.parametrize("with_middleware", [True, False])
def test_reader_with_a_default_answers_before_there_is_a_version(
    name: str, readers: tuple[Reader[int], Reader[int]], with_middleware: bool
) -> None:
    """Its default, to the request's end, then what is published; a reader without one fails, and says why."""
    reader, bare = readers
    app = FastAPI()
    if with_middleware:
        app.add_middleware(SnapshotMiddleware, reader, bare)

    def earlier(value: Annotated[int, ValueOf(reader)]) -> int:
        with Writer(name, type=int) as writer:
            writer.publish(8)
        return value

    @app.get("/")
    def index(earlier: Annotated[int, Depends(earlier)], value: Annotated[int, ValueOf(reader)]) -> PlainTextResponse:
        return PlainTextResponse(f"{earlier} {value}")

    @app.get("/bare")
    async def without(value: Annotated[int, ValueOf(bare)]) -> PlainTextResponse:
        return PlainTextResponse(str(value))

    with pytest.raises(StoreNotFoundError, match=name):
        asyncio.run(asgi_get(app, "/bare"))
    assert asyncio.run(asgi_get(app)) == (200, "7 7")
    assert asyncio.run(asgi_get(app)) == (200, "8 8")
    assert asyncio.run(asgi_get(app, "/bare")) == (200, "8")


def test_starlette_takes_the_middleware_as_it_is(store: Store, after: list[Any]) -> None:
    """Its endpoints in the event loop and in threads, a stream, and a background task."""

    async def asynchronous(_request: Any) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            for _ in range(2):
                store.publish()
                yield f"{current_value()} "

        task = BackgroundTask(lambda: after.append(current_snapshot(store.reader).version))
        return StreamingResponse(pieces(), background=task)

    def threaded(_request: Any) -> PlainTextResponse:
        before = current_value()
        store.publish()
        with holding(store.reader):
            return PlainTextResponse(f"{before} {current_value()}")

    app = Starlette(routes=[Route("/", asynchronous), Route("/threaded", threaded)])
    app.add_middleware(SnapshotMiddleware, store.reader)
    assert asyncio.run(asgi_get(app)) == (200, "1 1 ")
    assert after == [1]
    assert asyncio.run(asgi_get(app, "/threaded")) == (200, "3 3")


def test_what_is_no_reader_is_refused() -> None:
    """When the application is made."""
    for dependency in (SnapshotOf, ValueOf):
        with pytest.raises(TypeError, match="expected a Reader, found 'config'"):
            dependency("config")  # type: ignore[arg-type]
