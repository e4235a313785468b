"""What ends a follower's sleep: a signal, another thread, or the origin's own news."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from typing import Protocol

__all__ = ["StopEvent", "Wake"]

_SLICE = 0.1  # seconds: how soon an Event that somebody else sets is noticed; it has no descriptor to sleep on


class StopEvent(Protocol):
    """A ``threading.Event``, or whatever has its ``is_set``."""

    def is_set(self) -> bool:
        """Tell whether the follower shall end."""
        ...


class Wake:
    """Something to sleep on. A signal handler may call ``stop`` and ``reload`` at any instruction.

    (``threading.Event`` may not be set there: its lock may be held by the very thread that the handler interrupts.)

    Args:
        stop: an event that ends the follower, too; None: there is none.

    Concurrency: ``stop`` and ``reload`` from any thread and from signal handlers; the rest in the follower's thread.
    """

    def __init__(self, stop: StopEvent | None = None) -> None:
        self._stop = stop
        self._stopped = False
        self._reload = False
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    @property
    def stopping(self) -> bool:
        """Whether the follower shall end: who fetches something that takes long looks at it now and then."""
        return self._stopped or (self._stop is not None and self._stop.is_set())

    def is_set(self) -> bool:
        """Tell whether to wake up: to end, or to look at the source now."""
        return self._reload or self.stopping

    def stop(self) -> None:
        """End the follower."""
        self._stopped = True
        self.ring()

    def reload(self) -> None:
        """Have the source looked at now, whether it changed or not."""
        self._reload = True
        self.ring()

    def take_reload(self) -> bool:
        """Tell whether ``reload`` was called since the last time."""
        asked, self._reload = self._reload, False
        return asked

    def ring(self) -> None:
        """End ``wait``, once, for no reason of this object's own."""
        with contextlib.suppress(BlockingIOError):  # it rang 2^64 - 2 times, and nobody came
            os.eventfd_write(self._fd, 1)

    def wait(self, seconds: float | None) -> None:
        """Sleep until something is set or rings, at most so long (None: for ever). May return for no reason."""
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        while not self.is_set() and (left := deadline - time.monotonic()) > 0:
            if self.pause(left):
                return

    def pause(self, seconds: float) -> bool:
        """Sleep until something rings, also when ``reload`` is set already; at most so long. -> whether it rang"""
        if self._stop is not None:
            seconds = min(seconds, _SLICE)
        rang = bool(self._poll.poll(None if seconds == math.inf else min(seconds, 86400.0) * 1000))
        if rang:
            with contextlib.suppress(OSError):
                os.eventfd_read(self._fd)
        return rang

    def __del__(self) -> None:
        # With the last reference, and not before: a thread that rings late must not write into a descriptor that has
        # this number by then.
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._fd)
