"""Waiting in asyncio: one helper thread while somebody waits, which sees everything and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import WATCHDOG, Child, Link, value_of, version_in

import shmcow
from shmcow import MsgPack, Reader, Snapshot, Writer

_LIBC = ctypes.PyDLL(None, use_errno=True)  # PyDLL: the interpreter lock stays held over fork, as os.fork() has it
_EACCES, _ENOSYS = 13, 38
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_SYS_FUTEX_WAITV = 449  # the same on all architectures


# ---- what the tests share ----


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shmcow-asyncio"]


def no_helper_is_left() -> None:
    processes.until(lambda: not helpers(), "the helper thread ends")


@pytest.fixture(autouse=True)
def leaves_no_thread_and_no_complaint(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test after which a thread is left, or in which asyncio found something to complain of."""
    caplog.set_level(logging.WARNING, "asyncio")
    threads = set(threading.enumerate())
    yield
    processes.until(lambda: set(threading.enumerate()) <= threads, "all threads end")
    gc.collect()
    said = [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"]
    assert not said


def run(body: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """Run a coroutine in an event loop of its own; a hang fails the test."""

    async def watched() -> Any:
        async with asyncio.timeout(WATCHDOG):
            return await body

    return asyncio.run(watched(), **options)


async def come_true(condition: Callable[[], Any], what: str) -> None:
    """Poll until a condition is true, without blocking the event loop."""
    deadline = time.monotonic() + WATCHDOG
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.001)


async def waiting(body: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a task that waits; it has begun to when this returns."""
    task = asyncio.create_task(body)
    await asyncio.sleep(0)
    return task


def _publisher(link: Link, name: str) -> None:
    """Publish each version that the parent names, and say so; create the store if there is none."""
    with Writer(name) as writer:
        while (version := link.recv()) != "end":
            if version == "destroy":
                writer.destroy()
            else:
                assert writer.publish(value_of(version)) == version
            link.send(version)


@pytest.fixture
def publisher(name: str, spawn: Callable[..., Child]) -> Child:
    """Another process that publishes: ``ask(n)`` makes it publish version n; version 1 is there already."""
    child = spawn(_publisher, name)
    child.ask(1)
    return child


# ---- what is seen ----


def test_watch_gives_the_current_version_first_then_each_newest(name: str, publisher: Child) -> None:
    """The loop sees what is there, and then whatever another process publishes."""

    async def main() -> list[int]:
        seen = []
        async for snap in Reader(name).watch_async():
            assert version_in(snap.value) == snap.version
            seen.append(snap.version)
            if snap.version == 10:
                break
            publisher.ask(snap.version + 1)
        return seen

    assert run(main()) == list(range(1, 11))
    no_helper_is_left()


def test_slow_body_misses_versions_in_between_and_never_the_newest(name: str, publisher: Child) -> None:
    """What was published while the loop body ran is skipped but for the newest."""

    async def main() -> list[int]:
        seen = []
        async for snap in Reader(name).watch_async():
            seen.append(snap.version)
            if snap.version == 4:
                break
            for version in range(2, 5):
                publisher.ask(version)
        return seen

    assert run(main()) == [1, 4]


def test_wait_returns_what_another_process_publishes(name: str, publisher: Child) -> None:
    """A wait for anything newer, for a version, and after a snapshot."""

    async def main() -> None:
        reader = Reader(name)
        task = await waiting(reader.wait_async())
        publisher.ask(2)
        snap = await task
        assert version_in(snap.value) == snap.version == 2
        assert (await reader.wait_async(after=1)).version == 2
        task = await waiting(reader.wait_async(after=snap))
        publisher.ask(3)
        assert (await task).version == 3
        assert reader.get() is (await reader.wait_async(after=snap)).value

    run(main())


@pytest.mark.parametrize("where", ["wait_async", "watch_async"])
def test_background_refresh_waits_too(name: str, publisher: Child, where: str) -> None:
    """A reader that has a thread to decode can be waited for like any other."""

    async def main() -> None:
        with Reader(name, refresh="background") as reader:
            assert version_in(reader.get()) == 1
            publisher.ask(2)
            assert version_in(reader.get()) in (1, 2)  # now it has its thread
            watch = reader.watch_async()
            while (await anext(watch)).version != 2:
                pass
            for version in range(3, 20):
                task = await waiting(anext(watch) if where == "watch_async" else reader.wait_async())
                publisher.ask(version)
                assert (await task).version == version

    run(main())


class _Gate:
    """A transform= that stands still in the thread that runs it, until it is opened; it notes its threads."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.idents: list[int] = []
        if is_open:
            self.opened.set()

    def __call__(self, value: Any) -> Any:
        self.idents.append(threading.get_ident())
        self.entered.set()
        assert self.opened.wait(WATCHDOG)
        return value


def test_what_is_published_after_the_wait_began_is_newer(name: str, publisher: Child) -> None:
    """Now is when the task began to wait, not when the helper thread came to look, which may be busy."""
    gate = _Gate()

    async def main() -> None:
        busy = await waiting(Reader(name, transform=gate).wait_async(after=0))
        await come_true(gate.entered.is_set, "the helper thread decodes")
        task = await waiting(Reader(name).wait_async())
        publisher.ask(2)
        gate.opened.set()
        assert (await task).version == 2
        await busy

    run(main())


def test_replaced_store_is_not_mistaken_for_the_one_that_was_waited_for(name: str, publisher: Child) -> None:
    """A version of the store as it is now, when the task begins to wait: also if the helper thread looks later."""
    gate = _Gate()

    async def main() -> None:
        busy = await waiting(Reader(name, transform=gate).wait_async(after=0))
        await come_true(gate.entered.is_set, "the helper thread decodes")
        task = await waiting(Reader(name).wait_async(after=1))
        publisher.ask("destroy")
        publisher.send("end")
        publisher.done()
        with Writer(name) as writer:
            writer.publish(value_of(1))
            writer.publish(value_of(2))
            gate.opened.set()
            with pytest.raises(shmcow.StoreDestroyedError, match="start anew"):
                await task
            await busy

    run(main())


def test_event_loop_goes_on_while_the_helper_thread_decodes(name: str, publisher: Child) -> None:
    """Decoding and transform= run in the helper thread, also for a mere look: the loop opens what they wait for."""
    gate = _Gate()

    async def main() -> None:
        reader = Reader(name, transform=gate)
        for version, timeout in ((1, None), (2, 0)):
            gate.entered.clear()
            gate.opened.clear()
            task = await waiting(reader.wait_async(after=version - 1, timeout=timeout))
            await come_true(gate.entered.is_set, "the helper thread decodes")
            gate.opened.set()
            assert (await task).version == version
            publisher.ask(version + 1)

    ident = threading.get_ident()
    with contextlib.ExitStack() as stack:
        # If the loop's own thread decodes, it opens the gate to itself late: a failure, not a hang.
        stack.callback(gate.opened.set)
        timer = threading.Timer(5, gate.opened.set)
        timer.start()
        stack.callback(timer.cancel)
        run(main())
    timer.join()
    assert gate.idents
    assert ident not in gate.idents


# ---- time-outs ----


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 0.001, 0.02])
def test_time_out_when_nothing_is_published(name: str, publisher: Child, timeout: float) -> None:
    """The error is the library's, names the version, and nothing of the wait is left."""
    assert publisher.pid

    async def main() -> None:
        with pytest.raises(shmcow.WaitTimeoutError, match="newer than 1 was published within"):
            await Reader(name).wait_async(timeout=timeout)

    run(main())
    no_helper_is_left()


