"""Reader: each method, argument and attribute; last good value on bad news; markers as the kernel shows them."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import JSON, Codec, FrozenDict, FrozenList, MsgPack, Raw, Reader, Writer
from shmcow.store import attach

SHM = Path("/dev/shm")
SEEN = 1 << 62


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0
    hosts: tuple[str, ...] = ()


class Mutable(msgspec.Struct):
    x: int


def markers(name: str, pid: int | str = "self") -> dict[str, list[int]]:
    """Held and seen versions of one process, from the kernel's own account of its descriptors."""
    found: dict[str, set[int]] = {"held": set(), "seen": set()}
    prefix = f"{SHM}/shmcow.{name}."
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
        except FileNotFoundError:
            continue
        if not (target.startswith(prefix) and target.removesuffix(" (deleted)").endswith(".holds")):
            continue
        for line in info.splitlines():
            if line.startswith("lock:"):
                _, _, kind, _, access, _, _, start, end = line.split()
                assert (kind, access) == ("OFDLCK", "READ")
                for at in range(int(start), int(end) + 1):  # the kernel joins neighbours to one lock
                    found["seen" if at >= SEEN else "held"].add(at % SEEN)
    return {kind: sorted(versions) for kind, versions in found.items()}


def segment_path(name: str, version: int) -> Path:
    for generation in shmcow.describe(name).generations:
        if generation.version == version:
            return Path(f"{attach(name).prefix}{generation.segments[0]}")
    raise AssertionError(f"no version {version}")


