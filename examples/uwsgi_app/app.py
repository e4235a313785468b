"""A WSGI application for uWSGI: each request sees one version from its first byte to its last.

Run, in this directory (pip install 'shmcow[cli]' pyuwsgi):

    uwsgi --http-socket 127.0.0.1:8000 --wsgi-file app.py --master --processes 4 --die-on-term

With --lazy-apps it is loaded in each worker, and not once before the fork; with --binary-path "$(which python)" it can
reload by SIGHUP in a virtual environment, too.

From another shell:

    curl localhost:8000     who answers, with which version, five times within one response
    python app.py           publish the next revision: the next request has it, whichever worker answers

uWSGI forks its workers in C, without Python's hooks, recycles and replaces them: shmcow needs none of its hooks either.
The store outlives them all; to remove it: shmcow rm uwsgi-example
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from shmcow import Reader, Writer
from shmcow.contrib.request import current_snapshot, current_value
from shmcow.contrib.wsgi import SnapshotMiddleware

STORE = os.environ.get("CONFIG_STORE", "uwsgi-example")


class Config(msgspec.Struct, frozen=True):
    """What the application may be told while it runs; every field follows from the revision, to be checked by eye."""

    revision: int = 0
    hosts: tuple[str, ...] = ("db0-r0.internal", "db1-r0.internal")


config = Reader(STORE, type=Config, default=Config())  # touches nothing yet: safe before the fork


def line() -> bytes:
    """Say what this request sees: the version and the values belong together, whoever publishes meanwhile."""
    try:
        version = current_snapshot(config).version
    except LookupError:  # the request began before there was a store: it has the default to its end
        version = 0
    return msgspec.json.encode({"pid": os.getpid(), "version": version, "config": current_value(config)}) + b"\n"


def respond(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    """Stream five lines, with a wait before each, as for a database."""
    start_response("200 OK", [("Content-Type", "application/jsonl")])
    for _ in range(5):
        time.sleep(0.001)
        yield line()


application = SnapshotMiddleware(respond, config)


def publish() -> int:
    """Publish the next revision; the first call creates the store."""
    with Writer(STORE, type=Config, initial=Config()) as writer:
        number = writer.version
        hosts = tuple(f"db{k}-r{number}.internal" for k in range(2))
        return writer.publish(Config(number, hosts), expected=number, message=f"revision {number}")


if __name__ == "__main__":
    print(f"version {publish()}")
