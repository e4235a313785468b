"""The memory of 1 to 16 workers with a table of 100 MB: shmcow, a dict in each, fork and copy-on-write, LMDB."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import shmcow
from benchmarks.children import Child, Orders, available_bytes, child
from benchmarks.harness import Middle, Plan, Ratio, Result
from benchmarks.peers import LMDB, present
from benchmarks.scene import SHM, WATCHDOG, fresh_name, store
from shmcow import Table

READERS = (1, 4, 8)
_CODEC = Table(key=str, value=str)

WORKERS = (1, 4, 8, 16)
ROWS = 400_000  # a Table of some 100 MB
REQUESTS, LOOKUPS = 10_000, 10
TITLE = "memory of all workers together, one table"
SHMCOW, PRIVATE, FORKED, DATABASE = "shmcow Table", "a dict in each worker", "dict, fork and copy-on-write", "LMDB"


def run(plan: Plan) -> Result:
    """Measure how much all workers together have grown, once for each number of workers."""
    rows, counts = plan.pick(ROWS, 2_000), WORKERS if not plan.quick else (1, 4)
    result = Result(
        "memory: workers that share a table, or do not",
        "none: each figure is measured once",
        notes=[
            f"{rows:,} rows; {plan.pick(REQUESTS, 50):,} requests of {LOOKUPS} lookups of random keys by each worker.",
            "counted at the end, all at once: PSS of the private memory of all workers and of the process that forked",
            "them, less what it was before they had the table; and the store's files, all of them.",
            "not counted: importing (all modules are there before), and pages of libraries that nobody has written to.",
            "fork and copy-on-write: a master that has filled a dict, gc.freeze(), fork.",
        ],
    )
    ways = {SHMCOW: _shmcow, PRIVATE: _private, FORKED: _forked}
    here, skipped = present([LMDB])
    result.notes += skipped
    if here:
        ways[DATABASE] = _lmdb
    for name, way in ways.items():
        if rows * 600 * counts[-1] > available_bytes():
            result.notes.append(f"{name}: skipped, not enough memory for {counts[-1]} dicts of it")
            continue
        for count, grown in way(rows, counts, plan.pick(REQUESTS, 50)):
            result.put(TITLE, name, str(count), [float(grown)], unit="bytes")
    _compare(result, rows, counts)
    return result


def _compare(result: Result, rows: int, counts: tuple[int, ...]) -> None:
    result.grids[TITLE].x = [float(count) for count in counts]
    with store(codec=_CODEC, retain=0) as (writer, _):
        writer.publish(_items(rows))
        one = writer.snapshot().size_bytes
    result.notes.append(f"one copy: the {one / 1e6:.1f} MB of the published Table.")
    for name, cases in result.grids[TITLE].rows.items():
        for count, case in zip(counts, cases, strict=True):
            if case is not None:
                figure = result.amounts[case][0] / one
                aim = 1.05 if (name, count) == (SHMCOW, 8) else None
                label = f"{name}, {count} workers / one copy"
                result.ratios.append(Ratio(label, Middle(figure, figure, figure), aim=aim))


def _items(rows: int) -> Iterator[tuple[str, str]]:
    return ((_key(k), f"record {k} {'-' * 200}") for k in range(rows))


Grown = Iterator[tuple[int, int]]  # number of workers, bytes
Lookup = Callable[[str], Any]


def _worker(rows: int, load: Callable[[], Lookup]) -> Orders:
    """Return what a worker can be asked for; it has no table yet."""
    table: list[Lookup] = [str.upper]

    def serve(requests: int, seed: int) -> None:
        chance, look = random.Random(seed), table[-1]
        for _ in range(requests):
            found = {key: look(key) for key in (_key(chance.randrange(rows)) for _ in range(LOOKUPS))}
            if None in found.values():
                raise AssertionError("a key is missing")
            json.dumps(found)

    return {"bytes": _own_bytes, "load": lambda: table.append(load()), "serve": serve}


def _all_grown(workers: list[Child], requests: int) -> int:
    """Let them load and serve, and return by how much they have grown since they served without a table."""
    for seed, worker in enumerate(workers):
        worker.ask("serve", min(requests, 200), seed)
    before = _all_bytes(workers)
    for worker in workers:
        worker.tell("load")
    for worker in workers:
        worker.answer(3 * WATCHDOG)
    for seed, worker in enumerate(workers):
        worker.tell("serve", requests, seed)
    for worker in workers:
        worker.answer(3 * WATCHDOG)
    return _all_bytes(workers) - before


def _all_bytes(workers: list[Child]) -> int:
    """Return what they and this process have, when all have tidied up: that copies pages that they had in common."""
    for worker in workers:
        worker.ask("bytes")
    _own_bytes()
    return sum(worker.ask("bytes") for worker in workers) + _own_bytes()


@contextlib.contextmanager
def _crowd(rows: int, count: int, load: Callable[[], Lookup]) -> Iterator[list[Child]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(child(lambda: _worker(rows, load))) for _ in range(count)]


def _shmcow(rows: int, counts: tuple[int, ...], requests: int) -> Grown:
    with store(codec=_CODEC, retain=0) as (writer, name):
        writer.publish(_items(rows))
        for count in counts:
            with _crowd(rows, count, lambda: shmcow.Reader(name, codec=_CODEC).get().get) as workers:
                yield count, _all_grown(workers, requests) + _in_shm(f"shmcow.{name}")


def _private(rows: int, counts: tuple[int, ...], requests: int) -> Grown:
    for count in counts:
        with _crowd(rows, count, lambda: dict(_items(rows)).get) as workers:
            yield count, _all_grown(workers, requests)


def _forked(rows: int, counts: tuple[int, ...], requests: int) -> Grown:
    for count in counts:
        with child(lambda: _master(rows), parent=True) as master:
            yield count, master.ask("all grown", count, requests, seconds=5 * WATCHDOG)


def _master(rows: int) -> Orders:
    def all_grown(count: int, requests: int) -> int:
        gc.collect()
        gc.freeze()
        with _crowd(rows, count, lambda: str.upper) as workers:  # the same processes, without a table
            _all_grown(workers, min(requests, 200))
            before = _all_bytes(workers)
        table = dict(_items(rows))
        gc.collect()
        gc.freeze()
        with _crowd(rows, count, lambda: table.get) as workers:
            _all_grown(workers, requests)
            return _all_bytes(workers) - before

    return {"all grown": all_grown}


def _lmdb(rows: int, counts: tuple[int, ...], requests: int) -> Grown:
    path = Path(SHM, fresh_name())
    try:
        with child(lambda: {"fill": lambda: _fill(str(path), rows)}) as filler:  # a process forks none with it open
            filler.ask("fill", seconds=3 * WATCHDOG)

        def load() -> Lookup:
            view = importlib.import_module("lmdb").open(str(path), readonly=True).begin
            return lambda key: _got(view, key)

        for count in counts:
            with _crowd(rows, count, load) as workers:
                yield count, _all_grown(workers, requests) + _in_shm(path.name)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _fill(path: str, rows: int) -> None:
    lmdb = importlib.import_module("lmdb")
    with lmdb.open(path, map_size=1 << 30) as database, database.begin(write=True) as change:
        for key, value in sorted(_items(rows)):
            change.put(key.encode(), value.encode(), append=True)


def _got(begin: Callable[[], Any], key: str) -> str | None:
    with begin() as view:
        found = view.get(key.encode())
    return None if found is None else found.decode()


def _in_shm(prefix: str) -> int:
    """Return the bytes that names with that prefix occupy."""
    found = [path for top in Path(SHM).glob(f"{prefix}*") for path in (top, *top.rglob("*"))]
    return sum(512 * path.stat().st_blocks for path in found)


def _own_bytes() -> int:
    """Return this process's share of private memory: what it has written, and not only reads from files."""
    gc.collect()
    return _pss_parts()["Pss_Anon"]


def _pss_parts() -> Mapping[str, int]:
    text = Path("/proc/self/smaps_rollup").read_text()
    return {name: 1024 * int(kilobytes) for name, kilobytes in re.findall(r"^(Pss\w*):\s+(\d+) kB", text, re.MULTILINE)}


# ---- a part of the question `tables` ----


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
        "a reader's PSS has grown by since before it attached, interpreters and libraries apart, all readers together; "
        "measured once."
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
    """Return this process's proportional set size in bytes: each page divided by those who share it.

    Without what it only reads from files: the share of a library's page falls with each process that starts.
    """
    parts = _pss_parts()
    return parts["Pss_Anon"] + parts["Pss_Shmem"]
