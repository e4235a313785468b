"""Fork: a child is a reader and a writer of its own, and never takes anything from its parent."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import processes
import pytest
from processes import Child, Link, value_of, version_in

from shmcow import Raw, Reader, Writer, WriterBusyError, destroy

_LIBC = ctypes.PyDLL(None)  # PyDLL: the interpreter lock stays held over fork, as os.fork() has it


def fork_in_c() -> int:
    """Fork as a C program does: pthread_atfork handlers run, Python's hooks do not."""
    return int(_LIBC.fork())


FORKS = [pytest.param(os.fork, id="os.fork"), pytest.param(fork_in_c, id="fork in C")]


def _talk(link: Link, things: dict[str, Any]) -> None:
    """Do what the parent asks for, one word at a time."""
    reader: Reader[Any] = things["reader"]
    while (asked := link.recv()) != "end":
        if asked == "descriptors":
            link.send(processes.shm_descriptors())
        elif asked == "locks":
            link.send(processes.locks_of("self"))
        elif asked == "get":
            link.send(version_in(reader.get()))
        elif asked == "drop":
            things.pop("snap", None)
            things.pop("view", None)
            gc.collect()
            link.send("dropped")
        elif asked == "release":
            things["snap"].release()
            link.send("released")
        elif asked == "read held":
            link.send(version_in(things["snap"].value))
        elif asked == "publish":
            link.send(things["writer"].publish(value_of(things["writer"].version + 1)))


def _relay(link: Link, name: str, fork: Callable[[], int]) -> None:
    """Hold a version, fork a child that holds it by inheritance, and wait to be killed."""
    reader = Reader(name)
    things = {"reader": reader, "snap": reader.snapshot().hold()}
    child = Child(_talk, things, fork=fork)
    link.send(child.pid)
    while True:
        link.send(child.ask(link.recv()))


