"""Validation inside the writer: whatever is wrong with a new value, the old version stays, and nobody notices.

Problem: a wrong price list or half a table does more harm than an old one. Checks in the tools that publish are
skipped by the next tool; checks in the readers come too late.
Run it: python examples/validation.py
It prints: six attempts that failed (a wrong type, an empty list, half of the rows lost, a rule of one's own, an
exception while building, one while editing), with why; and that a worker process still reads version 1 after each of
them.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator

import msgspec

import shmcow
from shmcow import Reader, Writer, validators

STORE = f"example-validation-{os.getpid()}"


class Prices(msgspec.Struct, frozen=True):
    cents: dict[str, int]
    currency: str = "EUR"


def positive(old: Prices | None, new: Prices) -> None:
    """A rule of one's own: raise to refuse. The old value is there for rules about changes."""
    for item, cents in new.cents.items():
        if cents <= 0:
            raise ValueError(f"the price of {item} is {cents}")
    if old is not None and new.currency != old.currency:
        raise ValueError(f"the currency may not change from {old.currency} to {new.currency}")


CHECKS = [validators.min_count(1, "cents"), validators.max_shrink(0.4, "cents"), positive]
GOOD = {"tea": 250, "coffee": 300, "cake": 450, "water": 100}
prices = Reader(STORE, type=Prices)


def served() -> tuple[int, dict[str, int]]:
    """What a worker sells by."""
    now = prices.snapshot()
    return now.version, now.copy().cents


def rows() -> Iterator[tuple[str, int]]:
    """A source that breaks off in the middle."""
    yield "tea", 260
    raise ConnectionError("the database went away")


def editing(writer: Writer[Prices]) -> None:
    """Change a draft, and fail: it is dropped."""
    with writer.edit() as draft:
        draft.cents["tea"] = 1
        draft.cents["rum"] += 50


def main() -> None:
    """Try what must not be published; ask a worker after each attempt."""
    attempts: dict[str, Callable[[Writer[Prices]], object]] = {
        "wrong type": lambda writer: writer.patch(cents={"tea": "2.50"}),
        "nothing left": lambda writer: writer.publish(Prices({})),
        "half of it lost": lambda writer: writer.publish(Prices({"tea": 250, "cake": 450})),
        "a rule of one's own": lambda writer: writer.patch(cents={**GOOD, "cake": 0}),
        "exception while building": lambda writer: writer.update(lambda _: Prices(dict(rows()))),
        "exception while editing": editing,
    }
    with Writer(STORE, type=Prices, validators=CHECKS) as writer, multiprocessing.get_context("fork").Pool(1) as pool:
        writer.publish(Prices(GOOD))
        for what, attempt in attempts.items():
            try:
                attempt(writer)
            except Exception as exc:
                print(f"{what}: {type(exc).__name__}: {exc}")
            assert pool.apply(served) == (1, GOOD)
        report = shmcow.describe(STORE)
        print(f"workers still have version {report.version}; refused as invalid: {report.counters['refused']}")
        assert [generation.version for generation in report.generations] == [1]
        version = writer.update(lambda old: Prices({**old.cents, "tea": 260}))
        assert pool.apply(served) == (version, GOOD | {"tea": 260})
        print(f"the next good one is version {version}")
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
