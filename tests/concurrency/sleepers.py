"""Threads that wait, seen from outside: the kernel says who sleeps, so no test sleeps and hopes."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import WATCHDOG, until

FUTEX_WAITV = 449  # on every architecture
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), -1)


def sleepers(pid: int | str = "self") -> set[int]:
    """Return the threads of a process that sleep until a word changes, in futex_waitv() or a shared FUTEX_WAIT.

    The locks of the interpreter sleep on private words, and are not among them.
    """
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            call = (task / "syscall").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if call[0] == str(FUTEX_WAITV) or (call[0] == str(FUTEX) and int(call[2], 16) == 0):
            found.add(int(task.name))
    return found


def until_asleep(count: int, pid: int | str = "self") -> None:
    """Return when so many threads of a process sleep in the kernel at once."""
    until(lambda: len(sleepers(pid)) == count, f"{count} threads of {pid} sleep")


class Waiter:
    """A thread that calls a function: its result, or what it raised, is kept."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self._result = function()
        except BaseException as exc:
            self._error = exc

    def until_asleep(self) -> Waiter:
        """Return when the thread sleeps in the kernel."""
        until(lambda: self._thread.native_id in sleepers() or not self._thread.is_alive(), "the waiter sleeps")
        assert self.waits, f"it did not wait: {self._error or self._result}"
        return self

    @property
    def waits(self) -> bool:
        """Whether the function still runs."""
        return self._thread.is_alive()

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised, when it has ended."""
        self._thread.join(WATCHDOG)
        assert not self._thread.is_alive(), "it still waits"
        if self._error is not None:
            raise self._error
        return self._result
