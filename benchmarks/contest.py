"""What the questions with peers have in common: the same value in all of them, a process for each reader."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.children import Child, FailedOrderError, NoAnswerError, Orders, child
from benchmarks.harness import loop
from benchmarks.peers import Floor, Peer, Shmcow
from benchmarks.scene import WATCHDOG
from benchmarks.values import kind_of, make_value, revised, size_text

BATCH = 0.06  # seconds that a batch of reads takes, about
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@contextlib.contextmanager
def started(kinds: Sequence[type[Peer]], size: int, notes: list[str]) -> Iterator[list[Peer]]:
    """Start a store of each peer with a value of that size, and stop them. Who cannot is left out, with a note."""
    value = make_value(size)
    with contextlib.ExitStack() as stack:
        ready = []
        for kind in kinds:
            peer = kind(kind_of(size), value)
            stack.callback(peer.stop)
            try:
                peer.start()
                ready.append(peer)
            except Exception as exc:
                if isinstance(peer, Shmcow):
                    raise
                notes.append(f"{peer.title}, {size_text(size)}: left out, {type(exc).__name__}: {exc}")
        yield ready


@contextlib.contextmanager
def readers(peers: Sequence[Peer], notes: list[str]) -> Iterator[list[tuple[Peer, Child]]]:
    """Start a reader process for each peer. Whose read fails is left out, with a note."""
    with contextlib.ExitStack() as stack:
        ready = []
        for peer in peers:
            made = stack.enter_context(child(lambda peer=peer: reader_orders(peer)))  # type: ignore[misc]
            try:
                if made.ask("look") != getattr(peer.first, "revision", None) and not isinstance(peer, Floor):
                    raise AssertionError("it does not return what was published")
                ready.append((peer, made))
            except (FailedOrderError, NoAnswerError) as exc:
                if isinstance(peer, Shmcow):
                    raise
                notes.append(f"{peer.title}: left out, {str(exc).strip().splitlines()[-1]}")
        yield ready


@contextlib.contextmanager
def writers(peers: Sequence[Peer]) -> Iterator[dict[str, Child]]:
    """Start a writer process for each peer: one for the whole question, as some allow no second. -> by title"""
    with contextlib.ExitStack() as stack:
        yield {
            peer.title: stack.enter_context(child(lambda peer=peer: writer_orders(peer)))  # type: ignore[misc]
            for peer in peers
        }


def reader_orders(peer: Peer) -> Orders:
    """Return what a reader process can be asked for."""
    read = peer.reader()
    return {
        "look": lambda: getattr(read(), "revision", None),
        "mean": lambda seconds: mean(read, seconds),
        "one by one": lambda seconds: one_by_one(read, seconds),
    }


def writer_orders(peer: Peer) -> Orders:
    """Return what a writer process can be asked for."""
    write, value = peer.writer(), peer.first
    numbers = itertools.count(8)

    def publish(seconds: float, pause: float) -> int:
        """Publish for that long, with pauses, or as fast as it goes without. -> how often"""
        ready = [revised(value, k) for k in range(100)]
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            write(ready[next(numbers) % 100])
            done += 1
            if pause:
                time.sleep(pause)
        return done

    def once() -> int:
        number = next(numbers) % 100
        write(revised(value, number))
        return number

    return {"publish": publish, "once": once}


def holder_orders(peer: Peer) -> Orders:
    """Return the one order of a writer that stops itself while it holds what a write holds."""
    return {"hold": lambda: peer.hold(lambda: os.kill(os.getpid(), signal.SIGSTOP))}


# ---- in a reader ----


def mean(read: Callable[[], Any], seconds: float) -> float:
    """Return the mean time of a read in a loop, in nanoseconds."""
    begin = time.perf_counter()
    read()
    once = max(1e-8, time.perf_counter() - begin)
    first = loop("read()", {"read": read}, max(1, min(100, int(seconds / 100 / once))))()
    return loop("read()", {"read": read}, max(1, int(seconds * 1e8 / first)))()


def one_by_one(read: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Time each read by itself, and tell the reads that returned a new object from the others.

    An object that is another than at the read before was decoded for this read: that is what is counted.
    """
    clock, same, fresh = time.perf_counter_ns, [], []
    last = read()
    end = clock() + int(seconds * 1e9)
    after = 0
    while after < end:
        for _ in range(20):
            before = clock()
            value = read()
            after = clock()
            (same if value is last else fresh).append(after - before)
            last = value
    return {
        "reads": len(same) + len(fresh),
        "seconds": seconds,
        "decodes": len(fresh),
        "all": percentiles(same + fresh),
        "unchanged": percentiles(same or fresh),
    }


def percentiles(times: list[int]) -> dict[str, float]:
    """Return some percentiles."""
    times.sort()
    return {name: float(times[min(len(times) - 1, int(share * len(times)))]) for name, share in PERCENTILES.items()}


# ---- in the parent ----


def stopped_holding(peer: Peer, holder: Child) -> bool:
    """Have a writer stop while it holds its lock. -> False: it has none"""
    holder.tell("hold")
    deadline = time.monotonic() + WATCHDOG
    while Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
        if holder.poll():
            return bool(holder.answer())
        if time.monotonic() > deadline:
            raise TimeoutError(f"{peer.title}: the writer did not stop within {WATCHDOG} s")
        time.sleep(0.001)
    return True


def measured(
    order: Sequence[tuple[Any, ...]], rounds: int, notes: list[str], once: Callable[..., Any]
) -> dict[Any, list[Any]]:
    """Measure all of them in turn, once to warm up and then for that many rounds; each begins with its name.

    Whose process fails is left out, with a note, unless it is ours. -> name -> what `once` returned in each round
    """
    found: dict[Any, list[Any]] = {name: [] for name, *_ in order}
    for number in range(rounds + 1):
        for name, *rest in order:
            if name not in found:
                continue
            try:
                figure = once(number, name, *rest)
            except (FailedOrderError, NoAnswerError) as exc:
                if Shmcow.title in str(name):
                    raise
                notes.append(f"{name}: left out, {str(exc).strip().splitlines()[-1]}")
                del found[name]
                continue
            if number:
                found[name].append(figure)
    return found
