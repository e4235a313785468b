"""A writer of the soak: it writes down what it does."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import soak_values
from soak_board import Board, child_process, now, reap
from soak_history import DESTROY, DONE, ERROR, EXPECT, INVOKE, OK, PUBLISH, REFUSED, ROLLBACK, SWAP, UPDATE, Log
from soak_values import MOST_WORDS, Content, SoakCodec

import shmcow
from shmcow import Writer

VERBS = [UPDATE] * 8 + [PUBLISH] * 9 + [EXPECT, SWAP, ROLLBACK, ROLLBACK]
# What a writer may be told in this soak, with nothing done.
REFUSALS = (
    shmcow.VersionConflictError,
    shmcow.StoreDestroyedError,
    shmcow.NotPublishedError,
    shmcow.VersionGoneError,
    shmcow.WriterBusyError,
)


class WriterRole:
    """Publishes in every way, as fast as it can (or with naps)."""

    def __init__(self, store: str, log: Log, board: Board, place: int, nap: float) -> None:
        self.log, self.board, self.place, self.nap = log, board, place, nap
        self.random = random.Random(os.urandom(8))
        self._stamps(0)
        self.writer = Writer(store, codec=SoakCodec())

    def _stamps(self, done: int) -> None:
        self.next_stamp = (os.getpid() & 0x3FFFFF) << 42 | (now() >> 22 & 0x3FFFFF) << 20
        self.done = done

    @property
    def epoch(self) -> int:
        """Of the store that the last turn was in: only the Writer itself knows."""
        return int.from_bytes(self.writer._store.epoch[:8])

    def run(self, until: Callable[[], bool]) -> None:
        """Do one call after the other."""
        destroys = self.board[Board.DESTROYS]
        while not until():
            asked = self.board[Board.DESTROYS]
            if asked != destroys and asked % 2 == self.place % 2:
                self.step(DESTROY)
            destroys = asked
            self.step(self.random.choice(VERBS))
            if self.done % 1000 == 999:
                self.writer.reclaim()
            if self.place < 8 and self.random.random() < 0.0005:
                self.fork()
            if self.nap:
                time.sleep(self.nap)

    def fork(self) -> None:
        """Let a child publish with the Writer that it inherits."""
        reap()
        if os.fork() == 0:
            with child_process():
                self.log = self.log.of_child()
                self._stamps(0)
                self.run(lambda: self.done >= 5 or bool(self.board[Board.STOP]))

    def _make(self, prev: int, total: int) -> soak_values.Parts:
        chance = self.random.random()
        words = MOST_WORDS // 2 if chance > 0.999 else 2
        return soak_values.make(Content(self.next_stamp, prev, total), 3 if chance < 0.1 else 1, words)

    def step(self, verb: int) -> None:
        """Do one call, between two records."""
        self.next_stamp += 1
        self.done += 1
        stamp = 0 if verb in (ROLLBACK, DESTROY) else self.next_stamp
        begin = now()
        self.log.write(INVOKE, verb, 0, 0, 0, begin, 0, 0, self.epoch, 0, stamp, 0, 0, 0)
        outcome, version, prev, total = OK, 0, 0, 0
        try:
            version, prev, total = self._call(verb)
        except REFUSALS:
            outcome = REFUSED
        except shmcow.ShmcowError as exc:
            outcome = ERROR
            self.log.say(f"{verb}: {exc!r}")
        end = now()
        self.log.write(DONE, verb, outcome, 0, 0, begin, end, 0, self.epoch, version, stamp, prev, total, 0)
        if outcome == OK and verb != DESTROY:
            self.board[Board.ACKS + self.place] += 1
        elif verb in (UPDATE, DESTROY):
            self.step(PUBLISH)  # creates the store again

    def _call(self, verb: int) -> tuple[int, int, int]:
        writer = self.writer
        if verb == PUBLISH:
            return writer.publish(self._make(0, 0)), 0, 0
        if verb == UPDATE:
            prev, total = 0, 0

            def add(old: soak_values.Parts) -> soak_values.Parts:
                nonlocal prev, total
                prev, _, total = self._read(old)
                return self._make(prev, total + 1)

            return writer.update(add), prev, total + 1
        if verb == EXPECT:
            snapshot = writer.snapshot()
            prev, _, total = self._read(snapshot.value)
            return writer.publish(self._make(prev, total + 1), expected=snapshot.version), prev, total + 1
        if verb == SWAP:
            previous = writer.swap(self._make(0, 0))
            return previous.version + 1, self._read(previous.value).stamp, 0
        if verb == ROLLBACK:
            return writer.rollback(), 0, 0
        writer.destroy()
        return 0, 0, 0

    def _read(self, value: soak_values.Parts) -> Content:
        content = soak_values.read(value)
        if content is None:
            raise shmcow.CorruptSegmentError("a writer read a torn value")
        return content
