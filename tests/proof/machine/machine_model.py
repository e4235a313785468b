"""What docs/guarantees.md and csrc/PROTOCOL.md promise of one store, said in a few lines of Python."""

from __future__ import annotations

import dataclasses
from typing import Any

Where = tuple[str, int]  # epoch, version


@dataclasses.dataclass
class Store:
    """A store that exists."""

    epoch: str
    retain: int
    current: int = 0
    table: set[int] = dataclasses.field(default_factory=set)  # versions that can be opened
    origin: dict[int, int] = dataclasses.field(default_factory=dict)  # of rollbacks: what they repeat
    half_built: bool = False  # somebody died while publishing


@dataclasses.dataclass
class Kept:
    """A snapshot that a process keeps, and how often it was held; or a view, held once."""

    where: Where
    holds: int = 0
    received: bool = False  # from another process


@dataclasses.dataclass
class Process:
    """What one process has."""

    writer: str | None = None  # the epoch that its writer knows; "" when it is closed
    reader: str | None = None  # "open", "closed"
    last: Where | None = None  # what its reader returned last
    kept: dict[int, Kept] = dataclasses.field(default_factory=dict)
    views: dict[int, Kept] = dataclasses.field(default_factory=dict)

    def holds(self, where: Where) -> int:
        """How often this process holds a version."""
        return sum(kept.holds for kept in self.everything() if kept.where == where)

    def everything(self) -> list[Kept]:
        """Snapshots and views."""
        return [*self.kept.values(), *self.views.values()]


class Model:
    """One store name, whatever epochs, and the processes that use it."""

    def __init__(self, processes: int) -> None:
        self.store: Store | None = None
        self.values: dict[Where, Any] = {}
        self.messages: dict[Where, str] = {}
        self.processes = [Process() for _ in range(processes)]

    def is_held(self, version: int) -> bool:
        """Tell whether any process holds a version of the store as it is."""
        assert self.store is not None
        return any(process.holds((self.store.epoch, version)) > 0 for process in self.processes)

    def turn(self) -> None:
        """Somebody has the writer lock: what a dead writer left half-done is finished."""
        assert self.store is not None
        self.store.half_built = False

    def reclaim(self, spared: int = 0) -> int:
        """Forget what is beyond `retain` and held by nobody; returns how many went."""
        store = self.store
        assert store is not None
        older = sorted((version for version in store.table if version < store.current), reverse=True)
        gone = {v for v in older[store.retain :] if v != spared and not self.is_held(v)}
        store.table -= gone
        return len(gone)

    def publish(self, value: Any, message: str = "", origin: int = 0) -> int:
        """Publish; returns the version."""
        store = self.store
        assert store is not None
        self.turn()
        store.current += 1
        store.table.add(store.current)
        if origin:
            store.origin[store.current] = origin
        self.values[store.epoch, store.current] = value
        self.messages[store.epoch, store.current] = message
        self.reclaim(spared=origin)
        return store.current

    def before(self) -> int:
        """What a rollback goes back to."""
        assert self.store is not None
        return self.store.origin.get(self.store.current, self.store.current) - 1

    @property
    def value(self) -> Any:
        """The current value."""
        assert self.store is not None
        return self.values[self.store.epoch, self.store.current]

    @property
    def now(self) -> Where | None:
        """What is current, if there is anything."""
        return (self.store.epoch, self.store.current) if self.store is not None and self.store.current else None

    def can_hold(self, process: Process, where: Where) -> bool:
        """Tell whether a process can hold a version: it holds it already, or it can still be opened."""
        if process.holds(where) > 0:
            return True
        return self.store is not None and self.store.epoch == where[0] and where[1] in self.store.table
