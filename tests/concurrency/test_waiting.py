"""Waiting for versions: in threads and in processes, interrupted, stopped, forked, and with wake-ups that are lost."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import SHM, WATCHDOG, Child, Link, until, value_of, version_in
from sleepers import FUTEX, FUTEX_WAITV, Waiter, sleepers, until_asleep
from victims import Victims

from shmcow import (
    ClosedError,
    DecodeError,
    IncompatibleStoreError,
    Reader,
    StoreDestroyedError,
    StoreNotFoundError,
    WaitTimeoutError,
    Writer,
    _core,
)
from shmcow.waiting import Sleep

_LIBC = ctypes.CDLL(None, use_errno=True)
_PYTHON_LIBC = ctypes.PyDLL(None)  # the interpreter lock stays held over fork, as os.fork() has it
_CURRENT_AT = 256  # of the header, csrc/shmcow_layout.h


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fail a test after which there are more threads than before."""
    before = threading.active_count()
    yield
    until(lambda: threading.active_count() <= before, f"threads end: {threading.enumerate()}")


pytestmark = pytest.mark.usefixtures("no_thread_left")


def _publisher(link: Link, name: str) -> None:
    """Publish what the parent asks for; 0 destroys, -1 destroys and creates again."""
    writer = Writer(name)
    while True:
        asked = link.recv()
        if asked > 0:
            link.send(writer.publish(value_of(asked)))
            continue
        writer.destroy()
        if asked < 0:
            writer.publish(value_of(-asked))
        link.send("done")


def _waiter(link: Link, name: str, after: int | None) -> None:
    link.send(version_in(Reader(name).wait(after=after).value))


# ---- wake-ups ----


@pytest.mark.parametrize("after", ["none", "int", "snapshot"])
def test_version_of_another_process_wakes_a_sleeping_thread(name: str, spawn: Callable[..., Child], after: str) -> None:
    """A thread that the kernel shows asleep runs again when a child publishes."""
    writer = Writer(name, initial=value_of(1))
    child = spawn(_publisher, name)
    with Reader(name) as reader:
        given = {"none": None, "int": 1, "snapshot": reader.snapshot()}[after]
        waiter = Waiter(lambda: reader.wait(after=given)).until_asleep()
        assert child.ask(2) == 2
        snapshot = waiter.result()
        assert (snapshot.version, version_in(snapshot.value)) == (2, 2)
        assert snapshot is reader.snapshot()
    writer.destroy()


def test_all_of_many_threads_wake_with_the_same_snapshot(name: str, spawn: Callable[..., Child]) -> None:
    """One publish wakes 64 threads, of one reader and of several, and those that share a reader share the object."""
    writer = Writer(name, initial=value_of(1))
    child = spawn(_publisher, name)
    readers = [Reader(name) for _ in range(4)]
    waiters = [Waiter(lambda r=readers[k % 4]: r.wait(after=1)) for k in range(64)]  # type: ignore[misc]
    until_asleep(64)
    child.ask(2)
    found = [waiter.result() for waiter in waiters]
    assert {version_in(snapshot.value) for snapshot in found} == {2}
    assert len({id(snapshot) for snapshot in found}) == 4
    for reader in readers:
        reader.close()
    writer.destroy()


def test_all_of_many_processes_wake(name: str, spawn: Callable[..., Child]) -> None:
    """One publish wakes twenty processes."""
    writer = Writer(name, initial=value_of(1))
    children = [spawn(_waiter, name, 1) for _ in range(20)]
    for child in children:
        until_asleep(1, child.pid)
    writer.publish(value_of(2))
    assert [child.recv() for child in children] == [2] * 20
    for child in children:
        child.done()
    writer.destroy()


def test_first_version_of_an_empty_store_wakes(name: str, spawn: Callable[..., Child]) -> None:
    """A store without a version is waited on like any other."""
    writer = Writer(name)
    child = spawn(_publisher, name)
    with Reader(name) as reader:
        waiter = Waiter(reader.wait).until_asleep()
        child.ask(7)
        assert version_in(waiter.result().value) == 7
    writer.destroy()


