"""A reader of the soak: it writes down what it sees."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import soak_values
from soak_board import NOTHING_YET, Board, child_process, first_words, now, reap
from soak_history import AT, ERROR, FORKED, GONE, OK, READ, TORN, Log
from soak_values import Content, SoakCodec

import shmcow
from shmcow import Reader, Snapshot

RUN_NS = 5_000_000  # reads in a row are one record, but not for longer


class ReaderRole:
    """Reads in one of several ways."""

    def __init__(self, store: str, log: Log, board: Board, way: str) -> None:
        self.log, self.board, self.way = log, board, way
        self.random = random.Random(os.urandom(8))
        self.reader: Reader[soak_values.Parts] = Reader(store, codec=SoakCodec())
        self.snapshot: Snapshot[soak_values.Parts] | None = None
        self.version = self.epoch = 0
        self.problem: Exception | None = None

    def run(self, until: Callable[[], bool]) -> None:
        """Read on and on."""
        way = {"snapshot": self._snapshots, "get": self._gets, "wait": self._wait, "hold": self._hold}[self.way]
        while not until():
            try:
                way()
                self._look_at_problem()
            except NOTHING_YET:
                time.sleep(0.001)
            except shmcow.ShmcowError as exc:
                self.log.write(READ, 0, ERROR, 0, 0, now(), now(), 0, 0, 0, 0, 0, 0, 0)
                self.log.say(f"{self.way}: {exc!r}")
            if self.random.random() < 0.002:
                self.fork()

    def fork(self) -> None:
        """Let a child read with the Reader that it inherits."""
        reap()
        if os.fork() == 0:
            with child_process():
                self.log = self.log.of_child()
                self.log.write(FORKED, 0, OK, 0, 0, now(), 0, 0, self.epoch, self.version, 0, 0, 0, 0)
                end = now() + 10_000_000
                self.run(lambda: now() > end or bool(self.board[Board.STOP]))

    def _look_at_problem(self) -> None:
        problem = self.reader.problem
        if problem is not self.problem and problem is not None and not isinstance(problem, NOTHING_YET):
            self.log.write(READ, 0, ERROR, 0, 0, now(), now(), 0, 0, 0, 0, 0, 0, 0)
            self.log.say(f"problem: {problem!r}")
        self.problem = problem

    def _write(self, snapshot: Snapshot[soak_values.Parts], count: int, begin: int, end: int, last: int) -> None:
        over = now()
        self.version, self.epoch = snapshot.version, first_words(snapshot.epoch)
        content = soak_values.read(snapshot.value)
        outcome = OK if content else TORN
        what = int(snapshot.rollback_of is not None)
        said = content or Content(0, 0, 0)
        self.log.write(READ, what, outcome, 0, count, begin, end, last, self.epoch, self.version, *said, over)

    def _snapshots(self) -> None:
        """snapshot(), in a tight loop."""
        snapshot, begin, end, last, count = self._first()
        until = begin + RUN_NS
        look = self.reader.snapshot
        while begin < until and count < 200:
            begin_this = now()
            found = look()
            if found is not snapshot:
                self._write(snapshot, count, begin, end, last)
                snapshot, begin, end, count = found, begin_this, now(), 0
            last = begin_this
            count += 1
        self._write(snapshot, count, begin, end, last)
        time.sleep(0.002)

    def _gets(self) -> None:
        """get(), in a loop with naps; its version is that of the snapshot with the same value."""
        snapshot, begin, end, last, count = self._first()
        get = self.reader.get
        while now() < begin + RUN_NS:
            begin_this = now()
            if get() is not snapshot.value:
                break
            last = begin_this
            count += 1
            if count % 20 == 0:
                time.sleep(0.003)
        self._write(snapshot, count, begin, end, last)

    def _wait(self) -> None:
        """wait(), woken by each publish or two."""
        snapshot, begin, end, last, count = self._first()
        self._write(snapshot, count, begin, end, last)
        for _ in range(20):
            begin = now()
            try:
                snapshot = self.reader.wait(after=snapshot, timeout=0.01)
            except (shmcow.WaitTimeoutError, *NOTHING_YET):
                return
            self._write(snapshot, 1, begin, now(), begin)
            time.sleep(0.004)

    def _hold(self) -> None:
        """Hold a version while others come, and look at it again."""
        snapshot, begin, end, last, count = self._first()
        self._write(snapshot, count, begin, end, last)
        try:
            snapshot.hold()
        except (shmcow.VersionGoneError, *NOTHING_YET):
            return  # it was late
        epoch, version = first_words(snapshot.epoch), snapshot.version
        data = snapshot.part("part 0") if self.random.random() < 0.3 else None
        time.sleep(self.random.choice([0.001, 0.01, 0.03]))
        begin = now()
        outcome = OK
        try:
            again = self.reader.at(version)
            if again.epoch == snapshot.epoch and again.value != snapshot.value:
                outcome = TORN
            report = shmcow.describe(snapshot.store)  # in this process it stays open anyhow; what of others?
            listed = [generation.version for generation in report.generations if generation.state != "doomed"]
            if report.epoch == snapshot.epoch and version not in listed:
                outcome = GONE
        except shmcow.VersionGoneError:  # a new store has no such version, and is what describe() sees now
            outcome = GONE if shmcow.describe(snapshot.store).epoch == snapshot.epoch else OK
        except NOTHING_YET:
            pass
        if data is not None and bytes(data) != snapshot.value[0]:
            outcome = TORN
        stamp = (soak_values.read(snapshot.value) or Content(0, 0, 0)).stamp
        self.log.write(AT, 0, outcome, 0, 1, begin, now(), begin, epoch, version, stamp, 0, 0, 0)
        del data
        snapshot.release()

    def _first(self) -> tuple[Snapshot[soak_values.Parts], int, int, int, int]:
        begin = now()
        snapshot = self.reader.snapshot()
        return snapshot, begin, now(), begin, 1
