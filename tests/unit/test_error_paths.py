"""What the C helper does with arguments, callbacks and moments that the rest of the package never gives it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shmcow
from shmcow import MsgPack, Reader, Writer, _core, segments, store

SCHEMA = (b"", b"raw", b"")
SAID = (b"", b"", b"")
BAD: Any = object()
CURRENT_AT = 256  # where a header has the word that names the current version


def part(data: bytes, **other: Any) -> tuple[Any, ...]:
    """Return one part as ``WriterCore.publish`` takes it."""
    fields = {"name": b"", "segment": 0, "length": len(data), "crc": 0, "flags": 0, "codec": b"raw", "views": [data]}
    return tuple({**fields, **other}.values())


@contextlib.contextmanager
def writing(name: str, lock: bool = True) -> Iterator[_core.WriterCore]:
    """The writable side of a store with three versions, with its lock or without."""
    with Writer(name, initial="one", retain=4) as w:
        w.publish("two")
        w.publish("three")
    core = _core.WriterCore(store.attach(name), segments)
    if lock:
        assert core.try_lock()
        assert core.ready_holds()
        assert core.recover() == 0
    yield core
    core.unlock()


def names(name: str) -> set[str]:
    return {entry for entry in os.listdir("/dev/shm") if entry.startswith(f"shmcow.{name}")}


# ---- arguments ----


def test_arguments_of_another_type_are_refused(name: str) -> None:
    """Every function of the C helper raises TypeError for what it cannot use, and changes nothing."""
    with writing(name, lock=False) as core:
        attached = store.attach(name)
        hold, slot = attached.hold(), _core.Slot()
        before = shmcow.describe(name)
        calls: list[Callable[[], object]] = [
            lambda: _core.Store(BAD),
            lambda: attached.hold(BAD),
            lambda: attached.marked(BAD),
            lambda: attached.marked_below(BAD),
            lambda: hold.view(BAD),
            lambda: hold.stored(BAD),
            lambda: _core.WriterCore(BAD, segments),
            lambda: core.reclaim(BAD),
            lambda: core.discard(BAD),
            lambda: core.configure(BAD, 1),
            lambda: core.count(BAD, 1),
            lambda: core.publish(BAD, SCHEMA, SAID, (part(b"x"),)),
            lambda: slot._install(BAD, 1),  # type: ignore[call-arg]
            lambda: slot._install(BAD, 1, 1, 1, 1),
            lambda: slot._install(1, 1, 1, 1, 1),  # type: ignore[arg-type]
            lambda: slot._accept(BAD),  # type: ignore[call-arg]
            lambda: slot._accept(BAD, 1),
            lambda: _core.wait(BAD, (), 0.0),
            lambda: _core.create_empty(segments.make, BAD, 0, 0, 0),
            lambda: _core.create_header(BAD, "", b"", "", 0, 0, 0, 0, 0, 0),
        ]
        for call in calls:
            with pytest.raises(TypeError):
                call()
        assert slot._cached() is None
        assert shmcow.describe(name) == before


def test_part_that_a_version_does_not_have(name: str) -> None:
    """A hold has as many buffers as its version has parts."""
    with writing(name, lock=False):
        hold = store.attach(name).hold()
        assert bytes(hold.view(0)) == b"\xa5three"
        for look in (hold.view, hold.codec, hold.stored):
            with pytest.raises(IndexError, match="part 1 of 1"):
                look(1)


def test_bytes_are_compared_whatever_buffers_have_them() -> None:
    """``same`` says whether two buffers have the same bytes, and refuses what is none."""
    data = b"some bytes"
    assert _core.same(data, data)
    assert _core.same(data, bytearray(data))
    assert _core.same(memoryview(b"-" + data)[1:], data)
    assert not _core.same(data, data[:-1])
    assert not _core.same(data, b"some bytez")
    assert _core.same(b"", b"")
    for a, b in ((data, BAD), (BAD, data), (data, memoryview(data)[::2]), (memoryview(data)[::2], data)):
        with pytest.raises((TypeError, BufferError)):
            _core.same(a, b)
    with pytest.raises(TypeError):
        _core.same(data)  # type: ignore[call-arg]


@pytest.mark.parametrize("length", [*range(130), 255, 256, 1000, 65_535, 65_536, 100_003])
def test_checksum_is_that_of_zlib(length: int) -> None:
    """CRC-32 by the processor's multiplication is what everybody else computes, wherever the bytes begin."""
    data = random.Random(length).randbytes(length + 16)
    for start in (0, 1, 15):
        view = memoryview(data)[start : start + length]
        assert _core.crc32(view) == zlib.crc32(view)


