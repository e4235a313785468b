"""Keeping house: what must be let go of is, what must be kept is, and what outsiders removed is mended."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import shmcow
from shmcow import (
    Codec,
    CorruptSegmentError,
    DecodeError,
    OutOfSharedMemoryError,
    Part,
    Raw,
    Reader,
    ShmcowError,
    StoredPart,
    Writer,
)
from shmcow import store as stores
from shmcow.store import attach

SHM = Path("/dev/shm")
NOBODY = 65534


def objects(name: str) -> set[str]:
    return {entry for entry in os.listdir(SHM) if entry == f"shmcow.{name}" or entry.startswith(f"shmcow.{name}.")}


def versions(name: str) -> list[int]:
    return [generation.version for generation in shmcow.describe(name).generations]


def segments_of(name: str, version: int) -> list[Path]:
    report = shmcow.describe(name)
    found = [generation.segments for generation in report.generations if generation.version == version]
    return [SHM / f"shmcow.{name}.{report.epoch}.{segment}" for segment in found[0]]


# ---- a version that cannot be used is let go of ----


def bad_type(writer: Writer[Any], _: Reader[Any]) -> int:
    return writer.publish("no number")


def bad_checksum(writer: Writer[Any], _: Reader[Any]) -> int:
    version = writer.publish(1234567)
    [path] = segments_of(writer.name, version)
    path.chmod(0o600)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 0x40]) + path.read_bytes()[1:])
    return version


@pytest.mark.parametrize("on_bad", ["keep", "raise"])
@pytest.mark.parametrize("publish_bad", [bad_type, bad_checksum])
def test_bad_version_is_let_go_of_at_once(name: str, publish_bad: Any, on_bad: Any) -> None:
    """A version that cannot be decoded is marked by nobody afterwards, and reclaim() frees it."""
    writer = Writer(name, initial=1, retain=8)
    reader = Reader(name, type=int, on_bad=on_bad)
    assert reader.get() == 1
    bad = publish_bad(writer, reader)
    try:
        assert reader.get() == 1
    except ShmcowError as exc:
        kept = exc  # even while its caller keeps the error
        assert on_bad == "raise"
    else:
        kept = None
    assert isinstance(reader.problem, (DecodeError, CorruptSegmentError))
    assert writer.publish(3) == bad + 1
    assert reader.get() == 3
    assert not writer._store.marked(bad)
    assert writer._store.marked(bad + 1, True)
    other = Writer(name, retain=0)
    assert other.reclaim() == 2
    assert versions(name) == [bad + 1]
    del kept


def test_bad_version_is_let_go_of_before_there_is_a_good_one(name: str) -> None:
    """A reader whose first version is bad raises each time, and holds nothing."""
    writer = Writer(name, initial="no number", retain=0)
    reader = Reader(name, type=int)
    for _ in range(3):
        with pytest.raises(DecodeError):
            reader.get()
        assert not writer._store.marked(1)
    writer.publish(2)
    assert versions(name) == [2]
    assert reader.get() == 2


def depth(exc: BaseException | None) -> int:
    """Count the frames that an error and its causes keep."""
    frames = 0
    while exc is not None:
        frames += len(traceback.extract_tb(exc.__traceback__))
        exc = exc.__cause__ or exc.__context__
    return frames


@pytest.mark.parametrize("on_bad", ["keep", "raise"])
def test_tracebacks_of_a_kept_error_do_not_grow(name: str, on_bad: Any) -> None:
    """The error that a reader remembers keeps no more frames after 50 refresh() and get() than after the first."""
    writer = Writer(name, initial=1)
    reader = Reader(name, type=int, on_bad=on_bad)
    reader.get()
    writer.publish("no number")
    seen = set()
    for _ in range(50):
        reader.refresh()
        try:
            reader.get()
        except DecodeError:
            pass
        assert reader.problem is not None
        seen.add(depth(reader.problem))
    assert len(seen) == 1, seen
    assert max(seen) < 10


class Local:
    """Something in a caller's frame."""


@pytest.mark.parametrize("good_first", [True, False])
def test_kept_error_keeps_no_frame_of_a_caller(name: str, good_first: bool) -> None:
    """The error that get() raised, and the reader remembers, keeps nothing alive that its caller had."""
    writer = Writer(name, initial=1)
    reader = Reader(name, type=int, on_bad="raise")
    if good_first:
        reader.get()
    writer.publish("no number")

    def caller() -> weakref.ref[Local]:
        local = Local()
        with pytest.raises(DecodeError):
            reader.get()
        return weakref.ref(local)

    found = caller()
    gc.collect()
    assert found() is None


