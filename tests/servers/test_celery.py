"""Real celery with a prefork pool: each task is of one version, whatever happens to the pool's processes."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any, Self

import processes
import pytest
import servers
from processes import WATCHDOG, until
from servers import WORKERS, Answer, Published, Server, assert_versions_only_grow

import shmcow

EXAMPLE = servers.ROOT / "examples" / "celery_app"
SCRIPT = Path(sysconfig.get_path("scripts")) / "celery"  # not -m celery: SIGHUP starts again what was started
MANY = 10  # versions that tasks must see in a step
PAUSE = 0.05  # seconds between two batches of tasks: the tests beside this one need processors, too
POLL = 0.005  # seconds between two looks at a result


class Worker(Server):
    """A celery worker that runs, with the processes of its pool; messages and results are files."""

    called = "celery"

    def __init__(self, directory: Path, store: str, tasks: Any) -> None:
        command = [str(SCRIPT), "-A", "tasks", "worker", "--concurrency", str(WORKERS), "--max-tasks-per-child", "20"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
        super().__init__(directory, store, command, EXAMPLE)
        self._tasks = tasks

    def ready(self) -> None:
        """Wait until every process of its pool has done a task."""

        def has_pool() -> bool:
            self.assert_lives()
            return len(self.workers()) == WORKERS

        until(has_pool, "celery has its pool")
        self.ask_each()

    def send(self, **arguments: Any) -> Any:
        """Send a task; its result to be."""
        return self._tasks.app.send_task("tasks.look", kwargs=arguments)

    def ask_each(self, *_: int) -> dict[int, Answer]:
        """Send tasks until every process that lives has done one; the last answer of each."""
        answers: dict[int, Answer] = {}

        def all_answered() -> bool:
            self.assert_lives()
            for start, result in [(time.monotonic(), self.send()) for _ in range(2 * WORKERS)]:
                answer = answer_of(start, result)
                answers[answer.pid] = answer
            return self.workers() <= answers.keys()

        until(all_answered, "every process does a task")
        return {pid: answers[pid] for pid in self.workers() & answers.keys()}

    def assert_no_accident(self) -> None:
        """Fail if celery reported any other error than the end of the process that was killed, and its task's."""
        for error in re.findall(r"^\[.*?: (?:ERROR|CRITICAL)/\w+\] (.*)", self.log, re.MULTILINE):
            assert "signal 9 (SIGKILL)" in error or "WorkerLostError" in error, error


def answer_of(start: float, result: Any) -> Answer:
    """Wait for a task's result, which must be of one version, and one piece."""
    looks = value_of(result)
    assert len(looks) == 5
    assert all(look == looks[0] for look in looks), f"not of one version: {looks}"
    version = looks[0]["version"]
    assert servers.is_config_of(max(version - 1, 0), looks[0]["config"]), f"not of one piece: {looks[0]}"
    return Answer(start, time.monotonic(), looks[0]["pid"], version)


def put_whole(channel: Any, queue: str, payload: Any, **_: Any) -> None:
    """Put a message into the folder as a whole: kombu's is there before it is written, and may be read then."""
    from kombu.utils.json import dumps

    file = Path(channel.data_folder_out) / f"{time.monotonic_ns():020}.{queue}.msg"
    file.with_suffix(".new").write_text(dumps(payload))
    file.with_suffix(".new").rename(file)


def value_of(result: Any) -> Any:
    """Wait for a task's result; celery's file is there before it is written, and looked at again."""
    from kombu.exceptions import DecodeError

    while True:
        try:
            return result.get(timeout=WATCHDOG, interval=POLL)
        except DecodeError:
            time.sleep(POLL)


class Load:
    """A client that always has some tasks under way, from ``with`` to its end.

    Attributes:
        resting: a lock; no task is under way while somebody else has it.
    """

    def __init__(self, worker: Worker) -> None:
        self.answers: list[Answer] = []
        self.problems: list[str] = []
        self.resting = threading.Lock()
        self._over = threading.Event()
        self._worker = worker
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * WATCHDOG)

    @property
    def processes(self) -> set[int]:
        """The pids of those that have done a task."""
        return {answer.pid for answer in list(self.answers)}

    def _run(self) -> None:
        try:
            while not self._over.wait(PAUSE):
                with self.resting:
                    sent = [(time.monotonic(), self._worker.send()) for _ in range(4 * WORKERS)]
                    self.answers += [answer_of(*each) for each in sent]
        except BaseException as exc:
            self.problems.append(repr(exc))


