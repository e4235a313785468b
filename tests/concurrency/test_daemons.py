"""Daemonizing and exec: closed descriptors, their numbers given to other files, programs started while holding."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import multiprocessing
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import Child, Link, value_of, version_in

from shmcow import Raw, Reader, Writer

ALL = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 4096)
_LIBC = ctypes.PyDLL(None)  # the interpreter lock stays held over fork
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux


def close_all(*but: int, first: int = 3) -> None:
    """Close every descriptor from ``first`` on, as daemonizers do, but for these."""
    for keep in sorted(but):
        os.closerange(first, keep)
        first = keep + 1
    os.closerange(first, ALL)


class Handles:
    """What a process has of a store, and what it does with it when told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.writer: Writer[Any] = Writer(name, lock_timeout=processes.WATCHDOG)
        self.reader: Reader[Any] = Reader(name)
        self.holder: Reader[Any] | None = Reader(name)
        self.snap: Any = self.holder.snapshot().hold()
        self.view: Any = self.snap.data

    def do_get(self) -> int:
        return version_in(self.reader.get())

    def do_refresh(self) -> bool:  # get() itself looks at nothing but a word while no version is published
        return self.reader.refresh()

    def do_publish(self) -> int:
        return self.writer.publish(value_of(self.writer.version + 1))

    def do_reclaim(self) -> int:
        return self.writer.reclaim()

    def do_held(self) -> list[int]:
        return sorted(processes.held_by(os.getpid(), self.name))

    def do_read(self) -> bool:
        return version_in(self.snap.value) == 1 and bytes(self.view) == bytes(self.snap.data)

    def do_descriptors(self) -> list[str]:
        return [Path(target).name.rpartition(".")[2] for target in processes.shm_descriptors()]

    def do_drop(self) -> None:
        self.holder = self.snap = self.view = None
        gc.collect()

    def do_close(self) -> None:
        self.do_drop()
        self.reader.close()
        self.writer.close()
        del self.reader, self.writer
        gc.collect()


def _serve(link: Link, handles: Handles) -> None:
    while (word := link.recv()) != "end":
        link.send(getattr(handles, "do_" + word)())


# ---- daemons ----


def fork_in_c() -> int:
    """Fork without Python's hooks."""
    return int(_LIBC.fork())


def _daemonize(link: Link, name: str, pipe: Any, fork: Callable[[], int], reads: str) -> None:
    """Detach as daemons do; ``reads`` says which of the processes on the way read before they close everything."""
    handles = Handles(name)
    link.send("ready")
    link.recv()
    if fork() == 0:
        if "child" in reads:
            handles.do_get()
        os.setsid()
        if fork() != 0:
            os._exit(0)
        if "daemon" in reads:
            handles.do_get()
            assert handles.do_held() == [1]
        os.chdir("/")
        os.umask(0)
        close_all(pipe.fileno())
        pipe.send(os.getpid())
        try:
            _serve(Link(pipe), handles)
        finally:
            os._exit(0)
    os.wait()
    _serve(link, handles)


class Daemon:
    """The far end of a pipe that a daemon kept open."""

    def __init__(self) -> None:
        self._ours, self.theirs = multiprocessing.Pipe()
        self.pid = 0

    def hear(self) -> Any:
        assert self._ours.poll(processes.WATCHDOG), "the daemon says nothing"
        return self._ours.recv()

    def ask(self, word: str) -> Any:
        self._ours.send(word)
        return self.hear()

    def end(self) -> None:
        """Close our end: the daemon notices, and leaves; who hangs is killed by its pid."""
        self._ours.close()
        self.theirs.close()
        if self.pid:
            try:
                processes.until(lambda: processes.state_of(self.pid) in ("", "Z"), "the daemon ends", 10)
            except AssertionError:
                os.kill(self.pid, signal.SIGKILL)
                raise


@pytest.fixture
def daemon(name: str) -> Iterator[Daemon]:  # noqa: ARG001 - the store is removed after the daemon
    """The pipe of a daemon to be; it does not outlive the test."""
    made = Daemon()
    yield made
    made.end()


