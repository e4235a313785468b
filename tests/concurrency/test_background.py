"""``refresh="background"`` and ``attach_timeout``: what get() pays for, and in which thread."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import SHM, WATCHDOG, Child, Link, until, value_of, version_in
from sleepers import Waiter, until_asleep

from shmcow import (
    ClosedError,
    DecodeError,
    NotPublishedError,
    Reader,
    StoreNotFoundError,
    Writer,
)

_PYTHON_LIBC = ctypes.PyDLL(None)  # the interpreter lock stays held over fork, as os.fork() has it
FORKS = [pytest.param(os.fork, id="os.fork"), pytest.param(_PYTHON_LIBC.fork, id="fork in C")]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail a test after which there are more threads than before."""
    before = threading.active_count()
    yield
    until(lambda: threading.active_count() <= before, f"threads end: {threading.enumerate()}")


def _refreshers() -> int:
    return sum(thread.name == "shmcow-refresh" for thread in threading.enumerate())


class Transform:
    """Notes which thread transforms which version, and waits at one version for permission."""

    def __init__(self, blocked: int = 0) -> None:
        self.calls: list[tuple[int, int]] = []  # (version, thread)
        self.blocked = blocked
        self.inside, self.go_on = threading.Event(), threading.Event()

    def __call__(self, value: Any) -> Any:
        version = version_in(value)
        self.calls.append((version, threading.get_ident()))
        if version == self.blocked:
            self.inside.set()
            assert self.go_on.wait(WATCHDOG)
        return version

    def here(self) -> list[int]:
        """Return the versions that the calling thread transformed."""
        return [version for version, thread in self.calls if thread == threading.get_ident()]


# ---- background ----


def test_get_after_a_publish_returns_the_old_value_while_a_thread_decodes(name: str) -> None:
    """From the very first publish on, whoever calls get() pays for no decoding, however long that takes."""
    transform = Transform(blocked=2)
    with (
        Writer(name, initial=value_of(1)) as writer,
        Reader(name, refresh="background", transform=transform) as reader,
    ):
        assert reader.get() == 1
        writer.publish(value_of(2))
        assert reader.get() == 1
        assert transform.inside.wait(WATCHDOG)
        assert {reader.get() for _ in range(5000)} == {1}
        assert (reader.version, reader.snapshot().version, reader.problem) == (1, 1, None)
        transform.go_on.set()
        until(lambda: reader.get() == 2, "the value arrives")
        assert reader.snapshot().version == 2
        assert transform.here() == [1]


@pytest.mark.parametrize("method", ["get", "snapshot"])
def test_calling_thread_decodes_only_the_first_value(name: str, method: str) -> None:
    """Of many versions the caller decodes the first, for want of another value; the thread does all others."""
    transform = Transform()
    with (
        Writer(name, initial=value_of(1)) as writer,
        Reader(name, refresh="background", transform=transform) as reader,
    ):
        read = {"get": reader.get, "snapshot": lambda: reader.snapshot().value}[method]
        for version in range(1, 30):
            until(lambda version=version: read() == version, "the value arrives")
            writer.publish(value_of(version + 1))
        assert transform.here() == [1]
        assert _refreshers() == 1


