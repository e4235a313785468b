"""A file as a source."""

from __future__ import annotations

import os
from typing import Final

from shmcow import documents
from shmcow.feed.content import Rows, document, tag_of
from shmcow.feed.origin import Content
from shmcow.feed.paths import Signature, Watcher, open_regular, read_all, settled, signature
from shmcow.feed.wake import Wake
from shmcow.store import check_timeout

__all__ = ["DEBOUNCE", "EVERY", "MAX_BYTES", "File", "check_watching"]

EVERY: Final = 10.0  # seconds: a look now and then, for file systems that tell nothing, and to say that all is well
DEBOUNCE: Final = 0.05  # seconds
MAX_BYTES: Final = 256 << 20


def check_watching(every: float, debounce: float, max_bytes: int) -> None:
    """Refuse numbers that are out of range.

    Raises:
        TypeError, ValueError: they are.
    """
    check_timeout("every", every)
    check_timeout("debounce", debounce)
    if every <= 0:
        raise ValueError("every is more than 0 seconds")
    if debounce > 60:
        raise ValueError(f"debounce is a number of seconds, 0 to 60, found {debounce!r}")
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
        raise ValueError(f"max_bytes is a number above 0, found {max_bytes!r}")


class File:
    """A file that a store is fed from: JSON, TOML, YAML, MessagePack, CSV (a table), MMDB or raw bytes.

    It may be written in place, renamed over, or reached through symlinks that change; and it may not be there yet.
    Comments and white space that change make no version.

    Args:
        path: of the file.
        format: one of ``documents.FORMATS``; None: what its suffix says.
        rows: of a CSV file: how it becomes a table.
        every: seconds: it is looked at so often even if nothing tells of a change.
        debounce: seconds: a file that is being changed is read when it has rested so long.
        max_bytes: a larger file is refused, also one that is larger when it is unpacked.
        force: publish also with another kind of codec than the store has; see ``publishing.codec_for``.

    Raises:
        ImportError: watchfiles is not installed: ``pip install 'shmcow[feed]'``.
        ValueError: its suffix says nothing and no format is given, or a number is out of range.

    Concurrency: one follower's thread.
    """

    jitter = 0.0

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,  # noqa: A002
        rows: Rows | None = None,
        every: float = EVERY,
        debounce: float = DEBOUNCE,
        max_bytes: int = MAX_BYTES,
        force: bool = False,
    ) -> None:
        check_watching(every, debounce, max_bytes)
        self._path = os.path.abspath(os.fspath(path))  # a daemon may change its directory
        form = documents.format_of(self._path) if format is None else format
        if form not in documents.FORMATS:
            raise ValueError(
                f"the name {os.fspath(path)!r} does not say what it is: give format=, one of "
                f"{', '.join(documents.FORMATS)}"
                if format is None
                else f"format is one of {', '.join(documents.FORMATS)}, found {format!r}"
            )
        self._form, self._rows, self._force = form, rows, force
        self.every: float | None = every
        self._max_bytes = max_bytes
        self.description = self._path  # whole, so that whoever reads it elsewhere can use it
        self._where = os.fspath(path)  # in errors, as it was given
        self._watcher = Watcher(self._path, debounce)
        self._seen: tuple[Signature, str] | None = None  # what was read, and its tag

    def fetch(self, known: str | None, wake: Wake) -> Content | None:  # noqa: ARG002
        """Read the file, unless it is the very one that was read before. See ``Origin.fetch``."""
        self._watcher.arm()
        fd = open_regular(self._path)
        try:
            if known is not None and self._seen == (signature(os.fstat(fd)), known):
                return None
            data, seen = read_all(fd, self._where, self._max_bytes)
        finally:
            os.close(fd)
        tag = tag_of(data)
        self._seen = (seen, tag) if settled(seen) else None
        if tag == known:
            return None
        return document(
            data,
            self._form,
            where=self._where,
            tag=tag,
            rows=self._rows,
            force=self._force,
            max_bytes=self._max_bytes,
        )

    def wait(self, seconds: float | None, wake: Wake) -> None:
        """Wait for a change. See ``Origin.wait``."""
        self._watcher.wait(seconds, wake)

    def close(self) -> None:
        """Stop watching."""
        self._watcher.close()
