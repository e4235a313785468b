"""Waiting in asyncio: one helper thread for the whole process, and only while somebody waits.

The helper sleeps on the words of all stores that are waited for, whatever event loop their waiters run in. It also
decodes what was published, so that an event loop does not stand still meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from shmcow import _core
from shmcow.waiting import LONG, Look, Sleep, longest

T = TypeVar("T")

_MOST = 127  # words that the kernel lets a thread sleep on, but for one


async def until(look: Look[T], timeout: float | None, late: Callable[[], Exception]) -> T:
    """Do what ``waiting.until`` does, without blocking the event loop; ``look`` is called in the helper thread.

    Raises:
        CancelledError: the task was cancelled; nothing of the wait is left.
        RuntimeError: a decoder hook or ``transform=`` waits in the helper thread, which would wait for itself; or no
            thread can be started.

    Concurrency: any number of tasks and event loops.
    """
    helper = _helper_of_process()
    if getattr(_here, "helper", None) is helper:
        raise RuntimeError("a decoder hook or transform= cannot wait in asyncio: all such waits wait for its end")
    job = _Job(look, timeout, late)
    try:
        helper.add(job)
        return await job.future  # type: ignore[no-any-return,misc]
    finally:
        job.end()
        helper.remove(job)


class _Job:
    """One wait of one task."""

    def __init__(self, look: Look[Any], timeout: float | None, late: Callable[[], Exception]) -> None:
        self.look = look
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] | None = self.loop.create_future()
        self._late = late
        self._thread = threading.current_thread()
        self._looked = False
        self._expired = timeout == 0
        self._timer = self.loop.call_later(timeout, self._expire) if timeout else None

    def try_look(self) -> Sleep | Callable[[], None]:
        """Look; what to sleep on, or else what to do in the event loop: the wait is over."""
        if self.loop.is_closed() or self.future is None:
            return _nothing
        try:
            found = self.look()
            if not isinstance(found, Sleep):
                return partial(self._found, found)
            self._looked = True  # before the question below: _expire does both the other way round
            if self._expired:
                return self._expire
            return found._replace(seconds=min(found.seconds, longest(self._thread)))
        except (StopIteration, asyncio.CancelledError) as exc:  # a future takes neither for an error
            return partial(self.fail, _because(f"a decoder hook or transform= raised {type(exc).__name__}", exc))
        except BaseException as exc:
            return partial(self.fail, exc)

    def tell(self, what: Callable[..., None], *args: Any) -> None:
        """Have something done in the event loop."""
        try:
            self.loop.call_soon_threadsafe(what, *args)
        except RuntimeError:  # the loop was closed with the wait pending: nobody is there to be told
            pass

    def end(self) -> None:
        """Be of no use any more: an exception's traceback leads to this job, which must not lead to the exception."""
        self.future = None
        if self._timer is not None:
            self._timer.cancel()

    def fail(self, exc: BaseException) -> None:
        """End the wait with an exception; in the event loop."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(exc)

    def _found(self, result: Any) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(result)

    def _expire(self) -> None:
        self._expired = True
        if self._looked:  # it looks once at least, however late
            self.fail(self._late())


def _nothing() -> None:
    pass


def _because(text: str, exc: BaseException) -> RuntimeError:
    error = RuntimeError(text)
    error.__cause__ = exc
    return error


class _Helper:
    """The thread: started by the first wait, ended with the last."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # taken twice when a collection, anywhere, ends the coroutine of a dead loop
        self._jobs: dict[_Job, None] = {}
        self._running = False

    def add(self, job: _Job) -> None:
        with self._lock:
            self._jobs[job] = None
            start = not self._running
            self._running = True
        if not start:
            _core.ring()
            return
        try:
            threading.Thread(target=self._run, name="shmcow-asyncio", daemon=True).start()
        except BaseException as exc:
            self._forget(job)
            self._give_up(exc)
            raise

    def remove(self, job: _Job) -> None:
        # A forked child's copy of the lock may be held for ever, and so may it when the interpreter exits.
        if not sys.is_finalizing() and _helpers.get(_core.forks()) is self and self._forget(job):
            _core.ring()

    def _forget(self, job: _Job) -> bool:
        with self._lock:
            return self._jobs.pop(job, self) is not self

    def _give_up(self, exc: BaseException) -> None:
        """Tell whoever waits why nobody sleeps for him."""
        with self._lock:
            jobs = list(self._jobs)
            self._jobs.clear()
            self._running = False
        for job in jobs:
            job.tell(job.fail, _because(f"the helper thread of asyncio waits failed: {exc}", exc))

    def _run(self) -> None:
        _here.helper = self
        try:
            while True:
                rings = _core.rings()
                with self._lock:
                    jobs = list(self._jobs)
                    if not jobs:
                        self._running = False
                        return
                watched, seconds = self._look(jobs)
                jobs.clear()  # who stopped waiting is not kept alive by this sleep
                if self._jobs:
                    _sleep(rings, watched, seconds)
        except BaseException as exc:
            self._give_up(exc)

    def _look(self, jobs: list[_Job]) -> tuple[tuple[tuple[_core.Store, int], ...], float]:
        """Let each wait look; return what to sleep on for those that go on."""
        watched: dict[_core.Store, int] = {}
        seconds = LONG
        for job in jobs:
            outcome = job.try_look()
            if not isinstance(outcome, Sleep):
                self._forget(job)  # first: whoever is told removes his job, and would ring for it
                job.tell(outcome)
                del outcome  # an exception's frames lead to this one
                continue
            seconds = min(seconds, outcome.seconds)
            for store, word in outcome.watched:
                watched.setdefault(store, word)  # of two words the older: the kernel then refuses to sleep
        return tuple(watched.items()), seconds


def _sleep(rings: int, watched: tuple[tuple[_core.Store, int], ...], seconds: float) -> None:
    """Sleep on any number of words: those beyond the kernel's limit are compared fifty times a second."""
    if len(watched) <= _MOST:
        _core.wait(rings, watched, seconds)
        return
    until = time.monotonic() + min(seconds, 1.0)  # then everybody looks: a header may have lost its name
    while (left := until - time.monotonic()) > 0:
        _core.wait(rings, watched[:_MOST], min(left, 0.02))
        if _core.rings() != rings or any(store.word != word for store, word in watched):
            return


_helpers: dict[int, _Helper] = {}
_here = threading.local()  # .helper: whose thread this is


def _helper_of_process() -> _Helper:
    """Return this process's helper; a forked child has neither its parent's thread nor its waits."""
    forks = _core.forks()
    helper = _helpers.get(forks)
    return helper if helper is not None else _helpers.setdefault(forks, _Helper())
