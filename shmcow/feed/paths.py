"""Paths as a feed needs them: read without ever waiting, and watched wherever one of their names may change.

A configuration is replaced in more ways than one: written in place, renamed over, or by a symlink somewhere on its path
that points elsewhere from one moment to the next, as Kubernetes does in a ConfigMap's volume (``..data``) and
deployments do with ``current``. So the directory of every such name is watched, those behind symlinks included.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
import time
from typing import Any, Final, NamedTuple

from shmcow.feed.origin import SourceError
from shmcow.feed.wake import Wake

__all__ = ["Names", "Signature", "Watcher", "names_on", "open_regular", "read_all", "settled", "signature"]

_log = logging.getLogger("shmcow")
_HOPS: Final = 40  # symlinks on one path, as the kernel has it
_CHUNK: Final = 1 << 20
_RECENT: Final = 2.0  # seconds: a file changed so lately may change again without its times telling
_STEP_MS: Final = 50  # how soon watchfiles notices that it shall end
_LONGEST: Final = 20  # a file that never rests is looked at after so many times the debounce
_ATTEMPTS: Final = 5  # at watching a path whose symlinks change meanwhile
_KINDS: Final = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a directory"))


class Signature(NamedTuple):
    """What tells, without reading it, that a file is the one that was read."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def signature(status: os.stat_result) -> Signature:
    """Return the signature of a file."""
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def settled(seen: Signature) -> bool:
    """Tell whether a signature can be trusted: it is old enough that a later change has other times.

    (The clock of a file system ticks every few milliseconds: two changes within one tick look the same.)
    """
    return time.time_ns() - max(seen.modified_ns, seen.changed_ns) > _RECENT * 1e9


