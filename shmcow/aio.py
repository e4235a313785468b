"""Waiting in asyncio: one helper thread for the whole process, and only while somebody waits.

The helper sleeps on the words of all stores that are waited for, whatever event loop their waiters run in. It also
decodes what was published, so that an event loop does not stand still meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from shmcow import _core
from shmcow.waiting import LONG, Look, Sleep

T = TypeVar("T")

_MOST = 127  # words that the kernel lets a thread sleep on, but for one


async def until(look: Look[T], timeout: float | None, late: Callable[[], Exception]) -> T:
    """Do what ``waiting.until`` does, without blocking the event loop; ``look`` is called in the helper thread.

    Raises:
        CancelledError: the task was cancelled; nothing of the wait is left.

    Concurrency: any number of tasks and event loops.
    """
    loop = asyncio.get_running_loop()
    job = _Job(look, loop)
    helper = _helper_of_process()
    scope = asyncio.timeout(timeout or None)
    try:
        async with scope:
            if timeout == 0:  # a look, and no wait
                found = look()
                if isinstance(found, Sleep):
                    raise late()
                return found
            helper.add(job)
            return await job.future  # type: ignore[no-any-return]
    except TimeoutError:
        if scope.expired():
            raise late() from None
        raise
    finally:
        helper.remove(job)


class _Job:
    """One wait of one task."""

    def __init__(self, look: Look[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.look = look
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def try_look(self) -> Sleep | None:
        """Look; None: the wait is over."""
        if self.loop.is_closed():
            return None
        try:
            found = self.look()
            if isinstance(found, Sleep):
                return found
            self._tell(self._found, found)
        except BaseException as exc:
            self._tell(self._failed, exc)
        return None

    def _tell(self, what: Callable[[Any], None], result: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(what, result)
        except RuntimeError:  # the loop was closed with the wait pending: nobody is there to be told
            pass

    def _found(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def _failed(self, exc: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(exc)


class _Helper:
    """The thread: started by the first wait, ended with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[_Job] = []
        self._running = False

    def add(self, job: _Job) -> None:
        with self._lock:
            self._jobs.append(job)
            start = not self._running
            self._running = True
        if not start:
            _core.ring()
            return
        try:
            threading.Thread(target=self._run, name="shmcow-asyncio", daemon=True).start()
        except BaseException:
            self._running = False
            raise

    def remove(self, job: _Job) -> None:
        with self._lock:
            if job not in self._jobs:
                return
            self._jobs.remove(job)
        _core.ring()

    def _run(self) -> None:
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
                _core.wait(rings, watched, seconds)

    def _look(self, jobs: list[_Job]) -> tuple[tuple[tuple[_core.Store, int], ...], float]:
        """Let each wait look; return what to sleep on for those that go on."""
        watched: dict[_core.Store, int] = {}
        seconds = LONG
        for job in jobs:
            sleep = job.try_look()
            if sleep is None:
                with self._lock:
                    if job in self._jobs:
                        self._jobs.remove(job)
                continue
            seconds = min(seconds, sleep.seconds)
            for store, word in sleep.watched:
                watched.setdefault(store, word)  # of two words the older: the kernel then refuses to sleep
        if len(watched) > _MOST:
            seconds = min(seconds, 0.02)
        return tuple(watched.items())[:_MOST], seconds


_helpers: dict[int, _Helper] = {}


def _helper_of_process() -> _Helper:
    """Return this process's helper; a forked child has neither its parent's thread nor its waits."""
    forks = _core.forks()
    helper = _helpers.get(forks)
    return helper if helper is not None else _helpers.setdefault(forks, _Helper())
