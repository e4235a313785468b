"""WSGI requests: one version from the application's call to the end of what it streams."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from contrib_requests import Store, collected, serving, wsgi_environ, wsgi_get

from shmcow import Reader, Writer
from shmcow.contrib.request import OutsideRequestError, current_snapshot, current_value, holding
from shmcow.contrib.wsgi import SnapshotMiddleware

Start = Callable[..., Any]


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    with serving(name) as store:
        yield store


def streaming(store: Store, *, fail: bool = False) -> Callable[[dict[str, Any], Start], Iterable[bytes]]:
    """Make an application that publishes in its call, and before each piece that it streams."""

    def app(_environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        before = current_value()
        store.publish()

        def stream() -> Iterator[bytes]:
            for _ in range(3):
                store.publish()
                yield b"%d %d\n" % (before, current_value())
                if fail:
                    raise ZeroDivisionError

        return stream()

    return app


def test_what_is_streamed_has_the_version_of_the_call(store: Store) -> None:
    """Held until the server closes the response; between its steps the thread has no request."""
    app = SnapshotMiddleware(streaming(store), store.reader)
    response = iter(app(wsgi_environ(), lambda *_: None))
    for _ in range(3):
        assert next(response) == b"1 1\n"
        assert store.held == {1}
        with pytest.raises(OutsideRequestError):
            current_snapshot()
    with pytest.raises(StopIteration):
        next(response)
    assert store.held == {1}
    response.close()  # type: ignore[attr-defined]
    assert store.held == set()


def test_application_that_is_a_generator_is_one_request(store: Store) -> None:
    """It runs only when the server asks for its first piece, and has the version of its call all the same."""

    def app(_environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"%d " % current_value()
        store.publish()
        yield b"%d" % current_value()

    middleware = SnapshotMiddleware(app, store.reader)
    response = middleware(wsgi_environ(), lambda *_: None)
    store.publish()
    assert b"".join(response) == b"1 1"
    response.close()  # type: ignore[attr-defined]
    assert store.held == set()
    # Never started: the server closes it, for its client has gone.
    response = middleware(wsgi_environ(), lambda *_: None)
    assert store.held == {3}
    response.close()  # type: ignore[attr-defined]
    assert store.held == set()


def test_what_is_held_between_the_steps_of_a_stream_stays_current(store: Store, name: str) -> None:
    """A generator in the middle of `with holding(...)`, which is not over; afterwards it is the request's again."""
    with Writer(f"{name}-b", initial=7) as writer, Reader(f"{name}-b") as other:

        def app(_environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            with holding(other):
                for _ in range(2):
                    yield b"%d %d\n" % (current_value(other), current_value(store.reader))
            with pytest.raises(OutsideRequestError):
                current_snapshot(other)
            yield b"%d\n" % current_value()

        response = SnapshotMiddleware(app, store.reader)(wsgi_environ(), lambda *_: None)
        assert list(response) == [b"7 1\n", b"7 1\n", b"1\n"]
        response.close()  # type: ignore[attr-defined]
        assert store.held == set()
        writer.destroy()


def test_client_that_leaves_ends_the_request(store: Store) -> None:
    """The server closes the response in the middle: the application's own clean-up still sees its version."""
    cleaned: list[int] = []

    def app(_environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield b"piece"
        finally:
            cleaned.append(current_value())

    response = iter(SnapshotMiddleware(app, store.reader)(wsgi_environ(), lambda *_: None))
    next(response)
    store.publish()
    response.close()  # type: ignore[attr-defined]
    assert cleaned == [1]
    assert store.held == set()
    with pytest.raises(StopIteration):
        next(response)


def test_application_that_raises_holds_nothing_afterwards(store: Store) -> None:
    """In its call, while it streams, and when it is closed."""

    def broken(_environ: dict[str, Any], _start_response: Start) -> Iterable[bytes]:
        assert store.held == {1}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wsgi_get(SnapshotMiddleware(broken, store.reader))
    assert store.held == set()
    with pytest.raises(ZeroDivisionError):
        wsgi_get(SnapshotMiddleware(streaming(store, fail=True), store.reader))
    assert store.held == set()

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([])

        def close(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wsgi_get(SnapshotMiddleware(lambda *_: Body(), store.reader))


def test_server_that_forgets_to_close_holds_nothing_for_ever(store: Store) -> None:
    """The response is collected, and its snapshot with it."""
    response = SnapshotMiddleware(streaming(store), store.reader)(wsgi_environ(), lambda *_: None)
    next(iter(response))
    assert store.held == {1}
    del response
    assert collected(store) == set()


def test_length_of_a_list_is_still_known(store: Store) -> None:
    """Servers take the Content-Length of a list of one piece from it."""
    response = SnapshotMiddleware(lambda *_: [b"all"], store.reader)(wsgi_environ(), lambda *_: None)
    assert len(response) == 1  # type: ignore[arg-type]
    assert list(response) == list(response) == [b"all"]
    response.close()  # type: ignore[attr-defined]
    response = SnapshotMiddleware(streaming(store), store.reader)(wsgi_environ(), lambda *_: None)
    assert not hasattr(response, "__len__")
    response.close()  # type: ignore[attr-defined]


def test_file_goes_to_the_server_as_it_is(store: Store) -> None:
    """A server sends its own wrapper of a file faster than a body that somebody else wrapped."""
    file = FileWrapper(io.BytesIO(b"content"))
    environ = wsgi_environ() | {"wsgi.file_wrapper": FileWrapper}
    assert SnapshotMiddleware(lambda *_: file, store.reader)(environ, lambda *_: None) is file
    assert store.held == set()


def test_middleware_is_valid_wsgi(store: Store) -> None:
    """To the server above it and to the application below it, by the standard library's validator."""
    app = SnapshotMiddleware(validator(streaming(store)), store.reader)
    assert wsgi_get(validator(app)) == (200, "1 1\n" * 3)
    assert wsgi_get(validator(app)) == (200, "5 5\n" * 3)


def test_what_is_no_application_is_refused(store: Store) -> None:
    """The arguments in the wrong order, and none."""
    with pytest.raises(TypeError, match="the first argument is the WSGI application, found <Reader"):
        SnapshotMiddleware(store.reader, streaming(store))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at least one Reader"):
        SnapshotMiddleware(streaming(store))
