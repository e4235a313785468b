"""Publishing 40 B to 1 GB of bytes: time and bytes/s, against write() of a fresh file and other ways."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from benchmarks.children import Child, Orders, available_bytes, child
from benchmarks.contest import measured
from benchmarks.harness import Plan, Result
from benchmarks.peers import LMDB, Manager, Peer, Redis, Shmcow, UltraDict, present
from benchmarks.peers.base import Write
from benchmarks.scene import SHM, room
from benchmarks.values import size_text

SIZES = (40, 1_000, 10_000, 100_000, 10**6, 10**7, 10**8, 10**9)
TIMES, RATES = "publish", "publish, bytes in a second"


class RawFile(Peer):
    """The floor: open, write, close a fresh file, and unlink the one before, in the same directory."""

    title = "floor: write() and unlink"

    def writer(self) -> Write:
        path = f"{SHM}/{self.name}"

        def write(data: bytes) -> None:
            view, done = memoryview(data), 0
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            while done < len(data):
                done += os.write(fd, view[done:])
            os.close(fd)
            os.unlink(path)

        return write

    def stop(self) -> None:
        Path(SHM, self.name).unlink(missing_ok=True)


class FreshSharedMemory(Peer):
    """multiprocessing.shared_memory: a new one for each version, filled by a copy; the one before is unlinked."""

    title = "SharedMemory, create and copy"

    def start(self) -> None:
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # here, not in the child: whose death it would outlive

    def writer(self) -> Write:
        from multiprocessing.shared_memory import SharedMemory

        def write(data: bytes) -> None:
            memory = SharedMemory(name=self.name, create=True, size=len(data))
            memory.buf[: len(data)] = data
            memory.close()
            memory.unlink()

        return write

    def stop(self) -> None:
        Path(SHM, self.name).unlink(missing_ok=True)


# the largest value that it can or should be given, and why
MOST = {
    Redis: (500_000_000, "a value has at most 512 MB"),
    Manager: (10**8, "pickled, and through a pipe: it would take minutes of the run"),
    UltraDict: (10**8, "pickled into a buffer of its own: it would take gigabytes"),
}
KINDS = (RawFile, Shmcow, FreshSharedMemory, LMDB, UltraDict, Redis, Manager)


def run(plan: Plan) -> Result:
    """Measure the writer, in a process of its own for each peer, nobody reading."""
    kinds, skipped = present(KINDS)
    result = Result(
        "publish: bytes of any size",
        "one round of each peer, thrown away",
        notes=["bytes, no codec; the store keeps the newest version only (retain=0); nobody reads.", *skipped],
    )
    sizes = SIZES if not plan.quick else (40, 10**6)
    for size in sizes:
        if 8 * size > min(room(), available_bytes()):
            result.notes.append(f"{size_text(size)}: skipped, not {size_text(8 * size)} free in memory and {SHM}")
            continue
        _one_size(result, plan, kinds, size)
    for title in (TIMES, RATES):
        result.grids[title].x = [float(s) for s in sizes if size_text(s) in result.grids[title].columns]
    return result


def _one_size(result: Result, plan: Plan, kinds: list[type[Peer]], size: int) -> None:
    # made before the forks, so that all writers share it
    data = random.Random(1).randbytes(min(size, 10**6)) * max(1, size // 10**6)
    with ExitStack() as stack:
        writing = []
        for kind in kinds:
            most, why = MOST.get(kind, (size, ""))
            if size > most:
                result.notes.append(f"{kind.title}, {size_text(size)}: skipped, {why}")
                continue
            peer = kind(bytes, data)
            stack.callback(peer.stop)
            peer.start()
            writing.append((kind.title, stack.enter_context(_writer(peer, data))))
        count = max(1, min(300, 3 * 10**7 // size)) if not plan.quick else 1

        def once(_: int, __: str, writer: Child) -> float:
            return float(writer.ask("publish", count))

        times = measured(writing, plan.pick(7 if size < 10**8 else 3, 1), result.notes, once)
    text = size_text(size)
    for title, rounds in times.items():
        result.put(TIMES, title, text, rounds)
        result.put(RATES, title, text, [size / took * 1e9 for took in rounds], unit="bytes")
    _compare(result, text, times, size)


def _writer(peer: Peer, data: bytes) -> AbstractContextManager[Child]:
    def orders() -> Orders:
        write: Callable[[Any], object] = peer.writer()

        def publish(count: int) -> float:
            """Return the median of that many, in nanoseconds."""
            clock, times = time.perf_counter_ns, []
            for _ in range(count):
                begin = clock()
                write(data)
                times.append(clock() - begin)
            return float(sorted(times)[count // 2])

        return {"publish": publish}

    return child(orders)


def _compare(result: Result, text: str, times: dict[str, list[float]], size: int) -> None:
    ours = f"{TIMES}: {Shmcow.title}, {text}"
    for title in times:
        theirs = f"{TIMES}: {title}, {text}"
        if title == RawFile.title:
            aim = 2.5 if size == 1_000 else 1.05 if size >= 10**7 else None
            result.compare(f"publish / floor, {text}", ours, theirs, aim=aim)
        elif title != Shmcow.title:
            result.compare(f"{title} / publish, {text}", theirs, ours, at_least=True)
