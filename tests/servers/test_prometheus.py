"""The Prometheus collector in a real prefork server: whichever worker is scraped, it tells the same of a store."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
from gunicorns import SCRIPT, installed
from processes import WATCHDOG, state_of, until
from servers import children_of

import shmcow
from shmcow import Reader, Writer

pytest.importorskip("prometheus_client", reason="needs prometheus-client: pip install 'shmcow[prometheus]'")

from prometheus_client.parser import text_string_to_metric_families

from shmcow.contrib.prometheus import _COUNTERS

pytestmark = pytest.mark.skipif(not installed(), reason="needs gunicorn 27 or later: pip install 'gunicorn>=27'")

ROOT = Path(__file__).parents[2]
WORKERS = 3
# What an operator writes: one registry, made before the fork, and no multiprocess mode.
APP = """
import os
from prometheus_client import CollectorRegistry, make_wsgi_app
from shmcow import Reader
from shmcow.contrib.prometheus import StoreCollector

config = Reader(os.environ["STORE"], type=dict[str, int])
registry = CollectorRegistry()
registry.register(StoreCollector(config.name, config.name + "-absent", readers=[config]))
metrics = make_wsgi_app(registry)

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    body = b"%d %d" % (os.getpid(), config.get()["n"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


class Server:
    """A gunicorn that runs, asked over a unix socket."""

    def __init__(self, directory: Path, store: str) -> None:
        (directory / "app.py").write_text(APP)
        self._socket = directory / "socket"
        self.log = directory / "log"
        command = [str(SCRIPT), "app:app", "--preload", "--workers", str(WORKERS), "--bind", f"unix:{self._socket}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--no-control-socket"],
                cwd=directory,
                env=os.environ | {"STORE": store, "PYTHONPATH": os.pathsep.join([str(ROOT), str(directory)])},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )

    def ready(self) -> None:
        """Wait until it has all its workers, and each of them has read the store."""

        def listens() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self._socket.exists() and len(self.workers()) == WORKERS

        until(listens, "gunicorn listens")

    def workers(self) -> set[int]:
        """Return the pids of the workers."""
        return {pid for pid in children_of(self.process.pid) if state_of(pid) not in ("Z", "")}

    def send(self, path: str) -> http.client.HTTPConnection:
        """Send a request; its answer is still to be read."""
        connection = http.client.HTTPConnection("gunicorn", timeout=WATCHDOG)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(WATCHDOG)
        connection.sock.connect(str(self._socket))
        connection.request("GET", path, headers={"Connection": "close"})
        return connection

    def ask(self, path: str) -> list[str]:
        """Return the answers to requests that were sent at the same time, as many as to give each worker some."""
        found = []
        for connection in [self.send(path) for _ in range(2 * WORKERS)]:
            with connection.getresponse() as answer:
                found.append(answer.read().decode())
            connection.close()
            assert answer.status == 200, found
        return found

    def value_of_each(self) -> set[str]:
        """Return what the workers answer with, all of them."""
        found: dict[int, str] = {}

        def all_answered() -> bool:
            found.update((int(pid), value) for pid, value in map(str.split, self.ask("/")))
            return self.workers() <= found.keys()

        until(all_answered, "every worker answers")
        return {found[pid] for pid in self.workers() & found.keys()}

    def scrape_each(self) -> dict[int, dict[Any, float]]:
        """Return what each worker says, by pid: the values of all samples."""
        found: dict[int, dict[Any, float]] = {}

        def all_scraped() -> bool:
            for text in self.ask("/metrics"):
                samples = {
                    (sample.name, sample.labels.pop("store"), *sample.labels.values()): sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                }
                (pid,) = [int(key[2]) for key in samples if key[0] == "shmcow_reader_failures_total"]
                found[pid] = samples
            return self.workers() <= found.keys()

        until(all_scraped, "every worker is scraped")
        return {pid: found[pid] for pid in self.workers() & found.keys()}

    def end(self) -> None:
        """Stop it as an operator does, or else kill it."""
        try:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(WATCHDOG) == 0
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(WATCHDOG)


@pytest.fixture
def server(name: str, tmp_path: Path) -> Iterator[Server]:
    """A gunicorn whose application reads the store, and has metrics of it."""
    with Writer(name, initial={"n": 1}):
        pass
    server = Server(tmp_path, name)
    try:
        server.ready()
        yield server
    finally:
        server.end()


def of_the_store(samples: dict[Any, float]) -> dict[Any, float]:
    """Return what is no process's own."""
    return {key: value for key, value in samples.items() if not key[0].startswith("shmcow_reader_")}


def test_every_worker_tells_the_same_of_a_store(name: str, server: Server) -> None:
    """Under load, after a kill, and when none can decode: the counters are the header's, whoever is scraped."""
    with Writer(name) as writer, Reader(name) as reader:
        for n in range(2, 6):
            assert writer.publish({"n": n}) == n
            assert server.value_of_each() == {str(n)}
        victim = min(server.workers())
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in server.workers() and len(server.workers()) == WORKERS, "another worker comes")
        assert server.value_of_each() == {"5"}
        with reader.snapshot().hold():
            writer.publish({"n": "unusable"})
            writer.rollback()
            writer.publish({"n": "unusable"})
            assert server.value_of_each() == {"5"}  # served on with the last good value
            scrapes = server.scrape_each()
            counters = shmcow.describe(name).counters
    assert len(scrapes) == WORKERS
    (first, *others) = [of_the_store(samples) for samples in scrapes.values()]
    for other in others:
        assert other == first
    for counter, (metric, _) in _COUNTERS.items():
        assert first[f"shmcow_{metric}_total", name] == counters[counter], counter
    assert first["shmcow_current_version", name] == 8
    assert (first["shmcow_readers", name], first["shmcow_readers_behind", name]) == (WORKERS + 1, WORKERS + 1)
    assert (first["shmcow_holders", name], first["shmcow_oldest_held_version", name]) == (1, 5)
    assert first["shmcow_store_status", f"{name}-absent", "missing"] == 1
    for pid, samples in scrapes.items():
        own = {key for key in samples if key[0].startswith("shmcow_reader_")}
        assert own == {(f"shmcow_reader_{what}", name, str(pid)) for what in ("failures_total", "problem")}
        assert all(samples[key] == 1 for key in own)
