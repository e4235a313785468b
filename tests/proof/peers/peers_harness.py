"""The same stress for every peer, and the processes that it and the kills (peers_kills) run.

Everything waits with a watchdog. What is forked is a child of this process; none is left when a call returns.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from peers_adapters import Peer, counter_of, record

SHM = Path("/dev/shm")
READS, TORN, BACK, FAR, RAISED, LAST, NUMBERS = range(7)


def numbers(count: int) -> memoryview:
    """Return 64-bit numbers that this process and its children share."""
    return memoryview(mmap.mmap(-1, 8 * count)).cast("Q")


def fork(job: Callable[[], None]) -> int:
    """Run a job in a child, which leaves without any handler of this process."""
    pid = os.fork()
    if pid:
        return pid
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(silence, stream)
        job()
        os._exit(0)
    except BaseException:
        os._exit(1)


def end(pid: int) -> None:
    """Kill a child, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


class Worker:
    """A child that opens the store at its first order, and answers each with one line."""

    def __init__(self, peer: Peer) -> None:
        theirs, self._orders = os.pipe()
        self._answers, ours = os.pipe()

        def run() -> None:
            os.close(self._orders)  # so that it ends when its parent is gone
            os.close(self._answers)
            _serve(peer, theirs, ours)

        self.pid = fork(run)
        os.close(theirs)
        os.close(ours)

    def ask(self, order: str, seconds: float) -> str:
        """Return the answer, "hangs" or "died"."""
        try:
            os.write(self._orders, order.encode() + b"\n")
        except BrokenPipeError:
            return "died"
        if not select.select([self._answers], [], [], seconds)[0]:
            return "hangs"
        return os.read(self._answers, 1000).decode() or "died"

    def stop(self, gently: bool = True) -> None:
        if gently:
            self.ask("quit", 5)
        end(self.pid)
        os.close(self._orders)
        os.close(self._answers)


def _serve(peer: Peer, orders: int, answers: int) -> None:
    write = read = None
    opened = False
    with open(orders, closefd=False) as lines:
        for line in lines:
            order, *rest = line.split()
            answer = "ok"
            try:
                if order == "create":
                    peer.create()
                elif order == "destroy":
                    peer.destroy()
                elif order == "repair":
                    peer.repair()
                elif order == "write":
                    write, opened = write or peer.writer(), True
                    for counter in range(int(rest[0]), int(rest[1])):
                        write(record(counter, peer.words))
                elif order == "read":
                    read, opened = read or peer.reader(), True
                    counter = counter_of(read(), peer.words)
                    answer = "torn" if counter is None else str(counter)
                elif order == "quit":
                    if opened:
                        peer.close()
                    os.write(answers, b"ok")
                    return
            except Exception as exc:
                answer = f"raised {type(exc).__name__}"
            os.write(answers, answer.encode())


class Store:
    """One peer's store, and who keeps it alive."""

    made = 0

    def __init__(self, kind: type[Peer], words: int, prefix: str, private: bool) -> None:
        Store.made += 1
        self._private = private
        self.peer = kind(f"{prefix}-{Store.made}", words)
        self._keeper = None
        if self.peer.in_parent:
            self.peer.create()
        else:
            self._keeper = Worker(self.peer)
            answer = self._keeper.ask("create", 30)
            if answer != "ok":
                self._keeper.stop(gently=False)
                raise AssertionError(f"create: {answer}")

    def left(self) -> dict[str, int]:
        """Return what is in shared memory: name -> bytes. All of it, if this is a /dev/shm of our own."""
        found = {}
        for folder, _, names in os.walk(SHM):
            for name in names:
                path = Path(folder, name)
                if self._private or self.peer.name in str(path):
                    with contextlib.suppress(FileNotFoundError):
                        found[str(path)] = path.stat().st_size
        return found

    def remove(self, seconds: float) -> tuple[str, dict[str, int]]:
        """Destroy it as documented, and by force what then is left; return how that went, and what was left."""
        if self._keeper:
            answer = self._keeper.ask("destroy", seconds)
            self._keeper.stop(gently=False)
        else:
            try:
                self.peer.destroy()
                answer = "ok"
            except Exception as exc:
                answer = f"raised {type(exc).__name__}"
        left = self.left()
        for name in left:
            Path(name).unlink(missing_ok=True)
        return answer, left


@dataclass
class Stress:
    """What the readers of a stress saw."""

    writes: int = 0
    reads: int = 0
    torn: int = 0
    back: int = 0  # how often a record was older than the one that the same reader had read before
    far: int = 0  # by how many records, at most
    raised: int = 0
    hung: int = 0
    died: int = 0
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)


def stress(
    kind: type[Peer], words: int, prefix: str, seconds: float, private: bool = False, readers: int = 3, hang: float = 5
) -> Stress:
    """One writer replaces the record as fast as it can; readers check what they get."""
    store = Store(kind, words, prefix, private)
    peer = store.peer
    board, stop = numbers((readers + 1) * NUMBERS), numbers(1)
    pipe_in, pipe_out = os.pipe()

    def write() -> None:
        writer, counter = peer.writer(), 1
        while not stop[0]:
            counter += 1
            try:
                writer(record(counter, words))
                board[READS] += 1
            except Exception as exc:
                board[RAISED] += 1
                os.write(pipe_out, f"writer: {type(exc).__name__}\n".encode())
        peer.close()

    def read(me: memoryview) -> None:
        reader = peer.reader()
        told = set()
        while not stop[0]:
            try:
                counter = counter_of(reader(), words)
            except Exception as exc:
                me[RAISED] += 1
                if type(exc) not in told:
                    told.add(type(exc))
                    os.write(pipe_out, f"reader: {type(exc).__name__}\n".encode())
                continue
            me[READS] += 1
            if counter is None:
                me[TORN] += 1
            else:
                if counter < me[LAST]:
                    me[BACK] += 1
                    me[FAR] = max(me[FAR], me[LAST] - counter)
                me[LAST] = counter
        peer.close()

    def place(k: int) -> memoryview:
        return board[k * NUMBERS : (k + 1) * NUMBERS]

    pids = [fork(write)] + [fork(lambda k=k: read(place(k))) for k in range(1, readers + 1)]
    found = Stress()
    moved = [time.monotonic()] * len(pids)
    before = [-1] * len(pids)
    running = set(range(len(pids)))
    until = time.monotonic() + seconds
    while time.monotonic() < until and running:
        time.sleep(0.02)
        for k in list(running):
            if os.waitpid(pids[k], os.WNOHANG)[0]:
                found.died += 1
                running.discard(k)
            elif (now := place(k)[READS] + place(k)[RAISED]) != before[k]:
                before[k], moved[k] = now, time.monotonic()
    found.hung = sum(time.monotonic() - moved[k] > hang for k in running)
    stop[0] = 1
    deadline = time.monotonic() + hang
    while running and time.monotonic() < deadline:
        time.sleep(0.01)
        running -= {k for k in running if os.waitpid(pids[k], os.WNOHANG)[0]}
    for k in running:
        end(pids[k])
    os.close(pipe_out)
    with open(pipe_in) as lines:
        found.kinds.update(line.strip() for line in lines)
    store.remove(10)
    found.writes = board[READS]
    seen = [place(k) for k in range(1, readers + 1)]
    found.reads, found.torn = sum(me[READS] for me in seen), sum(me[TORN] for me in seen)
    found.back, found.far = sum(me[BACK] for me in seen), max(me[FAR] for me in seen)
    found.raised = sum(me[RAISED] for me in seen) + board[RAISED]
    return found
