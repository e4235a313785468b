"""Four worker processes share a typed configuration that changes while they run.

Run: python examples/config_workers.py
"""

from __future__ import annotations

import multiprocessing
import os

import msgspec

import shmcow
from shmcow import Reader, Writer

STORE = f"example-config-{os.getpid()}"


class Config(msgspec.Struct, frozen=True):
    greeting: str = "hello"
    hosts: tuple[str, ...] = ()


def work(store: str, published: object, answers: multiprocessing.Queue[tuple[int, int, str]]) -> None:
    """Answer with what this process sees, before and after the writer publishes."""
    config = Reader(store, type=Config)
    for _ in range(2):
        published.wait()  # type: ignore[attr-defined]
        snapshot = config.snapshot()
        answers.put((os.getpid(), snapshot.version, snapshot.value.greeting))


def main() -> None:
    """Start the workers, publish twice, and show what each of them saw."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    published = context.Barrier(5)
    with Writer(STORE, type=Config, initial=Config()) as writer:
        workers = [context.Process(target=work, args=(STORE, published, answers)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for greeting in ("good morning", "good night"):
            version = writer.patch(greeting=greeting)
            published.wait()
            for pid, seen, text in sorted(answers.get() for _ in workers):
                print(f"worker {pid} sees version {seen}: {text}")
                assert (seen, text) == (version, greeting)
        for worker in workers:
            worker.join()
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
