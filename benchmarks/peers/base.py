"""The interface: what a peer must be able to do to be measured."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from benchmarks.scene import SHM, fresh_name

Read = Callable[[], Any]
Write = Callable[[Any], object]


class Peer:
    """One value, replaced by a writer and read by readers in other processes.

    ``start`` and ``stop`` run in the process that started the benchmarks, and leave nothing open there that a fork
    would break. ``writer``, ``reader`` and ``hold`` run in the process that uses what they return.
    """

    title: ClassVar[str] = ""
    package: ClassVar[str] = ""  # what pip installs; "" for the standard library
    module: ClassVar[str] = ""  # what is imported then
    tool: ClassVar[tuple[str, str]] | None = None  # (program, Debian package)

    def __init__(self, kind: type, first: Any) -> None:
        """Note the type of the values (``bytes``: no codec) and the first one."""
        self.name = fresh_name()
        self.kind = kind
        self.first = first
        self.encode: Callable[[Any], bytes] = bytes if kind is bytes else msgspec.msgpack.Encoder().encode
        self.decode: Callable[[Any], Any] = bytes if kind is bytes else msgspec.msgpack.Decoder(kind).decode
        self.size = len(self.encode(first))

    @classmethod
    def missing(cls) -> str:
        """Say what is not installed, and how to install it; "" if everything is there."""
        if cls.module and importlib.util.find_spec(cls.module) is None:
            return f"{cls.module} is not installed (pip install {cls.package})"
        if cls.tool and shutil.which(cls.tool[0]) is None:
            return f"{cls.tool[0]} is not installed (apt-get install {cls.tool[1]})"
        return ""

    def start(self) -> None:
        """Make the store with the first value, and start what has to run."""

    def stop(self) -> None:
        """End and remove all of it."""

    def reader(self) -> Read:
        """Return a function that reads the current value."""
        raise NotImplementedError

    def writer(self) -> Write:
        """Return a function that replaces the value."""
        raise NotImplementedError

    def hold(self, inside: Callable[[], None]) -> bool:
        """Call ``inside`` while holding what a write holds. -> False: a writer holds nothing that others wait for."""
        del inside
        return False

    def traces(self) -> Sequence[str]:
        """Return what the names of its files in /dev/shm begin with."""
        return (self.name, f"shmcow.{self.name}", f"sm_{self.name}")

    def shm_bytes(self) -> int:
        """Return the bytes in /dev/shm that its files occupy."""
        total = 0
        for top in itertools.chain.from_iterable(Path(SHM).glob(f"{trace}*") for trace in self.traces()):
            for path in (top, *top.rglob("*")):
                with contextlib.suppress(FileNotFoundError):
                    total += 512 * path.stat().st_blocks
        return total

    def servers(self) -> Sequence[int]:
        """Return the processes that work for readers: their CPU time is part of a read."""
        return ()


class Local(Peer):
    """Something that no other process sees: how cheap a read could be at best."""


class Floor(Peer):
    """Not even a value."""
