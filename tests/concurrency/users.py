"""Other users and other namespaces for the tests: a forked child becomes somebody, and then does as it is told.

Also what a hostile process tries that may read a store: ``GRABS`` are what the kernel lets it take, and what nobody may
suffer from; ``BLOWS`` are what must fail. An attack of another kind is one more function in one of the two.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # noqa: F401 - the product imports it late; another user may not be able to read where it lies
import pytest
from processes import (
    SHM,
    Child,
    ChildFailedError,
    Link,
    die_with_parent,
    objects_of,
    shm_descriptors,
    value_of,
    version_in,
)

import shmcow
from shmcow import Reader, Writer, describe, destroy, list_stores

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="acts as several users; needs root: run as root, as .ci/run does"
)
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


# ---- users ----


class User(NamedTuple):
    """Who a process runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def become(self) -> None:
        """Give up root for good."""
        if self.uid == 0:
            return
        os.setgroups(self.groups)
        os.setgid(self.gid)
        os.setuid(self.uid)
        die_with_parent()  # the kernel forgets it when the user changes


GROUP = 65531
ROOT = User(0, 0)
OWNER = User(65533, 65533)
MEMBER = User(65532, GROUP)  # GROUP is its only group
MEMBER_TOO = User(65530, 65530, (GROUP,))  # GROUP is one more
STRANGER = User(65534, 65534)


# ---- what a child does for a test ----


class Actor:
    """One user's view of a store: each method is an order that a test can give."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._reader: Reader[Any] = Reader(name)
        self._writer: Writer[Any] | None = None
        self._held: dict[int, Any] = {}

    # reading

    def read_with(self, options: dict[str, Any]) -> None:
        self._reader = Reader(self._name, **options)

    def get(self) -> int:
        return version_in(self._reader.get())

    def get_plain(self) -> Any:
        return self._reader.get()

    def refresh(self) -> bool:
        return self._reader.refresh()

    def problem(self) -> str:
        return type(self._reader.problem).__name__

    def snapshot(self) -> tuple[int, Any, float]:
        snapshot = self._reader.snapshot()
        return snapshot.version, snapshot.publisher, snapshot.published_at.timestamp()

    def at(self, version: int) -> int:
        return version_in(self._reader.at(version).value)

    def hold(self) -> int:
        snapshot = self._reader.snapshot().hold()
        self._held[snapshot.version] = (snapshot, snapshot.data)
        return snapshot.version

    def read_held(self, version: int) -> bytes:
        return bytes(self._held[version][1])

    def release(self, version: int) -> None:
        snapshot, view = self._held.pop(version)
        view.release()
        snapshot.release()

    def maps(self) -> list[tuple[str, str]]:
        """Return (permissions, file) of every map of shared memory."""
        found = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(f"{SHM}/shmcow."):
                found.append((fields[1], Path(fields[5].removesuffix(" (deleted)")).name))
        return sorted(found)

    def descriptors(self) -> list[str]:
        return shm_descriptors()

    # writing

    def write_with(self, options: dict[str, Any]) -> int:
        self._writer = Writer(self._name, **options)
        return self._writer.version

    def _w(self) -> Writer[Any]:
        if self._writer is None:
            self._writer = Writer(self._name)
        return self._writer

    def publish(self, number: int) -> int:
        return self._w().publish(value_of(number))

    def update(self, number: int) -> int:
        return self._w().update(lambda _: value_of(number))

    def rollback(self) -> int:
        return self._w().rollback()

    def reclaim(self) -> int:
        return self._w().reclaim()

    def destroy(self) -> None:
        self._w().destroy()

    def destroy_by_name(self, lock_timeout: float = 5.0) -> None:
        destroy(self._name, lock_timeout=lock_timeout)

    # looking

    def describe(self) -> tuple[int, int, list[int]]:
        report = describe(self._name)
        marked = [generation.version for generation in report.generations if generation.marked]
        return report.version, report.uid, marked

    def listed(self) -> bool:
        return self._name in list_stores()

    def ids(self) -> tuple[int, int, int]:
        return os.getpid(), os.geteuid(), os.getegid()


def obey(link: Link, actor: Any) -> None:
    """Carry out orders, (method, arguments...): the answer is ("done", result) or (the error's class, its text)."""
    while (order := link.recv()) != "end":
        method, *arguments = order
        try:
            link.send(("done", getattr(actor, method)(*arguments)))
        except (shmcow.ShmcowError, OSError) as exc:
            link.send((type(exc).__name__, str(exc)))


def act(link: Link, user: User, name: str) -> None:
    """Become a user, and obey."""
    user.become()
    obey(link, Actor(name))


def hold_the_lock(link: Link, user: User, name: str) -> None:
    """Become a user, and stay inside the writer lock until told to end."""
    user.become()

    def function(old: Any) -> Any:
        link.send("locked")
        assert link.recv() == "end"
        return old

    Writer(name).update(function)


def done(child: Child, *order: Any) -> Any:
    """Give an order, and return what it returned."""
    kind, answer = child.ask(order)
    assert kind == "done", f"{order}: {kind}: {answer}"
    return answer


def refused(child: Child, *order: Any, error: str = "NotOwnerError") -> str:
    """Give an order that must fail, and return the error's text."""
    kind, answer = child.ask(order)
    assert kind == error, f"{order}: expected {error}, found {kind}: {answer}"
    return str(answer)


def leave(*children: Child) -> None:
    """Let children end."""
    for child in children:
        child.send("end")
        child.done()


# ---- namespaces ----

NEW_MOUNTS, NEW_PIDS, NEW_USERS, NEW_TIME = 0x20000, 0x20000000, 0x10000000, 0x80


def unshare(flags: int) -> None:
    """Move this process (or, for pids and time, its next children) to new namespaces."""
    if _LIBC.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), f"unshare({flags:#x}): {os.strerror(ctypes.get_errno())}")


