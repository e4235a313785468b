"""Tables: geo-IP and keyed lookups, get_many, build, memory of many readers, and the swap to a new version."""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib.metadata
import ipaddress
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

import shmcow
from benchmarks import memory
from benchmarks.harness import Case, Plan, Result, each, measure, timed
from benchmarks.scene import make_config, store
from shmcow import Bundle, IPTable, MsgPack, Raw, Table

MEGABYTE = 1_000_000
Row = tuple[str, str, str]


def run(plan: Plan) -> Result:
    """Measure lookups against dict, maxminddb and LMDB; builds; swaps; and what many readers cost."""
    result = Result(
        "tables: lookups in shared memory against private dicts and other files",
        "one round of each case, thrown away",
    )
    rounds = plan.pick(9, 2)
    with contextlib.ExitStack() as stack:
        for family in (4, 6):
            result.rounds |= measure(stack.enter_context(_address_cases(plan, result, family)), rounds)
        for distinct in (False, True):
            result.rounds |= measure(stack.enter_context(_key_cases(plan, result, distinct)), rounds)
    with contextlib.ExitStack() as stack:
        result.rounds |= measure(stack.enter_context(_publish_cases(plan)), rounds)
    _swap(plan, result)
    memory.add(result, plan)
    _compare(result)
    return result


# ---- lookups ----


FRESH = 1_000


def looked_up(keys: Sequence[bytes], source: Any) -> Case:
    """Make a case of a lookup, as it is written: source[key], or source(key) where it is a function; None: no lookup.

    Keys are fresh str objects, with no hash cached, made just before they are looked up, as a server gets them: else
    what is measured is how slowly old strings come from memory. The loop is in the figure. CPU time: others run, too.
    """

    def subscripts(fresh: list[str]) -> None:
        for key in fresh:
            source[key]

    def calls(fresh: list[str]) -> None:
        for key in fresh:
            source(key)

    def nothing(fresh: list[str]) -> None:
        for _ in fresh:
            pass

    look = nothing if source is None else calls if callable(source) else subscripts

    def case() -> float:
        took = 0
        for at in range(0, len(keys), FRESH):
            fresh = [key.decode() for key in keys[at : at + FRESH]]
            begin = time.thread_time_ns()
            look(fresh)
            took += time.thread_time_ns() - begin
        return took / len(keys)

    return case


def _warm(keys: list[bytes], n: int) -> list[bytes]:
    """Return few keys, again and again: everything that they touch is in the processor's caches."""
    return list(itertools.islice(itertools.cycle(keys[:200]), n))


def _rows(plan: Plan, family: int) -> tuple[list[Row], str]:
    """Return ranges with their countries: real ones where SHMCOW_DATA names them, else made up in the same number."""
    folder = os.environ.get("SHMCOW_DATA", "")
    file = Path(folder) / f"geo-whois-asn-country-ipv{family}.csv.gz"
    most = plan.pick(1_000_000, 200)
    if folder and file.exists():
        with gzip.open(file, "rt") as lines:
            found = [(first, last, country) for first, last, country in itertools.islice(csv.reader(lines), most)]
        return _without_clashes(found), "real"
    chance, bits = random.Random(family), 32 if family == 4 else 128
    kind = ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address
    number = min(most, 300_000)
    ends = sorted({chance.getrandbits(min(bits, 48)) << max(0, bits - 48) for _ in range(2 * number)})
    pairs = zip(ends[::2], ends[1::2], strict=False)
    countries = [f"{chr(65 + k // 26)}{chr(65 + k % 26)}" for k in range(240)]
    return [(str(kind(a)), str(kind(b)), chance.choice(countries)) for a, b in pairs], "made up"


def _without_clashes(rows: list[Row]) -> list[Row]:
    """Leave out the few real rows that overlap an earlier one: nobody could say which is right."""
    of, end, kept = ipaddress.ip_address, -1, []
    for row in sorted(rows, key=lambda row: int(of(row[0]))):
        if int(of(row[0])) > end:
            kept.append(row)
            end = int(of(row[1]))
    return kept


