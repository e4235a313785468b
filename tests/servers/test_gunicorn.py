"""Real gunicorn with the example: each request sees one whole version, whatever happens to workers and masters."""

from __future__ import annotations

import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import gunicorns
import msgspec
import processes
import pytest
import servers
from gunicorns import Gunicorn, publish
from processes import until
from servers import WORKERS, Burst, Published, assert_versions_only_grow, refcounts

import shmcow
from shmcow import Writer

Serve = Callable[..., AbstractContextManager[Gunicorn]]
MANY = 10  # versions that a burst must see: enough that workers met changes in mid-work


@pytest.fixture
def serve(name: str, tmp_path: Path) -> Serve:
    """Run gunicorn with the example on a store of this test: ``with serve("sync", preload=True) as server``."""
    if not gunicorns.installed():
        pytest.skip("needs gunicorn beside this Python: pip install 'gunicorn>=27'")
    return partial(gunicorns.serving, tmp_path, name)


def publish_until_seen(name: str, burst: Burst, number: int = MANY) -> list[Published]:
    """Let the other process publish, a few milliseconds apart, until the clients have seen some versions."""
    published: list[Published] = []
    enough = len(burst.versions) + number

    def seen() -> bool:
        published.extend(publish(name, times=20, every=0.005))
        assert not burst.problems, burst.problems
        return len(burst.versions) >= enough

    until(seen, "the clients see versions come")
    burst.more()
    return published


def assert_every_worker_has(name: str, server: Gunicorn, newest: int) -> None:
    """Fail unless each worker answers with a version, and has kept nothing of older ones, nor of an older store."""
    for pid, answer in server.ask_each().items():
        assert answer.version == newest
        assert processes.seen_by(pid, name) == {newest}
        assert processes.held_by(pid, name) == set()
        assert len(processes.shm_descriptors(pid)) == 1
        assert servers.mappings(pid, name) == [f"shmcow.{name}"]  # the header; what was decoded is a copy


def until_only_the_living_hold(name: str, first: int) -> None:
    """Wait until each version's refcount is the number of living processes that hold it, and all others are reclaimed.

    With HOLDING, the master holds the first version, and so does each worker that it forked, from its first read on;
    a worker holds the version that it found, too. Those that ended count for nothing.
    """
    with Writer(name) as writer:

        def settled() -> bool:
            writer.reclaim()
            retained = range(writer.version - shmcow.describe(name).retain, writer.version + 1)
            counted = refcounts(name)
            return (
                (counted[first], counted.total()) == (1 + WORKERS, 1 + 2 * WORKERS)
                and servers.marked(name) == set(counted)
                and set(processes.versions_of(name)) == {*retained, *counted}
            )

        until(settled, "only living processes hold versions, and only held and retained ones are left")


@pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "not preloaded"])
@pytest.mark.parametrize("kind", gunicorns.KINDS)
def test_every_request_of_a_burst_sees_one_whole_version(name: str, serve: Serve, kind: str, preload: bool) -> None:
    """From before the store exists: whole answers, never an older one, and the last version as soon as it is out."""
    with serve(kind, preload=preload) as server:
        assert {answer.version for answer in server.ask_each().values()} == {0}
        with server.burst() as burst:
            published = publish_until_seen(name, burst)
        assert (burst.problems, burst.dropped) == ([], [])
        assert_versions_only_grow(burst.answers, published)
        assert_every_worker_has(name, server, published[-1].version)
        assert "going on with the last good value" not in server.log


@contextmanager
def following(file: Path, name: str) -> Iterator[None]:
    """Let `shmcow follow` feed the store from a file, and end it as a service manager does."""
    command = [sys.executable, "-m", "shmcow", "follow", str(file), name, "--type", "settings:Config"]
    env = servers.environment(name, gunicorns.EXAMPLE)
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as follower:
        try:
            yield
            follower.terminate()
            assert follower.wait(processes.WATCHDOG) == 0
        finally:
            follower.kill()


