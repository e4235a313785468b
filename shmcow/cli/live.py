"""A screen that is drawn again and again until a key is pressed: the terminal is as before, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["show_live"]

_ENDED_BY: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_OPTIONS: Final[dict[str, Any]] = {"screen": True, "auto_refresh": False, "redirect_stderr": False}
_TOLD: Final = (*_ENDED_BY, signal.SIGTSTP, signal.SIGWINCH)


def show_live(draw: Callable[[Any, bool], Any], interval: float, count: int | None) -> None:
    """Draw on the terminal's other screen until q or Ctrl-C is pressed, or a signal ends this process.

    Args:
        draw: returns what rich shows; called with the Console, and whether to look again (or only draw anew, because
            the terminal has another size).
        interval: between two drawings, in seconds.
        count: how many there are; None: no end.

    Concurrency: the main thread only; it takes signals and the terminal for itself meanwhile.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    ended_by = 0
    with _keys() as cbreak, _signals() as told, _unless_hung_up(), Live(console=console, **_OPTIONS) as live:
        watched = [told, *([sys.stdin.fileno()] if cbreak else [])]
        live.update(draw(console, True), refresh=True)
        done, due = 1, time.monotonic() + interval
        while not ended_by:
            ready = select.select(watched, [], [], max(0.0, due - time.monotonic()))[0]
            if told in ready:
                numbers = os.read(told, 4096)
                ended_by = next((number for number in numbers if number in _ENDED_BY), 0)
                if signal.SIGTSTP in numbers:
                    _suspend(live, cbreak)
                live.update(draw(console, False), refresh=True)
            elif ready:
                keys = os.read(sys.stdin.fileno(), 4096)
                if not keys or set(keys) & set(b"qQ"):
                    return
            elif done == count:
                return
            else:
                live.update(draw(console, True), refresh=True)
                done, due = done + 1, time.monotonic() + interval
    if ended_by:  # as if it had not been caught
        os.kill(os.getpid(), ended_by)


@contextlib.contextmanager
def _unless_hung_up() -> Iterator[None]:
    """End without an error when the terminal has gone: nobody looks any more."""
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], None] | None]:
    """Have keys come one by one and unseen; yields how to do so again, or None where nobody types."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def cbreak() -> None:
        tty.setcbreak(fd, termios.TCSANOW)

    try:
        cbreak()
        yield cbreak
    finally:
        with contextlib.suppress(termios.error):  # it has gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Yield a descriptor from which the numbers of signals come that would leave the terminal as it is."""
    out, into = os.pipe()
    os.set_blocking(into, False)
    wakeup = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in _TOLD}
    try:
        yield out
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(out)
        os.close(into)


def _suspend(live: Any, cbreak: Callable[[], None] | None) -> None:
    """Be stopped, as Ctrl-Z asks for, with the terminal as it was."""
    live.stop()
    ours = termios.tcgetattr(sys.stdin.fileno()) if cbreak else None
    if ours is not None:
        shell = [*ours[:3], ours[3] | termios.ECHO | termios.ICANON, *ours[4:]]
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, shell)
    os.kill(os.getpid(), signal.SIGSTOP)
    if cbreak is not None:
        cbreak()
    live.start()
