"""A pickled snapshot in one process: what is sent and arrives, what is held meanwhile, what is kept afterwards."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import JSON, FrozenDict, Raw, Reader, Snapshot, Writer
from shmcow import snapshot as snapshots
from shmcow.store import attach

WATCHDOG = 60.0
_counted: list[Any] = []
_gate = threading.Event()


FIELDS = (
    "author", "codec", "epoch", "fingerprint", "message", "published_at", "publisher", "rollback_of", "size_bytes",
    "source", "store", "type_name", "value", "version",
)  # fmt: skip


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0


def count(value: Any) -> Any:
    """Count how often a value is decoded: a transform."""
    _counted.append(type(value))
    return value


def refuse_second(value: Any) -> Any:
    """Work the first time only: a transform."""
    _counted.append(type(value))
    if len(_counted) > 1:
        raise RuntimeError(f"cannot have {len(value)} bytes here")
    return value


@pytest.fixture(autouse=True)
def forgets() -> Iterator[None]:
    """Start and end with nothing received: what is kept for the next arrival keeps its stores attached."""
    snapshots._kept.clear()
    _counted.clear()
    yield
    snapshots._kept.clear()


def marked(name: str, version: int) -> bool:
    gc.collect()
    return attach(name).marked(version)


def send_away(snap: Snapshot[Any]) -> bytes:
    """Pickle a snapshot as if it went to a process that has never seen it."""
    data = pickle.dumps(snap)
    snapshots._alive.clear()
    return data


# ---- what arrives ----


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_snapshot_arrives_whole_by_every_protocol(name: str, protocol: int) -> None:
    """Each attribute is as it was, whatever the pickle protocol."""
    with Writer(name, type=Config) as w:
        w.publish(Config(2.0), message="why", author="who", source="from what")
        snap = Reader(name, type=Config).snapshot()
        for data in (pickle.dumps(snap, protocol), send_away(snap)):
            again = pickle.loads(data)
            assert type(again) is Snapshot
            for field in FIELDS:
                assert getattr(again, field) == getattr(snap, field), field
            assert again.held


@pytest.mark.parametrize(
    "arguments",
    [
        {"type": dict[str, list[int]]},
        {"codec": JSON()},
        {"codec": JSON(dict[str, list[int]])},
        {"freeze": False},
        {"transform": len},
        {"verify": True},
    ],
    ids=str,
)
def test_snapshot_arrives_decoded_as_its_reader_said(name: str, arguments: dict[str, Any]) -> None:
    """Type, codec, freezing and transform travel with it."""
    with Writer(name, codec=arguments.get("codec"), initial={"a": [1, 2]}):
        snap = Reader(name, **arguments).snapshot()
        again = pickle.loads(send_away(snap))
        assert again.value == snap.value
        assert type(again.value) is type(snap.value)


def test_raw_snapshot_arrives_as_a_view_of_the_version(name: str) -> None:
    """Nothing is copied: the value is a view into shared memory, which holds the version."""
    with Writer(name, codec=Raw(), initial=b"x" * 5000, retain=0) as w:
        snap = Reader(name, codec=Raw()).snapshot().hold()
        again = pickle.loads(send_away(snap))
        view = again.value
        assert (view.readonly, bytes(view)) == (True, b"x" * 5000)
        del snap, again
        w.publish(b"y")
        assert marked(name, 1)
        del view
        assert not marked(name, 1)


def test_what_is_sent_is_small_and_has_no_value_in_it(name: str) -> None:
    """A pickle names the version; its size does not depend on the value's."""
    with Writer(name, initial={"secret": "s3cr3t" * 100_000}):
        data = pickle.dumps(Reader(name).snapshot())
        assert len(data) < 600
        assert b"s3cr3t" not in data


def test_snapshot_inside_other_things(name: str) -> None:
    """In a dict, a list, an exception: it arrives; twice in one pickle, it is one object."""
    with Writer(name, initial={"a": 1}):
        snap = Reader(name).snapshot()
        things = pickle.loads(pickle.dumps({"one": [snap, snap], "error": LookupError("no", snap)}))
        first, second = things["one"]
        assert first is second
        assert things["error"].args[1] is first
        assert first.value is snap.value


