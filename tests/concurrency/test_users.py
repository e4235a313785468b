"""Several users and one store: readers need no right to write, strangers are told so, hostile ones stop nobody."""

from __future__ import annotations

import ctypes
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import users
from processes import SHM, Child, Link, objects_of, value_of, version_in
from users import (
    GROUP,
    MEMBER,
    MEMBER_TOO,
    OWNER,
    ROOT,
    STRANGER,
    User,
    act,
    done,
    leave,
    needs_root,
    obey,
    refused,
)
from victims import Victims

import shmcow
from shmcow import Reader, Writer, describe, destroy

pytestmark = needs_root

GENERATIONS = 64


def owners_of(name: str) -> set[tuple[int, int]]:
    """Return the (uid, gid) of all objects of a store."""
    stats = [(SHM / filename).stat() for filename in objects_of(name)]
    return {(st.st_uid, st.st_gid) for st in stats}


def modes_of(name: str) -> dict[str, int]:
    """Return the permission bits of a store's objects: header, lock, holds, and data for all segments."""
    modes = {}
    for filename in objects_of(name):
        what = filename.rpartition(".")[2] if filename.count(".") > 1 else "header"
        modes["data" if what.isdigit() else what] = stat.S_IMODE((SHM / filename).stat().st_mode)
    return modes


# ---- readers that may read and nothing else ----


@pytest.mark.parametrize("user", [MEMBER, MEMBER_TOO], ids=["the only group", "one group of several"])
def test_member_of_the_group_reads_and_holds(name: str, spawn: Callable[..., Child], user: User) -> None:
    """A user in the store's group reads, follows, and holds a version until it lets go, with read permission only."""
    reader = spawn(act, user, name)  # before there is a writer in this process, whose maps it would inherit
    writer = Writer(name, initial=value_of(1), mode=0o640, group=GROUP, retain=0)
    assert owners_of(name) == {(0, GROUP)}
    assert modes_of(name) == {"header": 0o640, "lock": 0o600, "holds": 0o440, "data": 0o440}
    assert done(reader, "get") == 1
    assert done(reader, "hold") == 1
    for version in (2, 3):
        assert writer.publish(value_of(version)) == version
        assert done(reader, "get") == version
    assert processes.held_by(reader.pid, name) == {1}
    assert processes.seen_by(reader.pid, name) == {3}
    writer.reclaim()
    assert processes.versions_of(name) == [3, 1]
    assert done(reader, "describe") == (3, 0, [1])
    assert done(reader, "at", 1) == 1
    assert {permissions for permissions, _ in done(reader, "maps")} == {"r--s"}
    done(reader, "release", 1)
    assert processes.held_by(reader.pid, name) == set()
    writer.reclaim()
    assert processes.versions_of(name) == [3]
    assert refused(reader, "at", 1, error="VersionGoneError")
    leave(reader)
    writer.destroy()


def test_member_of_the_group_survives_destroy_and_creation(name: str, spawn: Callable[..., Child]) -> None:
    """A group reader keeps its value over a destroy, follows the new store, and keeps it if that one is private."""
    writer = Writer(name, initial=value_of(1), mode=0o640, group=GROUP)
    reader = spawn(act, MEMBER, name)
    assert done(reader, "hold") == 1
    payload = done(reader, "read_held", 1)
    writer.destroy()
    assert done(reader, "get") == 1
    assert done(reader, "problem") == "StoreDestroyedError"
    writer = Writer(name, initial=value_of(2), mode=0o640, group=GROUP)
    done(reader, "refresh")
    assert (done(reader, "get"), done(reader, "problem")) == (2, "NoneType")
    assert done(reader, "read_held", 1) == payload
    writer.destroy()
    writer = Writer(name, initial=value_of(3))
    done(reader, "refresh")
    assert (done(reader, "get"), done(reader, "problem")) == (2, "NotOwnerError")
    assert done(reader, "read_held", 1) == payload
    writer.destroy()
    writer = Writer(name, initial=value_of(4), mode=0o604)
    done(reader, "refresh")
    assert (done(reader, "get"), done(reader, "problem")) == (4, "NoneType")
    leave(reader)
    writer.destroy()


