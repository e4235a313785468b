"""The standard library's own means."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import struct
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers.base import Peer, Read, Write

LENGTH = struct.Struct("=Q")


class SharedMemoryLock(Peer):
    """multiprocessing.shared_memory, and one Lock around each read and each write: what one builds oneself first."""

    title = "SharedMemory + Lock + decode"

    def start(self) -> None:
        from multiprocessing.shared_memory import SharedMemory

        self.lock = multiprocessing.get_context("fork").Lock()
        self.memory: Any = SharedMemory(name=self.name, create=True, size=LENGTH.size + self.size + 64)
        self.writer()(self.first)

    def stop(self) -> None:
        with contextlib.suppress(AttributeError, FileNotFoundError):
            self.memory.close()
            self.memory.unlink()

    def reader(self) -> Read:
        lock, view, decode = self.lock, self.memory.buf, self.decode

        def read() -> Any:
            with lock:
                (size,) = LENGTH.unpack_from(view)
                return decode(view[LENGTH.size : LENGTH.size + size])

        return read

    def writer(self) -> Write:
        lock, view, encode = self.lock, self.memory.buf, self.encode

        def write(value: Any) -> None:
            data = encode(value)
            with lock:
                LENGTH.pack_into(view, 0, len(data))
                view[LENGTH.size : LENGTH.size + len(data)] = data

        return write

    def hold(self, inside: Callable[[], None]) -> bool:
        with self.lock:
            inside()
        return True


class Manager(Peer):
    """A dict in a server process; values are pickled."""

    title = "multiprocessing.Manager"

    def start(self) -> None:
        self.manager = multiprocessing.get_context("fork").Manager()
        self.dict: Any = self.manager.dict(value=self.first)

    def stop(self) -> None:
        with contextlib.suppress(AttributeError):
            self.manager.shutdown()

    def reader(self) -> Read:
        return functools.partial(self.dict.__getitem__, "value")

    def writer(self) -> Write:
        return functools.partial(self.dict.__setitem__, "value")

    def servers(self) -> Sequence[int]:
        return (self.manager._process.pid,)  # type: ignore[attr-defined]