@pytest.fixture
def tasks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, with its messages in a folder of this test, as a client of the worker."""
    if importlib.util.find_spec("celery") is None or not SCRIPT.exists():
        pytest.skip("needs celery: pip install -e '.[servers]'")
    monkeypatch.setenv("CELERY_FOLDER", str(tmp_path))
    monkeypatch.setenv("CONFIG_STORE", name)
    from kombu.transport.filesystem import Channel

    monkeypatch.setattr(Channel, "_put", put_whole)
    module = servers.load(EXAMPLE / "tasks.py")
    yield module
    module.app.close()


def test_tasks_have_one_version_each(name: str, tmp_path: Path, tasks: Any) -> None:
    """Amid publishes, recycled processes, SIGKILL of one in mid-task, and SIGHUP: only the killed task is lost."""
    with servers.running(Worker(tmp_path, name, tasks)) as worker:
        assert {answer.version for answer in worker.ask_each().values()} == {0}
        published = [Published(time.monotonic(), tasks.publish())]
        doomed = worker.send(pause=WATCHDOG)
        victim = until(lambda: [pid for pid in worker.workers() if processes.held_by(pid, name)], "a task holds")[0]
        with Load(worker) as load:
            publish_until_seen(worker, tasks, load, published)
            until(lambda: load.problems or len(load.processes) > 1, "the other process is recycled")
            kill_in_mid_task(worker, victim, published[0].version)
            publish_until_seen(worker, tasks, load, published)
            with load.resting:
                assert_lost(doomed)
            old = worker.workers()
            worker.signal(signal.SIGHUP)
            until(lambda: len(new := worker.workers()) == WORKERS and not new & old, "celery starts again")
            publish_until_seen(worker, tasks, load, published)
        assert load.problems == []
        assert_versions_only_grow(load.answers, published)
        for pid, answer in worker.ask_each().items():
            assert answer.version == published[-1].version
            assert processes.held_by(pid, name) == set()
        print(
            f"celery: {len(load.answers)} tasks over {len({answer.version for answer in load.answers})} of "
            f"{len(published)} published versions by {len(load.processes)} processes, none failed; lost with their "
            "process: 1"
        )


def publish_until_seen(worker: Worker, tasks: Any, load: Load, published: list[Published]) -> None:
    """Publish until tasks have seen some more versions."""

    def versions() -> int:
        return len({answer.version for answer in list(load.answers)})

    enough = versions() + MANY

    def seen() -> bool:
        version = tasks.publish()
        published.append(Published(time.monotonic(), version))
        assert not load.problems, load.problems
        worker.assert_lives()
        time.sleep(servers.PAUSE)
        return versions() >= enough

    until(seen, "tasks see versions come")


def kill_in_mid_task(worker: Worker, pid: int, held: int) -> None:
    """Kill a process in a task that still holds an old version: the hold goes at once, amid the load."""
    assert processes.held_by(pid, worker.store) == {held}
    os.kill(pid, signal.SIGKILL)
    with shmcow.Writer(worker.store) as writer:
        writer.wait_unused(held, timeout=WATCHDOG)


def assert_lost(task: Any) -> None:
    """Celery tells of a task whose process was killed, some seconds (`worker_lost_wait`) after the last end of any.

    Whenever a process of the pool ends, billiard's _join_exited_workers() notes all lost tasks as lost just now, those
    that it has noted before too. So under a load that has processes recycled more often than that, it never tells: of
    20 kills none with a wait of 3 seconds and a process recycled every 0.7, without shmcow; of all 20 once the load had
    ended. That is why the load rests meanwhile.
    """
    from billiard.exceptions import WorkerLostError

    with pytest.raises(WorkerLostError):
        value_of(task)
