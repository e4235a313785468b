"""Logger levels that follow a store: turn a logger to DEBUG in every worker at once, and back.

The store's value is a mapping from logger names to levels, or has one in it::

    from shmcow import Reader
    from shmcow.contrib.logging import follow_levels

    follow_levels(Reader("log-levels"))         # once, where the program starts

and from a shell, at any time::

    echo '{"root": "WARNING", "app.db": "DEBUG"}' | shmcow publish log-levels -

To have a bad level refused before it is published, give the writer a type with the levels that there are:
``Writer("log-levels", type=dict[str, Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]])``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from shmcow import ShmcowError, _core
from shmcow.decoding import strip

if TYPE_CHECKING:
    from types import TracebackType

    from shmcow import Reader, Snapshot

__all__ = ["LevelFollower", "follow_levels"]

_log = logging.getLogger("shmcow")


class _Followed(NamedTuple):
    """A logger whose level is the store's.

    Attributes:
        former: its level without the store.
        ours: the levels that we gave it, of which it has one: the last, and the one before.
    """

    former: int
    ours: tuple[int, int]


class LevelFollower:
    """What ``follow_levels`` returns: call it, or leave its ``with``, to give all loggers their own levels back.

    Attributes:
        problem: why the newest version's levels are not in force, or None.
        failures: how many versions had levels that could not be used, in this process.
    """

    def __init__(self, reader: Reader[Any], pick: Callable[[Any], Mapping[str, str | int]] | None) -> None:
        self.problem: Exception | None = None
        self.failures = 0
        self._pick = pick
        self._followed: dict[str, _Followed] = {}
        self._refused: tuple[str, int] | None = None  # (epoch, version) that was counted
        self._locks: dict[int, threading.RLock] = {}
        self._stopped = False
        try:
            self._apply(None, reader.snapshot())  # so that the levels are in force when we return
        except (ShmcowError, OSError):  # no store yet, or no usable version: the subscription waits for one
            pass
        self._unsubscribe = reader.subscribe(self._apply)

    @property
    def levels(self) -> dict[str, int]:
        """The levels that the store has set in this process, by logger; the root logger's name is "root"."""
        return {name: followed.ours[0] for name, followed in dict(self._followed).items()}

    def __call__(self) -> None:
        """Follow no more, and give each logger the level that it had before; any number of times.

        Raises:
            RuntimeError: a logger's own ``setLevel`` raised; all others have their levels back.
        """
        self._unsubscribe()
        problem: Exception | None = None
        with self._lock():
            self._stopped = True
            for name in list(self._followed):
                try:
                    self._restore(name)
                except Exception as exc:
                    problem = problem or exc
        if problem is not None:
            raise problem

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self()

    def __repr__(self) -> str:
        return f"<LevelFollower, {'ended' if self._stopped else f'{len(self._followed)} loggers'}>"

    def _lock(self) -> threading.RLock:
        # A forked child's own: its parent's may be held by a thread that it lacks.
        forks = _core.forks()
        lock = self._locks.get(forks)
        return lock if lock is not None else self._locks.setdefault(forks, threading.RLock())

    def _apply(self, _old: Snapshot[Any] | None, new: Snapshot[Any]) -> None:
        """Put a version's levels in force: all of them, or none.

        A child that was forked half-way through does it again from the start: each step may be done twice.
        """
        with self._lock():
            if self._stopped:
                return
            followed = dict(self._followed)
            before: dict[logging.Logger, int] = {}
            try:
                wanted = _levels_in(new.value if self._pick is None else self._pick(new.value))
                for name in {**self._followed, **wanted}:
                    logger = logging.getLogger(name)
                    before[logger] = logger.level
                self._change(wanted)
            except Exception as exc:
                self._followed = followed
                for logger, level in before.items():
                    _undo(logger, level)
                self._refuse(new, exc)
                return
            self.problem = None

    def _change(self, wanted: Mapping[str, int]) -> None:
        for name in list(self._followed):
            if name not in wanted:
                self._restore(name)
        for name, level in wanted.items():
            self._set(name, level)

    def _refuse(self, snapshot: Snapshot[Any], why: Exception) -> None:
        strip(why, None)  # the frames of its traceback would keep the snapshot
        self.problem = why
        which = snapshot.epoch, snapshot.version
        if self._refused != which:
            self._refused = which
            self.failures += 1
            _log.error("levels of version %d of store %s stay unused: %s", snapshot.version, snapshot.store, why)

    def _set(self, name: str, level: int) -> None:
        logger = logging.getLogger(name)
        known = self._followed.get(name)
        if known is None or logger.level not in known.ours:  # what somebody else has set is what it goes back to
            known = _Followed(logger.level, (level, level))
        self._followed[name] = _Followed(known.former, (level, known.ours[0]))
        if logger.level != level:
            _set_level(logger, level)

    def _restore(self, name: str) -> None:
        logger, followed = logging.getLogger(name), self._followed[name]
        if logger.level in followed.ours:  # else somebody else has set it since, and means it
            _set_level(logger, followed.former)
        del self._followed[name]