TRACED = """
import os, sys
import processes, shmcow, users
name = sys.argv[1]
users.MEMBER.become()
actor = users.Actor(name)
for line in sys.stdin:
    method, *arguments = line.split()
    try:
        print("done", getattr(actor, method)(*map(int, arguments)), flush=True)
    except shmcow.ShmcowError as exc:
        print(type(exc).__name__, flush=True)
"""

# What a reader may do to an object in shared memory; what is not here changes something, or could.
HARMLESS = [
    r'openat\(AT_FDCWD[^"]*"[^"]*", O_RDONLY(\|O_(NONBLOCK|NOCTTY|NOFOLLOW|CLOEXEC|LARGEFILE|DIRECTORY))*\)',
    r"(newfstatat|fstat|fstat64|lstat|stat|statx|statfs|readlink|readlinkat|getdents64|close|pread64|read|lseek)\(",
    r"mmap\([^,]*, \d+, PROT_READ, MAP_SHARED, ",
    r"fcntl\([^,]*, F_OFD_SETLK, \{l_type=F_(RDLCK|UNLCK), ",
    r"fcntl\([^,]*, (F_OFD_GETLK|F_GETFD|F_GETFL)",
    r"ioctl\([^,]*, TCGETS",
]


def test_reader_asks_for_no_right_to_write(name: str, tmp_path: Path) -> None:
    """Every system call of a group reader on the store's objects, through publish, destroy and creation, only reads."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace (Debian: apt-get install strace)")
    log = tmp_path / "strace"
    path = os.pathsep.join([str(Path(shmcow.__file__).parent.parent), str(Path(__file__).parent)])
    writer = Writer(name, initial=value_of(1), mode=0o640, group=GROUP, retain=0)
    with subprocess.Popen(
        [strace, "-f", "-y", "-qq", "-e", "trace=%file,%desc", "-o", str(log), sys.executable, "-c", TRACED, name],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None

        def ask(order: str) -> str:
            process.stdin.write(f"{order}\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], processes.WATCHDOG)[0], f"no answer to {order}"
            answer = process.stdout.readline().strip()
            if not answer:
                errors = process.stderr.read()
                if "ptrace" in errors:
                    pytest.skip(f"needs the right to trace processes: run as root, as .ci/run does ({errors.strip()})")
                raise AssertionError(errors)
            return answer

        try:
            assert ask("get") == "done 1"
            assert ask("hold") == "done 1"
            writer.publish(value_of(2))
            writer.publish(value_of(3))
            assert ask("get") == "done 3"
            assert ask("at 1") == "done 1"
            assert ask("describe") == "done (3, 0, [1])"
            assert ask("listed") == "done True"
            writer.destroy()
            assert ask("get") == "done 3"
            assert ask("release 1") == "done None"
            writer = Writer(name, initial=value_of(4), mode=0o640, group=GROUP)
            assert ask("refresh") == "done True"
            assert ask("get") == "done 4"
        finally:
            process.stdin.close()
            try:
                process.wait(processes.WATCHDOG)  # the reader ends when there is nothing to read
            finally:
                process.kill()
    calls = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines() if f"/shmcow.{name}" in line]
    harmful = [call for call in calls if not any(re.match(pattern, call) for pattern in HARMLESS)]
    assert harmful == []
    seen = "\n".join(calls)
    for needed in ("O_RDONLY", "PROT_READ, MAP_SHARED", "F_OFD_SETLK, {l_type=F_RDLCK", "F_OFD_SETLK, {l_type=F_UNLCK"):
        assert needed in seen, f"the trace does not show what it should: {needed}"
    writer.destroy()


def _drops_root(link: Link, name: str, user: User) -> None:
    """Attach as root, as a server does before its workers change their user; then obey as that user."""
    actor = users.Actor(name)
    actor.get()
    actor.hold()
    user.become()
    obey(link, actor)


def test_reader_that_gives_up_root_goes_on_where_it_may_read(name: str, spawn: Callable[..., Child]) -> None:
    """A worker that attached as root and became a member of the group goes on reading and holding."""
    writer = Writer(name, initial=value_of(1), mode=0o640, group=GROUP, retain=0)
    reader = spawn(_drops_root, name, MEMBER)
    assert done(reader, "ids")[1] == MEMBER.uid
    writer.publish(value_of(2))
    writer.publish(value_of(3))
    assert (done(reader, "get"), done(reader, "problem")) == (3, "NoneType")
    assert done(reader, "hold") == 3
    assert processes.held_by(reader.pid, name) == {1, 3}
    leave(reader)
    writer.destroy()


def test_reader_that_gives_up_root_keeps_its_value_where_it_may_not(name: str, spawn: Callable[..., Child]) -> None:
    """A worker that attached as root and became a stranger keeps its last good value and says why."""
    writer = Writer(name, initial=value_of(1), retain=0)
    reader = spawn(_drops_root, name, STRANGER)
    assert done(reader, "ids")[1] == STRANGER.uid
    writer.publish(value_of(2))
    assert (done(reader, "get"), done(reader, "problem")) == (1, "NotOwnerError")
    assert processes.held_by(reader.pid, name) == {1}
    assert b"cells" in done(reader, "read_held", 1)
    done(reader, "release", 1)
    writer.reclaim()
    assert processes.versions_of(name) == [2]
    leave(reader)
    writer.destroy()


# ---- users who may not read ----


@pytest.mark.parametrize(
    ("user", "mode"),
    [(STRANGER, 0o600), (STRANGER, 0o640), (MEMBER, 0o600), (MEMBER, 0o604), (MEMBER_TOO, 0o604)],
    ids=["private", "not in the group", "group, but private", "all but the group", "all but the group, one of several"],
)
def test_user_without_permission_is_told_so(name: str, spawn: Callable[..., Child], user: User, mode: int) -> None:
    """Who may not read gets NotOwnerError, which names the file and what decides, from every call that looks inside."""
    other = spawn(act, user, name)  # before this process attaches, which it would inherit
    writer = Writer(name, initial=value_of(1), mode=mode, group=GROUP)
    before = objects_of(name)
    texts = [
        refused(other, *order)
        for order in (
            ("get",),
            ("snapshot",),
            ("at", 1),
            ("hold",),
            ("describe",),
            ("write_with", {}),
            ("write_with", {"initial": value_of(9), "mode": 0o644}),
            ("publish", 9),
            ("destroy_by_name",),
        )
    ]
    for text in texts:
        assert f"/dev/shm/shmcow.{name}" in text
        assert "Permission denied" in text
        assert "mode= and group= decide who may read it" in text
    assert done(other, "problem") == "NotOwnerError"
    assert done(other, "listed") is True
    assert done(other, "descriptors") == []
    assert (objects_of(name), writer.version) == (before, 1)
    leave(other)
    writer.destroy()


def test_default_stands_in_while_there_is_no_permission(name: str, spawn: Callable[..., Child]) -> None:
    """With default= a user without permission gets it, whatever on_bad= is, until a store comes that it may read."""
    other = spawn(act, STRANGER, name)
    writer = Writer(name, initial=value_of(1))
    for on_bad in ("keep", "raise"):
        done(other, "read_with", {"default": "mine", "on_bad": on_bad})
        assert done(other, "get_plain") == "mine"
        assert done(other, "problem") == "NotOwnerError"
        assert refused(other, "snapshot")
    done(other, "read_with", {"on_bad": "raise"})
    assert refused(other, "get")
    writer.destroy()
    writer = Writer(name, initial=value_of(2), mode=0o644)
    assert done(other, "get") == 2
    assert done(other, "problem") == "NoneType"
    # What was readable and is not any more: the last good value, unless asked to raise.
    writer.destroy()
    writer = Writer(name, initial=value_of(3))
    assert refused(other, "get")
    done(other, "read_with", {"default": value_of(7)})
    assert done(other, "get") == 7
    leave(other)
    writer.destroy()


# ---- several writers ----


@pytest.mark.parametrize("mode", [0o600, 0o644], ids=["may not read", "may read"])
def test_second_user_as_writer_is_refused_at_once(name: str, spawn: Callable[..., Child], mode: int) -> None:
    """While the owner holds the writer lock, another user's Writer and destroy are refused without waiting for it."""
    for owner in (ROOT, OWNER):
        creator = spawn(act, owner, name)
        done(creator, "write_with", {"initial": value_of(1), "mode": mode})
        before = objects_of(name)
        busy = spawn(users.hold_the_lock, owner, name)
        assert busy.recv() == "locked"
        other = spawn(act, STRANGER, name)
        forever = 1e9  # whoever waited for the lock would not come back before the watchdog
        for order in (
            ("write_with", {"lock_timeout": forever}),
            ("write_with", {"lock_timeout": forever, "initial": value_of(2), "retain": 0}),
            ("destroy_by_name", forever),
        ):
            text = refused(other, *order)
            if mode == 0o644:
                assert f"belongs to user {owner.uid}, this process runs as user {STRANGER.uid}" in text
        assert objects_of(name) == before
        leave(busy, other)
        done(creator, "destroy")
        leave(creator)


