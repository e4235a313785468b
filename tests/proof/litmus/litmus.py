"""What a litmus test is: a program whose orders are those of csrc, an outcome that must not be, and weakened twins."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .program import Program, runs
from .rc11 import Model, Verdict, check
from .sites import ORDERS


class Orders:
    """The orders of csrc's atomic operations; remembers which of them a litmus test asked for."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = table
        self.used: dict[str, str] = {}

    def __call__(self, site: str) -> str:
        self.used[site] = self.table[site]
        return self.table[site]


PAPER = Model()
Build = Callable[[Orders], Program]
Outcome = tuple[object, ...]
Check = Callable[[Outcome], bool]


@dataclass(frozen=True)
class Twin:
    """The same test with something taken away. It must show the bad outcome, or a race."""

    name: str
    weaker: Mapping[str, str] = field(default_factory=dict)
    other: Build | None = None


@dataclass(frozen=True)
class Litmus:
    """`bad` says what must never come out (one result for each thread), `seen` what must be possible."""

    name: str
    sync: str
    breaks: str  # what a user would see
    build: Build
    bad: Check
    seen: Check
    twins: tuple[Twin, ...]
    model: Model = PAPER


@dataclass(frozen=True)
class Result:
    executions: int
    bad: int
    races: int
    seen: bool

    @property
    def holds(self) -> bool:
        return self.executions > 0 and self.bad == 0 and self.races == 0


_verdicts: dict[tuple[object, ...], Verdict] = {}


@functools.cache
def asked_for(build: Build) -> tuple[str, ...]:
    """The sites whose orders a program is made of. Threads ask for them while they run."""
    orders = Orders(ORDERS)
    runs(build(orders))
    return tuple(sorted(orders.used))


def run(litmus: Litmus, orders: Mapping[str, str], twin: Twin | None = None, model: Model | None = None) -> Result:
    """Check a litmus test, or a twin of it, with these orders."""
    table = {**orders, **(twin.weaker if twin is not None else {})}
    build = twin.other if twin is not None and twin.other is not None else litmus.build
    model = model or litmus.model
    key = (build, tuple(table[site] for site in asked_for(build)), model)
    if key not in _verdicts:
        _verdicts[key] = check(build(Orders(table)), model)
    verdict = _verdicts[key]
    return Result(
        verdict.executions,
        sum(count for outcome, count in verdict.outcomes.items() if litmus.bad(outcome)),
        verdict.races,
        any(litmus.seen(outcome) for outcome in verdict.outcomes),
    )
