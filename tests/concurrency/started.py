"""A program whose workers are made by multiprocessing: with its Reader as an argument, and as a module's global.

    started.py METHOD KIND (the store's name is in SHMCOW_TEST_STORE)

METHOD is fork, spawn, forkserver, or preload (forkserver, with this module imported in the server); KIND is process or
pool. It reads one word a line, lets every worker do it, and answers with one JSON line: a list of [pid, result]. Words
that begin with "own " it does itself.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from typing import Any

import processes
from processes import version_in

from shmcow import Reader, Snapshot

WORKERS = 2
READER: Reader[Any] = Reader(os.environ.get("SHMCOW_TEST_STORE", "none"))  # in a spawned worker, another one
HELD: list[Snapshot[Any]] = []
if "SHMCOW_TEST_PRELOAD" in os.environ and __name__ == "started":  # not where multiprocessing runs it as __mp_main__
    HELD.append(READER.snapshot().hold())

given: Reader[Any] | None = None
barrier: Any = None


def ours(pid: int | str) -> list[str]:
    """Return what a process has open of any store; multiprocessing keeps its semaphores beside them."""
    return [target for target in processes.shm_descriptors(pid) if target.startswith("/dev/shm/shmcow.")]


def act(word: str) -> Any:
    """Do what a word says, in this process."""
    reader = given if given is not None else READER
    if word == "fresh":
        return ours("self")
    if word == "get":
        return [version_in(reader.get()), version_in(READER.get())]
    if word == "hold":
        HELD.append(reader.snapshot().hold())
        return HELD[-1].version
    if word == "drop":
        while HELD:
            HELD.pop().release()
        gc.collect()
        return None
    raise ValueError(word)


def take(reader: Reader[Any], meeting: Any) -> None:
    """Take over what a worker is given: also the initializer of a pool."""
    global given, barrier
    processes.die_with_parent()
    given, barrier = reader, meeting


def in_pool(word: str) -> tuple[int, Any]:
    """Do a word in a pool's worker; the barrier sees to it that each worker gets one."""
    barrier.wait(processes.WATCHDOG)
    return os.getpid(), act(word)


def serve(reader: Reader[Any], pipe: Any) -> None:
    """Run a worker that is a Process of its own."""
    take(reader, None)
    while (word := pipe.recv()) != "end":
        pipe.send((os.getpid(), act(word)))


class Processes:
    """Workers that are a Process each."""

    def __init__(self, context: Any) -> None:
        pairs = [context.Pipe() for _ in range(WORKERS)]
        self.pipes = [ours for ours, _ in pairs]
        self.made = [context.Process(target=serve, args=(READER, theirs)) for _, theirs in pairs]
        for process in self.made:
            process.start()

    def all(self, word: str) -> list[tuple[int, Any]]:
        for pipe in self.pipes:
            pipe.send(word)
        return [pipe.recv() for pipe in self.pipes]

    def end(self) -> list[tuple[int, Any]]:
        for pipe in self.pipes:
            pipe.send("end")
        for process in self.made:
            process.join(processes.WATCHDOG)
        return [(process.pid, process.exitcode) for process in self.made]

    def kill(self) -> None:
        for process in self.made:
            process.kill()
            process.join()


class Pool:
    """Workers of a Pool."""

    def __init__(self, context: Any) -> None:
        self.pool = context.Pool(WORKERS, initializer=take, initargs=(READER, context.Barrier(WORKERS)))

    def all(self, word: str) -> list[tuple[int, Any]]:
        return self.pool.map_async(in_pool, [word] * WORKERS, chunksize=1).get(processes.WATCHDOG)  # type: ignore[no-any-return]

    def end(self) -> list[tuple[int, Any]]:
        workers = list(self.pool._pool)
        self.pool.close()
        self.pool.join()
        return [(worker.pid, worker.exitcode) for worker in workers]

    def kill(self) -> None:
        self.pool.terminate()
        self.pool.join()


def main(method: str, kind: str) -> None:
    processes.die_with_parent()
    context: Any = multiprocessing.get_context("forkserver" if method == "preload" else method)
    if method == "preload":
        context.set_forkserver_preload(["started"])
    if not HELD:
        act("hold")
    made = (Pool if kind == "pool" else Processes)(context)
    for line in sys.stdin:
        word = line.strip()
        if word == "end":
            answer = made.end()
        elif word == "own server":
            from multiprocessing import forkserver

            answer = [(forkserver._forkserver._forkserver_pid, None)]  # type: ignore[attr-defined]
        elif word.startswith("own "):
            answer = [(os.getpid(), act(word.removeprefix("own ")))]
        else:
            answer = made.all(word)
        print(json.dumps(answer), flush=True)
    made.kill()


if __name__ == "__main__":
    import started  # the functions of the importable module, which forkserver may have preloaded

    started.main(sys.argv[1], sys.argv[2])
