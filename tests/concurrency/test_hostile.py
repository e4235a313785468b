"""Names in /dev/shm that somebody else made: a store goes on, whoever squats the name of its next segment."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
from processes import SHM, Child, Link, objects_of, value_of, version_in

import shmcow
from shmcow import IncompatibleStoreError, Reader, Writer, describe, destroy

OWNER, STRANGER = 65533, 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users: run the tests as root")


def become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


# ---- what a stranger makes ----


def make_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def make_directory(path: Path) -> None:
    path.mkdir(0o700)


def make_full_directory(path: Path) -> None:
    path.mkdir(0o700)
    make_file(path / "inside")


def make_link(path: Path) -> None:
    path.symlink_to("/dev/null")


def make_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


KINDS = [make_file, make_directory, make_full_directory, make_link, make_fifo]


def remove(path: Path) -> None:
    """Remove whatever has a name."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        path.unlink()
        return
    for inside in path.iterdir():
        inside.unlink()
    path.rmdir()


def next_segments(name: str, n: int) -> list[Path]:
    """Return the names of the next segments that a store will make."""
    report = describe(name)
    last = max((segment for generation in report.generations for segment in generation.segments), default=0)
    return [SHM / f"shmcow.{name}.{report.epoch}.{last + k}" for k in range(1, n + 1)]


