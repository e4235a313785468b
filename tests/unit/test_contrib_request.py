"""One version from the start of a request to its end, held meanwhile, whatever happens to its store."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from contrib_requests import Store, serving
from processes import Child, Link

import shmcow
from shmcow import Reader, StoreNotFoundError, Writer
from shmcow.contrib import needed
from shmcow.contrib.request import (
    AsyncBody,
    OutsideRequestError,
    RequestSnapshots,
    current_snapshot,
    current_value,
    holding,
)


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    with serving(name) as store:
        yield store


def test_request_keeps_its_version_while_newer_ones_are_published(store: Store) -> None:
    """The same snapshot at every call; the reader itself and the next request are further."""
    with holding(store.reader):
        first = current_snapshot(store.reader)
        store.publish()
        assert store.reader.get() == 2
        assert current_snapshot(store.reader) is current_snapshot() is first
        assert (first.version, current_value(store.reader), current_value()) == (1, 1, 1)
    with holding(store.reader):
        assert current_value() == 2


def test_version_is_held_until_the_request_ends(store: Store) -> None:
    """The kernel shows the hold, no writer reclaims the version, and both end with the request."""
    with holding(store.reader):
        for _ in range(shmcow.describe(store.name).retain + 2):
            store.publish()
        assert store.held == {1}
        assert store.reader.at(1).value == 1
    assert store.held == set()
    store.publish()
    with pytest.raises(shmcow.VersionGoneError):
        store.reader.at(1)


def test_exception_ends_the_request_like_anything_else(store: Store) -> None:
    """It passes, and nothing is held afterwards."""
    held = []

    def fail() -> None:
        with holding(store.reader):
            held.append(store.held)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert held == [{1}]
    assert store.held == set()
    with pytest.raises(OutsideRequestError):
        current_snapshot()


def test_outside_of_a_request_the_error_says_what_to_do(store: Store) -> None:
    """Nowhere at all, and in a thread of one's own."""
    with pytest.raises(OutsideRequestError, match="add SnapshotMiddleware to the application"):
        current_snapshot(store.reader)
    said: list[str] = []

    def ask() -> None:
        try:
            said.append(f"version {current_snapshot(store.reader).version}")
        except OutsideRequestError as exc:
            said.append(str(exc))

    with holding(store.reader):
        for target, arguments in ((ask, ()), (contextvars.copy_context().run, (ask,))):
            thread = threading.Thread(target=target, args=arguments)
            thread.start()
            thread.join()
    assert "copy_context" in said[0]
    assert said[1] == "version 1"


def test_task_that_outlives_its_request_is_told_so(store: Store) -> None:
    """Its context still has the request, whose snapshots were let go."""
    with holding(store.reader):
        context = contextvars.copy_context()
    assert store.held == set()
    with pytest.raises(OutsideRequestError, match="this request is over"):
        context.run(current_snapshot)


def test_request_may_end_in_another_context_than_it_began(store: Store) -> None:
    """As a framework's dependency may, when its client has gone: it is let go all the same."""
    request = holding(store.reader)
    contextvars.copy_context().run(request.__enter__)
    assert store.held == {1}
    contextvars.copy_context().run(request.__exit__, None, None, None)
    assert store.held == set()


def test_several_readers_are_told_apart(store: Store, name: str) -> None:
    """Each has its snapshot; without saying which, or with another one, it is an error that names them."""
    other, unknown = Reader(store.name), Reader(f"{name}-x")
    with holding(store.reader, other):
        store.publish()
        assert (current_value(store.reader), current_value(other)) == (1, 1)
        with pytest.raises(OutsideRequestError, match=f"this request has {name}, {name}"):
            current_snapshot()
        with pytest.raises(OutsideRequestError, match=f"no snapshot of <Reader {name}-x.*give it to the middleware"):
            current_snapshot(unknown)
        with pytest.raises(TypeError, match="takes a Reader, found 'x'"):
            current_snapshot("x")  # type: ignore[call-overload]
    other.close()


@pytest.mark.parametrize(("readers", "message"), [([], "at least one Reader"), (["x"], "expected a Reader, found 'x'")])
def test_only_readers_are_taken(readers: list[Reader], message: str) -> None:
    """What is no reader is refused when the application is made, not at its first request."""
    with pytest.raises(TypeError, match=message):
        holding(*readers)


def test_request_within_a_request_shares_its_version(store: Store) -> None:
    """Middleware that is there twice, or a job within a view: the version of the outermost, held until both end."""
    other = Reader(store.name)
    with holding(store.reader):
        store.publish()
        inner = RequestSnapshots((store.reader, other))
        with inner.current():
            assert (current_value(store.reader), current_value(other)) == (1, 2)
    assert store.held == {1, 2}
    inner.release()
    assert store.held == set()
    other.close()


