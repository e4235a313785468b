"""Flask: one version for each request, in views of every kind and in what they stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from contrib_requests import Store, serving, wsgi_environ, wsgi_get

from shmcow import StoreNotFoundError

try:
    from flask import Flask, Response, g, stream_with_context
except ImportError:
    pytest.skip("needs Flask: pip install -e '.[servers]'", allow_module_level=True)

from shmcow.contrib.flask import Snapshots, current_snapshot, current_value


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    with serving(name) as store:
        yield store


@pytest.fixture
def app(store: Store) -> Flask:
    """An application with a view of each kind; each publishes between the moments at which it looks."""
    app = Flask("shop")
    Snapshots(store.reader).init_app(app)

    def look_twice() -> str:
        before = current_value()
        store.publish()
        return f"{before} {current_snapshot(store.reader).version} {sorted(store.held)}"

    @app.before_request
    def remember() -> None:
        g.first = current_value()

    @app.teardown_request
    def check(_exc: BaseException | None) -> None:
        assert current_value() == g.first

    @app.get("/plain")
    def plain() -> str:
        return look_twice()

    @app.get("/async")
    async def asynchronous() -> str:
        return look_twice()

    @app.get("/stream")
    def stream() -> Response:
        return Response(f"{look_twice()}\n" for _ in range(2))

    @app.get("/with-context")
    def with_context() -> Response:
        def pieces() -> Iterator[str]:
            for _ in range(2):
                yield f"{g.first} {look_twice()}\n"

        return Response(stream_with_context(pieces()))

    @app.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError

    @app.get("/handled")
    def handled() -> str:
        raise LookupError

    @app.errorhandler(LookupError)
    def handle(_exc: LookupError) -> tuple[str, int]:
        return look_twice(), 418

    return app


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/plain", (200, "1 1 [1]")),
        ("/async", (200, "1 1 [1]")),
        ("/stream", (200, "1 1 [1]\n1 1 [1]\n")),
        ("/with-context", (200, "1 1 1 [1]\n1 1 1 [1]\n")),
        ("/handled", (418, "1 1 [1]")),
    ],
)
def test_request_has_one_version(app: Flask, store: Store, path: str, expected: tuple[int, str]) -> None:
    """Views, async views, streams and error handlers, by WSGI and by the test client; the next request is further."""
    assert wsgi_get(app, path) == expected
    assert store.held == set()
    version = store.writer.version
    answer = app.test_client().get(path)
    assert answer.get_data(as_text=True) == expected[1].replace("1", str(version))
    answer.close()


def test_view_that_raises_holds_nothing_afterwards(app: Flask, store: Store) -> None:
    """With a page for it, and with the exception handed on to the server."""
    assert wsgi_get(app, "/broken")[0] == 500
    assert store.held == set()
    app.testing = True
    with pytest.raises(ZeroDivisionError):
        wsgi_get(app, "/broken")


def test_client_that_leaves_ends_the_request(app: Flask, store: Store) -> None:
    """After the first piece of a stream, and before it."""
    for pieces in (1, 0):
        response = app(wsgi_environ("/with-context"), lambda *_: None)
        parts = iter(response)
        for _ in range(pieces):
            next(parts)
        assert store.held
        response.close()  # type: ignore[attr-defined]
        assert store.held == set()


def test_threads_serve_requests_at_once(app: Flask) -> None:
    """Each request in a thread of its own, all publishing: each answer is of one version."""
    answers: list[tuple[int, str]] = []

    def ask() -> None:
        answers.extend(wsgi_get(app, "/with-context") for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 40
    for status, body in answers:
        versions = {line.split(" [")[0] for line in body.splitlines()}
        assert status == 200
        assert len(versions) == 1
        assert len(set(versions.pop().split())) == 1


def test_request_without_a_store_fails_only_where_it_asks(store: Store, name: str) -> None:
    """A health check answers while there is no store yet."""
    app = Flask("shop")
    missing = type(store.reader)(f"{name}-missing")
    Snapshots(missing).init_app(app)
    app.add_url_rule("/health", view_func=lambda: "fine")
    app.add_url_rule("/", "index", view_func=lambda: str(current_value()))
    app.testing = True
    assert wsgi_get(app, "/health") == (200, "fine")
    with pytest.raises(StoreNotFoundError, match=f"{name}-missing"):
        wsgi_get(app)


def test_what_is_no_flask_application_is_refused(store: Store) -> None:
    """Another WSGI application has `shmcow.contrib.wsgi`."""
    with pytest.raises(TypeError, match=r"init_app\(\) takes a Flask application"):
        Snapshots(store.reader).init_app(lambda *_: [])  # type: ignore[arg-type]
