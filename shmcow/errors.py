"""Every error that shmcow raises on purpose, in one tree.

::

    ShmcowError
    ├── StoreNotFoundError      (LookupError)       no store of that name
    ├── NotPublishedError       (LookupError)       the store has no version yet
    ├── VersionGoneError        (LookupError)       that version was reclaimed, or never existed
    ├── StoreDestroyedError     (LookupError)       the store was destroyed or removed from outside
    ├── VersionConflictError    (RuntimeError)      ``expected=`` is not the current version
    ├── FollowerBusyError       (RuntimeError)      another follower feeds the store
    ├── WriterBusyError         (TimeoutError)      another writer holds the writer lock
    ├── WaitTimeoutError        (TimeoutError)      what was waited for did not happen in time
    ├── NotOwnerError           (PermissionError)   the store belongs to another user
    ├── OutOfSharedMemoryError  (OSError, ENOSPC)   no room in /dev/shm, or above ``max_total_bytes``
    ├── ClosedError             (ValueError)        the reader or writer was closed
    └── ValidationError         (ValueError)        the value was refused before it was published
        and, all of them also ValueError: what is in shared memory cannot be used
        ├── IncompatibleStoreError    another ABI, byte order, or no store at all
        ├── CodecMismatchError        published with another codec or type
        ├── DecodeError               the payload does not decode to the asked-for type
        └── CorruptSegmentError       a checksum or a length is wrong

The last four are siblings of ValidationError, not children of it. Each class is also the builtin that a
caller would expect, so ``except LookupError`` or ``except TimeoutError`` works without importing shmcow.
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "ClosedError",
    "CodecMismatchError",
    "CorruptSegmentError",
    "DecodeError",
    "FollowerBusyError",
    "IncompatibleStoreError",
    "NotOwnerError",
    "NotPublishedError",
    "OutOfSharedMemoryError",
    "ShmcowError",
    "StoreDestroyedError",
    "StoreNotFoundError",
    "ValidationError",
    "VersionConflictError",
    "VersionGoneError",
    "WaitTimeoutError",
    "WriterBusyError",
]


class ShmcowError(Exception):
    """Base class of every error that shmcow raises on purpose."""


class _NotThereError(ShmcowError, LookupError):
    # KeyError would show its message in quotes; LookupError does not, and is what callers catch.
    pass


class StoreNotFoundError(_NotThereError):
    """No store of that name exists (yet)."""


class NotPublishedError(_NotThereError):
    """The store exists, and no version has been published in it yet."""


class VersionGoneError(_NotThereError):
    """The version was reclaimed, or was never published."""


class StoreDestroyedError(_NotThereError):
    """The store was destroyed, or its objects were removed from outside."""


class VersionConflictError(ShmcowError, RuntimeError):
    """The current version is not the expected one; nothing was published.

    Attributes:
        expected: the version that the caller expected to be current.
        actual: the version that is current.
    """

    def __init__(self, expected: int, actual: int, message: str | None = None) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(
            message
            or f"expected version {expected} to be current, found {actual}: read the current value again and retry"
        )

    def __reduce__(self) -> tuple[type[VersionConflictError], tuple[int, int, str]]:
        return type(self), (self.expected, self.actual, str(self))


class FollowerBusyError(ShmcowError, RuntimeError):
    """Another process feeds the store from a source: exactly one follower at a time."""


class WriterBusyError(ShmcowError, TimeoutError):
    """Another writer held the writer lock for longer than ``lock_timeout``; nothing was published."""


class WaitTimeoutError(ShmcowError, TimeoutError):
    """What was waited for did not happen within the time-out."""


class NotOwnerError(ShmcowError, PermissionError):
    """The store belongs to another user, or its permissions do not let this process read it."""


class OutOfSharedMemoryError(ShmcowError, OSError):
    """There is no room for another version; the current version is still served. ``errno`` is ENOSPC."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)

    def __str__(self) -> str:
        return f"{self.strerror} ({os.strerror(errno.ENOSPC)})"

    def __reduce__(self) -> tuple[type[OutOfSharedMemoryError], tuple[str]]:
        return type(self), (str(self.strerror),)


class ClosedError(ShmcowError, ValueError):
    """The reader or writer was closed."""


class ValidationError(ShmcowError, ValueError):
    """The value was refused before it was published: it does not encode, decode, or pass a validator."""


class _UnusableError(ShmcowError, ValueError):
    pass


class IncompatibleStoreError(_UnusableError):
    """What has the store's name is of another ABI or byte order, or is no store at all."""


class CodecMismatchError(_UnusableError):
    """The version was published with another codec, or with a type that does not fit.

    Attributes:
        published: the type that it was published as, if all that is wrong is that the writer has none; "" otherwise.
    """

    published = ""


class DecodeError(_UnusableError):
    """The payload does not decode to the type that was asked for."""


class CorruptSegmentError(_UnusableError):
    """A checksum, a length or a reference in shared memory is wrong."""
