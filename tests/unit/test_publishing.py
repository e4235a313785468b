"""Publishing as tools do it: only what changed, by force, as a trial, and into stores that do not exist yet."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import Bundle, IPTable, MsgPack, Raw, Reader, Table, Writer, publishing
from shmcow.errors import (
    CodecMismatchError,
    NotOwnerError,
    OutOfSharedMemoryError,
    StoreNotFoundError,
    ValidationError,
    VersionConflictError,
)
from shmcow.store import Settings


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.5


class More(msgspec.Struct, frozen=True):
    timeout: float | int = 1.5


class Other(msgspec.Struct, frozen=True):
    needed: str


def state(name: str) -> tuple[Any, ...]:
    """What a trial must leave as it is."""
    report = shmcow.describe(name)
    return report.version, report.generations, report.counters, report.total_bytes


# ---- Writer.publish(if_changed=) ----


@pytest.mark.parametrize(
    ("codec", "first", "second"),
    [
        (MsgPack(), {"a": 1}, {"a": 2}),
        (MsgPack(Config), Config(), Config(2.0)),
        (Raw(), b"bytes", b"bytez"),
        (Table(key=str, value=int), {"a": 1, "b": 2}, {"a": 1, "b": 3}),
        (IPTable(str), [("1.1.1.0/24", "AU")], [("1.1.1.0/24", "NZ")]),
        (Bundle(a=MsgPack(), b=Raw()), {"a": 1, "b": b"x"}, {"a": 1, "b": b"y"}),
    ],
    ids=["plain", "typed", "raw", "table", "iptable", "bundle"],
)
def test_only_what_changed_is_published(name: str, codec: Any, first: Any, second: Any) -> None:
    """The same value makes no version, of every codec; another one does."""
    with Writer(name, codec=codec) as writer:
        assert writer.publish(first, if_changed=True) == 1
        assert writer.publish(first, if_changed=True) == 1
        assert writer.publish(first, if_changed=True, expected=1) == 1
        assert writer.publish(second, if_changed=True) == 2
        assert writer.publish(first) == 3
        with pytest.raises(VersionConflictError):
            writer.publish(first, if_changed=True, expected=1)
        assert shmcow.describe(name).counters["published"] == 3


def test_same_bytes_of_another_type_are_a_change(name: str) -> None:
    """Readers learn of the type."""
    with Writer(name, initial={"timeout": 1.5}):
        pass
    with Writer(name, type=Config) as writer:
        assert writer.publish(Config(), if_changed=True) == 2
        assert writer.publish(Config(), if_changed=True) == 2
    with Writer(name, type=More) as writer:
        assert writer.publish(More(), if_changed=True) == 3
        assert writer.publish(More(), if_changed=True) == 3


def test_damaged_version_is_replaced_by_the_same_value(name: str) -> None:
    """What cannot be read is no reason to publish nothing."""
    with Writer(name, initial={"a": 1}) as writer:
        (segment,) = shmcow.describe(name).generations[0].segments
        path = f"/dev/shm/shmcow.{name}.{shmcow.describe(name).epoch}.{segment}"
        with open(path, "r+b") as file:
            file.write(b"\xff")
        assert writer.publish({"a": 1}, if_changed=True) == 2


# ---- Writer(force=) ----


def test_force_publishes_what_is_refused_and_says_so(name: str) -> None:
    """Without its type, of another codec, without a part: recorded in the source; readers keep the last good value."""
    with Writer(name, type=Config, initial=Config()):
        pass
    reader = Reader(name, type=Config)
    assert reader.get() == Config()
    with Writer(name) as plain, pytest.raises(CodecMismatchError, match="has no type"):
        plain.publish({"timeout": "x"})
    with Writer(name, force=True) as plain:
        assert plain.publish({"timeout": "x"}, source="a tool") == 2
        assert plain.snapshot().source == "a tool (forced)"
        assert plain.snapshot().type_name == ""
        assert plain.publish(1, source="ä" * 100) == 3
        assert plain.snapshot().source == "ä" * 59 + " (forced)"
    assert reader.get() == Config()
    assert reader.problem is not None
    with pytest.raises(CodecMismatchError):
        Writer(name, codec=Raw())
    with Writer(name, codec=Raw(), force=True) as raw:
        assert raw.publish(b"x") == 4
        assert raw.snapshot().source == "(forced)"
    typed = MsgPack(Config)
    with Writer(name, codec=Bundle(a=typed, b=Raw()), force=True) as bundle:
        assert bundle.publish({"a": Config(), "b": b"2"}) == 5
    with Writer(name, codec=Bundle(a=typed)) as fewer, pytest.raises(CodecMismatchError, match="would be dropped"):
        fewer.publish({"a": Config()})
    with Writer(name, codec=Bundle(a=typed), force=True) as fewer:
        assert fewer.publish({"a": Config()}) == 6
        assert shmcow.describe(name).generations[0].parts == ("a",)
    reader.close()


# ---- publishing.publish ----


def test_store_is_made_only_for_a_good_value(name: str) -> None:
    """A value that is refused leaves no empty store behind; a good one makes it, as wanted."""

    def refuse(old: Any, new: Any) -> None:
        raise ValueError(f"{old} {new}")

    with pytest.raises(ValidationError):
        publishing.publish(name, object(), codec=MsgPack())
    with pytest.raises(ValidationError, match="None 1"):
        publishing.publish(name, 1, codec=MsgPack(), validators=[refuse])
    with pytest.raises(StoreNotFoundError):
        publishing.publish(name, 1, codec=MsgPack(), create=False)
    with pytest.raises(StoreNotFoundError):
        publishing.publish(name, 1, codec=MsgPack(), expected=3)
    assert name not in shmcow.list_stores()
    settings = Settings(mode=0o640, retain=2)
    made = publishing.publish(name, 1, codec=MsgPack(), expected=0, settings=settings, message="why")
    assert made == (1, True, True, 1, "msgpack", "")
    assert (shmcow.describe(name).mode, shmcow.describe(name).retain) == (0o640, 2)
    assert publishing.publish(name, 2, codec=MsgPack()) == (2, True, False, 1, "msgpack", "")
    assert shmcow.describe(name).retain == 2
    assert publishing.publish(name, 2, codec=MsgPack(), if_changed=True) == (2, False, False, 1, "msgpack", "")


def test_trial_refuses_what_publishing_refuses_and_writes_nothing(name: str) -> None:
    """Codec, type, expected version, validators, room: the same errors, and the store as it was."""

    def tried(value: Any, codec: Any, **options: Any) -> publishing.Published:
        return publishing.publish(name, value, codec=codec, dry_run=True, **options)

    def shrinks(old: Any, new: Any) -> bool:
        return old == Config() and new == Config(9.0)

    assert tried(1, MsgPack()) == (1, True, True, 1, "msgpack", "")
    assert name not in shmcow.list_stores()
    with Writer(name, type=Config, initial=Config(), max_total_bytes=100_000) as writer, writer._turn(recreate=False):
        before = state(name)
        assert tried(Config(2.0), MsgPack(Config)).version == 2
        assert tried(Config(), MsgPack(Config), if_changed=True)[:2] == (1, False)
        assert tried(Config(9.0), MsgPack(Config), validators=[shrinks], expected=1).version == 2
        with pytest.raises(ValidationError, match="shrinks"):
            tried(Config(8.0), MsgPack(Config), validators=[shrinks])
        with pytest.raises(VersionConflictError):
            tried(Config(), MsgPack(Config), expected=7)
        with pytest.raises(CodecMismatchError, match="has no type"):
            tried({}, MsgPack())
        with pytest.raises(CodecMismatchError, match="cannot be read as"):
            tried(Other("x"), MsgPack(Other))
        with pytest.raises(CodecMismatchError, match="the codec"):
            tried(b"", Raw())
        with pytest.raises(OutOfSharedMemoryError, match="at most 100,000"):
            tried(b"x" * 200_000, Raw(), force=True)
        assert tried(b"x", Raw(), force=True).version == 2
        assert state(name) == before
    with pytest.raises(OutOfSharedMemoryError, match="can be had"):
        publishing._check_room(None, 1 << 60)


def test_store_of_another_user_is_refused_before_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding may take minutes, and be in vain."""
    with Writer(name, initial=1):
        monkeypatch.setattr("os.geteuid", lambda: 12345)
        with pytest.raises(NotOwnerError, match="belongs to user"):
            publishing.publish(name, object(), codec=MsgPack(), dry_run=True)
        monkeypatch.undo()


