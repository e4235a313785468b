"""Whatever is in shared memory: the right value or a specific error, never a crash, a hang or another value.

Each test works in a forked child, so that a crash or a hang is a failure of that test and not the end of the run.
Offsets are those of csrc/shmcow_layout.h; test_abi.py pins them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcow
from shmcow import Raw, Reader, Writer, _core, store

SHM = Path("/dev/shm")

CURRENT, COUNTERS, WORDS, ENTRIES = 256, 320, 512, 1024
SETTINGS = {"retain": 192, "max_total_bytes": 200, "next_segment": 208, "lock_pid": 216}
ENTRY = {
    "version": (0, 8),
    "published_ns": (8, 8),
    "pid": (16, 4),
    "uid": (20, 4),
    "segment_count": (24, 4),
    "flags": (28, 4),
    "origin": (32, 8),
    "reserved": (40, 8),
    "fingerprint": (48, 16),
    "codec": (64, 32),
    "author": (96, 64),
    "type_name": (160, 88),
    "source": (248, 128),
    "message": (376, 256),
    "part_names": (632, 512),
    "segment id": (1144, 8),
    "segment length": (1152, 8),
    "segment crc": (1160, 4),
    "segment flags": (1164, 4),
    "crc": (1532, 4),
}
VALUES = {1: {"n": 1}, 2: {"n": 2}, 3: {"n": 3}}
READY, HELD = 2, 3


@pytest.fixture
def three(name: str) -> Iterator[Damaged]:
    """A store with three versions, whose files can be damaged and put right again."""
    with Writer(name) as w:
        for version in VALUES:
            w.publish(VALUES[version], message="m", author="a", source="s")
    yield Damaged(name)
    for entry in os.listdir(SHM):
        if entry.startswith(f"shmcow.{name}"):
            path = SHM / entry
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


class Damaged:
    """The files of one store, as they were and as a test wants them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.header = SHM / f"shmcow.{name}"
        report = shmcow.describe(name)
        self.prefix = f"{self.header}.{report.epoch}."
        self.segments = {g.version: Path(f"{self.prefix}{g.segments[0]}") for g in report.generations}
        self.files = [self.header, *self.segments.values()]
        self.whole = {path: path.read_bytes() for path in self.files}
        self.modes = {path: path.stat().st_mode for path in self.files}
        image = self.whole[self.header]
        self.places = {
            struct.unpack_from("<Q", image, WORDS + 8 * i)[0] >> 16: i
            for i in range(_core.GENERATIONS)
            if image[WORDS + 8 * i] != 0
        }

    def restore(self) -> None:
        """Put everything right, in new files: no old mapping is reused."""
        empty = [Path(self.prefix + "lock"), Path(self.prefix + "holds")]
        for entry in os.listdir(SHM):
            path = SHM / entry
            if entry.startswith(f"{self.header.name}.") and path not in [*self.files, *empty]:
                path.unlink()
        for path in empty:
            path.touch()
        for path in self.files:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            path.write_bytes(self.whole[path])
            path.chmod(self.modes[path] & 0o7777)
        store._attached.clear()

    def entry_at(self, version: int) -> int:
        return ENTRIES + _core.ENTRY_BYTES * self.places[version]

    def write(self, path: Path, offset: int, data: bytes) -> None:
        path.chmod(0o600)
        fd = os.open(path, os.O_RDWR)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def seal(self, path: Path, offset: int, length: int) -> None:
        """Make the CRC right that ends a struct of this length."""
        data = path.read_bytes()[offset : offset + length - 4]
        self.write(path, offset + length - 4, struct.pack("<I", zlib.crc32(data)))

    def flip(self, path: Path, offset: int, bits: int) -> None:
        self.write(path, offset, bytes([path.read_bytes()[offset] ^ bits]))


