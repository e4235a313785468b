"""What the tests of all servers share: real clients on a unix socket, processes that always end, and the accounts.

A worker that ends takes its connections with it, whatever it serves: a request that got no answer for that reason is
counted as *dropped*, apart from *problems*: an answer that is not 200, or that is not exactly one whole version.
"""

from __future__ import annotations

import fcntl
import http.client
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import processes
from processes import WATCHDOG, until

import shmcow

ROOT = Path(__file__).parents[2]
WORKERS = 2
PAUSE = 0.004  # seconds between two requests of a client, or two versions: else they take the processors from servers


# ---- one request ----


class Answer(NamedTuple):
    """What one request was answered with, and between which two moments."""

    start: float
    end: float
    pid: int
    version: int
    epoch: str = ""


class Dropped(NamedTuple):
    """That a request got no whole answer because its connection ended, and between which two moments."""

    start: float
    end: float
    why: str


class NotWholeError(AssertionError):
    """An answer that is not 200, or not exactly one whole version."""


class DroppedError(Exception):
    """The connection ended without an answer."""


class Request(http.client.HTTPConnection):
    """A request on its way; the next one gets a connection of its own, and so maybe another worker.

    Args:
        lines: how many the answer has, each with what the application saw then.
    """

    def __init__(self, path: Path, method: str = "GET", lines: int = 1) -> None:
        super().__init__("server", timeout=WATCHDOG)
        self._path = path
        self._lines = lines
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
                ends_with_connection = response.length is None and not response.chunked
                status, body = response.status, response.read()
        except (ConnectionResetError, BrokenPipeError, http.client.IncompleteRead) as exc:
            raise DroppedError(repr(exc)) from None
        finally:
            self.close()
        if status != 200:
            raise NotWholeError(f"{status}: {body[:1000]!r}")
        whole = body.count(b"\n")
        if ends_with_connection and not (body.endswith(b"\n") and whole == self._lines):
            raise DroppedError(f"{whole} of {self._lines} lines")
        lines = [json.loads(line) for line in body.splitlines()]
        if len(lines) != self._lines or any(line != lines[0] for line in lines):
            raise NotWholeError(f"not of one version: {lines}")
        found = lines[0]
        if not is_config_of(max(found["version"] - 1, 0), found["config"]):
            raise NotWholeError(f"not of one piece: {found}")
        return Answer(self._start, time.monotonic(), found["pid"], found["version"], found.get("epoch", ""))


def is_config_of(revision: int, config: dict[str, Any]) -> bool:
    """Tell whether a configuration is what the examples publish as a revision; the first is what is built in."""
    hosts = config["hosts"]
    expected = {
        "revision": revision,
        "timeout": revision / 4,
        "hosts": [f"db{number}-r{revision}.internal" for number in range(len(hosts))],
        "limits": {"free": revision, "paid": 100 * revision},
    }
    return len(hosts) > 1 and config == {field: expected[field] for field in {"revision", *config}}


# ---- many requests ----


class Clients:
    """Clients that ask one request after the other, from ``with`` to its end, or to the first problem.

    Args:
        ask: sends a request of the client with this number, and keeps its answer; what it raises is a problem.
        clients: how many.
    """

    def __init__(self, ask: Callable[[int], None], clients: int = 4) -> None:
        self.problems: list[str] = []
        self.clients = clients
        self._ask = ask
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[number]) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * WATCHDOG)

    def _run(self, number: int) -> None:
        while not self._over.wait(PAUSE) and not self.problems:
            try:
                self._ask(number)
            except Exception as exc:
                self.problems.append(repr(exc))


class Burst(Clients):
    """Clients of one of the examples, each request on a connection of its own."""

    def __init__(self, path: Path, clients: int = 4, method: str = "GET", lines: int = 1) -> None:
        super().__init__(self._send, clients)
        self.answers: list[Answer] = []
        self.dropped: list[Dropped] = []
        self.sent = 0
        self._counting = threading.Lock()
        self._path = path
        self._method = method
        self._lines = lines

    def _send(self, _client: int) -> None:
        start = time.monotonic()
        with self._counting:
            self.sent += 1
        try:
            self.answers.append(Request(self._path, self._method, self._lines).answer())
        except (DroppedError, BrokenPipeError, ConnectionResetError) as exc:
            self.dropped.append(Dropped(start, time.monotonic(), repr(exc)))

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


# ---- the server ----