def test_file_that_is_replaced_is_what_every_worker_answers(name: str, serve: Serve, tmp_path: Path) -> None:
    """Amid requests of which none fails; how long it takes from the file to the last worker is printed."""
    pytest.importorskip("watchfiles", reason="needs watchfiles: pip install 'shmcow[feed]'")
    revised, file = servers.load(gunicorns.EXAMPLE / "settings.py").revised, tmp_path / "config.json"
    took, published = [], []
    with serve("sync", preload=True) as server, following(file, name):
        with server.burst() as burst:
            for revision in range(8):
                (tmp_path / "next").write_bytes(msgspec.json.encode(revised(revision)))
                start, version = time.monotonic(), revision + 1
                (tmp_path / "next").replace(file)

                def first(version: int = version) -> dict[int, float]:
                    """Return when each worker first answered with the version, once all have."""
                    answers = [answer for answer in list(burst.answers) if answer.version == version]
                    found = {answer.pid: answer.end for answer in sorted(answers, reverse=True)}
                    return found if burst.problems or server.workers() <= found.keys() else {}

                ends = until(first, "every worker answers with what is in the file")
                published.append(Published(max(ends.values()), version))
                took.append(1000 * (max(ends.values()) - start))
        assert (burst.problems, burst.dropped) == ([], [])
        assert_versions_only_grow(burst.answers, published)
    print(
        f"from the file to an answer of each of {WORKERS} workers: median {statistics.median(took):.0f} ms, worst "
        f"{max(took):.0f} ms; {len(burst.answers)} requests meanwhile, none failed"
    )


@pytest.mark.parametrize(("kind", "preload"), [("sync", True), ("asyncio", False)])
def test_reload_goes_on_with_the_newest_version(name: str, serve: Serve, kind: str, preload: bool) -> None:
    """HUP amid a burst: new workers, of a preloaded application too, go on where the old ones and their holds ended."""
    (first,) = publish(name)
    with serve(kind, preload=preload, holding=True) as server:
        old = server.workers()
        assert refcounts(name) == {first.version: 1 + WORKERS}
        with server.burst() as burst:
            published = publish_until_seen(name, burst)
            server.signal(signal.SIGHUP)
            until(lambda: server.workers() and not server.workers() & old, "new workers")
            published += publish_until_seen(name, burst)
        assert not burst.problems
        # gunicorn's asyncio worker may close what it had just accepted when it was told to end.
        assert kind == "asyncio" or not burst.dropped
        assert_versions_only_grow(burst.answers, [first, *published])
        new = server.ask_each()
        assert not new.keys() & old
        assert {answer.version for answer in new.values()} == {published[-1].version}
        until_only_the_living_hold(name, first.version)


@pytest.mark.parametrize(("kind", "preload"), [("gthread", True), ("asyncio", False)])
def test_killed_worker_takes_its_markers_and_nothing_else(name: str, serve: Serve, kind: str, preload: bool) -> None:
    """SIGKILL amid a burst: the others answer on, its holds are gone at once, and the next worker has the newest."""
    (first,) = publish(name)
    with serve(kind, preload=preload, holding=True) as server:
        victim, other = server.workers()
        with server.burst() as burst:
            published = publish_until_seen(name, burst)
            with server.master_stopped():  # else it would fork the next worker before we looked
                server.kill_worker(victim)
                assert refcounts(name)[first.version] == WORKERS
                living = [server.master, other]
                until(lambda: refcounts(name, seen=True).total() == len(living), "what the killed one saw is gone")
                published += publish_until_seen(name, burst)
            until(lambda: len(server.workers() - {victim}) == WORKERS, "the next worker")
            published += publish_until_seen(name, burst)
        assert not burst.problems
        # Connections that the killed worker had accepted end with it, whatever it serves: the kernel closes them. They
        # are not shmcow's failures, and at most the one that each client had open.
        assert len(burst.dropped) <= burst.clients
        assert_versions_only_grow(burst.answers, [first, *published])
        answers = server.ask_each()
        assert other in answers
        assert {answer.version for answer in answers.values()} == {published[-1].version}
        (newcomer,) = answers.keys() - {other}
        assert processes.held_by(newcomer, name) > {first.version}
        assert refcounts(name)[first.version] == 1 + WORKERS


