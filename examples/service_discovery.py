"""A service-discovery cache that a timer refreshes: one process asks the registry, and all workers have its answer.

Problem: each of 64 workers asks the registry for the backends every few seconds. When the registry is down, requests
wait for it, although the backends that were known a minute ago are still there.
Run it: python examples/service_discovery.py
It prints: the backends that a worker has while the registry answers, while it is down, and when it is back with
others; and how often it was asked, in vain or not.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import msgspec

import shmcow
from shmcow import Reader
from shmcow.feed import follow, poll
from shmcow.inspect import FeedState

STORE = f"example-discovery-{os.getpid()}"


class Backend(msgspec.Struct, frozen=True):
    host: str
    port: int


Backends = tuple[Backend, ...]


def feed(registry: Path) -> None:
    """Ask again and again until SIGTERM; after failures less often. The same answer makes no version."""

    def discover() -> Backends:
        # A request with a time-out in earnest, a file here. What it raises counts as a failure.
        found = msgspec.json.decode(registry.read_bytes(), type=Backends)
        return tuple(sorted(found, key=lambda backend: backend.host))

    logging.getLogger("shmcow").addHandler(logging.NullHandler())  # it would say what goes wrong
    follow(poll(discover, every=0.02, jitter=0.1), STORE, type=Backends)


def state() -> FeedState:
    """Return what the store says of its feed."""
    found = shmcow.describe(STORE).feed
    assert found is not None
    return found


def main() -> None:
    """Have the registry go down, and come back with another answer."""
    with tempfile.TemporaryDirectory() as folder:
        registry = Path(folder) / "registry.json"
        registry.write_text('[{"host": "b", "port": 1}, {"host": "a", "port": 1}]')
        follower = multiprocessing.get_context("fork").Process(target=feed, args=(registry,), daemon=True)
        follower.start()

        backends = Reader(STORE, type=Backends, attach_timeout=60)
        first = backends.snapshot()
        while state().contacts < 5:
            time.sleep(0.01)
        print(f"asked 5 times: version {backends.version}, {[backend.host for backend in backends.get()]}")
        registry.rename(registry.with_suffix(".down"))
        while state().failures_in_a_row < 2:
            time.sleep(0.01)
        assert backends.snapshot() is first
        print(f"registry down: version {backends.version}, {[backend.host for backend in backends.get()]}")
        print(f"known to be good for less than a minute: {(backends.staleness() or 0.0) < 60}")
        registry.write_text('[{"host": "c", "port": 1}]')
        newer = backends.wait(after=first, timeout=60)
        print(f"registry back: version {newer.version}, {[backend.host for backend in newer.value]}")
        follower.terminate()
        follower.join()
        assert state().failures >= 2  # how many times it asked in vain is chance
        print(f"publishes: {state().publishes}, failures: 2 or more")
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
