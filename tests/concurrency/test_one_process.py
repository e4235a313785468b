"""Writer, Reader and Snapshot of one store in one process: threads, hooks, finalizers and signal handlers."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import msgspec
import processes
import pytest
from processes import value_of, version_in

from shmcow import (
    DecodeError,
    MsgPack,
    NotPublishedError,
    Raw,
    Reader,
    Snapshot,
    VersionGoneError,
    Writer,
    WriterBusyError,
    describe,
)

THREADS = 16
PUBLISHES = 1000
THREADED_PUBLISHES = 250


@pytest.fixture
def hectic() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_held_snapshot_survives_a_thousand_publishes(name: str) -> None:
    """With retain=0 a held version can be opened by number all the time, and is gone after release and a publish."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader = Reader(name)
    snap = reader.snapshot().hold()
    data = bytes(snap.data)
    for version in range(2, PUBLISHES + 2):
        assert writer.publish(value_of(version)) == version
        assert reader.at(1) is snap
        assert version_in(reader.get()) == version
        if version % 50 == 0:
            assert version_in(Reader(name).at(1).value) == 1
            assert bytes(snap.data) == data
            assert processes.versions_of(name) == [version, 1]
    with pytest.raises(VersionGoneError):
        reader.at(2)
    snap.release()
    assert not snap.held
    writer.publish(value_of(PUBLISHES + 2))
    with pytest.raises(VersionGoneError):
        reader.at(1)
    with pytest.raises(VersionGoneError):
        snap.hold()
    assert version_in(snap.value) == 1
    assert processes.versions_of(name) == [PUBLISHES + 2]
    processes.assert_at_rest(name)
    writer.destroy()


def test_holds_are_counted(name: str) -> None:
    """Two holds and a view of one version: it stays until the last of them goes, in whatever order."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader, other = Reader(name), Reader(name)
    snap, twin = reader.snapshot(), other.snapshot()
    snap.hold()
    twin.hold()
    view = snap.data
    writer.publish(value_of(2))
    for let_go in (snap.release, twin.release, view.release):
        assert processes.held_by(os.getpid(), name) == {1}
        assert writer.reclaim() == 0
        let_go()
    del view
    assert processes.held_by(os.getpid(), name) == set()
    assert writer.reclaim() == 1
    writer.destroy()


def test_raw_view_holds_its_version_as_long_as_it_lives(name: str) -> None:
    """What looks into shared memory keeps its version, without anybody asking for it."""
    writer: Writer[Any] = Writer(name, codec=Raw(), initial=b"one" * 1000, retain=0)
    reader: Reader[Any] = Reader(name, codec=Raw())
    view = reader.get()[10:20]
    for n in range(2, 50):
        writer.publish(b"%d" % n * 1000)
        reader.get()
    assert bytes(view) == (b"one" * 1000)[10:20]
    writer.reclaim()  # 48 was held when 49 was published
    assert processes.versions_of(name) == [49, 1]
    del view
    writer.publish(b"last")
    reader.get()
    writer.reclaim()
    assert processes.versions_of(name) == [50]
    writer.destroy()


def test_version_that_cannot_be_decoded_is_not_held(name: str) -> None:
    """A reader that cannot use a version lets go of it: the error that it remembers keeps nothing."""
    writer = Writer(name, initial={"a": 1}, retain=0)
    reader = Reader(name, type=dict[str, int])
    assert reader.get() == {"a": 1}
    writer.publish({"a": "text"})
    assert reader.get() == {"a": 1}
    assert isinstance(reader.problem, DecodeError)
    assert processes.held_by(os.getpid(), name) == set()
    writer.publish({"a": 3})
    assert processes.versions_of(name) == [3]
    assert reader.get() == {"a": 3}
    assert reader.problem is None
    writer.destroy()


# ---- threads ----


class _Sightings:
    """What threads saw: per thread in order, and over all one object for each version."""

    def __init__(self) -> None:
        self.back = 0
        self.torn = 0
        self.twins = 0
        self.by_version: dict[int, Any] = {}
        self.stop = False
        self.errors: list[BaseException] = []

    def look(self, get: Any) -> None:
        last = 0
        try:
            while not self.stop:
                value = get()
                version = version_in(value)
                self.torn += version == 0
                self.back += version < last
                self.twins += self.by_version.setdefault(version, value) is not value
                last = version
        except BaseException as exc:
            self.errors.append(exc)


def _with_threads(gets: list[Any], work: Any) -> _Sightings:
    seen = _Sightings()
    threads = [threading.Thread(target=seen.look, args=(get,)) for get in gets]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        seen.stop = True
        for thread in threads:
            thread.join(processes.WATCHDOG)
    assert not seen.errors, seen.errors
    return seen


@pytest.mark.usefixtures("hectic")
def test_sixteen_threads_share_one_object_for_each_version(name: str) -> None:
    """Sixteen threads on one Reader during publishes: versions never go back, and each is one object for all."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader = Reader(name)

    def work() -> None:
        for version in range(2, THREADED_PUBLISHES + 1):
            assert writer.publish(value_of(version)) == version
            assert version_in(reader.get()) == version  # the publisher sees its own

    seen = _with_threads([reader.get] * THREADS, work)
    print(f"{THREADS} threads saw {len(seen.by_version)} of {THREADED_PUBLISHES} versions")
    assert (seen.back, seen.torn, seen.twins) == (0, 0, 0)
    assert len(seen.by_version) > 1
    writer.destroy()


