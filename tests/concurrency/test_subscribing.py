"""Subscriptions: who is called, when, with what, in which process, and when no more."""

from __future__ import annotations

import collections
import ctypes
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processes import WATCHDOG, Child, Link, until, value_of
from sleepers import until_asleep

from shmcow import ClosedError, Raw, Reader, Snapshot, Writer

_PYTHON_LIBC = ctypes.PyDLL(None)  # the interpreter lock stays held over fork, as os.fork() has it
FORKS = [pytest.param(os.fork, id="os.fork"), pytest.param(_PYTHON_LIBC.fork, id="fork in C")]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail a test after which there are more threads than before."""
    before = threading.active_count()
    yield
    until(lambda: threading.active_count() <= before, f"threads end: {threading.enumerate()}")


class Calls:
    """A callback that notes with what it was called, by version, and in which thread."""

    def __init__(self) -> None:
        self._calls: collections.deque[tuple[Any, Any]] = collections.deque()  # no lock that a fork could copy
        self.threads: list[int] = []

    def __call__(self, old: Snapshot[Any] | None, new: Snapshot[Any]) -> None:
        self.threads.append(threading.get_ident())
        self._calls.append((old, new))

    def snapshots(self) -> tuple[Any, Any]:
        """Return the arguments of the next call."""
        until(lambda: self._calls, "the callback is called")
        return self._calls.popleft()

    def versions(self) -> tuple[int | None, int]:
        """Return the versions of the next call's arguments."""
        old, new = self.snapshots()
        return old and old.version, new.version

    @property
    def none(self) -> bool:
        """Whether there was no further call."""
        return not self._calls


def test_callback_gets_the_current_version_and_then_each_new_one(name: str) -> None:
    """The first call has no old snapshot; later ones get the very snapshot that they got as new."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        calls = Calls()
        stop = reader.subscribe(calls)
        old, first = calls.snapshots()
        assert (old, first.version) == (None, 1)
        assert first is reader.snapshot()
        for version in range(2, 5):
            writer.publish(value_of(version))
            old, new = calls.snapshots()
            assert old is first
            assert new.version == version
            first = new
        assert len(set(calls.threads)) == 1
        assert threading.get_ident() not in calls.threads
        assert stop.active
        assert repr(stop) == f"<Subscription to store {name}>"
        stop()
        assert not stop.active
        assert repr(stop) == f"<Subscription to store {name}, ended>"


def test_slow_callback_misses_versions_in_between_but_never_the_newest(name: str) -> None:
    """What is published during a call is told in one call, about the newest."""
    inside, go_on = threading.Event(), threading.Event()
    calls = Calls()

    def slow(old: Any, new: Any) -> None:
        calls(old, new)
        if new.version == 1:
            inside.set()
            assert go_on.wait(WATCHDOG)

    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader, reader.subscribe(slow):
        assert inside.wait(WATCHDOG)
        for version in range(2, 7):
            writer.publish(value_of(version))
        go_on.set()
        assert [calls.versions(), calls.versions()] == [(None, 1), (1, 6)]
        assert calls.none


def test_callback_that_raises_is_logged_and_called_again(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """An exception ends a call, and neither the subscription nor what the next call is told."""
    calls = Calls()

    def raising(old: Any, new: Any) -> None:
        calls(old, new)
        raise RuntimeError("what a callback says")

    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader, reader.subscribe(raising):
        assert calls.versions() == (None, 1)
        writer.publish(value_of(2))
        assert calls.versions() == (1, 2)
        until(lambda: len(caplog.records) == 2, "both are logged")
    for record, version in zip(caplog.records, (1, 2), strict=True):
        assert (record.name, record.levelno) == ("shmcow", logging.ERROR)
        assert f"raising raised for version {version} of store {name}" in record.getMessage()
        assert record.exc_info is not None
        record.exc_info = None  # its frames keep the snapshots, and with them the store
        assert "cells" not in record.getMessage()


def test_blocked_callback_blocks_nobody_else(name: str) -> None:
    """While one callback hangs, others of the same reader are called, and the reader reads, waits and closes."""
    inside, go_on = threading.Event(), threading.Event()

    def hanging(_old: Any, _new: Any) -> None:
        inside.set()
        assert go_on.wait(WATCHDOG)

    calls = Calls()
    with Writer(name, initial=value_of(1)) as writer:
        reader = Reader(name)
        hung, other = reader.subscribe(hanging), reader.subscribe(calls)
        assert inside.wait(WATCHDOG)
        assert calls.versions() == (None, 1)
        writer.publish(value_of(2))
        assert calls.versions() == (1, 2)
        assert reader.wait(after=1, timeout=WATCHDOG).version == 2
        hung()  # does not wait for the call that goes on
        other()
        reader.close()
        go_on.set()


def test_callback_may_unsubscribe_itself(name: str) -> None:
    """A callback that unsubscribes is not called again; doing it twice is fine."""
    calls, others = Calls(), Calls()

    def once(old: Any, new: Any) -> None:
        assert ready.wait(WATCHDOG)
        stop()
        stop()
        calls(old, new)

    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        ready = threading.Event()
        stop = reader.subscribe(once)
        ready.set()
        assert calls.versions() == (None, 1)
        with reader.subscribe(others):
            writer.publish(value_of(2))
            others.versions()
        assert calls.none
        assert not stop.active


def test_no_call_begins_after_unsubscribing(name: str) -> None:
    """When stop() has returned, in whatever thread, nothing that is published calls back."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        calls, others = Calls(), Calls()
        stop = reader.subscribe(calls)
        assert calls.versions() == (None, 1)
        with reader.subscribe(others):
            others.versions()
            thread = threading.Thread(target=stop)
            thread.start()
            thread.join()
            for version in range(2, 5):
                writer.publish(value_of(version))
                others.versions()
        assert calls.none


