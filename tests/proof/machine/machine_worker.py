"""A process that does to a store what it is told, through the public API, and says what came of it."""

from __future__ import annotations

import logging
import os
import pickle
import resource
import signal
from collections.abc import Callable
from typing import Any

import processes
from processes import Link

import shmcow
from shmcow import Reader, Snapshot, Writer

Answer = tuple[str, Any]  # ("ok", what was returned) or ("error", the name of the exception's class)


class Worker:
    """One writer, one reader, and any number of snapshots and views that are kept."""

    def __init__(self) -> None:
        self.reset("")

    def reset(self, store: str) -> None:
        """Let go of everything; from now on it is about another store."""
        self.store = store
        self.writer: Writer[Any] | None = None
        self.reader: Reader[Any] | None = None
        self.kept: dict[int, Snapshot[Any]] = {}
        self.views: dict[int, memoryview] = {}

    # ---- a writer ----

    def open_writer(self, retain: int | None) -> tuple[bool, int]:
        self.writer = Writer(self.store, retain=retain)
        return self.writer.created, self.writer.version

    def close_writer(self) -> None:
        assert self.writer is not None
        self.writer.close()

    def publish(self, value: Any, expected: int | None, message: str) -> int:
        assert self.writer is not None
        return self.writer.publish(value, expected=expected, message=message)

    def update(self, more: int) -> int:
        assert self.writer is not None
        return self.writer.update(lambda old: {**old, "n": old["n"] + more})

    def update_that_fails(self) -> int:
        assert self.writer is not None

        def fail(old: Any) -> Any:
            raise shmcow.ValidationError(f"no, {old['n']} stays")

        return self.writer.update(fail)

    def patch(self, changes: dict[str, Any]) -> int:
        assert self.writer is not None
        return self.writer.patch(**changes)

    def edit(self, item: int) -> int:
        assert self.writer is not None
        with self.writer.edit() as draft:
            draft["list"].append(item)
        return self.writer.version

    def swap(self, value: Any) -> tuple[int, Any]:
        assert self.writer is not None
        previous = self.writer.swap(value)
        return previous.version, previous.copy()

    def rollback(self, to: int | None) -> int:
        assert self.writer is not None
        return self.writer.rollback(to)

    def reclaim(self) -> int:
        assert self.writer is not None
        return self.writer.reclaim()

    def unused(self, version: int) -> None:
        assert self.writer is not None
        self.writer.wait_unused(version, timeout=0)

    def destroy(self) -> None:
        assert self.writer is not None
        self.writer.destroy()

    def destroy_by_name(self) -> None:
        shmcow.destroy(self.store)

    def die_in_update(self) -> None:
        """Be killed under the writer lock."""
        assert self.writer is not None
        self.writer.update(lambda old: os.kill(os.getpid(), signal.SIGKILL))  # noqa: ARG005

    def die_in_fill(self) -> None:
        """Be killed by the kernel in the middle of a segment: SIGXFSZ, as the file would grow beyond a limit."""
        assert self.writer is not None
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        self.writer.publish({"n": 0, "list": [], "big": "x" * 50_000})

    # ---- a reader ----

    def open_reader(self) -> None:
        self.reader = Reader(self.store)

    def close_reader(self) -> None:
        assert self.reader is not None
        self.reader.close()

    def refresh(self) -> None:
        assert self.reader is not None
        self.reader.refresh()

    def get(self) -> tuple[Any, Any]:
        assert self.reader is not None
        value = self.reader.get()
        again = self.reader.get()
        if again is not value and again == value:
            raise AssertionError("get() made another object of the same version")
        return thawed(value), thawed(again)

    def snapshot(self, number: int) -> tuple[str, int, Any, str]:
        assert self.reader is not None
        return self._keep(number, self.reader.snapshot())

    def at(self, number: int, version: int) -> tuple[str, int, Any, str]:
        assert self.reader is not None
        return self._keep(number, self.reader.at(version))

    def wait(self, number: int, after: int | None) -> tuple[str, int, Any, str]:
        assert self.reader is not None
        return self._keep(number, self.reader.wait(after=after, timeout=0))

    def _keep(self, number: int, snapshot: Snapshot[Any]) -> tuple[str, int, Any, str]:
        said = snapshot.epoch, snapshot.version, snapshot.copy(), snapshot.message
        self.kept[number] = snapshot
        return said

    # ---- what is kept ----

    def hold(self, number: int) -> None:
        self.kept[number].hold()

    def release(self, number: int) -> None:
        self.kept[number].release()

    def drop(self, number: int, holds: int) -> None:
        """Let go of a snapshot; its holds first, as the reader may have the same object."""
        for _ in range(holds):
            self.kept[number].release()
        del self.kept[number]

    def view(self, number: int) -> bytes:
        self.views[number] = self.kept[number].data
        return bytes(self.views[number])

    def drop_view(self, number: int) -> None:
        del self.views[number]

    def values(self) -> dict[int, Any]:
        """Return all values that are kept; they must be immutable."""
        for snapshot in self.kept.values():
            try:
                snapshot.value["n"] = -1
            except TypeError:
                continue
            raise AssertionError("a value can be changed")
        return {number: snapshot.copy() for number, snapshot in self.kept.items()}

    def bytes_of_views(self) -> dict[int, bytes]:
        return {number: bytes(view) for number, view in self.views.items()}

    def send(self, number: int) -> tuple[bytes, bool]:
        """Return a snapshot's pickle, and whether it took a hold for the receiver."""
        held = self.kept[number].held
        return pickle.dumps(self.kept[number]), not held

    def receive(self, number: int, raw: bytes) -> tuple[str, int, Any]:
        snapshot = pickle.loads(raw)
        said = snapshot.epoch, snapshot.version, snapshot.copy()
        self.kept[number] = snapshot
        return said

    # ---- a child ----

    def fork(self) -> tuple[Any, list[int]]:
        """Fork a reader; what it reads, and what it holds after its first read."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                assert self.reader is not None
                value = thawed(self.reader.get())
                os.write(writing, pickle.dumps((value, sorted(processes.held_by(os.getpid(), self.store)))))
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            raw = file.read()
        os.waitpid(pid, 0)
        assert raw, "the child said nothing"
        return pickle.loads(raw)


def thawed(value: Any) -> Any:
    """Return a plain copy."""
    return pickle.loads(pickle.dumps(value))


def serve(link: Link, mutate: Callable[[], None] | None = None) -> None:
    """Do what comes over the pipe, until it is closed."""
    logging.getLogger("shmcow").setLevel(logging.CRITICAL)  # that stores are destroyed is no news here
    if mutate is not None:
        mutate()
    worker = Worker()
    while True:
        try:
            what, arguments = link.recv()
        except EOFError:
            return
        try:
            answer: Answer = "ok", getattr(worker, what)(*arguments)
        except shmcow.ShmcowError as exc:
            answer = "error", type(exc).__name__
        link.send(answer)
