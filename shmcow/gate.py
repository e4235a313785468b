"""A gate for deployments: wait until no process is behind a version."""

from __future__ import annotations

from shmcow import _core
from shmcow.arguments import check_version
from shmcow.errors import StoreDestroyedError, WaitTimeoutError
from shmcow.holders import name_holders
from shmcow.segments import check_name
from shmcow.store import attach
from shmcow.waiting import Pause, Sleep, check_wait, until

__all__ = ["wait_readers"]


def wait_readers(name: str, at_least: int, timeout: float | None = None, *, seen: bool = False) -> None:
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

    Raises:
        WaitTimeoutError: it is not current yet, or somebody is behind: the message names who.
        StoreNotFoundError: there is no such store.
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
    check_wait(timeout)
    store = attach(name)
    pause = Pause()
    kinds = (False, True) if seen else (False,)  # of markers: who holds is behind in any case

    def look() -> Sleep | None:
        word = store.word
        if word == _core.DESTROYED or not store.named():
            raise StoreDestroyedError(f"store {name} was destroyed or replaced while its readers were waited for")
        if word & _core.VERSION_MAX < at_least:
            return Sleep(((store, word),))
        behind = any(store.marked_below(at_least, kind) for kind in kinds)
        return pause.sleep() if behind else None

    def late() -> WaitTimeoutError:
        if store.word & _core.VERSION_MAX < at_least:
            return WaitTimeoutError(
                f"version {at_least} of store {name} was not published within {timeout} s: {store.version} is current"
            )
        who = " and ".join(
            f"{'seen last' if kind else 'held'} {name_holders(store, 1, at_least - 1, kind)}"
            for kind in kinds
            if store.marked_below(at_least, kind)
        )
        return WaitTimeoutError(
            f"after {timeout} s there are still readers of store {name} before version {at_least}: "
            f"{who or 'gone just now'}"
        )

    until(look, timeout, late)