def overwrite(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def break_payload(name: str, version: int) -> None:
    path = segment_path(name, version)
    path.chmod(0o600)
    overwrite(path, 0, bytes([path.read_bytes()[0] ^ 0xFF]))


@contextlib.contextmanager
def another_process(code: str, *arguments: str) -> Iterator[Callable[[str], str]]:
    """A child that answers each line it is asked with one line: `ask("expression") -> repr`."""
    loop = (
        "import sys, shmcow, gc\n" + code + "\nprint('ready', flush=True)\n"
        "for line in sys.stdin:\n    print(repr(eval(line)), flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", loop, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None

    def ask(question: str) -> str:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(question + "\n")
        child.stdin.flush()
        return child.stdout.readline().strip()

    ask.pid = child.pid  # type: ignore[attr-defined]
    try:
        assert child.stdout.readline() == "ready\n"
        yield ask
    finally:
        child.communicate()


# ---- get, snapshot, version ----


def test_reader_may_be_made_before_the_store(name: str) -> None:
    """Making a Reader touches nothing; get() raises until there is a store and a version, then returns it."""
    r = Reader(name)
    assert "nothing read yet" in repr(r)
    with pytest.raises(shmcow.StoreNotFoundError, match=f"there is no store .*{name}"):
        r.get()
    assert r.version == 0
    with Writer(name) as w:
        with pytest.raises(shmcow.NotPublishedError, match="publish one, or pass default="):
            r.get()
        with pytest.raises(shmcow.NotPublishedError):
            r.snapshot()
        w.publish("hello")
        assert r.get() == "hello"
        assert r.version == 1
        assert r.name == name
        assert repr(r) == f"<Reader {name}, at version 1>"


def test_get_returns_one_object_for_each_version(name: str) -> None:
    """The value and the snapshot are the same objects until the version changes."""
    with Writer(name, initial={"a": [1]}) as w:
        r = Reader(name)
        first, snap = r.get(), r.snapshot()
        assert r.get() is first
        assert r.snapshot() is snap
        assert snap.value is first
        assert r.at(1) is snap
        w.publish({"a": [2]})
        assert r.get() is not first
        assert (r.get(), r.snapshot().version, first) == ({"a": [2]}, 2, {"a": [1]})


def test_threads_share_one_object(name: str) -> None:
    """Threads that come first at the same moment get the same value."""
    with Writer(name, initial={"a": 1}):
        r = Reader(name)
        barrier = threading.Barrier(8)
        got: list[Any] = []

        def run() -> None:
            barrier.wait(60)
            got.append(r.get())

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(got) == 8
        assert len({id(value) for value in got}) == 1


def test_typed_reader_decodes_to_the_type(name: str) -> None:
    """`type=` and `codec=` decode to the class; without either, to frozen builtins."""
    with Writer(name, type=Config, initial=Config(2.0, ("a",))):
        assert Reader(name, type=Config).get() == Config(2.0, ("a",))
        assert Reader(name, codec=MsgPack(Config)).get() == Config(2.0, ("a",))
        plain = Reader(name).get()
        assert plain == {"timeout": 2.0, "hosts": ["a"]}
        assert (type(plain), type(plain["hosts"])) == (FrozenDict, FrozenList)


def test_reader_follows_the_codec_that_the_store_names(name: str) -> None:
    """A reader without a codec reads any built-in one."""
    with Writer(name, codec=JSON(), initial={"a": 1}):
        assert Reader(name).get() == {"a": 1}
        assert Reader(name, type=dict[str, int]).get() == {"a": 1}


def test_wrong_codec_is_said_with_both_names(name: str) -> None:
    """A reader with another codec than the store's raises CodecMismatchError."""
    with Writer(name, codec=JSON(), initial={"a": 1}):
        with pytest.raises(shmcow.CodecMismatchError, match=r"codec 'json', expected 'msgpack'"):
            Reader(name, codec=MsgPack()).get()
        with pytest.raises(shmcow.CodecMismatchError, match="expected 'raw'"):
            Reader(name, codec=Raw()).get()


class Own(Codec[bytes]):
    name = "own"

    def encode(self, value: bytes) -> list[Any]:
        return [value]

    def decode(self, view: memoryview) -> bytes:
        return bytes(view)


def test_unknown_codec_says_to_pass_it(name: str) -> None:
    """A codec that is not built in must be given; nothing in shared memory names code."""
    with Writer(name, codec=Own(), initial=b"x"):
        assert Reader(name, codec=Own()).get() == b"x"
        with pytest.raises(shmcow.CodecMismatchError, match=r"'own'.*pass codec="):
            Reader(name).get()


def test_at_opens_older_versions(name: str) -> None:
    """`at` returns a snapshot of any openable version, and VersionGoneError for the others."""
    with Writer(name, retain=1) as w:
        r = Reader(name)
        for n in (1, 2, 3):
            w.publish(n)
        assert (r.at(3).value, r.at(2).value) == (3, 2)
        assert r.get() == 3
        for gone in (1, 4, 1 << 40):
            with pytest.raises(shmcow.VersionGoneError, match=rf"version {gone} of"):
                r.at(gone)


def test_refresh_tells_whether_the_value_changed(name: str) -> None:
    """True when get() returns another version than before."""
    r = Reader(name)
    assert r.refresh() is False
    assert isinstance(r.problem, shmcow.StoreNotFoundError)
    with Writer(name, initial=1) as w:
        assert r.refresh() is True
        assert r.problem is None
        assert r.refresh() is False
        w.publish(2)
        assert r.refresh() is True
        assert r.get() == 2


def test_closed_reader_raises_and_lets_go(name: str) -> None:
    """After close() every call raises ClosedError, no descriptor is open, and held snapshots stay usable."""
    with Writer(name, codec=Raw(), initial=b"abc"):
        with Reader(name) as r:
            view = r.get()
            snap = r.snapshot()
        for call in (r.get, r.snapshot, r.refresh, lambda: r.at(1), lambda: r.version):
            with pytest.raises(shmcow.ClosedError, match="make a new one"):
                call()
        assert bytes(view) == bytes(snap.value) == b"abc"
        assert markers(name) == {"held": [1], "seen": []}
        del view, snap
        assert markers(name) == {"held": [], "seen": []}
        assert "closed" in repr(r)
        r.close()


# ---- arguments ----


def test_default_is_returned_only_while_there_is_no_value(name: str) -> None:
    """`default=` stands in for a store that is missing, empty or unreadable, and never hides a good value."""
    r = Reader(name, default={"d": 1})
    assert r.get() == {"d": 1}
    with pytest.raises(shmcow.StoreNotFoundError):
        r.snapshot()
    with Writer(name, type=Mutable, initial=Mutable(1), freeze=False) as w:
        typed = Reader(name, type=Config, default=Config(9.0))
        assert r.get() == {"x": 1}
        w.publish(Mutable(2))
        assert r.get() == {"x": 2}
        assert typed.get() == Config()
        assert Reader(name, type=list[int], default=[7]).get() == [7]
        w.destroy()
        assert r.get() == {"x": 2}


def test_default_none_is_a_default(name: str) -> None:
    """`default=None` returns None, where no default raises."""
    assert Reader(name, default=None).get() is None


def test_transform_runs_once_per_version(name: str) -> None:
    """get() returns what `transform` made of the value, made once for each version, shared by threads."""
    calls: list[Any] = []

    def double(value: int) -> list[int]:
        calls.append(value)
        return [value, value]

    with Writer(name, initial=1) as w:
        r = Reader(name, transform=double)
        assert all(r.get() is r.get() for _ in range(100))
        assert r.snapshot().value is r.get()
        w.publish(2)
        assert r.get() == [2, 2]
        assert calls == [1, 2]


def test_transform_that_raises_keeps_the_last_good_value(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A transform's exception is bad news about that version: kept, counted, logged once, retried by the next."""
    with Writer(name, initial=2) as w:
        r = Reader(name, transform=lambda n: 10 // n)
        assert r.get() == 5
        w.publish(0)
        assert [r.get() for _ in range(5)] == [5] * 5
        assert isinstance(r.problem, shmcow.DecodeError)
        assert "transform= raised ZeroDivisionError for version 2" in str(r.problem)
        assert r.failures == 1
        w.publish(5)
        assert r.get() == 2
        assert r.problem is None
    assert len([record for record in caplog.records if record.name == "shmcow"]) == 1


def test_get_inside_transform_is_the_last_good_value(name: str) -> None:
    """A transform that reads the same store sees the value before; the very first one is told that there is none."""
    seen: list[Any] = []

    def look(value: int) -> int:
        try:
            seen.append(r.get())
        except shmcow.NotPublishedError as exc:
            seen.append(str(exc))
        return value

    with Writer(name, initial=1) as w:
        r = Reader(name, transform=look)
        assert r.get() == 1
        w.publish(2)
        assert r.get() == 2
    assert "decodes its first version" in seen[0]
    assert seen[1] == 1


def test_freeze_false_gives_plain_values(name: str) -> None:
    """`freeze=False` opts out: dicts, lists and mutable Structs."""
    with Writer(name, initial={"x": 1}):
        value = Reader(name, freeze=False).get()
        assert type(value) is dict
        assert Reader(name, type=Mutable, freeze=False).get() == Mutable(1)
        with pytest.raises(shmcow.ValidationError, match="Mutable"):
            Reader(name, type=Mutable)
        with pytest.raises(TypeError):
            Reader(name).get()["x"] = 2


def test_on_bad_raise_raises_at_every_call(name: str) -> None:
    """`on_bad="raise"` raises while the newest version cannot be used, and recovers with the next."""
    with Writer(name, initial={"a": 1}) as w:
        r = Reader(name, type=dict[str, int], on_bad="raise")
        assert r.get() == {"a": 1}
        w.publish({"a": "x"})
        for _ in range(3):
            with pytest.raises(shmcow.DecodeError, match=r"version 2 of .*Expected `int`, got `str`"):
                r.get()
            with pytest.raises(shmcow.DecodeError):
                r.snapshot()
        assert r.failures == 1
        w.publish({"a": 3})
        assert r.get() == {"a": 3}
        assert r.problem is None
        w.destroy()
        with pytest.raises(shmcow.StoreDestroyedError):
            r.get()


def test_owner_refuses_a_store_of_somebody_else(name: str) -> None:
    """`owner=` by number or name accepts only that user's store."""
    with Writer(name, initial=1):
        assert Reader(name, owner=os.geteuid()).get() == 1
        r = Reader(name, owner=os.geteuid() + 1)
        with pytest.raises(shmcow.NotOwnerError, match=f"belongs to user {os.geteuid()}, expected user"):
            r.get()
        with pytest.raises(shmcow.NotOwnerError):
            r.at(1)
        assert markers(name)["held"] == []


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"type": Config, "codec": MsgPack()}, ValueError, "not both"),
        ({"codec": MsgPack}, TypeError, "codec object such as"),
        ({"codec": "json"}, TypeError, "codec object such as"),
        ({"on_bad": "ignore"}, ValueError, "'keep' or 'raise', found 'ignore'"),
        ({"transform": 5}, TypeError, "transform= is a callable, found 5"),
        ({"owner": "no-such-user-here"}, ValueError, "no user 'no-such-user-here'"),
        ({"owner": -1}, ValueError, "owner is"),
        ({"owner": 1.5}, (TypeError, ValueError), "owner is"),
        ({"type": Mutable}, shmcow.ValidationError, "Mutable"),
        ({"type": list[dict[str, Mutable]]}, shmcow.ValidationError, r"Mutable"),
        ({"type": object()}, shmcow.ValidationError, "use a type that msgspec"),
    ],
)
def test_wrong_arguments_are_refused_at_once(name: str, arguments: dict[str, Any], error: Any, words: str) -> None:
    """A Reader that cannot work is refused when it is made, before any store is looked at."""
    with pytest.raises(error, match=words):
        Reader(name, **arguments)


