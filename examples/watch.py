"""Watch a value, and stop watching: three ways to be told of changes, each with its end.

Problem: a worker has to act when something changes, without a poll, and must be able to lose interest: a websocket
closes, a plugin is unloaded.
Run it: python examples/watch.py
It prints: what a callback was told until its block ended, what a loop saw until it left, and what a coroutine saw
until it was cancelled, in a process of their own, while the writer went on publishing.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection

import shmcow
from shmcow import Reader, Snapshot, Writer

STORE = f"example-watch-{os.getpid()}"


def by_callback(reader: Reader[int], told: list[int]) -> None:
    """Be called back, in a daemon thread of the reader's, until the end of the block: it unsubscribes."""
    enough = threading.Event()

    def tell(_: Snapshot[int] | None, new: Snapshot[int]) -> None:
        told.append(new.value)
        if new.value >= 3:
            enough.set()

    with reader.subscribe(tell):  # or: stop = reader.subscribe(tell), and later stop()
        assert enough.wait(60)


def by_loop(reader: Reader[int]) -> list[int]:
    """Iterate over versions, as many as wanted; nothing has to be closed."""
    return [snapshot.value for snapshot in itertools.islice(reader.watch(), 3)]


async def by_coroutine(reader: Reader[int]) -> list[int]:
    """Watch in a task of an event loop, until the task is cancelled."""
    seen: list[int] = []

    async def watch() -> None:
        async for snapshot in reader.watch_async():
            seen.append(snapshot.value)

    async with asyncio.timeout(60):
        task = asyncio.create_task(watch())
        while len(seen) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
    return seen


def work(link: Connection) -> None:
    """Watch in three ways, one after the other."""
    reader = Reader(STORE, type=int)
    told: list[int] = []
    by_callback(reader, told)
    link.send(told)
    link.send(by_loop(reader))
    link.send(asyncio.run(by_coroutine(reader)))
    link.send(told)  # the callback adds to it, should it still be called


def main() -> None:
    """Publish until the other process has lost interest."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    watcher = context.Process(target=work, args=(theirs,), daemon=True)
    with Writer(STORE, type=int, initial=1) as writer:
        watcher.start()
        theirs.close()  # so that the watcher's death ends recv() below
        found = {}
        for how in ("callback", "loop", "coroutine", "callback, later"):
            while not ours.poll(0.01):
                writer.update(lambda number: number + 1)
            found[how] = ours.recv()
            print(f"{how}: {found[how]}")
            assert found[how] == sorted(set(found[how]))  # each newer than the one before
        # A call that had begun went on to its end; no other one began.
        assert len(found["callback, later"]) <= len(found["callback"]) + 1
        print(f"the writer went on to version {writer.version}")
    watcher.join()
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