def test_checksum_needs_bytes_in_one_piece() -> None:
    """What is no buffer, or has gaps, is refused."""
    for bad in (BAD, "text", memoryview(b"some bytes")[::2]):
        with pytest.raises((TypeError, BufferError)):
            _core.crc32(bad)  # type: ignore[arg-type]


def test_entry_of_nothing_is_none(name: str) -> None:
    """A store has the entry of its current version; none before the first one, none after its end."""
    with Writer(name) as w:
        attached = store.attach(name)
        assert attached.entry() is None
        w.publish("one")
        entry = attached.entry()
        assert entry is not None
        assert (entry["version"], entry["parts"][0]["length"]) == (1, 4)
        w.destroy()
        assert attached.entry() is None


def test_damaged_entry_is_none(name: str) -> None:
    """An entry that was overwritten from outside, or a current word that leads nowhere, is not believed."""
    with Writer(name, initial="one"):
        header = Path(f"/dev/shm/shmcow.{name}")
        attached = store.attach(name)
        whole = header.read_bytes()
        entry = attached.entry()
        assert entry is not None

        def write(at: int, data: bytes) -> None:
            with header.open("r+b") as file:
                file.seek(at)
                file.write(data)

        at_author = whole.index(b"msgpack")
        write(at_author, b"msgpacz")
        assert attached.entry() is None
        write(at_author, whole[at_author : at_author + 7])
        assert attached.entry() == entry
        now = attached.word
        assert whole[CURRENT_AT : CURRENT_AT + 8] == now.to_bytes(8, "little")
        for wrong in (now | 1 << 54, now + (1 << 48), now + 1):  # no such generation, a free one, another version
            write(CURRENT_AT, wrong.to_bytes(8, "little"))
            assert attached.entry() is None
        write(CURRENT_AT, now.to_bytes(8, "little"))
        assert attached.entry() == entry


def test_codec_of_a_part_that_a_version_does_not_have(name: str) -> None:
    """A hold names the codecs of its parts, and of no other."""
    with writing(name, lock=False):
        hold = store.attach(name).hold()
        assert hold.codec(0) == "msgpack"
        with pytest.raises(IndexError, match="part 1 of 1"):
            hold.codec(1)
        with pytest.raises(TypeError):
            hold.codec(BAD)


@pytest.mark.parametrize(
    ("epoch", "name_of"), [(bytes(15), "x"), (bytes(17), "x"), (bytes(16), ""), (bytes(16), "x" * 65)]
)
def test_header_without_a_proper_name_is_not_made(name: str, epoch: bytes, name_of: str) -> None:
    """An epoch that has not 16 bytes, or a name that has not 1 to 64, is refused before a file is made."""
    with pytest.raises(ValueError, match="epoch has 16 bytes and name 1 to 64"):
        _core.create_header(f"/dev/shm/shmcow.{name}", "/dev/shm", epoch, name_of, 0, 0o600, -1, -1, 1, 0)
    assert not names(name)


def test_counter_that_is_not_there_is_not_counted(name: str) -> None:
    """Counting beyond the counters that the layout has writes nothing."""
    with writing(name, lock=False) as core:
        before = store.attach(name).counters()
        core.count(len(before), 5)
        core.count(2**32 - 1, 5)
        assert store.attach(name).counters() == before
        core.count(len(before) - 1, 5)
        assert store.attach(name).counters() == [*before[:-1], before[-1] + 5]


# ---- the writer's verbs ----


def test_verbs_without_the_writer_lock_do_nothing(name: str) -> None:
    """Nothing is published, recovered, reclaimed, configured or ended by who does not have the lock."""
    with writing(name, lock=False) as core:
        before = shmcow.describe(name)
        calls: list[Callable[[], object]] = [
            core.recover,
            core.end,
            lambda: core.reclaim(0),
            lambda: core.discard(1),
            lambda: core.configure(1, 1),
            lambda: core.publish(0, SCHEMA, SAID, (part(b"x"),)),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="the writer lock is not held by this process"):
                call()
        assert shmcow.describe(name) == before


def test_version_is_discarded_unless_it_is_held(name: str) -> None:
    """One version goes although it is retained, but not while somebody holds it; the current one never."""
    with writing(name) as core:
        hold = store.attach(name).hold(2)
        assert core.discard(1) == 1
        assert core.discard(2) == 0
        for gone in (1, 3, 99):
            with pytest.raises(shmcow.VersionGoneError):
                core.discard(gone)
            with pytest.raises(shmcow.VersionGoneError):
                core.discard(gone, True)
        del hold
        assert core.discard(2) == 1
        assert [g.version for g in shmcow.describe(name).generations] == [3]