def test_versions_published_while_nobody_sleeps_are_seen(name: str) -> None:
    """Of a chain of waits each begins where the last ended, and none misses the newest version."""
    writer = Writer(name, initial=value_of(1))
    last = 300

    def follow() -> list[int]:
        seen = [1]
        with Reader(name) as reader:
            while seen[-1] != last:
                seen.append(reader.wait(after=seen[-1], timeout=WATCHDOG).version)
        return seen

    waiters = [Waiter(follow) for _ in range(2)]
    for version in range(2, last + 1):
        writer.publish(value_of(version))
    for waiter in waiters:
        seen = waiter.result()
        assert seen == sorted(set(seen))
    writer.destroy()


def test_stopped_waiter_finds_the_newest_version_when_it_goes_on(name: str, spawn: Callable[..., Child]) -> None:
    """A waiter under SIGSTOP holds nobody up, and returns what is newest by the time it runs again."""
    writer = Writer(name, initial=value_of(1))
    child = spawn(_waiter, name, 1)
    until_asleep(1, child.pid)
    child.stop()
    for version in range(2, 8):
        writer.publish(value_of(version))
    child.go_on()
    assert child.recv() == 7
    child.done()
    writer.destroy()


# ---- what is there already, and what is not ----


def test_newer_version_is_returned_at_once(name: str) -> None:
    """A wait after an older version looks, and does not sleep, even with no time at all."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        first = reader.snapshot()
        writer.publish(value_of(2))
        for after in (0, 1, first):
            assert reader.wait(after=after, timeout=0).version == 2
        with pytest.raises(WaitTimeoutError, match="newer than 2"):
            reader.wait(timeout=0)
        with pytest.raises(WaitTimeoutError, match="newer than 2"):
            reader.wait(after=2, timeout=0.01)
        with pytest.raises(WaitTimeoutError, match="newer than 99"):
            reader.wait(after=99, timeout=0.01)


def test_version_skipped_by_a_wait_is_not_returned(name: str) -> None:
    """A wait after a version that does not exist yet ends with a newer one only."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        waiter = Waiter(lambda: reader.wait(after=2)).until_asleep()
        writer.publish(value_of(2))
        assert waiter.until_asleep().waits
        writer.publish(value_of(3))
        assert waiter.result().version == 3


def test_snapshot_of_another_store_is_refused(name: str) -> None:
    """Versions of two stores do not compare."""
    with Writer(name, initial=1) as writer, Writer(f"{name}-other", initial=1) as other:
        with Reader(name) as reader, pytest.raises(ValueError, match=f"snapshot of store {name}-other"):
            reader.wait(after=other.snapshot())
        other.destroy()
        writer.destroy()


@pytest.mark.parametrize("again", [False, True])
def test_snapshot_of_an_older_epoch_ends_the_wait(name: str, again: bool) -> None:
    """A store that was destroyed, or made anew, has no version newer than a snapshot of the old one."""
    writer = Writer(name, initial=1)
    with Reader(name) as reader:
        old = reader.snapshot()
    writer.destroy()
    if again:
        writer.publish(5)
    with Reader(name) as fresh:
        with pytest.raises(StoreDestroyedError, match="created again" if again else "was destroyed"):
            fresh.wait(after=old, timeout=0)
        if again:
            assert fresh.wait(after=0, timeout=0).value == 5  # a number means the store as it is now


def test_store_that_does_not_exist(name: str) -> None:
    """Without a store it is an error at once, or after ``attach_timeout``; a shorter time-out comes first."""
    with pytest.raises(StoreNotFoundError):
        Reader(name).wait()
    with pytest.raises(StoreNotFoundError):
        Reader(name, attach_timeout=0.02).wait()
    with pytest.raises(WaitTimeoutError, match="there is no store"):
        Reader(name, attach_timeout=WATCHDOG).wait(timeout=0.02)
    with pytest.raises(StoreNotFoundError):
        next(Reader(name).watch())


def test_store_made_within_attach_timeout_is_waited_on(name: str) -> None:
    """A wait for a store that another thread makes later ends with its first version."""
    with Reader(name, attach_timeout=WATCHDOG) as reader:
        waiter = Waiter(lambda: reader.wait(after=0)).until_asleep()
        with Writer(name) as writer:
            writer.publish(value_of(1))
            assert waiter.result().version == 1
            writer.destroy()


