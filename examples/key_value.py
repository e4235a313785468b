"""A small key-value map with get, set, delete, range and batch put, shared by all processes of a user.

Problem: some dozens or thousands of keys that are read all the time and set now and then: limits by customer, say. A
change is a new version of the whole map, so keep it small: a map of 10,000 keys costs some ten milliseconds a set.
(Keys that change many times a second belong into Redis, large maps that are replaced as a whole into a Table.)
Run it: python examples/key_value.py
It prints: what a worker process reads after each change.
"""

from __future__ import annotations

import bisect
import multiprocessing
import os
from collections.abc import Mapping
from typing import Any

import shmcow
from shmcow import Reader, Writer

STORE = f"example-map-{os.getpid()}"


class SharedMap:
    """A map from str to plain values. Any number of processes may read and change it; no change is lost."""

    def __init__(self, store: str) -> None:
        self.store = store
        # The keys are sorted once for each version and process, not at each range().
        self._reader: Reader[Any] = Reader(store, transform=lambda pairs: (pairs, sorted(pairs)), default=({}, []))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key: two lookups and no lock."""
        return self._reader.get()[0].get(key, default)

    def range(self, first: str, last: str) -> list[tuple[str, Any]]:
        """Return the pairs with first <= key < last, sorted, all of one version."""
        pairs, keys = self._reader.get()
        return [(key, pairs[key]) for key in keys[bisect.bisect_left(keys, first) : bisect.bisect_left(keys, last)]]

    def put(self, pairs: Mapping[str, Any], *, delete: tuple[str, ...] = ()) -> int:
        """Set and delete several keys in one version: readers see all of it or nothing."""
        with Writer(self.store, initial={}) as writer:
            return writer.update(lambda old: {key: old[key] for key in old if key not in delete} | dict(pairs))

    def set(self, key: str, value: Any) -> int:
        """Set one key."""
        return self.put({key: value})

    def delete(self, *keys: str) -> int:
        """Delete keys; those that are not there do not matter."""
        return self.put({}, delete=keys)


limits = SharedMap(STORE)


def look(key: str) -> tuple[Any, list[tuple[str, Any]]]:
    """Read one key and a range, in a worker."""
    return limits.get(key, "no limit"), limits.range("customer.", "customer/")  # "/" comes after "."


def main() -> None:
    """Change the map, and show what a worker reads each time."""
    with multiprocessing.get_context("fork").Pool(1) as pool:

        def show(version: int) -> None:
            one, some = pool.apply(look, ("customer.ann",))
            print(f"version {version}: customer.ann has {one}; all customers: {some}")
            assert some == limits.range("customer.", "customer/")

        show(limits.set("customer.ann", 10))
        show(limits.put({"customer.bob": 20, "customer.eve": 30, "global": 1000}))
        show(limits.delete("customer.ann", "nobody"))
        show(limits.put({"customer.cy": 5}, delete=("customer.eve",)))
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
