"""Several processes publish different parts of one bundle at the same time, and some of them are killed.

Each part carries a counter in every element, and each publish adds one to one of them. So the counters of version v add
up to v - 1: a lost part, or a combination that never existed, is seen in any single version.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, Final

import processes
import pytest
from processes import Child, Link, Words

from shmcow import Bundle, BundleView, IPTable, MsgPack, Raw, Reader, Table, VersionGoneError, Writer

PARTS: Final = ("blob", "config", "table", "geo")
CODEC: Final = Bundle(blob=Raw(), config=MsgPack(list[int]), table=Table(key=int, value=int), geo=IPTable(int))
RETAIN: Final = 2
SEEN: Final = len(PARTS)  # where, among the shared words, readers count
STOP: Final = SEEN + 2


def value_of(part: str, n: int) -> Any:
    """What is published for a counter: of some size, so that a kill may come in the middle of it."""
    if part == "blob":
        return n.to_bytes(8, "little") * 20_000
    if part == "config":
        return [n] * 64
    if part == "table":
        return ((key, n) for key in range(200))
    return ((f"10.0.{net}.0/24", n) for net in range(200))


def counters_of(view: BundleView) -> tuple[int, ...]:
    """The counters that a view carries; each part must be one through and through."""
    blob = int.from_bytes(view.blob[:8], "little")
    assert view.blob == value_of("blob", blob)
    (config,), (table,), (geo,) = set(view.config), set(view.table.values()), {row[-1] for row in view.geo}
    assert len(view.config) == 64
    assert len(view.table) == len(view.geo) == 200
    return blob, config, table, geo


def add(writer: Writer[BundleView], k: int, done: Words) -> None:
    """Publish the part with the next counter; `done` says how far everybody knows it to be."""
    n = counters_of(writer.snapshot().value)[k] + 1
    version = writer.publish_parts({PARTS[k]: value_of(PARTS[k], n)})
    snapshot = writer.snapshot()
    assert snapshot.version >= version
    assert counters_of(snapshot.value)[k] == n  # nobody else publishes this part
    done[k] = n


def _write(link: Link, name: str, k: int, times: int, done: Words) -> None:
    with Writer(name, codec=CODEC, lock_timeout=processes.WATCHDOG) as writer:
        link.send("ready")
        link.recv()
        while times > 0 and not done[STOP]:
            add(writer, k, done)
            times -= 1


def _read(link: Link, name: str, me: int, done: Words) -> None:
    """Check every version that comes by, and older ones; report them all at the end."""
    reader = Reader(name, codec=CODEC)
    seen: dict[int, tuple[int, ...]] = {}
    last = (0,) * len(PARTS)
    link.send("ready")
    while not done[STOP]:
        known = tuple(done[k] for k in range(len(PARTS)))
        snapshot = reader.snapshot()
        assert reader.problem is None
        counters = counters_of(snapshot.value)
        assert sum(counters) == snapshot.version - 1
        assert all(a >= max(b, c) for a, b, c in zip(counters, last, known, strict=True))
        seen[snapshot.version] = last = counters
        try:
            before = reader.at(max(snapshot.version - 1, 1))
            seen[before.version] = counters_of(before.value)
            assert sum(seen[before.version]) == before.version - 1
        except VersionGoneError:
            pass  # others published meanwhile
        done[SEEN + me] += 1
    link.send(seen)


@pytest.fixture
def people(name: str) -> Iterator[list[Child]]:
    """Children, two readers first, that end with the test; the store is there, with all counters at 0."""
    first = {part: value_of(part, 0) for part in PARTS}
    children: list[Child] = []
    with Writer(name, codec=CODEC, initial=first, retain=RETAIN):
        yield children
    for child in children:
        child.end()


def start(people: list[Child], body: Any, *args: Any) -> Child:
    child = Child(body, *args)
    people.append(child)
    assert child.recv() == "ready"
    return child


def agree(readers: list[Child], done: Words) -> int:
    """End the readers; what they saw of a version must be the same. -> how many versions were seen"""
    done[STOP] = 1
    everything: dict[int, tuple[int, ...]] = {}
    for reader in readers:
        seen = reader.recv()
        reader.done()
        assert all(everything.setdefault(version, counters) == counters for version, counters in seen.items())
    ordered = [counters for _, counters in sorted(everything.items())]
    for old, new in itertools.pairwise(ordered):
        assert all(a <= b for a, b in zip(old, new, strict=True))
    return len(everything)


def leaves_what_is_retained(name: str) -> None:
    with Writer(name, codec=CODEC) as writer:
        writer.reclaim()
        current = writer.version
        assert processes.versions_of(name) == [current - behind for behind in range(RETAIN + 1)]
        processes.assert_at_rest(name)


def test_parts_published_at_the_same_time_are_all_kept(name: str, people: list[Child]) -> None:
    """Four processes publish a part each: every publish is a version, and each differs in that part alone."""
    times, done = 40, Words(STOP + 1)
    readers = [start(people, _read, name, me, done) for me in range(2)]
    writers = [start(people, _write, name, k, times, done) for k in range(len(PARTS))]
    for writer in writers:
        writer.send("go")
    for writer in writers:
        writer.done()
    assert agree(readers, done) > 10
    final = Reader(name, codec=CODEC).snapshot()
    assert final.version == 1 + times * len(PARTS)
    assert counters_of(final.value) == (times,) * len(PARTS)
    del final
    leaves_what_is_retained(name)


def test_a_writer_killed_in_publish_parts_loses_no_part_of_others(name: str, people: list[Child]) -> None:
    """Its own part is the old one or the new one; the next writer goes on, and nothing is left behind."""
    done, dice = Words(STOP + 1), random.Random(5)
    readers = [start(people, _read, name, me, done) for me in range(2)]
    writers = [start(people, _write, name, k, 1 << 30, done) for k in range(len(PARTS))]
    for writer in writers:
        writer.send("go")
    for kill in range(24):
        k = kill % len(PARTS)
        # at least one publish after its start, then a random moment of the others' work
        until = done[k] + 1, done[SEEN] + 1
        processes.until(lambda k=k, until=until: done[k] >= until[0] and done[SEEN] >= until[1], "all go on")
        other = (k + dice.randrange(1, len(PARTS))) % len(PARTS)
        beat = done[other] + dice.randrange(2)
        processes.until(lambda other=other, beat=beat: done[other] >= beat, "the others go on")
        writers[k].kill()
        known = done[k]
        counters = counters_of(Reader(name, codec=CODEC).get())
        assert counters[k] - known in (0, 1)  # published, and killed before it could say so
        if kill == 12:  # a reader, too, whatever it holds
            readers.pop().kill()
        writers[k] = start(people, _write, name, k, 1 << 30, done)
        writers[k].send("go")
    agree(readers, done)
    for writer in writers:
        writer.done()
    final = Reader(name, codec=CODEC).snapshot()
    assert sum(counters_of(final.value)) == final.version - 1
    # the last to be killed may have published without saying so, and its successor may have had no time to
    assert all(n - done[k] in (0, 1) for k, n in enumerate(counters_of(final.value)))
    del final
    leaves_what_is_retained(name)
