"""What files and directories have in common as sources: a path that is watched."""

from __future__ import annotations

import os
from typing import Final

from shmcow.feed.paths import Watcher
from shmcow.feed.wake import Wake
from shmcow.store import check_timeout

__all__ = ["DEBOUNCE", "EVERY", "MAX_BYTES", "Watched"]

EVERY: Final = 10.0  # seconds: a look now and then, for file systems that tell nothing, and to say that all is well
DEBOUNCE: Final = 0.05  # seconds
MAX_BYTES: Final = 256 << 20


class Watched:
    """A source at a path, which says when it may have changed; subclasses say what is there (``fetch``).

    Args:
        path: of the source.
        every, debounce, max_bytes: as for ``File``.
        inside: whether it is what lies in the path: a slash stands behind it where it is told.

    Raises:
        ImportError: watchfiles is not installed: ``pip install 'shmcow[feed]'``.
        TypeError, ValueError: a number is out of range.

    Concurrency: one follower's thread.
    """

    jitter = 0.0

    def __init__(
        self, path: str | os.PathLike[str], every: float, debounce: float, max_bytes: int, *, inside: bool = False
    ) -> None:
        check_timeout("every", every)
        check_timeout("debounce", debounce)
        if every <= 0:
            raise ValueError("every is more than 0 seconds")
        if debounce > 60:
            raise ValueError(f"debounce is a number of seconds, 0 to 60, found {debounce!r}")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise ValueError(f"max_bytes is a number above 0, found {max_bytes!r}")
        self._path = os.path.abspath(os.fspath(path))  # a daemon may change its directory
        self.every: float | None = every
        self._max_bytes = max_bytes
        names = [self._path, os.fspath(path)]
        if inside:
            names = [os.path.join(name, "") for name in names]
        self.description, self._where = names  # whole, so that whoever reads it elsewhere can use it; as it was given
        self._watcher = Watcher(self._path, debounce)

    def wait(self, seconds: float | None, wake: Wake) -> None:
        """Wait for a change. See ``Origin.wait``."""
        self._watcher.wait(seconds, wake)

    def close(self) -> None:
        """Stop watching."""
        self._watcher.close()