def test_many_threads_share_one_refreshing_thread(name: str) -> None:
    """However many threads call get() first, there is one thread that refreshes."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name, refresh="background") as reader:
        barrier = threading.Barrier(8)

        def read() -> None:
            barrier.wait()
            until(lambda: version_in(reader.get()) == 2, "the value arrives")

        waiters = [Waiter(read) for _ in range(8)]
        until(lambda: barrier.n_waiting == 0 and reader._cached(), "all have read")
        writer.publish(value_of(2))
        for waiter in waiters:
            waiter.result()
        assert _refreshers() == 1


def test_no_thread_before_there_is_a_value(name: str) -> None:
    """Neither making a reader nor asking it in vain starts a thread; the first value does."""
    with Reader(name, refresh="background", default="nothing") as reader:
        assert reader.get() == "nothing"
        with Writer(name) as writer:
            assert reader.get() == "nothing"
            assert _refreshers() == 0
            writer.publish(value_of(1))
            assert version_in(reader.get()) == 1
            assert _refreshers() == 1


def test_bad_version_is_raised_when_told_to(name: str) -> None:
    """With ``on_bad="raise"`` get() raises once the thread has found out, until there is a good version."""
    with Writer(name, initial=1) as writer, Reader(name, type=int, refresh="background", on_bad="raise") as reader:
        assert reader.get() == 1
        writer.publish("no number")
        until(lambda: reader.problem is not None, "the thread has looked")
        for _ in range(3):
            with pytest.raises(DecodeError, match="version 2"):
                reader.get()
        writer.publish(3)
        until(lambda: reader.problem is None, "the thread has looked")
        assert (reader.get(), reader.failures) == (3, 1)


def test_bad_version_is_kept_away(name: str) -> None:
    """With ``on_bad="keep"`` get() goes on with the last good value, and the thread goes on, too."""
    with Writer(name, initial=1) as writer, Reader(name, type=int, refresh="background") as reader:
        assert reader.get() == 1
        writer.publish("no number")
        until(lambda: reader.problem is not None, "the thread has looked")
        assert reader.get() == 1
        writer.publish(3)
        until(lambda: reader.get() == 3, "the value arrives")
        assert reader.failures == 1


def test_destroyed_store_and_its_successor(name: str) -> None:
    """The thread finds the end of a store, and then the values of a new one, while get() returns what it has."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name, refresh="background") as reader:
        assert version_in(reader.get()) == 1
        writer.destroy()
        until(lambda: reader.problem is not None, "the thread has seen the end")
        assert version_in(reader.get()) == 1
        writer.publish(value_of(7))
        until(lambda: version_in(reader.get()) == 7, "the new store's value arrives")
        assert reader.problem is None
        (SHM / f"shmcow.{name}").unlink()
        writer.publish(value_of(9))
        until(lambda: version_in(reader.get()) == 9, "that of one that was removed, and made again, too")


@pytest.mark.parametrize("end", ["close", "garbage"])
def test_thread_and_markers_end_with_the_reader(name: str, end: str) -> None:
    """Closing the reader, or dropping it, ends the thread in its sleep; no marker, descriptor or map is left."""
    Writer(name, initial=value_of(1)).close()
    reader = Reader(name, refresh="background")
    assert version_in(reader.get()) == 1
    until_asleep(1)
    assert processes.seen_by(os.getpid(), name) == {1}
    if end == "close":
        reader.close()
        with pytest.raises(ClosedError):
            reader.get()
    else:
        del reader
        gc.collect()
    until(lambda: _refreshers() == 0, "the thread ends")
    assert (processes.shm_descriptors(), processes.locks_of("self")) == ([], [])
    assert f"shmcow.{name}" not in Path("/proc/self/maps").read_text()


def test_close_while_the_thread_decodes(name: str) -> None:
    """What the thread decodes while the reader is closed is dropped, and nothing stays marked."""
    transform = Transform(blocked=2)
    with Writer(name, initial=value_of(1)) as writer:
        reader = Reader(name, refresh="background", transform=transform)
        assert reader.get() == 1
        writer.publish(value_of(2))
        assert transform.inside.wait(WATCHDOG)
        reader.close()
        transform.go_on.set()
        until(lambda: _refreshers() == 0, "the thread ends")
        assert processes.locks_of("self") == []
        assert (reader._cached(), reader._store) == (None, None)


def test_copy_of_a_reader_refreshes_in_the_background(name: str) -> None:
    """A pickled reader keeps how it refreshes, and has a thread of its own."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name, refresh="background") as reader:
        assert version_in(reader.get()) == 1
        with pickle.loads(pickle.dumps(reader)) as copy:
            assert version_in(copy.get()) == 1
            assert _refreshers() == 2
            writer.publish(value_of(2))
            until(lambda: version_in(copy.get()) == version_in(reader.get()) == 2, "the value arrives")


def test_wait_and_watch_beside_the_thread(name: str) -> None:
    """Waiting works with either kind of refresh, and all return the same object."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name, refresh="background") as reader:
        watch = reader.watch()
        assert next(watch) is reader.snapshot()
        waiters = [Waiter(reader.wait).until_asleep(), Waiter(lambda: next(watch)).until_asleep()]
        writer.publish(value_of(2))
        first, second = (waiter.result() for waiter in waiters)
        assert first.version == 2
        assert first is second is reader.snapshot()


