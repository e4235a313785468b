"""The first read after a publish, in another process: by size and codec, against LMDB and Redis with a decode."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

import shmcow
from benchmarks.children import Child, Orders, child
from benchmarks.contest import measured
from benchmarks.harness import Plan, Result
from benchmarks.peers import LMDB, Peer, Redis, present
from benchmarks.scene import Config, store
from benchmarks.values import make_value, revised, size_text

SIZES = (640, 64_000, 1_000_000)
TITLE = "first read after a publish"
TYPED = "shmcow, msgpack, typed"
KEYED = "shmcow, a Table of the same labels, and one lookup"


def run(plan: Plan) -> Result:
    """Measure in a reader process that is asked after each publish."""
    here, skipped = present([LMDB, Redis])
    result = Result(
        "first read: what a publish costs the next read of each process",
        "one round of each, thrown away",
        notes=[
            "timed in the reader, after the publish has returned: notice, map, check, decode, freeze.",
            "no decode: what is published is looked up where it lies; a Table publishes the labels of the config.",
            *skipped,
        ],
    )
    sizes = SIZES if not plan.quick else SIZES[:1]
    for size in sizes:
        with contextlib.ExitStack() as stack:
            cases = [(title, *stack.enter_context(case)) for title, case in _cases(size, here)]
            count = max(3, min(100, 3 * 10**6 // size)) if not plan.quick else 1

            def once(number: int, _: str, publish: Callable[[int], object], reader: Child) -> float:
                times = []
                for turn in range(count):  # noqa: B023 - called in this turn of the loop only
                    publish(number * count + turn)  # noqa: B023
                    times.append(reader.ask("read"))
                return float(sorted(times)[len(times) // 2])

            figures = measured(cases, plan.pick(5, 1), result.notes, once)
        text = size_text(size)
        for title, rounds in figures.items():
            result.put(TITLE, title, text, rounds)
        for kind in (kind for kind in here if f"{kind.title} and decode" in figures):
            theirs, ours = f"{TITLE}: {kind.title} and decode, {text}", f"{TITLE}: {TYPED}, {text}"
            result.compare(f"{kind.title} and decode / first get(), {text}", theirs, ours, at_least=True)
    result.grids[TITLE].x = [float(size) for size in sizes]
    return result


Case = contextlib.AbstractContextManager[tuple[Callable[[int], object], Child]]


def _cases(size: int, kinds: list[type[Peer]]) -> Iterator[tuple[str, Case]]:
    value = make_value(size)
    data = msgspec.msgpack.encode(value)
    plain = msgspec.to_builtins(value)
    yield TYPED, _ours(lambda k: revised(value, k), lambda now: now.revision, type=Config)
    yield (
        "shmcow, msgpack, freeze=False",
        _ours(lambda k: revised(value, k), lambda now: now.revision, False, type=Config),
    )
    yield "shmcow, JSON, typed", _ours(lambda k: revised(value, k), lambda now: now.revision, codec=shmcow.JSON(Config))
    yield "shmcow, no type (dicts)", _ours(lambda k: {**plain, "revision": k % 100}, lambda now: now["revision"])
    yield "shmcow, Raw (no decode)", _ours(lambda k: data[:-1] + bytes([k % 100]), len, codec=shmcow.Raw())
    key = next(iter(value.labels))
    table = shmcow.Table(key=str, value=str)
    yield f"{KEYED} (no decode)", _ours(lambda _: value.labels, lambda now: now[key], codec=table)
    for kind in kinds:
        yield f"{kind.title} and decode", _theirs(kind(Config, value))


@contextlib.contextmanager
def _ours(
    value: Callable[[int], Any], look: Callable[[Any], object], freeze: bool = True, **how: Any
) -> Iterator[tuple[Callable[[int], object], Child]]:
    with store(initial=value(0), **how) as (writer, name):

        def orders() -> Orders:
            get = shmcow.Reader(name, freeze=freeze, **how).get
            get()
            return {"read": lambda: _timed(get, look)}

        with child(orders) as reader:
            yield lambda k: writer.publish(value(k)), reader


@contextlib.contextmanager
def _theirs(peer: Peer) -> Iterator[tuple[Callable[[int], object], Child]]:
    def reads() -> Orders:
        read = peer.reader()
        read()
        return {"read": lambda: _timed(read, lambda now: now.revision)}

    def writes() -> Orders:
        write = peer.writer()
        return {"publish": lambda k: bool(write(revised(peer.first, k)))}

    try:
        peer.start()
        with child(reads) as reader, child(writes) as writer:
            yield lambda k: writer.ask("publish", k), reader
    finally:
        peer.stop()


def _timed(read: Callable[[], Any], look: Callable[[Any], object]) -> int:
    begin = time.perf_counter_ns()
    look(read())
    return time.perf_counter_ns() - begin