def in_child(work: Callable[[], None], seconds: int = 120) -> None:
    """Run in a forked child that must neither crash nor hang."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            work()
            code = 0
        except BaseException as exc:
            os.write(tell, f"{type(exc).__name__}: {exc}".encode("utf-8", "replace")[:4000])
        finally:
            os._exit(code)
    os.close(tell)
    with os.fdopen(told, errors="replace") as answer:
        said = answer.read()
    status = os.waitpid(pid, 0)[1]
    assert not os.WIFSIGNALED(status), f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    assert os.WEXITSTATUS(status) == 0, said


def read(name: str, verify: bool = False) -> dict[str, Any]:
    """Everything that the reading side says about a store: values, or the names of errors that it may raise."""
    said: dict[str, Any] = {}

    def ask(what: str, call: Callable[[], Any]) -> None:
        try:
            said[what] = call()
        except shmcow.ShmcowError as exc:
            said[what] = type(exc) if len(str(exc)) > 20 else f"an error without words: {exc!r}"

    r = Reader(name, verify=verify)
    ask("get", r.get)
    ask("snapshot", lambda: r.snapshot().value)
    ask("data", lambda: bytes(r.snapshot().data))
    for version in VALUES:
        ask(f"at {version}", lambda version=version: r.at(version).value)
    ask("describe", lambda: shmcow.describe(name) and None)
    ask("default", lambda: Reader(name, default="the default").get())
    assert name in shmcow.list_stores()
    r.close()
    return said


def assert_right_or_error(said: dict[str, Any], label: str, current: tuple[Any, ...] = (VALUES[3],)) -> None:
    for what in ("get", "snapshot", "default"):
        if not isinstance(said[what], type):
            assert said[what] in current or said[what] == "the default", f"{label}: {what} gave {said[what]}"
    for version in VALUES:
        if not isinstance(said[f"at {version}"], type):
            assert said[f"at {version}"] == VALUES[version], f"{label}: at({version}) gave {said[f'at {version}']}"


def write(damaged: Damaged, label: str) -> None:
    """What a writer may meet: publish and everything else either works or says why, in bounded time."""
    name = damaged.name
    try:
        with Writer(name, lock_timeout=1) as w:
            for call in (w.reclaim, lambda: w.publish({"n": 4}), w.rollback, lambda: w.publish({"n": 5}), w.reclaim):
                with contextlib.suppress(shmcow.ShmcowError):
                    done = call()
                    if done and call.__name__ == "<lambda>":
                        value = Reader(name).get()
                        assert value in ({"n": 4}, {"n": 5}), f"{label}: published, and read {value}"
    except shmcow.ShmcowError as exc:
        if len(str(exc)) <= 20:
            raise AssertionError(f"{label}: an error without words: {exc!r}") from exc
    gc.collect()


def destroy(damaged: Damaged, label: str) -> None:
    """A store whose header says who it is can be destroyed, whatever else is in it."""
    with contextlib.suppress(shmcow.StoreNotFoundError):  # `current` said that it was being destroyed: finished first
        shmcow.destroy(damaged.name, lock_timeout=1)
    left = [e for e in os.listdir(SHM) if e == damaged.header.name or e.startswith(f"{damaged.header.name}.")]
    assert not left, f"{label}: left {left}"


def each(damaged: Damaged, cases: list[tuple[str, Callable[[], None]]], *steps: Callable[[str], None]) -> None:
    """Damage, look, put right again."""
    damaged.restore()
    for label, damage in cases:
        for step in steps:
            damage()
            try:
                step(label)
            except AssertionError:
                raise
            except BaseException as exc:
                raise AssertionError(f"{label}: {type(exc).__name__}: {exc}") from exc
            finally:
                gc.collect()
                damaged.restore()


def test_undamaged_store_reads_right(three: Damaged) -> None:
    """The harness itself: a store that is put back is read as it was, and destroyed."""

    def work() -> None:
        three.restore()
        said = read(three.name)
        assert said["get"] == said["snapshot"] == said["default"] == VALUES[3]
        assert [said[f"at {version}"] for version in VALUES] == list(VALUES.values())
        write(three, "undamaged")
        destroy(three, "undamaged")

    in_child(work)


# ---- the header's identity ----


def test_every_flipped_bit_of_the_identity_is_found(three: Damaged) -> None:
    """One wrong bit anywhere in the identity makes the store unusable, and every call says so."""

    def work() -> None:
        rng = random.Random(1)
        cases = [
            (f"identity byte {at}", lambda at=at: three.flip(three.header, at, 1 << rng.randrange(8)))
            for at in range(192)
        ]

        def step(label: str) -> None:
            said = read(three.name)
            assert said.pop("default") == "the default"
            for what, answer in said.items():
                assert answer in (shmcow.IncompatibleStoreError, shmcow.CorruptSegmentError), (
                    f"{label}: {what}: {answer}"
                )
            for call in (Writer, shmcow.destroy):
                with contextlib.suppress(shmcow.IncompatibleStoreError, shmcow.CorruptSegmentError):
                    call(three.name)
                    raise AssertionError(f"{label}: {call} did not refuse")

        each(three, cases, step)

    in_child(work)


@pytest.mark.parametrize(
    ("offset", "data", "error", "words"),
    [
        (0, b"SHMCOW\r\n", shmcow.IncompatibleStoreError, "magic"),
        (8, struct.pack(">I", 0x01020304), shmcow.IncompatibleStoreError, "other byte order"),
        (
            12,
            struct.pack("<I", 1),
            shmcow.IncompatibleStoreError,
            "expected ABI 2, found 1: use the same shmcow release",
        ),
        (12, struct.pack("<I", 0), shmcow.IncompatibleStoreError, "expected ABI 2, found 0"),
        (16, struct.pack("<I", 4096), shmcow.CorruptSegmentError, "another shape"),
        (20, struct.pack("<I", 8), shmcow.CorruptSegmentError, "another shape"),
        (24, struct.pack("<I", 65), shmcow.CorruptSegmentError, "another shape"),
        (28, struct.pack("<I", 0), shmcow.CorruptSegmentError, "another shape"),
        (60, struct.pack("<I", 0), shmcow.CorruptSegmentError, "length"),
        (60, struct.pack("<I", 65), shmcow.CorruptSegmentError, "length"),
        (60, struct.pack("<I", 0xFFFFFFFF), shmcow.CorruptSegmentError, "length"),
        (60, struct.pack("<I", 1), shmcow.IncompatibleStoreError, "was it moved"),
        (64, b"another", shmcow.IncompatibleStoreError, "header of the store another.*was it moved"),
        (64, b"\xff\xfe\x00", shmcow.IncompatibleStoreError, "was it moved"),
    ],
)
def test_identity_of_another_kind(three: Damaged, offset: int, data: bytes, error: type, words: str) -> None:
    """A whole header of another ABI, byte order, shape or name is refused by its own reason."""

    def work() -> None:
        three.restore()
        three.write(three.header, offset, data)
        three.seal(three.header, 0, 192)
        store._attached.clear()
        calls = [
            lambda: Reader(three.name).get(),
            lambda: Reader(three.name).at(1),
            lambda: Writer(three.name),
            lambda: shmcow.describe(three.name),
            lambda: shmcow.destroy(three.name),
        ]
        for call in calls:
            with pytest.raises(error, match=words):
                call()

    in_child(work)


def test_header_of_any_length(three: Damaged) -> None:
    """A header that is too short or too long is refused, whatever the length."""

    def work() -> None:
        whole = len(three.whole[three.header])
        lengths = [0, 1, 7, 8, 12, 63, 64, 187, 191, 192, 193, 256, 511, 1023, 1024, 4095, 4096, 4097, whole - 1]
        lengths += [whole + 1, 2 * whole, 1 << 30]

        def cut(length: int) -> None:
            store._attached.clear()
            with three.header.open("r+b") as header:
                header.truncate(length)

        def step(label: str) -> None:
            said = read(three.name)
            assert said.pop("default") == "the default"
            assert set(said.values()) <= {shmcow.IncompatibleStoreError, shmcow.CorruptSegmentError}, f"{label}: {said}"
            for call in (Writer, shmcow.destroy):
                with contextlib.suppress(shmcow.IncompatibleStoreError, shmcow.CorruptSegmentError):
                    call(three.name)
                    raise AssertionError(f"{label}: {call} did not refuse")

        each(three, [(f"{length} bytes", lambda length=length: cut(length)) for length in lengths], step)

    in_child(work)


# ---- words and settings ----

EDGES = [0, 1, 0x10000, (1 << 32) - 1, (1 << 48) - 1, 1 << 48, 1 << 63, (1 << 64) - 1]


def word_cases(damaged: Damaged) -> list[tuple[str, Callable[[], None]]]:
    cases = []

    def put(what: str, offset: int, value: int) -> None:
        cases.append((f"{what} = {value:#x}", lambda: damaged.write(damaged.header, offset, struct.pack("<Q", value))))

    for what, offset in SETTINGS.items():
        for value in EDGES:
            put(what, offset, value)
    for value in EDGES:
        put("a counter", COUNTERS, value)
    for version, i in ((1, damaged.places[1]), (3, damaged.places[3])):
        for value in EDGES if version == 3 else ():
            put(f"word of {version}", WORDS + 8 * i, value)
        for state in (*range(7), 0xFFFF):
            for claimed in (version - 1, version, version + 1):
                put(f"word of {version}", WORDS + 8 * i, claimed << 16 | state)
    for state in (1, 2, 3, 4, 5, 6, 0xFFFF):
        for claimed in (2, 3, (1 << 48) - 1):
            put("a free word", WORDS + 8 * 40, claimed << 16 | state)
    return cases


def test_words_and_settings_never_give_a_wrong_value(three: Damaged) -> None:
    """Any value in a generation word or a setting: readers get the right value or an error."""
    in_child(lambda: each(three, word_cases(three), lambda label: assert_right_or_error(read(three.name), label)))


def test_writers_meet_any_words_and_settings(three: Damaged) -> None:
    """A writer publishes something that can be read, or says why not; and the store can be destroyed."""

    def step(label: str) -> None:
        write(three, label)

    in_child(lambda: each(three, word_cases(three), step, lambda label: destroy(three, label)), 300)


def current_cases(damaged: Damaged) -> list[tuple[str, Callable[[], None]]]:
    values = [*EDGES]
    values += [i << 48 | version for i in (0, 2, 63, 64) for version in (0, 1, 3, 4)]
    return [
        (f"current = {value:#x}", lambda value=value: damaged.write(damaged.header, CURRENT, struct.pack("<Q", value)))
        for value in values
    ]


def test_current_never_gives_a_wrong_value(three: Damaged) -> None:
    """Any value in `current`: a version that it names truly, or an error."""
    every = tuple(VALUES.values())
    in_child(
        lambda: each(three, current_cases(three), lambda label: assert_right_or_error(read(three.name), label, every))
    )


def test_writers_meet_any_current(three: Damaged) -> None:
    """A writer goes on from any `current`, or says why not; and the store can be destroyed."""

    def step(label: str) -> None:
        write(three, label)

    in_child(lambda: each(three, current_cases(three), step, lambda label: destroy(three, label)), 300)


# ---- entries ----


def flipped_entries(damaged: Damaged, version: int, per_field: int) -> list[tuple[str, Callable[[], None]]]:
    rng = random.Random(version)
    cases = []
    for field, (offset, length) in ENTRY.items():
        for _ in range(per_field):
            at, bit = damaged.entry_at(version) + offset + rng.randrange(length), 1 << rng.randrange(8)
            cases.append((f"{field} of {version}", lambda at=at, bit=bit: damaged.flip(damaged.header, at, bit)))
    return cases


@pytest.mark.parametrize("version", [1, 3])
def test_every_flipped_field_of_an_entry_is_found(three: Damaged, version: int) -> None:
    """One wrong bit in any field of an entry: that version is refused, the others are read."""

    def step(label: str) -> None:
        said = read(three.name)
        assert_right_or_error(said, label)
        assert said[f"at {version}"] is shmcow.CorruptSegmentError, f"{label}: {said}"
        for other in {1, 2, 3} - {version}:
            assert said[f"at {other}"] == VALUES[other], f"{label}: {said}"
        if version == 3:
            assert said["get"] is shmcow.CorruptSegmentError
            assert said["default"] == "the default"

    in_child(lambda: each(three, flipped_entries(three, version, 2), step))


@pytest.mark.parametrize("version", [1, 3])
def test_writers_meet_flipped_entries(three: Damaged, version: int) -> None:
    """A writer publishes past a damaged entry, current or old, and destroys such a store."""

    def step(label: str) -> None:
        write(three, label)

    def publishes(label: str) -> None:
        with Writer(three.name, lock_timeout=1) as w:
            w.publish({"n": 4})
        assert Reader(three.name).get() == {"n": 4}, label

    in_child(
        lambda: each(three, flipped_entries(three, version, 1), step, publishes, lambda label: destroy(three, label)),
        300,
    )


LIES: list[tuple[str, bytes]] = [
    ("version", struct.pack("<Q", 2)),
    ("version", struct.pack("<Q", 0)),
    ("published_ns", b"\xff" * 8),
    ("pid", b"\xff" * 4),
    ("segment_count", struct.pack("<I", 0)),
    ("segment_count", struct.pack("<I", 2)),
    ("segment_count", struct.pack("<I", 16)),
    ("segment_count", struct.pack("<I", 17)),
    ("segment_count", b"\xff" * 4),
    ("flags", b"\xff" * 4),
    ("origin", b"\xff" * 8),
    ("reserved", b"\xff" * 8),
    ("fingerprint", b"\xff" * 16),
    ("codec", b"json\0"),
    ("codec", b"raw\0"),
    ("codec", b"nothing-like-it\0"),
    ("codec", b"\xff" * 32),
    ("codec", b"\0" * 32),
    ("author", b"\xff" * 64),
    ("type_name", b"\xff" * 88),
    ("message", b"\xc3" * 256),
    ("part_names", b"\xff" * 512),
    ("segment id", struct.pack("<Q", 0)),
    ("segment id", struct.pack("<Q", 1)),
    ("segment id", struct.pack("<Q", 99)),
    ("segment id", b"\xff" * 8),
    ("segment length", struct.pack("<Q", 0)),
    ("segment length", struct.pack("<Q", 63)),
    ("segment length", struct.pack("<Q", 65)),
    ("segment length", struct.pack("<Q", (1 << 48) - 1)),
    ("segment length", struct.pack("<Q", 1 << 48)),
    ("segment length", struct.pack("<Q", 1 << 63)),
    ("segment length", b"\xff" * 8),
    ("segment crc", b"\0" * 4),
    ("segment flags", b"\0" * 4),
    ("segment flags", b"\xff" * 4),
]


def lying_entries(damaged: Damaged) -> list[tuple[str, Callable[[], None]]]:
    def lie(field: str, data: bytes) -> None:
        at = damaged.entry_at(3)
        damaged.write(damaged.header, at + ENTRY[field][0], data)
        damaged.seal(damaged.header, at, _core.ENTRY_BYTES)

    return [(f"{field} = {data[:9].hex()}", lambda field=field, data=data: lie(field, data)) for field, data in LIES]


def test_entry_that_lies_with_a_right_checksum(three: Damaged) -> None:
    """Numbers out of range in a sealed entry are refused; texts of any bytes are shown; never a wrong value."""

    def step(label: str) -> None:
        said = read(three.name)
        if label.startswith("codec = 72617700"):  # "raw": then the payload is what was asked for
            assert bytes(said["get"]) == said["data"]
            return
        assert_right_or_error(said, label)

    in_child(lambda: each(three, lying_entries(three), step))


def test_writers_meet_lying_entries(three: Damaged) -> None:
    """A writer meets them without a crash, and destroys such a store."""

    def step(label: str) -> None:
        write(three, label)

    in_child(lambda: each(three, lying_entries(three), step, lambda label: destroy(three, label)), 300)


def test_random_damage(three: Damaged) -> None:
    """Random bytes over random pieces of the header's variable part: values or errors, for reader and writer."""

    def damage(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(rng.randrange(1, 4)):
            places = [
                CURRENT,
                SETTINGS["next_segment"],
                WORDS + 8 * rng.randrange(4),
                three.entry_at(rng.randrange(1, 4)),
            ]
            at = rng.choice(places) + 8 * rng.randrange(rng.choice([1, 24]))
            three.write(three.header, at, rng.randbytes(rng.choice([1, 8, 64])))

    def read_step(label: str) -> None:
        assert_right_or_error(read(three.name), label, tuple(VALUES.values()))

    cases = [(f"seed {seed}", lambda seed=seed: damage(seed)) for seed in range(40)]
    in_child(lambda: each(three, cases, read_step, lambda label: write(three, label)), 300)


# ---- segments ----


def test_every_flipped_bit_of_a_footer_is_found(three: Damaged) -> None:
    """One wrong bit anywhere in a footer makes its version unusable."""

    def work() -> None:
        rng = random.Random(2)
        path = three.segments[3]
        start = len(three.whole[path]) - 128
        cases = [
            (f"footer byte {at}", lambda at=at: three.flip(path, start + at, 1 << rng.randrange(8)))
            for at in range(128)
        ]

        def step(label: str) -> None:
            said = read(three.name)
            assert said["get"] is said["at 3"] is shmcow.CorruptSegmentError, f"{label}: {said}"
            assert (said["at 1"], said["at 2"], said["default"]) == (VALUES[1], VALUES[2], "the default")

        each(three, cases, step)

    in_child(work)


def test_footer_of_another_segment_is_refused(three: Damaged) -> None:
    """A segment with the whole and sealed bytes of another version, epoch or ABI is not taken for this one."""

    def work() -> None:
        path = three.segments[3]
        start = len(three.whole[path]) - 128

        def sealed(offset: int, data: bytes) -> None:
            three.write(path, start + offset, data)
            three.seal(path, start, 128)

        cases: list[tuple[str, Callable[[], None]]] = [
            ("version 2's bytes", lambda: three.write(path, 0, three.whole[three.segments[2]])),
            ("epoch", lambda: sealed(8, bytes(16))),
            ("segment", lambda: sealed(24, struct.pack("<Q", 2))),
            ("length", lambda: sealed(32, struct.pack("<Q", 1))),
            ("payload crc", lambda: sealed(40, bytes(4))),
            ("flags", lambda: sealed(44, bytes(4))),
            ("abi", lambda: sealed(80, struct.pack("<I", 1))),
        ]

        def step(label: str) -> None:
            assert read(three.name)["get"] is shmcow.CorruptSegmentError, label

        each(three, cases, step)

    in_child(work)


def test_segment_of_any_length(three: Damaged) -> None:
    """A segment that was cut or grown is refused before it is touched: no SIGBUS."""

    def work() -> None:
        path = three.segments[3]
        whole = len(three.whole[path])

        def cut(length: int) -> None:
            path.chmod(0o600)
            os.truncate(path, length)

        def step(label: str) -> None:
            assert read(three.name)["get"] is shmcow.CorruptSegmentError, label
            write(three, label)

        lengths = [0, 1, 64, 127, 128, whole - 128, whole - 1, whole + 1, whole + 64, 4096, 1 << 30]
        each(three, [(f"{length} bytes", lambda length=length: cut(length)) for length in lengths], step)

    in_child(work)


def test_segment_that_is_something_else(three: Damaged) -> None:
    """A missing segment, a directory, a link to a good one, a FIFO: refused, and publishing goes on."""

    def work() -> None:
        path, good = three.segments[3], three.segments[2]

        def replace(make: Callable[[], object]) -> None:
            path.unlink()
            make()

        cases = [
            ("missing", lambda: replace(lambda: None)),
            ("directory", lambda: replace(path.mkdir)),
            ("link", lambda: replace(lambda: path.symlink_to(good))),
            ("dangling", lambda: replace(lambda: path.symlink_to("/nowhere"))),
            ("FIFO", lambda: replace(lambda: os.mkfifo(path))),
            ("other segment", lambda: replace(lambda: os.link(good, path))),
        ]

        def reads(label: str) -> None:
            said = read(three.name)
            assert said["get"] is shmcow.CorruptSegmentError, f"{label}: {said}"
            assert said["at 2"] == VALUES[2]

        def publishes(label: str) -> None:
            with Writer(three.name) as w:
                w.publish({"n": 4})
            assert Reader(three.name).get() == {"n": 4}, label

        each(three, cases, reads, publishes)

    in_child(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user: run the tests as root")
@pytest.mark.parametrize("what", ["segment", "header"])
def test_object_of_another_owner(three: Damaged, what: str) -> None:
    """A segment that is not the header's owner's is refused; a header of somebody else is refused with owner=."""

    def work() -> None:
        three.restore()
        if what == "segment":
            os.chown(three.segments[3], 12345, -1)
            assert read(three.name)["get"] is shmcow.CorruptSegmentError
        else:
            os.chown(three.header, 12345, -1)
            with pytest.raises(shmcow.NotOwnerError, match="belongs to user 12345, expected user 0"):
                Reader(three.name, owner=0).get()
            assert read(three.name)["get"] is shmcow.CorruptSegmentError

    in_child(work)


def test_every_flipped_bit_of_a_payload_is_found(three: Damaged) -> None:
    """Up to 1 MiB the CRC is always checked; padding means nothing."""

    def work() -> None:
        path = three.segments[3]
        length = len(three.whole[path]) - 128
        payload = shmcow.describe(three.name).generations[0].size_bytes
        cases = [(f"byte {at}", lambda at=at: three.flip(path, at, 0x10)) for at in range(length)]

        def step(label: str) -> None:
            got = read(three.name)["get"]
            assert got == VALUES[3] if int(label.split()[1]) >= payload else got is shmcow.CorruptSegmentError, label

        each(three, cases, step)

    in_child(work)


@pytest.mark.parametrize("verify", [False, True])
def test_large_payload_is_checked_on_request(name: str, verify: bool) -> None:
    """Above 1 MiB the CRC is written and checked where both sides asked for it."""
    payload = os.urandom(1 << 20) + b"x"
    with Writer(name, codec=Raw(), initial=payload, verify=verify) as w:
        path = Path(f"{SHM}/shmcow.{name}.{w.snapshot().epoch}.1")
        path.chmod(0o600)
        with path.open("r+b") as segment:
            segment.write(bytes([payload[0] ^ 1]))
        assert bytes(Reader(name).get()[1:]) == payload[1:]
        if verify:
            with pytest.raises(shmcow.CorruptSegmentError, match="CRC"):
                Reader(name, verify=True).get()
        else:
            assert len(Reader(name, verify=True).get()) == len(payload)


def test_rollback_does_not_republish_a_damaged_version(name: str) -> None:
    """A version whose payload was overwritten is refused: nothing bad is published, not even again."""
    with Writer(name, initial="one") as w:
        w.publish("two")
        path = Path(f"{SHM}/shmcow.{name}.{w.snapshot().epoch}.1")
        path.chmod(0o600)
        with path.open("r+b") as segment:
            segment.write(b"\xff")
        with pytest.raises(shmcow.CorruptSegmentError):
            w.rollback()
        assert w.version == 2
        assert Reader(name).get() == "two"


def test_reader_keeps_its_value_through_any_damage(three: Damaged) -> None:
    """A reader that has a value returns it, whatever becomes of entry, word, `current` or segment."""

    def work() -> None:
        cases = current_cases(three)[:20] + word_cases(three)[60:90] + lying_entries(three)

        for label, damage in cases:
            r = Reader(three.name)
            good = r.get()
            assert good == VALUES[3]
            damage()
            for _ in range(2500):
                value = r.get()
                assert value is good or value in VALUES.values(), f"{label}: {value}"
            r.refresh()
            r.close()
            del r
            gc.collect()
            three.restore()

    in_child(work)