def test_version_that_does_not_decode_is_waited_past(name: str) -> None:
    """With ``on_bad="keep"`` a bad version does not count: the wait goes on, and a time-out says what was wrong."""
    with Writer(name, initial=1) as writer, Reader(name, type=int) as reader:
        assert reader.get() == 1
        waiter = Waiter(lambda: reader.wait(after=1)).until_asleep()
        writer.publish("no number")
        until(lambda: reader.failures == 1, "the waiter looks")
        with pytest.raises(WaitTimeoutError, match=r"no usable version .* newer than 1.*version 2"):
            reader.wait(after=1, timeout=0.01)
        assert waiter.until_asleep().waits
        writer.publish(3)
        assert waiter.result().value == 3
        assert reader.failures == 1


def test_version_that_does_not_decode_raises_when_told_to(name: str) -> None:
    """With ``on_bad="raise"`` a bad version ends a wait, and is raised by a watch once."""
    with Writer(name, initial=1) as writer, Reader(name, type=int, on_bad="raise") as reader:
        watch = reader.watch()
        assert next(watch).value == 1
        waiter = Waiter(lambda: reader.wait(after=1)).until_asleep()
        writer.publish("no number")
        with pytest.raises(DecodeError, match="version 2"):
            waiter.result()
        with pytest.raises(DecodeError, match="version 2"):
            next(watch)
        following = Waiter(lambda: next(watch)).until_asleep()
        writer.publish(3)
        assert following.result().value == 3


def test_wait_inside_a_transform_is_refused(name: str) -> None:
    """A transform that waits for the version that it is making would wait for ever: it gets an error."""

    def transform(value: int) -> int:
        return value + int(reader.wait(after=0).value)

    with Writer(name, initial=1), Reader(name, transform=transform) as reader:
        with pytest.raises(DecodeError, match="waits for the version that it is making"):
            reader.get()
        with pytest.raises(WaitTimeoutError, match="NotPublishedError"):
            reader.wait(after=0, timeout=0)


# ---- lost wake-ups: found within a slice ----


def test_version_of_a_writer_killed_before_its_wake_up_is_seen(name: str, killer: Victims) -> None:
    """A writer that dies between flip and wake costs its readers a slice, not the version."""
    writer = Writer(name, initial=value_of(1))
    with Reader(name) as reader:
        waiter = Waiter(reader.wait).until_asleep()
        fate = killer.run("publish", name, at=1, step="publish.flipped", version=2)
        assert (fate.exit, fate.fatal) == (-signal.SIGKILL, "publish.flipped")
        assert version_in(waiter.result().value) == 2
    writer.destroy()


def test_store_whose_destroyer_was_killed_before_its_wake_up_ends_the_wait(name: str, killer: Victims) -> None:
    """A store that says DESTROYED, and told nobody, is found within a slice."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        waiter = Waiter(reader.wait).until_asleep()
        fate = killer.run("destroy", name, at=1, step="destroy.ended")
        assert (fate.exit, fate.fatal) == (-signal.SIGKILL, "destroy.ended")
        with pytest.raises(StoreDestroyedError):
            waiter.result()
        writer.publish(value_of(2))  # finishes the job, and begins anew


def _requeue(link: Link, name: str) -> None:
    """As a reader, with a read-only map, move all who sleep on the current word to another word."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    fd = os.open(SHM / f"shmcow.{name}", os.O_RDONLY)
    at = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0))  # PROT_READ, MAP_SHARED
    word, other = ctypes.c_void_p(at + _CURRENT_AT), ctypes.c_void_p(at + _CURRENT_AT + 64)
    current = ctypes.c_uint32.from_address(at + _CURRENT_AT).value
    moved = libc.syscall(
        ctypes.c_long(FUTEX), word, ctypes.c_int(4), ctypes.c_int(0), ctypes.c_long(1000), other, ctypes.c_uint(current)
    )
    link.send(moved)