@pytest.mark.parametrize("timeout", [0, 1e-9, 1e-6, 1e-4])
def test_however_short_the_time_it_looks_once(name: str, publisher: Child, timeout: float) -> None:
    """As in wait(): what is newer already is returned, also when the helper thread is busy past the time-out."""
    assert publisher.pid
    gate = _Gate()

    async def main() -> None:
        assert (await Reader(name).wait_async(after=0, timeout=timeout)).version == 1
        busy = await waiting(Reader(name, transform=gate).wait_async(after=0))
        await come_true(gate.entered.is_set, "the helper thread decodes")
        task = await waiting(Reader(name).wait_async(after=0, timeout=timeout))
        await asyncio.sleep(0.01)
        gate.opened.set()
        assert (await task).version == 1
        await busy

    run(main())


@pytest.mark.parametrize("timeout", [None, 3600, 1e9, int(shmcow.store.TIMEOUT_MAX)])
def test_long_time_out_ends_with_the_version(name: str, publisher: Child, timeout: float | None) -> None:
    """Hours, centuries and for ever are all fine."""

    async def main() -> None:
        task = await waiting(Reader(name).wait_async(timeout=timeout))
        publisher.ask(2)
        assert (await task).version == 2

    run(main())


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (-1, ValueError),
        (-0.001, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (1e300, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_bad_time_out_is_refused(name: str, timeout: Any, error: type[Exception]) -> None:
    """What is no time-out is refused before anything is done."""

    async def main() -> None:
        with pytest.raises(error, match="timeout is a number of seconds"):
            await Reader(name).wait_async(timeout=timeout)
        assert not helpers()

    run(main())


def test_outer_time_out_is_not_taken_for_the_inner_one(name: str, publisher: Child) -> None:
    """asyncio.timeout around a wait that has a longer time-out of its own raises asyncio's TimeoutError."""
    assert publisher.pid

    async def main() -> None:
        for inner, outer, error in ((60, 0.01, TimeoutError), (0.01, 60, shmcow.WaitTimeoutError)):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(outer):
                    await Reader(name).wait_async(timeout=inner)
            assert type(caught.value) is error
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


# ---- leaving ----


class _OtherError(Exception):
    pass


async def _break(reader: Reader[Any]) -> None:
    async for _ in reader.watch_async():
        break


async def _abandon(reader: Reader[Any]) -> None:
    watch = reader.watch_async()
    await anext(watch)
    del watch


async def _cancel(reader: Reader[Any]) -> None:
    task = await waiting(reader.wait_async())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _cancel_at_once(reader: Reader[Any]) -> None:
    for steps in range(4):
        task = asyncio.create_task(reader.wait_async())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def _timeout(reader: Reader[Any]) -> None:
    seen = []
    try:
        async with asyncio.timeout(0.05):
            async for snap in reader.watch_async():
                seen.append(snap.version)
    except TimeoutError:
        seen.append(0)
    assert seen[-1] == 0


async def _wait_for(reader: Reader[Any]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.wait_async(), 0.01)


async def _task_group(reader: Reader[Any]) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise _OtherError

    failed: list[type[Exception]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(reader.wait_async())
            group.create_task(fail())
    except ExceptionGroup as caught:
        failed += [type(exc) for exc in caught.exceptions]
    assert failed == [_OtherError]


async def _leave_pending(reader: Reader[Any]) -> None:
    tasks = [asyncio.create_task(reader.wait_async()) for _ in range(3)]
    await asyncio.sleep(0.01)
    del tasks  # asyncio.run cancels them


WAYS = [_break, _abandon, _cancel, _cancel_at_once, _timeout, _wait_for, _task_group, _leave_pending]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_whoever_stops_waiting_leaves_nothing(name: str, publisher: Child, way: Callable[..., Any]) -> None:
    """No thread, no wait, no reader and no descriptor is left after a break or a cancellation."""
    assert publisher.pid
    readers = []

    async def main() -> None:
        reader = Reader(name)
        readers.append(weakref.ref(reader))
        await way(reader)

    run(main())
    no_helper_is_left()
    gc.collect()
    assert readers[0]() is None
    assert processes.shm_descriptors() == []


@pytest.mark.parametrize("where", ["wait_async", "watch_async", "wait_for"])
def test_cancellation_never_loses_the_newest_version(name: str, publisher: Child, where: str) -> None:
    """Wherever between a publish and its arrival a task is cancelled, the next wait has that version."""

    async def main() -> dict[bool, int]:
        reader = Reader(name)
        watch = reader.watch_async()
        last = await anext(watch)
        arrived = {True: 0, False: 0}
        for round_ in range(150):
            version = 2 + round_

            def attempt(after: Snapshot[Any] = last) -> Coroutine[Any, Any, Any]:
                if where == "wait_async":
                    return reader.wait_async(after=after)
                return anext(watch) if where == "watch_async" else asyncio.wait_for(anext(watch), 60)

            task = await waiting(attempt())
            publisher.send(version)
            until = time.perf_counter() + (round_ % 50) * 2e-5
            while time.perf_counter() < until:  # time passes in the loop, or without it
                if round_ % 3:
                    await asyncio.sleep(0)
            task.cancel()
            assert publisher.recv() == version
            try:
                last = await task
                arrived[True] += 1
            except asyncio.CancelledError:
                last = await attempt()
                arrived[False] += 1
            assert last.version == version
        return arrived

    arrived = run(main())
    assert arrived[False]
    no_helper_is_left()


class _Picky(MsgPack):
    """Refuses what says so, and counts its work."""

    def decode(self, view: memoryview) -> Any:
        value = super().decode(view)
        if "bad" in value:
            raise shmcow.DecodeError("it says that it is bad")
        return value


def test_cancellation_never_loses_an_error(name: str, publisher: Child) -> None:
    """With on_bad="raise" each unusable version raises once, and a cancelled task was not told of it."""

    async def main() -> None:
        reader = Reader(name, codec=_Picky(), on_bad="raise")
        watch = reader.watch_async()
        await anext(watch)
        publisher.send("end")
        publisher.done()
        with Writer(name) as writer:
            for bad in range(1, 6):
                task = await waiting(anext(watch))
                writer.publish({"bad": bad})
                processes.until(lambda n=bad: reader.failures == n, "the helper thread decodes")
                time.sleep(0.001 * bad)  # the helper thread goes on to tell the loop, which does not run
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                with pytest.raises(shmcow.DecodeError):
                    await anext(watch)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(watch), 0.005)

    run(main())


@pytest.mark.parametrize("where", ["thread", "task"])
def test_closing_the_reader_ends_its_waits(name: str, publisher: Child, where: str) -> None:
    """wait_async raises ClosedError, `async for` ends, whoever closes; other readers' waits go on."""

    async def main() -> None:
        reader, other = Reader(name), Reader(name)
        seen = []

        async def loop() -> None:
            async for snap in reader.watch_async():
                seen.append(snap.version)

        goes_on = await waiting(other.wait_async())
        tasks = [await waiting(reader.wait_async()), await waiting(reader.wait_async(after=7, timeout=3600))]
        watching = await waiting(loop())
        await come_true(lambda: seen == [1], "the loop has begun")
        if where == "thread":
            await asyncio.to_thread(reader.close)
        else:
            reader.close()
        for task in tasks:
            with pytest.raises(shmcow.ClosedError, match="was closed"):
                await task
        await watching
        with pytest.raises(shmcow.ClosedError):
            await reader.wait_async()
        publisher.ask(2)
        assert (await goes_on).version == 2

    run(main())
    no_helper_is_left()
    gc.collect()
    assert processes.shm_descriptors() == []


def test_reader_closed_while_it_decodes_keeps_nothing(name: str, publisher: Child) -> None:
    """A close that comes between attaching and the end of decoding ends the wait, and lets go of the store."""
    assert publisher.pid
    gate = _Gate()
    reader = Reader(name, transform=gate)

    async def main() -> None:
        task = await waiting(reader.wait_async(after=0))
        await come_true(gate.entered.is_set, "the helper thread decodes")
        reader.close()
        gate.opened.set()
        with pytest.raises(shmcow.ClosedError):
            await task

    run(main())
    no_helper_is_left()
    assert processes.shm_descriptors() == []


@pytest.mark.parametrize("round_", range(3))
def test_closing_at_any_moment_lets_go_of_the_store(name: str, publisher: Child, round_: int) -> None:
    """However close() falls between the steps of a look, a closed reader has no descriptor."""
    closed = []

    async def main() -> None:
        for k in range(40):
            reader = Reader(name)
            tasks = [await waiting(reader.wait_async(after=0)), await waiting(reader.wait_async(after=99))]
            until = time.perf_counter() + k * 1e-5
            while time.perf_counter() < until:
                await asyncio.sleep(0)
            reader.close()
            closed.append(reader)
            assert isinstance((await asyncio.gather(*tasks, return_exceptions=True))[1], shmcow.ClosedError)

    assert publisher.pid
    assert round_ >= 0
    run(main())
    no_helper_is_left()
    assert processes.shm_descriptors() == []


# ---- errors ----


def test_error_arrives_with_where_it_happened(name: str, publisher: Child) -> None:
    """The traceback leads from the awaiting line to what failed in the helper thread."""

    def fails(_: Any) -> Any:
        raise _OtherError("no luck")

    async def main() -> None:
        assert publisher.pid
        with pytest.raises(shmcow.DecodeError, match=r"transform= raised _OtherError.*no luck") as caught:
            await Reader(name, transform=fails, on_bad="raise").wait_async(after=0)
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[:2] == ["main", "wait_async"]
        assert "look" in names
        assert isinstance(caught.value.__cause__, _OtherError)

    run(main())


async def _raise_not_found(reader: Reader[Any]) -> None:
    reader._name += "-none"
    await reader.wait_async()


async def _raise_closed(reader: Reader[Any]) -> None:
    asyncio.get_running_loop().call_later(0.01, reader.close)  # a task in this frame would be a cycle of the test's
    await reader.wait_async()


async def _raise_destroyed(reader: Reader[Any]) -> None:
    asyncio.get_running_loop().call_later(0.01, shmcow.destroy, reader.name)
    await reader.wait_async()


async def _raise_late(reader: Reader[Any]) -> None:
    await reader.wait_async(timeout=0.001)


async def _raise_bad(reader: Reader[Any]) -> None:
    with Writer(reader.name) as writer:
        writer.publish({"bad": 1})
    async for _ in reader.watch_async():
        pass


ERRORS = [_raise_not_found, _raise_closed, _raise_destroyed, _raise_late, _raise_bad, _cancel]


@pytest.mark.parametrize("way", ERRORS, ids=lambda way: way.__name__.strip("_"))
def test_error_keeps_nothing_alive_once_it_is_dropped(name: str, way: Callable[..., Any]) -> None:
    """No cycle leads from an exception to itself: reader and store go without the garbage collector."""
    Writer(name, initial=value_of(1)).close()
    refs: list[weakref.ref[Any]] = []

    async def raises() -> None:
        reader = Reader(name, codec=_Picky(), on_bad="raise")
        refs.append(weakref.ref(reader))
        try:
            await way(reader)
        except shmcow.ShmcowError:
            pass

    async def main() -> None:
        await raises()
        await come_true(lambda: not helpers(), "the helper thread ends")

    gc.collect()
    gc.disable()
    try:
        run(main())
        assert refs[0]() is None
        assert processes.shm_descriptors() == []
    finally:
        gc.enable()


class _Failing(MsgPack):
    def __init__(self, exc: BaseException) -> None:
        super().__init__()
        self._exc = exc

    def decode(self, view: memoryview) -> Any:  # noqa: ARG002
        raise self._exc


@pytest.mark.parametrize("exc", [TimeoutError("mine"), StopIteration("mine"), StopAsyncIteration("mine")], ids=repr)
@pytest.mark.parametrize("how", ["wait_async", "watch_async"])
def test_exception_of_a_decoder_is_not_misread(name: str, exc: BaseException, how: str) -> None:
    """What looks like a time-out, or the end of the loop, arrives as what it is: a version that cannot be used."""
    Writer(name, initial=value_of(1)).close()

    async def main() -> None:
        reader = Reader(name, codec=_Failing(exc), on_bad="raise")
        with pytest.raises(shmcow.DecodeError, match=f"{type(exc).__name__}: mine"):
            await (reader.wait_async(after=0, timeout=60) if how == "wait_async" else anext(reader.watch_async()))
        kept = Reader(name, codec=_Failing(exc))
        with pytest.raises(shmcow.WaitTimeoutError, match=f"no usable version.*{type(exc).__name__}: mine"):
            await kept.wait_async(after=0, timeout=0.01)

    run(main())
    no_helper_is_left()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_transform_that_ends_the_program_ends_the_loop(name: str, kind: type[BaseException]) -> None:
    """KeyboardInterrupt and SystemExit come out of asyncio.run, as if the task itself had raised them."""
    Writer(name, initial=value_of(1)).close()

    def transform(value: Any) -> Any:  # noqa: ARG001
        raise kind

    with pytest.raises(kind):
        run(Reader(name, transform=transform).wait_async(after=0))
    no_helper_is_left()


@pytest.mark.parametrize("how", ["wait_async", "watch_async"])
def test_cancelled_error_of_a_decoder_is_no_cancellation(name: str, how: str) -> None:
    """Nobody cancelled the task: it arrives as a RuntimeError's cause."""
    exc = asyncio.CancelledError("mine")
    Writer(name, initial=value_of(1)).close()

    async def main() -> None:
        reader = Reader(name, codec=_Failing(exc))
        with pytest.raises(RuntimeError, match="raised CancelledError") as caught:
            await (reader.wait_async(after=0) if how == "wait_async" else anext(reader.watch_async()))
        assert caught.value.__cause__ is exc

    run(main())


def test_transform_that_waits_in_asyncio_is_refused(name: str, publisher: Child) -> None:
    """In the helper thread it would wait for itself, and everybody with it."""
    assert publisher.pid
    refused = []

    def transform(value: Any) -> Any:
        for store in (name, f"{name}-other"):
            try:
                asyncio.run(Reader(store, attach_timeout=60).wait_async(after=0, timeout=1))
            except RuntimeError as exc:
                refused.append(str(exc))
        return value

    assert run(Reader(name, transform=transform).wait_async(after=0)).version == 1
    assert len(refused) == 2
    assert all("cannot wait" in text for text in refused)


# ---- stores that come and go ----


def test_wait_for_a_store_that_does_not_exist(name: str) -> None:
    """At once an error by default; the error says what to do."""

    async def main() -> None:
        with pytest.raises(shmcow.StoreNotFoundError, match="has its writer been started"):
            await Reader(name).wait_async()
        with pytest.raises(shmcow.StoreNotFoundError):
            await anext(Reader(name).watch_async())
        with pytest.raises(shmcow.WaitTimeoutError, match="there is no store"):
            await Reader(name, attach_timeout=60).wait_async(timeout=0.01)
        with pytest.raises(shmcow.StoreNotFoundError):
            await Reader(name, attach_timeout=0.02).wait_async()

    run(main())


def test_attach_timeout_waits_for_the_store(name: str, spawn: Callable[..., Child]) -> None:
    """Whoever waits for a store that another process makes later gets its first version."""

    async def main() -> None:
        reader = Reader(name, attach_timeout=WATCHDOG)
        tasks = [await waiting(reader.wait_async(after=0)), await waiting(anext(reader.watch_async()))]
        await asyncio.sleep(0.02)
        child = spawn(_publisher, name)
        assert child.ask(1) == 1
        assert [snap.version for snap in await asyncio.gather(*tasks)] == [1, 1]

    run(main())


def test_destroyed_store_ends_the_wait_and_watch_goes_on_with_the_next(name: str, publisher: Child) -> None:
    """wait_async raises; `async for` sees the versions of the new store of that name."""

    async def main() -> None:
        reader = Reader(name)
        watch = reader.watch_async()
        old = await anext(watch)
        waits = [await waiting(reader.wait_async()), await waiting(reader.wait_async(after=old))]
        goes_on = await waiting(anext(watch))
        publisher.ask("destroy")
        for task in waits:
            with pytest.raises(shmcow.StoreDestroyedError):
                await task
        publisher.send("end")
        publisher.done()
        with Writer(name, initial=value_of(1)):
            new = await goes_on
        assert (new.version, old.version) == (1, 1)
        assert new.epoch != old.epoch
        with pytest.raises(shmcow.StoreDestroyedError):
            await reader.wait_async(after=old)

    run(main())


# ---- the helper thread ----


def _switches(thread: threading.Thread) -> int:
    text = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(text.partition("voluntary_ctxt_switches:")[2].split()[0])


def test_waiting_is_no_polling(name: str, publisher: Child) -> None:
    """The helper thread sleeps in the kernel: in a second it wakes up a handful of times, for all its waits."""

    async def main() -> None:
        reader = Reader(name)
        tasks = [await waiting(reader.wait_async()) for _ in range(20)]
        await asyncio.sleep(0.2)
        (helper,) = helpers()
        before = _switches(helper)
        await asyncio.sleep(1.5)
        assert helpers() == [helper]
        assert _switches(helper) - before <= 12
        publisher.ask(2)
        assert {snap.version for snap in await asyncio.gather(*tasks)} == {2}

    run(main())


def test_one_helper_thread_for_all_tasks_stores_and_loops(name: str, publisher: Child) -> None:
    """However many wait, in two event loops, there is one thread, and everybody is woken."""
    stores = [f"{name}-{k}" for k in range(3)]
    writers = [Writer(store, initial=value_of(1)) for store in stores]
    barrier = threading.Barrier(2)
    results: list[set[int]] = []

    async def main() -> None:
        readers = [Reader(store) for store in (name, *stores)]
        tasks = [await waiting(reader.wait_async()) for reader in readers for _ in range(50)]
        await asyncio.to_thread(barrier.wait, WATCHDOG)
        assert len(helpers()) == 1
        if await asyncio.to_thread(barrier.wait, WATCHDOG) == 0:
            publisher.ask(2)
            for writer in writers:
                writer.publish(value_of(2))
        results.append({snap.version for snap in await asyncio.gather(*tasks)})

    try:
        other = threading.Thread(target=run, args=(main(),))
        other.start()
        run(main())
        other.join()
        assert results == [{2}, {2}]
        no_helper_is_left()
    finally:
        for writer in writers:
            writer.destroy()


def test_two_event_loops_watch_one_reader(name: str, publisher: Child) -> None:
    """Two loops in two threads at once see versions that only grow, the same objects, and the last one."""
    reader = Reader(name)
    seen: list[dict[int, Snapshot[Any]]] = []
    last = 300

    async def main() -> None:
        mine: dict[int, Snapshot[Any]] = {}
        async for snap in reader.watch_async():
            assert version_in(snap.value) == snap.version > max(mine, default=0)
            mine[snap.version] = snap
            if snap.version == last:
                break
        seen.append(mine)

    threads = [threading.Thread(target=run, args=(main(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(2, last + 1):
        publisher.ask(version)
    for thread in threads:
        thread.join(WATCHDOG)
    assert len(seen) == 2
    both = set(seen[0]) & set(seen[1])
    assert last in both
    assert all(seen[0][version] is seen[1][version] for version in both)


def test_two_hundred_stores_at_once(name: str) -> None:
    """More stores than the kernel lets a thread sleep on: each is seen, in a loop that watches them all."""
    writers = [Writer(f"{name}-{k}", initial=value_of(1)) for k in range(200)]

    async def main() -> None:
        readers = [Reader(writer.name) for writer in writers]
        tasks = [await waiting(reader.wait_async()) for reader in readers]
        assert len(helpers()) == 1
        for k in (0, 126, 127, 128, 199):
            writers[k].publish(value_of(2))
            assert (await tasks[k]).store == writers[k].name
        for writer in writers:
            if writer.version == 1:
                writer.publish(value_of(2))
        assert {snap.version for snap in await asyncio.gather(*tasks)} == {2}

    try:
        run(main())
    finally:
        for writer in writers:
            writer.destroy()
    no_helper_is_left()


def test_loop_closed_with_a_wait_pending_leaves_nothing(name: str, publisher: Child) -> None:
    """Nobody is there to be told of what is published then: no exception, no warning, and the helper thread ends."""
    loop = asyncio.new_event_loop()
    reader = Reader(name)
    tasks = [loop.create_task(reader.wait_async()), loop.create_task(reader.wait_async(after=5, timeout=3600))]
    loop.run_until_complete(asyncio.sleep(0.01))
    assert len(helpers()) == 1
    loop.close()
    publisher.ask(2)
    no_helper_is_left()
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own complaint about this test
    ref = weakref.ref(reader)
    del reader, tasks, task
    gc.collect()
    assert ref() is None


def _collect_in_critical_section(link: Link, name: str) -> None:
    """End a dead loop's wait where the garbage collector may: in the middle of the helper's own work."""
    from shmcow import aio

    signal.alarm(20)  # a child that hangs is killed
    dead = asyncio.new_event_loop()
    wait = Reader(name).wait_async()
    task = dead.create_task(wait)
    dead.run_until_complete(asyncio.sleep(0.01))
    dead.close()
    with aio._helper_of_process()._lock:
        wait.close()
    del task
    no_helper_is_left()
    link.send(run(Reader(name).wait_async(after=0)).version)


def test_collector_may_end_a_wait_anywhere(name: str, publisher: Child, spawn: Callable[..., Child]) -> None:
    """A dead loop's wait ends when it is collected, in any thread at any allocation: no lock is waited for."""
    assert publisher.pid
    child = spawn(_collect_in_critical_section, name)
    assert child.recv() == 1
    child.done()


def test_debug_mode_has_no_complaints(name: str, publisher: Child) -> None:
    """With asyncio's checks on (threads, slow or forgotten coroutines), nothing is said."""

    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = WATCHDOG  # a loaded machine is no fault
        reader = Reader(name)
        for way in (_break, _abandon, _cancel, _cancel_at_once, _timeout, _wait_for, _task_group):
            await way(reader)
        task = await waiting(reader.wait_async())
        publisher.ask(2)
        assert (await task).version == 2
        with pytest.raises(shmcow.WaitTimeoutError):
            await reader.wait_async(timeout=0.01)
        await _leave_pending(reader)

    run(main(), debug=True)


def _without_threads(link: Link, name: str) -> None:
    """Wait where no thread can be started, and then where it can."""
    room = 1 << 34
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))

    async def main() -> None:
        reader = Reader(name)
        size = threading.stack_size(room)
        for _ in range(2):
            tasks = [reader.wait_async(after=0) for _ in range(3)]
            for found in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(found, RuntimeError), found
                assert "start new thread" in str(found)
        threading.stack_size(size)
        link.send((await reader.wait_async(after=0)).version)

    asyncio.run(main())


def test_thread_that_cannot_be_started_is_an_error_and_no_hang(name: str, spawn: Callable[..., Child]) -> None:
    """Each task is told; the next wait tries again."""
    Writer(name, initial=value_of(1)).close()
    child = spawn(_without_threads, name)
    assert child.recv() == 1
    child.done()


class _Filter(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Filter)))


def _deny_futex_waitv(errno: int) -> None:
    """Be in a sandbox that answers futex_waitv with an error; there is no way back."""
    code = (_Filter * 4)(
        (0x20, 0, 0, 0), (0x15, 0, 1, _SYS_FUTEX_WAITV), (6, 0, 0, 0x50000 | errno), (6, 0, 0, 0x7FFF0000)
    )
    program = _Program(4, code)
    assert _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0


def _wait_in_sandbox(link: Link, name: str, errno: int) -> None:
    _deny_futex_waitv(errno)

    async def main() -> None:
        reader = Reader(name)
        for _ in range(2):
            tasks = [asyncio.create_task(reader.wait_async()) for _ in range(3)]
            await asyncio.sleep(0.05)
            link.send("waiting")
            found = await asyncio.gather(*tasks, return_exceptions=True)
            link.send([one.version if isinstance(one, Snapshot) else str(one) for one in found])

    asyncio.run(main())


def test_sandbox_without_futex_waitv_waits_all_the_same(
    name: str, publisher: Child, spawn: Callable[..., Child]
) -> None:
    """Where the kernel does not have the call, another one is used."""
    child = spawn(_wait_in_sandbox, name, _ENOSYS)
    for version in (2, 3):
        assert child.recv() == "waiting"
        publisher.ask(version)
        assert child.recv() == [version] * 3
    child.done()


def test_helper_thread_that_fails_tells_whoever_waits(name: str, publisher: Child, spawn: Callable[..., Child]) -> None:
    """An error of the kernel that nobody foresaw ends the waits with it, and the next wait tries again: no hang."""
    child = spawn(_wait_in_sandbox, name, _EACCES)
    for version in (2, 3):
        assert child.recv() == "waiting"
        publisher.ask(version)
        assert all(isinstance(one, int) or "helper thread" in one for one in child.recv())
    child.done()


# ---- fork, interrupts, exit ----


def fork_in_c() -> int:
    """Fork as a C program does: pthread_atfork handlers run, Python's hooks do not."""
    return int(_LIBC.fork())


FORKS = [pytest.param(os.fork, id="os.fork"), pytest.param(fork_in_c, id="fork in C")]


def _wait_in_child(link: Link, reader: Reader[Any]) -> None:
    link.send(len(os.listdir("/proc/self/task")))

    async def main() -> int:
        task = await waiting(reader.wait_async())
        assert len(os.listdir("/proc/self/task")) == 2
        link.send("waiting")
        return (await task).version  # type: ignore[no-any-return]

    asyncio._set_running_loop(None)  # from 3.12 on a hook does this, which a fork in C does not run
    link.send(asyncio.run(main()))
    link.send(len(os.listdir("/proc/self/task")))


@pytest.mark.parametrize("fork", FORKS)
def test_child_forked_in_a_running_loop_waits_on_its_own(
    name: str, publisher: Child, spawn: Callable[..., Child], fork: Callable[[], int]
) -> None:
    """It has no helper thread of its parent's, starts its own with its own loop, and both get the version."""

    async def main() -> None:
        reader = Reader(name)
        task = await waiting(reader.wait_async())
        await asyncio.sleep(0.01)
        child = spawn(_wait_in_child, reader, fork=fork)
        assert child.recv() == 1
        assert child.recv() == "waiting"
        publisher.ask(2)
        assert child.recv() == 2
        assert (await task).version == 2
        child.done()

    run(main())


def _close_inherited(link: Link, waits: list[Any]) -> None:
    signal.alarm(20)  # a child that hangs is killed
    for wait in waits:
        wait.close()
    link.send("closed")


@pytest.mark.parametrize("fork", FORKS)
def test_child_ends_its_parents_waits_without_its_parents_lock(
    name: str, publisher: Child, spawn: Callable[..., Child], fork: Callable[[], int]
) -> None:
    """The helper thread may hold its lock at the fork: no step of the child waits for that."""
    assert publisher.pid

    async def main() -> None:
        waits = [Reader(name).wait_async() for _ in range(100)]
        tasks = [asyncio.create_task(wait) for wait in waits]
        await asyncio.sleep(0.01)
        from shmcow import aio

        taken, forked = threading.Event(), threading.Event()

        def take() -> None:
            with aio._helper_of_process()._lock:
                taken.set()
                forked.wait(WATCHDOG)

        thread = threading.Thread(target=take)
        thread.start()
        taken.wait(WATCHDOG)
        child = spawn(_close_inherited, waits, fork=fork)
        forked.set()
        thread.join()
        assert child.recv() == "closed"
        child.done()
        for task in tasks:
            task.cancel()

    run(main())


def _interrupted(link: Link, name: str) -> None:
    async def main() -> None:
        reader = Reader(name)
        task = await waiting(reader.wait_async())
        link.send("waiting")
        await task

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        no_helper_is_left()
        link.send("interrupted")


def test_interrupt_ends_the_loop_and_its_waits(name: str, publisher: Child, spawn: Callable[..., Child]) -> None:
    """Ctrl-C comes out of asyncio.run, and the helper thread ends."""
    assert publisher.pid
    child = spawn(_interrupted, name)
    assert child.recv() == "waiting"
    child.signal(signal.SIGINT)
    assert child.recv() == "interrupted"
    child.done()


def _program(text: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text, *args],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )


_EXITS = """
import asyncio, sys, threading
from shmcow import ClosedError, Reader

ready = threading.Event()

async def main():
    reader = Reader(sys.argv[1])
    tasks = [asyncio.create_task(reader.wait_async()) for _ in range(3)]
    await asyncio.sleep(0.01)
    ready.set()
    for task in tasks:
        try:
            await task
        except ClosedError as exc:
            print(exc)

threading.Thread(target=asyncio.run, args=(main(),), daemon=sys.argv[2] == "daemon").start()
ready.wait()
"""


@pytest.mark.parametrize("kind", ["daemon", "no daemon"])
def test_interpreter_exits_while_a_loop_waits_in_a_thread(name: str, publisher: Child, kind: str) -> None:
    """A daemon thread's loop is left as it is; one that the interpreter waits for is told, as in wait()."""
    assert publisher.pid
    done = _program(_EXITS, name, kind)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    if kind == "no daemon":
        assert len(said) == 3
        assert all("the interpreter is exiting" in line for line in said)


def test_interpreter_exits_with_a_loop_that_nobody_closed(name: str, publisher: Child) -> None:
    """asyncio complains of the pending task, shmcow of nothing."""
    assert publisher.pid
    text = """
import asyncio, sys
from shmcow import Reader
loop = asyncio.new_event_loop()
task = loop.create_task(Reader(sys.argv[1]).wait_async())
task._log_destroy_pending = False
loop.run_until_complete(asyncio.sleep(0.01))
"""
    done = _program(text, name)
    assert done.returncode == 0
    assert "shmcow/" not in done.stderr
    assert "Exception" not in done.stderr


def test_only_those_who_use_asyncio_import_it(name: str, publisher: Child) -> None:
    """Neither `import shmcow` nor reading and waiting in threads imports asyncio."""
    assert publisher.pid
    text = """
import sys
import shmcow
reader = shmcow.Reader(sys.argv[1])
reader.get(), reader.wait(after=0), next(reader.watch()), reader.watch_async()
print([module for module in sys.modules if module.partition(".")[0] == "asyncio" or module == "shmcow.aio"])
"""
    done = _program(text, name)
    assert (done.stdout, done.stderr) == ("[]\n", "")
