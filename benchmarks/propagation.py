"""From a publish to the value in another process's hands: futex, asyncio, Redis pub/sub, iceoryx2 events, polling."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import shmcow
from benchmarks.children import Child, Orders, child, cpu_ns
from benchmarks.contest import measured
from benchmarks.harness import Plan, Result
from benchmarks.peers import Blackboard, PolledFile, Redis, Shmcow, present
from benchmarks.scene import WATCHDOG, Config
from benchmarks.values import make_value, revised

SIZE = 640
TITLE, IDLE = "publish to value in hand", "CPU time of one waiting process in a second"
PING, WAIT, ASYNC = "floor: a pipe's byte", "shmcow wait()", "shmcow wait_async()"
PUBSUB, EVENT = "Redis pub/sub, value in the message", "iceoryx2 event, then the blackboard"
POLLS = (1, 10, 100)  # milliseconds

Wait = Callable[[], int]  # returns the revision that it has


class Way:
    """One way to learn of a publish; ``waiter`` runs in the process that waits, ``writer`` in that which publishes."""

    def __init__(self, title: str, waiter: Callable[[], Wait], writer: Callable[[], Callable[[Any], object]]) -> None:
        self.title, self.waiter, self.writer = title, waiter, writer


def run(plan: Plan) -> Result:
    """Measure with one process that waits and one that publishes for each way."""
    result = Result(
        "propagation: how soon a waiting process has what was published",
        "one round of each way, thrown away",
        notes=[
            f"{SIZE} B, typed; from before the publish to the decoded value in the waiting process.",
            "Publishes come at random times, so that a poll waits half its interval.",
            "a pipe's byte: written and read, no value.",
        ],
    )
    n, seconds = plan.pick(25, 2), plan.pick(1000, 10) / 1000
    with contextlib.ExitStack() as stack:
        pairs = []
        for way in _ways(stack, result.notes):
            waiting = stack.enter_context(child(lambda way=way: _waiter_orders(way)))  # type: ignore[misc]
            writing = stack.enter_context(child(lambda way=way: _writer_orders(way)))  # type: ignore[misc]
            waiting.ask("ready")
            writing.ask("ready")
            pairs.append((way.title, waiting, writing))

        def once(_: int, __: str, waiting: Child, writing: Child) -> float:
            return sorted(_once(waiting, writing) for _ in range(n))[n // 2]

        times = measured(pairs, plan.pick(5, 1), result.notes, once)
        for title, rounds in times.items():
            result.put(TITLE, title, "median", rounds)
        for title, waiting in [(title, waiting) for title, waiting, _ in pairs if title in times]:
            result.put(IDLE, title, "CPU", [_idle(waiting, seconds)], unit="ms")
            waiting.kill()  # it still waits, and hears no order
    for title in times:
        if title != PING:
            result.compare(f"{title} / a pipe's byte", _case(title), _case(PING))
    for title in (PUBSUB, EVENT, *(_poll_title(ms) for ms in POLLS)):
        if title in times:
            result.compare(f"{title} / wait()", _case(title), _case(WAIT), at_least=True)
    return result


def _case(title: str) -> str:
    return f"{TITLE}: {title}, median"


def _poll_title(milliseconds: int) -> str:
    return f"shmcow get() polled each {milliseconds} ms"


def _once(waiting: Child, writing: Child) -> float:
    """Return nanoseconds."""
    waiting.tell("wait")
    time.sleep(random.uniform(0.003, 0.01))
    wanted, begin = writing.ask("publish")
    end, found = waiting.answer()
    if found != wanted:
        raise AssertionError(f"revision {wanted} was published, {found} was found")
    return float(end - begin)


def _idle(waiting: Child, seconds: float) -> float:
    """Return the milliseconds of CPU time that a waiter takes in a second in which nothing is published."""
    waiting.tell("wait")
    time.sleep(0.05)
    before, begin = cpu_ns(waiting.pid), time.perf_counter()
    time.sleep(seconds)
    return (cpu_ns(waiting.pid) - before) / 1e6 / (time.perf_counter() - begin)


def _waiter_orders(way: Way) -> Orders:
    wait = way.waiter()

    def waits() -> tuple[int, int]:
        found = wait()
        return time.monotonic_ns(), found

    return {"ready": lambda: None, "wait": waits}


def _writer_orders(way: Way) -> Orders:
    write, value = way.writer(), make_value(SIZE)
    ready = [revised(value, k) for k in range(100)]
    number = 7

    def publish() -> tuple[int, int]:
        nonlocal number
        number = (number + 1) % 100
        begin = time.monotonic_ns()
        write(ready[number])
        return number, begin

    return {"ready": lambda: None, "publish": publish}


# ---- the ways ----


def _ways(stack: contextlib.ExitStack, notes: list[str]) -> Iterator[Way]:
    value = make_value(SIZE)

    def started(kind: Any) -> Any:
        here, skipped = present([kind])
        notes.extend(skipped)
        if not here:
            return None
        peer = kind(Config, value)
        stack.callback(peer.stop)
        peer.start()
        return peer

    yield _pipe(stack)
    for title, kind in ((WAIT, _futex), (ASYNC, _asyncio)):
        peer = started(Shmcow)
        yield Way(title, kind(peer.name), peer.writer)
    if redis := started(Redis):
        yield Way(PUBSUB, lambda: _subscriber(redis), lambda: _publisher(redis))
    if board := started(Blackboard):
        yield _event(board)
    for milliseconds in POLLS:
        peer = started(Shmcow)
        yield Way(_poll_title(milliseconds), _poll(peer, milliseconds / 1000), peer.writer)
    file = started(PolledFile)
    yield Way("file, os.stat each 10 ms", _poll(file, 0.01), file.writer)


def _pipe(stack: contextlib.ExitStack) -> Way:
    read, write = os.pipe()
    stack.callback(os.close, read)
    stack.callback(os.close, write)
    return Way(
        PING, lambda: lambda: os.read(read, 1)[0], lambda: lambda value: os.write(write, bytes([value.revision]))
    )


def _futex(name: str) -> Callable[[], Wait]:
    def waiter() -> Wait:
        reader = shmcow.Reader(name, type=Config)
        snapshot = reader.snapshot()

        def wait() -> int:
            nonlocal snapshot
            snapshot = reader.wait(after=snapshot)
            return snapshot.value.revision

        return wait

    return waiter


def _asyncio(name: str) -> Callable[[], Wait]:
    def waiter() -> Wait:
        reader, loop = shmcow.Reader(name, type=Config), asyncio.new_event_loop()
        snapshot = reader.snapshot()

        def wait() -> int:
            nonlocal snapshot
            snapshot = loop.run_until_complete(reader.wait_async(after=snapshot))
            return snapshot.value.revision

        return wait

    return waiter


def _subscriber(redis: Redis) -> Wait:
    listener, decode = redis.client().pubsub(ignore_subscribe_messages=True), redis.decode
    listener.subscribe("config")
    listener.get_message(timeout=WATCHDOG)  # that it is subscribed

    def wait() -> int:
        while (message := listener.get_message(timeout=None)) is None:
            pass
        return decode(message["data"]).revision  # type: ignore[no-any-return]

    return wait


def _publisher(redis: Redis) -> Callable[[Any], object]:
    client, encode = redis.client(), redis.encode
    return lambda value: client.publish("config", encode(value))


def _event(board: Blackboard) -> Way:
    def service() -> Any:
        name = importlib.import_module("iceoryx2").ServiceName.new(f"{board.name}-event")
        return board.kept[0].service_builder(name).event().open_or_create()

    def waiter() -> Wait:
        read = board.reader()
        board.kept.append(listener := service().listener_builder().create())

        def wait() -> int:
            while not listener.blocking_wait():
                pass
            return read().revision  # type: ignore[no-any-return]

        return wait

    def writer() -> Callable[[Any], object]:
        write = board.writer()
        board.kept.append(notifier := service().notifier_builder().create())

        def publish(value: Any) -> None:
            write(value)
            notifier.notify()

        return publish

    return Way(EVENT, waiter, writer)


def _poll(peer: Any, pause: float) -> Callable[[], Wait]:
    def waiter() -> Wait:
        read = peer.reader()
        last = read()

        def wait() -> int:
            nonlocal last
            while (now := read()) is last:
                time.sleep(pause)
            last = now
            return now.revision  # type: ignore[no-any-return]

        return wait

    return waiter
