"""Lookups in tables of texts and of addresses: marisa-trie, geoip2fast, SQLite, Redis, LMDB (more in `tables`)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import ipaddress
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import shmcow
from benchmarks import serving
from benchmarks.children import Child, Orders, child
from benchmarks.contest import measured
from benchmarks.harness import Plan, Result
from benchmarks.peers import Redis
from benchmarks.peers.remote import RedisServer
from benchmarks.scene import SHM, fresh_name
from shmcow import IPTable, Table

FRESH = 500  # keys that are made just before they are looked up
KEYED, GEO = "lookup by text", "lookup by IPv4 address"
TABLE, IPS, DICT = "shmcow Table", "shmcow IPTable", "dict in the process"
Look = Callable[[str], Any]
Rows = Sequence[tuple[str, str]]


class Way:
    """A table: ``build`` makes it, ``look`` opens it; both in one process, ``remove`` wherever."""

    title = ""
    module = ""
    package = ""
    compare = True  # whether it has the same rows

    def __init__(self) -> None:
        self.name = fresh_name()
        self.path = Path(SHM, self.name)

    def missing(self) -> str:
        """Say what is not installed."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed (pip install {self.package})"
        return ""

    def build(self, rows: Any) -> None:
        """Make the table."""

    def look(self) -> Look:
        """Return what looks a key up."""
        raise NotImplementedError

    def remove(self) -> None:
        """Remove what was made."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(IsADirectoryError):
            self.path.unlink(missing_ok=True)


class Ours(Way):
    """A store with a Table or an IPTable, and its view."""

    def __init__(self, title: str, codec: Any) -> None:
        super().__init__()
        self.title, self.codec = title, codec

    def build(self, rows: Any) -> None:
        shmcow.Writer(self.name, codec=self.codec, initial=rows).close()

    def look(self) -> Look:
        view = shmcow.Reader(self.name, codec=self.codec).get()
        return view.__getitem__  # type: ignore[no-any-return]

    def remove(self) -> None:
        with contextlib.suppress(shmcow.StoreNotFoundError):
            shmcow.destroy(self.name)


class Private(Way):
    """A dict of this process."""

    title = DICT

    def build(self, rows: Rows) -> None:
        self.dict = dict(rows)

    def look(self) -> Look:
        return self.dict.__getitem__


class Bisect(Way):
    """Sorted lists and bisect, in Python, of this process."""

    title = "sorted list and bisect in the process"

    def build(self, rows: Any) -> None:
        del rows
        self.table = serving.PrivateTable()

    def look(self) -> Look:
        return self.table.__getitem__


class Marisa(Way):
    """A BytesTrie, saved and mapped: all processes share its pages."""

    title, module, package = "marisa-trie BytesTrie, mapped", "marisa_trie", "marisa-trie"

    def build(self, rows: Rows) -> None:
        trie = importlib.import_module(self.module).BytesTrie([(key, value.encode()) for key, value in rows])
        trie.save(str(self.path))

    def look(self) -> Look:
        trie = importlib.import_module(self.module).BytesTrie().mmap(str(self.path))
        return lambda key: trie[key][0].decode()


class LMDBTable(Way):
    """One read transaction for all lookups: LMDB's best case."""

    title, module, package = "LMDB, one transaction for all", "lmdb", "lmdb"

    def build(self, rows: Rows) -> None:
        opened = importlib.import_module("lmdb").open(str(self.path), map_size=1 << 30)
        with opened, opened.begin(write=True) as change:
            for key, value in sorted(rows):
                change.put(key.encode(), value.encode(), append=True)

    def look(self) -> Look:
        self.database = importlib.import_module("lmdb").open(str(self.path), readonly=True)
        get = self.database.begin().get
        return lambda key: get(key.encode()).decode()


class SQLiteTable(Way):
    """A table without rowid, mapped."""

    title = "SQLite, mapped"
    create = "create table kept (key text primary key, value text) without rowid"
    insert = "insert into kept values (?, ?)"

    def _open(self) -> sqlite3.Connection:
        opened = sqlite3.connect(self.path)
        opened.execute(f"pragma mmap_size={1 << 30}")
        return opened

    def build(self, rows: Any) -> None:
        opened = self._open()
        opened.execute(self.create)
        opened.executemany(self.insert, rows)
        opened.commit()
        opened.close()

    def look(self) -> Look:
        execute = self._open().execute
        return lambda key: execute("select value from kept where key = ?", (key,)).fetchone()[0]


class SQLiteRanges(SQLiteTable):
    """The range with the smallest last address that is not below the one asked for."""

    create = "create table kept (last integer primary key, first integer, country text)"
    insert = "insert into kept (first, last, country) values (?, ?, ?)"

    def build(self, rows: Any) -> None:
        number = ipaddress.IPv4Address
        super().build((int(number(first)), int(number(last)), country) for first, last, country in rows)

    def look(self) -> Look:
        execute, address = self._open().execute, ipaddress.IPv4Address

        def look(key: str) -> str:
            number = int(address(key))
            first, country = execute(
                "select first, country from kept where last >= ? order by last limit 1", (number,)
            ).fetchone()
            if first > number:
                raise KeyError(key)
            return country  # type: ignore[no-any-return]

        return look


