"""Compare-and-swap: publish only if nobody else has published since the value was read.

Problem: four admin processes read a value, think for a while outside any lock, and write. With a plain publish the
last one wins, and the others' work is lost without a word.
Run it: python examples/compare_and_swap.py
It prints: how many increments four processes made, how many conflicts made them try again, and the sum: nothing is
lost.
"""

from __future__ import annotations

import multiprocessing
import os

import shmcow
from shmcow import VersionConflictError, Writer

STORE = f"example-cas-{os.getpid()}"
ROUNDS = 25


def increment(who: int) -> int:
    """Add 1 so many times; return how often somebody else was faster."""
    conflicts = 0
    with Writer(STORE, create=False) as writer:
        for _ in range(ROUNDS):
            while True:
                seen = writer.snapshot()
                new = {**seen.value, "count": seen.value["count"] + 1}  # may take as long as it likes
                try:
                    writer.publish(new, expected=seen.version, author=f"admin-{who}")
                    break
                except VersionConflictError:  # says what was expected and what is current; look again
                    conflicts += 1
    return conflicts


def main() -> None:
    """Let four processes increment one counter; then show the same without a loop of one's own."""
    with Writer(STORE, initial={"count": 0}) as writer, multiprocessing.get_context("fork").Pool(4) as pool:
        conflicts = sum(pool.map(increment, range(4), chunksize=1))
        now = writer.snapshot()
        print(f"4 processes, {4 * ROUNDS} increments: count {now.value['count']} in version {now.version}")
        print(f"conflicts: {conflicts}, as the store counts them: {shmcow.describe(STORE).counters['conflicts']}")
        assert now.value["count"] == 4 * ROUNDS == now.version - 1
        # Where the new value is quick to compute: under the writer lock, and there are no conflicts.
        writer.update(lambda old: {**old, "count": old["count"] + 1})
        print(f"update() instead: count {writer.snapshot().value['count']}")
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
