"""Django: one version for each request, under WSGI and under ASGI, in views and in what they stream."""

from __future__ import annotations

import asyncio
import io
import sys
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from contrib_requests import Store, asgi_get, collected, serving, wsgi_environ, wsgi_get

try:
    import django
    from asgiref.sync import iscoroutinefunction
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import FileResponse, HttpResponse, HttpResponseBase, StreamingHttpResponse
    from django.test import override_settings
    from django.urls import path
    from django.utils.decorators import sync_and_async_middleware
except ImportError:
    pytest.skip("needs Django: pip install -e '.[servers]'", allow_module_level=True)

if not settings.configured:
    settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="-", LOGGING_CONFIG=None, DATABASES={})
    django.setup(set_prefix=False)

from shmcow.contrib.django import SnapshotMiddleware, current_snapshot, current_value
from shmcow.contrib.request import OutsideRequestError

MIDDLEWARE = "shmcow.contrib.django.SnapshotMiddleware"


class Shop(types.ModuleType):
    """The module that a project has its views, its middleware and its Reader in."""

    def __init__(self, store: Store) -> None:
        super().__init__("shmcow_test_shop")
        self.config = store.reader
        self.store = store
        self.urlpatterns = [
            path(name.replace("_", "-"), getattr(self, name))
            for name in ("plain", "asynchronous", "stream", "async_stream", "broken", "file")
        ]

    @staticmethod
    @sync_and_async_middleware
    def outer(get_response: Any) -> Any:
        """A middleware that stands before ours: outside of the request, and of either kind."""

        def check(response: Any) -> Any:
            assert isinstance(response, HttpResponseBase)
            with pytest.raises(OutsideRequestError):
                current_snapshot()
            return response

        async def serve(request: Any) -> Any:
            return check(await get_response(request))

        return serve if iscoroutinefunction(get_response) else lambda request: check(get_response(request))

    def look(self) -> str:
        before = current_value()
        self.store.publish()
        return f"{before} {current_snapshot(self.config).version} {sorted(self.store.held)}\n"

    def plain(self, _request: Any) -> HttpResponse:
        return HttpResponse(self.look())

    async def asynchronous(self, _request: Any) -> HttpResponse:
        return HttpResponse(self.look())

    def stream(self, _request: Any) -> StreamingHttpResponse:
        return StreamingHttpResponse(self.look() for _ in range(2))

    async def async_stream(self, _request: Any) -> StreamingHttpResponse:
        async def pieces() -> AsyncIterator[str]:
            for _ in range(2):
                yield self.look()
                await asyncio.sleep(0)

        return StreamingHttpResponse(pieces())

    def broken(self, _request: Any) -> HttpResponse:
        raise ZeroDivisionError

    def file(self, _request: Any) -> FileResponse:
        return FileResponse(io.BytesIO(b"content"))


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    with serving(name) as store:
        yield store


@pytest.fixture
def shop(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    shop = Shop(store)
    monkeypatch.setitem(sys.modules, shop.__name__, shop)
    readers = [f"{shop.__name__}.config"]
    middleware = [f"{shop.__name__}.outer", MIDDLEWARE]
    with override_settings(ROOT_URLCONF=shop.__name__, MIDDLEWARE=middleware, SHMCOW_READERS=readers):
        yield shop


LOOK = "1 1 [1]\n"


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(("url", "body"), [("/plain", LOOK), ("/asynchronous", LOOK), ("/stream", 2 * LOOK)])
def test_request_has_one_version_under_wsgi(store: Store, url: str, body: str) -> None:
    """Views of both kinds, and what they stream; the next request is further."""
    app = WSGIHandler()
    assert wsgi_get(app, url) == (200, body)
    assert store.held == set()
    version = store.writer.version
    assert wsgi_get(app, url) == (200, body.replace("1", str(version)))


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(("url", "body"), [("/plain", LOOK), ("/asynchronous", LOOK), ("/async-stream", 2 * LOOK)])
def test_request_has_one_version_under_asgi(store: Store, url: str, body: str) -> None:
    """Views of both kinds, and what they stream; the next request is further."""
    app = ASGIHandler()
    assert asyncio.run(asgi_get(app, url)) == (200, body)
    assert store.held == set()
    version = store.writer.version
    assert asyncio.run(asgi_get(app, url)) == (200, body.replace("1", str(version)))


@pytest.mark.usefixtures("shop")
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators:Warning")
def test_stream_of_the_other_kind_has_one_version(store: Store) -> None:
    """A synchronous iterator under ASGI: Django itself warns that it is read as a whole first."""
    assert asyncio.run(asgi_get(ASGIHandler(), "/stream")) == (200, 2 * LOOK)
    assert collected(store) == set()


@pytest.mark.usefixtures("shop")
def test_view_that_raises_holds_nothing_afterwards(store: Store) -> None:
    """Django makes a page of it, within the middleware or around it."""
    assert wsgi_get(WSGIHandler(), "/broken")[0] == 500
    assert asyncio.run(asgi_get(ASGIHandler(), "/broken"))[0] == 500
    assert store.held == set()
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(ZeroDivisionError):
        wsgi_get(WSGIHandler(), "/broken")


@pytest.mark.usefixtures("shop")
def test_client_that_leaves_ends_the_request(store: Store) -> None:
    """After the first piece of a stream, and before it."""
    for pieces in (1, 0):
        response = WSGIHandler()(wsgi_environ("/stream"), lambda *_: None)
        parts = iter(response)
        for _ in range(pieces):
            next(parts)
        assert store.held
        response.close()
        assert store.held == set()
    asyncio.run(asgi_get(ASGIHandler(), "/async-stream", leave="told"))
    assert collected(store) == set()


@pytest.mark.usefixtures("shop")
def test_file_goes_to_the_server_as_it_is(store: Store) -> None:
    """Nothing of it is computed any more: the snapshot is let go at once, and the server may send it its own way."""
    wrapped: list[Any] = []

    def file_wrapper(file: Any, _size: int) -> Any:
        wrapped.append(file)
        return iter([file.read()])

    response = WSGIHandler()(wsgi_environ("/file") | {"wsgi.file_wrapper": file_wrapper}, lambda *_: None)
    assert store.held == set()
    assert b"".join(response) == b"content"
    assert len(wrapped) == 1


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("readers", "message"),
    [
        (None, "needs SHMCOW_READERS in the settings.*found None"),
        ([], r"needs SHMCOW_READERS in the settings.*found \[\]"),
        ("shop.config", "needs SHMCOW_READERS in the settings.*found 'shop.config'"),
        (["shmcow_test_shop.look"], "expected a Reader at 'shmcow_test_shop.look', found <"),
    ],
)
def test_wrong_settings_are_told_when_django_starts(readers: Any, message: str) -> None:
    """Not at the first request."""
    with override_settings(SHMCOW_READERS=readers), pytest.raises(ImproperlyConfigured, match=message):
        WSGIHandler()


def test_reader_itself_may_stand_in_the_settings(shop: Shop, store: Store) -> None:
    """Settings that import it need no path."""
    with override_settings(SHMCOW_READERS=(store.reader,)):
        middleware = SnapshotMiddleware(lambda _request: HttpResponse(shop.look()))
        assert middleware(None).content.decode() == LOOK  # type: ignore[arg-type]
