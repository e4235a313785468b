"""What changed since version n? Clients that come back with the version that they know get the difference only.

Problem: edge caches and browsers hold a copy of the flags. They ask every minute, mostly nothing has changed, and
sending everything each time is a waste. The server keeps no list of changes: the versions themselves say what
changed.
Run it: python examples/changed_since.py
It prints: what a worker process sends to a client at its first visit, when nothing has changed, when two and when one
version are new to it, and when the version that it knows is gone.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from typing import Any

import shmcow
from shmcow import Reader, VersionGoneError, Writer, inspect

STORE = f"example-since-{os.getpid()}"
flags: Reader[Any] = Reader(STORE)


def answer(epoch: str, version: int) -> dict[str, Any]:
    """Answer a client that knows a version of an epoch; versions of another epoch mean nothing here."""
    now = flags.snapshot()
    here = {"epoch": now.epoch, "version": now.version}
    try:
        if epoch != now.epoch or version > now.version:
            raise VersionGoneError("it is a version of a store that is no more")
        changes = [] if version == now.version else inspect.diff(STORE, version, now.version)
        return here | {"changes": [(change.kind, change.path, change.new) for change in changes]}
    except VersionGoneError:
        return here | {"everything": now.copy()}


class Client:
    """Somebody far away with a copy of the flags, which is a dict of dicts."""

    def __init__(self) -> None:
        self.epoch, self.version, self.flags = "", 0, {}

    def refresh(self, said: dict[str, Any]) -> str:
        """Bring the copy up to date with what the server said; return what that was."""
        self.epoch, self.version = said["epoch"], said["version"]
        if "everything" in said:
            self.flags = said["everything"]
            return "everything"
        for kind, (*way, last), new in said["changes"]:
            place = functools.reduce(dict.__getitem__, way, self.flags)
            if kind == "removed":
                del place[last]
            else:
                place[last] = new
        return ", ".join(f"{kind} {'.'.join(path)}" for kind, path, _ in said["changes"]) or "nothing"


def main() -> None:
    """Publish some versions while a client looks from time to time."""
    client = Client()
    fork = multiprocessing.get_context("fork")
    with Writer(STORE, initial={"checkout": "old", "banner": "hello"}, retain=5) as writer, fork.Pool(1) as pool:

        def ask() -> None:
            before = client.version
            got = client.refresh(pool.apply(answer, (client.epoch, client.version)))
            print(f"from version {before} to {client.version}: {got}")
            assert client.flags == writer.snapshot().value

        ask()
        ask()
        writer.patch(search={"engine": "a", "limit": 10})
        writer.update(lambda old: {"checkout": "new", "search": {**old["search"], "engine": "b"}})
        ask()
        writer.update(lambda old: {**old, "search": {"engine": "b", "limit": 20}})
        ask()
        for limit in range(10):
            writer.patch(search={"engine": "b", "limit": limit})
        ask()
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
