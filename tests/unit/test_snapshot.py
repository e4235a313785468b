"""Snapshot: what it says about a version, what it holds, and for how long."""

from __future__ import annotations

import datetime
import gc
import os
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import JSON, Codec, FrozenDict, MsgPack, Raw, Reader, Snapshot, Writer
from shmcow.snapshot import Alive
from shmcow.store import attach

FIELDS = (
    "author", "codec", "epoch", "fingerprint", "message", "published_at", "publisher", "rollback_of", "size_bytes",
    "source", "store", "type_name", "value", "version",
)  # fmt: skip


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0


def test_snapshot_describes_its_version(name: str) -> None:
    """Each attribute says what the writer said, and nothing is left out."""
    before = datetime.datetime.now(datetime.UTC)
    with Writer(name, type=Config) as w:
        w.publish(Config(2.0), message="why", author="who", source="from what")
        after = datetime.datetime.now(datetime.UTC)
        snap = Reader(name, type=Config).snapshot()
        assert isinstance(snap, Snapshot)
        assert (snap.store, snap.version, snap.value) == (name, 1, Config(2.0))
        assert before - datetime.timedelta(seconds=1) <= snap.published_at <= after + datetime.timedelta(seconds=1)
        assert snap.published_at.tzinfo is datetime.UTC
        assert (snap.publisher.pid, snap.publisher.uid) == (os.getpid(), os.geteuid())
        assert (snap.message, snap.author, snap.source) == ("why", "who", "from what")
        assert (snap.codec, snap.rollback_of) == ("msgpack", None)
        assert snap.type_name.endswith("Config")
        assert len(bytes.fromhex(snap.fingerprint)) == 16
        assert snap.size_bytes == len(msgspec.msgpack.encode(Config(2.0)))
        assert snap.epoch == shmcow.describe(name).epoch


def test_fingerprint_is_empty_for_plain_values(name: str) -> None:
    """An untyped version has no type name and no fingerprint."""
    with Writer(name, initial=1) as w:
        assert (w.snapshot().fingerprint, w.snapshot().type_name) == ("", "")


def test_repr_is_short_and_shows_no_value(name: str) -> None:
    """A snapshot's repr names store, version and size."""
    with Writer(name, codec=JSON(), initial="secret" * 1000) as w:
        shown = repr(w.snapshot())
        assert shown == f"<Snapshot {name} version 1, 6002 bytes of json>"


def test_data_is_the_payload_in_place(name: str) -> None:
    """`data` is a read-only view of the bytes in shared memory, for any codec."""
    with Writer(name, initial={"a": 1}) as w:
        data = w.snapshot().data
        assert bytes(data) == msgspec.msgpack.encode({"a": 1})
        assert data.readonly
        with pytest.raises(TypeError):
            data[0] = 1
        del data


def test_data_of_a_reclaimed_version_is_gone(name: str) -> None:
    """Without a hold, a copied value outlives its version, and `data` and hold() say that it is gone."""
    with Writer(name, initial={"a": 1}, retain=0) as w:
        snap = Reader(name).snapshot()
        w.publish({"a": 2})
        assert snap.value == {"a": 1}
        for call in (lambda: snap.data, snap.hold, snap.__enter__):
            with pytest.raises(shmcow.VersionGoneError, match=r"version 1 of .*hold it, or raise retain="):
                call()
        assert not snap.held


def test_holds_are_counted(name: str) -> None:
    """Each hold() needs its own release(); one too many does nothing."""
    with Writer(name, initial=1, retain=0) as w:
        store = attach(name)
        snap = Reader(name).snapshot()
        assert snap.hold() is snap
        with snap as same:
            assert same is snap
            w.publish(2)
            assert store.marked(1)
        assert snap.held
        assert store.marked(1)
        snap.release()
        assert not snap.held
        assert not store.marked(1)
        snap.release()
        w.reclaim()
        with pytest.raises(shmcow.VersionGoneError):
            snap.hold()


def test_with_lets_go_on_an_exception(name: str) -> None:
    """An exception in the block passes and the version is let go."""
    with Writer(name, initial=1) as w:
        snap = w.snapshot()
        with pytest.raises(ZeroDivisionError), snap:
            _ = 1 // 0
        assert not snap.held
        assert not attach(name).marked(1)


def test_held_version_can_be_opened_again(name: str) -> None:
    """While somebody holds a version, at() opens it, whatever `retain` says."""
    with Writer(name, initial=0, retain=0) as w:
        r = Reader(name)
        with r.snapshot() as snap:
            for n in range(1, 40):
                w.publish(n)
            assert r.at(snap.version).value == 0
            assert Reader(name).at(1).value == 0
            assert [g.version for g in shmcow.describe(name).generations] == [40, 1]
        w.reclaim()
        with pytest.raises(shmcow.VersionGoneError):
            r.at(1)


def test_last_reference_lets_go(name: str) -> None:
    """A snapshot that is dropped while it holds lets go with its last reference."""
    with Writer(name, initial=1) as w:
        snap = w.snapshot().hold()
        assert attach(name).marked(1)
        w.publish(2)
        del snap
        gc.collect()
        assert not attach(name).marked(1)


