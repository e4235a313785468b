"""The standard library's own means."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from peers_adapters import Peer, Read, Write, record


class SharedMemoryLock(Peer):
    """multiprocessing.shared_memory, and one multiprocessing.Lock around each read and each write."""

    title = "multiprocessing.shared_memory + Lock"
    in_parent = True

    def __init__(self, name: str, words: int) -> None:
        super().__init__(name, words)
        import multiprocessing

        self.lock = multiprocessing.Lock()

    def create(self) -> None:
        from multiprocessing.shared_memory import SharedMemory

        self.memory = SharedMemory(name=self.name, create=True, size=8 * self.words)
        self.memory.buf[: 8 * self.words] = record(1, self.words)

    def writer(self) -> Write:
        def write(data: bytes) -> None:
            with self.lock:
                self.memory.buf[: len(data)] = data

        return write

    def reader(self) -> Read:
        def read() -> bytes:
            with self.lock:
                return bytes(self.memory.buf[: 8 * self.words])

        return read

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        with self.lock:
            yield

    def destroy(self) -> None:
        self.memory.close()
        self.memory.unlink()


class Manager(Peer):
    title = "multiprocessing.Manager().dict()"
    in_parent = True

    def create(self) -> None:
        import multiprocessing

        self.manager = multiprocessing.Manager()
        self.dict = self.manager.dict(record=record(1, self.words))

    def writer(self) -> Write:
        return lambda data: self.dict.__setitem__("record", data)

    def reader(self) -> Read:
        return lambda: self.dict["record"]

    def destroy(self) -> None:
        self.manager.shutdown()
