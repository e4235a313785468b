"""A lock file or header that is lost under living writers: no two write at once, no acknowledged update is lost."""

from __future__ import annotations

import collections
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import SHM, Child, Link, objects_of, value_of, version_in

import shmcow
from shmcow import Reader, ShmcowError, StoreDestroyedError, Writer, WriterBusyError, describe, segments


def lock_of(name: str) -> Path:
    return SHM / f"shmcow.{name}.{describe(name).epoch}.lock"


def header_of(name: str) -> Path:
    return SHM / f"shmcow.{name}"


# ---- the lock file is removed while its holder works ----


def publish_plain(name: str) -> Writer[Any]:
    writer = Writer(name)  # ends the old store, and creates a new one
    writer.publish({"C": 1})
    return writer


def publish_initial(name: str) -> Writer[Any]:
    return Writer(name, initial={"C": 1})


@pytest.mark.parametrize("make_anew", [publish_plain, publish_initial])
def test_holder_of_a_removed_lock_cannot_flip(name: str, make_anew: Callable[[str], Writer[Any]]) -> None:
    """A holds the lock, which is removed; C and D make the store anew and update it: A's update fails, theirs stay."""
    a = Writer(name, initial={"start": 0})
    d = Writer(name)
    others: list[Writer[Any]] = []

    def slow(old: dict[str, int]) -> dict[str, int]:
        lock_of(name).unlink()
        others.append(make_anew(name))
        d.publish({"C": 1, "D": 1})
        others[0].update(lambda now: {**now, "C again": 1})
        return {**old, "A": 1}

    epoch = describe(name).epoch
    with pytest.raises(StoreDestroyedError):
        a.update(slow)
    assert describe(name).epoch != epoch
    assert Reader(name).get() == {"C": 1, "D": 1, "C again": 1}
    with pytest.raises(StoreDestroyedError):
        a.update(lambda old: {**old, "A": 1})
    a.publish({"A": 1})
    assert Reader(name).get() == {"A": 1}
    processes.assert_at_rest(name)


@pytest.fixture
def at_new_lock() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Let something happen just after a writer made a lost lock file anew, and before it takes the lock."""
    with pytest.MonkeyPatch.context() as monkeypatch:

        def plan(action: Callable[[], Any]) -> None:
            real = segments.create_empty
            done: list[bool] = []

            def create_empty(store: str, epoch: bytes, what: str, *how: int) -> bool:
                made = real(store, epoch, what, *how)
                if what == "lock" and made and not done:
                    done.append(True)
                    action()
                return made

            monkeypatch.setattr(segments, "create_empty", create_empty)

        yield plan


def test_two_locks_never_acknowledge_two_updates(name: str, at_new_lock: Callable[[Callable[[], Any]], None]) -> None:
    """A holds the removed lock, C makes it anew, D takes that one first: an acknowledged update of D survives A's."""
    a = Writer(name, initial={"start": 0})
    c, d = Writer(name, lock_timeout=0), Writer(name, lock_timeout=0)
    acknowledged: set[str] = set()
    entered: list[AbstractContextManager[Any]] = []

    def d_comes_first() -> None:
        editing = d.edit()
        try:
            editing.__enter__()["D"] = 1
        except ShmcowError:
            return  # it knows already that this store has ended
        entered.append(editing)

    def slow(old: dict[str, int]) -> dict[str, int]:
        lock_of(name).unlink()
        at_new_lock(d_comes_first)
        try:
            c.publish({"C": 1})
            acknowledged.add("C")
        except WriterBusyError:
            pass
        try:
            for editing in entered:
                editing.__exit__(None, None, None)
                acknowledged.add("D")
        except ShmcowError:
            pass
        return {**old, "A": 1}

    try:
        a.update(slow)
        acknowledged.add("A")
    except ShmcowError:
        pass
    assert acknowledged
    assert set(Reader(name).get()) >= acknowledged
    processes.assert_at_rest(name)


def _updating(link: Link, name: str, me: int, n: int) -> None:
    """Add one entry at a time, and note which version of which epoch it became and what it had before."""
    rng = random.Random(me)
    link.send("ready")
    link.recv()
    writer: Writer[Any] | None = None
    done: list[tuple[bytes, int, frozenset[str]]] = []
    refused: collections.Counter[str] = collections.Counter()
    new: list[dict[str, int]] = []
    k = 0
    while len(done) < n:
        k += 1

        def add(old: dict[str, int], k: int = k) -> dict[str, int]:
            entries = old if len(old) < 400 else {}
            new.append({**entries, f"{me}-{k}": k})
            return new[-1]

        try:
            if writer is None or rng.random() < 0.05:
                writer = Writer(name, initial={}, lock_timeout=60)
            version = writer.update(add)
            done.append((writer._store.epoch, version, frozenset(new[-1])))
        except (StoreDestroyedError, WriterBusyError, shmcow.NotPublishedError) as exc:
            refused[type(exc).__name__] += 1
            writer = None
    link.send((done, refused))