def test_second_user_is_refused_by_a_store_that_is_half_gone(name: str, spawn: Callable[..., Child]) -> None:
    """A store without its lock file, which a writer would end, is not ended by another user's writer."""
    Writer(name, initial=value_of(1), mode=0o644)
    [lock] = [filename for filename in objects_of(name) if filename.endswith(".lock")]
    (SHM / lock).unlink()
    before = objects_of(name)
    other = spawn(act, STRANGER, name)
    assert "belongs to user 0" in refused(other, "write_with", {})
    assert "belongs to user 0" in refused(other, "destroy_by_name")
    assert done(other, "get") == 1
    assert objects_of(name) == before
    leave(other)
    Writer(name).destroy()


def test_root_and_owner_write_in_turns(name: str, spawn: Callable[..., Child]) -> None:
    """Root publishes in a user's store with every verb; all that it makes is the owner's, who goes on as before."""
    owner = spawn(act, OWNER, name)
    done(owner, "write_with", {"initial": value_of(1), "mode": 0o640, "retain": 2})
    reader = Reader(name, owner=OWNER.uid)
    root = Writer(name)
    assert not root.created
    version = 1
    for _ in range(5):
        root.publish(value_of(version + 1))
        root.update(lambda old: value_of(old["version"] + 1))
        root.patch(cells=[version + 2] * 3)
        version += 3
        root.rollback()
        version += 1
        assert version_in(reader.get()) == version - 2
        assert reader.snapshot().publisher == (os.getpid(), 0)
        assert owners_of(name) == {(OWNER.uid, OWNER.gid)}
        assert modes_of(name) == {"header": 0o640, "lock": 0o600, "holds": 0o440, "data": 0o440}
        version += 1
        assert done(owner, "update", version) == version
        assert reader.snapshot().publisher == (owner.pid, OWNER.uid)
        assert done(owner, "reclaim") == 0
        processes.assert_at_rest(name)
    assert done(owner, "get") == version
    done(owner, "destroy")
    assert objects_of(name) == set()
    leave(owner)


