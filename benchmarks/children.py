"""Processes of the benchmarks: forked, given orders by name, watched, and ended by their own pid.

What a child serves is made after the fork, so that no connection, map or transaction is shared with its parent. Forked,
not spawned: some peers hand their lock to children by inheritance only.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.scene import WATCHDOG

Orders = Mapping[str, Callable[..., Any]]


class NoAnswerError(Exception):
    """A child did not answer in time."""


class FailedOrderError(Exception):
    """An order raised in the child; the message is its traceback."""


class Child:
    """A process that makes its orders after the fork, and carries out one after the other."""

    def __init__(self, make: Callable[[], Orders], *, parent: bool = False) -> None:
        """Start it; ``parent``: it will start children of its own."""
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=self._serve, args=(make, there), daemon=not parent)
        self._process.start()
        there.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    def ask(self, order: str, *arguments: Any, seconds: float = WATCHDOG) -> Any:
        """Give an order, and return its result."""
        self.tell(order, *arguments)
        return self.answer(seconds)

    def tell(self, order: str, *arguments: Any) -> None:
        """Give an order, whose result answer() returns: so that several children work at once."""
        self._here.send((order, arguments))

    def answer(self, seconds: float = WATCHDOG) -> Any:
        """Return the result of the order that was told first.

        Raises:
            NoAnswerError: there was none in time; it may still come.
            FailedOrderError: it raised, or the child died.
        """
        if not self._here.poll(seconds):
            raise NoAnswerError(f"no answer within {seconds} s")
        try:
            fine, result = self._here.recv()
        except EOFError:
            raise FailedOrderError("the process died") from None
        if not fine:
            raise FailedOrderError(result)
        return result

    def poll(self) -> bool:
        """Tell whether an answer is there."""
        return self._here.poll(0)

    def pause(self) -> None:
        """Stop it, as a debugger or a frozen container does."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, with no chance to tidy up."""
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """End it in order if it listens, else by force."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._here.send(None)
            self._process.join(2)
        self.kill()
        self._here.close()

    def _serve(self, make: Callable[[], Orders], link: Any) -> None:
        self._here.close()
        orders: Orders | None = None
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            while (told := link.recv()) is not None:
                try:
                    orders = orders or make()
                    link.send((True, orders[told[0]](*told[1])))
                except Exception:
                    link.send((False, traceback.format_exc()))
        os._exit(0)  # as a killed process leaves: what a peer does in exit handlers is its parent's, not ours


@contextlib.contextmanager
def child(make: Callable[[], Orders], *, parent: bool = False) -> Iterator[Child]:
    """Start a child, and end it."""
    started = Child(make, parent=parent)
    try:
        yield started
    finally:
        started.stop()


def available_bytes() -> int:
    """Return how much memory can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def cpu_ns(pid: int) -> int:
    """Return the CPU time that all threads of a process have used, in nanoseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total