def _vandal(link: Link, name: str) -> None:
    """Remove the lock file, over and over."""
    rng = random.Random(7)
    removed = 0
    while not link.poll():
        for entry in os.listdir(SHM):
            if entry.startswith(f"shmcow.{name}.") and entry.endswith(".lock"):
                try:
                    (SHM / entry).unlink()
                    removed += 1
                except FileNotFoundError:
                    pass
        for _ in range(rng.randrange(400)):
            os.getpid()
    link.send(removed)


def test_no_acknowledged_update_is_lost_while_the_lock_is_removed(name: str, spawn: Callable[..., Child]) -> None:
    """Four writers update while somebody removes the lock file again and again: in each epoch, every update builds on
    all that were acknowledged before it."""
    n = 100
    writers = [spawn(_updating, name, me, n) for me in range(4)]
    for writer in writers:
        writer.recv()
    vandal = spawn(_vandal, name)
    for writer in writers:
        writer.send("go")
    epochs: dict[bytes, dict[int, frozenset[str]]] = collections.defaultdict(dict)
    refused: collections.Counter[str] = collections.Counter()
    for writer in writers:
        done, how = writer.recv()
        refused.update(how)
        for epoch, version, entries in done:
            assert version not in epochs[epoch], "two writers were told the same version"
            epochs[epoch][version] = entries
    vandal.send("end")
    removed = vandal.recv()
    for child in [*writers, vandal]:
        child.done()
    lost = 0
    for updates in epochs.values():
        ordered = [updates[version] for version in sorted(updates)]
        for before, after in itertools.pairwise(ordered):
            lost += not (before <= after or len(before) >= 400)
    print(
        f"{4 * n} updates in {len(epochs)} epochs; lock removed {removed} times; refused: {dict(refused)}; lost: {lost}"
    )
    assert lost == 0
    assert removed > 0
    assert len(epochs) > 1
    Writer(name, initial={})
    processes.assert_at_rest(name)


# ---- the header is replaced by its own copy ----


def _replace_header(name: str) -> None:
    """Let the header's name lead to a copy of it: the same epoch, another file."""
    header = header_of(name)
    copy = header.with_name(f"copy-{os.getpid()}-{header.name}")
    shutil.copy2(header, copy)
    os.chown(copy, header.stat().st_uid, header.stat().st_gid)
    copy.rename(header)


def _at_a_copied_header(link: Link, name: str, who: str) -> None:
    """Read and write before and after the header was replaced, in a process that can be killed if it spins."""
    reader = Reader(name)
    writer = Writer(name)
    link.send(version_in(reader.get()))
    link.recv()
    if who == "reader":
        reader.refresh()
        link.send(version_in(reader.get()))
    elif who == "new reader":
        link.send(version_in(Reader(name).get()))
    elif who == "writer":
        with pytest.raises(StoreDestroyedError):
            writer.update(lambda old: old)
        link.send(writer.publish(value_of(2)))
    elif who == "new writer":
        link.send(Writer(name).publish(value_of(2)))
    elif who == "destroyer":
        shmcow.destroy(name)
        link.send(sorted(objects_of(name)))


@pytest.mark.parametrize(
    ("who", "answer"), [("reader", 1), ("new reader", 1), ("writer", 2), ("new writer", 2), ("destroyer", [])]
)
def test_header_replaced_by_its_copy_is_attached_to(
    name: str, spawn: Callable[..., Child], who: str, answer: Any
) -> None:
    """A header that was replaced by its own copy (same epoch, other file) is attached to anew, by all, without end."""
    Writer(name, initial=value_of(1)).close()
    child = spawn(_at_a_copied_header, name, who)
    assert child.recv() == 1
    _replace_header(name)
    child.send("go")
    assert child.recv() == answer
    child.done()
    if who != "destroyer":
        assert version_in(Reader(name).get()) == (2 if "writer" in who else 1)
        processes.assert_at_rest(name)


def _following(link: Link, name: str) -> None:
    """Only call get(), before and after the header was replaced; in a process that can be killed if it spins."""
    writer = Writer(name, initial=value_of(1))
    reader = Reader(name)
    assert version_in(reader.get()) == 1
    _replace_header(name)
    writer.publish(value_of(2))
    for _ in range(100_000):
        if version_in(reader.get()) == 2:
            break
    link.send((version_in(reader.get()), reader.problem))


def test_reader_follows_a_copied_header_by_get_alone(name: str, spawn: Callable[..., Child]) -> None:
    """A reader that only calls get() comes to what is published through the copy."""
    child = spawn(_following, name)
    assert child.recv() == (2, None)
    child.done()


# ---- descriptors are closed behind a Writer's back ----