def test_close_of_the_reader_ends_its_subscriptions(name: str) -> None:
    """Closing ends the threads, which sleep; what another reader subscribed goes on."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as other:
        reader = Reader(name)
        closed, others = [Calls(), Calls()], Calls()
        stops = [reader.subscribe(calls) for calls in closed]
        other.subscribe(others)
        for calls in (*closed, others):
            assert calls.versions() == (None, 1)
        until_asleep(3)
        reader.close()
        until_asleep(1)
        assert not any(stop.active for stop in stops)
        writer.publish(value_of(2))
        assert others.versions() == (1, 2)
        assert all(calls.none for calls in closed)
        with pytest.raises(ClosedError):
            reader.subscribe(others)


def test_subscription_to_a_store_that_does_not_exist_yet(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The first call comes when the store has its first version; until then nothing is said or raised."""
    calls = Calls()
    with Reader(name) as reader, reader.subscribe(calls):
        until(lambda: reader.problem is not None, "it has looked")
        with Writer(name) as writer:
            until(lambda: type(reader.problem).__name__ == "NotPublishedError", "it has found the empty store")
            assert calls.none
            writer.publish(value_of(1))
            assert calls.versions() == (None, 1)
            assert reader.problem is None
            assert not caplog.records


def test_subscription_goes_on_with_a_new_store(name: str) -> None:
    """A store that was destroyed and made anew calls with the old store's last snapshot and the new one's first."""
    calls = Calls()
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader, reader.subscribe(calls):
        _, first = calls.snapshots()
        writer.destroy()
        until(lambda: reader.problem is not None, "it has seen the end")
        assert calls.none
        writer.publish(value_of(1))
        old, new = calls.snapshots()
        assert old is first
        assert (new.version, new.epoch != old.epoch) == (1, True)


@pytest.mark.parametrize("on_bad", ["keep", "raise"])
def test_version_that_does_not_decode_calls_nobody(name: str, on_bad: Any) -> None:
    """An unusable version is not told; the next good one is, with the last good one as old."""
    calls = Calls()
    with Writer(name, initial=1) as writer, Reader(name, type=int, on_bad=on_bad) as reader, reader.subscribe(calls):
        assert calls.versions() == (None, 1)
        writer.publish("no number")
        until(lambda: reader.failures == 1, "it has looked")
        writer.publish(3)
        assert calls.versions() == (1, 3)


