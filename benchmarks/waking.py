"""How soon a sleeper runs again: after a flip, against a pipe's ping; and with the new value, after a publish."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import multiprocessing
import os
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import shmcow
from benchmarks.harness import Plan, Result, each, measure, timed
from benchmarks.scene import WATCHDOG, Config, make_config, store
from shmcow import _core, segments
from shmcow.store import attach

CURRENT_AT = 256  # of the word in the header: csrc/shmcow_layout.h
FLIP, PING = "flip, blocked reader runs", "pipe ping, blocked reader runs"
WAIT, ASYNC, PUBLISH = "publish to wait()", "publish to wait_async()", "publish, nobody waits"


def add(result: Result, plan: Plan, rounds: int) -> None:
    """Measure."""
    with _cases(plan) as cases:
        result.rounds |= measure(cases, rounds)


def compare(result: Result) -> None:
    """Add the ratios."""
    result.compare("flip to blocked reader / pipe ping", FLIP, PING, must=2.5, aim=1.5)
    result.compare("publish to wait() holding it / publish", WAIT, PUBLISH)
    result.compare("publish to wait_async() / publish", ASYNC, PUBLISH)
    result.notes += [
        "flip, pipe ping: from before it to the next line of Python in a process that was seen asleep in the kernel.",
        "publish to wait(): from before publish() to the sleeper having the value (1 kB, typed): the publish is in it.",
    ]


class _Sleeper:
    """A process that goes to sleep in one way or another when told to, and says when it was running again."""

    def __init__(self, flipped: str, published: str) -> None:
        context = multiprocessing.get_context("fork")
        self._turns = mmap.mmap(-1, 8)
        self._turn = 0
        self.read, self.write = os.pipe()
        self._here, there = context.Pipe()
        self._process = context.Process(target=self._serve, args=(flipped, published, there), daemon=True)
        self._process.start()
        there.close()

    def sleep(self, how: str) -> None:
        """Have it sleep, and return when the kernel says that all its threads do."""
        self._turn += 1
        self._here.send(how)
        deadline = time.monotonic() + WATCHDOG
        while struct.unpack("=Q", self._turns[:8])[0] != self._turn or not self._asleep(2 if how == ASYNC else 1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the sleeper did not fall asleep within {WATCHDOG} s")

    def _asleep(self, threads: int) -> bool:
        tasks = list(Path(f"/proc/{self._process.pid}/task").iterdir())
        try:
            states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            return False
        return len(tasks) >= threads and set(states) == {"S"}

    def woken(self) -> int:
        """Return when it was running again, in nanoseconds of the clock that all processes share."""
        if not self._here.poll(WATCHDOG):
            raise TimeoutError(f"the sleeper did not answer within {WATCHDOG} s")
        return int(self._here.recv())

    def end(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join(WATCHDOG)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        os.close(self.read)
        os.close(self.write)

    def _serve(self, flipped: str, published: str, connection: Connection) -> None:
        self._here.close()
        header = attach(flipped)
        word = header.word
        reader = shmcow.Reader(published, type=Config)
        loop = asyncio.new_event_loop()
        snapshot = reader.snapshot()

        def futex() -> None:
            _core.wait(_core.rings(), ((header, word),), WATCHDOG)

        def wait() -> None:
            nonlocal snapshot
            snapshot = reader.wait(after=snapshot, timeout=WATCHDOG)

        def wait_async() -> None:
            nonlocal snapshot
            snapshot = loop.run_until_complete(reader.wait_async(after=snapshot, timeout=WATCHDOG))

        ways = {FLIP: futex, PING: lambda: os.read(self.read, 1), WAIT: wait, ASYNC: wait_async}
        turn = 0
        with contextlib.suppress(EOFError):
            while True:
                way = ways[connection.recv()]
                snapshot = reader.snapshot()
                turn += 1
                struct.pack_into("=Q", self._turns, 0, turn)
                way()
                connection.send(time.perf_counter_ns())
        loop.close()


@contextlib.contextmanager
def _cases(plan: Plan) -> Iterator[dict[str, Callable[[], float]]]:
    n = plan.pick(60, 2)
    config = make_config(1000)
    with store(initial=0) as (_, flipped), store(type=Config, initial=config) as (writer, name):
        sleeper = _Sleeper(flipped, name)
        try:
            with _flip_by_hand(flipped) as (flip, flip_back):

                def timed_wake(how: str, wake: Callable[[], Any], after: Callable[[], Any]) -> int:
                    sleeper.sleep(how)
                    begin = time.perf_counter_ns()
                    wake()
                    woken = sleeper.woken() - begin
                    after()
                    return woken

                yield {
                    FLIP: timed(lambda: timed_wake(FLIP, flip, flip_back), n),
                    PING: timed(lambda: timed_wake(PING, lambda: os.write(sleeper.write, b"."), int), n),
                    WAIT: timed(lambda: timed_wake(WAIT, lambda: writer.publish(config), int), n),
                    ASYNC: timed(lambda: timed_wake(ASYNC, lambda: writer.publish(config), int), n),
                    PUBLISH: each(lambda: writer.publish(config), n),
                }
        finally:
            sleeper.end()


@contextlib.contextmanager
def _flip_by_hand(name: str) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Yield (flip and wake, undo): of what a publish does, only the store to the word and the wake."""
    header = attach(name)
    word = header.word
    core = _core.WriterCore(header, segments)
    with open(header.path, "r+b") as stream, mmap.mmap(stream.fileno(), _core.HEADER_BYTES) as memory:

        def flip_back() -> None:
            struct.pack_into("=Q", memory, CURRENT_AT, word)

        yield core.give_notice, flip_back  # which stores DESTROYED, and wakes
        flip_back()
