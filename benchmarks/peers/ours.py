"""shmcow itself, and what a read costs in one process alone."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable
from typing import Any

import shmcow
from benchmarks.peers.base import Floor, Local, Peer, Read, Write


class Shmcow(Peer):
    """A Reader made once, get() for each read; a Writer kept open."""

    title = "shmcow"

    def _how(self) -> dict[str, Any]:
        return {"codec": shmcow.Raw()} if self.kind is bytes else {"type": self.kind}

    def start(self) -> None:
        shmcow.Writer(self.name, initial=self.first, **self._settings()).close()

    def _settings(self) -> dict[str, Any]:
        # retain=0 for bytes: a publish makes one segment and unlinks one, as the others do
        return {**self._how(), **({"retain": 0} if self.kind is bytes else {})}

    def stop(self) -> None:
        with contextlib.suppress(shmcow.StoreNotFoundError):
            shmcow.destroy(self.name)

    def reader(self) -> Read:
        return shmcow.Reader(self.name, **self._how()).get

    def writer(self) -> Write:
        return shmcow.Writer(self.name, **self._how()).publish

    def hold(self, inside: Callable[[], None]) -> bool:
        def change(old: Any) -> Any:
            inside()
            return old

        shmcow.Writer(self.name, **self._how()).update(change)
        return True


class Empty(Shmcow, Floor):
    """A C method of the Reader's own type that returns None at once, beside a store and its writer."""

    title = "empty C call"

    def reader(self) -> Read:
        return shmcow.Reader(self.name)._pass


class Dict(Local):
    """An object in a dict of this process."""

    title = "dict"

    def reader(self) -> Read:
        return functools.partial({"config": self.first, "other": None}.__getitem__, "config")


class Context(Local):
    """A context variable of this process."""

    title = "contextvar"

    def reader(self) -> Read:
        variable: contextvars.ContextVar[Any] = contextvars.ContextVar("config")
        variable.set(self.first)
        return variable.get
