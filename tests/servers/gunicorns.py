"""Real gunicorn for the tests: started on a unix socket, asked by real clients, signalled, and always ended.

A worker that ends takes its connections with it, whatever it serves: a request that got no answer for that reason is
counted as *dropped*, apart from *problems*: an answer that is not 200, or that is not exactly one whole version.
"""

from __future__ import annotations

import fcntl
import http.client
import importlib.metadata
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import processes
from processes import WATCHDOG, until

import shmcow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "gunicorn_app"
SCRIPT = Path(sysconfig.get_path("scripts")) / "gunicorn"  # not -m gunicorn: USR2 starts again what was started
WORKERS = 2
PAUSE = 0.004  # seconds between two requests of a client: else clients take the processors from those that they test
KINDS = {
    "sync": ["app:app", "--worker-class", "sync"],
    "gthread": ["app:app", "--worker-class", "gthread", "--threads", "4"],
    "asyncio": ["asgi:app", "--worker-class", "asgi"],
}
# Settings with which the master reads and holds a version before it forks, and each worker one for as long as it lives.
HOLDING = """
from shmcow import VersionGoneError

def hold():
    from settings import config
    while True:
        try:
            return config.snapshot().hold()
        except VersionGoneError:  # newer ones were published meanwhile
            pass

def when_ready(server):
    server.kept = hold()

def post_worker_init(worker):
    worker.kept = hold()
"""


def installed() -> bool:
    """Tell whether there is a gunicorn that has all that is used here."""
    try:
        major = int(importlib.metadata.version("gunicorn").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return major >= 27 and SCRIPT.exists()  # 25 loses count of its asyncio worker's connections, and hangs at its end


# ---- one request ----


class Answer(NamedTuple):
    """What one request was answered with, and between which two moments."""

    start: float
    end: float
    pid: int
    version: int
    epoch: str


class NotWholeError(AssertionError):
    """An answer that is not 200, or not exactly one whole version."""


class DroppedError(Exception):
    """The connection ended without an answer."""


class Request(http.client.HTTPConnection):
    """A request on its way; the next one gets a connection of its own, and so maybe another worker."""

    def __init__(self, path: Path, method: str = "GET") -> None:
        super().__init__("gunicorn", timeout=WATCHDOG)
        self._path = path
        self._start = time.monotonic()
        try:
            self.request(method, "/", headers={"Connection": "close"})
        except BaseException:
            self.close()
            raise

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WATCHDOG)
        self.sock.connect(str(self._path))

    def answer(self) -> Answer:
        """Wait for the answer."""
        try:
            with self.getresponse() as response:
                status, body = response.status, response.read()
        except (ConnectionResetError, BrokenPipeError, http.client.IncompleteRead) as exc:
            raise DroppedError(repr(exc)) from None
        finally:
            self.close()
        if status != 200:
            raise NotWholeError(f"{status}: {body[:1000]!r}")
        found = json.loads(body)
        if found["config"] != _config_of(max(found["version"] - 1, 0)):
            raise NotWholeError(f"not of one piece: {found}")
        return Answer(self._start, time.monotonic(), found["pid"], found["version"], found["epoch"])


def _config_of(revision: int) -> dict[str, Any]:
    """Return what the example publishes as a revision. Its first version is revision 0, what is built in."""
    return {
        "revision": revision,
        "timeout": revision / 4,
        "hosts": [f"db{number}-r{revision}.internal" for number in range(8)],
        "limits": {"free": revision, "paid": 100 * revision},
    }


# ---- many requests ----


class Burst:
    """Clients that ask one request after the other, each on a connection of its own, from ``with`` to its end."""

    def __init__(self, path: Path, clients: int = 4, method: str = "GET") -> None:
        self.answers: list[Answer] = []
        self.dropped: list[str] = []
        self.problems: list[str] = []
        self._path = path
        self._method = method
        self._over = threading.Event()
        self.clients = clients
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * WATCHDOG)

    def _ask(self) -> None:
        while not self._over.wait(PAUSE) and not self.problems:
            try:
                self.answers.append(Request(self._path, self._method).answer())
            except (DroppedError, BrokenPipeError, ConnectionResetError) as exc:
                self.dropped.append(repr(exc))
            except Exception as exc:
                self.problems.append(repr(exc))

    def more(self, number: int = 20) -> None:
        """Wait for some more answers."""
        enough = len(self.answers) + number
        until(lambda: self.problems or len(self.answers) >= enough, "more answers")
        assert not self.problems, self.problems

    @property
    def versions(self) -> set[int]:
        """The versions that were seen."""
        return {answer.version for answer in list(self.answers)}


