"""A metric registry: what is measured is shared and changes while workers run; what they count stays their own.

Problem: names, help texts and histogram bounds of metrics live in one place, and are to change without a restart: a
finer bound, a metric switched off. Every worker needs them at each observation, and counts from different workers
must fit together. (Counters themselves do not belong into a store: they change with every request.)
Run it: python examples/metric_registry.py
It prints: the histograms of three workers, added up by version of the registry, which changed while they served:
version 2 has a finer bound and a metric less. And that every request was counted, in one version or the other.
"""

from __future__ import annotations

import bisect
import collections
import multiprocessing
import os
from multiprocessing.connection import Connection

import msgspec

import shmcow
from shmcow import Reader, Writer

STORE = f"example-metrics-{os.getpid()}"


class Metric(msgspec.Struct, frozen=True):
    help: str
    bounds: tuple[float, ...]  # upper bounds of a histogram's buckets, in seconds; ascending


Registry = dict[str, Metric]
registry: Reader[Registry] = Reader(STORE, type=Registry)


class Counts(dict[tuple[int, str, str], int]):
    """What one worker has counted: by version of the registry, metric and bucket. Versions are never mixed."""

    def observe(self, name: str, seconds: float) -> None:
        """Count one observation by the registry of this moment; a metric that is not in it is not counted."""
        now = registry.snapshot()
        metric = now.value.get(name)
        if metric is not None:
            at = bisect.bisect_left(metric.bounds, seconds)
            key = now.version, name, str([*metric.bounds, "inf"][at])
            self[key] = self.get(key, 0) + 1


def work(link: Connection) -> None:
    """Serve rounds of 150 requests until told to stop; then hand over what was counted."""
    counts, rounds, last = Counts(), 0, False
    while not last:
        last = link.poll()
        for k in range(150):
            counts.observe("http_seconds", k / 100)
            counts.observe("db_seconds", k / 1000)
        rounds += 1
        if rounds == 1:
            link.send("ready")
    link.send((150 * rounds, counts))


def main() -> None:
    """Change the registry under three workers, and add up what they counted."""
    context = multiprocessing.get_context("fork")
    links, served, sums = [], 0, collections.Counter[tuple[int, str, str]]()
    first = {"http_seconds": Metric("requests", (0.1, 1.0)), "db_seconds": Metric("queries", (0.05,))}
    with Writer(STORE, type=Registry, initial=first) as writer:
        for _ in range(3):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(theirs,), daemon=True).start()
            theirs.close()  # so that a worker's death ends recv() below
            assert ours.recv() == "ready"
            links.append(ours)
        writer.publish({"http_seconds": Metric("requests", (0.1, 0.5, 1.0))})
        for link in links:
            link.send("stop")
            requests, counts = link.recv()
            served += requests
            sums.update(counts)
    for version, name in sorted({key[:2] for key in sums}):
        histogram = {bucket: sums[version, name, bucket] for *of, bucket in sorted(sums) if of == [version, name]}
        print(f"version {version}: {name} {histogram}")
    counted = sum(n for (_, name, _), n in sums.items() if name == "http_seconds")
    print(f"requests: {served} served, {counted} counted")
    assert served == counted
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
