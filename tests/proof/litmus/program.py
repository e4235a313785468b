"""Small concurrent programs: a thread is a generator that yields atomic steps and gets back what it read.

    def reader() -> Body:
        now = yield load("current", "acquire")
        return "new" if now == 6 else "old"

A program has no unbounded loop. `runs` finds every run of one thread, whatever the others may have written.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

PLAIN = "plain"  # not atomic: a race on it is undefined behaviour
ABSENT = "absent"  # a fence that is not there
RELEASES = frozenset({"release", "acq_rel", "seq_cst"})
ACQUIRES = frozenset({"acquire", "acq_rel", "seq_cst"})


@dataclass(frozen=True)
class Step:
    """One step. `update`: the value to write, from the value read; None from it: nothing is written."""

    location: str | None
    order: str
    failure: str = "relaxed"
    reads: bool = False
    update: Callable[[int], int | None] | None = None


Body = Generator[Step, int, object]
Thread = Callable[[], Body]


def load(location: str, order: str) -> Step:
    return Step(location, order, reads=True)


def store(location: str, value: int, order: str) -> Step:
    return Step(location, order, update=lambda _: value)


def fence(order: str) -> Step:
    return Step(None, order)


def swap(location: str, expected: int, value: int, order: str, failure: str = "relaxed") -> Step:
    """A compare-and-swap; the thread gets back what was there."""
    return Step(location, order, failure, reads=True, update=lambda old: value if old == expected else None)


def add(location: str, order: str, most: int = 1) -> Step:
    """Add 1. `most`: how often the program adds; no consistent execution reads more, and values stay few."""
    return Step(location, order, reads=True, update=lambda old: min(old + 1, most))


def exchange(location: str, value: int, order: str) -> Step:
    return Step(location, order, reads=True, update=lambda _: value)


@dataclass(frozen=True)
class Program:
    threads: Mapping[str, Thread]
    initial: Mapping[str, int]


@dataclass(frozen=True)
class Event:
    """A read, a write or a fence of one run. Both halves of a read-modify-write carry the whole order."""

    kind: str  # "R", "W", "F"
    location: str | None
    order: str
    value: int
    second_half: bool = False  # the write of a read-modify-write; its read is the event before

    @property
    def releases(self) -> bool:
        return self.kind != "R" and self.order in RELEASES

    @property
    def acquires(self) -> bool:
        return self.kind != "W" and self.order in ACQUIRES


@dataclass(frozen=True)
class Run:
    events: tuple[Event, ...]
    result: object


def replay(thread: Thread, reads: Sequence[int]) -> Run | str:
    """Run the thread with these values for its reads -> the run, or the location that it wants to read next."""
    events: list[Event] = []
    body, given = thread(), iter(reads)
    answer = None
    while True:
        try:
            step = next(body) if answer is None else body.send(answer)
        except StopIteration as end:
            return Run(tuple(events), end.value)
        answer = 0
        if step.location is None:
            if step.order not in (ABSENT, "relaxed"):
                events.append(Event("F", None, step.order, 0))
            continue
        if step.reads:
            value = next(given, None)
            if value is None:
                return step.location
            answer = value
        written = step.update(answer) if step.update is not None else None
        if step.reads:
            failed = step.update is not None and written is None
            events.append(Event("R", step.location, step.failure if failed else step.order, answer))
        if written is not None:
            events.append(Event("W", step.location, step.order, written, second_half=step.reads))


def runs_of(thread: Thread, values: Mapping[str, set[int]]) -> list[Run]:
    """Every run of a thread whose reads may return any of `values`."""
    found: list[Run] = []
    todo: list[tuple[int, ...]] = [()]
    while todo:
        reads = todo.pop()
        run = replay(thread, reads)
        if isinstance(run, Run):
            found.append(run)
        else:
            todo.extend((*reads, value) for value in sorted(values[run]))
    return found


def runs(program: Program) -> dict[str, list[Run]]:
    """Every run of every thread: reads return what some run of some thread writes."""
    values = {location: {value} for location, value in program.initial.items()}
    for _ in range(32):
        found = {name: runs_of(thread, values) for name, thread in program.threads.items()}
        grown = {location: set(of) for location, of in values.items()}
        for run in (run for each in found.values() for run in each):
            for event in run.events:
                if event.kind == "W" and event.location is not None:
                    grown[event.location].add(event.value)
        if grown == values:
            return found
        values = grown
    raise ValueError("the values of this program grow without end")