def _descriptors(what: str = "") -> list[int]:
    """Return this process's descriptors on the lock, the holds, or all files of stores."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{SHM}/") and target.endswith(what):
            found.append(int(number))
    return sorted(found)


def _close(numbers: list[int]) -> None:
    """Close descriptors behind everybody's back, as a daemonizer does."""
    for number in numbers:
        os.closerange(number, number + 1)


@pytest.mark.parametrize("first_comes_back", ["as the holder", "as the other"])
def test_writers_exclude_each_other_after_their_descriptors_were_closed(name: str, first_comes_back: str) -> None:
    """A Writer's lock gets the number that another's had: neither publishes while the other has its turn."""
    first = Writer(name, initial={"n": 0}, lock_timeout=0)
    second = Writer(name, lock_timeout=0)
    old = _descriptors(".lock")
    assert len(old) == 2
    _close(old)
    second.publish({"n": 0})
    assert _descriptors(".lock") == old[:1], "the second's lock has the number that the first's had"
    pair = (first, second) if first_comes_back == "as the holder" else (second, first)
    for holder, other in (pair, pair[::-1], pair):
        with holder.edit() as draft:
            draft["n"] += 1
            with pytest.raises(WriterBusyError):
                other.publish({"n": -1})
            with pytest.raises(WriterBusyError):
                other.update(lambda old: {"n": old["n"] + 100})
    assert Reader(name).get() == {"n": 3}
    assert first.version == 5


def test_writer_that_lost_its_lock_in_mid_turn_publishes_nothing(name: str) -> None:
    """Descriptors are closed within a turn, and another Writer publishes meanwhile: the first one's turn fails."""
    first = Writer(name, initial={"n": 0}, lock_timeout=0)

    def closing(_: dict[str, int]) -> dict[str, int]:
        _close(_descriptors())
        second = Writer(name, lock_timeout=0)
        second.publish({"n": 2})
        return {"n": 1}

    with pytest.raises((ShmcowError, RuntimeError)):
        first.update(closing)
    assert Reader(name).get() == {"n": 2}
    assert first.publish({"n": 3}) == 3
    processes.assert_at_rest(name)


def test_holds_survive_descriptors_that_were_closed_and_used_again(name: str) -> None:
    """A reader marks anew what it holds, although a Writer's descriptor got the number of the one that was closed."""
    first = Writer(name, initial=value_of(1), retain=2)
    before = _descriptors(".holds")
    reader = Reader(name)
    snap = reader.snapshot().hold()
    [claim] = set(_descriptors(".holds")) - set(before)
    second = Writer(name, lock_timeout=0)
    [*_, last] = _descriptors(".holds")
    assert last > claim
    _close([claim, last])
    second.publish(value_of(2))
    assert claim in _descriptors(".holds"), "the Writer's descriptor has the number that the reader's had"
    reader.refresh()
    assert processes.held_by(os.getpid(), name) == {1}
    for version in range(3, 9):
        (first if version % 2 else second).publish(value_of(version))
    assert processes.versions_of(name) == [8, 7, 6, 1]
    assert version_in(reader.at(1).value) == 1
    snap.release()
    second.reclaim()
    assert processes.versions_of(name) == [8, 7, 6]


# ---- the header is removed under a living writer ----


@pytest.mark.parametrize("who", ["living", "living, another attached", "new"])
def test_publish_after_the_header_was_removed_leaves_nothing_of_the_old_store(name: str, who: str) -> None:
    """After rm of the header, whoever publishes creates the store anew, and no data name of the old epoch is left."""
    writer = Writer(name, initial=value_of(1), retain=3)
    for version in range(2, 6):
        writer.publish(value_of(version))
    other = Writer(name)
    old = describe(name).epoch
    assert len(objects_of(name)) == 3 + 4
    header_of(name).unlink()
    publisher = {"living": writer, "living, another attached": other}.get(who) or Writer(name)
    assert publisher.publish(value_of(6)) == 1
    assert not [entry for entry in objects_of(name) if old in entry]
    processes.assert_at_rest(name)
    assert writer.publish(value_of(7)) == 2
    assert other.publish(value_of(8)) == 3
    assert version_in(Reader(name).get()) == 8
    processes.assert_at_rest(name)


def test_sweep_of_a_replaced_store_leaves_its_successor_alone(name: str, spawn: Callable[..., Child]) -> None:
    """A writer whose lock file was removed in mid-turn sweeps nothing of the store that took its place."""
    writer = Writer(name, initial=value_of(1))

    def successor(link: Link) -> None:
        link.send(Writer(name).publish(value_of(1)))

    with writer._turn(recreate=False) as turn:
        (SHM / f"shmcow.{name}.{turn.store.epoch.hex()}.lock").unlink()
        child = spawn(successor)
        assert child.recv() == 1
        child.done()
        assert turn.sweep() == 0
    assert version_in(Reader(name).get()) == 1
    writer.publish(value_of(2))
    assert version_in(Reader(name).get()) == 2
    processes.assert_at_rest(name)
    shmcow.destroy(name)
