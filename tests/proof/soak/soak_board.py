"""What the processes of the soak share: words, a clock, children that end where they should."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
import traceback
from collections.abc import Iterator

import shmcow

now = time.monotonic_ns
NOTHING_YET = (shmcow.StoreNotFoundError, shmcow.NotPublishedError, shmcow.StoreDestroyedError)


class Board:
    """Words that the master shares with everybody; they outlive whoever writes them."""

    STOP, DESTROYS, ACKS = 0, 1, 2  # and from ACKS on one count for each writer's place

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 4096)
        self._words = (ctypes.c_uint64 * 512).from_buffer(self._map)

    def __getitem__(self, k: int) -> int:
        return self._words[k]

    def __setitem__(self, k: int, value: int) -> None:
        self._words[k] = value

    @property
    def acks(self) -> int:
        """Calls of all writers that were acknowledged."""
        return sum(self._words[self.ACKS :])


def first_words(epoch: str) -> int:
    """Return what a record keeps of an epoch."""
    return int(epoch[:16], 16)


@contextlib.contextmanager
def child_process() -> Iterator[None]:
    """Let a forked child end here, whatever happens."""
    code = 1
    try:
        yield
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def reap() -> None:
    """Reap forked children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
