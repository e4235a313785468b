"""Versions in files: what is exported comes back, and a file that is not as it was written is refused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmcow
from shmcow import Arrays, Bundle, Codec, IPTable, MsgPack, Raw, Reader, Table, Writer, documents, files
from shmcow.errors import (
    CodecMismatchError,
    CorruptSegmentError,
    IncompatibleStoreError,
    ShmcowError,
    StoreDestroyedError,
    StoreNotFoundError,
    ValidationError,
    VersionGoneError,
)


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.5


class Strict(msgspec.Struct, frozen=True):
    needed: str


class Reversed(Codec[bytes]):
    """A codec that is not built in."""

    name = "reversed"

    def encode(self, value: bytes) -> list[Any]:
        return [value[::-1]]

    def decode(self, view: memoryview) -> bytes:
        return bytes(view)[::-1]


PARTS = Bundle(config=MsgPack(Config), groups=Table(key=str, value=int), geo=IPTable(str), blob=Raw())
VALUE: Any = {"config": Config(2.0), "groups": {"a": 1}, "geo": [("1.1.1.0/24", "AU")], "blob": b"\0" * 3}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "saved.shmcow"


def forged(path: Path, old: bytes, new: bytes) -> None:
    """Change a file, and mend its checksum."""
    data = path.read_bytes()[:-32]
    assert data.count(old) == 1
    data = data.replace(old, new)
    path.write_bytes(data + hashlib.blake2b(data, digest_size=32).digest())


# ---- there and back ----


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (MsgPack(Config), Config(2.0)),
        (shmcow.JSON(), {"a": [1]}),
        (Raw(), b""),
        (Table(key=int, value=str), {1: "a"}),
        (PARTS, VALUE),
    ],
    ids=["typed", "json", "empty", "table", "bundle"],
)
def test_what_is_exported_comes_back(
    name: str, file: Path, codec: Any, value: Any, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, type and parts in a new store of the same settings; again, it is no change."""
    monkeypatch.setattr(documents, "MAPPED_BYTES", 1 if mapped else 1 << 40)
    with Writer(name, codec=codec, mode=0o640, retain=2, max_total_bytes=10**7) as writer:
        writer.publish(value, message="why", author="ann", source="a test")
        before = writer.snapshot()
        payloads = [
            bytes(before._store.hold(1).view(k)) for k in range(len(shmcow.describe(name).generations[0].parts))
        ]
        said = files.export_file(name, file)
        assert files.import_file(name, file, if_changed=True)[0][:3] == (1, False, False)
        writer.destroy()
    published, again = files.import_file(name, file)
    assert again == said
    assert (published.version, published.changed, published.created) == (1, True, True)
    report = shmcow.describe(name)
    assert (report.mode, report.retain, report.max_total_bytes) == (0o640, 2, 10**7)
    with Reader(name, codec=codec) as reader:
        after = reader.snapshot()
        assert (after.fingerprint, after.type_name, after.codec) == (before.fingerprint, before.type_name, before.codec)
        assert (after.message, after.author) == ("why", "ann")
        assert after.source.startswith(f"import of {name} version 1, 20")
        assert after.source.endswith(f", uid {os.getuid()}, pid {os.getpid()}: a test"[: 128 - len(after.source)] or "")
        assert payloads == [bytes(after._store.hold(1).view(k)) for k in range(len(payloads))]
    with Writer(name, codec=codec) as writer:  # the schema is the writer's again
        assert writer.publish(value, if_changed=True) == 1


def test_older_version_goes_into_another_store(name: str, file: Path) -> None:
    """With words of the importer's own; the new store follows on what is current there."""
    other = f"{name}-b"
    with Writer(name, initial=1) as first, Writer(other, initial=5) as second:
        first.publish(2)
        assert files.export_file(name, file, version=1).version == 1
        published, _ = files.import_file(other, file, message="m", author="a", expected=1)
        assert published.version == 2
        assert (second.snapshot().value, second.snapshot().message, second.snapshot().author) == (1, "m", "a")
        with pytest.raises(shmcow.VersionConflictError):
            files.import_file(other, file, expected=1)
        second.destroy()
        with pytest.raises(StoreNotFoundError):
            files.import_file(other, file, create=False)
        assert files.import_file(other, file, dry_run=True)[0].version == 1
        assert other not in shmcow.list_stores()
        with pytest.raises(VersionGoneError):
            files.export_file(name, file, version=7)
        first.destroy()
        with pytest.raises((StoreNotFoundError, StoreDestroyedError)):
            files.export_file(name, file)


