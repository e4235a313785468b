"""What is published in the questions with peers: values of a given encoded size that carry their revision."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.scene import Config, make_config


class Small(msgspec.Struct, frozen=True):
    """Some switches: 40 bytes."""

    revision: int
    debug: bool
    banner: str


def kind_of(size: int) -> type:
    """Return the type of values of that size."""
    return Small if size < 600 else Config


def make_value(size: int) -> Any:
    """Make a value that is encoded in exactly ``size`` bytes; its revision is 7."""
    if size < 600:
        empty = Small(7, False, "")
        return Small(7, False, "-" * (size - len(msgspec.msgpack.encode(empty))))
    config = make_config(600)
    count = max(0, (size - 700) // 40)  # more of everything, not one long text
    labels = {f"label-{k:06d}": f"the value of {k:08d}" for k in range(count)}
    config = msgspec.structs.replace(config, banner="", labels=labels or config.labels)
    while (short := size - len(msgspec.msgpack.encode(config))) > 0:
        config = msgspec.structs.replace(config, banner=config.banner + "-" * max(1, short - 5))
    if short:
        raise AssertionError(f"no value of {size} bytes")
    return config


def revised(value: Any, revision: int) -> Any:
    """Return the value with another revision, and of the same size."""
    return msgspec.structs.replace(value, revision=revision % 100)


def size_text(size: int) -> str:
    """Write a size with its unit."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_:
            return f"{size / bytes_:g} {unit}"
    return f"{size} B"