def test_documents_get_the_codec_that_the_store_has(name: str) -> None:
    """JSON stays JSON, a bundle a bundle; where a document makes no sense, an error says so unless forced."""
    assert publishing.codec_for(name).name == "msgpack"
    assert publishing.codec_for(name, Config).type is Config
    assert publishing.codec_for(name, form="raw").name == "raw"
    assert publishing.codec_for(name, form="mmdb").name == "mmdb"
    assert publishing.codec_for(name, Table(key=str)) == Table(key=str)
    with Writer(name, codec=Bundle(a=MsgPack()), initial={"a": 1}):
        assert publishing.codec_for(name) == Bundle(a=MsgPack())
        with pytest.raises(CodecMismatchError, match="a toml document makes"):
            publishing.codec_for(name, Config, "toml")
        assert publishing.codec_for(name, Config, "toml", force=True) == MsgPack(Config)
    shmcow.destroy(name)
    with Writer(name, codec=shmcow.JSON(), initial=1):
        assert publishing.codec_for(name).name == "json"


def test_rows_get_the_table_that_the_store_has(name: str) -> None:
    """The kind of the keys is that of the current table."""
    assert publishing.table_for(name) == Table(key=str)
    assert publishing.table_for(name, int, ip=True) == IPTable(int)
    assert publishing.table_for(name, Table(key=bytes)) == Table(key=bytes)
    for wrong in (Table(), Raw(), IPTable()):
        with pytest.raises(CodecMismatchError, match="rows are published"):
            publishing.table_for(name, wrong)
    with Writer(name, codec=Table(key=int, value=str), initial={1: "a"}):
        assert publishing.table_for(name, str) == Table(key=int, value=str)
        assert publishing.table_for(name, str, bytes) == Table(key=bytes, value=str)
