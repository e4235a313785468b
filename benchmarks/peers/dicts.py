"""Dicts in shared memory: they pickle what is put into them, so they are given the value itself."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Peer, Read, Write
from benchmarks.scene import SHM


class UltraDict(Peer):
    """Its default, for forked children: writes take an RLock, reads take none and use a local copy of the dict.

    "If you have large values, you might need a bigger buffer": room for some 16 values, one value beyond 1 MB.
    """

    title = "UltraDict"
    package = "UltraDict"
    module = "UltraDict"

    def __init__(self, kind: type, first: Any) -> None:
        super().__init__(kind, first)
        self.label = f"b{secrets.token_hex(3)}"

    def _name_dumps(self) -> None:
        """Have the dumps, whose names the standard library chooses, begin so that they can be told from others'."""
        importlib.import_module("multiprocessing.shared_memory")._SHM_NAME_PREFIX = f"/{self.label}"

    def traces(self) -> Sequence[str]:
        return (self.name, self.label)

    def start(self) -> None:
        self._name_dumps()
        module = importlib.import_module("UltraDict")
        values = 16 if self.size <= 1_000_000 else 2
        self.dict: Any = module.UltraDict(
            {"value": self.first}, name=self.name, buffer_size=max(10_000, values * (self.size + 400))
        )

    def stop(self) -> None:
        with contextlib.suppress(AttributeError, FileNotFoundError):
            self.dict.unlink()
        for left in itertools.chain.from_iterable(Path(SHM).glob(f"{trace}*") for trace in self.traces()):
            left.unlink(missing_ok=True)

    def reader(self) -> Read:
        return functools.partial(self.dict.__getitem__, "value")

    def writer(self) -> Write:
        self._name_dumps()
        return functools.partial(self.dict.__setitem__, "value")

    def hold(self, inside: Callable[[], None]) -> bool:
        with self.dict.lock:
            inside()
        return True


class SharedMemoryDict(Peer):
    """With SHARED_MEMORY_USE_LOCK=1, as it recommends when more than one process writes."""

    title = "shared-memory-dict"
    package = "shared-memory-dict"
    module = "shared_memory_dict"

    def start(self) -> None:
        os.environ["SHARED_MEMORY_USE_LOCK"] = "1"  # looked at when it is imported
        module = importlib.import_module("shared_memory_dict")
        self.dict: Any = module.SharedMemoryDict(name=self.name, size=2 * self.size + 2048)
        self.dict["value"] = self.first

    def stop(self) -> None:
        with contextlib.suppress(AttributeError, FileNotFoundError):
            self.dict.shm.close()
            self.dict.shm.unlink()

    def reader(self) -> Read:
        return functools.partial(self.dict.__getitem__, "value")

    def writer(self) -> Write:
        return functools.partial(self.dict.__setitem__, "value")

    def hold(self, inside: Callable[[], None]) -> bool:
        lock = importlib.import_module("shared_memory_dict.lock")._lock
        with lock:
            inside()
        return True
