"""What crashed processes and removed stores left in shared memory: find it, say why it is garbage, collect it.

Three kinds, and what keeps each from being mistaken for something in use:

- *in a store*: versions beyond ``retain`` that nobody holds, generations that a writer left half-done, segments that no
  generation lists, objects of a former epoch. Collected in a turn under the writer lock, as every writer does it.
- *a half-destroyed store*: its ``current`` says DESTROYED. Finished under its writer lock.
- *without a store*: objects of an epoch that no header names. They are left alone while they are young (a store may be
  in the making: lock file and holds file come before the header), while anybody has the writer lock or a marker, and
  while a header of that name cannot be read. They are collected with their own writer lock held; should a creator
  that was stopped for long go on just then, it finds its lock file lost, and starts again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator

from shmcow import _core, segments
from shmcow.errors import (
    CorruptSegmentError,
    IncompatibleStoreError,
    NotOwnerError,
    ShmcowError,
    StoreDestroyedError,
    StoreNotFoundError,
)
from shmcow.fdinfo import locks_on, pids
from shmcow.holders import name_holders
from shmcow.segments import Found, check_name
from shmcow.store import DEFAULT_LOCK_TIMEOUT, STATES, Keeper, Settings, Turn, check_timeout

__all__ = ["MIN_AGE", "Garbage", "collect", "garbage", "unlink_all"]

MIN_AGE = 60.0  # seconds
_HALF_DONE = {
    "building": "its writer ended before it was filled",
    "ready": "its writer ended before it became current",
    "condemned": "its writer ended while it was being reclaimed",
    "doomed": "its writer ended while it was being reclaimed",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Garbage:
    """Something in shared memory that belongs to nothing any more.

    Attributes:
        store: the name in its name.
        what: "version" (retained by nobody), "half-done" (a generation), "segment" (listed by none), "epoch" (objects
            of an epoch without a store) or "store" (half-destroyed).
        version: of a version or a generation, else None.
        files: names in /dev/shm that only this has.
        size_bytes: of shared memory that they take.
        why: it is garbage.
        kept: why it is left alone all the same; "" if it can be collected, or was.
        collected: whether it was.
    """

    store: str
    what: str
    version: int | None
    files: tuple[str, ...]
    size_bytes: int
    why: str
    kept: str = ""
    collected: bool = False


def garbage(name: str | None = None, *, min_age: float = MIN_AGE) -> list[Garbage]:
    """Find what could be collected, and what is left alone and why.

    Args:
        name: of one store, which need not exist any more; None: of all.
        min_age: how old objects without a store must be, in seconds: younger ones may be of a store in the making.

    Returns:
        By name. Other users' stores that cannot be read are left out.

    Raises:
        NotOwnerError: the permissions of the one store do not let this process read it.

    Concurrency: any thread; reads only. What it says is true for a moment.
    """
    check_timeout("min_age", min_age)
    found: list[Garbage] = []
    for store, items in _by_store(name):
        try:
            found += _look(store, items, min_age)
        except NotOwnerError:
            if name is not None:
                raise
    return found


def collect(
    name: str | None = None, *, min_age: float = MIN_AGE, lock_timeout: float = DEFAULT_LOCK_TIMEOUT
) -> list[Garbage]:
    """Collect what ``garbage`` finds.

    Args:
        name, min_age: as for ``garbage``.
        lock_timeout: how long to wait for a store's writers, in seconds; a store that is busy for longer is left alone.

    Returns:
        What was found: ``collected`` says what went, ``kept`` why the rest did not.

    Raises:
        NotOwnerError: as ``garbage``.

    Concurrency: any thread and process; takes the writer lock of each store that has garbage. Whatever a live process
    uses stays: readers notice nothing.
    """
    check_timeout("lock_timeout", lock_timeout)
    found = garbage(name, min_age=min_age)
    trouble: dict[tuple[str, str], str] = {}
    for key, items in _grouped(item for item in found if not item.kept).items():
        try:
            if items[0].what == "epoch":
                for item in items:
                    _sweep_epoch(item)
            else:
                _take_turn(key[0], lock_timeout)
        except (ShmcowError, OSError) as exc:
            trouble[key] = str(exc)
    return [_afterwards(item, trouble.get((item.store, _group(item)), "")) for item in found]


def unlink_all(name: str) -> list[str]:
    """Remove everything that has a store's name, whatever state it is in, without waiting for anybody.

    For a store that ``destroy`` cannot remove: its header is damaged, of another ABI or of another program, or its
    writer lock is held by a process that is stopped. It is what ``rm`` would do, told to the store first.

    Returns:
        The names in /dev/shm that went.

    Raises:
        StoreNotFoundError: there is nothing of that name.
        NotOwnerError: some of it belongs to another user; nothing was removed.

    Concurrency: any thread and process. Readers keep their last good value. A writer in mid-turn publishes nothing.
    """
    items = segments.check_found(name)
    for item in items:
        _check_mine(item.filename)
        path = f"{segments.DIRECTORY}/{item.filename}"
        if os.path.isdir(path) and not os.path.islink(path):
            raise IncompatibleStoreError(f"{path} is a directory, which shmcow never made: nothing was removed")
    with contextlib.suppress(ShmcowError, OSError):  # what is no store cannot be told
        _core.WriterCore(_core.Store(segments.header_path(name)), segments).give_notice()
    # The header first, so that nobody attaches to half of a store; lock files last, as in destroy().
    order = {"header": 0, "lock": 2}
    gone = sorted(items, key=lambda item: order.get(item.what, 1))
    return [item.filename for item in gone if segments.unlink("/" + item.filename)]


# ---- looking ----


def _by_store(name: str | None) -> Iterator[tuple[str, list[Found]]]:
    by_store: dict[str, list[Found]] = {}
    for item in segments.found(None if name is None else check_name(name)):
        by_store.setdefault(item.store, []).append(item)
    yield from sorted(by_store.items())


def _look(name: str, items: list[Found], min_age: float) -> Iterator[Garbage]:
    """Yield the garbage of one name; ``items`` were listed before anything else was looked at."""
    try:
        store = _core.Store(segments.header_path(name))
    except StoreNotFoundError:
        yield from _epochs(name, [item for item in items if item.what != "header"], min_age)
        return
    except (IncompatibleStoreError, CorruptSegmentError) as exc:
        rest = [item.filename for item in items if item.what != "header"]
        if rest:
            why = "its header cannot be read"
            yield Garbage(name, "epoch", None, tuple(rest), _size(rest), why, f"nobody knows what is in use: {exc}")
        return
    epoch = store.epoch.hex()
    mine = [item for item in items if item.epoch == epoch]
    others = [item.filename for item in items if item.epoch not in ("", epoch)]
    if store.word == _core.DESTROYED:
        files = [f"{segments.PREFIX}{name}", *(item.filename for item in mine)]
        why = "whoever destroyed it ended before everything had gone"
        busy = "its writer lock is held: it is being destroyed" if _is_locked(store.prefix + "lock", 1) else ""
        yield Garbage(name, "store", None, tuple(files), _size(files), why, busy or _not_mine(files, store.uid))
        return
    kept = _lost_lock(store)
    yield from _generations(store, kept)
    yield from _strays(store, mine, kept)
    if others:
        why = "left by a former store of that name"
        yield Garbage(name, "segment", None, tuple(others), _size(others), why, kept or _not_mine(others, store.uid))


def _lost_lock(store: _core.Store) -> str:
    if os.geteuid() not in (0, store.uid):
        return f"it belongs to user {store.uid}"
    if not os.path.lexists(store.prefix + "lock"):
        return "the store has lost its lock file, and a turn would end it: see `shmcow doctor`"
    return ""


def _generations(store: _core.Store, kept: str) -> Iterator[Garbage]:
    """Yield half-done generations, if no writer is at work, and versions that are beyond what is retained."""
    first = _states(store)
    current = store.word & _core.VERSION_MAX
    # Who finds the writer lock free in between (the file's first byte: a follower may have the second), and the same
    # state before and after, has seen no writer's work.
    idle = not _is_locked(store.prefix + "lock", 1)
    listed = {version: entry for version, _, entry in store.generations()}
    same = set(first) & set(_states(store)) if idle else set()
    odd = {
        version: _HALF_DONE[STATES[state]]
        for version, state in same
        if STATES[state] in _HALF_DONE and not (STATES[state] == "ready" and version <= current)
    }
    older = sorted((v for v, state in first if STATES[state] == "held" and v < current), reverse=True)
    beyond = dict.fromkeys(older[store.retain :], "nobody holds it, and newer ones are retained")
    holders = {version: name_holders(store, version, version) for version in beyond if store.marked(version)}
    rest = set(listed) - set(odd) - (set(beyond) - set(holders))
    taken = {k for version in rest for k in _segments(listed[version])}
    for version in sorted([*odd, *beyond]):
        own = [k for k in _segments(listed.get(version)) if k not in taken]
        taken.update(own)
        files = [f"{os.path.basename(store.prefix)}{k}" for k in own if os.path.lexists(f"{store.prefix}{k}")]
        if version in holders:
            why, held = "newer ones are retained", f"held {holders[version]}"
        else:
            why, held = {**odd, **beyond}[version], ""
        what = "half-done" if version in odd else "version"
        yield Garbage(store.name, what, version, tuple(files), _size(files), why, kept or held)


def _states(store: _core.Store) -> list[tuple[int, int]]:
    return [(version, min(state, len(STATES) - 1)) for version, state, _ in store.generations()]


def _segments(entry: dict[str, object] | None) -> list[int]:
    parts = entry["parts"] if entry is not None else []
    assert isinstance(parts, list)
    return [part["segment"] for part in parts]


def _strays(store: _core.Store, mine: list[Found], kept: str) -> Iterator[Garbage]:
    """Yield segments that no generation lists.

    A writer lists a segment before it makes the file, and unlinks the file before it frees the generation. So what was
    a file before we read the table, is not listed in it, and is a file still, is nobody's.
    """
    listed: set[int] = set()
    for version, _, entry in store.generations():
        if entry is None:
            kept = kept or f"the entry of version {version} is damaged: nobody knows what it lists"
        listed.update(_segments(entry))
    strays = [item.filename for item in mine if item.what.isdigit() and int(item.what) not in listed]
    for filename in strays:
        if os.path.lexists(f"{segments.DIRECTORY}/{filename}"):
            why = "no version lists it"
            yield Garbage(
                store.name,
                "segment",
                None,
                (filename,),
                _size([filename]),
                why,
                kept or _not_mine([filename], store.uid),
            )


def _epochs(name: str, items: list[Found], min_age: float) -> Iterator[Garbage]:
    """Yield what has no header, epoch by epoch."""
    for epoch in sorted({item.epoch for item in items}):
        files = [item.filename for item in items if item.epoch == epoch]
        kinds = {item.what for item in items if item.epoch == epoch}
        prefix = _prefix(name, epoch)
        if kinds == {"lock"}:
            why = "the store was destroyed, or was never finished"
        elif kinds <= {"lock", "holds"}:
            why = "whoever was creating the store ended before it was done"
        else:
            why = "the store's header was removed"
        yield Garbage(name, "epoch", None, tuple(files), _size(files), why, _in_use(prefix, files, min_age))


def _prefix(name: str, epoch: str) -> str:
    return f"{segments.header_path(name)}.{epoch}."


def _in_use(prefix: str, files: list[str], min_age: float) -> str:
    """Say why objects without a header must be left alone; "" if they need not."""
    if theirs := _not_mine(files, os.geteuid()):
        return theirs
    if _is_locked(prefix + "lock"):
        return f"its writer lock is held{_by(prefix + 'lock')}"
    if _is_locked(prefix + "holds"):
        return f"processes use it still{_by(prefix + 'holds')}"
    age = min((_age(filename) for filename in files), default=min_age)
    if age < min_age:
        making = all(filename.endswith((".lock", ".holds")) for filename in files)
        may = "a store may be in the making" if making else "its header may be put back"
        return f"it is {max(age, 0):.0f} s old: {may} (garbage after {min_age:g} s)"
    return ""


def _by(path: str) -> str:
    with contextlib.suppress(OSError):
        who = sorted({lock.pid for lock in locks_on(path, pids())})
        if who:
            return f" by pid {', '.join(str(pid) for pid in who)}"
    return ""


def _age(filename: str) -> float:
    with contextlib.suppress(OSError):
        return time.time() - os.lstat(f"{segments.DIRECTORY}/{filename}").st_mtime
    return 0.0


def _is_locked(path: str, count: int = 0) -> bool:
    """Tell whether any process has a lock on a file; who may not look is told that there is one.

    Args:
        path: of the file.
        count: how many of its first bytes matter; 0: all.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, count))
        return int(struct.unpack_from("h", found)[0]) != fcntl.F_UNLCK
    except OSError:
        return True
    finally:
        os.close(fd)


