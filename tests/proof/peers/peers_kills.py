"""Kills of a writer or a reader, and what the others can do afterwards."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from peers_adapters import Peer, record
from peers_harness import Store, Worker, end, fork, numbers


@dataclass
class Kills:
    """What became of a store after deaths; each a count by outcome."""

    kills: int = 0
    attached: collections.Counter[str] = field(default_factory=collections.Counter)
    write: collections.Counter[str] = field(default_factory=collections.Counter)
    repaired: collections.Counter[str] = field(default_factory=collections.Counter)
    read: collections.Counter[str] = field(default_factory=collections.Counter)
    names: int = 0  # the most that were left beside what is there at rest
    bytes: int = 0
    confirmed: float = 0  # how long the first that hung was watched

    def text(self) -> str:
        parts = [f"{self.kills} kills"]
        for title in ("attached", "write", "repaired", "read"):
            counts = getattr(self, title)
            if counts:
                parts.append(f"{title}: " + ", ".join(f"{what} {n}" for what, n in counts.most_common()))
        return "; ".join(parts) + f"; left: {self.names} names, {self.bytes} bytes"


class Arena:
    """Kills, one after the other, in one store; a new one when a store is of no more use."""

    def __init__(
        self, kind: type[Peer], words: int, prefix: str, private: bool = False, watchdog: float = 2, confirm: float = 20
    ) -> None:
        self._new = lambda: Store(kind, words, prefix, private)
        self._words, self._watchdog, self._confirm = words, watchdog, confirm
        self.started = numbers(2)  # the last counter that a victim began to write, and the last that it has written
        self.stores = 0
        self._start()

    def _start(self) -> None:
        self.store = self._new()
        self.peer = self.store.peer
        self.stores += 1
        self.counter = 1
        self._attached = Worker(self.peer)
        assert self._attached.ask("read", 30) == "1"
        writer = Worker(self.peer)
        answer = writer.ask(f"write 2 {12 + 2 * self.peer.batch}", 60)
        assert answer == "ok", answer
        writer.stop()
        self.counter = 11 + 2 * self.peer.batch
        self._rest = self.store.left()

    def close(self) -> tuple[str, dict[str, int]]:
        self._attached.stop()
        return self.store.remove(10)

    def victim(self, job: Callable[[Callable[[], None]], None]) -> int:
        """Fork a writer: `job` gets a function that writes the next record."""
        self.started[0] = self.started[1] = self.counter

        def run() -> None:
            write = self.peer.writer()

            def step() -> None:
                self.started[0] += 1
                write(record(self.started[0], self._words))
                self.started[1] = self.started[0]

            job(step)

        return fork(run)

    def _ask(self, worker: Worker, order: str, found: Kills) -> str:
        patient = order == "repair" or not found.confirmed  # a repair may itself wait for a while, as documented
        answer = worker.ask(order, self._confirm if patient else self._watchdog)
        if answer == "hangs" and not found.confirmed:
            found.confirmed = self._confirm
        return answer

    def _one(self, order: str, found: Kills) -> str:
        worker = Worker(self.peer)
        answer = self._ask(worker, order, found)
        worker.stop(gently=answer != "hangs")
        return answer

    def aftermath(self, found: Kills, writes: int = 1) -> None:
        """A process has died: who can still read and write, and what is left?"""
        found.kills += 1
        old, new = self.started[1], self.started[0]
        answer = self._ask(self._attached, "read", found)
        if answer.isdigit():
            answer = "whole" if old <= int(answer) <= new else "lost" if int(answer) < old else "torn"
        found.attached[answer] += 1
        good = answer == "whole"
        self.counter = new + 1
        until = self.counter + max(writes, self.peer.batch)
        answer = self._one(f"write {self.counter} {until}", found)
        found.write[answer] += 1
        if answer != "ok":
            good = False
        if answer != "ok" and type(self.peer).repair is not Peer.repair:
            mended = self._one("repair", found)
            if mended == "ok":
                mended = self._one(f"write {self.counter} {until}", found)
            found.repaired[mended] += 1
        self.counter = until - 1
        if answer == "ok":
            for worker in (self._attached, None):
                seen = self._one("read", found) if worker is None else self._ask(worker, "read", found)
                as_written = seen == str(self.counter)
                found.read["ok" if as_written else "another" if seen.isdigit() else seen] += 1
                good &= as_written
        left = self.store.left()
        found.names = max(found.names, len(left) - len(self._rest))
        found.bytes = max(found.bytes, sum(left.values()) - sum(self._rest.values()))
        if not good:
            self._attached.stop(gently=False)
            self.store.remove(5)
            self._start()

    def random_writer(self, found: Kills, chance: random.Random, spread: float) -> None:
        """Kill a writer that writes as fast as it can, at some time."""
        first = self.counter + 3
        pid = self.victim(lambda step: [step() for _ in iter(int, 1)] and None)
        self._strike(pid, lambda: self.started[1] >= first, chance.uniform(0, spread))
        self.aftermath(found)

    def random_reader(self, found: Kills, chance: random.Random, spread: float) -> None:
        """Kill a reader that reads as fast as it can, at some time."""
        count = numbers(1)

        def run() -> None:
            read = self.peer.reader()
            while True:
                read()
                count[0] += 1

        self.started[0] = self.started[1] = self.counter
        self._strike(fork(run), lambda: count[0] >= 3, chance.uniform(0, spread))
        self.aftermath(found)

    def holding_reader(self, found: Kills, writes: int) -> None:
        """Kill a reader that is inside of what it holds; then write many times."""
        inside = numbers(1)

        def run() -> None:
            with self.peer.holding():
                inside[0] = 1
                signal.pause()

        self.started[0] = self.started[1] = self.counter
        self._strike(fork(run), lambda: bool(inside[0]), 0)
        self.aftermath(found, writes)

    def _strike(self, pid: int, ready: Callable[[], bool], later: float) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise AssertionError("the victim ended by itself")
            if time.monotonic() > deadline:
                end(pid)
                raise AssertionError("the victim did not begin")
            time.sleep(0.0005)
        time.sleep(later)
        end(pid)


@contextlib.contextmanager
def arena(*args: object, **kwargs: object) -> Iterator[Arena]:
    """An arena that is closed, whatever happens."""
    made = Arena(*args, **kwargs)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()