def test_requeued_readers_see_the_next_version(name: str, spawn: Callable[..., Child]) -> None:
    """Readers whose sleep was moved to another word by a hostile reader see the next version within a slice."""
    if FUTEX < 0:
        pytest.skip("knows the number of the futex call on x86_64 and aarch64 only: run it there")
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        waiters = [Waiter(reader.wait) for _ in range(3)]
        # They look again once a second: until all three were found asleep, and moved, together.
        until(lambda: len(sleepers()) == 3 and spawn(_requeue, name).recv() == 3, "all sleepers are moved")
        writer.publish(value_of(2))
        assert [waiter.result().version for waiter in waiters] == [2, 2, 2]


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_header_removed_from_outside_ends_the_wait(name: str, how: str) -> None:
    """A header without its name is found within a slice: nobody will publish there any more."""
    header = SHM / f"shmcow.{name}"
    moved = header.with_name(f"moved-{os.getpid()}-{name}")
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        waiter = Waiter(reader.wait).until_asleep()
        if how == "unlink":
            header.unlink()
        else:
            header.rename(moved)
        try:
            with pytest.raises(StoreDestroyedError, match="removed from outside"):
                waiter.result()
        finally:
            moved.unlink(missing_ok=True)
        writer.publish(value_of(2))  # creates the store again, and sweeps


# ---- the end of a store ----


@pytest.mark.parametrize("asked", [0, -1], ids=["destroyed", "destroyed and created again"])
def test_destroyed_store_ends_the_wait(name: str, spawn: Callable[..., Child], asked: int) -> None:
    """Whoever sleeps when the store is destroyed is woken, and told, also when there is a new store by then."""
    Writer(name, initial=value_of(1)).close()
    child = spawn(_publisher, name)
    with Reader(name) as reader:
        waiter = Waiter(reader.wait).until_asleep()
        child.ask(asked)
        with pytest.raises(StoreDestroyedError, match=r"watch\(\) goes on"):
            waiter.result()


def test_watch_goes_on_with_the_new_store(name: str, spawn: Callable[..., Child]) -> None:
    """A watch sleeps through the end of its store, and goes on with the versions of its successor."""
    Writer(name, initial=value_of(1)).close()
    child = spawn(_publisher, name)
    with Reader(name) as reader:
        watch = reader.watch()
        first = next(watch)
        waiter = Waiter(lambda: next(watch)).until_asleep()
        child.ask(-9)
        second = waiter.result()
        assert (version_in(second.value), second.version) == (9, 1)
        assert second.epoch != first.epoch
        waiter = Waiter(lambda: next(watch)).until_asleep()
        child.ask(0)
        until(lambda: reader.problem is not None, "the watch has seen the end")
        assert waiter.waits
        with Writer(name, initial=value_of(11)) as writer:
            assert version_in(waiter.result().value) == 11
            writer.destroy()


# ---- watch ----


def test_watch_yields_the_current_version_and_then_the_newest(name: str) -> None:
    """What was published while the loop body ran is skipped, but for the newest."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        watch = reader.watch()
        assert iter(watch) is watch
        assert next(watch).version == 1
        for version in range(2, 6):
            writer.publish(value_of(version))
        assert next(watch).version == 5
        writer.rollback()
        assert version_in(next(watch).value) == 4
        assert repr(watch) == f"<Watch of store {name}, at version 6>"
        assert next(reader.watch()).version == 6  # another one begins anew


def test_close_by_another_thread_ends_waits_and_watches(name: str) -> None:
    """Those who sleep are rung up: wait raises, the loop over a watch ends, and other readers sleep on."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as other:
        reader = Reader(name)
        kept = processes.locks_of("self")
        waiter = Waiter(reader.wait).until_asleep()
        watcher = Waiter(lambda: [snapshot.version for snapshot in reader.watch()]).until_asleep()
        bystander = Waiter(other.wait).until_asleep()
        reader.close()
        with pytest.raises(ClosedError):
            waiter.result()
        assert watcher.result() == [1]
        for call in (reader.wait, reader.watch, lambda: reader.wait(timeout=0)):
            with pytest.raises(ClosedError):
                call()
        assert processes.locks_of("self") == kept
        assert bystander.until_asleep().waits
        writer.publish(value_of(2))
        assert bystander.result().version == 2


