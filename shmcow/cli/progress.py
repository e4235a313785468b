"""A progress bar for long work: on stderr, on a terminal only, and not before it pays."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Final

from shmcow.documents import Progress

__all__ = ["bar"]

_LEAST: Final = 8 << 20  # bytes: what is smaller is done before anybody looks


@contextlib.contextmanager
def bar(what: str) -> Iterator[Progress | None]:
    """Yield what to call with the bytes done and all (0: unknown); None where nobody would see it.

    Args:
        what: is being done, for people.
    """
    if not sys.stderr.isatty():
        yield None
        return
    shown = _Bar(what)
    try:
        yield shown
    finally:
        shown.stop()


class _Bar:
    def __init__(self, what: str) -> None:
        self._what = what
        self._progress: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None and max(done, total) >= _LEAST:
            self._progress = self._started()
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total or None)

    def _started(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        shown = Progress(*columns, console=Console(stderr=True), transient=True)
        shown.start()
        self._task = shown.add_task(self._what, total=None)
        return shown

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