def environment(store: str, example: Path) -> dict[str, str]:
    """Return the environment in which an example runs, with its store."""
    path = os.pathsep.join([str(ROOT), str(example), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"CONFIG_STORE": store, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


class Server:
    """A master process that runs, with its workers, on a unix socket.

    Attributes:
        store: what its example reads.
        master: the pid of its first process.
        lines: how many each answer has.
    """

    called: ClassVar[str]
    lines: ClassVar[int] = 1

    def __init__(self, directory: Path, store: str, command: list[str], example: Path) -> None:
        self.store = store
        self.path = directory / "socket"
        self._log = directory / "log"
        self._killed: set[int] = set()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=example,
                env=environment(store, example),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )
        self.master = self._session = self._process.pid

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return self._log.read_text(errors="replace")

    # -- whom it consists of --

    def workers(self, master: int = 0) -> set[int]:
        """Return the pids of a master's workers."""
        return children_of(master or self.master)

    def members(self) -> set[int]:
        """Return the pids of all its processes that live."""
        ours = {pid for pid in _processes() if _session(pid) == self._session}
        return {pid for pid in ours if processes.state_of(pid) not in ("Z", "")}

    # -- asking it --

    def ready(self) -> None:
        """Wait until it has all its workers, and each of them has answered."""

        def listens() -> bool:
            self.assert_lives()
            try:
                self.ask()
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        until(listens, f"{self.called} answers")
        until(lambda: len(self.workers()) == WORKERS, f"{self.called} has its workers")
        self.ask_each()

    def ask(self, method: str = "GET") -> Answer:
        """Send one request."""
        return Request(self.path, method, self.lines).answer()

    def ask_each(self, *masters: int) -> dict[int, Answer]:
        """Send requests until every worker that lives has answered one; the last answer of each."""
        answers: dict[int, Answer] = {}

        def living() -> set[int]:
            return {pid for master in masters or (self.master,) for pid in self.workers(master)}

        lived: set[int] = set()  # at the moment when all had answered: they may be recycled at any other

        def all_answered() -> bool:
            # As many at once as to give each worker one: a sync worker takes no second one before it answers.
            sent = [Request(self.path, lines=self.lines) for _ in range(2 * WORKERS)]
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
        return Burst(self.path, clients, method, self.lines)

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

    def assert_lives(self) -> None:
        """Fail if its first process has ended."""
        assert self._process.poll() is None, f"{self.called} ended"

    def assert_no_accident(self) -> None:
        """Fail if it reported an exception."""
        assert "Traceback" not in self.log


@contextmanager
def running(server: Server) -> Iterator[Any]:
    """Wait until a server answers, and end it; nothing of it must be left then."""
    try:
        server.ready()
        yield server
        server.end()
        assert_no_markers(server.store)
    except BaseException as exc:
        exc.add_note(f"the log of {server.called}:\n{server.log[-10_000:]}")
        raise
    finally:
        server.end_at_once()


# ---- what every server goes through ----


def load(program: Path) -> Any:
    """Import an example in this process, by a name of its own: each has the modules that its folder has."""
    spec = importlib.util.spec_from_file_location(f"{program.parent.name}_{program.stem}", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def publisher_of(program: Path, store: str) -> Callable[[], int]:
    """Return the ``publish()`` of an example, on a store of a test."""
    module = load(program)
    module.STORE = store
    publish: Callable[[], int] = module.publish
    return publish


class Lifecycle:
    """Requests from four clients at once, while versions change and workers come and go.

    Each step waits for versions to be seen amid requests that it does not stop; ``report`` looks at all of them.
    """

    MANY = 10  # versions that clients must see in a step: enough that workers met changes in the middle of a response

    def __init__(self, server: Server, publish: Callable[[], int]) -> None:
        self._server = server
        self._publish = publish
        self._published: list[Published] = []
        self._answers: list[Answer] = []
        self._dropped: Counter[str] = Counter()

    def _publish_until_seen(self, burst: Burst) -> None:
        enough = len(burst.versions) + self.MANY

        def seen() -> bool:
            version = self._publish()
            self._published.append(Published(time.monotonic(), version))
            assert not burst.problems, burst.problems
            time.sleep(PAUSE)
            return len(burst.versions) >= enough

        until(seen, "the clients see versions come")
        burst.more()

    @contextmanager
    def _requests(self, step: str) -> Iterator[Burst]:
        with self._server.burst() as burst:
            yield burst
        assert burst.problems == []
        assert burst.sent == len(burst.answers) + len(burst.dropped)
        self._answers += burst.answers
        self._dropped[step] += len(burst.dropped)

    def begin(self) -> None:
        """Without a store every worker answers with what is built in."""
        assert {answer.version for answer in self._server.ask_each().values()} == {0}

    def publish_amid_requests(self) -> None:
        """No request fails, and then every worker has the newest version, and holds nothing."""
        with self._requests("publishing") as burst:
            self._publish_until_seen(burst)
        assert burst.dropped == []
        self._assert_every_worker_has_the_newest()

    def kill_a_worker(self) -> None:
        """Only requests that were under way at the kill break, at most one for each client; a new worker takes over."""
        victim = min(self._server.workers())
        with self._requests("killed") as burst:
            self._publish_until_seen(burst)
            before = time.monotonic()
            self._server.kill_worker(victim)
            dead = time.monotonic()
            until(lambda: len(self._server.workers() - {victim}) == WORKERS, "the next worker")
            self._publish_until_seen(burst)
        assert len(burst.dropped) <= burst.clients
        for request in burst.dropped:
            assert request.start < dead
            assert request.end > before
        self._assert_every_worker_has_the_newest()

    def reload(self, *, may_drop: bool = False) -> None:
        """SIGHUP: new workers, and no request fails (with ``may_drop``, at most one a client)."""
        old = self._server.workers()
        with self._requests("reloaded") as burst:
            self._publish_until_seen(burst)
            self._server.signal(signal.SIGHUP)
            until(
                lambda: len(new := self._server.workers()) == WORKERS and not new & old,
                f"{self._server.called} reloads",
            )
            self._publish_until_seen(burst)
        assert len(burst.dropped) <= (burst.clients if may_drop else 0)
        self._assert_every_worker_has_the_newest()

    def _assert_every_worker_has_the_newest(self) -> None:
        newest = self._published[-1].version
        for pid, answer in self._server.ask_each().items():
            assert answer.version == newest
            until(
                lambda pid=pid: processes.held_by(pid, self._server.store) == set(), "nothing is held between requests"
            )

    def report(self) -> None:
        """Fail if a request had an older version than was known when it was sent; print what was served."""
        assert_versions_only_grow(self._answers, self._published)
        versions = {answer.version for answer in self._answers}
        assert len(versions) > 3 * self.MANY
        print(
            f"{self._server.called}: {len(self._answers)} requests over {len(versions)} of {len(self._published)} "
            f"published versions by {len({answer.pid for answer in self._answers})} workers, none failed; broken with "
            f"their worker: {dict(self._dropped)}"
        )


# ---- processes ----


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