def test_file_appears_whole_private_and_only_over_an_export(name: str, tmp_path: Path, file: Path) -> None:
    """Mode 0600 whatever the umask; nothing of a failed one stays; no other file is replaced."""
    before = os.umask(0)
    try:
        with Writer(name, initial=1) as writer:
            files.export_file(name, file)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            writer.publish(2)
            files.export_file(name, file)
            assert files.read_file(file)[0].version == 2
            other = tmp_path / "config.json"
            other.write_text("{}")
            link = tmp_path / "link"
            link.symlink_to(file)
            for wrong in (other, link, tmp_path):
                with pytest.raises(FileExistsError):
                    files.export_file(name, wrong)
            with pytest.raises(FileNotFoundError):
                files.export_file(name, tmp_path / "no" / "x")

            def fail(*_: object) -> None:
                raise OSError(errno.ENOSPC, "full")

            with pytest.raises(OSError, match="full"):
                files.export_file(name, tmp_path / "new", progress=fail)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "link", "saved.shmcow"]
            assert other.read_text() == "{}"
    finally:
        os.umask(before)


def test_damaged_version_is_not_exported(name: str, file: Path) -> None:
    """A backup of garbage would be worse than none."""
    with Writer(name, initial={"a": 1}):
        report = shmcow.describe(name)
        with open(f"/dev/shm/shmcow.{name}.{report.epoch}.{report.generations[0].segments[0]}", "r+b") as segment:
            segment.write(b"\xff")
        with pytest.raises(CorruptSegmentError, match="CRC"):
            files.export_file(name, file)
        assert not file.exists()


# ---- schemas ----


def test_import_needs_the_type_where_schemas_differ(name: str, file: Path) -> None:
    """The file's own word counts only where it is the store's; a given type is checked; force is recorded."""
    other = f"{name}-b"
    with Writer(name, initial={"timeout": 2.0}) as plain, Writer(other, type=Config, initial=Config()) as typed:
        files.export_file(name, file)
        with pytest.raises(CodecMismatchError, match="no type to check values with"):
            files.import_file(other, file)
        with pytest.raises(CodecMismatchError, match="no type"):
            files.import_file(other, file, dry_run=True)
        assert files.import_file(other, file, type=Config)[0].type_name.endswith("Config")
        assert typed.snapshot().value == Config(2.0)
        with pytest.raises(CorruptSegmentError, match="missing required field"):
            files.import_file(other, file, type=Strict)
        assert files.import_file(other, file, force=True)[0].version == 3
        assert shmcow.describe(other).generations[0].source.endswith("(forced)")
        typed.publish(Config(3.0))
        files.export_file(other, file)
        with pytest.raises(CodecMismatchError, match="without the type"):
            files.import_file(name, file)
        with pytest.raises(CodecMismatchError, match="the one given is 'raw'"):
            files.import_file(name, file, type=Raw())
        assert files.import_file(name, file, type=Config)[0].version == 2
        plain.destroy()
        typed.destroy()


def test_parts_that_readers_need_are_not_dropped(name: str, file: Path) -> None:
    """Nor by a file whose schema is that of a writer which knew fewer parts than there were."""
    typed = MsgPack(Config)
    with Writer(name, codec=Bundle(a=typed), initial={"a": Config()}) as few:
        files.export_file(name, file)
        with Writer(name, codec=Bundle(a=typed, b=Raw())) as more:
            more.publish({"a": Config(), "b": b"2"})
        few.publish_parts(a=Config(3.0))
        with pytest.raises(CodecMismatchError, match="'b' of store"):
            files.import_file(name, file)
        assert files.import_file(name, file, force=True)[0].version == 4