def test_holds_file_that_root_makes_anew_is_the_owners(name: str, spawn: Callable[..., Child]) -> None:
    """Root that repairs a user's store gives the new holds file the owner, group and permissions of the old one."""
    owner = spawn(act, OWNER, name)
    done(owner, "write_with", {"initial": value_of(1), "mode": 0o644, "retain": 0})
    [holds] = [filename for filename in objects_of(name) if filename.endswith(".holds")]
    (SHM / holds).unlink()
    Writer(name).publish(value_of(2))
    assert owners_of(name) == {(OWNER.uid, OWNER.gid)}
    assert modes_of(name) == {"header": 0o644, "lock": 0o600, "holds": 0o444, "data": 0o444}
    reader = spawn(act, STRANGER, name)
    assert done(reader, "hold") == 2
    assert done(owner, "publish", 3) == 3
    assert processes.versions_of(name) == [3, 2]
    leave(reader)
    done(owner, "destroy")
    leave(owner)


@pytest.mark.parametrize("way", ["lock file lost", "removed"])
def test_store_that_root_creates_again_is_still_the_owners(name: str, spawn: Callable[..., Child], way: str) -> None:
    """Root that creates a user's store again, since part of it was removed, leaves it to its owner and readers."""
    owner = spawn(act, OWNER, name)
    done(owner, "write_with", {"initial": value_of(1), "mode": 0o644, "retain": 0})
    reader = spawn(act, STRANGER, name)
    assert done(reader, "get") == 1
    root = Writer(name)
    for filename in objects_of(name):
        if way == "removed" or filename.endswith(".lock"):
            (SHM / filename).unlink()
    assert root.publish(value_of(2)) == 1
    assert root.created
    assert owners_of(name) == {(OWNER.uid, OWNER.gid)}
    assert modes_of(name) == {"header": 0o644, "lock": 0o600, "holds": 0o444, "data": 0o444}
    done(reader, "refresh")
    assert done(reader, "get") == 2
    assert done(owner, "publish", 3) == 2
    leave(owner, reader)
    root.destroy()


