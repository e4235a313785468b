"""Processes in other pid, user, time and mount namespaces, as in containers, share a store like any others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import psutil
import pytest
import users
from processes import SHM, Child, Link, objects_of, value_of, version_in
from users import (
    GROUP,
    MEMBER,
    NEW_MOUNTS,
    NEW_PIDS,
    NEW_TIME,
    OWNER,
    ROOT,
    STRANGER,
    User,
    act,
    done,
    inside,
    leave,
    needs_root,
    refused,
)

import shmcow
from shmcow import Reader, Writer, WriterBusyError, describe, destroy

pytestmark = needs_root


def new_pids() -> None:
    users.unshare(NEW_PIDS)


def new_pids_and_mounts() -> None:
    users.unshare(NEW_PIDS | NEW_MOUNTS)
    users.private_mounts()


def with_its_own_proc(link: Link, body: Callable[..., Any], *arguments: Any) -> None:
    """As in a container, where /proc shows the processes of the new pid namespace only."""
    users.mount("proc", "/proc")
    assert os.readlink("/proc/self") == str(os.getpid()) == "1"
    body(link, *arguments)


def a_container() -> None:
    new_pids_and_mounts()
    Child(with_its_own_proc, lambda link: None).done()  # noqa: ARG005


def a_root_of_its_own() -> None:
    STRANGER.become()
    users.look_like_root()


def new_mounts() -> None:
    users.unshare(NEW_MOUNTS)
    users.private_mounts()


AHEAD = 1_000_000  # seconds by which the clocks of a new time namespace differ


def new_time() -> None:
    users.unshare(NEW_TIME)
    Path("/proc/self/timens_offsets").write_text(f"monotonic {AHEAD} 0\nboottime {AHEAD} 0\n")


NAMESPACES = [
    pytest.param(new_pids, "pid", id="pid"),
    pytest.param(new_mounts, "mount", id="mount"),
    pytest.param(new_time, "time", id="time"),
]


# ---- what is the same in all of them ----


@pytest.mark.parametrize(("enter", "what"), NAMESPACES)
@pytest.mark.parametrize("user", [ROOT, MEMBER], ids=["root", "a member of the group"])
def test_reader_in_a_namespace_holds_like_any_other(
    name: str, spawn: Callable[..., Child], enter: Callable[[], None], what: str, user: User
) -> None:
    """A reader in another namespace follows; what it holds stays, and goes when it lets go or is killed."""
    users.require(enter, what)
    reader = spawn(inside, enter, act, user, name)
    pid = reader.recv()
    writer = Writer(name, initial=value_of(1), mode=0o640, group=GROUP, retain=0)
    assert done(reader, "get") == 1
    assert done(reader, "hold") == 1
    for version in (2, 3):
        writer.publish(value_of(version))
        assert done(reader, "get") == version
    assert done(reader, "hold") == 3
    writer.publish(value_of(4))
    writer.reclaim()
    assert processes.versions_of(name) == [4, 3, 1]
    assert {generation.version for generation in describe(name).generations if generation.marked} == {1, 3}
    assert processes.held_by(pid, name) == {1, 3}
    assert done(reader, "describe") == (4, 0, [3, 1])
    done(reader, "release", 1)
    writer.reclaim()
    assert processes.versions_of(name) == [4, 3]
    version, publisher, published = done(reader, "snapshot")
    assert (version, publisher) == (4, (os.getpid(), 0))
    assert abs(published - time.time()) < processes.WATCHDOG
    os.kill(pid, 9)
    processes.until(lambda: processes.state_of(pid) in ("Z", ""), "the reader dies")
    writer.reclaim()
    assert processes.versions_of(name) == [4]
    reader.wait()
    writer.destroy()


@pytest.mark.parametrize(("enter", "what"), NAMESPACES)
def test_writer_in_a_namespace_publishes_like_any_other(
    name: str, spawn: Callable[..., Child], enter: Callable[[], None], what: str
) -> None:
    """A writer in another namespace takes turns with those outside, heeds their holds, and tells the right time."""
    users.require(enter, what)
    there = spawn(inside, enter, act, ROOT, name)
    there.recv()
    done(there, "write_with", {"initial": value_of(1), "retain": 0})
    here = Writer(name)
    reader = Reader(name)
    with reader.snapshot() as snapshot:
        assert snapshot.version == 1
        assert done(there, "publish", 2) == 2
        assert here.publish(value_of(3)) == 3
        assert done(there, "update", 4) == 4
        assert processes.versions_of(name) == [4, 1]
    assert version_in(reader.get()) == 4
    now = time.time()
    assert abs(reader.snapshot().published_at.timestamp() - now) < processes.WATCHDOG
    assert abs(describe(name).created_at.timestamp() - now) < processes.WATCHDOG
    # Time-outs there are those of its own clocks, whatever they show.
    busy = spawn(users.hold_the_lock, ROOT, name)
    assert busy.recv() == "locked"
    done(there, "write_with", {"lock_timeout": 0.05, "create": False})
    assert "not free within 0.05 s" in refused(there, "publish", 5, error="WriterBusyError")
    leave(busy)
    assert done(there, "publish", 6) == 6
    processes.assert_at_rest(name)
    done(there, "destroy")
    assert objects_of(name) == set()
    leave(there)


def _clock(link: Link) -> None:
    link.send(time.monotonic())


def test_clocks_in_the_time_namespace_do_differ(spawn: Callable[..., Child]) -> None:
    """The tests above mean something: a process in the time namespace has another monotonic clock."""
    users.require(new_time, "time")
    child = spawn(inside, new_time, _clock)
    child.recv()
    assert child.recv() - time.monotonic() > AHEAD / 2
    child.done()


def test_container_with_its_own_proc_shares_the_store(name: str, spawn: Callable[..., Child]) -> None:
    """Where /proc shows a pid namespace of its own, as in a container, reading and writing are the same."""
    users.require(a_container, "pid and mount")
    there = spawn(inside, new_pids_and_mounts, with_its_own_proc, act, ROOT, name)
    pid = there.recv()
    done(there, "write_with", {"initial": value_of(1), "retain": 0})
    assert done(there, "ids")[0] == 1
    here = Writer(name)
    assert done(there, "hold") == 1
    assert here.publish(value_of(2)) == 2
    assert done(there, "publish", 3) == 3
    assert processes.versions_of(name) == [3, 1]
    assert processes.held_by(pid, name) == {1}
    assert Reader(name).snapshot().publisher.pid == 1, "a pid is as its own namespace counts"
    leave(there)
    here.reclaim()
    assert processes.versions_of(name) == [3]
    here.destroy()


# ---- who holds the writer lock? ----


def _busy_text(name: str) -> str:
    with pytest.raises(WriterBusyError) as caught:
        Writer(name, lock_timeout=0.05).publish(value_of(9))
    return str(caught.value)


def _send_busy_text(link: Link, user: User, name: str) -> None:
    user.become()
    link.send(_busy_text(name))


def test_holder_in_another_pid_namespace_is_not_taken_for_another(name: str, spawn: Callable[..., Child]) -> None:
    """Who holds the lock in a pid namespace is named by its pid out here, or as one that cannot be told."""
    users.require(new_pids, "pid")
    Writer(name, initial=value_of(1)).close()
    busy = spawn(inside, new_pids, users.hold_the_lock, ROOT, name)
    pid = busy.recv()
    assert busy.recv() == "locked"
    text = _busy_text(name)
    assert f"pid {pid} (" in text
    assert "pid 1 " not in text
    leave(busy)
    destroy(name)


def test_two_first_processes_of_two_namespaces_are_not_the_same(name: str, spawn: Callable[..., Child]) -> None:
    """A writer that is pid 1 does not take a holder that is pid 1 elsewhere for itself."""
    users.require(a_container, "pid and mount")
    Writer(name, initial=value_of(1)).close()
    busy = spawn(inside, new_pids, users.hold_the_lock, ROOT, name)
    busy.recv()
    assert busy.recv() == "locked"
    for other in (
        spawn(inside, new_pids, _send_busy_text, ROOT, name),
        spawn(inside, new_pids_and_mounts, with_its_own_proc, _send_busy_text, ROOT, name),
    ):
        other.recv()
        assert "this very process" not in other.recv()
        other.done()
    leave(busy)
    destroy(name)


def test_holder_that_may_not_be_looked_into_is_not_named_for_sure(name: str, spawn: Callable[..., Child]) -> None:
    """A user who cannot see which process has the lock names none, and says that it cannot."""
    users.require(new_pids, "pid")
    creator = spawn(act, OWNER, name)
    done(creator, "write_with", {"initial": value_of(1)})
    busy = spawn(inside, new_pids, users.hold_the_lock, ROOT, name)
    busy.recv()
    assert busy.recv() == "locked"
    other = spawn(_send_busy_text, OWNER, name)
    text = other.recv()
    assert f"({psutil.Process(1).name()}" not in text
    assert "cannot see" in text
    other.done()
    leave(busy)
    done(creator, "destroy")
    leave(creator)


def test_holder_in_plain_sight_is_named(name: str, spawn: Callable[..., Child]) -> None:
    """A holder in the same namespaces, of the same user, is named by pid, name and state."""
    Writer(name, initial=value_of(1)).close()
    busy = spawn(users.hold_the_lock, ROOT, name)
    assert busy.recv() == "locked"
    text = _busy_text(name)
    assert f"pid {busy.pid} (" in text
    assert "sleeping) holds it" in text
    leave(busy)
    destroy(name)


# ---- user namespaces ----


def _as_root_inside(link: Link, user: User, body: Callable[..., Any], *arguments: Any) -> None:
    """Become a user, and what looks like root in a user namespace of its own."""
    user.become()
    users.look_like_root()
    child = Child(lambda _: body(link, *arguments))
    child.done()


def test_stranger_that_looks_like_root_reads_and_does_not_write(name: str, spawn: Callable[..., Child]) -> None:
    """Root of a user namespace reads and holds what all may read, and is refused at once as a writer."""
    users.require(a_root_of_its_own, "user")
    for owner in (ROOT, OWNER):
        there = spawn(_as_root_inside, STRANGER, act, ROOT, name)
        assert done(there, "ids")[1] == 0
        creator = spawn(act, owner, name)
        done(creator, "write_with", {"initial": value_of(1), "mode": 0o644, "retain": 0})
        busy = spawn(users.hold_the_lock, owner, name)
        assert busy.recv() == "locked"
        before = objects_of(name)
        for order in (
            ("write_with", {"lock_timeout": 1e9}),
            ("publish", 9),
            ("destroy_by_name", 1e9),
        ):
            assert "only the owner of a store may write it" in refused(there, *order)
        assert objects_of(name) == before
        leave(busy)
        assert done(there, "hold") == 2
        for version in (3, 4):
            assert done(creator, "publish", version) == version
        assert done(there, "get") == 4
        assert processes.versions_of(name) == [4, 2]
        # In there the owner has no number of its own: all who are unknown there look the same.
        nobody = int(Path("/proc/sys/kernel/overflowuid").read_text())
        assert done(there, "describe")[:2] == (4, nobody)
        done(there, "read_with", {"owner": 0})
        assert f"belongs to user {nobody}, expected user 0" in refused(there, "get")
        leave(there)
        done(creator, "reclaim")
        assert processes.versions_of(name) == [4]
        done(creator, "destroy")
        leave(creator)


def test_private_store_is_private_to_roots_of_user_namespaces(name: str, spawn: Callable[..., Child]) -> None:
    """Root of a user namespace cannot read, write or destroy a private store of the real root."""
    users.require(a_root_of_its_own, "user")
    there = spawn(_as_root_inside, STRANGER, act, ROOT, name)
    done(there, "ids")
    writer = Writer(name, initial=value_of(1))
    for order in (("get",), ("describe",), ("write_with", {}), ("destroy_by_name",)):
        assert "Permission denied" in refused(there, *order)
    leave(there)
    assert version_in(Reader(name).get()) == 1
    writer.destroy()


def test_owner_in_a_user_namespace_writes_its_store(name: str, spawn: Callable[..., Child]) -> None:
    """The owner, in a user namespace where it looks like root, creates, publishes and destroys what is its own."""
    users.require(a_root_of_its_own, "user")
    there = spawn(_as_root_inside, OWNER, act, ROOT, name)
    here = spawn(act, OWNER, name)
    done(there, "write_with", {"initial": value_of(1), "mode": 0o644, "retain": 0})
    assert done(here, "publish", 2) == 2
    assert done(there, "get") == 2
    assert done(there, "hold") == 2
    assert done(here, "publish", 3) == 3
    assert done(there, "update", 4) == 4
    assert processes.versions_of(name) == [4, 2]
    stats = [(SHM / filename).stat() for filename in objects_of(name)]
    assert {(st.st_uid, st.st_gid) for st in stats} == {(OWNER.uid, OWNER.gid)}
    assert version_in(Reader(name, owner=OWNER.uid).get()) == 4
    done(there, "read_with", {"owner": 0})  # which is what the owner is called in there
    assert done(there, "get") == 4
    done(there, "release", 2)
    done(here, "reclaim")
    processes.assert_at_rest(name)
    done(there, "destroy")
    assert objects_of(name) == set()
    leave(there, here)


def test_group_that_a_user_namespace_does_not_know_is_a_clear_refusal(name: str, spawn: Callable[..., Child]) -> None:
    """Where the store's group has no number, its owner is refused with the reason, and nothing is left."""
    users.require(a_root_of_its_own, "user")
    there = spawn(_as_root_inside, OWNER._replace(groups=(GROUP,)), act, ROOT, name)
    here = spawn(act, OWNER._replace(groups=(GROUP,)), name)
    done(here, "write_with", {"initial": value_of(1), "mode": 0o640, "group": GROUP, "retain": 0})
    before = objects_of(name)
    assert done(there, "get") == 1
    for order in (("publish", 9), ("update", 9)):
        text = refused(there, *order)
        assert "user namespace" in text
    assert objects_of(name) == before
    assert done(here, "publish", 2) == 2
    processes.assert_at_rest(name)
    done(there, "destroy")
    assert objects_of(name) == set()
    leave(there, here)


# ---- another /dev/shm ----


def own_shm() -> None:
    """Have a /dev/shm of one's own, as each container has by default."""
    users.unshare(NEW_MOUNTS)
    users.private_mounts()
    users.mount("tmpfs", "/dev/shm", "size=1m")


def test_store_of_another_shm_is_another_store(name: str, spawn: Callable[..., Child]) -> None:
    """With a /dev/shm of its own a process finds no store, and what it creates under that name is its own."""
    users.require(own_shm, "mount")
    there = spawn(inside, own_shm, act, ROOT, name)
    there.recv()
    with Writer(name, initial=value_of(1)) as writer:
        assert "there is no store" in refused(there, "get", error="StoreNotFoundError")
        done(there, "write_with", {"initial": value_of(2)})
        assert done(there, "hold") == 1
        assert done(there, "get") == 2
        assert version_in(Reader(name).get()) == 1
        assert not any(generation.marked for generation in shmcow.describe(name).generations)
        done(there, "destroy")
        assert writer.publish(value_of(3)) == 2
        writer.destroy()
    leave(there)