@pytest.mark.parametrize("reads", ["nobody", "child", "daemon", "child, daemon"])
@pytest.mark.parametrize("fork", [pytest.param(os.fork, id="os.fork"), pytest.param(fork_in_c, id="fork in C")])
def test_daemon_goes_on_with_all_that_it_inherited(
    name: str, spawn: Callable[..., Child], daemon: Daemon, fork: Any, reads: str
) -> None:
    """Two forks, setsid, chdir, every descriptor closed: the daemon reads, holds and publishes, its origin likewise."""
    writer = Writer(name, initial=value_of(1), retain=0)
    origin = spawn(_daemonize, name, daemon.theirs, fork, reads)
    assert origin.recv() == "ready"
    origin.send("daemonize")
    daemon.pid = daemon.hear()
    assert daemon.ask("descriptors") == []
    assert origin.ask("held") == [1]
    assert writer.publish(value_of(2)) == 2
    assert daemon.ask("read")
    assert daemon.ask("get") == 2
    assert daemon.ask("held") == [1]  # again, by itself
    assert origin.ask("publish") == 3
    assert daemon.ask("publish") == 4
    assert daemon.ask("read")
    origin.ask("close")
    assert daemon.ask("reclaim") == 0
    origin.kill()
    assert writer.reclaim() == 0
    assert processes.versions_of(name) == [4, 1]
    assert daemon.ask("get") == 4
    daemon.ask("drop")
    assert writer.reclaim() == 1
    assert daemon.ask("publish") == 5
    processes.assert_at_rest(name)
    writer.destroy()


def test_daemon_blocks_nothing_of_a_killed_origin(name: str, spawn: Callable[..., Child], daemon: Daemon) -> None:
    """The process that a daemon came from is killed; the daemon, which has read nothing since, holds nothing."""
    writer = Writer(name, initial=value_of(1), retain=0)
    origin = spawn(_daemonize, name, daemon.theirs, os.fork, "nobody")
    origin.recv()
    origin.send("daemonize")
    daemon.pid = daemon.hear()
    writer.publish(value_of(2))
    origin.kill()
    assert writer.reclaim() == 1
    assert daemon.ask("read")  # mapped all the same
    assert daemon.ask("get") == 2
    writer.destroy()


# ---- every descriptor closed in a process that goes on ----


def _closes_all(link: Link, name: str, order: str) -> None:
    handles = Handles(name)
    handles.do_get()
    before = handles.do_descriptors()
    numbers = [getattr(link._connection, "fileno")()]  # noqa: B009 - the pipe to the test
    link.send((handles.do_held(), before))
    link.recv()
    close_all(*numbers)
    assert handles.do_descriptors() == []
    for word in order.split():
        link.send((word, getattr(handles, "do_" + word)(), handles.do_held(), handles.do_descriptors()))
    link.recv()
    handles.do_drop()
    link.send(handles.do_held())
    link.recv()


@pytest.mark.parametrize("order", ["get publish get", "publish get publish", "read publish publish", "reclaim get"])
def test_closed_descriptors_are_opened_again_each_for_itself(
    name: str, spawn: Callable[..., Child], order: str
) -> None:
    """After os.closerange() the next read or publish opens anew, holds again, and shares no descriptor by accident."""
    writer = Writer(name, initial=value_of(1), retain=0)
    child = spawn(_closes_all, name, order)
    held, before = child.recv()
    assert (held, before) == ([1], ["holds", "holds", "lock"])
    writer.publish(value_of(2))
    child.send("close")
    version = 2
    for word in order.split():
        did, result, held, descriptors = child.recv()
        assert did == word
        version += word == "publish"
        assert result == {"get": version, "publish": version, "read": True, "reclaim": 0}[word]
        assert held == [1]
        # the claim, the descriptor that markers are tested with, and the lock: never two on one number
        assert len(descriptors) <= 3
        assert descriptors.count("holds") <= 2
        assert descriptors.count("lock") <= 1
    # Its own writer looks for markers on a description of its own, or it would not see the child's and reclaim 1.
    assert processes.held_by(child.pid, name) == {1}
    assert processes.versions_of(name) == [version, 1]
    child.send("drop")
    assert child.recv() == []
    assert writer.reclaim() >= 1
    child.send("end")
    child.done()
    writer.destroy()


def _swaps_numbers(link: Link, name: str, role: str) -> None:
    handles = Handles(name)
    handles.do_publish()
    handles.do_get()
    marked = {}  # the numbers on the holds file: the claim has markers, the descriptor to test with has none
    for number in _shm_numbers():
        if os.readlink(f"/proc/self/fd/{number}").endswith(".holds"):
            marked["lock:" in Path(f"/proc/self/fdinfo/{number}").read_text()] = number
    free = marked[role == "claim"]
    close_all(link._connection.fileno())
    null = os.open("/dev/null", os.O_RDWR)
    while null < free:  # what is opened next gets that number
        null = os.open("/dev/null", os.O_RDWR)
    os.close(null)
    link.send(free)
    while (word := link.recv()) != "end":
        link.send((getattr(handles, "do_" + word)(), handles.do_held()))


