"""Gates for deployments: wait until a version is published, until no process is behind it."""

from __future__ import annotations

import time

from shmcow import _core
from shmcow.arguments import check_version
from shmcow.errors import StoreDestroyedError, StoreNotFoundError, WaitTimeoutError
from shmcow.fdinfo import describe_process
from shmcow.holders import holders, holding, name_holders
from shmcow.segments import check_name
from shmcow.store import attach
from shmcow.waiting import Pause, Sleep, check_wait, until

__all__ = ["wait_readers", "wait_version"]


def wait_version(name: str, at_least: int, timeout: float | None = None, *, may_appear: bool = False) -> int:
    """Wait until a version, or a later one, is current; it is not decoded.

    Args:
        name: of the store.
        at_least: the version.
        timeout: in seconds; None: for ever; 0: only look.
        may_appear: whether a store that does not exist yet is waited for, too.

    Returns:
        The version that is current.

    Raises:
        WaitTimeoutError: it was not published in time, or the store was not created.
        StoreNotFoundError: there is no such store, without ``may_appear``.
        StoreDestroyedError: it was destroyed or replaced meanwhile.
        NotOwnerError: its permissions do not let this process read it.

    Concurrency: any thread and process, with read permission only; sleeps in the kernel.
    """
    check_name(name)
    check_version("at_least", at_least, 1)
    check_wait(timeout)
    until_time = None if timeout is None else time.monotonic() + timeout
    store = _attached(name, timeout, may_appear)

    def look() -> Sleep | int:
        word = _word(store)
        current = word & _core.VERSION_MAX
        return current if current >= at_least else Sleep(((store, word),))

    left = None if until_time is None else max(0.0, until_time - time.monotonic())
    return until(look, left, lambda: _not_published(store, at_least, timeout))


def _attached(name: str, timeout: float | None, may_appear: bool) -> _core.Store:
    """Attach to a store, or wait for it."""
    if not may_appear:
        return attach(name)
    pause = Pause()

    def look() -> Sleep | _core.Store:
        try:
            store = attach(name)
        except StoreNotFoundError:
            return pause.sleep()
        return store if store.word != _core.DESTROYED else pause.sleep()

    return until(
        look,
        timeout,
        lambda: WaitTimeoutError(f"there is no store {name}, even after {timeout} s: has its writer been started?"),
    )


def _word(store: _core.Store) -> int:
    word = store.word
    if word == _core.DESTROYED or not store.named():
        raise StoreDestroyedError(f"store {store.name} was destroyed or replaced while it was waited for")
    return word


def _not_published(store: _core.Store, at_least: int, timeout: float | None) -> WaitTimeoutError:
    return WaitTimeoutError(
        f"version {at_least} of store {store.name} was not published within {timeout} s: {store.version} is current"
    )


def wait_readers(
    name: str,
    at_least: int,
    timeout: float | None = None,
    *,
    seen: bool = False,
    min_readers: int = 0,
    may_appear: bool = False,
) -> None:
    """Wait until a version is current and no process holds an older one.

    Held are versions in ``with snapshot:``, ``snapshot.hold()`` and views. A worker that holds nothing is not behind:
    its next ``get()`` returns the current version anyway. With ``seen=True`` an idle worker counts, too: every process
    that has read the store must have read this version, or a later one.

    With ``seen=True`` a process moves on by reading: an idle worker does with ``refresh="background"``, ``subscribe``
    or ``watch``. A server's master that has read once, and this very process with a Reader of its own, count as well.

    Args:
        name: of the store.
        at_least: the version.
        timeout: in seconds; None: for ever.
        seen: whether what ``get()`` last returned counts, and not only what is held.
        min_readers: so many processes must have read this version, or a later one: of those that this user may look
            into, by ``get()`` or another read of the current version.
        may_appear: whether a store that does not exist yet is waited for, too.

    Raises:
        WaitTimeoutError: it is not current yet, or somebody is behind: the message names who. Or fewer processes than
            ``min_readers`` have read it.
        StoreNotFoundError: there is no such store, without ``may_appear``.
        StoreDestroyedError: it was destroyed or replaced meanwhile.
        NotOwnerError: its permissions do not let this process read it.

    Concurrency: any thread and process, with read permission only. Readers notice nothing. The kernel keeps the
    markers, so a killed process is behind nobody; one that was forked, or has started, and has not read yet is not
    counted.

    Example:
        >>> import shmcow
        >>> with shmcow.Writer("doc-gate", initial={"timeout": 1}) as w:
        ...     version = w.publish({"timeout": 2})
        ...     shmcow.wait_readers("doc-gate", at_least=version, timeout=10)
        ...     w.destroy()
    """
    check_name(name)
    check_version("at_least", at_least, 1)
    if not isinstance(min_readers, int) or isinstance(min_readers, bool) or min_readers < 0:
        raise ValueError(f"min_readers is a whole number, 0 or more, found {min_readers!r}")
    check_wait(timeout)
    until_time = None if timeout is None else time.monotonic() + timeout
    store = _attached(name, timeout, may_appear)
    # To look into all processes takes longer than to ask the kernel who is behind.
    pause = Pause(0.25 if min_readers else 0.05)
    kinds = (False, True) if seen else (False,)  # of markers: who holds is behind in any case

    def look() -> Sleep | None:
        word = _word(store)
        if word & _core.VERSION_MAX < at_least:
            return Sleep(((store, word),))
        behind = any(store.marked_below(at_least, kind) for kind in kinds)
        return pause.sleep() if behind or len(_there(store, at_least, min_readers)) < min_readers else None

    def late() -> WaitTimeoutError:
        if store.word & _core.VERSION_MAX < at_least:
            return _not_published(store, at_least, timeout)
        who = _who_is_behind(store, at_least, seen)
        there = _there(store, at_least, min_readers)
        if not who and len(there) < min_readers:
            return WaitTimeoutError(
                f"after {timeout} s only {len(there)} of {min_readers} expected readers of store {name} have read "
                f"version {at_least} or a later one: {', '.join(describe_process(pid) for pid in there[:5]) or 'none'}"
                f"{f' and {len(there) - 5} more' if len(there) > 5 else ''}"
            )
        return WaitTimeoutError(
            f"after {timeout} s there are still readers of store {name} before version {at_least}: "
            f"{who or 'gone just now'}"
        )

    left = None if until_time is None else max(0.0, until_time - time.monotonic())
    until(look, left, late)


def _who_is_behind(store: _core.Store, at_least: int, seen: bool) -> str:
    said = []
    if store.marked_below(at_least, False):
        said.append(f"held {name_holders(store, 1, at_least - 1)}")
    if seen and store.marked_below(at_least, True):
        # Who holds a version has most often seen it, too, and is named once.
        others = name_holders(store, 1, at_least - 1, True, but=holding(store, at_least - 1) if said else frozenset())
        said += [f"seen last {others}"] if others else []
    return " and ".join(said)


def _there(store: _core.Store, at_least: int, min_readers: int) -> list[int]:
    """Return the pids of those that have read a version, or a later one, if any need to have."""
    if not min_readers:
        return []
    return [holder.pid for holder in holders(store) if any(last >= at_least for _, last in holder.seen)]