def test_view_outlives_everything(name: str) -> None:
    """A view stays readable after release(), close(), reclaim and destroy: its mapping is its own."""
    payload = os.urandom(100_000)
    w = Writer(name, codec=Raw(), initial=payload, retain=0)
    r = Reader(name)
    snap = r.snapshot()
    view = snap.data[10:]
    snap.release()
    r.close()
    w.publish(b"other")
    w.destroy()
    w.close()
    del snap, r, w
    gc.collect()
    assert bytes(view) == payload[10:]


def test_snapshot_keeps_its_value_after_close(name: str) -> None:
    """A snapshot is usable after its reader was closed and its store destroyed."""
    with Writer(name, initial={"a": [1]}) as w:
        r = Reader(name)
        snap = r.snapshot()
        r.close()
        w.destroy()
    assert snap.value == {"a": [1]}
    assert type(snap.value) is FrozenDict


def test_copy_is_plain_and_private(name: str) -> None:
    """copy() gives mutable builtins that share nothing with the value."""
    with Writer(name, initial={"a": [1, {"b": 2}]}):
        snap = Reader(name).snapshot()
        mine = snap.copy()
        assert (type(mine), type(mine["a"])) == (dict, list)
        mine["a"][1]["b"] = 3
        assert snap.value == {"a": [1, {"b": 2}]}
        typed = Reader(name, type=dict[str, list[object]]).snapshot().copy()
        assert type(typed["a"]) is list


def test_snapshots_of_writer_and_reader_agree(name: str) -> None:
    """Writer, Reader and at() describe one version in the same way."""
    with Writer(name, codec=MsgPack(Config), initial=Config(3.0)) as w:
        r = Reader(name, type=Config)
        for snap in (r.snapshot(), r.at(1)):
            mine = w.snapshot()
            for field in FIELDS:
                assert getattr(snap, field) == getattr(mine, field), field


def test_published_at_is_the_time_of_publishing(name: str) -> None:
    """Later versions are published later."""
    with Writer(name, initial=1) as w:
        first = w.snapshot().published_at
        now = time.time()
        w.publish(2)
        second = w.snapshot().published_at
        assert second >= first
        assert abs(second.timestamp() - now) < 60


# ---- where the payload is ----


@pytest.mark.parametrize(
    ("codec", "value", "maps"),
    [
        (MsgPack(), b"s" * 1000, 0),
        (JSON(), "s" * 1000, 0),
        (MsgPack(), b"s" * 20_000, 1),
        (Raw(), b"s" * 1000, 1),
    ],
    ids=["small msgpack", "small json", "large msgpack", "small raw"],
)
def test_small_version_is_read_if_it_is_decoded_and_mapped_if_not(
    name: str, codec: Codec[Any], value: Any, maps: int
) -> None:
    """What is decoded anyway costs no mapping; what is looked into lies in shared memory, whatever its size."""
    with Writer(name, codec=codec, initial=value) as w:
        w.publish(value, message="the newest")
        snap = Reader(name, codec=codec).snapshot()
        with snap:
            data = snap.data
            segments = Path("/proc/self/maps").read_text().count(f"{attach(name).prefix}2")
            assert segments == maps
            assert bytes(data) == b"".join(map(bytes, codec.encode(value)))
            w.destroy()
            assert b"ssss" in bytes(data)
        del data, snap


# ---- what a reader has made ----


class _Thing:
    """Stands for a snapshot: anything that can be referred to weakly."""


def test_first_snapshot_of_a_version_is_the_one_that_is_kept() -> None:
    """While it lives it is the answer for its version; when it has died the next one is."""
    alive: Alive[Any] = Alive()
    first, second, other = _Thing(), _Thing(), _Thing()
    kept: Any = alive
    assert kept.get((1, 1)) is None
    assert kept.keep((1, 1), first) is first
    assert kept.keep((1, 1), second) is first
    assert kept.keep((1, 2), other) is other
    assert (kept.get((1, 1)), kept.get((1, 2))) == (first, other)
    del first
    assert kept.get((1, 1)) is None
    assert kept.keep((1, 1), second) is second
    assert kept.get((1, 1)) is second


def test_signal_handler_that_keeps_a_snapshot_while_its_thread_does_is_first() -> None:
    """Wherever it comes between two looks at one that has died: a version never has two that live."""
    kept: Any = Alive()
    handlers, mine = _Thing(), _Thing()
    before = signal.signal(signal.SIGUSR1, lambda *_: kept.keep((1, 1), handlers))

    class Interrupted(weakref.ref[_Thing]):
        def __call__(self) -> Any:
            found = super().__call__()
            if not calls:
                calls.append(self)
                signal.raise_signal(signal.SIGUSR1)
            return found

    try:
        for keeps in (lambda: kept.keep((1, 1), mine), kept._forget_dead):
            calls: list[object] = []
            kept._refs[1, 1] = Interrupted(_Thing())
            keeps()
            assert calls
            assert kept.get((1, 1)) is handlers
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert kept.keep((1, 1), mine) is handlers


def test_snapshots_that_died_are_forgotten(name: str) -> None:
    """A reader that has seen thousands of versions keeps a note of the few that somebody still has."""
    with Writer(name, initial=0) as w:
        r = Reader(name)
        mine = {}
        for n in range(1, 2001):
            version = w.publish(n)
            snap = r.snapshot()
            if n % 400 == 0:
                mine[version] = snap.hold()
        assert len(r._alive._refs) <= 2 * (len(mine) + 1) + 8
        for version, snap in mine.items():
            assert r.at(version) is snap
            snap.release()