def _set_level(logger: logging.Logger, level: int) -> None:
    """Set a level; the message shows none, as a log is no place for values."""
    try:
        logger.setLevel(level)
    except Exception as exc:  # of a class of the program's own
        raise RuntimeError(
            f"the level of logger {logger.name!r} could not be set: {type(logger).__qualname__}.setLevel raised "
            f"{type(exc).__name__}"
        ) from exc


def _undo(logger: logging.Logger, level: int) -> None:
    """Give a logger the level that it had a moment ago, whatever its class has against that."""
    if logger.level == level:
        return
    try:
        logger.setLevel(level)
    except Exception:
        logging.Logger.setLevel(logger, level)


def follow_levels(
    reader: Reader[Any], *, pick: Callable[[Any], Mapping[str, str | int]] | None = None
) -> LevelFollower:
    """Let the levels of loggers follow a store.

    The store's value maps logger names to levels: names as ``logging`` knows them (in any case; those of
    ``logging.addLevelName`` too) or numbers, 0 (NOTSET) and up. ``"root"`` or ``""`` is the root logger. What is in
    force when this returns is the current version; later ones follow within moments of being published.

    - A logger that is no longer in the mapping goes back to the level that it had before.
    - A version with a bad level or name, or with a level that a logger's own ``setLevel`` refuses, changes nothing at
      all: the levels before stay, it is logged once, with the logger's name, and ``failures`` and ``problem`` tell.
    - A level that somebody else sets meanwhile (``logging.config``, a debugger) stays until the next version, and is
      what the logger goes back to. Call this after logging was configured.
    - A store that is not there yet is waited for. One that is destroyed, or a reader that is closed, leaves the levels
      as they are.

    Args:
        reader: of the store.
        pick: takes the mapping out of the reader's value, as in ``pick=lambda config: config.log_levels``.

    Returns:
        A LevelFollower: call it to unsubscribe and to give all loggers their own levels back.

    Raises:
        TypeError: ``pick`` is not callable.
        ClosedError: the reader is closed.

    Concurrency: ``Reader.subscribe`` starts a daemon thread here, and again in each forked child; a child starts with
    the levels of its parent. What a child does afterwards, unsubscribing included, is of that child only.

    Example:
        >>> import logging
        >>> from shmcow import Reader, Writer
        >>> with Writer("doc-levels", initial={"doc.example": "debug"}) as w:
        ...     reader = Reader("doc-levels")
        ...     with follow_levels(reader):
        ...         print(logging.getLogger("doc.example"))
        ...     print(logging.getLogger("doc.example"))
        ...     reader.close()
        ...     w.destroy()
        <Logger doc.example (DEBUG)>
        <Logger doc.example (WARNING)>
    """
    if pick is not None and not callable(pick):
        raise TypeError(f"pick= is a callable that takes the mapping out of a value, found {pick!r}")
    return LevelFollower(reader, pick)


def _levels_in(value: object) -> dict[str, int]:
    """Return the numbers of the levels in a mapping, by logger.

    Raises:
        TypeError, ValueError: something else is in it; the message shows no level, as a log is no place for values.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a mapping from logger names to levels, found {type(value).__name__}")
    known = logging.getLevelNamesMapping()
    found: dict[str, int] = {}
    for name, level in value.items():
        if not isinstance(name, str):
            raise TypeError(f"a logger's name is a str, found {type(name).__name__}")
        number = known.get(level.upper(), known.get(level)) if isinstance(level, str) else level
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            names = ", ".join(sorted(known, key=known.__getitem__))
            raise ValueError(
                f"the level of logger {name!r} is none: expected a number from 0, or one of {names} "
                f"(found {type(level).__name__})"
            )
        found[name or "root"] = number
    return found