@contextlib.contextmanager
def _address_cases(plan: Plan, result: Result, family: int) -> Iterator[dict[str, Case]]:
    rows, kind = _rows(plan, family)
    chance = random.Random(1)
    of = ipaddress.ip_address
    keyed = {
        str(of(int(of(first)) + chance.randrange(int(of(last)) - int(of(first)) + 1))): country
        for first, last, country in rows
    }
    keys = [key.encode() for key in keyed]
    chance.shuffle(keys)
    n = plan.pick(100_000, 500)
    cold, warm = keys[:n], _warm(keys, n)
    with store(codec=IPTable(str)) as (writer, name):
        begin = time.perf_counter()
        writer.publish(rows)  # type: ignore[arg-type]
        took = time.perf_counter() - begin
        size = writer.snapshot().size_bytes
        table = shmcow.Reader(name, codec=IPTable(str)).get()
        for key, country in itertools.islice(keyed.items(), 0, None, 97):
            if table[key] != country:
                raise AssertionError(f"{key}: {table[key]} is not {country}")
        result.notes.append(
            f"IPv{family}: {len(rows):,} ranges ({kind}), {size / len(rows):.1f} bytes a row, built and published in "
            f"{1e6 * took / len(rows):.2f} µs a row"
        )
        v = f"IPv{family}"
        cases = {
            f"{v} text, cold": looked_up(cold, table),
            f"dict of {v} texts, cold": looked_up(cold, keyed),
            f"{v} text, warm": looked_up(warm, table),
            f"dict of {v} texts, warm": looked_up(warm, keyed),
            f"{v}: the loop itself": looked_up(cold, None),
        }
        cases[f"{v} get_many, one of {FRESH}"] = _one_of_many(table.get_many, cold)
        with _mmdb(rows, result, v) as database:
            if database is not None:
                cases[f"maxminddb {v}, cold"] = looked_up(cold, database.get)
                cases[f"maxminddb {v}, warm"] = looked_up(warm, database.get)
            yield cases


def _one_of_many(get_many: Callable[[list[str]], object], keys: Sequence[bytes]) -> Case:
    def case() -> float:
        took = 0
        for at in range(0, len(keys), FRESH):
            fresh = [key.decode() for key in keys[at : at + FRESH]]
            begin = time.thread_time_ns()
            get_many(fresh)
            took += time.thread_time_ns() - begin
        return took / len(keys)

    return case


@contextlib.contextmanager
def _mmdb(rows: list[Row], result: Result, what: str) -> Iterator[Any]:
    try:
        import maxminddb
        import mmdb_writer
        import netaddr
    except ImportError as exc:
        result.notes.append(f"maxminddb {what}: skipped, {exc.name} is not installed (pip install 'shmcow[bench]')")
        yield None
        return
    tree = mmdb_writer.MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="bench")
    of = ipaddress.ip_address
    for first, last, country in rows:
        ends: Any = of(first), of(last)
        networks = [netaddr.IPNetwork(str(network)) for network in ipaddress.summarize_address_range(*ends)]
        listed = netaddr.IPSet()
        listed._cidrs = dict.fromkeys(networks, True)  # without its search for networks to merge, which takes minutes
        tree.insert_network(listed, country)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = f"{folder}/bench.mmdb"
        tree.to_db_file(path)
        database = maxminddb.open_database(path, maxminddb.MODE_MMAP_EXT)
        result.notes.append(
            f"maxminddb {importlib.metadata.version('maxminddb')}, C extension, {what}, on the same rows"
        )
        yield database
        database.close()


@contextlib.contextmanager
def _key_cases(plan: Plan, result: Result, distinct: bool) -> Iterator[dict[str, Case]]:
    number = plan.pick(1_000_000, 2_000)
    chance = random.Random(3)
    names = [f"user-{chance.getrandbits(48):012x}" for _ in range(number)]
    private = {key: f"group {k}" if distinct else f"group {k % 100}" for k, key in enumerate(names)}
    keys = [key.encode() for key in private]
    chance.shuffle(keys)
    n = plan.pick(100_000, 500)
    cold, warm = keys[:n], _warm(keys, n)
    v = "all distinct values" if distinct else "100 values"
    codec = Table(key=str, value=str)
    with store(codec=codec) as (writer, name):
        begin = time.perf_counter()
        writer.publish(private)  # type: ignore[arg-type]
        took = time.perf_counter() - begin
        size = writer.snapshot().size_bytes
        table = shmcow.Reader(name, codec=codec).get()
        if any(table[key] != private[key] for key in itertools.islice(private, 0, None, 97)):
            raise AssertionError("the table does not have what the dict has")
        result.notes.append(
            f"Table[str], {len(private):,} keys, {v}: {size / len(private):.1f} bytes a row, built and published in "
            f"{1e6 * took / len(private):.2f} µs a row"
        )
        cases = {
            f"Table, {v}, cold": looked_up(cold, table),
            f"dict, {v}, cold": looked_up(cold, private),
            f"Table, {v}, warm": looked_up(warm, table),
            f"dict, {v}, warm": looked_up(warm, private),
            f"Table, {v}: the loop itself": looked_up(cold, None),
            f"Table get_many, {v}": _one_of_many(table.get_many, cold),
        }
        with _lmdb(private, result) as get:
            if get is not None:
                cases[f"LMDB, {v}, cold"] = looked_up(cold, get)
                cases[f"LMDB, {v}, warm"] = looked_up(warm, get)
            yield cases