def test_request_without_a_store_fails_only_where_it_asks(name: str) -> None:
    """No store yet: `current_snapshot` says so, `current_value` has the default, and both stay so to the end."""
    reader, bare = Reader(name, default=0), Reader(name)
    with holding(reader, bare), Writer(name, initial=1):
        assert (current_value(reader), reader.get()) == (0, 1)
        errors = set()
        for ask in 2 * (lambda: current_snapshot(reader), lambda: current_value(bare)):
            with pytest.raises(StoreNotFoundError, match=name) as raised:
                ask()
            errors.add(raised.value)
        assert len(errors) == 4  # each its own: one that is raised again and again would collect the frames of all
    with holding(reader, bare):
        assert (current_value(reader), current_value(bare)) == (1, 1)
    reader.close()
    bare.close()


def test_store_that_appears_while_a_request_begins_serves_it(name: str) -> None:
    """Not there at the first look, there at the second: the request has its version, not a value without one."""

    class LateReader(Reader[int]):
        def get(self) -> int:
            writers.append(Writer(name, initial=7))
            return super().get()

    writers: list[Writer[int]] = []
    with LateReader(name, default=0) as reader, holding(reader):
        assert (current_value(), current_snapshot().version) == (7, 1)
    for writer in writers:
        writer.close()


def test_last_good_value_serves_when_it_can_no_longer_be_held(name: str) -> None:
    """What the reader can decode was reclaimed, and then the store is destroyed: requests go on, and say it."""
    with Writer(name, initial=1, retain=0) as writer, Reader(name, type=int) as reader:
        assert reader.get() == 1
        writer.publish("no number")
        writer.publish("nor this")
        with holding(reader):
            assert (current_value(), current_snapshot().held) == (1, False)
        writer.destroy()
        with holding(reader):
            assert (current_value(), current_snapshot().held) == (1, False)


def test_requests_at_once_let_go_of_their_own_holds_only(store: Store) -> None:
    """Two on the same snapshot: one that ends twice does not end the other."""
    first, second = RequestSnapshots((store.reader,)), RequestSnapshots((store.reader,))
    first.release()
    first.release()
    assert store.held == {1}
    second.release()
    assert store.held == set()


def test_request_that_nobody_ends_is_let_go_when_it_is_collected(store: Store) -> None:
    """A server that forgets to close a response does not hold a version for ever."""
    snapshots = RequestSnapshots((store.reader,))
    assert store.held == {1}
    del snapshots
    assert store.held == set()


def test_stream_that_is_cancelled_lets_go_at_once(store: Store) -> None:
    """In the middle of a wait, and at its end, whoever still has the body."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    async def one() -> AsyncIterator[bytes]:
        yield b"only"

    async def main() -> None:
        body = AsyncBody(RequestSnapshots((store.reader,)), pieces())
        assert await anext(body) == b"first"
        step = asyncio.ensure_future(anext(body))
        await asyncio.sleep(0)
        assert store.held == {1}
        step.cancel()
        await asyncio.wait([step])
        assert store.held == set()
        body = AsyncBody(RequestSnapshots((store.reader,)), one())
        assert [piece async for piece in body] == [b"only"]
        assert store.held == set()

    asyncio.run(main())


def test_tasks_and_threads_of_many_requests_do_not_mix(store: Store) -> None:
    """Eight requests at a time, in turns with publishes, each with helpers in tasks and in threads."""
    seen: list[set[int]] = []

    async def part() -> int:
        await asyncio.sleep(0)
        return await asyncio.to_thread(current_value)

    async def request() -> None:
        with holding(store.reader):
            found = {current_value()}
            for _ in range(3):
                store.publish()
                found.update(await asyncio.gather(part(), part()))
            seen.append(found)

    async def main() -> None:
        for _ in range(4):
            await asyncio.gather(*(request() for _ in range(8)))

    asyncio.run(main())
    assert len(seen) == 32
    assert {len(versions) for versions in seen} == {1}
    assert len(set.union(*seen)) > 4


def test_child_forked_in_a_request_has_its_version(store: Store, spawn: Callable[..., Child]) -> None:
    """It goes on with it, and its end takes nothing away from the parent's request."""

    def body(link: Link) -> None:
        version = current_snapshot(store.reader).version
        with holding(store.reader):
            link.send((version, current_value()))

    with holding(store.reader):
        store.publish()
        child = spawn(body)
        assert child.recv() == (1, 1)
        child.done()
        assert store.held == {1}


def test_framework_that_is_missing_is_named_with_the_line_for_pip() -> None:
    """One that is not there at all, and one that is too old; what else fails keeps its words."""
    with (
        pytest.raises(ImportError, match=r"this needs no-such-framework, .*: pip install 'no-such-framework>=1.0'"),
        needed("no-such-framework", "1.0"),
    ):
        import no_such_framework  # noqa: F401
    with (
        pytest.raises(ImportError, match=r"needs pytest 999.1 or later, found \d.*: pip install 'pytest>=999.1'"),
        needed("pytest", "999.1"),
    ):
        pytest.fail("was not to be imported")
    with pytest.raises(ImportError, match=r"^No module named 'no_such_module'$"), needed("pytest", "8"):
        import no_such_module  # noqa: F401