@pytest.mark.parametrize("fork", FORKS)
def test_child_has_no_descriptor_of_its_parent(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """A new child has none of its parent's descriptors on shared memory, and so none of its locks and markers."""
    writer = Writer(name, initial=value_of(1))
    reader = Reader(name)
    snap = reader.snapshot().hold()
    writer.publish(value_of(2))
    assert version_in(reader.get()) == 2
    mine, locks = processes.shm_descriptors(), processes.locks_of("self")
    assert len(mine) >= 2
    child = spawn(_talk, {"reader": reader, "snap": snap, "writer": writer}, fork=fork)
    assert child.ask("descriptors") == []
    assert child.ask("locks") == []
    assert (processes.shm_descriptors(), processes.locks_of("self")) == (mine, locks)
    assert child.ask("get") == 2
    # Now it is a reader of its own: what it inherited as held is held by it too.
    assert processes.held_by(child.pid, name) == {1}
    assert processes.seen_by(child.pid, name) == {2}
    assert (processes.shm_descriptors(), processes.locks_of("self")) == (mine, locks)
    child.send("end")
    child.done()
    snap.release()
    writer.destroy()


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("way", ["drop", "release", "end", "get drop", "get release", "get end"])
def test_child_never_clears_its_parents_markers(name: str, spawn: Callable[..., Child], fork: Any, way: str) -> None:
    """Whether the child drops, releases, or exits, before or after its first get(): the parent goes on holding."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader = Reader(name)
    snap = reader.snapshot().hold()
    view = snap.data
    child = spawn(_talk, {"reader": reader, "snap": snap, "view": view}, fork=fork)
    for word in way.split():
        child.send(word)
        if word != "end":
            child.recv()
        assert processes.held_by(os.getpid(), name) == {1}
    if "end" in way:
        child.done()
    else:
        child.end()
    assert processes.held_by(os.getpid(), name) == {1}
    assert processes.seen_by(os.getpid(), name) == {1}
    for version in range(2, 6):
        writer.publish(value_of(version))
    assert processes.versions_of(name) == [5, 1]
    assert version_in(Reader(name).at(1).value) == 1
    del view
    snap.release()
    writer.reclaim()
    assert processes.versions_of(name) == [5]
    writer.destroy()


@pytest.mark.parametrize("fork", FORKS)
def test_idle_child_has_none_of_its_parents_markers(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """A child that only idles holds nothing; its own read sets its own markers, which go with it."""
    writer = Writer(name, initial=value_of(1), retain=0)
    parent = spawn(_relay, name, fork)
    child = parent.recv()
    writer.publish(value_of(2))
    assert processes.held_by(parent.pid, name) == {1}
    # until: fork() may return in the parent before the child has run its first instruction, and closed its copies
    processes.until(lambda: processes.held_by(child, name) == set(), "the child closes what it inherited")
    assert parent.ask("get") == 2
    assert processes.held_by(child, name) == {1}
    assert parent.ask("read held") == 1
    parent.kill()
    processes.until(lambda: processes.state_of(child) in ("", "Z"), "the child dies with its parent")
    writer.reclaim()
    assert processes.versions_of(name) == [2]
    writer.destroy()


def _orphan(link: Link, things: dict[str, Any]) -> None:
    processes._LIBC.prctl(1, 0, 0, 0, 0)  # outlive the parent
    things["pid"].send(os.getpid())
    _talk(link, things)


def _forks_and_idles(link: Link, name: str, grandchild: Any, fork: Callable[[], int], pid: Any) -> None:
    reader = Reader(name)
    things = {"reader": reader, "snap": reader.snapshot().hold(), "pid": pid}
    made = Child(lambda _, t: _orphan(Link(grandchild), t), things, fork=fork)
    link.send(made.pid)
    link.recv()


@pytest.mark.parametrize("fork", FORKS)
def test_child_outlives_its_parent_and_holds_by_itself(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """A child whose parent was killed blocks nothing until it reads; then it reads the newest, and holds for itself."""
    import multiprocessing

    ours, theirs = multiprocessing.Pipe()
    writer = Writer(name, initial=value_of(1), retain=0)
    parent = spawn(_forks_and_idles, name, theirs, fork, theirs)
    child = parent.recv()
    assert ours.poll(processes.WATCHDOG)
    assert ours.recv() == child
    writer.publish(value_of(2))
    assert processes.versions_of(name) == [2, 1]
    parent.kill()
    parent.wait()
    assert processes.state_of(child) not in ("", "Z")
    assert writer.reclaim() == 1
    assert processes.versions_of(name) == [2]

    def ask(word: str) -> Any:
        ours.send(word)
        assert ours.poll(processes.WATCHDOG)
        return ours.recv()

    assert ask("read held") == 1  # the value is its own
    assert ask("get") == 2
    assert 2 in processes.seen_by(child, name)
    ours.send("end")
    processes.until(lambda: processes.state_of(child) in ("", "Z"), "the orphan ends")
    ours.close()
    theirs.close()
    writer.destroy()


@pytest.mark.parametrize("fork", FORKS)
def test_child_holds_what_it_inherited_although_it_finds_no_newer_version(
    name: str, spawn: Callable[..., Child], fork: Any
) -> None:
    """A child whose first get() finds the store ended, with nothing to hold, holds what it inherited all the same."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader = Reader(name)
    snap = reader.snapshot().hold()
    child = spawn(_talk, {"reader": reader, "snap": snap}, fork=fork)
    _, core = writer._keeper.attach(create=False)
    core.give_notice()  # as far as a destroy comes that is killed then
    assert child.ask("get") == 1
    assert processes.held_by(child.pid, name) == {1}
    child.send("end")
    child.done()
    snap.release()
    destroy(name)


@pytest.mark.parametrize("fork", FORKS)
def test_views_of_a_child_stay_readable(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """What a child inherited as mapped stays mapped in it, whatever becomes of the version."""
    writer: Writer[Any] = Writer(name, codec=Raw(), initial=b"inherited" * 1000, retain=0)
    reader: Reader[Any] = Reader(name, codec=Raw())
    views = [reader.get()]

    def body(link: Link) -> None:
        link.recv()
        link.send(bytes(views[0]) == b"inherited" * 1000)
        link.send(bytes(reader.get()))

    child = spawn(body, fork=fork)
    views.clear()
    for _ in range(3):
        writer.publish(b"new")
        reader.get()
    writer.reclaim()
    assert processes.versions_of(name) == [4]
    child.send("look")
    assert child.recv() is True
    assert child.recv() == b"new"
    child.done()
    writer.destroy()


# ---- writers ----


@pytest.mark.parametrize("fork", FORKS)
def test_fork_inside_update(name: str, fork: Any) -> None:
    """Both return from the function: the parent publishes, the child gets WriterBusyError, and may publish later."""
    writer = Writer(name, initial=value_of(1), lock_timeout=0.05)
    read, write = os.pipe()
    go_read, go_write = os.pipe()
    pid = -1
    outcome = b"?"

    def function(_: Any) -> Any:
        nonlocal pid
        pid = fork()
        return value_of(2 if pid else 666)

    try:
        version = writer.update(function)
        outcome = b"published %d" % version
    except WriterBusyError as exc:
        outcome = b"busy" if "fork" in str(exc) else str(exc).encode()
    if pid == 0:
        try:
            os.write(write, outcome + b"\n")
            os.read(go_read, 1)
            os.write(write, b"later %d\n" % writer.publish(value_of(writer.version + 1)))
        except BaseException as exc:
            os.write(write, repr(exc).encode())
        finally:
            os._exit(0)
    assert outcome == b"published 2"
    assert os.read(read, 1000) == b"busy\n"
    assert writer.publish(value_of(3)) == 3
    os.write(go_write, b"g")
    assert os.read(read, 1000) == b"later 4\n"
    os.waitpid(pid, 0)
    for descriptor in (read, write, go_read, go_write):
        os.close(descriptor)
    assert version_in(Reader(name).get()) == 4
    processes.assert_at_rest(name)
    writer.destroy()


@pytest.mark.parametrize("fork", FORKS)
def test_child_of_a_process_whose_thread_holds_the_lock(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """Forked while another thread is in update: the child waits for nothing that it inherited, and keeps nothing."""
    writer = Writer(name, initial=value_of(1))
    entered, leave = threading.Event(), threading.Event()

    def function(_: Any) -> Any:
        entered.set()
        assert leave.wait(processes.WATCHDOG)
        return value_of(2)

    thread = threading.Thread(target=writer.update, args=(function,))
    thread.start()
    assert entered.wait(processes.WATCHDOG)

    def body(link: Link) -> None:
        writer._keeper.lock_timeout = 0.05
        try:
            writer.publish(value_of(2))
            link.send("published")
        except WriterBusyError as exc:
            link.send(str(exc))
        link.send(processes.shm_descriptors())
        link.recv()
        link.send(writer.publish(value_of(3)))
        link.recv()

    child = spawn(body, fork=fork)
    assert f"pid {os.getpid()}" in child.recv()  # the parent's thread has it, as the child finds by asking
    assert all(name in target for target in child.recv())
    leave.set()
    thread.join(processes.WATCHDOG)
    assert writer.version == 2
    assert child.ask("publish") == 3
    assert writer.publish(value_of(4)) == 4  # while the child lives
    child.send("end")
    child.done()
    processes.assert_at_rest(name)
    writer.destroy()


@pytest.mark.parametrize("fork", FORKS)
def test_child_forked_while_a_thread_fills_a_segment_keeps_no_part_of_it(
    name: str, spawn: Callable[..., Child], fork: Any
) -> None:
    """The descriptor of a half-written segment does not stay open in a child: it would keep the memory for ever."""
    writer = Writer(name, codec=Raw(), initial=b"", retain=0)
    payload = bytes(128 << 20)

    def half_written() -> bool:
        return any(0 < os.stat(f"/dev/shm/{file}").st_size < len(payload) for file in segments() - {first})

    def segments() -> set[str]:
        return {file for file in os.listdir("/dev/shm") if file.startswith(f"shmcow.{name}.") and file[-1].isdigit()}

    for _ in range(20):  # until the fork came while the segment was being written, as it nearly always does
        (first,) = segments()
        thread = threading.Thread(target=writer.publish, args=(payload,))
        thread.start()
        processes.until(lambda old=first: bool(segments() - {old}), "a new segment")
        child = spawn(_talk, {"reader": Reader(name)}, fork=fork)
        caught = half_written()
        found = child.ask("descriptors")
        thread.join(processes.WATCHDOG)
        child.send("end")
        child.done()
        assert found == []
        if caught:
            break
    else:
        raise AssertionError("no fork came while a segment was being written")
    writer.destroy()


@pytest.mark.parametrize("fork", FORKS)
def test_killed_parent_frees_the_lock_though_its_child_lives(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """A process killed inside update, with a child that it forked there: nobody needs to wait for the child."""
    writer = Writer(name, initial=value_of(1), lock_timeout=0)

    def child_body(link: Link) -> None:
        link.send("started")
        link.recv()

    def body(link: Link) -> None:
        def function(_: Any) -> Any:
            child = Child(child_body, fork=fork)
            link.send((child.pid, child.recv()))
            link.recv()

        Writer(name).update(function)

    parent = spawn(body)
    child, _ = parent.recv()
    with pytest.raises(WriterBusyError):
        writer.publish(value_of(2))
    os.kill(child, signal.SIGSTOP)
    try:
        processes.until(lambda: processes.state_of(child) == "T", "the child stops")
        # Stopped, it cannot notice anything, let alone close anything.
        assert processes.shm_descriptors(child) == []
        parent.signal(signal.SIGSTOP)  # a killed parent would take the child with it: first see that it still holds
        with pytest.raises(WriterBusyError):
            writer.publish(value_of(2))
        parent.kill()
        assert writer.publish(value_of(2)) == 2
    finally:
        os.kill(child, signal.SIGKILL)
    writer.destroy()


@pytest.mark.parametrize("fork", FORKS)
def test_child_cannot_write_what_its_parent_may_write(name: str, spawn: Callable[..., Child], fork: Any) -> None:
    """A child has no writable map of a header that its parent writes; it makes one if its own rights allow that."""
    writer = Writer(name, initial=value_of(1))

    def maps() -> list[str]:
        with open("/proc/self/maps") as lines:
            return [line.split()[1] for line in lines if f"/dev/shm/shmcow.{name}" in line]

    def body(link: Link) -> None:
        link.send(maps())
        link.send(writer.publish(value_of(2)))
        link.send(maps())

    child = spawn(body, fork=fork)
    assert child.recv() == ["r--s"]
    assert child.recv() == 2
    assert sorted(child.recv()) == ["r--s", "rw-s"]
    child.done()
    assert sorted(maps()) == ["r--s", "rw-s"]
    assert writer.publish(value_of(3)) == 3
    writer.destroy()