def test_codec_that_is_not_built_in_must_be_given(name: str, file: Path) -> None:
    """Nobody could tell whether it can be read; a validator sees what it decodes to."""
    seen = []
    with Writer(name, codec=Reversed(), initial=b"abc"):
        files.export_file(name, file)
        with pytest.raises(CodecMismatchError, match="no built-in codec"):
            files.import_file(name, file)
        files.import_file(name, file, type=Reversed(), validators=[lambda old, new: seen.append((old, new))])
        assert seen == [(b"abc", b"abc")]
        assert files.import_file(name, file, force=True)[0].version == 3
    with Reader(name, codec=Reversed()) as reader:
        assert reader.get() == b"abc"


def test_arrays_come_back(name: str, file: Path) -> None:
    """Aligned as they were."""
    numpy = pytest.importorskip("numpy", reason="needs numpy: pip install 'shmcow[numpy]'")
    with Writer(name, codec=Arrays(), initial={"x": numpy.arange(1000.0)}) as writer:
        files.export_file(name, file)
        files.import_file(name, file)
        assert (writer.snapshot().value["x"] == numpy.arange(1000.0)).all()


# ---- files that are not as they were written ----


@pytest.fixture
def saved(name: str, file: Path) -> Path:
    with Writer(name, codec=PARTS, initial=VALUE):
        files.export_file(name, file)
    return file


def test_every_truncation_and_every_flipped_byte_is_found(saved: Path) -> None:
    """At any place: an error that names the file, and never another."""
    good = saved.read_bytes()
    for length in range(len(good)):
        saved.write_bytes(good[:length])
        with pytest.raises((IncompatibleStoreError, CorruptSegmentError), match="saved"):
            files.read_file(saved)
    for at in range(len(good)):
        saved.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises((IncompatibleStoreError, CorruptSegmentError), match="saved"):
            files.read_file(saved)
    saved.write_bytes(good + b"\0")
    with pytest.raises(CorruptSegmentError, match="longer than it says"):
        files.read_file(saved)
    saved.write_bytes(good)
    assert files.read_file(saved)[0].size_bytes > 0


@pytest.mark.parametrize(
    ("old", "new", "error", "told"),
    [
        (b"\n\x01\0\0\0", b"\n\x02\0\0\0", IncompatibleStoreError, "format 2"),
        (b'"little"', b'"big"   ', IncompatibleStoreError, "byte order"),
        (b'"codec":"bundle"', b'"codec":"bandle"', CodecMismatchError, "no built-in codec"),
        (b'"codec":"bundle"', b'"codec":"raw"   ', CorruptSegmentError, "expected one part|one segment"),
        (b'"name":"blob"', b'"name":"geo" ', CorruptSegmentError, "parts are"),
        (b'"name":"blob"', b'"name":"a b" ', CorruptSegmentError, "bad part name"),
        (b'"codec":"iptable"', b'"codec":"table"  ', CorruptSegmentError, "part 'geo'|no table"),
        (b'"codec":"iptable"', b'"codec":"bundle" ', CorruptSegmentError, "itself a Bundle"),
        (b'"version":1', b'"version":0', CorruptSegmentError, r"\$.version"),
        (b'"store":"t', b'"store":"/', CorruptSegmentError, r"\$.store"),
        (b'"pid"', b'"dip"', CorruptSegmentError, "dip|pid"),
    ],
)
def test_forged_header_is_refused(
    name: str, saved: Path, old: bytes, new: bytes, error: type[Exception], told: str
) -> None:
    """With a checksum that fits: says what is wrong, and publishes nothing."""
    forged(saved, old, new)
    with pytest.raises(error, match=told) as caught:
        files.import_file(f"{name}-b", saved)
    assert isinstance(caught.value, IncompatibleStoreError | CorruptSegmentError | CodecMismatchError)
    assert f"{name}-b" not in shmcow.list_stores()