class Published(NamedTuple):
    """That a version was published, and when we knew it."""

    end: float
    version: int


def assert_versions_only_grow(answers: list[Answer], published: list[Published]) -> None:
    """Fail if a request was answered with an older version than was known to somebody when it was sent.

    Known: another request had been answered with it, by whichever worker, or its publisher had said so.
    """
    known = sorted([(event.end, event.version) for event in [*answers, *published]], reverse=True)
    floor = 0
    for answer in sorted(answers):
        while known and known[-1][0] < answer.start:
            floor = max(floor, known.pop()[1])
        assert answer.version >= floor, f"{answer} although {floor} had been seen"
    assert max(answers, key=lambda answer: answer.version).version <= max(event.version for event in published)


# ---- the other process ----


def publish(store: str, times: int = 1, every: float = 0.0) -> list[Published]:
    """Let the example's other process publish; the versions, and when it had said so."""
    command = [sys.executable, str(EXAMPLE / "publish.py"), "--times", str(times), "--every", str(every)]
    with subprocess.Popen(command, env=_environment(store), stdout=subprocess.PIPE, text=True) as publisher:
        try:
            assert publisher.stdout is not None
            lines = [Published(time.monotonic(), int(line.removeprefix("version "))) for line in publisher.stdout]
            assert (publisher.wait(WATCHDOG), len(lines)) == (0, times)
        finally:
            publisher.kill()
    return lines