@pytest.mark.usefixtures("hectic")
def test_threads_that_get_and_open_by_number_share_one_object(name: str) -> None:
    """The object that at() gives is the one that get() gives, also when both are first at the same moment."""
    writer = Writer(name, initial=value_of(1), retain=4)
    reader = Reader(name)
    different, errors = [], []
    barrier = threading.Barrier(THREADS)
    kept: list[list[Snapshot[Any]]] = [[] for _ in range(THREADS)]

    def look(k: int) -> None:
        try:
            for version in range(1, 151):
                if barrier.wait(processes.WATCHDOG) == 0 and version > 1:
                    writer.publish(value_of(version))
                barrier.wait(processes.WATCHDOG)
                kept[k].append(reader.at(version) if k % 2 else reader.snapshot())
        except BaseException as exc:
            errors.append(exc)
            barrier.abort()

    threads = [threading.Thread(target=look, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(processes.WATCHDOG)
    assert not errors
    for same in zip(*kept, strict=True):
        if len({id(snapshot) for snapshot in same}) != 1 or len({id(snapshot.value) for snapshot in same}) != 1:
            different.append(same[0].version)
    assert different == []
    writer.destroy()


@pytest.mark.usefixtures("hectic")
def test_threads_that_attach_at_once_never_go_back(name: str) -> None:
    """Threads whose first get() is at the same moment, while versions are published, attach to one store, forwards."""
    writer = Writer(name, initial=value_of(1), retain=0)
    for _ in range(6):
        reader, others = Reader(name), [Reader(name) for _ in range(3)]
        writer.close()
        gc.collect()  # nobody is attached now
        writer = Writer(name)
        start = writer.version

        def work(writer: Writer[Any] = writer, start: int = start) -> None:
            for version in range(start + 1, start + 11):
                writer.publish(value_of(version))

        if start == 1:
            writer.publish(value_of(2))
        seen = _with_threads([reader.get] * (THREADS - 3) + [other.get for other in others], work)
        assert (seen.back, seen.torn) == (0, 0)
        # (a thread may come to its first turn after the last version: its reader has nothing then)
        serials = {cached[0] for r in (reader, *others) if (cached := r._cached()) is not None}
        assert len(serials) == 1, "several attachments of one store in one process"
    writer.destroy()


@pytest.mark.usefixtures("hectic")
def test_threads_follow_a_store_that_is_created_again_and_again(name: str) -> None:
    """Threads on one Reader while the store is destroyed and made anew: values never go back to an older store's."""
    state = {"writer": Writer(name, initial=value_of(1)), "n": 1}
    reader = Reader(name)

    def get() -> Any:
        reader.refresh()
        return reader.get()

    def work() -> None:
        for _ in range(40):
            state["writer"].destroy()
            state["n"] += 1
            state["writer"] = Writer(name, initial=value_of(state["n"]))
            for _ in range(5):
                state["n"] += 1
                state["writer"].publish(value_of(state["n"]))

    seen = _with_threads([get] * THREADS, work)
    print(f"{THREADS} threads saw {len(seen.by_version)} of {state['n']} values of 41 stores")
    assert (seen.back, seen.torn, seen.twins) == (0, 0, 0)
    reader.refresh()
    assert version_in(reader.get()) == state["n"]
    state["writer"].destroy()


@pytest.mark.usefixtures("hectic")
def test_threads_that_publish_take_turns(name: str) -> None:
    """Sixteen threads with one Writer, and sixteen with one each, lose no update."""
    writer = Writer(name, initial={"n": 0}, lock_timeout=processes.WATCHDOG)
    errors = []

    def count(own: Writer[Any]) -> None:
        try:
            for _ in range(10):
                own.update(lambda old: {"n": old["n"] + 1})
        except BaseException as exc:
            errors.append(exc)

    writers = [writer] * THREADS + [Writer(name, lock_timeout=processes.WATCHDOG) for _ in range(THREADS)]
    threads = [threading.Thread(target=count, args=(own,)) for own in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(processes.WATCHDOG)
    assert not errors
    assert Reader(name).get() == {"n": 2 * THREADS * 10}
    processes.assert_at_rest(name)
    writer.destroy()


# ---- get() from where nobody expects it ----


class _Hooked(msgspec.Struct, frozen=True):
    version: int
    mark: complex  # msgspec leaves it to the hooks


def test_get_from_a_decoder_hook(name: str) -> None:
    """A decoder hook that calls get() is given the last good value, at the first version a clear error."""
    inside: list[Any] = []
    first: list[str] = []

    def dec_hook(_: Any, obj: Any) -> complex:
        try:
            inside.append((reader.get().version, reader.snapshot().version))
        except NotPublishedError as exc:
            first.append(str(exc))
        return complex(*obj)

    def enc_hook(obj: Any) -> Any:
        return [obj.real, obj.imag]

    codec = MsgPack(_Hooked, dec_hook=dec_hook, enc_hook=enc_hook)
    plain = MsgPack(_Hooked, dec_hook=lambda _, obj: complex(*obj), enc_hook=enc_hook)
    reader = Reader(name, codec=codec)
    writer = Writer(name, codec=plain, initial=_Hooked(1, 1j), retain=0)
    assert reader.get() == _Hooked(1, 1j)
    assert len(first) == 1
    assert "decodes" in first[0]
    for version in range(2, 50):
        writer.publish(_Hooked(version, 1j))
        assert reader.get().version == version
        assert reader.problem is None
    assert inside == [(version, version) for version in range(1, 49)]
    writer.destroy()


def test_publish_from_a_decoder_hook(name: str) -> None:
    """A transform that publishes makes get() return the version that it was transforming, and the next one after it."""
    writer = Writer(name, initial=value_of(1))

    def transform(value: Any) -> Any:
        if value["version"] < 5:
            writer.publish(value_of(value["version"] + 1))
        return value

    reader = Reader(name, transform=transform)
    assert [version_in(reader.get()) for _ in range(6)] == [1, 2, 3, 4, 5, 5]
    writer.destroy()


class _Old:
    """A value with a finalizer that reads the store again."""

    def __init__(self, reader: list[Any], version: int, seen: list[tuple[int, int]]) -> None:
        self.reader, self.version, self.seen = reader, version, seen

    def __del__(self) -> None:
        got = self.reader[0].get()
        self.seen.append((self.version, got.version if isinstance(got, _Old) else got["version"]))


def test_get_from_a_finalizer_of_the_old_value(name: str) -> None:
    """The finalizer of the value that get() just replaced may call get(): it is given the new one."""
    seen: list[tuple[int, int]] = []
    box: list[Any] = []
    finalized: list[int] = []
    reader = Reader(name, transform=lambda value: _Old(box, value["version"], seen))
    box.append(reader)
    writer = Writer(name, initial=value_of(1), retain=0)
    for version in range(2, 200):
        weakref.finalize(reader.get(), finalized.append, version - 1)
        writer.publish(value_of(version))
        assert reader.get().version == version
    assert seen == [(version, version + 1) for version in range(1, 199)]
    assert finalized == list(range(1, 199))
    box[0] = Reader(name)  # for the finalizer of the last value
    box[0].get()
    reader.close()
    writer.destroy()


def test_get_from_a_signal_handler(name: str) -> None:
    """A storm of signals whose handler calls get() and publish() during updates and gets: never back, no hang."""
    writer = Writer(name, initial=value_of(1), retain=1)
    reader = Reader(name)
    seen = {"signals": 0, "back": 0, "torn": 0, "busy": 0, "published": 0, "last": 0}
    pause = 0.0002

    def handler(*_: Any) -> None:
        seen["signals"] += 1
        version = version_in(reader.get())
        seen["torn"] += version == 0
        seen["back"] += version < seen["last"]
        seen["last"] = version
        if seen["signals"] % 7 == 0:
            try:
                writer.publish(value_of(writer.version + 1), expected=writer.version)
                seen["published"] += 1
            except WriterBusyError:
                seen["busy"] += 1
        signal.setitimer(signal.ITIMER_REAL, pause)  # not before: handlers would pile up

    last = version_in(reader.get())  # a signal in the first decode of all would have nothing to be given
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, pause)
        rounds = 0
        while rounds < PUBLISHES or seen["signals"] < 200:
            rounds += 1
            writer.update(lambda old: value_of(old["version"] + 1))
            version = version_in(reader.get())
            assert version >= last
            last = version
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    print(seen, f"in {rounds} rounds")
    assert seen["back"] == seen["torn"] == 0
    assert writer.version == 1 + rounds + seen["published"]
    assert version_in(reader.get()) == writer.version
    writer.reclaim()
    assert processes.versions_of(name) == [writer.version, writer.version - 1]
    processes.assert_at_rest(name)
    assert describe(name).counters["recovered"] == 0
    writer.destroy()
