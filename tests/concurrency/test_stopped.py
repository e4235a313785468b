"""Processes that are stopped: nobody takes them for dead, and nobody waits for them but who must."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import processes
import pytest
from processes import Child, Link, value_of, version_in

from shmcow import Raw, Reader, Writer, WriterBusyError, describe

GENERATIONS = 64


def _holding(link: Link, name: str, raw: bool) -> None:
    """Hold the current version; then say what it is and what get() returns, as often as asked."""
    reader: Reader[Any] = Reader(name, codec=Raw()) if raw else Reader(name)
    snapshot = reader.snapshot().hold()
    view = snapshot.data
    before = bytes(view)
    link.send(snapshot.version)
    while link.recv() == "look":
        own = bytes(view) == before == bytes(reader.at(snapshot.version).data)
        link.send((own, snapshot.version, reader.snapshot().version, bytes(reader.get()) if raw else reader.get()))
    del view
    snapshot.release()
    link.send(reader.snapshot().version)


def test_stopped_reader_wakes_to_its_own_version_and_moves_on(name: str, spawn: Callable[..., Child]) -> None:
    """Publishing goes on while a holder is stopped; it wakes to its own whole version, and the next get() is new."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader = spawn(_holding, name, False)
    assert reader.recv() == 1
    reader.stop()
    for version in range(2, 302):
        assert writer.publish(value_of(version)) == version
    assert processes.versions_of(name) == [301, 1]
    assert processes.held_by(reader.pid, name) == {1}
    with pytest.raises(TimeoutError):
        writer.wait_unused(1, timeout=0)
    reader.go_on()
    own, held, now, value = reader.ask("look")
    assert (own, held, now, version_in(value)) == (True, 1, 301, 301)
    assert reader.ask("release") == 301
    writer.wait_unused(1, timeout=processes.WATCHDOG)
    reader.done()
    writer.reclaim()
    assert processes.versions_of(name) == [301]
    processes.assert_at_rest(name)
    writer.destroy()


@pytest.mark.parametrize("raw", [False, True])
def test_table_filled_by_stopped_readers_stops_nobody(name: str, spawn: Callable[..., Child], raw: bool) -> None:
    """With every generation held by a stopped process, publishing goes on, and each holder still reads its own data."""

    def payload(version: int) -> Any:
        return version.to_bytes(8, "big") * 600 if raw else value_of(version)

    writer: Writer[Any] = Writer(name, codec=Raw(), retain=0) if raw else Writer(name, retain=0)
    readers = []
    for version in range(1, GENERATIONS + 1):
        assert writer.publish(payload(version)) == version
        readers.append(spawn(_holding, name, raw))
        assert readers[-1].recv() == version
        readers[-1].stop()
    assert processes.versions_of(name) == list(range(GENERATIONS, 0, -1))
    last = GENERATIONS + 40
    for version in range(GENERATIONS + 1, last + 1):
        assert writer.publish(payload(version)) == version
    processes.assert_at_rest(name)
    counters = describe(name).counters
    print(f"{last} versions with {GENERATIONS} of them held by stopped readers: {counters}")
    # The current version and the one being built need a generation each: two lost their names, and no more.
    assert counters["forced"] == 2
    assert processes.versions_of(name) == [last, *range(GENERATIONS, 2, -1)]
    for version, reader in enumerate(readers, 1):
        reader.go_on()
        own, held, now, value = reader.ask("look")
        assert (own, held, now) == (True, version, last)
        assert value == payload(last)
    for reader in readers:
        assert reader.ask("release") == last
        reader.done()
    writer.reclaim()
    assert processes.versions_of(name) == [last]
    processes.assert_at_rest(name)
    writer.destroy()


def test_table_of_held_versions_gives_up_the_oldest_of_them(name: str, spawn: Callable[..., Child]) -> None:
    """When each new version is held by a stopped reader too, the oldest versions lose their names, one by one."""
    writer = Writer(name, retain=0)
    readers = []
    extra = 16
    for version in range(1, GENERATIONS + extra + 1):
        assert writer.publish(value_of(version)) == version
        readers.append(spawn(_holding, name, False))
        assert readers[-1].recv() == version
        readers[-1].stop()
    assert processes.versions_of(name) == list(range(GENERATIONS + extra, extra, -1))
    assert describe(name).counters["forced"] == extra
    processes.assert_at_rest(name)
    for version, reader in enumerate(readers, 1):
        reader.go_on()
        own, held, now, _ = reader.ask("look")
        assert (own, held, now) == (True, version, GENERATIONS + extra)
        reader.end()
    writer.reclaim()
    assert processes.versions_of(name) == [GENERATIONS + extra]
    writer.destroy()


def _stuck(link: Link, name: str) -> None:
    """Take the writer lock in update(), tell, and wait for a word before publishing."""
    writer = Writer(name)

    def change(old: Any) -> Any:
        link.send(os.getpid())
        link.recv()
        return value_of(old["version"] + 1)

    link.send(writer.update(change))


def test_stopped_writer_keeps_the_lock_and_readers_go_on(name: str, spawn: Callable[..., Child]) -> None:
    """While a stopped process has the writer lock, readers read, new ones attach, and writers are told its pid."""
    writer = Writer(name, initial=value_of(1), lock_timeout=0.05)
    reader = Reader(name)
    stuck = spawn(_stuck, name)
    assert stuck.recv() == stuck.pid
    stuck.stop()
    assert version_in(reader.get()) == version_in(Reader(name).get()) == 1
    for attempt in (
        lambda: writer.publish(value_of(2)),
        lambda: writer.update(lambda _: value_of(2)),
        writer.rollback,
        writer.reclaim,
        writer.destroy,
        lambda: Writer(name, lock_timeout=0.05).publish(value_of(2)),
    ):
        with pytest.raises(WriterBusyError, match=rf"pid {stuck.pid} \(.*stopped\)"):
            attempt()
    with pytest.raises(WriterBusyError):
        Writer(name, retain=7, lock_timeout=0)  # it wants to change a setting, which needs the lock
    assert reader.snapshot().version == 1
    stuck.go_on()
    assert stuck.ask("publish") == 2
    stuck.done()
    assert version_in(reader.get()) == 2
    assert writer.publish(value_of(3)) == 3
    assert version_in(reader.get()) == 3
    processes.assert_at_rest(name)
    writer.destroy()


def test_killed_writer_leaves_the_lock_free_before_it_is_reaped(name: str, spawn: Callable[..., Child]) -> None:
    """A killed holder of the writer lock, still a zombie, keeps nobody waiting."""
    writer = Writer(name, initial=value_of(1), lock_timeout=0)
    stuck = spawn(_stuck, name)
    assert stuck.recv() == stuck.pid
    with pytest.raises(WriterBusyError):
        writer.publish(value_of(2))
    stuck.kill()
    assert processes.state_of(stuck.pid) == "Z"
    assert writer.publish(value_of(2)) == 2
    writer.destroy()