def test_view_of_a_caller_is_not_held_by_a_kept_error(name: str) -> None:
    """A version that a caller looked into is let go of with the caller, although get() raised meanwhile."""
    writer = Writer(name, codec=Raw(), initial=b"one", retain=0)
    reader = Reader(name, codec=Raw(), transform=only_one, on_bad="raise")
    reader.get()

    def caller() -> None:
        data = Reader(name, codec=Raw()).snapshot().data
        writer.publish(b"two")
        with pytest.raises(DecodeError):
            reader.get()
        assert bytes(data) == b"one"

    caller()
    reader.close()
    gc.collect()
    assert not writer._store.marked(1)


def only_one(data: memoryview) -> bytes:
    if bytes(data) != b"one":
        raise ValueError("not one")
    return bytes(data)


def test_get_leaves_the_exception_that_its_caller_handles_alone(name: str) -> None:
    """get() in an except block meets a bad version: the caller's own exception keeps its traceback, and is not kept."""
    writer = Writer(name, initial=1)
    reader = Reader(name, type=int)
    reader.get()

    try:
        {}["missing"]
    except KeyError as exc:
        writer.publish("no number")
        assert reader.get() == 1
        frames = traceback.extract_tb(exc.__traceback__)
    assert [frame.line for frame in frames] == ['{}["missing"]']
    found: BaseException | None = reader.problem
    assert found is not None
    while found is not None:
        assert not isinstance(found, KeyError), "the reader keeps an exception of its caller"
        found = found.__cause__ or found.__context__


CYCLE = """
import sys
from shmcow import Reader, ShmcowError
def cycle(value):
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    raise a
try:
    Reader(sys.argv[1], transform=cycle).get()
except ShmcowError as exc:
    print(type(exc).__name__)
"""


def test_errors_that_cause_each_other_do_not_hang_a_reader(name: str) -> None:
    """A transform that raises an error whose causes form a ring is reported like any other."""
    Writer(name, initial=1)
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(shmcow.__file__).parents[1]), *sys.path])}
    run = subprocess.run(
        [sys.executable, "-c", CYCLE, name], capture_output=True, text=True, timeout=60, check=False, env=where
    )
    assert run.stdout == "DecodeError\n", run.stderr


def test_every_part_of_a_kept_error_lets_go(name: str) -> None:
    """Causes, contexts and groups: no error that a transform made keeps a frame that looks into the version."""
    writer = Writer(name, codec=Raw(), initial=b"one", retain=0)
    reader = Reader(name, codec=Raw(), transform=raise_all_kinds, default=b"")
    assert reader.get() == b""
    assert isinstance(reader.problem, DecodeError)
    gc.collect()
    assert not writer._store.marked(1)
    writer.publish(b"two")
    assert versions(name) == [2]


def raise_all_kinds(data: memoryview) -> bytes:
    try:
        bytes(data)[1000]
    except IndexError:
        try:
            raise_with_view(data)
        except ValueError as group_member:
            unrelated = OSError("cause")
            raise ExceptionGroup("several", [group_member]) from unrelated
    return b""


def raise_with_view(data: memoryview) -> None:
    raise ValueError(len(data))


# ---- the current segment was removed ----


@pytest.mark.parametrize("validated", [True, False])
def test_writer_mends_a_store_whose_current_segment_was_removed(name: str, validated: bool) -> None:
    """After rm of the current data, readers keep their value, Writer() works, and the next publish() mends it."""
    first = Writer(name, type=dict[str, int], initial={"a": 1})
    first.publish({"a": 2})
    reader = Reader(name)
    assert reader.get() == {"a": 2}
    [path] = segments_of(name, 2)
    path.unlink()
    reader.refresh()
    assert reader.get() == {"a": 2}
    with pytest.raises(CorruptSegmentError):
        Reader(name).get()
    seen = []
    validators = [lambda old, _: seen.append(old)] if validated else []
    writer = Writer(name, type=dict[str, int], validators=validators, initial={"a": 0})
    assert not writer.created
    assert reader.get() == {"a": 2}
    with pytest.raises(CorruptSegmentError):
        writer.update(lambda old: old)
    assert writer.publish({"a": 3}) == 3
    assert seen == ([None] if validated else [])
    assert reader.get() == {"a": 3}
    assert first.publish({"a": 4}) == 4
    assert reader.get() == {"a": 4}
    assert first.rollback(3) == 5
    assert reader.get() == {"a": 3}
    assert reader.problem is None


