"""Sharding by key across stores: each shard has its own writer, its own versions and its own lock.

Problem: 8,000 customers' settings change one by one, from several processes. In one store each change writes all of
them again, and the writers take turns. In 8 stores a change writes an eighth, and writers of different shards never
meet. The price: there is no version of all of them together; what must be consistent belongs into one shard.
Run it: python examples/sharding.py
It prints: how many bytes one change wrote with one store and with 8, that four processes changed all shards at once
with nothing lost, and that a change moved the version of its own shard only.
"""

from __future__ import annotations

import multiprocessing
import os
import zlib
from typing import Any

import shmcow
from shmcow import Reader, Writer

STORE = f"example-{{}}-{os.getpid()}"
SHARDS, CUSTOMERS = 8, 8_000


class Shards:
    """A mapping from str that is spread over several stores. Their number is fixed: another number moves keys."""

    def __init__(self, name: str, count: int) -> None:
        self.names = [STORE.format(f"{name}{k}") for k in range(count)]
        self.readers: list[Reader[dict[str, Any]]] = [Reader(name, default={}) for name in self.names]

    def number(self, key: str) -> int:
        """Return a key's shard; hash() would differ from process to process."""
        return zlib.crc32(key.encode()) % len(self.names)

    def get(self, key: str) -> Any:
        """Read one key."""
        return self.readers[self.number(key)].get().get(key)

    def set(self, key: str, value: Any) -> int:
        """Set one key; returns the new version of its shard."""
        with Writer(self.names[self.number(key)], create=False) as writer:
            return writer.update(lambda old: {**old, key: value})

    def fill(self, pairs: dict[str, Any]) -> None:
        """Publish everything."""
        for k, name in enumerate(self.names):
            with Writer(name) as writer:
                writer.publish({key: value for key, value in pairs.items() if self.number(key) == k})


customers = Shards("shard", SHARDS)


def change(who: int) -> None:
    """Change customers of all shards; each of the four processes has its own."""
    for k in range(who, 80, 4):
        customers.set(f"customer-{k}", {"limit": 1000 + k})


def main() -> None:
    """Compare one store with 8, then change the 8 from four processes."""
    pairs = {f"customer-{k}": {"limit": k} for k in range(CUSTOMERS)}
    for shards in (Shards("single", 1), customers):
        shards.fill(pairs)
        name = shards.names[shards.number("customer-1")]
        shards.set("customer-1", {"limit": -1})
        size = shmcow.describe(name).generations[0].size_bytes
        print(f"stores: {len(shards.names)}; a change of one customer wrote {size / 1024:.0f} KiB")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(change, range(4), chunksize=1)
    versions = [shmcow.describe(name).version for name in customers.names]
    print(f"versions after 81 changes by 5 processes: {versions}, {sum(versions) - SHARDS} beyond the first")
    assert sum(versions) - SHARDS == 81
    assert [customers.get(f"customer-{k}")["limit"] for k in range(80)] == [1000 + k for k in range(80)]
    version = customers.set("customer-7999", {})
    after = [shmcow.describe(name).version for name in customers.names]
    moved = [k for k in range(SHARDS) if after[k] != versions[k]]
    print(f"one more change: shard {moved} is at version {version}, the others did not move")
    assert moved == [customers.number("customer-7999")]
    for name in [*Shards("single", 1).names, *customers.names]:
        shmcow.destroy(name)


if __name__ == "__main__":
    main()
