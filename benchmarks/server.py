"""In a real server: gunicorn, 4 workers, load from wrk, a publish each 100 ms; requests/s and p99."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import shmcow
from benchmarks import serving
from benchmarks.children import Child, Orders, child
from benchmarks.contest import measured
from benchmarks.harness import Plan, Result
from benchmarks.peers import DirtyStash, Redis, present
from benchmarks.peers.remote import RedisServer, Server, free_port
from benchmarks.scene import SHM, WATCHDOG, fresh_name, make_config, room

ROOT = Path(__file__).parents[1]
RATE, LATENCY = "requests in a second", "time to answer"
FLOOR, SHMCOW = "floor: nothing shared", "shmcow: config and IPTable"
REDIS, STASH = "Redis: config and sorted set", "dirty stash and a table in each worker"
FILE = "file polled by a thread and a table in each worker"
SIZE, EVERY, CONNECTIONS = 640, 0.1, 8

Publish = Callable[[Any], object]


def run(plan: Plan) -> Result:
    """Measure with the same handler, table and load for each way."""
    serving.RANGES = plan.pick(50_000, 500)
    result = Result(
        "server: a gunicorn application whose workers share a configuration and a table of addresses",
        "one run of wrk on each, thrown away",
        notes=[
            f"4 workers (gthread, 2 threads); wrk with 1 thread and {CONNECTIONS} connections on the same machine.",
            f"{serving.RANGES:,} ranges; a configuration of {SIZE} B, published each {1000 * EVERY:.0f} ms.",
        ],
    )
    for module, tool, how in (("gunicorn", "", "pip install gunicorn"), ("", "wrk", "apt-get install wrk")):
        if (module and importlib.util.find_spec(module) is None) or (tool and shutil.which(tool) is None):
            result.notes.append(f"all of it: skipped, {module or tool} is not installed ({how})")
    if room() < 3 * 10**7:
        result.notes.append(f"all of it: skipped, {SHM} has less than 30 MB free")
    if any(note.startswith("all of it") for note in result.notes):
        return result
    seconds = plan.pick(4, 1)
    with contextlib.ExitStack() as stack:
        sites = [(title, *stack.enter_context(site)) for title, site in _sites(plan, result.notes)]

        def once(number: int, title: str, port: int, writer: Child) -> tuple[float, float, float]:
            lasting = seconds if number else 1
            writer.tell("publish", lasting + 0.5)
            figure = _load(port, lasting, result.notes, title)
            published, revision = writer.answer()
            if published < lasting / EVERY / 3:
                result.notes.append(f"{title}: fewer publishes than meant")
            if title != FLOOR:
                _check_seen(title, port, revision)
            return figure

        figures = measured(sites, plan.pick(3, 1), result.notes, once)
    for title, rounds in figures.items():
        rates, middles, lates = map(list, zip(*rounds, strict=True))
        result.put(RATE, title, "wrk", rates, unit="/s")
        result.put(LATENCY, title, "p50", middles)
        result.put(LATENCY, title, "p99", lates)
    for title in figures:
        pairs = zip(result.amounts[_case(RATE, SHMCOW)], result.amounts[_case(RATE, title)], strict=True)
        rates = [ours / theirs for ours, theirs in pairs]
        p99 = f"{LATENCY}: {title}, p99", f"{LATENCY}: {SHMCOW}, p99"
        if title == FLOOR:  # nobody can be expected to beat it
            result.add(f"requests/s: shmcow / {title}", rates)
        elif title != SHMCOW:
            result.add(f"requests/s: shmcow / {title}", rates, at_least=True)
            result.compare(f"p99: {title} / shmcow", *p99, at_least=True)
    return result


def _case(grid: str, title: str) -> str:
    return f"{grid}: {title}, wrk"


def _load(port: int, seconds: int, notes: list[str], title: str) -> tuple[float, float, float]:
    """-> requests/s, p50 and p99 in nanoseconds"""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{port}/"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        if "Non-2xx" in line or "Socket errors" in line:
            notes.append(f"{title}: {line.strip()}")
    units = {"us": 1e3, "ms": 1e6, "s": 1e9}
    shares = {
        name: float(number) * units[unit] for name, number, unit in re.findall(r"(\d+)% +([\d.]+)(us|ms|s)", said)
    }
    rate = re.search(r"Requests/sec: +([\d.]+)", said)
    assert rate, said
    return float(rate[1]), shares["50"], shares["99"]


def _check_seen(title: str, port: int, revision: int) -> None:
    """Wait until ten answers in a row have what was published last."""
    deadline, seen = time.monotonic() + WATCHDOG, 0
    while seen < 10:
        seen = seen + 1 if _ask(port)["revision"] == revision else 0
        if time.monotonic() > deadline:
            raise AssertionError(f"{title}: revision {revision} was published, and is not served")


def _ask(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        return msgspec.json.decode(answer.read())  # type: ignore[no-any-return]


# ---- the sites ----

Site = tuple[int, Child]


def _sites(plan: Plan, notes: list[str]) -> Iterator[tuple[str, contextlib.AbstractContextManager[Site]]]:
    yield FLOOR, _file_site("floor")
    yield SHMCOW, _shmcow_site()
    if plan.quick:
        return
    yield FILE, _file_site("file")
    here, skipped = present([Redis, DirtyStash])
    notes += skipped
    if Redis in here:
        yield REDIS, _redis_site()
    if DirtyStash in here:
        yield STASH, _stash_site()


@contextlib.contextmanager
def _site(way: str, at: str, publisher: Callable[[], Publish], settings: str = "") -> Iterator[Site]:
    """Start gunicorn and a process that publishes."""
    server, port = Server("bench-site"), free_port()
    Path(server.folder, "gunicorn.conf.py").write_text(f"control_socket_disable = True\n{settings}")
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-b",
        f"127.0.0.1:{port}",
        "-w",
        "4",
        "-k",
        "gthread",
        "--threads",
        "2",
    ]

    def answers() -> None:
        if len(_ask(port)["country"]) != 2:
            raise AssertionError(_ask(port))

    try:
        environment = {"BENCH_WAY": way, "BENCH_AT": at, "PYTHONPATH": str(ROOT), "BENCH_RANGES": str(serving.RANGES)}
        with child(lambda: _publisher_orders(publisher())) as writer:
            if not settings:
                writer.ask("publish", 0)
            server.start([*command, "benchmarks.serving:make_app()"], answers, **environment)
            writer.ask("publish", 0)
            yield port, writer
    finally:
        server.stop()


def _publisher_orders(publish: Publish) -> Orders:
    config, revisions = make_config(SIZE), itertools.count()

    def publish_for(seconds: float) -> tuple[int, int]:
        """Publish each 100 ms, once at least. -> how often, and the last revision"""
        done, end = 0, time.monotonic() + seconds
        while True:
            revision = next(revisions) % 100
            publish(msgspec.structs.replace(config, revision=revision))
            done += 1
            if time.monotonic() + EVERY >= end:
                return done, revision
            time.sleep(EVERY)

    return {"publish": publish_for}


@contextlib.contextmanager
def _shmcow_site() -> Iterator[Site]:
    name = fresh_name()
    first = {"config": make_config(SIZE), "geo": serving.rows()}
    with shmcow.Writer(name, codec=serving.PARTS, initial=first) as writer:

        def publisher() -> Publish:
            mine = shmcow.Writer(name, codec=serving.PARTS)
            return lambda config: mine.publish_parts(config=config)

        try:
            with _site("shmcow", name, publisher) as site:
                yield site
        finally:
            writer.destroy()


@contextlib.contextmanager
def _file_site(way: str) -> Iterator[Site]:
    path = Path(SHM, fresh_name())
    encode = msgspec.msgpack.encode

    def publish(config: Any) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(encode(config))
        os.replace(fresh, path)

    try:
        with _site(way, str(path), lambda: publish) as site:
            yield site
    finally:
        path.unlink(missing_ok=True)
        path.with_suffix(".new").unlink(missing_ok=True)


@contextlib.contextmanager
def _redis_site() -> Iterator[Site]:
    server = RedisServer()
    try:
        table = serving.PrivateTable()
        client = server.client()
        for at in range(0, len(table.rows), 5000):
            client.zadd("geo", {f"{first} {country}": last for first, last, country in table.rows[at : at + 5000]})
        client.close()

        def publisher() -> Publish:
            mine, encode = server.client(), msgspec.msgpack.encode
            return lambda config: mine.set("config", encode(config))

        with _site("redis", server.socket, publisher) as site:
            yield site
    finally:
        server.stop()


@contextlib.contextmanager
def _stash_site() -> Iterator[Site]:
    folder = fresh_name()
    path = Path(SHM, folder)
    data = msgspec.msgpack.encode(make_config(SIZE))
    settings = (
        "import os\n"
        "dirty_apps = ['benchmarks.peers.dirty_app:App']\n"
        "dirty_workers = 1\n"
        "def post_worker_init(worker):\n"
        "    from gunicorn.dirty import stash\n"
        f"    stash.put('config', 'value', {data!r})\n"
        f"    open({str(path)!r}, 'w').write(os.environ['GUNICORN_DIRTY_SOCKET'])\n"
    )

    def publisher() -> Publish:
        client, encode = None, msgspec.msgpack.encode

        def publish(config: Any) -> None:
            nonlocal client
            if client is None:
                client = importlib.import_module("gunicorn.dirty.stash").StashClient(path.read_text())
            client.put("config", "value", encode(config))

        return publish

    try:
        with _site("stash", "", publisher, settings) as site:
            yield site
    finally:
        path.unlink(missing_ok=True)