@pytest.mark.parametrize("role", ["claim", "test"])
@pytest.mark.parametrize("words", ["refresh publish reclaim", "publish reclaim refresh", "reclaim publish"])
def test_number_on_the_same_file_is_not_taken_for_ones_own(
    name: str, spawn: Callable[..., Child], words: str, role: str
) -> None:
    """Opened anew with a number that another descriptor of the holds file had: each has its own description."""
    writer = Writer(name, initial=value_of(1), retain=0)
    child = spawn(_swaps_numbers, name, role)
    child.recv()
    for word in words.split():
        result, held = child.ask(word)
        assert held == [1], word
        assert result == {"refresh": result, "publish": writer.version, "reclaim": 0}[word]
    assert child.ask("publish") == (writer.version, [1])
    assert processes.versions_of(name) == [writer.version, 1]
    child.ask("drop")
    assert writer.reclaim() == 1
    child.send("end")
    child.done()
    writer.destroy()


# ---- numbers that were given to other files ----


def _flock(fd: int, command: int, kind: int, offset: int) -> int:
    """Set or test a one-byte lock; the kind of lock that is in the way."""
    lock = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
    return int(_FLOCK.unpack(lock)[0])


class _Foreign:
    """A file of somebody else on one number, with bytes, a position and locks that must stay as they are."""

    BYTES = b"somebody else's bytes\n" * 10

    def __init__(self, path: Path, number: int, offsets: list[int], posix: bool) -> None:
        self.path, self.number, self.offsets, self.posix = path, number, offsets, posix
        path.write_bytes(self.BYTES)
        fd = os.open(path, os.O_RDWR)
        if fd != number:
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        os.lseek(number, 7, os.SEEK_SET)
        self.inode = os.fstat(number).st_ino
        for offset in offsets:
            if posix:
                fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            else:
                _flock(number, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, offset)

    def check(self) -> None:
        assert os.fstat(self.number).st_ino == self.inode, f"{self.path} is no longer on {self.number}"
        assert os.lseek(self.number, 0, os.SEEK_CUR) == 7
        assert os.pread(self.number, 1000, 0) == self.BYTES


def _shm_numbers() -> list[int]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}").startswith("/dev/shm/shmcow."):
                found.append(int(number))
        except FileNotFoundError:
            pass
    return sorted(found)


def _loses_numbers(link: Link, name: str, words: str, paths: list[Path], posix: bool) -> None:
    handles = Handles(name)
    handles.do_publish()
    handles.do_get()
    numbers = _shm_numbers()
    offsets = [0, 1, 2, (1 << 62) + 1, (1 << 62) + 2]  # where shmcow would lock and unlock
    assert len(numbers) == 3, numbers
    for number in numbers:
        os.close(number)
    foreign = [_Foreign(path, number, offsets, posix) for path, number in zip(paths, numbers, strict=True)]
    link.send(offsets)
    for word in words.split():
        if word == "fork":
            pid = os.fork()
            if pid == 0:
                try:
                    for other in foreign:
                        other.check()
                    assert version_in(handles.reader.get()) == 2
                    handles.do_close()
                    for other in foreign:
                        other.check()
                except BaseException as exc:
                    os.write(2, repr(exc).encode())
                    os._exit(1)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        else:
            getattr(handles, "do_" + word)()
        for other in foreign:
            other.check()
        link.send(word)
        link.recv()


@pytest.mark.parametrize(
    ("where", "posix"),
    [pytest.param("disk", True, id="on disk, POSIX locks"), pytest.param("shm", False, id="in shm, OFD locks")],
)
@pytest.mark.parametrize(
    "words", ["get", "drop get", "publish drop close", "fork publish get", "reclaim close", "close"]
)
def test_file_that_took_a_number_is_left_alone(
    name: str, spawn: Callable[..., Child], tmp_path: Path, words: str, where: str, posix: bool
) -> None:
    """A file that was given the number of a closed descriptor is neither closed, nor written, locked or unlocked."""
    writer = Writer(name, initial=value_of(1), retain=2)
    folder = tmp_path if where == "disk" else Path("/dev/shm")  # the latter: the same device as ours
    paths = [folder / f"foreign-{name}-{k}" for k in range(3)]
    try:
        child = spawn(_loses_numbers, name, words, paths, posix)
        offsets = child.recv()
        for word in words.split():
            assert child.recv() == word
            for path in paths:
                fd = os.open(path, os.O_RDWR)
                try:
                    kinds = [_flock(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, offset) for offset in offsets]
                finally:
                    os.close(fd)
                assert kinds == [fcntl.F_WRLCK] * len(offsets), f"locks of {path} after {word}"
                assert path.read_bytes() == _Foreign.BYTES
            child.send("next")
        child.done()
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    writer.reclaim()
    processes.assert_at_rest(name)
    writer.destroy()