def open_regular(path: str, directory: int | None = None) -> int:
    """Open a regular file for reading; never waits, whatever has that name.

    Args:
        path: of the file; symlinks are followed.
        directory: a descriptor that ``path`` starts from; None: the current directory.

    Returns:
        A descriptor.

    Raises:
        SourceError: it is a FIFO, a device, a socket or a directory.
        OSError: it cannot be opened.
    """
    status = os.stat(path, dir_fd=directory)  # a device may do something when it is opened
    _check_kind(path, status)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=directory)
    try:
        _check_kind(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_kind(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = next((words for test, words in _KINDS if test(status.st_mode)), "a device")
        raise SourceError(f"{path} is {what}, and no regular file")


def read_all(fd: int, where: str, most: int) -> tuple[bytes, Signature]:
    """Read all of a file, and make sure that nobody wrote to it meanwhile.

    It is not mapped: a file that is cut while it is read must not end the process (SIGBUS).

    Raises:
        SourceError: it has more than ``most`` bytes, or is being written.
        OSError: it cannot be read.
    """
    before = signature(os.fstat(fd))
    data = bytearray()
    try:
        while len(data) <= most and (chunk := os.read(fd, min(_CHUNK, most + 1 - len(data)))):
            data += chunk
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, where) from exc
    if len(data) > most or before.size > most:
        raise SourceError(f"{where} has more than {most:,} bytes: is it the right file? (max_bytes allows more)")
    if signature(os.fstat(fd)) != before or before.size != len(data):
        raise SourceError(f"{where} is being written")
    return bytes(data), before


# ---- where the names are ----


class Names(NamedTuple):
    """What to watch.

    Attributes:
        directories: existing ones, without symlinks, sorted.
        names: the names in them on which the path depends.
        inside: the directory that the path leads to, any name in which counts; "" for a file.
        inodes: of the directories: one that another one has replaced needs a watch of its own.
    """

    directories: tuple[str, ...]
    names: frozenset[str]
    inside: str
    inodes: tuple[tuple[int, int], ...]

    def concern(self, path: str) -> bool:
        """Tell whether a change of this name may matter."""
        return path in self.names or path in self.directories or os.path.dirname(path) == self.inside


def names_on(path: str) -> Names:
    """Return the names of which a change may make ``path`` lead elsewhere, or to something else.

    That are: the file itself; all symlinks on the way, and on the way of what they point to; what is missing. (That a
    real directory on the way was renamed is found by looking now and then.)

    Args:
        path: of a file or a directory; it need not exist.
    """
    found: set[str] = set()
    place, inside, hops = "/", "", 0
    todo = os.path.abspath(path).split("/")[1:]
    while todo:
        name = todo.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            place = os.path.dirname(place)
            continue
        here = os.path.join(place, name)
        last = not any(todo)
        try:
            mode = os.lstat(here).st_mode
        except OSError:  # missing, or not for us to see
            found.add(here)
            break
        if stat.S_ISLNK(mode):
            found.add(here)
            hops += 1
            if hops > _HOPS:
                break
            target = _link_at(here)
            place = "/" if target.startswith("/") else place
            todo = [*target.split("/"), *todo]
        elif last or not stat.S_ISDIR(mode):
            found.add(here)
            inside = here if stat.S_ISDIR(mode) else ""
        else:
            place = here
    directories = sorted({os.path.dirname(name) for name in found} | ({inside} if inside else set()))
    return Names(tuple(directories), frozenset(found), inside, tuple(_inode_at(path) for path in directories))


def _inode_at(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _link_at(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # it went this very moment: whatever comes is an event
        return ""


class Watcher:
    """Notices changes in the directories on some paths.

    Raises:
        ImportError: watchfiles is not installed.

    Concurrency: one thread.
    """

    def __init__(self, path: str, debounce: float) -> None:
        try:
            from watchfiles._rust_notify import RustNotify
        except ImportError as exc:
            raise ImportError(
                "watching files needs watchfiles: pip install 'shmcow[feed]' (or give a callable on a timer: "
                "shmcow.feed.poll)"
            ) from exc
        self._make: Any = RustNotify
        self._path = path
        self._debounce_ms = max(1, round(debounce * 1000))
        self._notify: Any = None
        self._names: Names | None = None
        self._told = False

    def arm(self) -> None:
        """Watch what is to be watched now. To be called before the path is read: what changes later ends ``wait``."""
        for _ in range(_ATTEMPTS):
            names = names_on(self._path)
            if self._notify is not None and names == self._names:
                return  # nothing changed between the look and the watch
            self.close()
            try:
                self._notify = self._make(list(names.directories), False, False, 300, False, True)
                self._names = names
            # It vanished; no more watches (fs.inotify.max_user_watches); a name that is no UTF-8.
            except (OSError, RuntimeError, UnicodeError) as exc:
                if not isinstance(exc, FileNotFoundError) and not self._told:
                    self._told = True
                    _log.warning("%a cannot be watched, and is looked at every second instead: %s", self._path, exc)

    def wait(self, seconds: float | None, wake: Wake) -> None:
        """Return when something changed and then rested, when ``wake`` is set, or after so many seconds."""
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        while not wake.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._notify is None or self._names is None:
                wake.wait(min(left, 1.0))
                return
            limit = 0 if left == math.inf else max(1, round(min(left, 86400.0) * 1000))
            try:
                found = self._changed(limit, wake)
            except RuntimeError:  # of any name there that is no UTF-8: which, watchfiles does not tell
                self.close()
                return
            if not found:
                continue  # the time is up, or it shall wake: the loop says
            if any(path in self._names.directories for _, path in found):
                self.close()  # a directory itself was moved or removed: its watch goes with it
                return
            if any(self._names.concern(path) for _, path in found):
                return

    def _changed(self, limit: int, wake: Wake) -> set[tuple[int, str]]:
        """Return what changed and then rested; nothing if ``limit`` (ms) is over, or ``wake`` is set."""
        step = min(self._debounce_ms, _STEP_MS)
        first = self._notify.watch(_LONGEST * step, step, limit, wake)
        if isinstance(first, str):
            return set()
        found: set[tuple[int, str]] = set(first)
        end = time.monotonic() + _LONGEST * self._debounce_ms / 1000
        while self._debounce_ms > step and time.monotonic() < end:
            more = self._notify.watch(_LONGEST * step, step, self._debounce_ms, wake)
            if isinstance(more, str):
                break
            found |= more
        return found

    def close(self) -> None:
        """Stop watching."""
        notify, self._notify, self._names = self._notify, None, None
        if notify is not None:
            with contextlib.suppress(RuntimeError):
                notify.close()