def test_store_that_root_destroys_has_no_heir(name: str, spawn: Callable[..., Child]) -> None:
    """What root creates after it destroyed a user's (a squatter's, perhaps) store is root's and private."""
    other = spawn(act, STRANGER, name)
    done(other, "write_with", {"initial": value_of(1), "mode": 0o644})
    root = Writer(name)
    root.destroy()
    assert root.publish(value_of(2)) == 1
    assert owners_of(name) == {(0, 0)}
    assert modes_of(name) == {"header": 0o600, "lock": 0o600, "holds": 0o400, "data": 0o400}
    refused(other, "publish", 3)
    leave(other)
    root.destroy()


@pytest.mark.parametrize("next_writer", ["the owner", "root"])
def test_root_killed_while_it_makes_a_segment_leaves_nothing_for_good(
    name: str, spawn: Callable[..., Child], killer: Victims, next_writer: str
) -> None:
    """Whatever root left half-made in a user's store goes: at once, or with the next writer who may remove it."""
    owner = spawn(act, OWNER, name)
    for step in ("py.created", "fill.write", "fill.written", "fill.sealed"):
        done(owner, "write_with", {"initial": value_of(1), "retain": 0})
        fate = killer.run("publish", name, step=step, at=1, version=2)
        assert (fate.exit, fate.fatal) == (-signal.SIGKILL, step)
        if next_writer == "the owner":
            assert done(owner, "publish", 2) == 2
        Writer(name).publish(value_of(3))
        processes.assert_at_rest(name)
        assert done(owner, "publish", 4) == Reader(name).version
        processes.assert_at_rest(name)
        done(owner, "destroy")
        assert objects_of(name) == set(), step
    leave(owner)


def _drop_capability(number: int) -> None:
    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Data(ctypes.Structure):
        _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (Data * 2)()
    assert libc.capget(ctypes.byref(header), ctypes.byref(data)) == 0
    data[0].effective &= ~(1 << number)
    data[0].permitted &= ~(1 << number)
    assert libc.capset(ctypes.byref(header), ctypes.byref(data)) == 0


def _without_chown(link: Link, name: str) -> None:
    """Be a root that may not give files away, as in a container or service with few capabilities."""
    _drop_capability(0)  # CAP_CHOWN
    obey(link, users.Actor(name))


