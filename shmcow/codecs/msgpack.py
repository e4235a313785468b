"""MessagePack: the default codec."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from typing_extensions import TypeVar

from shmcow.codecs.base import MsgspecCodec

__all__ = ["MsgPack"]

T = TypeVar("T", default=Any)


class MsgPack(MsgspecCodec[T]):
    """Encode values as MessagePack: compact, fast, exact for floats, bytes and keys that are no strings.

    Takes the arguments of ``MsgspecCodec``; integers beyond 64 bits are refused.

    Example::

        MsgPack(Config)             # decodes to, and checks for, Config
        MsgPack(dict[str, int])
        MsgPack()                   # builtins only

    Concurrency: immutable; one instance serves all threads. Picklable if the type and the hooks are.
    """

    name = "msgpack"
    _format: ClassVar[Any] = msgspec.msgpack
