"""1 to 64 reader processes at once: the CPU time of a read as readers are added, a reader-writer lock among them."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from benchmarks.children import Child, Orders, child, cpu_ns
from benchmarks.contest import measured, started, writers
from benchmarks.harness import Plan, Result, loop
from benchmarks.peers import LMDB, Empty, LMDBKept, Manager, Peer, Redis, RWLock, SharedMemoryLock, Shmcow, present

SIZE = 640
COUNTS = (1, 2, 4, 8, 16, 32, 64)
KINDS = (Empty, Shmcow, RWLock, LMDBKept, LMDB, SharedMemoryLock, Manager, Redis)
QUIET, BUSY = "CPU time of a read, nobody writes", "CPU time of a read, 100 publishes/s"


def run(plan: Plan) -> Result:
    """Measure with all readers running at the same time, for the same while."""
    kinds, skipped = present(KINDS)
    counts = COUNTS if not plan.quick else (1, 4)
    result = Result(
        "scaling: the CPU time of one read with 1 to 64 reader processes",
        "one round of each, thrown away",
        notes=[
            f"{SIZE} B; CPU time of all readers, and of the server where there is one, over all reads.",
            "As the scheduler counts it: what waits for a lock or for a core costs none.",
            *skipped,
        ],
    )
    with started(kinds, SIZE, result.notes) as peers, contextlib.ExitStack() as stack:
        crowds = [(peer, _crowd(stack, peer, counts[-1])) for peer in peers]
        writing = stack.enter_context(writers(peers))
        tasks = [
            ((what, peer.title, count), peer, crowd[:count])
            for what in (QUIET, BUSY)
            for count in counts
            for peer, crowd in crowds
        ]
        seconds = 0.25 if not plan.quick else 0.01

        def once(_: int, name: tuple[str, str, int], peer: Peer, crowd: list[Child]) -> float:
            return _together(peer, crowd, writing[peer.title] if name[0] == BUSY else None, seconds)

        figures = measured(tasks, plan.pick(3, 1), result.notes, once)
    for (what, title, count), rounds in figures.items():
        result.put(what, title, str(count), rounds)
    for what in (QUIET, BUSY):
        result.grids[what].x = list(map(float, counts))
    _compare(result, counts)
    return result


def _crowd(stack: contextlib.ExitStack, peer: Peer, count: int) -> list[Child]:
    return [stack.enter_context(child(lambda: _orders(peer))) for _ in range(count)]


def _orders(peer: Peer) -> Orders:
    read = peer.reader()
    read()

    def reads(seconds: float, turns: int) -> int:
        """Read for that long, and look at the clock once in `turns` times ten reads. -> how often"""
        batch: Any = loop("read()", {"read": read}, turns)
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            batch()
            done += turns * 10
        return done

    return {"reads": reads, "ready": lambda: None}


def _together(peer: Peer, crowd: list[Child], writer: Child | None, seconds: float) -> float:
    """Return the CPU time of one read, in nanoseconds."""
    turns = 1 if peer.servers() else 50
    pids = [reader.pid for reader in crowd] + list(peer.servers())
    for reader in crowd:
        reader.ask("ready")
    before = sum(map(cpu_ns, pids))
    if writer:
        writer.tell("publish", seconds, 0.01)
    for reader in crowd:
        reader.tell("reads", seconds, turns)
    reads = sum(reader.answer() for reader in crowd)
    if writer:
        writer.answer()
    return (sum(map(cpu_ns, pids)) - before) / reads


def _compare(result: Result, counts: tuple[int, ...]) -> None:
    most = counts[-1]

    def case(what: str, title: str, count: int) -> str:
        return f"{what}: {title}, {count}"

    for what in (QUIET, BUSY):
        when = what.partition(", ")[2]
        ours, floor = case(what, Shmcow.title, most), case(what, Empty.title, most)
        result.compare(f"get() / empty C call, {most} readers, {when}", ours, floor, aim=1.1)
        whole = [
            title for title in result.grids[what].rows if {case(what, title, n) for n in counts} <= result.rounds.keys()
        ]
        for title in whole:
            if title != Empty.title:
                name = f"{title}, {most} readers / 1, {when}"
                result.compare(name, case(what, title, most), case(what, title, 1))
        for title in whole:
            if title not in (Empty.title, Shmcow.title):
                name = f"{title} / get(), {most} readers, {when}"
                result.compare(name, case(what, title, most), case(what, Shmcow.title, most), at_least=True)
