"""A pytest plugin: stores of their own for tests, and a failure for what a test leaves behind.

It is there wherever shmcow is installed with pytest; nothing needs to be switched on. ::

    def test_worker_sees_the_new_timeout(shmcow_store):
        writer = shmcow_store.writer(initial={"timeout": 1.0})
        worker = start_worker(store=shmcow_store)           # a str: the name of a store that nobody else uses
        writer.publish({"timeout": 2.0})
        assert worker.ask() == 2.0

At the end of the test its writers and readers are closed and the store is destroyed. The test fails if then

- another process still reads the store, or holds a version of it: a worker that was not ended;
- this process does: a snapshot or a view that something keeps, a reader in a global, a thread that goes on;
- the store cannot be destroyed, because some writer does not finish;
- a name is left in shared memory: by a process that goes on publishing, say.

Who has just been told to end gets a few seconds for it (``shmcow_patience`` in the settings of pytest). Names that are
left are removed, so that the next test starts clean. It works under pytest-xdist and pytest-randomly; a child that a
test forks, and that comes out of the test by itself, takes nothing away from its parent.

Fixtures that start workers should take ``shmcow_store``: then they end their workers before the store ends.
``shmcow_store_factory()`` returns one more store, each time it is called.

The fixtures stand in ``_shmcow_pytest``, outside the package: every pytest run imports that file, where shmcow is
installed, and not every run needs shmcow.
"""

from __future__ import annotations

import gc
import os
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, Self

from shmcow import Reader, Writer, _core, inspect, segments
from shmcow.errors import ShmcowError, StoreNotFoundError
from shmcow.fdinfo import command_of
from shmcow.writer import destroy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmcow.inspect import ReadersReport

__all__ = ["IsolatedStore", "Isolation"]

_HINT: Final = (
    "close readers and writers, release snapshots, end threads; a global, an attribute of the test's class or a logged "
    "traceback may keep them"
)


class IsolatedStore(str):
    """The name of a store that only this test uses; ``writer`` and ``reader`` make what is closed at its end.

    Concurrency: any thread. In another process it is the name, and what is made there is closed by nobody.
    """

    _made: list[Reader[Any] | Writer[Any]]

    def __new__(cls, name: str) -> Self:
        """Take a name."""
        store = super().__new__(cls, name)
        store._made = []
        return store

    def writer(self, **options: Any) -> Writer[Any]:
        """Return a writer, made with ``Writer(name, **options)``."""
        writer: Writer[Any] = Writer(str(self), **options)
        self._made.append(writer)
        return writer

    def reader(self, **options: Any) -> Reader[Any]:
        """Return a reader, made with ``Reader(name, **options)``."""
        reader: Reader[Any] = Reader(str(self), **options)
        self._made.append(reader)
        return reader

    def close(self) -> None:
        """Close all that was made here."""
        while self._made:
            self._made.pop().close()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class Isolation:
    """The stores of one test; ``end`` destroys them, and says what was left."""

    def __init__(self) -> None:
        self._stores: list[IsolatedStore] = []

    def make(self) -> IsolatedStore:
        """Return one more store: a name for this test alone."""
        # Not random's digits: plugins seed that, and then all xdist workers would take the same names.
        self._stores.append(IsolatedStore(f"pytest-{os.getpid()}-{secrets.token_hex(4)}"))
        return self._stores[-1]

    def end(self, patience: float, *, own: bool) -> list[str]:
        """Close and destroy the stores.

        Args:
            patience: how long to wait for who is about to end, in seconds.
            own: whether what this very process still has is told, too.

        Returns:
            What was left, for people.
        """
        for store in self._stores:
            store.close()
        deadline = time.monotonic() + patience
        while (left := [who for store in self._stores for who in _users(store, own)]) and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.02)
        for store in self._stores:
            left += _destroy(store, patience)
        return left


def _users(store: IsolatedStore, own: bool) -> Iterator[str]:
    """Say who still uses a store: each process that reads it, and those of our children that have it open."""
    mine = os.getpid()
    told = set() if own else {mine}
    report = _report(store)
    for process in report.processes if report is not None else ():
        if process.pid not in told:
            told.add(process.pid)
            held = ", ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in process.held)
            yield _line(process.pid, f"still {f'holds version {held} of' if held else 'reads'} store {store}")
    if report is not None and report.hidden is not None:
        yield f"{report.hidden.processes} process(es) of other users still read store {store}"
    for pid in _family(mine):  # they may also write it, or have a store open that the test has destroyed
        files = [] if pid in told else _descriptors(store, pid)
        if files:
            yield _line(pid, f"still has {', '.join(files)} open")


def _line(pid: int, what: str) -> str:
    return f"this process {what} ({_HINT})" if pid == os.getpid() else f"pid {pid} {what} ({command_of(pid)})"


def _report(store: IsolatedStore) -> ReadersReport | None:
    """Report on the readers of a store; None: there are none."""
    try:
        opened = _core.Store(segments.header_path(store))
        if any(opened.marked_below(_core.VERSION_MAX, seen) for seen in (False, True)):  # one question to the kernel
            return inspect.readers(store)  # looks at every process
    except (ShmcowError, OSError):  # it was never made, or the test has destroyed or broken it
        pass
    return None


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield pid
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children") as children:
                found = children.read().split()
        except OSError:
            continue
        for child in found:
            yield from _family(int(child))


def _descriptors(store: IsolatedStore, pid: int) -> list[str]:
    """Return what of a store a process has open, by the names in shared memory."""
    header = segments.header_path(store)
    found = set()
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{number}").removesuffix(" (deleted)")
            except OSError:
                continue
            if target == header or target.startswith(f"{header}."):
                found.add(os.path.basename(target))
    except OSError:  # it has ended, or is not ours
        pass
    return sorted(found)


def _destroy(store: IsolatedStore, patience: float) -> Iterator[str]:
    """Destroy a store, and say what could not be destroyed, or came back."""
    try:
        destroy(store, lock_timeout=patience)
    except StoreNotFoundError:
        pass
    except (ShmcowError, OSError) as exc:
        yield f"store {store} cannot be destroyed: {exc}"
    names = [item.filename for item in segments.found(store) if segments.unlink(f"/{item.filename}")]
    if names:
        yield f"names in shared memory: {', '.join(names)}"
