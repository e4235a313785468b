"""What the cases stand on: stores that go away again, and a configuration as services have it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

import shmcow

SHM = "/dev/shm"
WATCHDOG = 60.0  # seconds until a process that does not answer is given up


class Limits(msgspec.Struct, frozen=True):
    """Part of the example configuration."""

    timeout: float
    retries: int
    pool: int


class Config(msgspec.Struct, frozen=True):
    """A configuration as services have it."""

    name: str
    revision: int
    debug: bool
    hosts: tuple[str, ...]
    limits: Limits
    flags: dict[str, bool]
    labels: dict[str, str]
    banner: str = ""


def make_config(size: int) -> Config:
    """Make a configuration that is encoded in exactly ``size`` bytes."""
    config = Config(
        name="checkout",
        revision=7,
        debug=False,
        hosts=tuple(f"10.20.{k}.{k}:8080" for k in range(8)),
        limits=Limits(timeout=2.5, retries=3, pool=16),
        flags={f"feature-{k}": k % 2 == 0 for k in range(8)},
        labels={f"label-{k}": f"value of {k}" for k in range(6)},
    )
    while (short := size - len(msgspec.msgpack.encode(config))) > 0:
        # a long string needs more length bytes than a short one: come closer step by step
        config = msgspec.structs.replace(config, banner=config.banner + "-" * max(1, short - 3))
    return config


def fresh_name() -> str:
    """Return a name that nobody else uses."""
    return f"t-bench-{os.getpid()}-{secrets.token_hex(8)}"


def room() -> int:
    """Return the bytes that are free in shared memory."""
    space = os.statvfs(SHM)
    return space.f_frsize * space.f_bavail


@contextlib.contextmanager
def store(**settings: Any) -> Iterator[tuple[shmcow.Writer[Any], str]]:
    """Make a store, and destroy it."""
    name = fresh_name()
    with shmcow.Writer(name, **settings) as writer:
        try:
            yield writer, name
        finally:
            writer.destroy()


@contextlib.contextmanager
def file(path: str, data: bytes) -> Iterator[None]:
    """Make a file, and unlink it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.close(fd)
        yield
    finally:
        os.unlink(path)
