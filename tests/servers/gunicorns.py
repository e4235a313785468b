"""Real gunicorn for the tests, with the example that has its name."""

from __future__ import annotations

import importlib.metadata
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import servers
from processes import WATCHDOG, until
from servers import ROOT, WORKERS, Published

EXAMPLE = ROOT / "examples" / "gunicorn_app"
SCRIPT = Path(sysconfig.get_path("scripts")) / "gunicorn"  # not -m gunicorn: USR2 starts again what was started
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


# ---- the other process ----


def publish(store: str, times: int = 1, every: float = 0.0) -> list[Published]:
    """Let the example's other process publish; the versions, and when it had said so."""
    command = [sys.executable, str(EXAMPLE / "publish.py"), "--times", str(times), "--every", str(every)]
    env = servers.environment(store, EXAMPLE)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as publisher:
        try:
            assert publisher.stdout is not None
            lines = [Published(time.monotonic(), int(line.removeprefix("version "))) for line in publisher.stdout]
            assert (publisher.wait(WATCHDOG), len(lines)) == (0, times)
        finally:
            publisher.kill()
    return lines


# ---- the server ----


class Gunicorn(servers.Server):
    """A gunicorn master that runs, with its workers."""

    called = "gunicorn"

    def __init__(self, directory: Path, store: str, kind: str, settings: Path, *options: str) -> None:
        self.pidfile = directory / "pid"
        command = [str(SCRIPT), *KINDS[kind], "--config", str(settings), "--workers", str(WORKERS), *options]
        command += ["--bind", f"unix:{directory / 'socket'}", "--pid", str(self.pidfile), "--no-control-socket"]
        super().__init__(directory, store, command, EXAMPLE)

    def workers(self, master: int = 0) -> set[int]:
        """Return the pids of a master's workers; a master that USR2 started is not one of them."""
        return {pid for pid in super().workers(master) if pid != self.second_master()}

    def second_master(self) -> int:
        """Return the pid of the master that USR2 started; 0 if there is none yet."""
        try:
            return int(Path(f"{self.pidfile}.2").read_text())
        except (FileNotFoundError, ValueError):
            return 0

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
    with servers.running(Gunicorn(directory, store, kind, settings, *options)) as server:
        yield server