def test_writer_without_a_type_attaches_when_the_current_segment_was_removed(name: str) -> None:
    """Writer(name) takes the codec from the table, and needs no data for it."""
    Writer(name, codec=shmcow.JSON(), initial=[1]).close()
    [path] = segments_of(name, 1)
    path.unlink()
    writer = Writer(name)
    assert writer.publish([2]) == 2
    assert writer.snapshot().codec == "json"
    assert Reader(name).get() == [2]


# ---- a group that the user may not give away ----

REFUSED = """
try:
    shmcow.Writer(sys.argv[1], initial=1, mode=0o640, group=0)
except shmcow.NotOwnerError as exc:
    print("NotOwnerError", isinstance(exc, PermissionError), exc)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: run the tests as root")
def test_refused_group_is_an_error_of_ours_and_leaves_nothing(name: str) -> None:
    """An ordinary user who gives a store to a group that it is not in gets NotOwnerError, and no object is left."""
    prologue = (  # imports come first, for the package may lie where the other user cannot read
        "import os, sys, msgspec, psutil, posix_ipc, shmcow, encodings.idna, traceback\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    )
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(shmcow.__file__).parents[1]), *sys.path])}
    run = subprocess.run(
        [sys.executable, "-c", prologue + REFUSED, name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=where,
    )
    assert run.stderr == ""
    assert run.stdout.startswith("NotOwnerError True")
    assert "group 0" in run.stdout
    assert objects(name) == set()


# ---- one object for one version ----


def test_threads_that_attach_at_once_get_one_object(name: str) -> None:
    """16 threads make a process's first attach and first get() at once: one Store, one object for each version."""
    rounds, threads = 150, 16
    writer = Writer(name, initial={"round": -1})
    start, end = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
    found: list[tuple[Any, ...]] = [()] * threads
    readers: list[Reader[Any]] = []
    going = True

    def work(me: int) -> None:
        while True:
            start.wait()
            if not going:
                return
            try:
                snapshot = readers[0].snapshot()
                found[me] = (attach(name), readers[0].get(), snapshot, readers[0].at(snapshot.version))
            except BaseException as exc:
                found[me] = (exc,)
            end.wait()

    pool = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
    for thread in pool:
        thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    different = 0
    try:
        for k in range(rounds):
            writer.publish({"round": k})
            readers[:] = [Reader(name)]
            stores._attached.pop(name, None)  # as in a process that comes first
            start.wait()
            end.wait()
            assert all(len(row) == 4 for row in found), found
            assert found[0][1] == {"round": k}
            for column in range(4):
                different += len({id(row[column]) for row in found}) != 1
            different += found[0][2] is not found[0][3]
            found[:] = [()] * threads
    finally:
        sys.setswitchinterval(interval)
        going = False
        start.wait()
        for thread in pool:
            thread.join()
    assert different == 0


# ---- a publish that can never fit ----


class Pieces(Codec[Any]):
    """A list of bytes, each item of which is a part."""

    name = "test-pieces"

    def split(self, value: Any) -> list[Part]:
        return [Part(f"p{k}", self.name, [item]) for k, item in enumerate(value)]

    def join(self, parts: Sequence[StoredPart]) -> Any:
        return tuple(bytes(part.view) for part in parts)


@pytest.mark.parametrize("parts", [1, 3])
def test_hopeless_publish_gives_up_no_retained_version(name: str, parts: int) -> None:
    """A value that is larger than max_total_bytes is refused before any retained version is given up for it."""
    room = 64 << 10
    writer = Writer(name, codec=Pieces(), initial=[b"0"], retain=4, max_total_bytes=room)
    for k in range(1, 5):
        writer.publish([bytes([k]) * 100])
    before, kept = versions(name), objects(name)
    assert len(before) == 5
    for size in (room + 1, 10 * room):
        with pytest.raises(OutOfSharedMemoryError, match="max_total_bytes"):
            writer.publish([b"x" * (size // parts)] * parts)
    assert versions(name) == before
    assert objects(name) == kept
    assert shmcow.describe(name).counters["given_up"] == 0
    for version in before:
        assert writer._store.hold(version).version == version
    assert writer.publish([b"y" * (room // 2)]) == 6, "what fits is published"