@contextlib.contextmanager
def _lmdb(private: dict[str, str], result: Result) -> Iterator[Callable[[str], object] | None]:
    try:
        import lmdb
    except ImportError:
        result.notes.append("LMDB: skipped, lmdb is not installed (pip install 'shmcow[bench]')")
        yield None
        return
    encode, decode = msgspec.msgpack.encode, msgspec.msgpack.Decoder(str).decode
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        lmdb.open(folder, map_size=1 << 32, sync=False, lock=False) as database,
    ):
        with database.begin(write=True) as change:
            for key, value in private.items():
                change.put(key.encode(), encode(value))
        with database.begin(buffers=True) as view:  # one transaction for all reads: LMDB's best case

            def get(key: str) -> object:
                return decode(view.get(key.encode()))

            yield get


# ---- publishing and swapping ----


@contextlib.contextmanager
def _publish_cases(plan: Plan) -> Iterator[dict[str, Case]]:
    n = plan.pick(300, 3)
    config, large = make_config(1000), bytes(plan.pick(100 * MEGABYTE, MEGABYTE))
    parts = Bundle(config=MsgPack(type(config)), blob=Raw())
    with (
        store(codec=parts, initial={"config": config, "blob": large}) as (writer, _),
        store(type=type(config), initial=config) as (alone, _),
    ):
        count = itertools.count()

        def changed() -> Any:
            return msgspec.structs.replace(config, revision=next(count) % 100)

        yield {
            "publish_parts of 1 kB beside 100 MB": each(lambda: writer.publish_parts(config=changed()), n),
            "publish 1 kB alone": each(lambda: alone.publish(changed()), n),
        }


def _swap(plan: Plan, result: Result) -> None:
    """How long the first lookup takes in a reader that has an old version of a table of 100 MB."""
    number = plan.pick(3_950_000, 2_000)
    codec = Table(key=int, value=int)
    with store(codec=codec, retain=0) as (writer, name):
        reader = shmcow.Reader(name, codec=codec)

        def swap() -> int:
            version = writer.publish((k, k % 1000) for k in range(number))
            begin = time.perf_counter_ns()
            table, seen = reader.get(), reader.version
            found = table[number // 2]
            took = time.perf_counter_ns() - begin
            if seen != version or found != number // 2 % 1000:
                raise AssertionError("the reader has not swapped")
            return took

        swap()
        name = f"swap to a table of {writer.snapshot().size_bytes / MEGABYTE:.0f} MB, first lookup"
        result.rounds |= measure({name: timed(swap, 1)}, plan.pick(5, 1))
        result.notes.append(
            f"swap: {sorted(result.rounds[name])[len(result.rounds[name]) // 2] / 1e6:.2f} ms (must 5, aim 1)"
        )


def _compare(result: Result) -> None:
    def compare(name: str, case: str, floor: str, loop: str, **bounds: float) -> None:
        if case in result.rounds and floor in result.rounds:
            result.compare(f"{name}, net", case, floor, minus=loop, **bounds)
            result.compare(f"{name}, gross", case, floor, **bounds)

    for v in ("IPv4", "IPv6"):
        for heat in ("cold", "warm"):
            ours, loop = f"{v} text, {heat}", f"{v}: the loop itself"
            compare(f"{v} text / dict hit, {heat}", ours, f"dict of {v} texts, {heat}", loop, must=2.5, aim=1.3)
            compare(f"{v} text / maxminddb, {heat}", ours, f"maxminddb {v}, {heat}", loop, must=1 / 6, aim=1 / 12)
    for v in ("100 values", "all distinct values"):
        for heat in ("cold", "warm"):
            ours, loop = f"Table, {v}, {heat}", f"Table, {v}: the loop itself"
            compare(f"Table / dict, {v}, {heat}", ours, f"dict, {v}, {heat}", loop, must=3, aim=1.5)
            compare(f"Table / LMDB, {v}, {heat}", ours, f"LMDB, {v}, {heat}", loop, must=1 / 5, aim=1 / 10)
    result.compare(
        "publish_parts beside 100 MB / alone", "publish_parts of 1 kB beside 100 MB", "publish 1 kB alone", must=2
    )
    result.notes += [
        "fresh str objects, so no hash is cached, made 1,000 at a time just before they are looked up; CPU time.",
        "t[key], as for a dict; maxminddb and LMDB by a call. net: less the loop around it; gross: with it.",
        "cold: each key once, in random order; warm: 200 keys, again and again.",
        "LMDB: one read transaction for all lookups, and the value decoded; a file without durability on /dev/shm.",
    ]