def test_copies_in_one_process_are_the_snapshot_itself(name: str) -> None:
    """copy and deepcopy return the same object and hold nothing, as for any immutable value."""
    with Writer(name, initial={"a": 1}):
        snap = Reader(name).snapshot()
        assert copy.copy(snap) is snap
        assert copy.deepcopy(snap) is snap
        assert copy.deepcopy([snap, {"again": snap}]) == [snap, {"again": snap}]
        assert not snap.held


def test_value_is_decoded_once_however_often_it_arrives(name: str) -> None:
    """One after the other, the receiver keeping none: it is decoded for the first one only."""
    with Writer(name, initial={"a": 1}):
        data = send_away(Reader(name, transform=count).snapshot())
        _counted.clear()
        values = {id(pickle.loads(data).value) for _ in range(50)}
        assert len(values) == 1
        assert len(_counted) == 1


def test_arrival_in_the_sending_process_shares_the_value(name: str) -> None:
    """Where the sender's own snapshot lives, nothing is decoded again, and nothing kept."""
    with Writer(name, initial={"a": 1}) as w:
        snap = Reader(name, transform=count).snapshot()
        again = pickle.loads(pickle.dumps(snap))
        assert again.value is snap.value
        assert again is not snap
        assert len(_counted) == 1
        assert not snapshots._kept
        w.destroy()


# ---- what is held ----


def test_pickling_holds_until_release(name: str) -> None:
    """The sender holds once, however often it pickles, and lets go by one release()."""
    with Writer(name, initial=1, retain=0) as w:
        snap = Reader(name).snapshot()
        for _ in range(3):
            pickle.dumps(snap)
        assert snap.held
        w.publish(2)
        assert marked(name, 1)
        snap.release()
        assert not snap.held
        assert not marked(name, 1)


def test_pickling_in_a_with_block_holds_no_longer_than_the_block(name: str) -> None:
    """Held already, it is held no more than before."""
    with Writer(name, initial=1, retain=0) as w:
        snap = Reader(name).snapshot()
        with snap:
            pickle.dumps(snap)
        assert not snap.held
        assert not marked(name, 1)
        w.publish(2)


def test_receivers_hold_each_for_itself(name: str) -> None:
    """Two that arrived share the value, not the hold: what one releases, the other and the sender keep."""
    with Writer(name, initial=1, retain=0) as w:
        snap = Reader(name).snapshot().hold()
        data = pickle.dumps(snap)
        first, second = pickle.loads(data), pickle.loads(data)
        first.release()
        assert (snap.held, first.held, second.held) == (True, False, True)
        snap.release()
        w.publish(2)
        assert marked(name, 1)
        assert bytes(second.data) == b"\x01"
        del second
        assert not marked(name, 1)


def test_receiver_holds_as_long_as_it_has_the_snapshot(name: str) -> None:
    """From arrival to the last reference; nothing that is kept for the next arrival holds."""
    with Writer(name, initial={"a": 1}, retain=0) as w:
        snap = Reader(name).snapshot()
        data = send_away(snap)
        received = pickle.loads(data)
        del snap
        w.publish({"a": 2})
        assert marked(name, 1)
        received = pickle.loads(data)  # while the sender has gone already
        assert received.value == {"a": 1}
        assert marked(name, 1)
        del received
        assert not marked(name, 1)
        assert w.reclaim() == 1


def test_released_snapshot_can_be_sent_while_its_version_is_there(name: str) -> None:
    """release() does not end it: pickling holds it again, unless the version is gone, which is the sender's error."""
    with Writer(name, initial=1, retain=1) as w:
        snap = Reader(name).snapshot().hold()
        snap.release()
        w.publish(2)
        assert pickle.loads(pickle.dumps(snap)).value == 1
        snap.release()
        snapshots._kept.clear()
        w.publish(3)
        with pytest.raises(shmcow.VersionGoneError, match=r"version 1 of .*hold it, or raise retain="):
            pickle.dumps(snap)
        assert not snap.held
        assert snap.value == 1


def test_old_version_from_at_can_be_sent(name: str) -> None:
    """What at() returned is sent like what is current."""
    with Writer(name, initial=1) as w:
        for n in range(2, 5):
            w.publish(n)
        with Reader(name).at(2) as snap:
            assert pickle.loads(send_away(snap)).value == 2