def test_close_during_a_look_is_not_missed(name: str) -> None:
    """A close between a look and the sleep that follows it ends the wait: the sleep does not begin."""
    inside, go_on = threading.Event(), threading.Event()

    def transform(value: Any) -> Any:
        inside.set()
        assert go_on.wait(WATCHDOG)
        return value

    with Writer(name, initial=value_of(1)) as writer:
        reader = Reader(name, transform=transform)
        waiter = Waiter(lambda: reader.wait(after=1)).until_asleep()
        writer.publish(value_of(2))
        assert inside.wait(WATCHDOG)
        reader.close()
        go_on.set()
        with pytest.raises(ClosedError):
            waiter.result()
        assert (reader._cached(), reader._store, processes.locks_of("self")) == (None, None, [])


def test_closed_reader_keeps_no_store(name: str) -> None:
    """Whatever another thread of the reader is doing, after close() it has let go of the store for good."""
    switch = sys.getswitchinterval()
    with Writer(name, initial=value_of(1)):

        def look(reader: Reader[Any]) -> None:
            try:
                while True:
                    with pytest.raises(WaitTimeoutError):
                        reader.wait(timeout=0)
            except ClosedError:
                pass

        sys.setswitchinterval(1e-6)
        try:
            kept = 0
            for _ in range(100):
                reader = Reader(name)
                waiter = Waiter(lambda r=reader: look(r))  # type: ignore[misc]
                reader.get()
                reader.close()
                waiter.result()
                kept += reader._store is not None
        finally:
            sys.setswitchinterval(switch)
        assert kept == 0


def test_nothing_is_left_of_a_wait(name: str, spawn: Callable[..., Child]) -> None:
    """When a wait has ended and its reader was closed there is no descriptor, no marker and no map of the store."""
    Writer(name, initial=value_of(1)).close()
    child = spawn(_publisher, name)
    assert (processes.shm_descriptors(), _maps(name)) == ([], 0)
    reader = Reader(name)
    waiter = Waiter(lambda: reader.wait(after=1).version).until_asleep()
    assert processes.locks_of("self") == []  # an idle waiter marks nothing
    child.ask(2)
    assert waiter.result() == 2
    with pytest.raises(WaitTimeoutError):
        reader.wait(timeout=0.01)
    assert processes.seen_by(os.getpid(), name) == {2}
    reader.close()
    assert (processes.shm_descriptors(), processes.locks_of("self"), _maps(name)) == ([], [], 0)


