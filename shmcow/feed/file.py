"""A file as a source."""

from __future__ import annotations

import os

from shmcow import documents
from shmcow.documents import Rows
from shmcow.feed.content import document, tag_of
from shmcow.feed.origin import Content
from shmcow.feed.paths import Signature, open_regular, read_all, settled, signature
from shmcow.feed.wake import Wake
from shmcow.feed.watched import DEBOUNCE, EVERY, MAX_BYTES, Watched

__all__ = ["File"]


class File(Watched):
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
        form = documents.format_of(os.fspath(path)) if format is None else format
        if form not in documents.FORMATS:
            raise ValueError(
                f"the name {os.fspath(path)!r} does not say what it is: give format=, one of "
                f"{', '.join(documents.FORMATS)}"
                if format is None
                else f"format is one of {', '.join(documents.FORMATS)}, found {format!r}"
            )
        super().__init__(path, every, debounce, max_bytes)
        self._form, self._rows, self._force = form, rows, force
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
