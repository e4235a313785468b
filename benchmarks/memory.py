"""What many readers of one table cost in memory: part of the question `tables`."""

from __future__ import annotations

import multiprocessing
import re
from multiprocessing.connection import Connection
from pathlib import Path

import shmcow
from benchmarks.harness import Middle, Plan, Ratio, Result
from benchmarks.scene import WATCHDOG, store
from shmcow import Table

READERS = (1, 4, 8)
_CODEC = Table(key=str, value=str)


def add(result: Result, plan: Plan) -> None:
    """Add the proportional set size of 1, 4 and 8 readers that have looked up every key, over the table's size."""
    number = plan.pick(1_000_000, 5_000)
    with store(codec=_CODEC, retain=0) as (writer, name):
        writer.publish((_key(k), f"group {k}") for k in range(number))
        size = writer.snapshot().size_bytes
        for readers in READERS if not plan.quick else READERS[:1]:
            grown = _grown(name, readers, number)
            ratio = grown / size
            must = 1.10 if readers == 8 else None
            aim = 1.05 if readers == 8 else None
            result.ratios.append(Ratio(f"PSS of {readers} readers / one copy", Middle(ratio, ratio, ratio), must, aim))
    result.notes.append(
        f"PSS: of {size / 1e6:.0f} MB, {number:,} keys, all distinct values; each reader has looked up every key; what "
        "a reader's PSS has grown by since before it attached, interpreters apart, all readers together; measured once."
    )


def _key(k: int) -> str:
    return f"user-{k * 2654435761 % (1 << 40):010x}"


def _grown(name: str, readers: int, number: int) -> int:
    """Start readers, and return by how many bytes they all have grown."""
    context = multiprocessing.get_context("spawn")
    links, processes = [], []
    try:
        for _ in range(readers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_read, args=(theirs, name, number))
            process.start()
            links.append(ours)
            processes.append(process)
        before = [_answer(link) for link in links]
        for link in links:  # one after the other: all have their pages before anybody counts
            link.send("look up")
            _answer(link)
        for link in links:
            link.send("count")
        after = [_answer(link) for link in links]
        return sum(after) - sum(before)
    finally:
        for link in links:
            link.close()
        for process in processes:
            process.join(WATCHDOG)
            process.kill()
            process.join()


def _answer(link: Connection) -> int:
    if not link.poll(WATCHDOG * 3):
        raise TimeoutError("a reader does not answer")
    return int(link.recv())


def _read(link: Connection, name: str, number: int) -> None:
    reader = shmcow.Reader(name, codec=_CODEC)
    link.send(_pss())
    link.recv()
    table = reader.get()
    missing = sum(1 for k in range(number) if table[_key(k)] is None)
    link.send(missing)
    link.recv()
    link.send(_pss())
    try:
        link.recv()  # stays until all have counted
    except EOFError:
        pass


def _pss() -> int:
    """Return this process's proportional set size in bytes: each page divided by those who share it."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return 1024 * int(found[1])