def test_forged_payload_is_refused(name: str, file: Path) -> None:
    """What built-in codecs cannot decode is the file's fault; a validator's refusal is the value's."""
    with Writer(name, initial="a secret text"):
        files.export_file(name, file)

        def no(_old: Any, _new: Any) -> bool:
            return False

        with pytest.raises(ValidationError, match="refused"):
            files.import_file(name, file, validators=[no])
        forged(file, b"a secret text", b"a secret tex\xff")
        with pytest.raises(CorruptSegmentError, match="cannot be read"):
            files.import_file(name, file)


def in_format(number: int, file: Path, *, at: int, magic: bytes, crc: int) -> None:
    """Make an exported table one that a release of another format has exported, its checksums included."""
    content = bytearray(file.read_bytes()[:-32])
    start = content.index(magic)
    content[start + at : start + at + 4] = number.to_bytes(4, "little")
    content[start + crc : start + crc + 4] = zlib.crc32(content[start : start + crc]).to_bytes(4, "little")
    file.write_bytes(bytes(content) + hashlib.blake2b(content, digest_size=32).digest())


TABLE: dict[str, Any] = {"at": 8, "magic": b"cowtable", "crc": 124}
IPTABLE: dict[str, Any] = {"at": 12, "magic": b"shmcowIP", "crc": 60}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("codec", "value", "header", "part"),
    [
        (Table(key=str, value=int), VALUE["groups"], TABLE, ""),
        (IPTable(str), VALUE["geo"], IPTABLE, ""),
        (PARTS, VALUE, TABLE, "part 'groups': "),
    ],
    ids=["table", "iptable", "bundle"],
)
def test_table_of_another_format_is_another_releases(
    name: str, file: Path, codec: Any, value: Any, header: dict[str, Any], part: str, given: bool
) -> None:
    """It is not called damaged: found and expected format, and what to do; nothing is published or made."""
    with Writer(name, codec=codec, initial=value):
        files.export_file(name, file)
    in_format(7, file, **header)
    with pytest.raises(IncompatibleStoreError) as caught:
        files.import_file(f"{name}-b", file, type=codec if given else None)
    assert str(caught.value) == (
        f"what is in {file} cannot be read: {part}it is a table of format 7, made by another release of shmcow, and "
        "this one reads and writes format 2: use the same release in all processes, or publish it from its source with "
        "this one"
    )
    assert f"{name}-b" not in shmcow.list_stores()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A directory, a pipe, nothing at all."""
    with pytest.raises(IsADirectoryError):
        files.read_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.read_file(tmp_path / "no")
    with pytest.raises(IncompatibleStoreError, match="no regular file"):
        files.read_file("/dev/null")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_read_or_refused(saved: Path, data: st.DataObject) -> None:
    """Random files, and random changes with a checksum that fits: an error of ours, or a file that is in order."""
    good = saved.with_suffix(".good")
    if not good.exists():
        good.write_bytes(saved.read_bytes())
    content = bytearray(good.read_bytes()[:-32])
    if data.draw(st.booleans()):
        for at, byte in data.draw(
            st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
        ):
            content[at] = byte
    else:
        content[8:] = data.draw(st.binary(max_size=200))
    saved.write_bytes(bytes(content) + hashlib.blake2b(content, digest_size=32).digest())
    with contextlib.suppress(ShmcowError):
        said, views = files.read_file(saved)
        assert [view.nbytes for view in views] == [part.size_bytes for part in said.parts]
        with contextlib.suppress(ShmcowError):
            files.import_file(f"{said.store}-x", saved, dry_run=True)


def test_only_what_a_killed_export_left_is_swept(tmp_path: Path) -> None:
    """Not what is being written, nor of another file, nor what has another name."""
    names = [f".a.shmcow.{'0' * 16}.partial", f".a.shmcow.{'1' * 16}.partial", f".b.{'0' * 16}.partial", ".a.shmcow.x"]
    for name in names:
        (tmp_path / name).write_text("x")
        if "1" not in name:
            os.utime(tmp_path / name, (1.0, 1.0))
    files.sweep_partial(tmp_path / "a.shmcow")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
