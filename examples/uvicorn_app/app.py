"""An ASGI application for `uvicorn --workers`: each request sees one version from its first byte to its last.

Run, in this directory (pip install 'shmcow[cli]' uvicorn):

    uvicorn app:app --workers 4

and from another shell:

    curl localhost:8000     who answers, with which version, five times within one response
    python app.py           publish the next revision: the next request has it, whichever worker answers

uvicorn starts its workers as fresh processes; a killed one is started again, and `kill -HUP` replaces all. shmcow needs
no hook for any of it. The store outlives them all; to remove it: shmcow rm uvicorn-example
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from shmcow import Reader, Writer
from shmcow.contrib.asgi import SnapshotMiddleware
from shmcow.contrib.request import current_snapshot, current_value

STORE = os.environ.get("CONFIG_STORE", "uvicorn-example")


class Config(msgspec.Struct, frozen=True):
    """What the application may be told while it runs; every field follows from the revision, to be checked by eye."""

    revision: int = 0
    hosts: tuple[str, ...] = ("db0-r0.internal", "db1-r0.internal")


config = Reader(STORE, type=Config, default=Config())  # touches nothing yet


def line() -> bytes:
    """Say what this request sees: the version and the values belong together, whoever publishes meanwhile."""
    try:
        version = current_snapshot(config).version
    except LookupError:  # the request began before there was a store: it has the default to its end
        version = 0
    return msgspec.json.encode({"pid": os.getpid(), "version": version, "config": current_value(config)}) + b"\n"


async def respond(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    """Stream five lines, with a wait before each, as for a database."""
    assert scope["type"] == "http", "no lifespan, no websockets"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/jsonl")]})
    for left in reversed(range(5)):
        await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": line(), "more_body": left > 0})


app = SnapshotMiddleware(respond, config)


def publish() -> int:
    """Publish the next revision; the first call creates the store."""
    with Writer(STORE, type=Config, initial=Config()) as writer:
        number = writer.version
        hosts = tuple(f"db{k}-r{number}.internal" for k in range(2))
        return writer.publish(Config(number, hosts), expected=number, message=f"revision {number}")


if __name__ == "__main__":
    print(f"version {publish()}")
