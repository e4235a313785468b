"""What a machine, a container or a process can have set up in a way that shared memory suffers from."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from shmcow import segments

__all__ = ["Finding", "check_directory", "check_limits", "check_logind", "removes_ipc"]

_DOCKER_DEFAULT: Final = 64 << 20  # bytes of /dev/shm in a container that nobody said anything else about
_FIRST_USER: Final = 1000  # of uids: below are root and system users, whom logind leaves alone
_FEW_INODES: Final = 100
_FEW_DESCRIPTORS: Final = 16
_ENLARGE: Final = (
    "free some, or enlarge it: mount -o remount,size=2G /dev/shm; in a container docker run --shm-size=2g, shm_size: "
    "in compose, an emptyDir with medium: Memory in Kubernetes"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or may go wrong.

    Attributes:
        level: "problem": something fails, or is lost, or is about to. "warning": it may, if nothing changes.
        store: the store's name; None: the machine, or this process.
        check: which look found it, such as "room" or "header".
        what: was found.
        fix: what to do about it.
    """

    level: Literal["problem", "warning"]
    store: str | None
    check: str
    what: str
    fix: str


def check_directory(directory: str = segments.DIRECTORY) -> Iterator[Finding]:
    """Yield what is wrong with the directory that shared memory lies in, whatever the stores need.

    Concurrency: any thread; reads only.
    """
    try:
        st = os.stat(directory)
        room = os.statvfs(directory)
    except OSError as exc:
        yield Finding("problem", None, "directory", f"{directory}: {exc.strerror}", f"mount -t tmpfs tmpfs {directory}")
        return
    kind, options = _mounted(directory)
    if kind not in ("tmpfs", "ramfs"):
        what = f"{directory} is a file system of the type {kind}, not tmpfs: what is published there goes to a disk"
        yield Finding("problem", None, "filesystem", what, f"mount -t tmpfs -o mode=1777 tmpfs {directory}")
    if "ro" in options:
        what = f"{directory} is mounted read-only here: nobody can publish (right where processes only read)"
        yield Finding("problem", None, "filesystem", what, f"mount -o remount,rw {directory}")
    if st.st_mode & stat.S_IWOTH and not st.st_mode & stat.S_ISVTX:
        what = f"{directory} has the mode {stat.S_IMODE(st.st_mode):04o}: anybody may remove anybody's stores"
        yield Finding("problem", None, "directory", what, f"chmod 1777 {directory}")
    if "ro" not in options and not os.access(directory, os.W_OK | os.X_OK):
        what = f"this user may not create anything in {directory} (mode {stat.S_IMODE(st.st_mode):04o})"
        yield Finding("problem", None, "directory", what, f"chmod 1777 {directory}")
    if room.f_files and room.f_favail < _FEW_INODES:
        what = f"{directory} has room for {room.f_favail} more files only, of {room.f_files}"
        yield Finding("problem", None, "inodes", what, f"mount -o remount,nr_inodes=1M {directory}")
    if room.f_blocks * room.f_frsize == _DOCKER_DEFAULT:
        what = f"{directory} has 64 MiB, what Docker gives a container that asks for nothing else"
        yield Finding("warning", None, "container", what, _ENLARGE)


