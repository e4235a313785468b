"""A pool of worker processes computes on one version of a price list, while newer ones are published.

Run: python examples/pool_on_one_version.py
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import msgspec

import shmcow
from shmcow import Reader, Snapshot, Writer

STORE = f"example-prices-{os.getpid()}"
ORDERS = range(1, 41)  # how many of them


class Prices(msgspec.Struct, frozen=True):
    cents: int


def total(task: tuple[Snapshot[Prices], int]) -> tuple[int, int]:
    """Compute one order's total: the snapshot arrives as the version that its sender holds."""
    prices, count = task
    return prices.value.cents * count, prices.version


def tasks(writer: Writer[Prices], prices: Snapshot[Prices]) -> Iterator[tuple[Snapshot[Prices], int]]:
    """Send the same snapshot with every order, and publish new prices in between."""
    for count in ORDERS:
        yield prices, count
        writer.publish(Prices(100 + count))


def versions() -> list[int]:
    """Return the versions that can be opened, newest first."""
    return [generation.version for generation in shmcow.describe(STORE).generations]


def main() -> None:
    """Compute all totals on version 1, and show which versions were there meanwhile and afterwards."""
    context = multiprocessing.get_context("spawn")
    with Writer(STORE, type=Prices, initial=Prices(100), retain=0) as writer, context.Pool(4) as pool:
        with Reader(STORE, type=Prices).snapshot() as prices:  # held to the end of the block: the jobs can open it
            done = list(pool.imap_unordered(total, tasks(writer, prices)))
            print(f"{len(done)} jobs computed on version {prices.version}; versions there at the end: {versions()}")
            assert sorted(done) == [(100 * count, 1) for count in ORDERS]
            assert versions() == [writer.version, 1]
        writer.wait_unused(1, timeout=30)
        writer.reclaim()
        print(f"nobody holds version 1 any more; versions there: {versions()}")
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
