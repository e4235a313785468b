"""What an adapter is, that of shmcow, and toys that the harness must catch. The peers are in peers_others.

A record is `words` 64-bit words, each of them the same counter. An adapter is made before any fork. `create` runs in
the parent if `in_parent`, else in a process that stays alive as long as the store. `writer` and `reader` run in the
process that uses them, after the fork, and return a function; they may have told `self` what `close` has to close.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

Write = Callable[[bytes], Any]
Read = Callable[[], bytes]


def record(counter: int, words: int) -> bytes:
    """Return the record that a counter stands for."""
    return counter.to_bytes(8, "little") * words


def counter_of(data: bytes, words: int) -> int | None:
    """Return the counter of a whole record, None for a torn or mixed one."""
    if len(data) != 8 * words or data != data[:8] * words:
        return None
    return int.from_bytes(data[:8], "little")


class Peer:
    """What the harness needs of a peer."""

    title = ""
    package = ""
    module = ""  # imported before any fork, so that no child spends its time on it
    in_parent = False
    batch = 1  # publishes that belong together: what one of them leaves is tidied up by a later one

    def __init__(self, name: str, words: int) -> None:
        self.name = name
        self.words = words
        if self.module:
            importlib.import_module(self.module)

    @classmethod
    def version(cls) -> str:
        return metadata.version(cls.package) if cls.package else f"Python {platform.python_version()}"

    def create(self) -> None:
        """Make the store, with record 1."""
        raise NotImplementedError

    def writer(self) -> Write:
        raise NotImplementedError

    def reader(self) -> Read:
        raise NotImplementedError

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Read, and stay inside whatever a reader holds while it reads."""
        self.reader()()
        yield

    def close(self) -> None:
        """Let go of what writer() or reader() opened, as a process that ends in order does."""

    def repair(self) -> None:
        """Do what the documentation offers for after a crash, if it is not done by itself."""

    def destroy(self) -> None:
        """Remove the store, in the process that created it."""


class Shmcow(Peer):
    title = "shmcow"
    module = "shmcow"

    @classmethod
    def version(cls) -> str:
        import shmcow

        return shmcow.__version__

    def create(self) -> None:
        import shmcow

        shmcow.Writer(self.name, initial=record(1, self.words)).close()

    def writer(self) -> Write:
        import shmcow

        self.open: Any = shmcow.Writer(self.name)
        return self.open.publish

    def reader(self) -> Read:
        import shmcow

        self.open = shmcow.Reader(self.name)
        return self.open.get

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        import shmcow

        with shmcow.Reader(self.name).snapshot():
            yield

    def close(self) -> None:
        self.open.close()

    def destroy(self) -> None:
        import shmcow

        shmcow.destroy(self.name)


class Toy(Peer):
    """No lock, no protocol, and written word by word: the harness must catch it."""

    title = "torn toy"

    def create(self) -> None:
        Path("/dev/shm", self.name).write_bytes(record(1, self.words))

    def _map(self) -> Any:
        import mmap

        with Path("/dev/shm", self.name).open("r+b") as file:
            return mmap.mmap(file.fileno(), 0)

    def writer(self) -> Write:
        self.open = self._map()

        def write(data: bytes) -> None:
            for at in range(0, len(data), 8):
                self.open[at : at + 8] = data[at : at + 8]

        return write

    def reader(self) -> Read:
        self.open = self._map()
        return lambda: self.open[:]

    def close(self) -> None:
        self.open.close()

    def destroy(self) -> None:
        Path("/dev/shm", self.name).unlink()


class OldToy(Toy):
    """Every other read is of the record before."""

    title = "toy that goes back"

    def reader(self) -> Read:
        read, reads = super().reader(), itertools.count()

        def older() -> bytes:
            counter = int.from_bytes(read()[:8], "little")
            return record(counter + next(reads) % 2, self.words)

        return older


class LockedToy(Toy):
    """A lock file that is created and removed: a writer that dies inside blocks everybody for ever."""

    title = "blocked toy"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = Path("/dev/shm", f"{self.name}.lock")
        while True:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                time.sleep(0.001)
        yield
        path.unlink()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        with self._locked():
            yield

    def writer(self) -> Write:
        write = super().writer()

        def locked(data: bytes) -> None:
            with self._locked():
                write(data)

        return locked

    def reader(self) -> Read:
        read = super().reader()

        def locked() -> bytes:
            with self._locked():
                return read()

        return locked