def require(enter: Callable[[], Any], what: str) -> None:
    """Skip the test where namespaces of a kind cannot be entered."""

    def tries(link: Link) -> None:
        try:
            enter()
            link.send("")
        except (OSError, ChildFailedError) as exc:
            link.send(str(exc).strip().splitlines()[-1])

    child = Child(tries)
    why = child.recv()
    child.done()
    if why:
        pytest.skip(f"needs a kernel and rights for {what} namespaces ({why}): run as root, as .ci/run does")


def private_mounts() -> None:
    """Keep what is mounted here from the rest of the system."""
    if _LIBC.mount(b"none", b"/", None, ctypes.c_ulong(0x4000 | 0x40000), None) != 0:  # MS_REC | MS_PRIVATE
        raise OSError(ctypes.get_errno(), "making mounts private")


def mount(kind: str, where: str, options: str = "") -> None:
    """Mount a file system of its own in a new mount namespace."""
    if _LIBC.mount(kind.encode(), where.encode(), kind.encode(), ctypes.c_ulong(0), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mounting {kind} on {where}")


def look_like_root() -> None:
    """Be user 0 and group 0 of the new user namespace, as ``unshare -r`` does."""
    uid, gid = os.getuid(), os.getgid()
    unshare(NEW_USERS)
    _LIBC.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: otherwise the files below are root's
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    die_with_parent()


def inside(link: Link, enter: Callable[[], None], body: Callable[..., Any], *arguments: Any) -> None:
    """Enter namespaces, send the pid (as it is outside) of a child there, and let it run ``body(link, *arguments)``."""
    enter()

    def starts(ours: Link) -> None:
        assert ours.recv() == "go"  # not before the pid is sent
        body(link, *arguments)

    child = Child(starts)
    link.send(child.pid)
    child.send("go")
    child.done()


# ---- a hostile reader ----

_Kept = list[Any]  # what an attack took: it stays taken


def _lock(kind: int, command: int) -> Callable[[Path, _Kept], None]:
    def attack(path: Path, kept: _Kept) -> None:
        fd = os.open(path, os.O_RDONLY)
        kept.append(fd)
        fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))

    return attack


def _flock(path: Path, kept: _Kept) -> None:
    kept.append(os.open(path, os.O_RDONLY))
    with contextlib.suppress(BlockingIOError):  # its own, from the round before
        fcntl.flock(kept[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)


def _map(path: Path, kept: _Kept) -> None:
    fd = os.open(path, os.O_RDONLY)
    kept.append(fd)
    if os.fstat(fd).st_size:
        kept.append(mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ))


GRABS: dict[str, Callable[[Path, _Kept], None]] = {
    "read lock on all bytes, of the description": _lock(fcntl.F_RDLCK, fcntl.F_OFD_SETLK),
    "read lock on all bytes, of the process": _lock(fcntl.F_RDLCK, fcntl.F_SETLK),
    "flock": _flock,
    "map to read": _map,
}