def test_what_cannot_be_pickled_is_the_senders_error_and_not_held(name: str) -> None:
    """A lambda, a local type: PicklingError that says what to do, and no hold for nobody."""

    class Local(msgspec.Struct, frozen=True):
        a: int

    with Writer(name, initial={"a": 1}):
        for reader in (Reader(name, transform=lambda value: value), Reader(name, type=Local)):
            snap: Snapshot[Any] = reader.snapshot()
            with pytest.raises(pickle.PicklingError, match=r"cannot be sent: .* must be importable in the other"):
                pickle.dumps(snap)
            assert not snap.held
        assert not attach(name).marked(1)


# ---- what cannot be had ----


def gone(name: str, _: Path) -> tuple[bytes, type[Exception], str]:
    """Return a pickle whose sender let go."""
    with Writer(name, initial=1, retain=0) as w:
        data = send_away(Reader(name).snapshot())
        gc.collect()
        w.publish(2)
        w.reclaim()
    return data, shmcow.VersionGoneError, "its sender let go before it arrived: keep the snapshot there"


def destroyed(name: str, _: Path) -> tuple[bytes, type[Exception], str]:
    """Return a pickle of a store that is gone."""
    with Writer(name, initial=1) as w:
        data = send_away(Reader(name).snapshot())
        w.destroy()
    return data, shmcow.StoreDestroyedError, "the store is gone by now"


def created_again(name: str, _: Path) -> tuple[bytes, type[Exception], str]:
    """Return a pickle of a store that was destroyed and created again, with the same value and version."""
    data, error, _ = destroyed(name, _)
    Writer(name, initial=1).close()
    return data, error, "was destroyed and created again since: its version 1 is another one"


def without_type(name: str, _: Path) -> tuple[bytes, type[Exception], str]:
    """Return a pickle whose type cannot be imported here."""
    with Writer(name, initial=1):
        data = send_away(Reader(name, transform=count).snapshot())
    assert data.count(b"count") == 1
    return data.replace(b"count", b"tnuoc"), shmcow.DecodeError, "which lacks the type or the codec .*tnuoc"


def with_bad_transform(name: str, _: Path) -> tuple[bytes, type[Exception], str]:
    """Return a pickle whose transform fails here."""
    with Writer(name, codec=Raw(), initial=b"1234"):
        data = send_away(Reader(name, codec=Raw(), transform=refuse_second).snapshot())
    return data, shmcow.DecodeError, r"transform= raised RuntimeError for version 1 of .*: cannot have 4 bytes here"


UNAVAILABLE = pytest.mark.parametrize("case", [gone, destroyed, created_again, without_type, with_bad_transform])
Case = Callable[[str, Path], tuple[bytes, type[Exception], str]]


@UNAVAILABLE
def test_use_of_an_unavailable_snapshot_says_why(name: str, tmp_path: Path, case: Case) -> None:
    """Unpickling never raises; each use raises why, anew each time, and what is known without the store is there."""
    data, error, why = case(name, tmp_path)
    found = pickle.loads(data)
    assert isinstance(found, Snapshot)
    assert (found.store, found.version, len(found.epoch), found.held) == (name, 1, 32, False)
    assert repr(found) == f"<Snapshot {name} version 1, unavailable: {error.__name__}>"
    raised: list[BaseException] = []
    uses: list[Callable[[], Any]] = [
        lambda: found.value,
        lambda: found.data,
        lambda: found.message,
        lambda: found.published_at,
        found.hold,
        found.copy,
        found.__enter__,
    ]
    for use in uses:
        with pytest.raises(error, match=why) as caught:
            use()
        assert f"version 1 of store {name}" in str(caught.value)
        assert not any(caught.value is other for other in raised)
        raised.append(caught.value)
        again = pickle.loads(pickle.dumps(caught.value))  # it goes back to the caller of a pool
        assert (type(again), str(again)) == (error, str(caught.value))
    found.release()
    assert not hasattr(found, "shape")
    assert not hasattr(found, "__array__")
    assert copy.copy(found) is found
    assert copy.deepcopy(found) is found