class RedisTable(Way):
    """A hash, on a unix socket."""

    title = "Redis hash (unix socket)"

    def missing(self) -> str:
        return Redis.missing()

    def build(self, rows: Any) -> None:
        self.server = RedisServer()
        client = self.server.client()
        for at in range(0, len(rows), 1000):
            client.hset("kept", mapping=dict(rows[at : at + 1000]))

    def look(self) -> Look:
        client = self.server.client()
        return lambda key: client.hget("kept", key).decode()

    def close(self) -> None:
        """End the server, in the process that started it."""
        self.server.stop()


class Geoip2Fast(Way):
    """Its own data (countries, IPv4), which it loads into each process; no table of one's own."""

    title, module, package = "geoip2fast (its own data)", "geoip2fast", "geoip2fast"
    compare = False

    def look(self) -> Look:
        lookup = importlib.import_module("geoip2fast").GeoIP2Fast().lookup
        return lambda key: lookup(key).country_code


def run(plan: Plan) -> Result:
    """Measure in a process of its own for each; time of the clock, not of the CPU, as some wait for a server."""
    result = Result(
        "lookups: tables by other means",
        "one round of each, thrown away",
        notes=[
            f"fresh texts, made {FRESH} at a time just before they are looked up, each key once, in random order.",
            "values are short texts; each lookup returns one as a str.",
        ],
    )
    number = plan.pick(200_000, 2_000)
    chance = random.Random(3)
    texts = [(f"user-{chance.getrandbits(48):012x}", f"group {k % 1000}") for k in range(number)]
    _measure(result, plan, KEYED, texts, [key for key, _ in texts], _keyed())
    serving.RANGES = plan.pick(50_000, 500)
    _measure(result, plan, GEO, serving.rows(), serving.addresses(), _geo())
    for grid, ours in ((KEYED, TABLE), (GEO, IPS)):
        for title in result.grids[grid].rows:
            if title != ours:
                result.compare(
                    f"{title} / {ours}", f"{grid}: {title}, lookup", f"{grid}: {ours}, lookup", at_least=True
                )
    return result


def _keyed() -> list[Way]:
    return [Ours(TABLE, Table(key=str, value=str)), Private(), Marisa(), LMDBTable(), SQLiteTable(), RedisTable()]


def _geo() -> list[Way]:
    return [Ours(IPS, IPTable(str)), Bisect(), Geoip2Fast(), SQLiteRanges()]


def _measure(result: Result, plan: Plan, grid: str, rows: Any, keys: list[str], ways: list[Way]) -> None:
    chance = random.Random(1)
    wanted = [key.encode() for key in chance.sample(keys, min(len(keys), plan.pick(20_000, 500)))]
    with contextlib.ExitStack() as stack:
        running: list[tuple[Way, Child]] = []
        built = {}
        for way in ways:
            if reason := way.missing():
                result.notes.append(f"{way.title}: skipped, {reason}")
                continue
            stack.callback(way.remove)
            worker = stack.enter_context(_worker(way, rows, wanted))
            built[way.title] = worker.ask("build")
            running.append((way, worker))
        cases = [(way.title, worker) for way, worker in running]
        figures = measured(cases, plan.pick(5, 1), result.notes, lambda _, __, worker: float(worker.ask("look up")))
        for title, rounds in figures.items():
            result.put(grid, title, "lookup", rounds)
            if built[title]:
                result.put(grid, title, "build, a row", [built[title]])


@contextlib.contextmanager
def _worker(way: Way, rows: Any, wanted: list[bytes]) -> Iterator[Child]:
    looks: list[Look] = []

    def build() -> float:
        begin = time.perf_counter_ns()
        way.build(rows)
        took = time.perf_counter_ns() - begin
        looks.append(way.look())
        if way.compare:
            _check(looks[0], rows)
        return took / len(rows) if way.compare else 0.0

    def look_up() -> float:
        look, took = looks[0], 0
        for at in range(0, len(wanted), FRESH):
            fresh = [key.decode() for key in wanted[at : at + FRESH]]
            begin = time.perf_counter_ns()
            for key in fresh:
                look(key)
            took += time.perf_counter_ns() - begin
        return took / len(wanted)

    def orders() -> Orders:
        return {"build": build, "look up": look_up, "close": getattr(way, "close", int)}

    with child(orders) as worker:
        try:
            yield worker
        finally:
            worker.ask("close")


def _check(look: Look, rows: Any) -> None:
    for row in rows[::97]:
        if look(row[0]) != row[-1]:
            raise AssertionError(f"{row[0]} is not what was put in")
