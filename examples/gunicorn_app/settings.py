"""The configuration that all workers share: its type, its store, and the Reader that is made at import.

Nothing happens here but that: a Reader attaches at its first read, so this module may be imported in the gunicorn
master (``preload_app``), in each worker, and before the store exists.
"""

from __future__ import annotations

import os

import msgspec

import shmcow

STORE = os.environ.get("CONFIG_STORE", "gunicorn-example")


class Config(msgspec.Struct, frozen=True):
    """What the application may be told while it runs."""

    revision: int
    timeout: float
    hosts: tuple[str, ...]
    limits: dict[str, int]


def revised(revision: int) -> Config:
    """Make the configuration of a revision.

    A real one comes from a file or a form. Here every field follows from the revision, so that one look at an answer
    tells whether it is of one piece.
    """
    hosts = tuple(f"db{number}-r{revision}.internal" for number in range(8))
    return Config(revision, timeout=revision / 4, hosts=hosts, limits={"free": revision, "paid": 100 * revision})


BUILT_IN = revised(0)  # served until somebody publishes

config = shmcow.Reader(STORE, type=Config, default=BUILT_IN)


class Answer(msgspec.Struct):
    """What a request is answered with."""

    pid: int
    version: int
    epoch: str
    config: Config


def answer() -> bytes:
    """Return the answer to one request as JSON, all of it from one snapshot.

    ``config.get()`` is enough for who needs the values alone. A second ``get()`` in the same request may be newer.
    """
    try:
        snapshot = config.snapshot()
    except LookupError:  # no store yet, or nothing in it: there is no version to name
        return msgspec.json.encode(Answer(os.getpid(), 0, "", BUILT_IN))
    return msgspec.json.encode(Answer(os.getpid(), snapshot.version, snapshot.epoch, snapshot.value))