@pytest.mark.parametrize("way", ["closed", "taken"])
def test_descriptor_that_goes_while_a_version_is_decoded(
    name: str, spawn: Callable[..., Child], tmp_path: Path, way: str
) -> None:
    """After a decoder that closed the claim the version counts as seen, and who took the number keeps its locks."""
    writer = Writer(name, initial=value_of(1), retain=0)
    path = tmp_path / "foreign"
    offsets = [0, 1, 2, (1 << 62) + 1, (1 << 62) + 2]

    def body(link: Link) -> None:
        foreign: list[_Foreign] = []

        def transform(value: Any) -> Any:
            if version_in(value) == 2:
                (number,) = _shm_numbers()
                os.close(number)
                if way == "taken":
                    foreign.append(_Foreign(path, number, offsets, posix=False))
            return value

        reader: Reader[Any] = Reader(name, transform=transform)
        link.send(version_in(reader.get()))
        link.recv()
        link.send(version_in(reader.get()))
        for other in foreign:
            other.check()
        link.recv()

    child = spawn(body)
    assert child.recv() == 1
    writer.publish(value_of(2))
    assert child.ask("get") == 2
    assert processes.seen_by(child.pid, name) == {2}
    assert processes.held_by(child.pid, name) == set()
    if way == "taken":
        with path.open("rb+") as file:
            kinds = [_flock(file.fileno(), fcntl.F_OFD_GETLK, fcntl.F_WRLCK, offset) for offset in offsets]
        assert kinds == [fcntl.F_WRLCK] * len(offsets)
    child.send("end")
    child.done()
    writer.destroy()


def test_lock_that_a_closerange_dropped_is_not_written_under(name: str, spawn: Callable[..., Child]) -> None:
    """Update's function closes every descriptor, and with it the writer lock: nothing is published, later it is."""
    writer = Writer(name, initial=value_of(1))

    def body(link: Link) -> None:
        mine: Writer[Any] = Writer(name)

        def function(_: Any) -> Any:
            close_all(link._connection.fileno())
            return value_of(666)

        try:
            link.send(f"published {mine.update(function)}")
        except Exception as exc:
            link.send(f"{type(exc).__name__}: {exc}")
        link.send(mine.publish(value_of(2)))

    child = spawn(body)
    assert "lock" in child.recv()
    assert child.recv() == 2
    child.done()
    assert version_in(Reader(name).get()) == 2
    processes.assert_at_rest(name)
    writer.destroy()


# ---- exec ----

# What an exec'ed program finds: its descriptors on shared memory. It stays until its input ends.
_LOOK = """
import json, os, sys
found = []
for number in os.listdir("/proc/self/fd"):
    try:
        found.append(os.readlink("/proc/self/fd/" + number))
    except FileNotFoundError:
        pass
print(json.dumps([os.getpid(), [target for target in found if "/dev/shm" in target]]), flush=True)
sys.stdin.read()
"""
_PROGRAM = [sys.executable, "-I", "-S", "-c", _LOOK]


def _execs(link: Link, name: str, stdin: int, stdout: int) -> None:
    handles = Handles(name)
    handles.do_get()
    handles.do_publish()
    link.send(handles.do_held())
    with pytest.raises(FileNotFoundError):
        os.execv("/nonexistent/program", ["program"])
    link.send((handles.do_held(), handles.do_get()))  # an exec that failed loses nothing
    link.recv()
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.execv(_PROGRAM[0], _PROGRAM)


def test_holder_that_execs_another_program_blocks_nobody(name: str, spawn: Callable[..., Child]) -> None:
    """os.execv() while holding: same pid, no descriptor and no marker; what it held goes with the next reclaim."""
    writer = Writer(name, initial=value_of(1), retain=0)
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    child = spawn(_execs, name, in_read, out_write)
    assert child.recv() == [1]
    assert child.recv() == ([1], 2)
    assert writer.reclaim() == 0
    child.send("exec")
    os.close(out_write)
    os.close(in_read)
    with os.fdopen(out_read) as output:
        pid, found = json.loads(output.readline())
        assert (pid, found) == (child.pid, [])
        assert processes.locks_of(pid) == []
        assert writer.reclaim() == 1
        assert processes.versions_of(name) == [2]
        os.close(in_write)
        assert child.wait() == 0
    writer.destroy()


