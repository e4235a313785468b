"""Files and databases on files, on /dev/shm like the others."""

from __future__ import annotations

import importlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Peer, Read, Write
from benchmarks.scene import SHM


class PolledFile(Peer):
    """os.stat before each use; read and decode again if inode or time changed; replaced by os.replace."""

    title = "file, os.stat and re-read"

    def __init__(self, kind: type, first: Any) -> None:
        super().__init__(kind, first)
        self.path = f"{SHM}/{self.name}"

    def start(self) -> None:
        self.writer()(self.first)

    def stop(self) -> None:
        for path in (self.path, f"{self.path}.new"):
            Path(path).unlink(missing_ok=True)

    def reader(self) -> Read:
        path, decode, stat = self.path, self.decode, os.stat
        seen, value = None, None

        def read() -> Any:
            nonlocal seen, value
            found = stat(path)
            if (now := (found.st_ino, found.st_mtime_ns)) != seen:
                with open(path, "rb") as stream:
                    value = decode(stream.read())
                seen = now
            return value

        return read

    def writer(self) -> Write:
        path, encode = self.path, self.encode

        def write(value: Any) -> None:
            with open(f"{path}.new", "wb") as stream:
                stream.write(encode(value))
            os.replace(f"{path}.new", path)

        return write


class SQLite(Peer):
    """A row that is replaced, in WAL mode: readers and the writer do not wait for each other."""

    title = "SQLite (WAL)"

    def __init__(self, kind: type, first: Any) -> None:
        super().__init__(kind, first)
        self.folder = Path(SHM, self.name)

    def connection(self) -> sqlite3.Connection:
        """Open it, in the process that uses it."""
        opened = sqlite3.connect(self.folder / "db", isolation_level=None)
        opened.execute("pragma journal_mode=wal")
        opened.execute("pragma synchronous=normal")
        opened.execute("pragma busy_timeout=10000")
        return opened

    def start(self) -> None:
        self.folder.mkdir()
        opened = self.connection()
        opened.execute("create table kept (name text primary key, value blob) without rowid")
        opened.execute("insert into kept values ('value', ?)", (self.encode(self.first),))
        opened.close()

    def stop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def reader(self) -> Read:
        execute, decode = self.connection().execute, self.decode
        return lambda: decode(execute("select value from kept where name = 'value'").fetchone()[0])

    def writer(self) -> Write:
        execute, encode = self.connection().execute, self.encode
        return lambda value: execute("update kept set value = ? where name = 'value'", (encode(value),))

    def hold(self, inside: Callable[[], None]) -> bool:
        opened = self.connection()
        opened.execute("begin immediate")
        inside()
        opened.execute("rollback")
        return True


class DiskCache(Peer):
    """A Cache with its settings as they come; it pickles the value itself."""

    title = "diskcache"
    package = "diskcache"
    module = "diskcache"

    def __init__(self, kind: type, first: Any) -> None:
        super().__init__(kind, first)
        self.folder = Path(SHM, self.name)

    def _open(self) -> Any:
        return importlib.import_module("diskcache").Cache(str(self.folder))

    def start(self) -> None:
        with self._open() as cache:
            cache["value"] = self.first

    def stop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def reader(self) -> Read:
        cache = self._open()
        return lambda: cache["value"]

    def writer(self) -> Write:
        cache = self._open()
        return lambda value: cache.set("value", value)

    def hold(self, inside: Callable[[], None]) -> bool:
        with self._open().transact():
            inside()
        return True
