"""What all rules of the state machine use: the processes, what they answer, and what the model makes of it."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from machine_model import Model, Process, Store, Where
from machine_worker import serve
from processes import Child

import shmcow

MANY = 3
WHO = st.integers(0, MANY - 1)
GONE = "VersionGoneError"
DESTROYED = "StoreDestroyedError"


class Pool:
    """Processes that are used for one run after the other; whoever is killed is replaced."""

    def __init__(self, prefix: str, mutate: Callable[[], None] | None = None) -> None:
        self.prefix, self.mutate = prefix, mutate
        self.children = [Child(serve, mutate) for _ in range(MANY)]
        self.counts: collections.Counter[str] = collections.Counter()

    def replace(self, who: int) -> None:
        """Start another process in the place of one that is dead."""
        self.children[who].end()
        self.children[who] = Child(serve, self.mutate)

    def close(self) -> None:
        """End them all."""
        for child in self.children:
            child.end()


class Base(RuleBasedStateMachine):
    """One run with one store name. `pool` is set by a subclass."""

    pool: Pool

    def __init__(self) -> None:
        super().__init__()
        self.pool.counts["runs"] += 1
        self.name = f"{self.pool.prefix}-{self.pool.counts['runs']}"
        self.model = Model(MANY)
        self.numbers = 0
        self.sent: tuple[bytes, Where] | None = None
        for who in range(MANY):
            assert self.ask(who, "reset", self.name) is None

    # ---- helpers ----

    def say(self, who: int, what: str, *arguments: Any) -> tuple[str, Any]:
        """Have a process do something; returns its answer."""
        self.pool.counts["calls"] += 1
        self.pool.counts[what] += 1
        return self.pool.children[who].ask((what, arguments))  # type: ignore[no-any-return]

    def ask(self, who: int, what: str, *arguments: Any) -> Any:
        """Have a process do something that must succeed; returns what it returned."""
        answer, result = self.say(who, what, *arguments)
        assert answer == "ok", f"{what}{arguments}: {result}"
        return result

    def refused(self, error: str | tuple[str, ...], who: int, what: str, *arguments: Any) -> None:
        """Have a process do something that must be refused."""
        self.pool.counts["refusals"] += 1
        answer = self.say(who, what, *arguments)
        assert answer[0] == "error", f"{what}{arguments} was done: {answer[1]}"
        assert answer[1] in ((error,) if isinstance(error, str) else error), f"{what}{arguments}: {answer[1]}"

    def next(self) -> int:
        """A number that is not in use."""
        self.numbers += 1
        return self.numbers

    def new_value(self) -> dict[str, Any]:
        number = self.next()
        return {"n": number, "list": [number] * (number % 5)}

    def process(self, who: int) -> Process:
        return self.model.processes[who]

    def writers(self, who: int) -> bool:
        """Give a process a writer unless it has one. False: it is closed."""
        if self.process(who).writer is None:
            self._open_writer(who, None)
        return self.process(who).writer != ""

    def readers(self, who: int) -> Process:
        """Give a process a reader unless it has one."""
        if self.process(who).reader is None:
            self.ask(who, "open_reader")
            self.process(who).reader = "open"
        return self.process(who)

    def _open_writer(self, who: int, retain: int | None) -> None:
        created, version = self.ask(who, "open_writer", retain)
        assert created == (self.model.store is None)
        store = self._born(4) if created else self.model.store
        assert store is not None
        self.model.turn()
        assert version == store.current
        store.retain = store.retain if retain is None else retain
        self.process(who).writer = store.epoch

    def _born(self, retain: int) -> Store:
        self.model.store = Store(shmcow.describe(self.name).epoch, retain)
        return self.model.store

    def _change(self, who: int, value: Any, what: str, *arguments: Any, origin: int = 0, message: str = "") -> Any:
        """A change of the current version by a process whose writer knows the store."""
        result = self.ask(who, what, *arguments)
        version = self.model.publish(value, message, origin)
        assert (result[0] + 1 if what == "swap" else result) == version
        return result

    def _cannot_change(self, who: int) -> str | None:
        """Why a process cannot build on the current version."""
        if not self.writers(who):
            return "ClosedError"
        store = self.model.store
        if store is None or self.process(who).writer != store.epoch:
            return DESTROYED
        return None if store.current else "NotPublishedError"