@pytest.fixture
def squatted() -> Iterator[list[Path]]:
    """Names that are removed after the test, whatever has them then."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        remove(path)


# ---- what the owner does meanwhile: each answers one line ----


def _owner(link: Link, uid: int, name: str) -> None:
    if uid:
        become(uid)
    writer = Writer(name, initial=value_of(1), mode=0o644, retain=0)
    actions: dict[str, Callable[[int], Any]] = {
        "publish": lambda number: writer.publish(value_of(number)),
        "update": lambda number: writer.update(lambda _: value_of(number)),
        "new writer": lambda _: Writer(name, lock_timeout=0).version,
        "reclaim": lambda _: writer.reclaim(),
        "read": lambda _: version_in(Reader(name).get()),
        "destroy": lambda _: writer.destroy(),
        "destroy by name": lambda _: destroy(name),
    }
    link.send(os.geteuid())
    while (order := link.recv()) != "end":
        action, number = order
        try:
            link.send(("done", actions[action](number)))
        except shmcow.ShmcowError as exc:
            link.send((isinstance(exc, IncompatibleStoreError) or type(exc).__name__, str(exc)))


def _stranger(link: Link, uid: int, make: Callable[[Path], None], paths: list[Path]) -> None:
    if uid:
        become(uid)
    for path in paths:
        make(path)
    link.send("made")


def _squat(
    spawn: Callable[..., Child], squatted: list[Path], uid: int, make: Callable[[Path], None], paths: list[Path]
) -> None:
    squatted += paths
    stranger = spawn(_stranger, uid, make, paths)
    assert stranger.recv() == "made"
    stranger.done()


USERS = [
    pytest.param(OWNER, STRANGER, id="a-stranger", marks=needs_root),
    pytest.param(0, STRANGER, id="a-stranger-in-a-store-of-root", marks=needs_root),
    pytest.param(OWNER, OWNER, id="the-same-user", marks=needs_root),
    pytest.param(0, 0, id="this-user"),
]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("owner_uid", "squatter_uid"), USERS)
def test_squatted_segment_name_costs_one_publish(
    name: str,
    spawn: Callable[..., Child],
    squatted: list[Path],
    owner_uid: int,
    squatter_uid: int,
    make: Callable[[Path], None],
) -> None:
    """Whoever has the name of the next segment, and whatever it is: one publish fails and says so, the next works."""
    owner = spawn(_owner, owner_uid, name)
    owner.recv()
    [path] = next_segments(name, 1)
    _squat(spawn, squatted, squatter_uid, make, [path])
    reader = Reader(name)
    assert version_in(reader.get()) == 1

    incompatible, text = owner.ask(("publish", 2))
    assert incompatible is True, text
    assert path.name in text
    assert "nothing was published" in text
    assert {generation.state for generation in describe(name).generations} == {"held"}
    assert version_in(reader.get()) == 1

    assert owner.ask(("publish", 3)) == ("done", 2)
    assert version_in(reader.get()) == 3
    assert owner.ask(("new writer", 0)) == ("done", 2)
    assert owner.ask(("update", 4)) == ("done", 3)
    assert owner.ask(("reclaim", 0))[0] == "done"
    assert owner.ask(("read", 0)) == ("done", 4)
    assert describe(name).counters["recovered"] == 0
    assert processes.versions_of(name) == [3]
    assert objects_of(name) - {path.name} == processes.expected_objects(name)
    if os.path.lexists(path):
        assert path.lstat().st_uid == squatter_uid
    assert owner.ask(("destroy", 0)) == ("done", None)
    assert objects_of(name) <= {path.name}

    assert owner.ask(("publish", 5)) == ("done", 1), "created again beside what the squatter left"
    assert owner.ask(("destroy by name", 0)) == ("done", None)
    assert objects_of(name) <= {path.name}
    owner.send("end")
    owner.done()


@needs_root
def test_many_squatted_names_cost_one_publish_each(
    name: str, spawn: Callable[..., Child], squatted: list[Path]
) -> None:
    """A stranger who takes the next fifty names makes fifty publishes fail, and fills neither table nor store."""
    owner = spawn(_owner, OWNER, name)
    owner.recv()
    paths = next_segments(name, 50)
    _squat(spawn, squatted, STRANGER, make_file, paths)
    for path in paths:
        incompatible, text = owner.ask(("publish", 2))
        assert incompatible is True, text
        assert path.name in text
    assert owner.ask(("publish", 3)) == ("done", 2)
    assert owner.ask(("reclaim", 0))[0] == "done"
    assert processes.versions_of(name) == [2]
    assert objects_of(name) - {path.name for path in paths} == processes.expected_objects(name)
    owner.send("end")
    owner.done()


@needs_root
def test_names_that_look_like_an_older_epochs_stay_a_strangers(
    name: str, spawn: Callable[..., Child], squatted: list[Path]
) -> None:
    """What a stranger makes that looks like objects of another epoch is swept by nobody and disturbs nobody."""
    owner = spawn(_owner, OWNER, name)
    owner.recv()
    epoch = "0123456789abcdef" * 2
    paths = [SHM / f"shmcow.{name}.{epoch}.{what}" for what in ("lock", "holds", "1")]
    _squat(spawn, squatted, STRANGER, make_file, paths)
    assert owner.ask(("new writer", 0)) == ("done", 1)
    assert owner.ask(("reclaim", 0)) == ("done", 0)
    assert owner.ask(("publish", 2)) == ("done", 2)
    assert owner.ask(("destroy", 0)) == ("done", None)
    assert objects_of(name) == {path.name for path in paths}
    owner.send("end")
    owner.done()


# ---- while a store is being created ----


def test_squatted_lock_or_holds_of_a_new_store_is_another_epoch(
    name: str, squatted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A creator whose lock or holds name is taken does not use what it did not make: it takes another epoch."""
    real = shmcow.segments.make
    foreign: list[Path] = []

    def make(path: str) -> Any:
        target = SHM / path.removeprefix("/")
        if len(foreign) < 2 and path.endswith(("lock", "holds")[len(foreign)]):
            foreign.append(target)
            make_file(target)
        return real(path)

    monkeypatch.setattr(shmcow.segments, "make", make)
    writer = Writer(name, initial=value_of(1))
    squatted += foreign
    assert writer.created
    epoch = describe(name).epoch
    assert len(foreign) == 2
    assert all(epoch not in path.name for path in foreign)
    writer.destroy()
