"""A callable on a timer: ``poll``."""

from __future__ import annotations

import functools
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from shmcow.feed.origin import UNCHANGED, Content, SourceError
from shmcow.feed.wake import Wake
from shmcow.publishing import codec_for
from shmcow.store import check_timeout

__all__ = ["Poll", "poll"]


def poll(
    function: Callable[[], Any], every: float = 30.0, jitter: float = 0.1, *, timeout: float | None = None
) -> Poll:
    """Make an origin of a callable that is asked again and again, as for service discovery.

    Args:
        function: returns the value; or ``UNCHANGED``. None is taken for a forgotten ``return``. What it raises is
            logged, counted and told in the feed's state, and it is asked again after a pause that doubles each time.
        every: seconds from one answer to the next question.
        jitter: the part of ``every`` by which a pause varies at random, so that many hosts do not ask at once.
        timeout: seconds after which an answer counts as a failure; None: ``every``, at least 10. The call itself cannot
            be ended: it goes on in its daemon thread, is not made again meanwhile, and its late answer is taken.

    Raises:
        ValueError: a number is out of range.
        TypeError: ``function`` is no callable.

    Concurrency: ``function`` runs in a daemon thread of its own, one call at a time.
    """
    return Poll(function, every, jitter, timeout)


class Poll:
    """See ``poll``."""

    def __init__(self, function: Callable[[], Any], every: float, jitter: float, timeout: float | None) -> None:
        if not callable(function):
            raise TypeError(f"expected a callable, found {function!r}")
        check_timeout("every", every)
        check_timeout("timeout", 1.0 if timeout is None else timeout)
        if every <= 0 or timeout == 0:
            raise ValueError("every and timeout are more than 0 seconds")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter is 0 to 1, found {jitter!r}")
        self.every: float | None = every
        self.jitter = jitter
        self.description = _name_of(function)
        self._function = function
        self._timeout = max(every, 10.0) if timeout is None else timeout
        self._call: _Call | None = None
        self._last: Content | None = None  # for UNCHANGED, when the store has not got it
        self._answers = 0

    def fetch(self, known: str | None, wake: Wake) -> Content | None:
        """Call the function, in its thread, and wait for its answer. See ``Origin.fetch``."""
        call = self._call
        if call is None or not call.is_of(os.getpid()):
            call = self._call = _Call(self._function, wake)
        if not call.wait(self._timeout, wake):
            raise SourceError(f"{self.description} has not answered for {call.age:.1f} s: it hangs, or needs more time")
        self._call = None
        value = call.answer()
        if value is UNCHANGED:
            if self._last is None:
                raise SourceError(f"{self.description} returned UNCHANGED, and nothing of it was published yet")
            return None if known == self._last.tag else self._last
        if value is None:
            raise SourceError(f"{self.description} returned None: return the value, or shmcow.feed.UNCHANGED")
        self._answers += 1
        self._last = Content(f"answer {self._answers}", lambda name, type_, _: (codec_for(name, type_), value))
        return self._last

    def wait(self, seconds: float | None, wake: Wake) -> None:
        """Wait for the time; a call that hung ends the wait when it answers."""
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        while not wake.is_set() and (left := deadline - time.monotonic()) > 0:
            # The call that was answered has rung, too, maybe when nobody slept any more: no reason to ask again.
            if wake.pause(left) and self._call is not None:
                return

    def close(self) -> None:
        """Forget a call that hangs; its thread ends with the process."""
        self._call = None


def _name_of(function: Any) -> str:
    """Name a callable without the arguments of a ``partial``: the store shows the name, and they may be secret."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', '?')}:{named.__qualname__}"


class _Call:
    """One call of the function."""

    def __init__(self, function: Callable[[], Any], wake: Wake) -> None:
        self._started = time.monotonic()
        self._pid = os.getpid()
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(function, wake), name="shmcow-poll", daemon=True).start()

    def _run(self, function: Callable[[], Any], wake: Wake) -> None:
        try:
            self._value = function()
        except BaseException as exc:
            self._error = exc
        self._done.set()
        wake.ring()

    def is_of(self, pid: int) -> bool:
        """Tell whether its thread is of this process, and not of one that forked."""
        return self._pid == pid

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def wait(self, seconds: float, wake: Wake) -> bool:
        """Wait for the answer, or until the follower ends. -> whether it is there"""
        deadline = time.monotonic() + seconds
        while not self._done.is_set():
            left = deadline - time.monotonic()
            if left <= 0 or wake.stopping:
                return self._done.is_set()
            wake.pause(left)
        return True

    def answer(self) -> Any:
        """Return what the function returned.

        Raises:
            SourceError: it left by SystemExit or the like, which must not end the follower.
            Exception: what it raised.
        """
        if self._error is None:
            return self._value
        if not isinstance(self._error, Exception):
            raise SourceError(f"it ended with {type(self._error).__name__}: {self._error}") from None
        raise self._error