@UNAVAILABLE
def test_unavailable_snapshot_holds_nothing(name: str, tmp_path: Path, case: Case) -> None:
    """Neither it nor an error that it raised keeps the version held or the store attached, by a traceback, say."""
    data, error, _ = case(name, tmp_path)
    found = pickle.loads(data)
    with pytest.raises(error) as caught:
        _ = found.value
    kept = [found, caught.value]
    if name in shmcow.list_stores():
        assert not marked(name, 1)
        shmcow.destroy(name)
    gc.collect()
    held = [target for target in targets() if name in target]
    assert not held
    assert kept


def targets() -> list[str]:
    """Return what this process's descriptors lead to."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return found


@UNAVAILABLE
def test_unavailable_snapshot_is_sent_on_as_it_came(name: str, tmp_path: Path, case: Case) -> None:
    """Pickled again it is the same, twice over; where it can be had, it is had."""
    data, error, why = case(name, tmp_path)
    found = pickle.loads(pickle.dumps(pickle.loads(data)))
    with pytest.raises(error, match=why):
        _ = found.value
    if case is with_bad_transform:
        _counted.clear()
        assert bytes(pickle.loads(pickle.dumps(found)).value) == b"1234"


def test_unpickling_while_handling_an_error_keeps_its_traceback(name: str, tmp_path: Path) -> None:
    """An error that the caller is handling is not touched by what goes wrong in here."""
    data, error, _ = gone(name, tmp_path)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as exc:
        found, traceback = pickle.loads(data), exc.__traceback__
    assert traceback is not None
    with pytest.raises(error) as caught:
        _ = found.value
    assert not isinstance(caught.value.__context__, ZeroDivisionError)


# ---- threads, and what is kept ----


@pytest.mark.parametrize("codec", [None, Raw()])
def test_threads_that_receive_at_once_get_one_version(name: str, codec: Any) -> None:
    """Each of many threads has its snapshot of the one value, and the version is held until the last one goes."""
    with Writer(name, codec=codec, initial=b"v1", retain=0) as w:
        data = send_away(Reader(name, codec=codec).snapshot())
        barrier = threading.Barrier(8)
        found: list[Snapshot[Any]] = []

        def receive() -> None:
            barrier.wait(WATCHDOG)
            for _ in range(20):
                last = pickle.loads(data)
            found.append(last)

        threads = [threading.Thread(target=receive) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WATCHDOG)
        assert len(found) == 8
        assert all(snap.held and bytes(snap.value) == b"v1" for snap in found)
        w.publish(b"v2")
        while found:
            assert attach(name).marked(1)
            found.pop().release()
        assert not marked(name, 1)
        w.destroy()


def test_only_a_few_decoded_versions_are_kept(name: str) -> None:
    """What was received last is kept for the next arrival; what was not used for long is decoded again."""
    with Writer(name, initial=0, retain=40) as w:
        reader = Reader(name, transform=count)
        pickles = []
        for n in range(1, 31):
            w.publish({"n": n})
            pickles.append(pickle.dumps(reader.snapshot()))
        snapshots._alive.clear()
        _counted.clear()
        for data in pickles:
            pickle.loads(data)
            pickle.loads(pickles[0])  # in use all the time, it is never dropped
        assert len(snapshots._kept) <= 8
        assert len(_counted) == 30
        pickle.loads(pickles[1])
        assert len(_counted) == 31


def test_kept_versions_of_a_store_that_is_gone_are_dropped_at_the_next_arrival(name: str) -> None:
    """Neither their values nor their stores' descriptors stay once something else is received."""
    other = f"{name}-other"
    with Writer(name, initial={"a": 1}) as w, Writer(other, initial={"b": 1}) as keeps:
        pickle.loads(send_away(Reader(name).snapshot()))
        assert [key[0] for key in snapshots._kept] == [name]
        w.destroy()
        pickle.loads(send_away(Reader(other).snapshot()))
        assert [key[0] for key in snapshots._kept] == [other]
        keeps.destroy()


def test_received_value_is_frozen(name: str) -> None:
    """What arrives is shared by all that receive it, and so frozen as its sender's."""
    with Writer(name, initial={"a": [1]}):
        again = pickle.loads(send_away(Reader(name).snapshot()))
        assert type(again.value) is FrozenDict
        with pytest.raises(TypeError):
            again.value["a"] = 2
        again.copy()["a"] = 2
