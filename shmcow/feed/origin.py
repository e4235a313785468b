"""What a source must be able to do: the ``Origin`` protocol."""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from shmcow.codecs import Codec
from shmcow.errors import ValidationError
from shmcow.feed.wake import Wake

__all__ = ["UNCHANGED", "Content", "Make", "Origin", "SourceError"]


class SourceError(ValidationError):
    """What the source has cannot be used: too large, no regular file, not what was asked for, no answer in time."""


class _Unchanged(enum.Enum):
    UNCHANGED = "UNCHANGED"

    def __repr__(self) -> str:
        return "shmcow.feed.UNCHANGED"


UNCHANGED: Final = _Unchanged.UNCHANGED  # what a polled callable returns when nothing changed

# Makes the codec to publish with, and the value, of the store's name and the follower's type or codec. What must be
# closed when the value was encoded goes on the stack.
Make: TypeAlias = Callable[[str, Any, ExitStack], tuple[Codec[Any], Any]]


class Content(NamedTuple):
    """What a source has now.

    Attributes:
        tag: tells this content from any other: a hash, an ETag, a revision. The next ``fetch`` gets it. "": nobody
            knows; the value's bytes are compared.
        make: called with the store's name, with what ``follow`` was given as ``type`` or ``codec``, and with a stack
            that is closed when the value was encoded; returns the codec and the value. It raises ValidationError if the
            content is malformed, and says where. ``document`` makes one for JSON, TOML, YAML, CSV and others.
    """

    tag: str
    make: Make


@runtime_checkable
class Origin(Protocol):
    """A source that ``follow`` can feed a store from.

    One thread uses it, in this order: ``fetch``, ``wait``, ``fetch``, ``wait``, …, ``close``. What ``fetch`` raises is
    counted, logged and kept as the feed's last error; the last good version stays in service, and the next ``fetch``
    comes after a pause that doubles with each failure (from ``every`` up to five minutes, or ``every`` if that is
    longer). Nothing may be lost between the two: what changes after a ``fetch`` has read must end the next ``wait``.

    Attributes:
        description: what it is, for people; without secrets: it is kept in the store, cut to 128 bytes.
        every: it is asked at least so often, in seconds, which is also what the feed's state promises; None: only when
            ``wait`` says so.
        jitter: the part of ``every`` by which a pause is made longer or shorter at random, 0 to 1.

    Example of one that asks a server (the networking is left out)::

        class Revision:
            description, every, jitter = "registry at db1", 30.0, 0.1

            def fetch(self, known, wake):
                answer = ask("db1", unless=known, timeout=5.0)
                return None if answer.unchanged else document(answer.body, "json", where=self.description)

            def wait(self, seconds, wake):
                wake.wait(seconds)

            def close(self):
                pass
    """

    @property
    def description(self) -> str:
        """What it is, for people."""
        ...

    @property
    def every(self) -> float | None:
        """How often it is asked at least, in seconds."""
        ...

    @property
    def jitter(self) -> float:
        """By which part a pause varies."""
        ...

    def fetch(self, known: str | None, wake: Wake) -> Content | None:
        """Return what it has; None: what it had when its tag was ``known``.

        Args:
            known: the tag of what was published last; None: it must be returned in any case.
            wake: ``wake.stopping`` says that nobody waits for the answer any more.

        Raises:
            Exception: it could not be read, or makes no sense. OSError and ValidationError are told by their message,
                others with their class, too.
        """

    def wait(self, seconds: float | None, wake: Wake) -> None:
        """Return when it may have changed, or when ``wake.is_set()``, or after so many seconds (None: no limit).

        It may return early for no reason; ``wake.wait(seconds)`` does all of this for a source that tells nothing.
        """

    def close(self) -> None:
        """Let go of descriptors and threads. May be called twice."""