def _flock(kind: int, count: int = 0) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, count, 0)  # struct flock; 0 bytes: all of the file


def _size(files: Iterable[str]) -> int:
    total = 0
    for filename in files:
        with contextlib.suppress(OSError):
            total += os.lstat(f"{segments.DIRECTORY}/{filename}").st_blocks * 512
    return total


def _not_mine(files: Iterable[str], uid: int) -> str:
    """Say whose the first of the files is that this process may not or must not unlink; "" if there is none."""
    me = os.geteuid()
    for filename in files:
        with contextlib.suppress(OSError):
            st = os.lstat(f"{segments.DIRECTORY}/{filename}")
            if me not in (0, st.st_uid):
                return f"it belongs to user {st.st_uid}"
            if me == 0 and uid == 0:
                continue
            if not segments.is_ours(filename, uid):
                return f"{filename} is no file of user {uid}"
    return ""


def _check_mine(filename: str) -> None:
    if theirs := _not_mine([filename], 0 if os.geteuid() == 0 else os.geteuid()):
        raise NotOwnerError(f"{segments.DIRECTORY}/{filename} cannot be removed: {theirs}")


# ---- collecting ----


def _group(item: Garbage) -> str:
    return "epoch" if item.what == "epoch" else "store"


def _grouped(items: Iterable[Garbage]) -> dict[tuple[str, str], list[Garbage]]:
    by: dict[tuple[str, str], list[Garbage]] = {}
    for item in items:
        by.setdefault((item.store, _group(item)), []).append(item)
    return by


