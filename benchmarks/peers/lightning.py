"""LMDB: a database in mapped files, with readers that no writer waits for."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Peer, Read, Write
from benchmarks.scene import SHM

KEY = b"value"


class LMDB(Peer):
    """On /dev/shm like the others, its settings as they come: a transaction, a get and a decode for each read.

    ``buffers=True``: the decoder reads from the map, and no copy is made.
    """

    title = "LMDB"
    package = "lmdb"
    module = "lmdb"

    def __init__(self, kind: type, first: Any) -> None:
        super().__init__(kind, first)
        self.path = Path(SHM, self.name)

    def environment(self) -> Any:
        """Open it; once in a process."""
        return importlib.import_module("lmdb").open(
            str(self.path), map_size=max(1 << 26, 8 * self.size), max_readers=200
        )

    def start(self) -> None:
        with self.environment() as environment, environment.begin(write=True) as change:
            change.put(KEY, self.encode(self.first))

    def stop(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def reader(self) -> Read:
        begin, decode = self.environment().begin, self.decode

        def read() -> Any:
            with begin(buffers=True) as view:
                return decode(view.get(KEY))

        return read

    def writer(self) -> Write:
        environment, encode = self.environment(), self.encode
        environment.reader_check()

        def write(value: Any) -> None:
            with environment.begin(write=True) as change:
                change.put(KEY, encode(value))

        return write

    def hold(self, inside: Callable[[], None]) -> bool:
        with self.environment().begin(write=True):
            inside()
        return True


class LMDBKept(LMDB):
    """The same, but a read decodes only when the transaction's id is another than at the read before."""

    title = "LMDB, decoded once a version"

    def reader(self) -> Read:
        begin, decode = self.environment().begin, self.decode
        version, value = -1, None

        def read() -> Any:
            nonlocal version, value
            with begin(buffers=True) as view:
                if (now := view.id()) != version:
                    value = decode(view.get(KEY))
                    version = now
            return value

        return read
