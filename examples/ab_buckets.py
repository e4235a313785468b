"""A/B buckets for a million users: every worker looks assignments up in one copy, which nobody decodes.

Problem: an experiment pins each of millions of user ids to a bucket. As a dict that is some 70 MB for a million ids,
in every worker, and time at each start; in a remote cache it is a round trip for each request.
Run it: python examples/ab_buckets.py          (or: python examples/ab_buckets.py 5000000)
It prints: bytes for a user, the time to build and publish and of a lookup (CPU), and what the table costs each of the
workers in memory of its own; first for any ids in a Table, then, for ids without gaps, as one byte each, found by
position.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import shmcow
from shmcow import Raw, Reader, Table, Writer

STORE = f"example-buckets-{os.getpid()}"
DENSE = f"example-dense-{os.getpid()}"
BUCKETS = ("control", "blue", "green", "none")
LOOKUPS = 50_000
TABLE = Table(key=int, value=str)
by_id = Reader(STORE, codec=TABLE)
by_position = Reader(DENSE, codec=Raw())


def number(user: int) -> int:
    """Return a user's bucket as the experiment's designers drew it; here something that is easy to check."""
    return user * 2654435761 % 2**32 >> 30


def own_memory() -> int:
    """Return the bytes in memory that are this process's own: not of a file, not of shared memory."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


def work(task: tuple[str, int, int]) -> tuple[float, int]:
    """Look random users up, and check each answer; return seconds for a lookup and bytes of memory of our own."""
    kind, users, seed = task
    chosen = random.Random(seed).choices(range(users), k=LOOKUPS)
    wanted = [BUCKETS[number(user)] for user in chosen]
    before, start = own_memory(), time.process_time()
    if kind == "table":
        table = by_id.get()  # one version for all of them
        found = [table[user] for user in chosen]
    else:
        data = by_position.get()
        found = [BUCKETS[data[user]] for user in chosen]
    spent = time.process_time() - start
    assert found == wanted
    del found
    return spent / LOOKUPS, own_memory() - before


def measure(kind: str, users: int, writer: Writer[Any], value: Callable[[], Any]) -> None:
    """Build and publish, look up in two processes, and print what it cost."""
    start = time.perf_counter()
    version = writer.publish(value())
    published = time.perf_counter() - start
    with multiprocessing.get_context("fork").Pool(2) as pool:
        done = pool.map(work, [(kind, users, seed) for seed in range(2)], chunksize=1)
    size = shmcow.describe(writer.name).generations[0].size_bytes
    own = max(memory for _, memory in done) / 2**20
    lookup = min(seconds for seconds, _ in done) * 1e9
    print(
        f"{kind}: {users:,} users in version {version}, {size / users:.1f} bytes each; "
        f"built and published in {published:.2f} s; {lookup:.0f} ns a lookup; "
        f"at most {own:.1f} MiB of its own for a worker"
    )


def main() -> None:
    """Measure both forms."""
    users = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with Writer(STORE, codec=TABLE) as table, Writer(DENSE, codec=Raw()) as dense:
        measure("table", users, table, lambda: ((user, BUCKETS[number(user)]) for user in range(users)))
        measure("bytes", users, dense, lambda: bytes(map(number, range(users))))
    for name in (STORE, DENSE):
        shmcow.destroy(name)


if __name__ == "__main__":
    main()
