"""Swap a value and get the previous one back: a collector takes what others have put down, and loses nothing.

Problem: processes report rare events (a bad upload, a slow query); every now and then one of them collects what is
there and starts an empty list. Between reading the list and emptying it somebody may add to it.
Run it: python examples/swap.py
It prints: how many reports three processes made, in how many batches a fourth collected them, and that each report
came exactly once.
"""

from __future__ import annotations

import multiprocessing
import os

import shmcow
from shmcow import Writer

STORE = f"example-swap-{os.getpid()}"
REPORTS = 40


def report(who: int) -> int:
    """Put some reports down; update() and swap() take turns, so none falls between two batches."""
    with Writer(STORE, create=False) as writer:
        for k in range(REPORTS):
            writer.update(lambda old, entry=f"{who}/{k}": [*old, entry])
    return REPORTS


def main() -> None:
    """Collect while three processes report."""
    with Writer(STORE, initial=[], retain=0) as writer, multiprocessing.get_context("fork").Pool(3) as pool:
        made = pool.map_async(report, range(3), chunksize=1)
        batches, ended = [], False
        while not ended:
            made.wait(0.002)
            ended = made.ready()  # before the swap: what was put down by then is in the last batch
            if writer.snapshot().value or ended:
                previous = writer.swap([])
                batches.append(previous.value)
        collected = [entry for batch in batches for entry in batch]
        print(f"{sum(made.get())} reports made, {len(collected)} collected, {len(set(collected))} different ones")
        print(f"batches: {len(batches)}; the last was version {previous.version}, the empty one is {writer.version}")
        assert sorted(collected) == sorted(f"{who}/{k}" for who in range(3) for k in range(REPORTS))
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
