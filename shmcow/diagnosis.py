"""What is wrong with the stores of a machine, and what to do about it: ``diagnose``."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from shmcow import _core, segments
from shmcow.decoding import check_payload
from shmcow.encoded import is_forced
from shmcow.errors import (
    CorruptSegmentError,
    IncompatibleStoreError,
    NotOwnerError,
    ShmcowError,
    StoreNotFoundError,
)
from shmcow.fdinfo import describe_process, locks_on_any, pids
from shmcow.feeding import feed_state
from shmcow.garbage import Garbage, garbage
from shmcow.holders import Holder, holders_of
from shmcow.machine import Finding, check_directory, check_limits, check_logind
from shmcow.store import STATES
from shmcow.words import counted

__all__ = ["Finding", "diagnose"]

_FULL_TABLE: Final = _core.GENERATIONS - 4
_OPENABLE: Final = ("ready", "held", "condemned")
_STOPPED: Final = "Tt"  # as /proc/<pid>/stat writes it


def diagnose(name: str | None = None) -> list[Finding]:
    """Look for whatever is wrong, or is about to go wrong.

    Args:
        name: of one store, with what on this machine concerns it; None: all of them.

    Returns:
        What was found, problems before warnings; nothing: all is well as far as this user may look.

    Raises:
        StoreNotFoundError: there is nothing of that name.

    Concurrency: any thread; reads only, and needs no write permission. It holds the current version of each store for
    as long as it takes to compute its checksum.
    """
    names = sorted({item.store for item in (segments.found() if name is None else segments.check_found(name))})
    found = list(check_directory())
    owners: dict[int, str] = {}
    stores: list[_core.Store] = []
    for each in names:
        try:
            store = _core.Store(segments.header_path(each))
        except StoreNotFoundError:
            found += _orphans(each)
            continue
        except NotOwnerError as exc:
            fix = "run this as its owner, or as root"
            found.append(Finding("warning", each, "permissions", f"it cannot be looked into: {exc}", fix))
            continue
        except (IncompatibleStoreError, CorruptSegmentError) as exc:
            fix = f"shmcow rm --force {each}, and publish again; another release's store: use that release"
            found.append(Finding("problem", each, "header", str(exc), fix))
            continue
        owners.setdefault(store.uid, each)
        stores.append(store)
    for store in stores:
        found += _check_store(store)
    found += _processes(stores)
    largest = max((size for store in stores for size in _sizes(store).values()), default=0)
    found += check_limits(os.getpid(), max(largest, _core.HEADER_BYTES), "this process")
    found += check_logind(owners)
    return sorted(found, key=lambda finding: finding.level == "warning")


def _check_store(store: _core.Store) -> Iterator[Finding]:
    yield from _leftovers(garbage(store.name))
    if store.word == _core.DESTROYED:
        return
    yield from _files(store)
    yield from _versions(store)
    yield from _room(store)
    yield from _feed(store)


# ---- what is left over ----


def _orphans(name: str) -> Iterator[Finding]:
    for item in garbage(name):
        if not item.kept:
            yield from _leftovers([item])
        elif any(filename.rpartition(".")[2].isdigit() for filename in item.files):
            what = f"its header was removed from outside; {item.kept}. Readers keep the last value"
            fix = "publish again: the readers find the new store by themselves"
            yield Finding("problem", name, "header", what, fix)


def _leftovers(found: list[Garbage]) -> Iterator[Finding]:
    names = {"store": "a half-destroyed store", "epoch": "objects without a store", "segment": "segments of no version"}
    for item in found:
        if item.kept or item.what == "version":
            continue
        what = names.get(item.what, f"version {item.version}, half-done")
        said = f"{what} ({counted(len(item.files), 'file')}, {counted(item.size_bytes, 'byte')}): {item.why}"
        yield Finding("problem", item.store, "leftovers", said, f"shmcow gc {item.store}")


# ---- names, owners and permissions ----


def _files(store: _core.Store) -> Iterator[Finding]:
    name = store.name
    again = "export the value first (shmcow get), then publish it again"
    yield from _file(store, store.path, "header", store.mode, f"chmod {store.mode:04o} {store.path}")
    lost = (
        "the lock file was removed: writers end the store at their next publish and create it anew, and its older "
        f"versions are lost ({again})"
    )
    yield from _file(store, store.prefix + "lock", "lock", 0o600, f"chmod 0600 {store.prefix}lock", lost)
    mode = store.mode & 0o444
    lost = "the holds file was removed: nobody knows who holds what, and a held version may lose its names"
    fix = f"publish, or shmcow gc {name} (as its owner): the file is made anew"
    yield from _file(store, store.prefix + "holds", "holds", mode, f"chmod {mode:04o} {store.prefix}holds", lost, fix)


def _file(
    store: _core.Store, path: str, check: str, mode: int, chmod: str, lost: str = "", fix: str = "publish again"
) -> Iterator[Finding]:
    """Yield what is wrong with one of a store's files, which must have this mode and the store's owner."""
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        if lost:
            yield Finding("problem", store.name, check, lost, fix)
        return
    if not stat.S_ISREG(st.st_mode):
        yield Finding("problem", store.name, check, f"{path} is no regular file", f"remove it: rm {path}")
    elif st.st_uid != store.uid:
        what = f"{path} belongs to user {st.st_uid}, the store to user {store.uid}"
        yield Finding("problem", store.name, "owner", what, f"as root: rm {path}; then publish again")
    elif stat.S_IMODE(st.st_mode) != mode:
        what = f"{path} has the mode {stat.S_IMODE(st.st_mode):04o}, and the store was made with {mode:04o}"
        yield Finding("problem", store.name, "permissions", what, chmod)


# ---- versions ----


def _sizes(store: _core.Store) -> dict[int, int]:
    """Return bytes of each version that can be opened."""
    return {version: sum(part["length"] for part in entry["parts"]) for version, _, entry in _openable(store) if entry}


def _openable(store: _core.Store) -> list[tuple[int, int, dict[str, Any] | None]]:
    return [row for row in store.generations() if row[1] >= len(STATES) or STATES[row[1]] in _OPENABLE]


def _versions(store: _core.Store) -> Iterator[Finding]:
    name, current = store.name, store.word & _core.VERSION_MAX
    rows = _openable(store)
    if len(rows) >= _FULL_TABLE:
        what = f"{len(rows)} of {_core.GENERATIONS} places for versions are taken: the oldest is forced out next"
        yield Finding("warning", name, "table", what, f"look for who holds old versions: shmcow history {name}")
    for version, _, entry in rows:
        if version == current or not _still(store, version):
            continue
        if entry is None:
            what = f"what is written down about version {version} is damaged"
            yield Finding("problem", name, "entry", what, f"shmcow drop {name} {version}")
        elif not _is_whole(store, entry) and _still(store, version):
            what = f"a segment of version {version} is missing, or has another size or owner"
            yield Finding("problem", name, "segments", what, f"shmcow drop {name} {version}")
    if current == 0:
        return
    fix = f"shmcow rollback {name}, or publish the value again"
    try:
        hold = _core.Store(store.path).hold()  # of its own: its descriptor goes with it
        entry = hold.entry
        where = f"version {hold.version} of store {name}"
        for k, part in enumerate(entry["parts"]):
            check_payload(hold.view(k), part, True, where)
    except ShmcowError as exc:
        if store.named() and store.word != _core.DESTROYED:
            yield Finding("problem", name, "current", f"the current version cannot be used: {exc}", fix)
        return
    if is_forced(entry["source"]):
        as_what = f"as {entry['type_name']}" if entry["type_name"] else "without a type"
        what = (
            f"current version {hold.version} was published with --force, {as_what}: it was not compared with what "
            "readers expect, who may go on with the value before"
        )
        yield Finding("warning", name, "forced", what, f"shmcow rollback {name}, or publish again with the type")
    if hold.store.markers_refused:
        why = os.strerror(hold.store.markers_refused)
        what = f"the kernel refuses the markers of readers ({why}): nobody knows who holds what"
        yield Finding("warning", name, "markers", what, "allow F_OFD_SETLK in the sandbox; readers go on without")
    wrong = [
        path
        for path in [f"{store.prefix}{part['segment']}" for part in entry["parts"]]
        if _mode(path) not in (None, store.mode & 0o444)
    ]
    if wrong:
        what = f"{wrong[0]} has the mode {_mode(wrong[0]):04o}: it can be written, or not read by all who may"
        yield Finding("problem", name, "permissions", what, f"chmod {store.mode & 0o444:04o} {wrong[0]}")


def _is_whole(store: _core.Store, entry: dict[str, Any]) -> bool:
    return all(segments.is_whole(store, part["segment"], part["length"]) for part in entry["parts"])


def _still(store: _core.Store, version: int) -> bool:
    return any(version == row[0] for row in _openable(store))


def _mode(path: str) -> int | None:
    with contextlib.suppress(OSError):
        return stat.S_IMODE(os.lstat(path).st_mode)
    return None


# ---- room ----


def _room(store: _core.Store) -> Iterator[Finding]:
    sizes = _sizes(store)
    if not sizes:
        return
    name, largest, used, limit = store.name, max(sizes.values()), store.total_bytes, store.max_total_bytes
    current = store.word & _core.VERSION_MAX
    free, total = segments.room()
    keeps = store.retain + 2  # the retained ones, the current one, and the next one beside them
    can_go = used - sizes.get(current, 0) if not store.marked_below(current) else 0
    enlarge = (
        "enlarge it: mount -o remount,size=2G /dev/shm; in a container docker run --shm-size=2g, shm_size: in compose, "
        f"an emptyDir with medium: Memory in Kubernetes; or retain fewer versions: Writer({name!r}, retain=1)"
    )
    if limit and 2 * largest > limit:
        what = f"max_total_bytes is {limit:,}: a current version and a next one of {largest:,} bytes do not fit"
        yield Finding("problem", name, "quota", what, f"Writer({name!r}, max_total_bytes={4 * largest})")
    if largest > free + can_go:
        what = (
            f"a version of {largest:,} bytes finds no room: {free:,} bytes of {total:,} are free in "
            f"{segments.DIRECTORY}, and older versions would give {can_go:,}"
        )
        yield Finding("problem", name, "room", what, enlarge)
        return
    need = min(largest * keeps, limit) if limit else largest * keeps
    if need - used > free:
        what = (
            f"{keeps} versions of {largest:,} bytes need {need:,} (retain={store.retain}), the store takes {used:,}, "
            f"and {free:,} of {total:,} are free in {segments.DIRECTORY}: old versions will go before their time"
        )
        yield Finding("warning", name, "room", what, enlarge)


def _feed(store: _core.Store) -> Iterator[Finding]:
    """Yield what is wrong with who feeds a store, if it was ever fed."""
    feed = feed_state(store)
    if feed is None:
        return
    again = (
        f"start it again: shmcow follow {feed.source or 'SOURCE'} {store.name}, with the options and in the directory "
        "that it had, best under a supervisor"
    )
    if feed.damaged:
        yield Finding("warning", store.name, "feed", "the feed's state is damaged", again)
        return
    if not feed.running:
        what = f"nothing feeds it any more: the follower of {feed.source}, pid {feed.pid}, has ended"
        yield Finding("warning", store.name, "feed", what, again)
    if feed.failures_in_a_row:
        row = counted(feed.failures_in_a_row, "time")
        what = f"its feed failed {row} in a row, and readers keep the last good version: "
        fix = f"put {feed.source} right, or start its follower with what the error asks for"
        yield Finding("warning", store.name, "feed", what + feed.last_error, fix)


# ---- processes ----


def _processes(stores: list[_core.Store]) -> Iterator[Finding]:
    """Yield what is wrong with those who use some stores, after one look at all processes."""
    locks = {f"{store.prefix}lock": store.name for store in stores}
    for path, lock in locks_on_any(locks, pids()):
        if _state(lock.pid) in _STOPPED:
            has = (
                "writer lock: nobody else can publish"
                if lock.first <= _core.WRITER_AT
                else "feed lock: nothing feeds it"
            )
            what = f"{describe_process(lock.pid)} is stopped and has the {has}"
            fix = f"kill -CONT {lock.pid}, or end it: kill -KILL {lock.pid}"
            yield Finding("problem", locks[path], "stopped", what, fix)
    found = holders_of(stores)
    for store in stores:
        largest = max(_sizes(store).values(), default=0)
        for holder in found[store.prefix]:
            if _state(holder.pid) in _STOPPED:
                yield from _stopped(store.name, store.word & _core.VERSION_MAX, holder)
            if holder.pid != os.getpid():
                yield from check_limits(holder.pid, largest, f"the reader {describe_process(holder.pid)}", store.name)


def _stopped(name: str, current: int, holder: Holder) -> Iterator[Finding]:
    old = [f"{low}" if low == high else f"{low} to {high}" for low, high in holder.held if low < current]
    if old:
        what = f"{describe_process(holder.pid)} is stopped and holds version {', '.join(old)}: its memory stays taken"
        fix = f"kill -CONT {holder.pid}, or end it: kill -KILL {holder.pid}"
        yield Finding("problem", name, "stopped", what, fix)


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "-"