LONG: list[tuple[Any, Any, Any]] = [
    ((b"f" * 17, b"", b""), SAID, part(b"x")),
    ((b"", b"c" * 33, b""), SAID, part(b"x")),
    ((b"", b"", b"t" * 89), SAID, part(b"x")),
    (SCHEMA, (b"m" * 257, b"", b""), part(b"x")),
    (SCHEMA, (b"", b"a" * 65, b""), part(b"x")),
    (SCHEMA, (b"", b"", b"s" * 129), part(b"x")),
    (SCHEMA, SAID, part(b"x", name=b"n" * 33)),
]


@pytest.mark.parametrize(("schema", "said", "one"), LONG)
def test_text_longer_than_its_place_is_refused(name: str, schema: Any, said: Any, one: Any) -> None:
    """A text is never cut, and never written beyond its place in the entry."""
    with writing(name) as core:
        before = shmcow.describe(name)
        with pytest.raises(ValueError, match="longer than its place"):
            core.publish(0, schema, said, (one,))
        assert shmcow.describe(name) == before


def test_texts_that_fill_their_places_come_back_whole(name: str) -> None:
    """Each text may be as long as its place, and touches no other."""
    with writing(name) as core:
        texts = ((b"f" * 16, b"c" * 32, b"t" * 88), (b"m" * 256, b"a" * 64, b"s" * 128))
        assert core.publish(0, *texts, (part(b"x", name=b"n" * 32),)) == 4
        entry = store.attach(name).hold().entry
        found = [entry[key] for key in ("fingerprint", "codec", "type_name", "message", "author", "source")]
        assert found == [b"f" * 16, "c" * 32, "t" * 88, "m" * 256, "a" * 64, "s" * 128]
        assert entry["parts"][0]["name"] == "n" * 32


@pytest.mark.parametrize(
    ("schema", "said", "parts", "error", "words"),
    [
        (SCHEMA, SAID, (), ValueError, "1 to 16 parts"),
        (SCHEMA, SAID, (part(b"x"),) * 17, ValueError, "1 to 16 parts"),
        (SCHEMA, SAID, [part(b"x")], ValueError, "1 to 16 parts"),
        (SCHEMA, SAID, (part(b"x", views=None),), TypeError, "a list of buffers"),
        (SCHEMA, SAID, (part(b"x", views=[1]),), TypeError, "bytes-like"),
        (SCHEMA, SAID, (part(b"x", length=2),), ValueError, "not as long as it said"),
        (SCHEMA, SAID, (part(b"x"), part(b"", views=[b"longer"])), ValueError, "not as long as it said"),
        (SCHEMA, SAID, (part(b"x", crc="x"),), TypeError, "."),
        ((b"", b""), SAID, (part(b"x"),), TypeError, "."),
        (SCHEMA, (b"", b""), (part(b"x"),), TypeError, "."),
    ],
)
def test_parts_that_are_none_leave_nothing_behind(
    name: str, schema: Any, said: Any, parts: Any, error: type[Exception], words: str
) -> None:
    """What cannot be a version is refused, also after a part of it was written: same version, same names."""
    with writing(name) as core:
        before = names(name)
        with pytest.raises(error, match=words):
            core.publish(0, schema, said, parts)
        assert names(name) == before
        assert Reader(name).get() == "three"
        assert core.recover() == 0


def test_sixteen_parts_are_published_and_seen(name: str) -> None:
    """A version has up to 16 parts, each of several buffers."""
    with writing(name) as core:
        parts = tuple(part(b"%d-" % k * 3, views=[b"%d-" % k] * 3, name=b"p%d" % k) for k in range(16))
        assert core.publish(0, SCHEMA, SAID, parts) == 4
        hold = store.attach(name).hold()
        assert [bytes(hold.view(k)) for k in range(16)] == [b"%d-" % k * 3 for k in range(16)]


# ---- what the names of segments come from ----


class Wrong:
    """What ``make`` must not answer."""

    def __init__(self, fd: Any) -> None:
        self.fd = fd


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda _: Wrong(-1), OSError),
        (lambda _: Wrong(1 << 40), OSError),
        (lambda _: Wrong(1 << 80), OverflowError),
        (lambda _: Wrong("3"), TypeError),
        (lambda _: None, AttributeError),
    ],
)
def test_descriptor_that_is_none_is_told(name: str, make: Callable[[str], Any], error: type[Exception]) -> None:
    """A segment's maker that answers nonsense is an error; the store is as it was."""
    with Writer(name, initial="one"):
        pass
    plug: Any = SimpleNamespace(make=make, unlink_segment=segments.unlink_segment, translated=segments.translated)
    core = _core.WriterCore(store.attach(name), plug)
    assert core.try_lock()
    assert core.ready_holds()
    before = names(name)
    with pytest.raises(error):
        core.publish(0, SCHEMA, SAID, (part(b"x"),))
    assert names(name) == before
    assert core.recover() == 0
    core.unlock()
    assert Reader(name).get() == "one"


