"""The application that embedded.c loads: what its master makes, its workers inherit and use.

Each process does what it is told over a connection of its own. Arguments: the store's name, and one descriptor for each
connection: the master's first, then the workers', then spare ones for processes that Python code forks.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from multiprocessing.connection import Connection
from typing import Any

import embedded
import processes
from processes import value_of, version_in

from shmcow import Reader, Writer, WriterBusyError

name, numbers = sys.argv[4], [int(number) for number in sys.argv[5:]]
processes.die_with_parent()

reader: Reader[Any] = Reader(name)
writer: Writer[Any] = Writer(name, lock_timeout=processes.WATCHDOG)
things: dict[str, Any] = {}
pids: list[int] = []


class Talk:
    """Do what the other end asks for, until it says "end"."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.link = Connection(number)

    def run(self) -> None:
        while (asked := self.link.recv())[0] != "end":
            self.link.send(getattr(self, "do_" + asked[0])(*asked[1:]))

    def do_pids(self) -> list[int]:
        return [os.getpid(), *pids]

    def do_mine(self) -> tuple[list[str], list[tuple[str, int]]]:
        return processes.shm_descriptors(), processes.locks_of("self")

    def do_get(self) -> int:
        return version_in(reader.get())

    def do_read_held(self) -> int:
        return version_in(things["snap"].value)

    def do_read_view(self) -> bytes:
        return bytes(things["view"])

    def do_release(self) -> None:
        things["snap"].release()

    def do_drop(self) -> None:
        things.clear()
        gc.collect()

    def do_publish(self, version: int) -> int:
        return writer.publish(value_of(version))

    def do_count(self, n: int) -> None:
        for _ in range(n):
            writer.update(lambda old: value_of(version_in(old) + 1))

    def do_fork_in_update(self, number: int) -> str:
        """Fork inside update's function; the child talks over another connection, and both tell what update did."""
        child, others = 0, []

        def function(old: Any) -> Any:
            nonlocal child
            child = embedded.fork()
            if child == 0:
                others.append(_alone(number))
                others[0].run()
            else:
                self.link.send(child)
                self.link.recv()
            return value_of(version_in(old) + 1)

        try:
            outcome = f"published {writer.update(function)}"
        except WriterBusyError as exc:
            outcome = f"busy: {exc}"
        if child == 0:
            others[0].link.send(outcome)
            others[0].run()
            os._exit(0)
        return outcome

    def do_fork(self, number: int) -> int:
        """Fork in C once more; the child talks over another connection."""
        child = embedded.fork()
        if child == 0:
            _alone(number).run()
            os._exit(0)
        return child

    def do_fork_beside(self, count: int) -> tuple[list[int], int]:
        """Open, mark and lock again and again, while a thread of C forks beside it.

        What is marked and locked is closed, never unlocked, as at a sudden death: a copy in a child would keep it. No
        fork is under way meanwhile: it copies descriptors first and memory later, so it could copy the one before the
        closing and the other after.
        """
        global reader, writer
        del reader, writer
        self.do_drop()
        embedded.fork_beside(count)
        rounds = 0
        while len(embedded.forked()) < count:
            theirs = Reader(name)
            snap = theirs.snapshot().hold()
            for _ in range(50):
                _close_ours()
                theirs.refresh()  # opens and marks again
            mine = Writer(name, lock_timeout=5)
            mine.publish(value_of(snap.version + 1))
            with contextlib.suppress(RuntimeError):  # "the writer lock is not held"
                mine.update(_close_ours)
            del mine, theirs, snap
            rounds += 1
        gc.collect()
        return embedded.forked(), rounds

    def do_wait(self, child: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _ours() -> list[int]:
    """Return the descriptors that this process has on objects of stores."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("/dev/shm/shmcow."):
                found.append(int(number))
    return found


def _close_ours(_: Any = None) -> Any:
    """Close them all; also a function for update."""
    embedded.hold_forks(True)
    for number in _ours():
        os.close(number)
    embedded.hold_forks(False)
    return value_of(666)


def _alone(number: int) -> Talk:
    """Talk over one connection, and close the master's and the workers': whoever waits there sees the end of file."""
    for other in numbers[: 1 + int(sys.argv[2])]:
        if other != number:
            with contextlib.suppress(OSError):
                os.close(other)
    return Talk(number)


def worker(k: int) -> None:
    """Run a worker: called by embedded.c in a forked child."""
    _alone(numbers[k + 1]).run()


def master(made: list[int]) -> None:
    """Run the master: called by embedded.c when all workers are there."""
    pids.extend(made)
    Talk(numbers[0]).run()


things["holder"] = Reader(name)  # not `reader`, whose own last snapshot would stay
things["snap"] = things["holder"].snapshot().hold()
things["view"] = things["snap"].data
