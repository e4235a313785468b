"""What went wrong, as an exit code and one line for people.

====  ====================================================
code  meaning
====  ====================================================
0     fine
1     the command found what it looks for (problems, differences)
2     usage: a wrong option or argument
3     no such store, version or path
4     version conflict, or another follower
5     permission, or another owner
6     corrupt or incompatible
7     time-out
8     no space
9     validation failed: the value was refused
70    a bug of ours
====  ====================================================
"""

from __future__ import annotations

import errno
from typing import Final

from shmcow import errors

__all__ = ["CONFLICT", "FOUND", "INTERRUPTED", "OUR_BUG", "REFUSED", "USAGE", "PathNotFoundError", "exit_code"]

FOUND: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
CONFLICT: Final = 4
NOT_ALLOWED: Final = 5
UNUSABLE: Final = 6
TIMED_OUT: Final = 7
NO_SPACE: Final = 8
REFUSED: Final = 9
OUR_BUG: Final = 70
INTERRUPTED: Final = 130  # as if by SIGINT
CUT_OFF: Final = 141  # as if by SIGPIPE


class PathNotFoundError(LookupError):
    """A value has no part at that path; the message names what there is."""


# The first class that fits decides, so a special case stands before its base.
_CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (PathNotFoundError, NOT_FOUND),
    (errors.StoreNotFoundError, NOT_FOUND),
    (errors.NotPublishedError, NOT_FOUND),
    (errors.VersionGoneError, NOT_FOUND),
    (errors.StoreDestroyedError, NOT_FOUND),
    (errors.VersionConflictError, CONFLICT),
    (errors.NotOwnerError, NOT_ALLOWED),
    (errors.FollowerBusyError, CONFLICT),
    (errors.OutOfSharedMemoryError, NO_SPACE),
    (errors.WriterBusyError, TIMED_OUT),
    (errors.WaitTimeoutError, TIMED_OUT),
    (errors.ValidationError, REFUSED),
    (errors.IncompatibleStoreError, UNUSABLE),
    (errors.CodecMismatchError, UNUSABLE),
    (errors.DecodeError, UNUSABLE),
    (errors.CorruptSegmentError, UNUSABLE),
)


def exit_code(exc: BaseException) -> int | None:
    """Return the exit code of an error that a user or the machine may cause; None: it is a bug of ours."""
    for kind, code in _CODES:
        if isinstance(exc, kind):
            return code
    if isinstance(exc, OSError):
        if isinstance(exc, PermissionError):
            return NOT_ALLOWED
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return NO_SPACE
    return None
