"""The objects in shared memory: their names, how they are made, filled and unlinked.

The only user of posix_ipc. What is made here has its final owner and permissions before anybody can find it through
the header, and a data segment is filled with ``write()``: a full /dev/shm is then an error (ENOSPC), where storing
through a map would kill the process with SIGBUS.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

import posix_ipc

from shmcow import _core
from shmcow.errors import IncompatibleStoreError, NotOwnerError, OutOfSharedMemoryError, ShmcowError, StoreNotFoundError

DIRECTORY = "/dev/shm"
PREFIX = "shmcow."

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OBJECT = re.compile(r"shmcow\.([A-Za-z0-9_-]{1,64})(?:\.([0-9a-f]{32})\.(lock|holds|[1-9][0-9]*))?")
# Makes an empty object that only this user can read. The C protocol calls it without a Python frame in between, where a
# signal handler could run and lose the descriptor.
make = functools.partial(posix_ipc.SharedMemory, flags=posix_ipc.O_CREX, mode=0o600, size=0)
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


def translated(exc: BaseException, name: str) -> BaseException:
    """Return what to raise instead of what ``make`` raised; also called by the C protocol."""
    if isinstance(exc, posix_ipc.ExistentialError):
        return NameTakenError(
            f"something else has the name {name}: nothing was published; try again (the next segment has another "
            "name), and find out who made it"
        )
    if isinstance(exc, posix_ipc.PermissionsError):
        return PermissionError(errno.EACCES, f"shm_open: {exc}", name)
    if isinstance(exc, OSError) and exc.errno is None:  # two limits that posix_ipc tells in words only
        number = errno.ENFILE if "system" in str(exc) else errno.EMFILE
        return OSError(number, f"shm_open: {os.strerror(number)}", name)
    return exc


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
        error = _core.create_empty(make, name, mode, uid, gid)
    except posix_ipc.ExistentialError:
        return False
    except (posix_ipc.Error, OSError) as exc:
        why = translated(exc, name)
        raise (_as_ours(why, f"creating {name}") if isinstance(why, OSError) else why) from exc
    except OverflowError as exc:
        raise ValueError(f"{exc}: a uid or gid is out of range, found {uid}, {gid}") from exc
    if error:
        unlink(name)
        raise _as_ours(OSError(error, os.strerror(error)), f"giving {name} to user {uid}, group {gid}")
    return True


def is_ours(filename: str, uid: int) -> bool:
    """Tell whether a name in /dev/shm is a regular file of the store's user: anybody may make any name there.

    Or of this process's: root makes a segment before it gives it to the store's user, and may be killed in between.
    """
    try:
        st = os.lstat(f"{DIRECTORY}/{filename}")
    except FileNotFoundError:
        return False
    return stat.S_ISREG(st.st_mode) and st.st_uid in (uid, os.geteuid())


def _as_ours(exc: OSError, doing: str) -> ShmcowError | OSError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSharedMemoryError(f"{doing}: no room in {DIRECTORY}: free some, or enlarge it")
    if exc.errno == errno.EINVAL:
        return NotOwnerError(f"{doing}: this process's user namespace has no number for that user or group")
    if exc.errno == errno.EROFS:
        return NotOwnerError(f"{doing}: {exc.strerror}: publish where {DIRECTORY} is not mounted read-only")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return NotOwnerError(f"{doing}: {exc.strerror}: only the owner of a store may write it")
    return exc


def found(store: str | None = None) -> Iterator[Found]:
    """Yield every name in /dev/shm that has the form of a shmcow object, of one store or of all."""
    prefix = PREFIX + (store or "")
    # A set: Linux may list a name twice while others make and remove files beside it.
    for filename in sorted({name for name in os.listdir(DIRECTORY) if name[: len(prefix)] == prefix}):
        match = _OBJECT.fullmatch(filename)
        if match and (store is None or match[1] == store):
            yield Found(match[1], match[2] or "", match[3] or "header", filename)


def check_found(store: str) -> list[Found]:
    """Return every name in /dev/shm that is of a store.

    Raises:
        StoreNotFoundError: there is none.
    """
    items = list(found(check_name(store)))
    if not items:
        raise StoreNotFoundError(f"there is no store {store}, and nothing else of that name in {DIRECTORY}")
    return items


def sweep(store: str, epoch: bytes, listed: frozenset[int], uid: int, named: Callable[[], bool]) -> list[str]:
    """Unlink what belongs to nothing: objects of other epochs, and segments of this one that no generation lists.

    Concurrency: call with the writer lock of this epoch held, after recovering. A creator that has not linked its
    header yet may lose its lock and holds files to this: it finds our header in its place, and attaches.

    Args:
        listed: ids of the segments that this epoch's generations list.
        uid: only what belongs to this user is touched.
        named: tells whether the header's name still leads to this epoch. Asked after listing: should the writer lock
            have been removed from outside, what is listed may be a successor's.

    Returns:
        The names that were unlinked.
    """
    swept: list[str] = []
    items = list(found(store))
    if not named():
        return swept
    for item in items:
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
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return 0
    except (posix_ipc.PermissionsError, OSError) as exc:
        if not is_ours(name[1:], owner):
            return 0
        _log.warning("could not unlink %s: %s", name, exc)
        return exc.errno if isinstance(exc, OSError) and exc.errno else errno.EPERM
    return 0


def is_whole(store: _core.Store, segment: int, length: int) -> bool:
    """Tell whether a segment that an entry lists is there, of this size, and the store's."""
    try:
        st = os.lstat(f"{store.prefix}{segment}")
    except FileNotFoundError:
        return False
    size = -(-length // _core.FOOTER_ALIGN) * _core.FOOTER_ALIGN + _core.FOOTER_BYTES
    return stat.S_ISREG(st.st_mode) and st.st_uid == store.uid and st.st_size == size


def room() -> tuple[int, int]:
    """Return (free, total) bytes of the file system that holds shared memory."""
    st = os.statvfs(DIRECTORY)
    return st.f_bavail * st.f_frsize, st.f_blocks * st.f_frsize