def _get_in_child(link: Link, reader: Reader[Any], transform: Transform) -> None:
    transform.calls.clear()
    link.send(reader.get())
    wanted = link.recv()
    until(lambda: reader.get() == wanted, "the value arrives")
    link.send((transform.here(), _refreshers()))
    link.recv()


@pytest.mark.parametrize("fork", FORKS)
def test_forked_child_refreshes_in_a_thread_of_its_own(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """In a child, too, get() decodes nothing, and the child counts as a reader of its own."""
    transform = Transform()
    with (
        Writer(name, initial=value_of(1)) as writer,
        Reader(name, refresh="background", transform=transform) as reader,
    ):
        assert reader.get() == 1
        until_asleep(1)
        child = spawn(_get_in_child, reader, transform, fork=fork)
        assert child.recv() == 1
        writer.publish(value_of(2))
        assert child.ask(2) == ([], 1)
        assert processes.seen_by(child.pid, name) == {2}
        until(lambda: reader.get() == 2, "the value arrives in the parent")
        child.send("end")
        child.done()


# ---- attach_timeout ----


def test_store_made_by_another_process_within_the_time(name: str, spawn: Callable[..., Child]) -> None:
    """get(), snapshot() and at() wait for a store, and then for its first version, that another process makes."""

    def make(link: Link) -> None:
        link.recv()
        writer = Writer(name)
        link.send("empty")
        link.recv()
        link.send(writer.publish(value_of(1)))

    child = spawn(make)
    readers = [Reader(name, attach_timeout=WATCHDOG) for _ in range(3)]
    calls = [readers[0].get, lambda: readers[1].snapshot().value, lambda: readers[2].at(1).value]
    waiters = [Waiter(call).until_asleep() for call in calls]
    assert child.ask("make") == "empty"
    until(lambda: all(type(reader.problem) is NotPublishedError for reader in readers), "all have found it empty")
    assert all(waiter.waits for waiter in waiters)
    assert child.ask("publish") == 1
    assert [version_in(waiter.result()) for waiter in waiters] == [1, 1, 1]
    for reader in readers:
        reader.close()


def test_first_version_wakes_whoever_waits_for_it(name: str) -> None:
    """An empty store is slept on, not polled: its first version wakes."""
    with Writer(name) as writer, Reader(name, attach_timeout=WATCHDOG) as reader:
        waiter = Waiter(reader.get).until_asleep()
        writer.publish(value_of(1))
        assert version_in(waiter.result()) == 1


def test_time_counts_from_the_first_call(name: str) -> None:
    """The time is spent once for each process: later calls fail at once, with the reason."""
    reader = Reader(name, attach_timeout=0.05)
    for _ in range(3):
        with pytest.raises(StoreNotFoundError):
            reader.get()
    deadline = reader._attach_until
    with Writer(name) as writer:
        for _ in range(3):
            with pytest.raises(NotPublishedError):
                reader.get()
        assert reader._attach_until == deadline
        writer.publish(value_of(1))
        assert version_in(reader.get()) == 1
    reader.close()


def test_default_comes_after_the_time(name: str, spawn: Callable[..., Child]) -> None:
    """With a default get() waits first, once, and then returns it; a child has the time for itself."""

    def get(link: Link) -> None:
        before = reader._attach_until
        link.send((reader.get(), before != reader._attach_until))

    reader = Reader(name, attach_timeout=0.05, default="nothing")
    assert [reader.get() for _ in range(3)] == ["nothing"] * 3
    assert spawn(get).recv() == ("nothing", True)
    reader.close()


def test_close_ends_the_time(name: str) -> None:
    """A get() that waits for a store ends when its reader is closed."""
    reader = Reader(name, attach_timeout=3600)
    waiter = Waiter(reader.get).until_asleep()
    reader.close()
    with pytest.raises(ClosedError):
        waiter.result()


def test_error_that_time_does_not_mend_is_raised_at_once(name: str) -> None:
    """A first version that cannot be used is no reason to wait."""
    with (
        Writer(name, initial="no number"),
        Reader(name, type=int, attach_timeout=3600) as reader,
        pytest.raises(DecodeError),
    ):
        reader.get()
