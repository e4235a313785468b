"""Many processes at once: no update is lost, no value torn, nobody goes back, nobody misses what was acknowledged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import Child, Link, Words, value_of, version_in

from shmcow import Reader, VersionConflictError, Writer, describe

UPDATERS = 100
FRESH = 8  # of them are new interpreters, which share nothing with this one
PUBLISHES = 1000
READERS = 8
PATIENCE = 90.0  # seconds for the writer lock: a hundred processes take turns on a small machine

FRESH_UPDATER = """
import os, sys
from shmcow import Writer
name, who, ready, barrier, patience = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
writer = Writer(name, lock_timeout=patience)
os.write(ready, b"r")
os.read(barrier, 1)
writer.update(lambda old: {**old, who: os.getpid()})
"""


def _updater(_: Link, name: str, who: str, ready: int, barrier: int, starter: int) -> None:
    os.close(starter)
    writer = Writer(name, lock_timeout=PATIENCE)
    os.write(ready, b"r")
    os.read(barrier, 1)  # returns when the parent closes its end
    writer.update(lambda old: {**old, who: os.getpid()})


def test_a_hundred_updates_from_a_hundred_processes_lose_none(name: str, spawn: Callable[..., Child]) -> None:
    """A hundred processes, released at once, each add one entry: all hundred entries are there, each by another pid."""
    writer = Writer(name, initial={}, lock_timeout=PATIENCE)
    ready_read, ready_write = os.pipe()
    barrier, starter = os.pipe()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_package_root()), *sys.path]))}
    fresh = [
        subprocess.Popen(
            [sys.executable, "-c", FRESH_UPDATER, name, f"fresh{k}", str(ready_write), str(barrier), str(PATIENCE)],
            pass_fds=(ready_write, barrier),
            env=environment,
        )
        for k in range(FRESH)
    ]
    try:
        forked = [spawn(_updater, name, f"forked{k}", ready_write, barrier, starter) for k in range(UPDATERS - FRESH)]
        ready = 0
        while ready < UPDATERS:
            ready += len(os.read(ready_read, UPDATERS))
        os.close(starter)
        for child in forked:
            child.done()
        for process in fresh:
            assert process.wait(processes.WATCHDOG) == 0
    finally:
        for process in fresh:
            if process.poll() is None:
                process.kill()
                process.wait()
        for descriptor in (ready_read, ready_write, barrier):
            os.close(descriptor)
    value = Reader(name).get()
    print(f"{len(value)} entries after {UPDATERS} concurrent updates, {FRESH} of them from new interpreters")
    assert len(value) == UPDATERS
    assert len(set(value.values())) == UPDATERS
    assert writer.version == 1 + UPDATERS
    assert describe(name).counters["published"] == 1 + UPDATERS
    processes.assert_at_rest(name)
    writer.destroy()


def _package_root() -> Path:
    import shmcow

    return Path(shmcow.__file__).parent.parent


def _expecting(link: Link, name: str, rounds: int) -> None:
    """Count up by compare-and-swap: read, publish with expected=, again on a conflict."""
    writer, reader = Writer(name, lock_timeout=PATIENCE), Reader(name)
    conflicts = 0
    link.send("ready")
    link.recv()
    for _ in range(rounds):
        while True:
            seen = reader.snapshot()
            try:
                writer.publish({"n": seen.value["n"] + 1}, expected=seen.version)
                break
            except VersionConflictError:
                conflicts += 1
    link.send(conflicts)


def test_compare_and_swap_from_many_processes_loses_none(name: str, spawn: Callable[..., Child]) -> None:
    """Eight processes count one number up with expected=: each success adds exactly one, whatever the conflicts."""
    writer = Writer(name, initial={"n": 0})
    children = [spawn(_expecting, name, 25) for _ in range(8)]
    for child in children:
        assert child.recv() == "ready"
    for child in children:
        child.send("go")
    conflicts = sum(child.recv() for child in children)
    print(f"200 compare-and-swaps of 8 processes, {conflicts} conflicts")
    assert Reader(name).get() == {"n": 200}
    assert writer.version == 201
    assert describe(name).counters["conflicts"] == conflicts
    writer.destroy()


def _reading(link: Link, name: str, acknowledged: Words) -> None:
    """Read until the last version is seen, comparing each answer with what was acknowledged before it was asked for."""
    reader = Reader(name)
    found: dict[str, Any] = {"gets": 0, "versions": 0, "torn": 0, "back": 0, "missed": 0}
    value, last = None, 0
    link.send("ready")
    while last < PUBLISHES:
        floor = acknowledged[0]  # loaded before get()
        got = reader.get()
        found["gets"] += 1
        if got is not value:
            value, version = got, version_in(got)
            found["versions"] += 1
            found["torn"] += version == 0
            found["back"] += version <= last
            last = version
        found["missed"] += last < floor
        if found["gets"] % 64 == 0:
            os.sched_yield()
    link.send(found)


@pytest.mark.parametrize("retain", [0, 4])
def test_a_thousand_publishes_under_eight_readers(name: str, spawn: Callable[..., Child], retain: int) -> None:
    """No reader sees a torn value, goes back, or misses a version that publish() had returned before it asked."""
    seed = random.randrange(1 << 32)
    sizes = random.Random(seed)
    acknowledged = Words(1)
    writer = Writer(name, retain=retain, initial=value_of(1))
    readers = [spawn(_reading, name, acknowledged) for _ in range(READERS)]
    for reader in readers:
        assert reader.recv() == "ready"
    for version in range(2, PUBLISHES + 1):
        returned = writer.publish(value_of(version, sizes.choice((1, 16, 256, 2048))))
        assert returned == version
        acknowledged[0] = version
    found = [reader.recv() for reader in readers]
    total = {key: sum(each[key] for each in found) for key in found[0]}
    print(f"seed {seed}, retain {retain}: {PUBLISHES} publishes, {READERS} readers: {total}")
    assert total["torn"] == total["back"] == total["missed"] == 0
    assert total["versions"] > READERS
    for reader in readers:
        reader.done()
    writer.reclaim()
    assert processes.versions_of(name) == list(range(PUBLISHES, PUBLISHES - retain - 1, -1))
    processes.assert_at_rest(name)
    writer.destroy()
