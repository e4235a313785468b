"""Objects removed or moved from outside (rm, mv, a log-out clean-up): readers find the new writer by themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import SHM, Child, Link, objects_of, value_of, version_in

from shmcow import Reader, ShmcowError, StoreDestroyedError, Writer, describe

FIRST_OF_NEW = 1000  # what a new writer publishes carries a number from here on


def _only_get(link: Link, name: str) -> None:
    """Call get(), and nothing else, until the value asked for is there."""
    reader = Reader(name)
    link.send(version_in(reader.get()))
    while (wanted := link.recv()) != 0:
        last, gets = 0, 0
        while last != wanted:
            last = version_in(reader.get())
            assert last > 0
            gets += 1
            assert gets < 100_000_000
        link.send(gets)


def _of(store: str, what: str) -> list[Path]:
    """Return the objects of a store: "header", "lock", "holds", "data" or "everything"."""

    def kind(name: str) -> str:
        tail = name.rpartition(".")[2]
        return "header" if name == f"shmcow.{store}" else "data" if tail.isdigit() else tail

    return [SHM / name for name in sorted(objects_of(store)) if what in ("everything", kind(name))]


def _remove(paths: list[Path], how: str) -> list[Path]:
    """Unlink files, or move them away; returns where they are now."""
    moved = []
    for path in paths:
        if how == "rm":
            path.unlink()
        else:
            target = path.with_name(f"moved-{os.getpid()}-{path.name}")
            path.rename(target)
            moved.append(target)
    return moved


@pytest.fixture
def moved() -> Any:
    """Where moved files are noted, to be removed afterwards."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


CASES = [(what, how) for what in ("header", "holds", "lock", "data", "everything") for how in ("rm", "mv")]


@pytest.mark.parametrize(("what", "how"), CASES)
def test_readers_that_only_call_get_find_the_new_writer(
    name: str, spawn: Callable[..., Child], moved: list[Path], what: str, how: str
) -> None:
    """Whatever is removed, a new writer is started and publishes: all readers come to its value by get() alone."""
    first = Writer(name, initial=value_of(1))
    first.publish(value_of(2))
    readers = [spawn(_only_get, name) for _ in range(3)]
    assert [reader.recv() for reader in readers] == [2, 2, 2]
    first.close()
    moved += _remove(_of(name, what), how)
    second = Writer(name)
    # Header gone, or the lock (which cannot be made anew): a new store. Otherwise the old one goes on.
    assert second.created == (what in ("header", "lock", "everything"))
    for number in (FIRST_OF_NEW, FIRST_OF_NEW + 1):
        second.publish(value_of(number))
        for reader in readers:
            reader.send(number)
        print(f"{what} {how}: gets until the new value was seen: {[reader.recv() for reader in readers]}")
    for reader in readers:
        reader.send(0)
        reader.done()
    if what != "data":
        processes.assert_at_rest(name)
    second.destroy()
    assert objects_of(name) == set()


@pytest.mark.parametrize(("what", "how"), CASES)
def test_old_writer_refuses_or_goes_on(
    name: str, spawn: Callable[..., Child], moved: list[Path], what: str, how: str
) -> None:
    """update, rollback and expected= of a writer that lived through the removal refuse; publish creates anew."""
    writer = Writer(name, initial=value_of(1))
    writer.publish(value_of(2))
    reader = spawn(_only_get, name)
    assert reader.recv() == 2
    moved += _remove(_of(name, what), how)
    gone = what in ("header", "lock", "everything")
    careful: list[Callable[[], Any]] = [
        lambda: writer.update(lambda _: value_of(3)),
        writer.rollback,
        lambda: writer.publish(value_of(3), expected=2),
        lambda: writer.swap(value_of(3)),
        lambda: writer.patch(version=3),
        writer.reclaim,
    ]
    if gone:
        for attempt in careful:
            with pytest.raises(StoreDestroyedError):
                attempt()
    elif what == "holds":
        assert writer.update(lambda _: value_of(3)) == 3
        assert writer.rollback() == 4
        assert writer.publish(value_of(5), expected=4) == 5
    else:
        for attempt in careful[:2]:
            with pytest.raises(ShmcowError, match="segment"):
                attempt()
    writer.publish(value_of(FIRST_OF_NEW))
    assert writer.snapshot().value == value_of(FIRST_OF_NEW)
    reader.send(FIRST_OF_NEW)
    reader.recv()
    assert writer.update(lambda old: value_of(old["version"] + 1)) == describe(name).version
    reader.send(FIRST_OF_NEW + 1)
    reader.recv()
    reader.send(0)
    reader.done()
    writer.destroy()
    assert objects_of(name) == set(), "destroy() leaves what an earlier store of this name was"


@pytest.mark.parametrize("what", ["header", "everything"])
def test_old_writer_refuses_when_another_made_the_store_anew(name: str, what: str) -> None:
    """A writer whose store was removed and made anew by another refuses careful changes, and publishes in the new."""
    old = Writer(name, initial=value_of(1))
    old.publish(value_of(2))
    _remove(_of(name, what), "rm")
    new = Writer(name, initial=value_of(FIRST_OF_NEW))
    for attempt in (
        lambda: old.update(lambda _: value_of(3)),
        old.rollback,
        lambda: old.publish(value_of(3), expected=2),
        lambda: old.publish(value_of(3), expected=1),
    ):
        with pytest.raises(StoreDestroyedError):
            attempt()
    assert version_in(Reader(name).get()) == FIRST_OF_NEW
    assert old.publish(value_of(FIRST_OF_NEW + 1)) == 2
    assert old.update(lambda value: value_of(value["version"] + 1)) == 3
    assert version_in(new.snapshot().value) == FIRST_OF_NEW + 2
    new.destroy()
    assert objects_of(name) == set()


def test_holder_keeps_its_version_when_the_holds_file_is_made_anew(name: str, spawn: Callable[..., Child]) -> None:
    """After rm of the holds file and a new one, a reader's next look marks what it holds in the new file."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader = Reader(name)
    snap = reader.snapshot().hold()
    data = bytes(snap.data)
    _remove(_of(name, "holds"), "rm")
    child = spawn(_publish_one, name, 2)  # makes the file anew
    child.done()
    assert version_in(reader.get()) == 2
    assert bytes(snap.data) == data
    assert processes.held_by(os.getpid(), name) == {1}
    snap2 = reader.snapshot().hold()
    for version in range(3, 10):
        writer.publish(value_of(version))
    assert 2 in processes.versions_of(name)
    assert version_in(snap2.value) == 2
    assert bytes(snap.data) == data
    writer.destroy()


def _publish_one(_: Link, name: str, version: int) -> None:
    Writer(name).publish(value_of(version))


def test_reader_of_a_removed_store_keeps_the_last_value_and_says_so(name: str) -> None:
    """With nobody making it anew, get() goes on with the last good value, and finds out by itself in the end."""
    writer = Writer(name, initial=value_of(1))
    reader = Reader(name)
    assert version_in(reader.get()) == 1
    writer.close()
    _remove(_of(name, "everything"), "rm")
    for _ in range(100_000):
        assert version_in(reader.get()) == 1
        if reader.problem is not None:
            break
    assert isinstance(reader.problem, StoreDestroyedError)
    writer = Writer(name, initial=value_of(7))
    for _ in range(100_000):
        if version_in(reader.get()) == 7:
            break
    assert version_in(reader.get()) == 7
    assert reader.problem is None
    writer.destroy()
