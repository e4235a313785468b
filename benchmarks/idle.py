"""What readers cost a writer that they do not talk to, and what waiting costs while nothing is published."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import shmcow
from benchmarks.harness import Plan, Result, each, measure
from benchmarks.scene import WATCHDOG, Config, make_config, store

NONE, STOPPED = "publish 1 kB, no reader", "publish 1 kB, a stopped reader"
MANY = 64
WAITING = f"{MANY} waiting readers, CPU in a second"


def add(result: Result, plan: Plan, rounds: int) -> None:
    """Measure."""
    with _publish_cases(plan) as cases:
        result.rounds |= measure(cases, rounds)
    with _waiting_case(plan) as cases:
        result.rounds |= measure(cases, rounds if rounds <= 3 else 5)


def compare(result: Result) -> None:
    """Add the ratios."""
    for count in (8, MANY):
        result.compare(f"publish, {count} idle readers / none", _with(count), NONE, must=1.5, aim=1.1)
    result.compare("publish, a stopped reader / none", STOPPED, NONE, must=1.5, aim=1.1)
    result.notes.append("idle readers: processes that have read the version before, and hold and wait for nothing.")


def _with(count: int) -> str:
    return f"publish 1 kB, {count} idle readers"


def _read(name: str, ready: object, wait: bool) -> None:
    reader = shmcow.Reader(name, type=Config)
    snapshot = reader.snapshot()
    ready.release()  # type: ignore[attr-defined]
    if wait:
        reader.wait(after=snapshot)
    signal.pause()


@contextlib.contextmanager
def _readers(name: str, count: int, *, wait: bool = False) -> Iterator[list[int]]:
    context = multiprocessing.get_context("fork")
    ready = context.Semaphore(0)
    processes = [context.Process(target=_read, args=(name, ready, wait), daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        for _ in processes:
            if not ready.acquire(timeout=WATCHDOG):
                raise TimeoutError(f"the readers were not ready within {WATCHDOG} s")
        yield [process.pid or 0 for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


@contextlib.contextmanager
def _publish_cases(plan: Plan) -> Iterator[dict[str, Callable[[], float]]]:
    n = plan.pick(300, 3)
    config = make_config(1000)
    with contextlib.ExitStack() as stack:
        cases = {}
        for case, count in ((NONE, 0), (_with(8), 8), (_with(MANY), MANY), (STOPPED, 1)):
            writer, name = stack.enter_context(store(type=Config, initial=config))
            pids = stack.enter_context(_readers(name, count))
            if case == STOPPED:
                os.kill(pids[0], signal.SIGSTOP)
            cases[case] = each(_publisher(writer, config), n)
        yield cases


def _publisher(writer: shmcow.Writer[Config], config: Config) -> Callable[[], int]:
    return lambda: writer.publish(config)


@contextlib.contextmanager
def _waiting_case(plan: Plan) -> Iterator[dict[str, Callable[[], float]]]:
    seconds = 2.0 if not plan.quick else 0.05
    with store(type=Config, initial=make_config(1000)) as (_, name), _readers(name, MANY, wait=True) as pids:

        def cpu() -> int:
            return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)

        def case() -> float:
            before, begin = cpu(), time.perf_counter_ns()
            time.sleep(seconds)
            return max(1.0, (cpu() - before) / (time.perf_counter_ns() - begin) * 1e9)

        yield {WAITING: case}