def test_store_of_another_owner_is_logged_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A store that may not be used is complained of, and waited for; unsubscribing ends that."""
    with Writer(name, initial=1), Reader(name, owner=54321) as reader:
        stop = reader.subscribe(Calls())
        until(lambda: len(caplog.records) == 1, "it is logged")
        assert "expected user 54321" in caplog.text
        until_asleep(1)
        stop()


def test_callback_may_publish(name: str) -> None:
    """A callback that publishes is called with what it has published."""
    calls = Calls()

    def chain(old: Any, new: Any) -> None:
        calls(old, new)
        if new.version < 5:
            writer.publish(value_of(new.version + 1))

    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader, reader.subscribe(chain):
        assert [calls.versions()[1] for _ in range(5)] == [1, 2, 3, 4, 5]


def test_callback_that_exits_ends_its_subscription(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SystemExit ends the thread, as in any thread, and the subscription says so."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # Python's own is silent; pytest's is not
    with Writer(name, initial=1), Reader(name) as reader:
        stop = reader.subscribe(lambda _old, _new: sys.exit())
        until(lambda: not stop.active, "it has ended")
        assert reader.get() == 1


def test_ended_subscription_holds_no_version(name: str) -> None:
    """A view that a subscription was told of is held by it no longer than it is active."""
    with Writer(name, codec=Raw(), initial=b"x" * 100, retain=0) as writer, Reader(name, codec=Raw()) as reader:
        told = threading.Event()
        stop = reader.subscribe(lambda _old, _new: told.set())
        assert told.wait(WATCHDOG)
        stop()
        writer.publish(b"y" * 100)
        reader.get()
        writer.wait_unused(1, timeout=WATCHDOG)
        assert not stop.active


def test_subscription_keeps_its_reader(name: str) -> None:
    """Nobody needs to keep a reader for its subscription's sake; with the subscription it goes."""
    calls = Calls()
    with Writer(name, initial=value_of(1)) as writer:
        reader = Reader(name)
        gone = weakref.ref(reader)
        stop = reader.subscribe(calls)
        del reader
        assert calls.versions() == (None, 1)
        gc.collect()
        writer.publish(value_of(2))
        assert calls.versions() == (1, 2)
        stop()
        del stop
        until(lambda: gc.collect() >= 0 and gone() is None, "the reader goes")


def test_copy_of_a_reader_has_no_subscription(name: str) -> None:
    """Pickling a reader takes no subscription along; its copy may subscribe by itself."""
    calls, copied = Calls(), Calls()
    with Writer(name, initial=value_of(1)), Reader(name) as reader, reader.subscribe(calls):
        assert calls.versions() == (None, 1)
        with pickle.loads(pickle.dumps(reader)) as copy, copy.subscribe(copied):
            assert copied.versions() == (None, 1)
        assert calls.none


def test_what_is_no_callable_is_refused(name: str) -> None:
    """A callback that cannot be called is an error at once, before there is a thread."""
    with pytest.raises(TypeError, match="callback is a callable, found 5"):
        Reader(name).subscribe(5)  # type: ignore[arg-type]


# ---- fork ----


def _tell_calls(link: Link, reader: Reader[Any], calls: Calls, fork: Callable[[], int] = os.fork) -> None:
    """Say what is told in here."""
    if fork is not os.fork:
        reader.get()  # starts the threads that the fork, without Python's hooks, did not
    link.send("ready")
    while True:
        link.send(calls.versions())