@pytest.mark.parametrize("answer", [errno.EIO, 5000, -1])
def test_name_that_cannot_be_unlinked_is_left_to_the_next_writer(name: str, answer: int) -> None:
    """An error of unlinking, whatever its number, keeps the generation; the next writer tries again."""
    with Writer(name, initial="one") as w:
        w.publish("two")
    plug: Any = SimpleNamespace(make=segments.make, unlink_segment=lambda *_: answer, translated=segments.translated)
    core = _core.WriterCore(store.attach(name), plug)
    assert core.try_lock()
    assert core.ready_holds()
    with pytest.raises((OSError, shmcow.ShmcowError)) as caught:
        core.reclaim(0)
    if answer == errno.EIO:
        assert caught.value.errno == errno.EIO  # type: ignore[union-attr]
    assert [g.state for g in shmcow.describe(name).generations] == ["held", "doomed"]
    core.unlock()
    with Writer(name) as w:
        assert w.publish("three") == 3
    assert [g.state for g in shmcow.describe(name).generations] == ["held", "held"]


def test_child_forked_while_a_segment_is_made_publishes_nothing(name: str) -> None:
    """The child is told that the lock is its parent's, and removes nothing; the parent makes the file again."""
    with Writer(name, initial="one"):
        pass
    children: list[int] = []

    def make(segment: str) -> Any:
        made = segments.make(segment)
        if not children:
            children.append(os.fork())
        return made

    plug: Any = SimpleNamespace(make=make, unlink_segment=segments.unlink_segment, translated=segments.translated)
    core = _core.WriterCore(store.attach(name), plug)
    assert core.try_lock()
    assert core.ready_holds()
    try:
        version = core.publish(0, (b"", b"msgpack", b""), SAID, (part(b"\xa3two", codec=b"msgpack"),))
    except shmcow.WriterBusyError as exc:
        os._exit(42 if children == [0] and "forked inside publish" in str(exc) else 1)
    if children == [0]:
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 42
    core.unlock()
    assert version == 2
    assert Reader(name).get() == "two"
    listed = {f"{segment}" for g in shmcow.describe(name).generations for segment in g.segments}
    assert {entry.rpartition(".")[2] for entry in names(name)} == {name, "lock", "holds", *listed}


class _ForksWhenEncoding(MsgPack[int]):
    """A codec that forks once, in the middle of a turn, when it is told to."""

    children: list[int]

    def encode(self, value: int) -> Any:
        if self.children == [-1]:
            self.children[0] = os.fork()
        return super().encode(value)


def test_child_forked_by_a_codec_in_mid_update_is_told_that_the_turn_is_its_parents(name: str) -> None:
    """Also where nothing but the encoding ran between the fork and the publish: the child gets WriterBusyError."""
    codec = _ForksWhenEncoding()
    codec.children = []
    with Writer(name, codec=codec, initial=1) as writer:
        codec.children = [-1]
        try:
            version = writer.update(lambda old: old + 1)
        except BaseException as exc:
            os._exit(42 if codec.children == [0] and isinstance(exc, shmcow.WriterBusyError) else 1)
        if codec.children == [0]:
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(codec.children[0], 0)[1]) == 42
        assert (version, writer.snapshot().value) == (2, 2)
        writer.destroy()


# ---- what was removed or replaced from outside ----


def test_nobody_marks_in_a_holds_file_that_is_not_there(name: str) -> None:
    """Without a holds file no version is marked; something else in its place is an error that says so."""
    with Writer(name, initial="one"):
        attached = store.attach(name)
        holds = Path(attached.prefix + "holds")
        assert attached.marked(1) is False
        assert attached.markers_refused == 0
        holds.unlink()
        assert attached.marked(1) is False
        assert attached.marked_below(5) == 0
        holds.mkdir()
        try:
            for ask in (lambda: attached.marked(1), lambda: attached.marked_below(5)):
                with pytest.raises(shmcow.IncompatibleStoreError, match="not a store"):
                    ask()
            assert shmcow.describe(name).generations[0].marked is False
            assert Reader(name).get() == "one"  # markers are accounting only
            assert attached.markers_refused == errno.EISDIR or attached.markers_refused > 0
        finally:
            holds.rmdir()


def test_turn_takes_its_mutex_once(name: str) -> None:
    """A guard without a mutex, or with one taken already, takes none."""
    with pytest.raises(RuntimeError, match="a turn takes its mutex once"):
        _core.TurnGuard().take_mutex(0.0)
    with Writer(name) as w, w._turn(recreate=True) as turn:
        with pytest.raises(RuntimeError, match="a turn takes its mutex once"):
            turn.take_mutex(0.0)
        assert turn.core.locked
