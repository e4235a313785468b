"""Fork in a C program that embeds Python and runs none of its hooks: each worker reads and writes for itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import victims
from processes import value_of

from shmcow import Reader, Writer

WORKERS = 3
UPDATES = 30  # of each process
FORKS_BESIDE = 150
HERE = Path(__file__).parent


# ---- the program ----


def _library() -> list[str]:
    """Return what links the interpreter's library: shared, or static with its symbols exported."""
    config: dict[str, Any] = sysconfig.get_config_vars()
    shared = Path(config["LIBDIR"] or "") / str(config["LDLIBRARY"])
    if config.get("Py_ENABLE_SHARED") and shared.exists():
        return [str(shared), f"-Wl,-rpath,{shared.parent}"]
    static = Path(config.get("LIBPL") or "") / str(config["LIBRARY"])
    flags = [str(static), *(config["LINKFORSHARED"] or "").split(), *(config["LIBS"] or "").split()]
    return [*flags, *(config["SYSLIBS"] or "").split()]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """embedded.c, built."""
    target = tmp_path_factory.mktemp("embedded") / "embedded"
    compiler = victims.compiler()
    if compiler is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev python3-dev)")
    include = sysconfig.get_config_var("INCLUDEPY")
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-pthread"]
    command += [f"-I{include}", str(HERE / "embedded.c"), "-o", str(target), *_library()]
    if not (Path(include) / "Python.h").exists() or not any(Path(part).is_file() for part in _library()):
        pytest.skip(
            "needs Python's headers and its library to link with (Debian: apt-get install python3-dev; pyenv: "
            "PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install ...)"
        )
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, f"{' '.join(command)}\n{built.stderr}"
    return target


class Peer:
    """Our end of a connection to the master, to a worker or to what they forked."""

    def __init__(self) -> None:
        self._ours, self.theirs = multiprocessing.Pipe()

    def ask(self, *words: Any) -> Any:
        self.say(*words)
        return self.hear()

    def say(self, *words: Any) -> None:
        self._ours.send(words)

    def hear(self) -> Any:
        assert self._ours.poll(processes.WATCHDOG), "no answer"
        return self._ours.recv()

    def gone(self) -> bool:
        """Tell whether the process at the other end has ended: it leaves an end of file."""
        return self._ours.poll(0)

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


class Server:
    """A run of the program: a master and its workers."""

    def __init__(self, program: Path, store: str, ending: str, workers: int = WORKERS, spare: int = 0) -> None:
        peers = [Peer() for _ in range(1 + workers + spare)]
        self.master, self.workers, self.spare = peers[0], peers[1 : 1 + workers], peers[1 + workers :]
        self._peers = peers
        numbers = [peer.theirs.fileno() for peer in peers]
        command = [str(program), "embedded_app", str(workers), ending, store, *map(str, numbers)]
        path = os.pathsep.join([str(HERE), str(victims.ROOT), *(entry for entry in sys.path if entry)])
        environment = {**os.environ, "PYTHONHOME": sys.base_prefix, "PYTHONPATH": path}
        self.process = subprocess.Popen(command, env=environment, pass_fds=numbers)
        for peer in peers:
            peer.theirs.close()
        self.pid, *self.pids = self.master.ask("pids")
        assert self.pid == self.process.pid

    def kill_master(self) -> None:
        self.process.kill()
        self.process.wait(processes.WATCHDOG)

    def end(self) -> int:
        """Let everybody end by itself; the program's exit status."""
        for peer in self.workers:
            peer.say("end")
        for pid in self.pids:
            self.ended(pid)
        self.master.say("end")
        return self.process.wait(processes.WATCHDOG)

    def ended(self, pid: int) -> None:
        processes.until(lambda: processes.state_of(pid) in ("", "Z"), f"worker {pid} ends")

    def close(self) -> None:
        """End whoever is left: without a master to talk to, nobody stays."""
        for peer in self._peers:
            peer.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(processes.WATCHDOG)
        for pid in self.pids:
            self.ended(pid)


