"""An append-only log of bounded size: the newest entries, which any process can follow, and see when it missed some.

Problem: admin actions, deployments, breaker trips: every worker shows the last hundred, and some follow them. A file
grows, and needs a lock; a queue has one reader. (For many entries a second use a broker: each append is a new
version.)
Run it: python examples/bounded_log.py
It prints: what a follower in another process got while two processes appended, and what one that was away too long
got: the newest entries, and how many it missed.
"""

from __future__ import annotations

import multiprocessing
import os

import msgspec

import shmcow
from shmcow import Reader, Writer

STORE = f"example-log-{os.getpid()}"
KEEP, APPENDS = 100, 60


class Log(msgspec.Struct, frozen=True):
    entries: tuple[str, ...] = ()
    end: int = 0  # how many were ever appended; the newest entry has number end - 1

    def append(self, *new: str) -> Log:
        """Return the log with more at its end, and without what is too old."""
        return Log((*self.entries, *new)[-KEEP:], self.end + len(new))

    def since(self, number: int) -> tuple[tuple[str, ...], int]:
        """Return the entries from a number on, and how many of them are gone by now."""
        first = self.end - len(self.entries)
        return self.entries[max(number - first, 0) :], max(first - number, 0)


def follow(expected: int) -> tuple[list[str], int]:
    """Follow the log from its start; versions may be missed, entries are not, as long as 100 of them cover the gap."""
    got: list[str] = []
    missed = 0
    for snapshot in Reader(STORE, type=Log, attach_timeout=30).watch():
        new, gone = snapshot.value.since(len(got) + missed)
        got += new
        missed += gone
        if len(got) + missed >= expected:
            break
    return got, missed


def append(who: str) -> None:
    """Be one of those who append."""
    with Writer(STORE, type=Log, create=False) as writer:
        for k in range(APPENDS):
            writer.update(lambda log, entry=f"{who} did {k}": log.append(entry), message=who)


def main() -> None:
    """Append from two processes, and follow from a third; then come late."""
    with Writer(STORE, type=Log, initial=Log()) as writer, multiprocessing.get_context("fork").Pool(3) as pool:
        following = pool.apply_async(follow, (2 * APPENDS,))
        pool.map(append, ("ann", "bob"), chunksize=1)
        got, missed = following.get()
        print(f"a follower got {len(got)} entries and missed {missed}")
        for who in ("ann", "bob"):  # what it got of each is in order
            mine = [entry for entry in got if entry.startswith(who)]
            assert missed or mine == [f"{who} did {k}" for k in range(APPENDS)]
        log = writer.snapshot().value
        new, gone = log.since(5)  # whoever was away since entry 5
        print(f"{log.end} were appended, {len(log.entries)} are kept; since entry 5: {len(new)}, and {gone} are gone")
        assert (len(new), gone) == (KEEP, 2 * APPENDS - KEEP - 5)
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