def test_at_refuses_what_is_no_version(name: str) -> None:
    """`at` takes an int from 1."""
    with Writer(name, initial=1):
        r = Reader(name)
        for wrong in ("1", 1.0, None, True):
            with pytest.raises(TypeError, match="a version is an int"):
                r.at(wrong)  # type: ignore[arg-type]
        for wrong in (0, -1, 1 << 48, 1 << 70):
            with pytest.raises(ValueError, match=r"version"):
                r.at(wrong)


def make_double(value: int) -> int:
    return 2 * value


def test_reader_pickles_by_name_with_all_its_arguments(name: str) -> None:
    """An unpickled Reader reads the same store in the same way, in this process or another."""
    with Writer(name, type=Config, initial=Config(2.0)) as w:
        r = Reader(name, type=Config, default=Config(9.0), on_bad="raise", owner=os.geteuid(), freeze=True, verify=True)
        r.get()
        again = pickle.loads(pickle.dumps(r))
        assert again.get() == Config(2.0)
        assert again.get() is not r.get()
        w.destroy()
        with pytest.raises(shmcow.StoreDestroyedError):
            again.get()
        assert pickle.loads(pickle.dumps(r)).get() == Config(9.0)
    plain = pickle.loads(pickle.dumps(Reader(name, codec=JSON(), transform=make_double)))
    with Writer(name, codec=JSON(), initial=4):
        assert plain.get() == 8