@pytest.mark.parametrize("fork", FORKS)
def test_forked_child_has_a_subscription_of_its_own(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """A child is told of what is published from then on; both are, and the child's end changes nothing."""
    calls = Calls()
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader, reader.subscribe(calls):
        assert calls.versions() == (None, 1)
        until_asleep(1)
        child = spawn(_tell_calls, reader, calls, fork, fork=fork)
        assert child.recv() == "ready"
        writer.publish(value_of(2))
        assert (calls.versions(), child.recv()) == ((1, 2), (1, 2))
        child.kill()
        writer.publish(value_of(3))
        assert calls.versions() == (2, 3)


@pytest.mark.parametrize("fork", FORKS)
def test_child_forked_in_mid_call_is_called_for_that_version(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """What its parent's callback had not finished with, the child's callback is told: nothing is lost by a fork."""
    parent, inside, go_on = os.getpid(), threading.Event(), threading.Event()
    calls = Calls()

    def slow(old: Any, new: Any) -> None:
        if new.version == 2 and os.getpid() == parent:
            inside.set()
            assert go_on.wait(WATCHDOG)
        calls(old, new)

    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader, reader.subscribe(slow):
        assert calls.versions() == (None, 1)
        writer.publish(value_of(2))
        assert inside.wait(WATCHDOG)
        child = spawn(_tell_calls, reader, calls, fork, fork=fork)
        assert {child.recv(), child.recv()} == {"ready", (1, 2)}
        go_on.set()
        assert calls.versions() == (1, 2)
        writer.publish(value_of(3))
        assert (calls.versions(), child.recv()) == ((2, 3), (2, 3))


def test_child_forked_by_the_callback_is_not_called_for_that_version(name: str, spawn: Callable[..., Child]) -> None:
    """A callback that starts a process is not called again in there: its children would start others for ever."""
    calls = Calls()
    children: list[Child] = []

    def forking(old: Any, new: Any) -> None:
        if new.version == 2:
            children.append(spawn(_tell_calls, reader, calls))
        calls(old, new)

    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader, reader.subscribe(forking):
        assert calls.versions() == (None, 1)
        writer.publish(value_of(2))
        assert calls.versions() == (1, 2)
        assert children[0].recv() == "ready"
        writer.publish(value_of(3))
        assert (calls.versions(), children[0].recv()) == ((2, 3), (2, 3))


def test_child_of_an_ended_subscription_is_not_called(name: str, spawn: Callable[..., Child]) -> None:
    """A subscription that has ended stays so in a child."""

    def body(link: Link) -> None:
        reader.get()
        link.send([thread.name for thread in threading.enumerate() if thread is not threading.current_thread()])

    with Writer(name, initial=value_of(1)), Reader(name) as reader:
        calls = Calls()
        reader.subscribe(calls)()
        assert spawn(body).recv() == []


# ---- no thread to be had ----

_NO_THREADS = """
import resource, sys, threading
import shmcow

writer = shmcow.Writer(sys.argv[1], initial=0)
background = shmcow.Reader(sys.argv[1], refresh="background")
pages = int(open("/proc/self/statm").read().split()[0])
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20),) * 2)
try:
    background.subscribe(print)
except RuntimeError as exc:
    print(exc)
for version in range(3):
    assert background.get() == version, version
    writer.publish(version + 1)
print(threading.active_count())
"""


def test_process_that_can_start_no_thread_still_reads(name: str) -> None:
    """Without threads subscribing is an error, and a reader that refreshes in the background decodes by itself."""
    ended = subprocess.run(
        [sys.executable, "-c", _NO_THREADS, name],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (ended.returncode, ended.stdout.splitlines()) == (0, ["can't start new thread", "1"]), ended.stderr
    assert "could not start a thread" in ended.stderr


def test_subscription_of_a_reader_that_is_closed_at_once_ends_without_a_word(name: str) -> None:
    """Its thread, here or in a child forked just after the close, finds the reader closed and raises nothing."""
    unhandled: list[Any] = []
    hook, threading.excepthook = threading.excepthook, unhandled.append
    try:
        for _ in range(20):
            reader = Reader(name)
            unsubscribe = reader.subscribe(print)
            reader.close()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                for thread in threading.enumerate():
                    if thread is not threading.current_thread():
                        thread.join(WATCHDOG)
                os._exit(len(unhandled))
            assert os.waitpid(child, 0)[1] == 0
            unsubscribe._thread.join(WATCHDOG)
    finally:
        threading.excepthook = hook
    assert not unhandled


def test_callback_that_forks_and_returns_in_the_child_is_called_once_for_each_version(
    name: str,
) -> None:
    """The child has a thread of its own; the copy of the one that forked ends with the callback."""
    read, write = os.pipe()
    with Writer(name, initial=1) as writer:
        child = 0

        def callback(_: Any, new: Snapshot[Any]) -> None:
            nonlocal child
            if new.version == 2:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    child = os.fork() or -1
                if child == -1:
                    os.write(write, b"forked")
            elif child == -1:
                os.write(write, bytes([new.version]))

        stop = Reader(name).subscribe(callback)
        try:
            writer.publish(2)
            until(lambda: child > 0, "the callback forks")
            assert os.read(read, 100) == b"forked"
            for version in range(3, 23):
                writer.publish(version)
                told = os.read(read, 100)
                assert told == bytes([version])
        finally:
            stop()
            if child > 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            os.close(read)
            os.close(write)