def _mounted(directory: str) -> tuple[str, list[str]]:
    """Return type and options of the file system that a directory lies on."""
    real = os.path.realpath(directory)
    best, kind, options = "", "unknown", list[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            point = left.split()[4].encode().decode("unicode_escape")
            if len(point) >= len(best) and (real + "/").startswith(point.rstrip("/") + "/"):
                best, kind, options = point, right.split()[0], left.split()[5].split(",")
    return kind, options


# ---- limits of processes ----


def check_limits(pid: int, largest: int, who: str, store: str | None = None) -> Iterator[Finding]:
    """Yield what the resource limits of a process keep it from. (Nothing here needs RLIMIT_MEMLOCK.)

    Args:
        pid: of the process; one that this user may not look into has no findings.
        largest: bytes of the largest segment that it may have to write or map.
        who: the process, for people.
        store: that it reads; None: it may be any.

    Concurrency: any thread; reads only.
    """
    limit = _limit(pid, resource.RLIMIT_FSIZE)
    if pid == os.getpid() and limit is not None and limit < largest:
        what = f"{who} may write files of at most {limit:,} bytes (RLIMIT_FSIZE), and a segment has {largest:,}"
        fix = "ulimit -f unlimited, or LimitFSIZE=infinity in the unit of whoever publishes"
        yield Finding("problem", store, "limits", what, fix)
    limit = _limit(pid, resource.RLIMIT_AS)
    used = _address_space(pid)
    if limit is not None and used is not None and used + largest > limit:
        what = (
            f"{who} may have {limit:,} bytes of address space (RLIMIT_AS) and has {used:,}: it has no room to map "
            f"a version of {largest:,}"
        )
        yield Finding("problem", store, "limits", what, "ulimit -v unlimited, or LimitAS=infinity in its unit")
    limit = _limit(pid, resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):
        used = len(os.listdir(f"/proc/{pid}/fd"))
        if limit is not None and used + _FEW_DESCRIPTORS > limit:
            what = f"{who} has {used} of at most {limit} descriptors open (RLIMIT_NOFILE)"
            fix = "ulimit -n 4096, or LimitNOFILE=4096 in its unit; look for a leak"
            yield Finding("problem", store, "limits", what, fix)


def _limit(pid: int, which: int) -> int | None:
    """Return a soft limit; None: unlimited, or not to be seen."""
    try:
        soft, _ = resource.prlimit(pid, which)
    except (OSError, ValueError):
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def _address_space(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return None


# ---- logind ----


def removes_ipc(root: Path = Path("/")) -> bool | None:
    """Tell whether systemd-logind removes a user's shared memory at the end of its last session (RemoveIPC=).

    Args:
        root: of the file system to look at.

    Returns:
        None if there is no logind here.

    Concurrency: any thread; reads only.
    """
    places = [root / folder / "systemd" for folder in ("etc", "run", "usr/local/lib", "usr/lib", "lib")]
    main = next((place / "logind.conf" for place in places if (place / "logind.conf").is_file()), None)
    drop_ins: dict[str, Path] = {}
    for place in reversed(places):  # of two with one name the earlier place's counts
        drop_ins.update({path.name: path for path in (place / "logind.conf.d").glob("*.conf")})
    if main is None and not drop_ins and not (root / "run/systemd/system").is_dir():
        return None
    removes = True  # as systemd is built
    for path in [*([main] if main else []), *(drop_ins[name] for name in sorted(drop_ins))]:
        said = _setting(path, "Login", "RemoveIPC")
        if said is not None:
            removes = said.lower() in ("yes", "y", "true", "t", "on", "1", "")
    return removes


def _setting(path: Path, section: str, key: str) -> str | None:
    """Return a setting of a file as systemd reads it: the last one counts."""
    here, found = "", None
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            text = line.strip()
            if text.startswith("["):
                here = text
            name, equals, said = text.partition("=")
            if equals and here == f"[{section}]" and name.strip() == key:
                found = said.strip()
    return found


def check_logind(owners: dict[int, str], *, running: bool | None = None, root: Path = Path("/")) -> Iterator[Finding]:
    """Yield a warning if logind will remove somebody's stores.

    Args:
        owners: one store of each owner, by uid.
        running: whether systemd is at work; None: look.
        root: as for ``removes_ipc``.

    Concurrency: any thread; reads only.
    """
    if running is None:
        running = (root / "run/systemd/system").is_dir()
    if not running or not removes_ipc(root):
        return
    for uid, store in sorted(owners.items()):
        if uid >= _FIRST_USER:
            what = (
                f"systemd-logind removes the shared memory of user {uid} when its last session ends (RemoveIPC=yes), "
                f"and with it {store}"
            )
            fix = (
                "put RemoveIPC=no below [Login] in /etc/systemd/logind.conf.d/shmcow.conf and restart systemd-logind; "
                f"or loginctl enable-linger {uid}; or let a system user (a uid below {_FIRST_USER}) own the store"
            )
            yield Finding("warning", store, "logind", what, fix)
