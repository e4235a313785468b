"""The objects in shared memory: their names, how they are made, filled and unlinked.

The only user of posix_ipc. What is made here has its final owner and permissions before anybody can find it through
the header, and a data segment is filled with ``write()``: a full /dev/shm is then an error (ENOSPC), where storing
through a map would kill the process with SIGBUS.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

import posix_ipc

from shmcow.errors import IncompatibleStoreError, NotOwnerError, OutOfSharedMemoryError, ShmcowError

DIRECTORY = "/dev/shm"
PREFIX = "shmcow."

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OBJECT = re.compile(r"shmcow\.([A-Za-z0-9_-]{1,64})(?:\.([0-9a-f]{32})\.(lock|holds|[1-9][0-9]*))?")
_log = logging.getLogger("shmcow")


class NameTakenError(IncompatibleStoreError):
    """Something has the name that a new object needs."""


class Found(NamedTuple):
    """One name in /dev/shm that has the form of one of ours."""

    store: str
    epoch: str  # 32 hexadecimal digits, or "" for a header
    what: str  # "header", "lock", "holds" or a segment id
    filename: str


def check_name(name: object) -> str:
    """Return a store's name if it is one.

    Raises:
        TypeError: it is not a string.
        ValueError: it has other characters than ``A-Z a-z 0-9 _ -``, or not 1 to 64 of them.
    """
    if not isinstance(name, str):
        raise TypeError(f"a store's name is a str, found {type(name).__name__}")
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 80 else name[:80] + "…"
        raise ValueError(
            f"bad store name {shown!r}: expected 1 to 64 of the characters A-Z a-z 0-9 _ - (found {len(name)} in all)"
        )
    return name


def header_path(name: str) -> str:
    """Return the path of a store's header."""
    return f"{DIRECTORY}/{PREFIX}{name}"


def object_name(store: str, epoch: bytes, what: object) -> str:
    """Return the name of a store's object as shm_open() wants it, with the leading slash."""
    return f"/{PREFIX}{store}.{epoch.hex()}.{what}"


def create(name: str) -> int:
    """Make an empty object that only this user can read, and return its descriptor, open for writing.

    Also called by the C protocol, for segments.

    Raises:
        NameTakenError: the name exists.
        OSError: what shm_open() said.
    """
    try:
        fd: int = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=0).fd
    except posix_ipc.ExistentialError as exc:
        raise NameTakenError(
            f"something else has the name {name}: nothing was published; try again (the next segment has another "
            "name), and find out who made it"
        ) from exc
    except posix_ipc.PermissionsError as exc:
        raise PermissionError(errno.EACCES, f"shm_open: {exc}", name) from None
    return fd


def unlink(name: str) -> bool:
    """Unlink an object by its shm_open() name. False: there was none."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return False
    except posix_ipc.PermissionsError as exc:
        raise NotOwnerError(f"unlinking {name}: {exc}: it belongs to another user") from None
    return True


def create_empty(store: str, epoch: bytes, what: str, mode: int, uid: int, gid: int) -> bool:
    """Make the lock or the holds file of a store. False: it exists already.

    Args:
        mode: its permission bits, whatever the umask.
        uid, gid: its owner and group; -1 leaves them alone.
    """
    name = object_name(store, epoch, what)
    try:
        fd = create(name)
    except NameTakenError:
        return False
    except OSError as exc:
        raise _as_ours(exc, f"creating {name}") from exc
    try:
        _own(fd, mode, uid, gid)
    except BaseException as exc:
        unlink(name)
        if isinstance(exc, OSError):
            raise _as_ours(exc, f"giving {name} to user {uid}, group {gid}") from exc
        raise
    finally:
        os.close(fd)
    return True


def is_ours(filename: str, uid: int) -> bool:
    """Tell whether a name in /dev/shm is a regular file of this user: anybody may make any name there."""
    try:
        st = os.lstat(f"{DIRECTORY}/{filename}")
    except FileNotFoundError:
        return False
    return stat.S_ISREG(st.st_mode) and st.st_uid == uid


def _own(fd: int, mode: int, uid: int, gid: int) -> None:
    if uid != -1 or gid != -1:
        os.fchown(fd, uid, gid)
    os.fchmod(fd, mode)


def _as_ours(exc: OSError, doing: str) -> ShmcowError | OSError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSharedMemoryError(f"{doing}: no room in {DIRECTORY}: free some, or enlarge it")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return NotOwnerError(f"{doing}: {exc.strerror}: only the owner of a store may write it")
    return exc


def found(store: str | None = None) -> Iterator[Found]:
    """Yield every name in /dev/shm that has the form of a shmcow object, of one store or of all."""
    for filename in sorted(os.listdir(DIRECTORY)):
        match = _OBJECT.fullmatch(filename)
        if match and (store is None or match[1] == store):
            yield Found(match[1], match[2] or "", match[3] or "header", filename)


def sweep(store: str, epoch: bytes, listed: frozenset[int], uid: int) -> list[str]:
    """Unlink what belongs to nothing: objects of other epochs, and segments of this one that no generation lists.

    Concurrency: call with the writer lock of this epoch held, after recovering. A creator that has not linked its
    header yet may lose its lock and holds files to this: it finds our header in its place, and attaches.

    Args:
        listed: ids of the segments that this epoch's generations list.
        uid: only what belongs to this user is touched.

    Returns:
        The names that were unlinked.
    """
    swept = []
    for item in found(store):
        if item.what == "header":
            continue
        if item.epoch == epoch.hex() and (not item.what.isdigit() or int(item.what) in listed):
            continue
        if is_ours(item.filename, uid) and unlink("/" + item.filename):
            swept.append(item.filename)
    if swept:
        _log.info("swept %d objects of store %s that belonged to nothing: %s", len(swept), store, ", ".join(swept))
    return swept


def unlink_segment(name: str, owner: int) -> int:
    """Unlink a segment for the C protocol; 0, or the errno of what went wrong (the next writer tries again).

    Args:
        name: its shm_open() name.
        owner: the store's user: what is not a regular file of this user is no segment, and must not keep a
            generation from being freed.
    """
    try:
        unlink(name)
    except (NotOwnerError, OSError) as exc:
        if not is_ours(name[1:], owner):
            return 0
        _log.warning("could not unlink %s: %s", name, exc)
        return exc.errno if isinstance(exc, OSError) and exc.errno else errno.EPERM
    return 0


def room() -> tuple[int, int]:
    """Return (free, total) bytes of the file system that holds shared memory."""
    st = os.statvfs(DIRECTORY)
    return st.f_bavail * st.f_frsize, st.f_blocks * st.f_frsize