def test_reader_sent_to_a_process_that_lacks_its_type_says_so_when_it_is_used(name: str) -> None:
    """Unpickling raises nothing, as that would take a pool's worker down; every use names what is missing."""
    with Writer(name, type=Config, initial=Config(2.0)):
        data = pickle.dumps(Reader(name, type=Config))
        sent = pickle.loads(data.replace(b"Config", b"gifnoC"))
        assert repr(sent) == f"<Reader {name}, nothing read yet>"
        for use in (
            sent.get,
            sent.snapshot,
            sent.refresh,
            sent.watch,
            lambda: sent.at(1),
            lambda: sent.wait(timeout=0),
        ):
            with pytest.raises(shmcow.DecodeError, match=r"lacks the type .*gifnoC"):
                use()
    with pytest.raises(pickle.PicklingError, match=r"a Reader cannot be sent: .* importable"):
        pickle.dumps(Reader(name, transform=lambda value: value))


# ---- bad news ----


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.name == "shmcow" and record.levelno > logging.INFO
    ]


def test_undecodable_version_keeps_the_last_good_value(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """get() goes on with the last good value; one log line, one count and a `problem` for each bad version."""
    with Writer(name, initial={"a": 1}) as w:
        r = Reader(name, type=dict[str, int])
        good = r.get()
        for bad in (2, 3):
            w.publish({"a": f"secret{bad}"})
            assert all(r.get() is good for _ in range(5000))
            assert isinstance(r.problem, shmcow.DecodeError)
            assert f"version {bad} of" in str(r.problem)
            assert r.failures == bad - 1
            assert r.version == 1
            assert r.snapshot().version == 1
        assert len(warnings_of(caplog)) == 2
        assert "secret" not in caplog.text
        w.publish({"a": 4})
        assert r.get() == {"a": 4}
        assert (r.problem, r.failures) == (None, 2)


def test_corrupted_payload_keeps_the_last_good_value(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A payload with a wrong CRC is never decoded; one log line for that version."""
    with Writer(name, initial="one") as w:
        r = Reader(name)
        assert r.get() == "one"
        w.publish("two")
        break_payload(name, 2)
        assert all(r.get() == "one" for _ in range(5000))
        assert isinstance(r.problem, shmcow.CorruptSegmentError)
        assert "CRC" in str(r.problem)
        assert r.failures == 1
        assert len(warnings_of(caplog)) == 1
        w.publish("three")
        assert r.get() == "three"
        assert r.problem is None


def test_removed_segment_keeps_the_last_good_value(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A segment that was removed from outside is bad news about that version: counted and logged once."""
    with Writer(name, initial="one") as w:
        r = Reader(name)
        assert r.get() == "one"
        w.publish("two")
        segment_path(name, 2).unlink()
        assert all(r.get() == "one" for _ in range(5000))
        assert isinstance(r.problem, shmcow.CorruptSegmentError)
        assert "publish again" in str(r.problem)
        assert r.failures == 1
        assert len(warnings_of(caplog)) == 1
        w.publish("three")
        assert r.get() == "three"
        assert r.problem is None


def test_destroyed_store_keeps_the_last_good_value(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """After destroy() readers go on, say so once, and find the next store of that name."""
    w = Writer(name, initial="one")
    r = Reader(name)
    assert r.get() == "one"
    w.destroy()
    assert all(r.get() == "one" for _ in range(5000))
    assert isinstance(r.problem, shmcow.StoreDestroyedError)
    assert len(warnings_of(caplog)) == 1
    assert "last good value" in caplog.text
    assert w.publish("again") == 1
    for _ in range(5000):
        if r.get() == "again":
            break
    assert r.get() == "again"
    assert r.problem is None
    w.close()


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_readers_that_only_call_get_converge_on_a_new_store(name: str, how: str) -> None:
    """When the header goes and a writer creates the store again, get() finds it within some thousand calls."""
    with Writer(name, initial="one"):
        r = Reader(name)
        assert r.get() == "one"
        header = SHM / f"shmcow.{name}"
        if how == "removed":
            header.unlink()
        else:
            header.rename(SHM / f"shmcow.{name}-old")
        with Writer(name, initial="two") as again:
            assert again.created
            for _ in range(10_000):
                if r.get() == "two":
                    break
            assert r.get() == "two"
            assert r.version == 1
    (SHM / f"shmcow.{name}-old").unlink(missing_ok=True)
    with Writer(name) as w:
        w.reclaim()


def test_bad_version_is_not_held(name: str) -> None:
    """A version that could not be decoded is let go of: the remembered error does not keep it alive."""
    with Writer(name, initial={"a": 1}, retain=0) as w:
        r = Reader(name, type=dict[str, int])
        r.get()
        w.publish({"a": "x"})
        r.get()
        assert r.problem is not None
        assert markers(name)["held"] == []
        w.publish({"a": 3})
        assert len(shmcow.describe(name).generations) == 1


def test_corrupted_version_is_not_held(name: str) -> None:
    """Nor does a wrong CRC keep a version."""
    with Writer(name, initial=1, retain=0) as w:
        r = Reader(name)
        r.get()
        w.publish(2)
        break_payload(name, 2)
        r.get()
        assert r.problem is not None
        assert markers(name)["held"] == []


# ---- markers ----


def test_copying_codec_leaves_a_seen_marker_only(name: str) -> None:
    """What was copied needs no hold; the seen marker follows the version."""
    with Writer(name, initial=1) as w:
        r = Reader(name)
        assert markers(name) == {"held": [], "seen": []}
        r.get()
        assert markers(name) == {"held": [], "seen": [1]}
        w.publish(2)
        assert markers(name) == {"held": [], "seen": [1]}
        r.get()
        assert markers(name) == {"held": [], "seen": [2]}
        store = attach(name)
        assert store.marked(2, True)
        assert not store.marked(2)
        assert not store.marked(1, True)
        r.close()
        assert markers(name) == {"held": [], "seen": []}
        assert not store.marked(2, True)


def test_held_marker_is_counted_per_process_and_version(name: str) -> None:
    """Snapshots, views and threads of one process share one marker, which goes with the last of them."""
    with Writer(name, initial=1) as w:
        r = Reader(name)
        snap = r.snapshot()
        other = Reader(name).snapshot()
        view = snap.data
        assert markers(name)["held"] == [1]
        with snap, other, snap:
            del view
            assert markers(name)["held"] == [1]
            w.publish(2)
            with r.snapshot():
                assert markers(name)["held"] == [1, 2]
            assert markers(name)["held"] == [1]
        assert markers(name)["held"] == []


def test_raw_values_hold_their_version(name: str) -> None:
    """A view into shared memory holds its version until it goes; the mapping outlives the reader."""
    with Writer(name, codec=Raw(), initial=b"one", retain=0) as w:
        r = Reader(name)
        view = r.get()
        assert isinstance(view, memoryview)
        assert view.readonly
        w.publish(b"two")
        assert markers(name)["held"] == [1]
        assert bytes(r.get()) == b"two"
        assert markers(name)["held"] == [1, 2]
        piece = view[1:]
        del view
        assert markers(name)["held"] == [1, 2]
        assert bytes(piece) == b"ne"
        del piece
        assert markers(name)["held"] == [2]


def test_two_processes_are_two_holders(name: str) -> None:
    """Markers of different processes add up, and each process shows its own."""
    with Writer(name, initial=1) as w:
        code = "r = shmcow.Reader(sys.argv[1])\nsnap = r.snapshot().hold()"
        with another_process(code, name) as one, another_process(code, name) as two:
            store = attach(name)
            for ask in (one, two):
                assert markers(name, ask.pid) == {"held": [1], "seen": [1]}  # type: ignore[attr-defined]
            assert markers(name)["held"] == []
            w.publish(2)
            assert one("snap.release()") == "None"
            assert store.marked(1)
            assert two("snap.release()") == "None"
            assert not store.marked(1)
            assert one("r.get()") == "2"
            assert one("r.version") == "2"
            assert markers(name, one.pid)["seen"] == [2]  # type: ignore[attr-defined]
            assert markers(name, two.pid)["seen"] == [1]  # type: ignore[attr-defined]
            assert store.marked(1, True)
        assert not store.marked(1, True)


def test_reader_needs_one_descriptor(name: str) -> None:
    """Many readers of one store in one process share one claim descriptor."""
    with Writer(name, initial=1):
        readers = [Reader(name) for _ in range(10)]
        for r in readers:
            r.get()
        targets = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                targets.append(os.readlink(f"/proc/self/fd/{number}"))
        assert (
            len([target for target in targets if target.startswith(f"{SHM}/shmcow.{name}.") and "holds" in target]) <= 2
        )
        assert markers(name)["seen"] == [1]


def test_claim_is_taken_again_when_a_daemonizer_closed_it(name: str) -> None:
    """If all descriptors are closed from outside, refresh() marks again what is held."""
    with Writer(name, initial=1):
        r = Reader(name)
        with r.snapshot():
            assert markers(name) == {"held": [1], "seen": [1]}
            for number in os.listdir("/proc/self/fd"):
                try:
                    target = os.readlink(f"/proc/self/fd/{number}")
                except FileNotFoundError:
                    continue
                if target.startswith(f"{SHM}/shmcow.{name}.") and target.endswith(".holds"):
                    os.close(int(number))
            assert markers(name) == {"held": [], "seen": []}
            r.refresh()
            assert markers(name) == {"held": [1], "seen": [1]}
        assert markers(name)["held"] == []


def test_forked_child_holds_by_itself(name: str) -> None:
    """A child becomes a holder with its next read, and its end does not take the parent's marker."""
    with Writer(name, initial=1):
        r = Reader(name)
        with r.snapshot():
            ours, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                before = markers(name)
                r.get()
                after = markers(name)
                os.write(theirs, repr((before, after)).encode())
                os._exit(0)
            os.close(theirs)
            with os.fdopen(ours) as answer:
                told = answer.read()
            assert os.waitpid(pid, 0)[1] == 0
            assert told == repr(({"held": [], "seen": []}, {"held": [1], "seen": [1]}))
            assert markers(name) == {"held": [1], "seen": [1]}
            assert attach(name).marked(1)
        assert markers(name)["held"] == []