def _open(flags: int) -> Callable[[Path, _Kept], None]:
    def attack(path: Path, kept: _Kept) -> None:
        kept.append(os.open(path, flags))

    return attack


def _open_again_to_write(path: Path, kept: _Kept) -> None:
    fd = os.open(path, os.O_RDONLY)
    kept.append(fd)
    kept.append(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))


def _map_to_write(path: Path, kept: _Kept) -> None:
    fd = os.open(path, os.O_RDONLY)
    kept.append(fd)
    at = _LIBC.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")


def _make_map_writable(path: Path, kept: _Kept) -> None:
    fd = os.open(path, os.O_RDONLY)
    kept.append(fd)
    at = _LIBC.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    assert at != ctypes.c_void_p(-1).value
    if _LIBC.mprotect(at, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def _punch_hole(path: Path, kept: _Kept) -> None:
    fd = os.open(path, os.O_RDONLY)
    kept.append(fd)
    if os.fstat(fd).st_size == 0:
        raise OSError(errno.EACCES, "nothing to punch")
    mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ).madvise(mmap.MADV_REMOVE)


def _with_descriptor(call: Callable[[int], Any]) -> Callable[[Path, _Kept], None]:
    def attack(path: Path, kept: _Kept) -> None:
        fd = os.open(path, os.O_RDONLY)
        kept.append(fd)
        call(fd)

    return attack


def _replace(path: Path, kept: _Kept) -> None:  # noqa: ARG001
    mine = SHM / f"{path.name}.{os.getpid()}"
    os.close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        mine.replace(path)
    finally:
        mine.unlink(missing_ok=True)


BLOWS: dict[str, Callable[[Path, _Kept], Any]] = {
    "write lock, of the description": _lock(fcntl.F_WRLCK, fcntl.F_OFD_SETLK),
    "write lock, of the process": _lock(fcntl.F_WRLCK, fcntl.F_SETLK),
    "lease to read": _with_descriptor(lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)),
    "lease to write": _with_descriptor(lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)),
    "seal": _with_descriptor(lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)),
    "open to write": _open(os.O_WRONLY),
    "open to read and write": _open(os.O_RDWR),
    "open to truncate": _open(os.O_RDONLY | os.O_TRUNC),
    "open again to write": _open_again_to_write,
    "map to write": _map_to_write,
    "make a map writable": _make_map_writable,
    "punch a hole": _punch_hole,
    "write": _with_descriptor(lambda fd: os.write(fd, b"x")),
    "ftruncate": _with_descriptor(lambda fd: os.ftruncate(fd, 0)),
    "fallocate": _with_descriptor(lambda fd: os.posix_fallocate(fd, 0, 1 << 20)),
    "fchmod": _with_descriptor(lambda fd: os.fchmod(fd, 0o666)),
    "truncate": lambda path, kept: os.truncate(path, 0),  # noqa: ARG005
    "chmod": lambda path, kept: path.chmod(0o666),  # noqa: ARG005
    "chown": lambda path, kept: os.chown(path, os.getuid(), os.getgid()),  # noqa: ARG005
    "utime": lambda path, kept: os.utime(path, (0, 0)),  # noqa: ARG005
    "unlink": lambda path, kept: path.unlink(),  # noqa: ARG005
    "rename": lambda path, kept: path.rename(f"{path}.taken"),  # noqa: ARG005
    "replace": _replace,
}


class Attacker:
    """What a hostile process is told to do; whatever it took it keeps until it is killed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: _Kept = []

    def attack(self, kind: str) -> list[tuple[str, str, str]]:
        """Try each GRAB or BLOW on each object of the store: (object, attack, "done" or the name of the errno)."""
        attacks = {"grab": GRABS, "blow": BLOWS}[kind]
        outcomes = []
        for filename in sorted(objects_of(self._name)):
            what = filename.rpartition(".")[2] if filename.count(".") > 1 else "header"
            for attack_name, attack in attacks.items():
                try:
                    attack(SHM / filename, self._kept)
                    outcome = "done"
                except OSError as exc:
                    outcome = errno.errorcode.get(exc.errno or 0, str(exc))
                outcomes.append((what, attack_name, outcome))
        return outcomes


def attack(link: Link, user: User, name: str) -> None:
    """Become a user, and attack when told to."""
    user.become()
    obey(link, Attacker(name))