def _environment(store: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"CONFIG_STORE": store, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


# ---- the server ----


class Gunicorn:
    """A gunicorn master that runs, with its workers."""

    def __init__(self, directory: Path, store: str, kind: str, settings: Path, *options: str) -> None:
        self.store = store
        self.path = directory / "socket"
        self.pidfile = directory / "pid"
        self._log = directory / "log"
        self._killed: set[int] = set()
        command = [str(SCRIPT), *KINDS[kind], "--config", str(settings), "--workers", str(WORKERS), *options]
        command += ["--bind", f"unix:{self.path}", "--pid", str(self.pidfile), "--no-control-socket"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=EXAMPLE,
                env=_environment(store),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )
        self.master = self._session = self._process.pid

    @property
    def log(self) -> str:
        """All that gunicorn has said so far."""
        return self._log.read_text(errors="replace")

    # -- whom it consists of --

    def workers(self, master: int = 0) -> set[int]:
        """Return the pids of a master's workers; a master that USR2 started is not one of them."""
        return {pid for pid in children_of(master or self.master) if pid != self.second_master()}

    def second_master(self) -> int:
        """Return the pid of the master that USR2 started; 0 if there is none yet."""
        try:
            return int(Path(f"{self.pidfile}.2").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def members(self) -> set[int]:
        """Return the pids of all its processes that live."""
        ours = {pid for pid in _processes() if _session(pid) == self._session}
        return {pid for pid in ours if processes.state_of(pid) not in ("Z", "")}

    # -- asking it --

    def ready(self) -> None:
        """Wait until it has all its workers, and each of them has answered."""

        def listens() -> bool:
            assert self._process.poll() is None, "gunicorn ended"
            try:
                self.ask()
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        until(listens, "gunicorn answers")
        until(lambda: len(self.workers()) == WORKERS, "gunicorn has its workers")
        self.ask_each()

    def ask(self, method: str = "GET") -> Answer:
        """Send one request."""
        return Request(self.path, method).answer()

    def ask_each(self, *masters: int) -> dict[int, Answer]:
        """Send requests until every worker that lives has answered one; the last answer of each."""
        answers: dict[int, Answer] = {}

        def living() -> set[int]:
            return {pid for master in masters or (self.master,) for pid in self.workers(master)}

        lived: set[int] = set()  # at the moment when all had answered: they may be recycled at any other

        def all_answered() -> bool:
            # As many at once as to give each worker one: a sync worker takes no second one before it answers.
            sent = [Request(self.path) for _ in range(2 * WORKERS)]
            for request in sent:
                answer = request.answer()
                answers[answer.pid] = answer
            lived.clear()
            lived.update(living())
            return lived <= answers.keys()

        until(all_answered, "every worker answers")
        return {pid: answers[pid] for pid in lived}

    def burst(self, clients: int = 4, method: str = "GET") -> Burst:
        """Return clients to ask it all the time."""
        return Burst(self.path, clients, method)

    # -- changing its world --

    def signal(self, number: int, master: int = 0) -> None:
        """Send a signal to a master."""
        os.kill(master or self.master, number)

    def kill_worker(self, pid: int) -> None:
        """Kill a worker with SIGKILL, and return when it is dead."""
        assert pid in self.workers()
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)
        until(lambda: processes.state_of(pid) in ("Z", ""), "the worker dies")

    @contextmanager
    def master_stopped(self) -> Iterator[None]:
        """Stop the master with SIGSTOP for a while: it forks no worker and reaps none."""
        self.signal(signal.SIGSTOP)
        try:
            until(lambda: processes.state_of(self.master) == "T", "the master stops")
            yield
        finally:
            self.signal(signal.SIGCONT)

    def upgrade(self) -> int:
        """Send USR2, and wait until a second master has its workers; its pid."""
        self.signal(signal.SIGUSR2)
        second = until(self.second_master, "a second master")
        until(lambda: len(self.workers(second)) == WORKERS, "the second master has its workers")
        return second

    def leave_to(self, second: int) -> None:
        """End the first master as an operator does after USR2: the second one goes on alone."""
        old = {self.master} | self.workers()
        self.signal(signal.SIGTERM)
        assert self._process.wait(WATCHDOG) == 0
        self.until_gone(old)
        self.master = second

    def until_gone(self, pids: set[int]) -> None:
        """Wait until none of these processes lives."""
        until(lambda: not pids & self.members(), f"{pids} end")

    # -- its end --

    def end(self) -> None:
        """Stop it as an operator does, and fail unless it ended well."""
        self.signal(signal.SIGTERM)
        self.until_gone(self.members())
        assert self._process.wait(WATCHDOG) == 0
        self.assert_no_accident()

    def end_at_once(self) -> None:
        """Kill what is left of it."""
        until(lambda: not [_kill(pid) for pid in self.members()], "all its processes end")
        self._process.wait(WATCHDOG)

    def assert_no_accident(self) -> None:
        """Fail if gunicorn reported an exception, a worker that hung, or one that died without our doing."""
        log = self.log
        for word in ("Traceback", "Error handling request", "WORKER TIMEOUT", "exited with code", "failed to boot"):
            assert word not in log, word
        died = {(int(pid), name) for pid, name in re.findall(r"Worker \(pid:(\d+)\) was sent (\w+)", log)}
        assert {pid for pid, name in died if name != "SIGTERM"} <= self._killed


@contextmanager
def serving(
    directory: Path, store: str, kind: str, *options: str, preload: bool, holding: bool = False
) -> Iterator[Any]:
    """Run gunicorn with the example, wait until it answers, and end it; nothing of it must be left then."""
    settings = EXAMPLE / "gunicorn.conf.py"  # has preload_app on
    if holding or not preload:
        settings = directory / "settings.py"
        settings.write_text(f"preload_app = {preload}\n{HOLDING if holding else ''}")
    server = Gunicorn(directory, store, kind, settings, *options)
    try:
        server.ready()
        yield server
        server.end()
        assert_no_markers(store)
    except BaseException as exc:
        exc.add_note(f"the log of gunicorn:\n{server.log[-10_000:]}")
        raise
    finally:
        server.end_at_once()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def children_of(pid: int) -> set[int]:
    """Return the pids of a process's children."""
    found = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.update(int(child) for child in file.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# ---- what the kernel says ----


def refcounts(store: str, *, seen: bool = False) -> Counter[int]:
    """Return how many processes hold (or have seen) each version, whoever they are.

    Counted from the descriptors of all processes: a reading of /proc/locks may miss some locks and show others twice
    while locks come and go anywhere on the machine.
    """
    found: Counter[int] = Counter()
    for pid in _processes():
        try:
            found.update(processes.seen_by(pid, store) if seen else processes.held_by(pid, store))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def marked(store: str) -> set[int]:
    """Return the versions that anybody holds, as the kernel answers the writers."""
    return {generation.version for generation in shmcow.describe(store).generations if generation.marked}


def assert_no_markers(store: str) -> None:
    """Fail if a marker is left of a process that is gone, or anything in shared memory but the store at rest."""
    holds = processes.SHM / f"shmcow.{store}.{shmcow.describe(store).epoch}.holds"
    with holds.open("rb") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock: all of the file
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
    assert struct.unpack("hhqqi4x", answer)[0] == fcntl.F_UNLCK, "a marker is left"
    processes.assert_at_rest(store)


def mappings(pid: int, store: str) -> list[str]:
    """Return what a process has mapped of a store."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [Path(line.split(maxsplit=5)[5]).name for line in lines if f"/shmcow.{store}" in line]