def _without_fowner(link: Link, name: str) -> None:
    """Be a root that may give files away, and then not touch them."""
    _drop_capability(3)  # CAP_FOWNER
    obey(link, users.Actor(name))


def _gave_up_root(link: Link, name: str) -> None:
    actor = users.Actor(name)
    actor.write_with({})
    STRANGER.become()
    obey(link, actor)


@pytest.mark.parametrize(
    ("body", "owner"),
    [(_without_chown, OWNER), (_gave_up_root, ROOT), (_gave_up_root, OWNER)],
    ids=lambda it: str(it)[:18],
)
def test_writer_that_cannot_give_files_to_the_owner_publishes_nothing(
    name: str, spawn: Callable[..., Child], body: Any, owner: User
) -> None:
    """A root without CAP_CHOWN, or one that became somebody else meanwhile, is refused, and leaves all as it was."""
    keeper = spawn(act, owner, name)
    done(keeper, "write_with", {"initial": value_of(1), "mode": 0o644, "retain": 3})
    for version in range(2, 6):
        done(keeper, "publish", version)
    before, versions = objects_of(name), processes.versions_of(name)
    other = spawn(body, name)
    for order in (("publish", 9), ("update", 9), ("publish", 9)):
        assert "only the owner of a store may write it" in refused(other, *order)
    assert (objects_of(name), processes.versions_of(name)) == (before, versions)
    assert version_in(Reader(name).get()) == 5
    assert done(keeper, "publish", 6) == 6
    processes.assert_at_rest(name)
    leave(other)
    done(keeper, "destroy")
    assert objects_of(name) == set()
    leave(keeper)


def test_writer_that_cannot_take_back_what_it_gave_leaves_that_to_the_owner(
    name: str, spawn: Callable[..., Child]
) -> None:
    """A root without CAP_FOWNER is refused, and what it could not remove goes with the owner's next publish."""
    keeper = spawn(act, OWNER, name)
    done(keeper, "write_with", {"initial": value_of(1), "retain": 0})
    other = spawn(_without_fowner, name)
    for _ in range(3):
        refused(other, "publish", 9)
        assert version_in(Reader(name).get()) == 1
    assert done(keeper, "publish", 2) == 2
    processes.assert_at_rest(name)
    leave(other)
    done(keeper, "destroy")
    assert objects_of(name) == set()
    leave(keeper)


# ---- who made it? ----


def test_reader_with_owner_refuses_a_squatters_store(name: str, spawn: Callable[..., Child]) -> None:
    """A store of whoever took the name first is refused with owner=, until the right owner's comes."""
    squatter = spawn(act, STRANGER, name)
    done(squatter, "write_with", {"initial": value_of(66), "mode": 0o644})
    member = spawn(act, MEMBER, name)
    for owner in (0, "root"):
        done(member, "read_with", {"owner": owner})
        for order in (("get",), ("snapshot",), ("at", 1), ("hold",)):
            text = refused(member, *order)
            assert f"belongs to user {STRANGER.uid}, expected user 0 (owner=)" in text
        done(member, "read_with", {"owner": owner, "default": value_of(5)})
        assert (done(member, "get"), done(member, "problem")) == (5, "NotOwnerError")
    # what it refused it did not hold either
    assert processes.locks_of(member.pid) == []
    assert refused(member, "destroy_by_name")
    destroy(name)  # root may
    assert objects_of(name) == set()
    writer = Writer(name, initial=value_of(1), mode=0o644)
    assert (done(member, "get"), done(member, "problem")) == (1, "NoneType")
    # and if the squatter is quicker at the next chance: the last good value
    writer.destroy()
    done(squatter, "write_with", {"initial": value_of(67), "mode": 0o644})
    done(member, "refresh")
    assert (done(member, "get"), done(member, "problem")) == (1, "NotOwnerError")
    done(squatter, "publish", 68)
    done(member, "refresh")
    assert (done(member, "get"), done(member, "problem")) == (1, "NotOwnerError")
    done(squatter, "destroy")
    leave(squatter, member)


# ---- a hostile reader ----