def _posix_spawn(stdin: int, stdout: int) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    return os.posix_spawn(_PROGRAM[0], _PROGRAM, os.environ, file_actions=actions)


def _popen(**kwargs: Any) -> Callable[[int, int], int]:
    def start(stdin: int, stdout: int) -> int:
        program = subprocess.Popen(_PROGRAM, stdin=stdin, stdout=stdout, **kwargs)
        program.returncode = 0  # the test reaps it by its pid
        return program.pid

    return start


def _popen_without_vfork(stdin: int, stdout: int) -> int:
    before = subprocess._USE_VFORK  # type: ignore[attr-defined]
    subprocess._USE_VFORK = False  # type: ignore[attr-defined]
    try:
        return _popen(close_fds=False)(stdin, stdout)
    finally:
        subprocess._USE_VFORK = before  # type: ignore[attr-defined]


STARTS = [
    pytest.param(_posix_spawn, id="posix_spawn"),
    pytest.param(_popen(close_fds=False), id="vfork"),
    pytest.param(_popen(close_fds=True), id="vfork, close_fds"),
    pytest.param(_popen_without_vfork, id="fork"),
    pytest.param(_popen(close_fds=False, preexec_fn=gc.collect), id="fork, preexec_fn"),
]


def _starts(link: Link, name: str, start: Callable[[int, int], int], stdin: int, stdout: int, far: int) -> None:
    os.close(far)  # or the programs' input would not end
    handles = Handles(name)
    handles.do_get()
    handles.do_publish()
    before = processes.locks_of("self")
    descriptors = processes.shm_descriptors()
    made = [start(stdin, stdout) for _ in range(3)]
    assert (processes.locks_of("self"), processes.shm_descriptors()) == (before, descriptors)
    link.send(made)
    _serve(link, handles)
    for pid in made:
        os.waitpid(pid, 0)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("start", STARTS)
def test_programs_started_while_holding_get_nothing(
    name: str, spawn: Callable[..., Child], start: Any, killed: bool
) -> None:
    """Programs started with vfork, posix_spawn or fork have no descriptor, and keep no marker when the holder dies."""
    writer = Writer(name, initial=value_of(1), retain=0)
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    child = spawn(_starts, name, start, in_read, out_write, in_write)
    pids = child.recv()
    os.close(in_read)
    os.close(out_write)
    with os.fdopen(out_read) as output:
        found = dict(json.loads(output.readline()) for _ in pids)
        assert found == {pid: [] for pid in pids}
        assert child.ask("held") == [1]
        assert child.ask("publish") == 3
        assert writer.reclaim() == 0
        if killed:
            child.kill()
            assert [processes.state_of(pid) not in ("", "Z") for pid in pids] == [True] * len(pids)
        else:
            child.ask("drop")
        assert writer.reclaim() == 1
        os.close(in_write)  # the programs end
        if not killed:
            child.send("end")
            child.done()
        assert output.read() == ""
    processes.assert_at_rest(name)
    writer.destroy()


# ---- a process without standard descriptors ----


def _closes_standard(link: Link, name: str) -> None:
    writer: Writer[Any] = Writer(name, codec=Raw())
    reader: Reader[Any] = Reader(name, codec=Raw())
    close_all(link._connection.fileno(), first=0)
    view = reader.get()
    writer.publish(b"two" * 1000)
    link.send(_shm_numbers())
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):  # what a daemonizer does next
        os.dup2(null, number)
    link.send((bytes(view[:3]), sorted(processes.held_by(os.getpid(), name))))
    link.recv()


def test_standard_descriptors_are_never_taken(name: str, spawn: Callable[..., Child]) -> None:
    """With 0 to 2 closed, nothing of ours gets their numbers: whoever prints would print into it, or close it."""
    writer = Writer(name, codec=Raw(), initial=b"one" * 1000, retain=0)
    child = spawn(_closes_standard, name)
    numbers = child.recv()
    assert len(numbers) == 3
    assert min(numbers) > 2
    assert child.recv() == (b"one", [1])
    child.send("end")
    child.done()
    writer.destroy()