def _maps(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(f"shmcow.{name}")


# ---- signals ----


def _interrupted(link: Link, name: str, others: int) -> None:
    """Wait in the main thread, with other threads that wait, until SIGINT comes."""
    reader = Reader(name)
    for _ in range(others):
        threading.Thread(target=reader.wait, daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = reader.watch()
    next(watch)
    for wait in (reader.wait, watch.__next__):
        try:
            wait()
        except KeyboardInterrupt:
            link.send("interrupted")
        link.recv()


@pytest.mark.parametrize("others", [0, 4])
def test_interrupt_ends_a_wait_in_its_sleep(name: str, spawn: Callable[..., Child], others: int) -> None:
    """Ctrl-C in the main thread raises out of the sleep itself, alone or beside other waiting threads."""
    with Writer(name, initial=value_of(1)):
        child = spawn(_interrupted, name, others)
        for _ in range(2):
            until_asleep(1 + others, child.pid)
            child.signal(signal.SIGINT)
            assert child.recv() == "interrupted"
            child.send("go on")
        child.done()


def _signalled_elsewhere(link: Link, name: str) -> None:
    """Wait in the main thread; another thread takes the signal, so the sleep itself is not interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reader = Reader(name)
    main = threading.get_native_id()

    def take() -> None:
        until(lambda: main in sleepers(), "the main thread sleeps")
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=take, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        reader.wait()
    link.send("interrupted")


def test_interrupt_that_another_thread_takes_is_noticed(name: str, spawn: Callable[..., Child]) -> None:
    """A signal that does not interrupt the sleep, because it came just before or elsewhere, costs a slice at most."""
    with Writer(name, initial=value_of(1)):
        assert spawn(_signalled_elsewhere, name).recv() == "interrupted"


def _publishing_handler(link: Link, name: str) -> None:
    writer, reader = Writer(name), Reader(name)
    signal.signal(signal.SIGUSR1, lambda *_: link.send("handled"))
    signal.signal(signal.SIGUSR2, lambda *_: writer.publish(value_of(2)))
    link.send(reader.wait().version)


def test_wait_goes_on_after_a_signal_handler(name: str, spawn: Callable[..., Child]) -> None:
    """A handler runs at once, in mid-wait; it may even publish what is waited for."""
    with Writer(name, initial=value_of(1)):
        child = spawn(_publishing_handler, name)
        until_asleep(1, child.pid)
        child.signal(signal.SIGUSR1)
        assert child.recv() == "handled"
        until_asleep(1, child.pid)
        child.signal(signal.SIGUSR2)
        assert child.recv() == 2
        child.done()


# ---- fork ----


def _forked_beside_a_waiter(link: Link, reader: Reader[Any]) -> None:
    link.send(len(os.listdir("/proc/self/task")))
    link.send(reader.wait(after=1).version)


@pytest.mark.parametrize("fork", [os.fork, _PYTHON_LIBC.fork], ids=["os.fork", "fork in C"])
def test_child_forked_while_a_thread_waits_waits_on_its_own(
    name: str, spawn: Callable[..., Child], fork: Callable[[], int]
) -> None:
    """The child has no waiting thread, waits with the same reader, and both are woken."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        reader.get()
        waiter = Waiter(reader.wait).until_asleep()
        child = spawn(_forked_beside_a_waiter, reader, fork=fork)
        assert child.recv() == 1
        until_asleep(1, child.pid)
        assert waiter.waits
        writer.publish(value_of(2))
        assert (waiter.result().version, child.recv()) == (2, 2)
        child.done()


def test_close_in_a_child_rings_nobody_in_the_parent(name: str, spawn: Callable[..., Child]) -> None:
    """What ends the waits of one process is private to it."""
    with Writer(name, initial=value_of(1)) as writer, Reader(name) as reader:
        waiter = Waiter(reader.wait).until_asleep()
        spawn(lambda _, r: r.close(), reader).done()
        assert waiter.until_asleep().waits
        writer.publish(value_of(2))
        assert waiter.result().version == 2


# ---- without futex_waitv ----


def _refuse(call: int, error: int) -> None:
    """Make a system call fail, for the rest of this process, as a sandbox does."""
    program = b"".join(
        code.to_bytes(2, "little") + bytes([jt, jf]) + k.to_bytes(4, "little")
        for code, jt, jf, k in (
            (0x20, 0, 0, 0),  # load the number of the call
            (0x15, 0, 1, call),  # is it this one?
            (0x06, 0, 0, 0x00050000 | error),  # SECCOMP_RET_ERRNO
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("at", ctypes.c_char_p)]

    filters = Program(len(program) // 8, program)
    assert _LIBC.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert _LIBC.prctl(22, 2, ctypes.byref(filters), 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP


def _without_waitv(link: Link, name: str, error: int) -> None:
    _refuse(FUTEX_WAITV, error)
    _LIBC.syscall(ctypes.c_long(FUTEX_WAITV), None, 0, 0, None, 0)
    assert ctypes.get_errno() == error
    reader = Reader(name)
    link.send("ready")
    link.send(reader.wait(after=1).version)
    waiter = Waiter(reader.wait).until_asleep()
    with pytest.raises(WaitTimeoutError):
        reader.wait(timeout=0.05)
    reader.close()
    with pytest.raises(ClosedError):
        waiter.result()
    link.send("closed")


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["old kernel", "sandbox"])
def test_old_kernels_and_sandboxes_can_wait(name: str, spawn: Callable[..., Child], error: int) -> None:
    """Where the kernel refuses futex_waitv() a wait is woken, timed out and closed all the same."""
    with Writer(name, initial=value_of(1)) as writer:
        child = spawn(_without_waitv, name, error)
        assert child.recv() == "ready"
        until_asleep(1, child.pid)
        writer.publish(value_of(2))
        assert child.recv() == 2
        assert child.recv() == "closed"
        child.done()


# ---- the end of the interpreter ----

_EXITING = """
import concurrent.futures, os, sys, threading
import shmcow
from sleepers import until_asleep

name, kind = sys.argv[1:]
reader = shmcow.Reader(name)
absent = shmcow.Reader(name + "-absent", attach_timeout=3600)

def watch():
    for snapshot in reader.watch():
        pass
    raise shmcow.ClosedError("the loop ended")

def run(function):
    try:
        function()
    except shmcow.ClosedError:
        os.write(1, b"ended ")

functions = [reader.wait, watch, absent.get]
if kind == "pool":
    pool = concurrent.futures.ThreadPoolExecutor()
    for function in functions:
        pool.submit(run, function)
else:
    for function in functions:
        threading.Thread(target=run, args=(function,), daemon=kind == "daemon").start()
reader.subscribe(lambda old, new: None)
until_asleep(4)
"""


@pytest.mark.parametrize("kind", ["daemon", "thread", "pool"])
def test_interpreter_exits_while_threads_wait(name: str, kind: str) -> None:
    """A program whose main thread has ended exits by itself, whatever kind of thread still waits."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(_core.__file__).parents[1])])
    with Writer(name, initial=value_of(1)):
        ended = subprocess.run(
            [sys.executable, "-c", _EXITING, name, kind],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=WATCHDOG,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (0, "")
    if kind != "daemon":
        assert ended.stdout == "ended " * 3


def test_waiters_of_one_reader_decode_each_version_once(name: str) -> None:
    """However many threads of a process wait with one reader, transform= runs once for each version."""
    made: list[int] = []
    begun, go_on = threading.Semaphore(0), threading.Event()

    def transform(value: int) -> int:
        if value > 1:
            begun.release()
            assert go_on.wait(processes.WATCHDOG)
        made.append(value)
        return value

    with Writer(name, initial=1) as writer, Reader(name, transform=transform) as reader:
        assert reader.get() == 1
        seen: list[int] = []
        threads = [threading.Thread(target=lambda: seen.append(reader.wait(after=1).value)) for _ in range(12)]
        for thread in threads:
            thread.start()
        writer.publish(2)
        assert begun.acquire(timeout=processes.WATCHDOG)
        # Whoever comes late enough finds the others at work, too.
        late = threading.Thread(target=lambda: seen.append(reader.wait(after=1).value))
        late.start()
        processes.until(lambda: reader._awaited, "somebody waits for the thread that decodes")
        go_on.set()
        for thread in [*threads, late]:
            thread.join(processes.WATCHDOG)
        assert seen == [2] * 13
        assert made == [1, 2]
        writer.destroy()


def test_wait_begun_before_there_is_a_store_ends_with_its_first_version(name: str) -> None:
    """Whatever is in the store when it comes is newer than "now": also a version that was there from the start."""
    with Reader(name, attach_timeout=WATCHDOG) as reader:
        waiter = Waiter(reader.wait).until_asleep()
        with Writer(name, initial=1) as writer:
            assert waiter.result().version == 1
            writer.destroy()


@pytest.mark.parametrize("on_bad", ["keep", "raise"])
def test_watch_is_told_once_of_a_file_that_is_no_store(name: str, on_bad: Any) -> None:
    """With "keep" it goes on waiting, as ``get()`` goes on with its value; with "raise" it raises once, then waits."""
    with Writer(name, initial=1) as writer, Reader(name, on_bad=on_bad) as reader:
        watch = reader.watch()
        assert next(watch).version == 1
        header, away = SHM / f"shmcow.{name}", SHM / f"shmcow.{name}.away"
        header.rename(away)
        header.write_bytes(b"no store")
        try:
            if on_bad == "raise":
                with pytest.raises(IncompatibleStoreError):
                    next(watch)
            waiter = Waiter(lambda: next(watch))
            until(lambda: isinstance(reader.problem, IncompatibleStoreError), "it is noticed")
            waiter.until_asleep()
        finally:
            away.rename(header)
        writer.publish(2)
        assert waiter.result().version == 2


def test_watch_raises_a_passing_trouble_once(name: str) -> None:
    """While no descriptor is left ``next()`` raises once, then waits, and goes on when there is one."""
    with Writer(name, initial=1) as writer, Reader(name, on_bad="raise") as reader:
        watch = reader.watch()
        assert next(watch).version == 1
        writer.publish(2)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                next(watch)
            assert isinstance(watch.look(), Sleep)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert next(watch).version == 2