def _reads_all_the_time(link: Link, user: User, name: str) -> None:
    """Read without a pause until told to end: whole versions, that only grow, and the one that is held unchanged."""
    user.become()
    reader = Reader(name)
    with reader.snapshot() as held:
        view, whole = held.data, bytes(held.data)
        link.send(held.version)
        last = looks = 0
        while not link.poll():
            snapshot = reader.snapshot()
            assert snapshot.version >= max(last, 1), f"{snapshot.version} after {last}"
            assert version_in(snapshot.value) > 0, "torn"
            assert view == whole
            assert reader.problem is None
            last, looks = snapshot.version, looks + 1
        assert link.recv() == "end"
        view.release()
    link.send((version_in(reader.get()), looks))


@pytest.mark.parametrize("owner", [ROOT, OWNER], ids=["a store of root", "a store of a user"])
def test_hostile_reader_stops_no_writer_and_changes_no_answer(
    name: str, spawn: Callable[..., Child], owner: User
) -> None:
    """A reader that locks all it can, and tries to break the rest, delays reclaims and does nothing else."""
    writer = spawn(act, owner, name)
    done(writer, "write_with", {"initial": value_of(1), "mode": 0o644, "retain": 0})
    reader = spawn(_reads_all_the_time, MEMBER, name)
    assert reader.recv() == 1
    hostile = spawn(users.attack, STRANGER, name)

    for what, attack, outcome in done(hostile, "attack", "blow"):
        assert outcome in ("EACCES", "EPERM", "EBADF", "EINVAL"), f"{attack} on {what}: {outcome}"
    outcomes = done(hostile, "attack", "grab")
    assert {what for what, _, _ in outcomes} == {"header", "lock", "holds", "1"}
    for what, attack, outcome in outcomes:
        assert outcome == ("EACCES" if what == "lock" else "done"), f"{attack} on {what}: {outcome}"
    assert ("1", "map to read", "done") in outcomes

    assert done(writer, "publish", 2) == 2
    assert describe(name).generations[-1].marked  # so the locks are what they are meant to be
    for version in range(3, GENERATIONS + 40):
        assert done(writer, "publish", version) == version
        if version % 20 == 0:
            done(hostile, "attack", "grab")
    current = GENERATIONS + 39
    report = describe(name)
    assert report.version == current
    assert report.counters["forced"] > 0, "the table was full"
    assert len(report.generations) == GENERATIONS
    assert done(writer, "update", current + 1) == current + 1
    assert done(writer, "rollback") == current + 2
    assert done(writer, "update", current + 3) == current + 3
    second = spawn(act, owner, name)
    assert done(second, "publish", current + 4) == current + 4
    assert version_in(Reader(name).get()) == current + 4

    for what, attack, outcome in done(hostile, "attack", "blow"):
        assert outcome != "done", f"{attack} on {what}"
    hostile.kill()
    assert done(second, "publish", current + 5) == current + 5
    done(second, "reclaim")
    assert processes.versions_of(name) == [current + 5]  # the reader's lost its name to the full table
    processes.assert_at_rest(name)
    last, looks = reader.ask("end")
    assert last == current + 5
    assert looks > 0
    reader.done()
    done(writer, "destroy")
    assert objects_of(name) == set()
    leave(writer, second)


def test_hostile_reader_cannot_keep_a_store_from_being_destroyed(name: str, spawn: Callable[..., Child]) -> None:
    """What a hostile reader locks and maps keeps neither a destroy nor the next store of that name."""
    writer = Writer(name, initial=value_of(1), mode=0o644)
    hostile = spawn(users.attack, STRANGER, name)
    done(hostile, "attack", "grab")
    writer.destroy()
    assert objects_of(name) == set()
    writer = Writer(name, initial=value_of(1), mode=0o644)
    assert all(not generation.marked for generation in describe(name).generations)
    done(hostile, "attack", "grab")
    destroy(name)
    assert objects_of(name) == set()
    leave(hostile)