@pytest.fixture
def serve(name: str, program: Path) -> Iterator[Callable[..., Server]]:
    """Start the program on the test's store with ``serve(ending=..., spare=...)``."""
    servers: list[Server] = []

    def start(ending: str = "exit", **kwargs: Any) -> Server:
        servers.append(Server(program, name, ending, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


# ---- readers ----


def test_worker_has_nothing_of_its_master(name: str, serve: Callable[..., Server]) -> None:
    """No worker has a descriptor, a lock or a marker of its master, and its own appear with its own read only."""
    writer = Writer(name, initial=value_of(1), retain=0)
    server = serve()
    descriptors, locks = server.master.ask("mine")
    assert processes.held_by(server.pid, name) == {1}
    for worker, pid in zip(server.workers, server.pids, strict=True):
        assert worker.ask("mine") == ([], [])
        assert worker.ask("read_held") == 1  # what it inherited is readable, and needs no marker for that
        assert processes.shm_descriptors(pid) == []
    writer.publish(value_of(2))
    for n, (worker, pid) in enumerate(zip(server.workers, server.pids, strict=True)):
        assert worker.ask("get") == 2
        assert processes.held_by(pid, name) == {1}
        assert 2 in processes.seen_by(pid, name)
        others = [processes.held_by(other, name) for other in server.pids[n + 1 :]]
        assert others == [set()] * len(others)
    assert server.master.ask("mine") == (descriptors, locks)
    assert server.end() == 0
    assert writer.reclaim() == 1
    writer.destroy()


@pytest.mark.parametrize("ending", ["exit", "finalize"])
@pytest.mark.parametrize("words", ["", "release", "drop", "get", "get release", "get drop"])
def test_worker_takes_nothing_from_its_master(name: str, serve: Callable[..., Server], words: str, ending: str) -> None:
    """Whatever a worker lets go of, by release, drop, exit or the end of its interpreter, the master holds on."""
    writer = Writer(name, initial=value_of(1), retain=0)
    server = serve(ending)
    writer.publish(value_of(2))
    before = server.master.ask("mine")
    for worker in server.workers:
        for word in words.split():
            worker.ask(word)
            assert processes.held_by(server.pid, name) == {1}
    for worker, pid in zip(server.workers, server.pids, strict=True):
        worker.say("end")
        server.ended(pid)
    assert server.master.ask("mine") == before
    assert writer.reclaim() == 0
    assert Reader(name).at(1).version == 1
    assert server.master.ask("read_view") == bytes(Reader(name).at(1).data)
    server.master.ask("drop")
    assert writer.reclaim() == 1
    server.master.say("end")
    assert server.process.wait(processes.WATCHDOG) == 0
    writer.destroy()


def test_killed_master_holds_nothing_though_its_workers_idle(name: str, serve: Callable[..., Server]) -> None:
    """A master killed with SIGKILL: the next reclaim frees what it held, whether or not its idle workers live on."""
    writer = Writer(name, initial=value_of(1), retain=0)
    server = serve()
    for worker in server.workers:
        worker.ask("mine")  # it has run: from fork() to its first instruction it has copies
    writer.publish(value_of(2))
    assert processes.versions_of(name) == [2, 1]
    server.kill_master()
    assert [processes.state_of(pid) in ("S", "R") for pid in server.pids] == [True] * WORKERS
    assert writer.reclaim() == 1
    assert processes.versions_of(name) == [2]
    for worker, pid in zip(server.workers, server.pids, strict=True):
        assert worker.ask("read_held") == 1
        assert worker.ask("get") == 2
        assert 2 in processes.seen_by(pid, name)
        worker.say("end")
    writer.destroy()


def test_worker_that_reads_holds_on_when_its_master_is_killed(name: str, serve: Callable[..., Server]) -> None:
    """What a worker inherited as held, it holds by itself from its next read on, master or not."""
    writer = Writer(name, initial=value_of(1), retain=0)
    server = serve(workers=2)
    writer.publish(value_of(2))
    assert server.workers[0].ask("get") == 2
    server.kill_master()
    assert writer.reclaim() == 0
    assert processes.held_by(server.pids[0], name) == {1}
    assert server.workers[0].ask("read_view") == bytes(Reader(name).at(1).data)
    server.workers[0].ask("drop")
    assert writer.reclaim() == 1
    writer.destroy()


def test_forks_of_forks_are_readers_of_their_own(name: str, serve: Callable[..., Server]) -> None:
    """A worker that reads and forks once more in C: its child has nothing of it, and takes nothing from it."""
    writer = Writer(name, initial=value_of(1), retain=0)
    server = serve(workers=1, spare=1)
    (worker,), (child,) = server.workers, server.spare
    assert worker.ask("get") == 1
    mine = worker.ask("mine")
    assert mine[0]
    pid = worker.ask("fork", child_number(server))
    assert child.ask("mine") == ([], [])
    child.ask("release")
    assert child.ask("get") == 1
    assert processes.held_by(pid, name) == {1}  # by its view
    child.ask("drop")
    assert processes.held_by(pid, name) == set()
    child.say("end")
    assert worker.ask("wait", pid) == 0
    assert worker.ask("mine") == mine
    assert server.end() == 0
    writer.destroy()


def child_number(server: Server) -> int:
    """Return the descriptor that the spare connection has in the program."""
    return int(server.process.args[-1])  # type: ignore[index]


def test_forks_at_any_instruction_keep_no_marker_and_no_lock(name: str, serve: Callable[..., Server]) -> None:
    """A C thread forks while Python opens, marks, locks and closes: no idle child keeps a marker or a lock of it."""
    writer = Writer(name, initial=value_of(1), lock_timeout=0, retain=0)
    server = serve(workers=0)
    children, rounds = server.master.ask("fork_beside", FORKS_BESIDE)
    copies = [target for pid in children for target in processes.shm_descriptors(pid)]
    print(f"{len(children)} forks beside {rounds} rounds; {len(copies)} descriptors copied before they were known")
    assert len(children) == FORKS_BESIDE
    assert rounds > 0
    assert [pid for pid in children if processes.state_of(pid) in ("", "Z")] == []
    assert processes.shm_descriptors(server.pid) == []
    assert [lock for pid in children for lock in processes.locks_of(pid)] == []
    version = writer.publish(value_of(rounds + 2))  # the lock is free
    assert version == rounds + 2
    assert processes.versions_of(name) == [version]  # and none of the others is marked
    server.kill_master()
    for pid in children:
        server.ended(pid)
    processes.assert_at_rest(name)
    writer.destroy()


# ---- writers ----


def test_workers_publish_through_the_writer_that_they_inherited(name: str, serve: Callable[..., Server]) -> None:
    """Master and workers update at once through one inherited Writer: they take turns, and no update is lost."""
    writer = Writer(name, initial=value_of(1), retain=1)
    server = serve()
    assert server.workers[0].ask("publish", 2) == 2
    assert server.master.ask("publish", 3) == 3
    for peer in (server.master, *server.workers):
        peer.say("count", UPDATES)
    for peer in (server.master, *server.workers):
        peer.hear()
    total = 3 + UPDATES * (1 + WORKERS)
    assert writer.version == total
    assert [peer.ask("get") for peer in (server.master, *server.workers)] == [total] * (1 + WORKERS)
    assert server.end() == 0
    writer.reclaim()
    assert processes.versions_of(name) == [total, total - 1]
    processes.assert_at_rest(name)
    assert {"recovered": 0, "forced": 0}.items() <= shmcow_counters(name).items()
    writer.destroy()


def shmcow_counters(name: str) -> dict[str, int]:
    """Return the store's counters."""
    import shmcow

    return dict(shmcow.describe(name).counters)


def test_worker_forked_inside_update_publishes_nothing(name: str, serve: Callable[..., Server]) -> None:
    """Update's function forks in C: the master publishes, the child is refused, and may publish later."""
    writer = Writer(name, initial=value_of(1))
    server = serve(workers=0, spare=1)
    (child,) = server.spare
    pid = server.master.ask("fork_in_update", child_number(server))
    assert child.ask("mine") == ([], [])
    child.say("end")  # its function returns, before its master's
    assert child.hear().startswith("busy: this process was forked inside a turn")
    server.master.say("go on")
    assert server.master.hear() == "published 2"
    assert child.ask("get") == 2
    assert child.ask("publish", 3) == 3
    assert server.master.ask("publish", 4) == 4  # while the child lives
    child.say("end")
    assert server.master.ask("wait", pid) == 0
    server.master.say("end")
    assert server.process.wait(processes.WATCHDOG) == 0
    processes.assert_at_rest(name)
    writer.destroy()


def test_lock_of_a_killed_master_is_free_though_its_child_lives(name: str, serve: Callable[..., Server]) -> None:
    """A master killed inside update, whose child idles inside the same update: the next writer waits for nobody."""
    writer = Writer(name, initial=value_of(1), lock_timeout=0, retain=0)
    server = serve(workers=0, spare=1)
    (child,) = server.spare
    pid = server.master.ask("fork_in_update", child_number(server))
    assert child.ask("mine") == ([], [])
    server.kill_master()
    assert processes.state_of(pid) in ("S", "R")
    assert writer.publish(value_of(2)) == 2
    assert processes.versions_of(name) == [2]
    child.say("end")
    assert child.hear().startswith("busy: this process was forked inside a turn")
    assert child.ask("publish", 3) == 3
    child.say("end")
    processes.until(lambda: processes.state_of(pid) in ("", "Z"), "the child ends")
    writer.destroy()


def test_stopped_worker_delays_no_writer(name: str, serve: Callable[..., Server]) -> None:
    """A worker that was stopped after it was forked keeps neither its master's lock nor its markers."""
    writer = Writer(name, initial=value_of(1), lock_timeout=0, retain=0)
    server = serve(workers=1)
    server.workers[0].ask("mine")
    os.kill(server.pids[0], signal.SIGSTOP)
    try:
        processes.until(lambda: processes.state_of(server.pids[0]) == "T", "the worker stops")
        server.master.ask("drop")
        assert server.master.ask("publish", 2) == 2
        assert server.master.ask("get") == 2
        assert writer.publish(value_of(3)) == 3
        assert processes.versions_of(name) == [3]
    finally:
        os.kill(server.pids[0], signal.SIGCONT)
    assert server.end() == 0
    writer.destroy()