def test_recycled_workers_leave_no_markers(name: str, serve: Serve) -> None:
    """Workers that end after some requests, amid a burst and idle afterwards: only the living are counted."""
    (first,) = publish(name)
    limits = ["--max-requests", "30", "--max-requests-jitter", "10"]
    with serve("gthread", *limits, preload=True, holding=True) as server:
        with server.burst() as burst:
            published = publish_until_seen(name, burst)
            until(lambda: burst.problems or len({answer.pid for answer in list(burst.answers)}) >= 6, "workers change")
            published += publish_until_seen(name, burst)
        assert not burst.problems
        assert_versions_only_grow(burst.answers, [first, *published])
        assert {answer.version for answer in server.ask_each().values()} == {published[-1].version}
        until_only_the_living_hold(name, first.version)


def test_two_masters_serve_and_publish_side_by_side(name: str, serve: Serve) -> None:
    """USR2 leaves two masters alive: workers of both publish without losing an update, and serve the newest version."""
    (first,) = publish(name)
    with serve("sync", preload=True, holding=True) as server:
        second = server.upgrade()
        both = server.ask_each(server.master, second).keys()
        assert len(both) == 2 * WORKERS
        with server.burst(method="POST") as burst:
            until(lambda: burst.problems or both <= {answer.pid for answer in list(burst.answers)}, "all publish")
            burst.more()
        assert (burst.problems, burst.dropped) == ([], [])
        newest = shmcow.describe(name).version
        assert newest == first.version + len(burst.answers)
        assert_versions_only_grow(burst.answers, [first, Published(math.inf, newest)])
        with server.burst() as burst:
            published = publish_until_seen(name, burst)
        assert (burst.problems, burst.dropped) == ([], [])
        assert_versions_only_grow(burst.answers, published)
        for answer in server.ask_each(server.master, second).values():
            assert answer.version == published[-1].version
        assert sum(refcounts(name).values()) == 2 * (1 + WORKERS)
        # The old one retires; its holds go with it, and the new one goes on.
        server.leave_to(second)
        assert sum(refcounts(name).values()) == 1 + WORKERS
        (last,) = publish(name)
        for answer in server.ask_each().values():
            assert answer.version == last.version


def test_workers_find_the_store_that_replaces_a_destroyed_one(name: str, serve: Serve) -> None:
    """Without a store they answer with its last version, and say so; they find a new store of that name alone."""
    publish(name)
    epoch = shmcow.describe(name).epoch
    with serve("gthread", preload=False) as server:
        with server.burst() as burst:
            before = publish_until_seen(name, burst)
            server.ask_each()  # each has read the last version
            shmcow.destroy(name)
            orphaned = server.ask_each()
            burst.more()
            after = publish(name)
            until(
                lambda: epoch not in {answer.epoch for answer in server.ask_each().values()}, "workers find the store"
            )
            after += publish_until_seen(name, burst)
        assert (burst.problems, burst.dropped) == ([], [])
        assert {(answer.epoch, answer.version) for answer in orphaned.values()} == {(epoch, before[-1].version)}
        assert_versions_only_grow([answer for answer in burst.answers if answer.epoch == epoch], before)
        assert_versions_only_grow([answer for answer in burst.answers if answer.epoch != epoch], after)
        for pid in server.workers():
            old = [answer.start for answer in burst.answers if answer.pid == pid and answer.epoch == epoch]
            new = [answer.end for answer in burst.answers if answer.pid == pid and answer.epoch != epoch]
            assert max(old, default=0) <= min(new, default=math.inf)  # never back to the old store
        assert "going on with the last good value" in server.log
        assert_every_worker_has(name, server, after[-1].version)
