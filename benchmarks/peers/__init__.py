"""What shmcow is measured against, each behind the same small interface (base.Peer).

One module for each peer or family. A peer is used as its own documentation recommends for one value that one process
replaces and others read; where that leaves a choice, its docstring says which was made, and why.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sqlite3
from collections.abc import Iterable, Sequence

from benchmarks.peers.base import Floor, Local, Peer
from benchmarks.peers.blackboard import Blackboard, BlackboardKept
from benchmarks.peers.dicts import SharedMemoryDict, UltraDict
from benchmarks.peers.files import DiskCache, PolledFile, SQLite
from benchmarks.peers.lightning import LMDB, LMDBKept
from benchmarks.peers.ours import Context, Dict, Empty, Shmcow
from benchmarks.peers.remote import CachedRedis, DirtyStash, Redis, server_version
from benchmarks.peers.rwlock import RWLock
from benchmarks.peers.standard import Manager, SharedMemoryLock

FLOORS: Sequence[type[Peer]] = (Empty, Dict, Context)
ALL: Sequence[type[Peer]] = (
    Shmcow,
    UltraDict,
    RWLock,
    LMDBKept,
    LMDB,
    BlackboardKept,
    Blackboard,
    PolledFile,
    SharedMemoryLock,
    SharedMemoryDict,
    SQLite,
    DiskCache,
    Manager,
    CachedRedis,
    Redis,
    DirtyStash,
)

PACKAGES = (
    *("UltraDict", "atomics", "shared-memory-dict", "lmdb", "iceoryx2", "diskcache", "redis", "hiredis", "gunicorn"),
    *("marisa-trie", "geoip2fast", "maxminddb"),
)

__all__ = [
    "ALL",
    "FLOORS",
    "Floor",
    "Local",
    "Peer",
    "present",
    "versions",
    *(kind.__name__ for kind in (*FLOORS, *ALL)),
]


def versions() -> dict[str, str]:
    """Return the versions of what is installed of them."""
    found = {"sqlite": sqlite3.sqlite_version}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if server := server_version():
        found["redis-server"] = server
    return found


def present(kinds: Iterable[type[Peer]]) -> tuple[list[type[Peer]], list[str]]:
    """Return those that can run here, and for each other one a line that says why not and what to install."""
    here, skipped = [], []
    for kind in kinds:
        reason = kind.missing()
        if reason:
            skipped.append(f"{kind.title}: skipped, {reason}")
        else:
            here.append(kind)
    return here, skipped
