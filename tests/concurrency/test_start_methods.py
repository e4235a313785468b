"""Workers that multiprocessing starts, by fork, spawn and forkserver; and forks in the midst of busy threads."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import processes
import pytest
import started
import victims
from processes import Child, value_of, version_in

import shmcow
from shmcow import Raw, Reader, VersionGoneError, Writer

FORKS = 200
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux


def markers_left(name: str) -> bool:
    """Tell whether the kernel knows any lock on a store's holds file, asked through a description of our own."""
    (path,) = [entry for entry in processes.objects_of(name) if entry.endswith(".holds")]
    fd = os.open(f"/dev/shm/{path}", os.O_RDONLY)
    try:
        asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)


# ---- multiprocessing ----


class Program:
    """started.py, running."""

    def __init__(self, method: str, kind: str, name: str) -> None:
        path = os.pathsep.join([str(Path(started.__file__).parent), str(victims.ROOT)])
        environment = {**os.environ, "SHMCOW_TEST_STORE": name, "PYTHONPATH": path}
        if method == "preload":
            environment["SHMCOW_TEST_PRELOAD"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, started.__file__, method, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.pid = self._process.pid
        self.fresh = self.ask("fresh")  # answered when all are there

    def ask(self, word: str) -> dict[int, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(word.encode() + b"\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], processes.WATCHDOG)
        line = stdout.readline() if ready else b""
        assert line, f"no answer to {word!r}"
        return dict(json.loads(line))

    def end(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.close()
        stdout.close()
        try:
            assert self._process.wait(processes.WATCHDOG) == 0
        finally:
            self._process.kill()
            self._process.wait(processes.WATCHDOG)


@pytest.fixture
def start(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Program]]:
    """Start the program with ``start(method, kind)``."""
    monkeypatch.delenv("SHMCOW_TEST_PRELOAD", raising=False)
    programs: list[Program] = []

    def make(method: str, kind: str) -> Program:
        programs.append(Program(method, kind, name))
        return programs[-1]

    yield make
    for program in programs:
        program.end()


@pytest.mark.parametrize("kind", ["process", "pool"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver", "preload"])
def test_started_workers_are_readers_of_their_own(
    name: str, start: Callable[[str, str], Program], method: str, kind: str
) -> None:
    """However a worker is started, with its Reader argument or global: its markers are its own, and end with it."""
    writer = Writer(name, initial=value_of(1), retain=0)
    program = start(method, kind)
    assert list(program.fresh.values()) == [[]] * started.WORKERS  # a new process has nothing of anybody's
    pids = list(program.fresh)
    assert processes.held_by(program.pid, name) == {1}
    writer.publish(value_of(2))
    assert program.ask("get") == {pid: [2, 2] for pid in pids}
    # What the process that they were forked from held when they were made, they have mapped, and hold.
    inherited = {1} if method in ("fork", "preload") else set()
    for pid in pids:
        assert processes.held_by(pid, name) == inherited
        assert 2 in processes.seen_by(pid, name)
        assert len(started.ours(pid)) == 1  # for all Readers of the store
    assert program.ask("hold") == dict.fromkeys(pids, 2)
    writer.publish(value_of(3))
    assert processes.versions_of(name) == [3, 2, 1]
    assert [processes.held_by(pid, name) for pid in pids] == [inherited | {2}] * len(pids)
    program.ask("drop")
    assert [processes.held_by(pid, name) for pid in pids] == [set()] * len(pids)
    assert processes.held_by(program.pid, name) == {1}
    assert writer.reclaim() == 1
    assert program.ask("hold") == dict.fromkeys(pids, 3)
    writer.publish(value_of(4))
    assert program.ask("end") == dict.fromkeys(pids, 0)
    assert writer.reclaim() == 1  # workers that end while holding leave nothing
    assert processes.versions_of(name) == [4, 1]
    program.end()  # and so does the program
    processes.until(lambda: not markers_left(name), "the last marker goes")
    assert writer.reclaim() == 1
    processes.assert_at_rest(name)
    writer.destroy()


def test_preloaded_server_keeps_what_it_read(name: str, start: Callable[[str, str], Program]) -> None:
    """A Reader that forkserver preloads and that holds: the server is one more holder, and its workers take nothing."""
    writer = Writer(name, initial=value_of(1), retain=0)
    program = start("preload", "process")
    (server,) = program.ask("own server")
    before = processes.locks_of(server)
    assert processes.held_by(server, name) == {1}
    writer.publish(value_of(2))
    program.ask("get")
    program.ask("drop")
    program.ask("own drop")
    assert list(program.ask("end").values()) == [0] * started.WORKERS
    assert processes.locks_of(server) == before
    assert writer.reclaim() == 0
    assert processes.versions_of(name) == [2, 1]
    program.end()
    processes.until(lambda: processes.state_of(server) in ("", "Z"), "the server ends with its program")
    assert writer.reclaim() == 1
    writer.destroy()


# ---- threads ----


class _Busy:
    """Threads that work until told to stop; the first exception of any ends the test."""

    def __init__(self, *works: Callable[[], Any]) -> None:
        self.stopped = False
        self.errors: list[str] = []
        self.rounds = [0] * len(works)
        self._threads = [threading.Thread(target=self._run, args=(k, work)) for k, work in enumerate(works)]

    def _run(self, k: int, work: Callable[[], Any]) -> None:
        try:
            while not self.stopped:
                work()
                self.rounds[k] += 1
        except BaseException:
            self.errors.append(traceback.format_exc())

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        for thread in self._threads:
            thread.join(processes.WATCHDOG)
        assert not any(thread.is_alive() for thread in self._threads), "a thread hangs"
        assert not self.errors, self.errors[0]


def _forked(body: Callable[[], None]) -> int:
    """Fork a child that does something and ends; it is killed when it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of fork with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(int(processes.WATCHDOG))
            body()
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return pid


@pytest.fixture
def hectic() -> Iterator[None]:
    """Switch threads as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hectic")
def test_storm_of_forks_amid_busy_threads(name: str) -> None:
    """Forks while threads read, hold and publish: no child hangs or has anything of its parent's, nothing is lost."""
    writer = Writer(name, initial=value_of(1), retain=1, lock_timeout=processes.WATCHDOG)
    reader = Reader(name)
    kept = reader.snapshot().hold()
    raw: Reader[Any] = Reader(name, codec=_plain())
    counts = {"gone": 0}

    def get() -> None:
        assert version_in(reader.get()) > 0

    def publish() -> None:
        writer.update(lambda old: value_of(version_in(old) + 1))
        for _ in range(50):  # outside of its turn: the children want theirs
            get()

    def hold() -> None:
        try:
            with reader.snapshot() as snap, Reader(name).snapshot() as other:
                assert bytes(snap.data) == bytes(reader.at(snap.version).data)
                assert version_in(other.value) >= snap.version
        except VersionGoneError:  # two were published before it could be held
            counts["gone"] += 1
        assert version_in(kept.value) == 1
        raw.get()

    def child(k: int) -> Callable[[], None]:
        def body() -> None:
            assert started.ours("self") == []
            version = version_in(reader.get())
            assert 1 in processes.held_by(os.getpid(), name)
            if k % 4 == 0:
                assert writer.update(lambda old: value_of(version_in(old) + 1)) > version
                assert version_in(reader.get()) > version
            if k % 4 == 1:
                kept.release()
            hold()

        return body

    pids = []
    with _Busy(get, publish, hold) as busy:
        for k in range(FORKS):
            pids.append(_forked(child(k)))
            if k % 4 == 3:
                statuses = [os.waitpid(pid, 0)[1] for pid in pids]
                pids.clear()
                assert statuses == [0] * len(statuses)
            assert 1 in processes.held_by(os.getpid(), name)
    print(f"{FORKS} forks amid {busy.rounds} rounds of get, publish, hold; {counts['gone']} holds came too late")
    assert all(busy.rounds)
    assert version_in(reader.get()) == writer.version
    raw.close()
    assert processes.held_by(os.getpid(), name) == {1}
    assert processes.seen_by(os.getpid(), name) == {writer.version}
    kept.release()
    writer.reclaim()
    assert processes.versions_of(name) == [writer.version, writer.version - 1]
    assert shmcow.describe(name).counters["recovered"] == 0
    processes.assert_at_rest(name)
    reader.close()
    assert not markers_left(name)
    writer.destroy()


def _plain() -> shmcow.Codec[Any]:
    """Return a codec that leaves msgpack's bytes as they are, so that what it gives holds its version."""

    class Plain(Raw):
        name = "msgpack"

    return Plain()


def test_fork_in_one_thread_while_another_holds(name: str, spawn: Callable[..., Child]) -> None:
    """What another thread held at the fork stays mapped in the child, which holds it from its next read on."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader = Reader(name)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with Reader(name).snapshot():
            inside.set()
            leave.wait(processes.WATCHDOG)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(processes.WATCHDOG)

    def body(link: processes.Link) -> None:
        link.send(processes.locks_of("self"))
        while link.recv() == "get":
            link.send((version_in(reader.get()), sorted(processes.held_by(os.getpid(), name))))

    child = spawn(body)
    assert child.recv() == []
    leave.set()
    thread.join(processes.WATCHDOG)
    assert processes.held_by(os.getpid(), name) == set()
    assert child.ask("get") == (1, [1])
    writer.publish(value_of(2))
    assert child.ask("get") == (2, [1])  # the thread does not exist in the child, so nobody there ever lets go
    child.send("end")
    child.done()
    assert writer.reclaim() == 1
    writer.destroy()
