"""Sleep until there is something new to see.

Whoever waits *looks*, and if there is nothing to see yet, sleeps on the words that the look was made with: the kernel
compares before it puts a thread to sleep, so a version that was published in between is never missed. The C helper
sleeps in slices of a second, and looks at the words and at the headers' names in between, because a writer may die
between flip and wake, a header may be removed from outside, and a hostile reader may meddle with the sleepers of a
word that it can read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from shmcow import _core
from shmcow.errors import ClosedError
from shmcow.store import check_timeout

T = TypeVar("T")

LONG: Final = 3600.0  # seconds; nothing depends on it
EXIT_SLICE: Final = 0.5  # seconds; how long a waiting thread can hold up the exit of the interpreter


class Sleep(NamedTuple):
    """There is nothing to see yet: what to sleep on until the next look.

    Attributes:
        watched: stores, each with its ``current`` word from before the look.
        seconds: at most this long.
    """

    watched: tuple[tuple[_core.Store, int], ...] = ()
    seconds: float = LONG


Look = Callable[[], "T | Sleep"]


class Pause:
    """How long to sleep before the next look at something that nobody can be woken by: longer each time.

    There is no futex in a store that does not exist yet, and the kernel tells nobody when a marker goes.
    """

    def __init__(self, longest: float = 0.05) -> None:
        self._next = 0.001
        self._longest = longest

    def sleep(self) -> Sleep:
        """Return the next pause, in seconds from 0.001 to the longest."""
        seconds, self._next = self._next, min(2 * self._next, self._longest)
        return Sleep((), seconds)


def until(look: Look[T], timeout: float | None, late: Callable[[], Exception]) -> T:
    """Look, and sleep, and look again, until there is something to see; return it.

    Args:
        look: returns what there is to see, or what to sleep on.
        timeout: in seconds; None: for ever. It looks once at least.
        late: makes the exception to raise when the time is up.

    Raises:
        ClosedError: the interpreter exits, and this thread would hold it up.
        KeyboardInterrupt: at once, in the main thread.

    Concurrency: any thread; sleeps in the kernel, without the interpreter lock.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        rings = _core.rings()
        found = look()
        if not isinstance(found, Sleep):
            return found
        seconds = found.seconds
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise late()
            seconds = min(seconds, left)
        _core.wait(rings, found.watched, min(seconds, longest(threading.current_thread())))


def longest(thread: threading.Thread) -> float:
    """Return how long a thread may sleep: not for long if the exiting interpreter would wait for it.

    Raises:
        ClosedError: it exits.
    """
    main = threading.main_thread()
    if thread is main or thread.daemon:
        return LONG
    # Pools join their threads before the main thread counts as ended; there is no public name for that moment.
    if getattr(threading, "_SHUTTING_DOWN", False) or not main.is_alive():
        raise ClosedError("the interpreter is exiting: nobody waits for versions any more")
    return EXIT_SLICE


def check_wait(timeout: float | None) -> None:
    """Refuse what is no time-out; None is one."""
    if timeout is not None:
        check_timeout("timeout", timeout)