def _take_turn(name: str, lock_timeout: float) -> None:
    """Have one turn as a writer: it recovers, sweeps and reclaims. A half-destroyed store is finished."""
    keeper = Keeper(name, Settings(), lock_timeout)
    try:
        keeper.attach(create=False, end_lost=False)
    except StoreNotFoundError:
        return  # destroyed meanwhile, or by us: what is still there was told before, or is found the next time
    with contextlib.suppress(StoreDestroyedError), Turn(keeper, recreate=False) as turn:
        turn.sweep()
        turn.core.reclaim(turn.store.retain)


def _sweep_epoch(item: Garbage) -> None:
    """Unlink the objects of an epoch without a header, with its writer lock held, if that is what it still is."""
    match = next((found for found in segments.found(item.store) if found.filename == item.files[0]), None)
    if match is None:
        return
    prefix = _prefix(item.store, match.epoch)
    with contextlib.ExitStack() as stack:
        if os.path.lexists(prefix + "lock"):
            fd = os.open(prefix + "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, fd)
            _lock(fd, prefix)
        if os.path.lexists(segments.header_path(item.store)):
            raise StoreDestroyedError(f"a store {item.store} was created meanwhile, and its writers sweep")
        if _is_locked(prefix + "holds"):
            raise StoreDestroyedError(f"processes use it{_by(prefix + 'holds')}")
        for filename in sorted(item.files, key=lambda filename: filename.endswith(".lock")):
            segments.unlink("/" + filename)


def _lock(fd: int, prefix: str) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            raise StoreDestroyedError(f"its writer lock is held{_by(prefix + 'lock')}") from exc
        raise


def _afterwards(item: Garbage, trouble: str) -> Garbage:
    """Return what became of an item."""
    if item.kept:
        return item
    if any(os.path.lexists(f"{segments.DIRECTORY}/{filename}") for filename in item.files):
        return dataclasses.replace(item, kept=trouble or "it came into use")
    if item.version is not None and not item.files:
        with contextlib.suppress(ShmcowError, OSError):
            store = _core.Store(segments.header_path(item.store))
            if item.version in [version for version, _, _ in store.generations()]:
                return dataclasses.replace(item, kept=trouble or "it came into use")
    return dataclasses.replace(item, collected=True)
