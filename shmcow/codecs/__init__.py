"""Codecs: how values become bytes in shared memory, and values again."""

from __future__ import annotations

from typing import Any

from shmcow.codecs.base import Codec, Part
from shmcow.codecs.json import JSON
from shmcow.codecs.msgpack import MsgPack
from shmcow.codecs.raw import Raw
from shmcow.errors import CodecMismatchError

__all__ = ["JSON", "Codec", "MsgPack", "Part", "Raw", "for_name"]

_TYPED = {MsgPack.name: MsgPack, JSON.name: JSON}


def for_name(name: str, type: Any = Any) -> Codec[Any]:  # noqa: A002
    """Make the built-in codec of that name, as a tool does that finds the name in a store.

    Args:
        name: "msgpack", "json" or "raw".
        type: what to decode to; ``Any`` or None for builtins.

    Returns:
        The codec.

    Raises:
        CodecMismatchError: no built-in codec has that name, or it is "raw", which decodes to no type.
        ValidationError: msgspec does not support the type.

    Concurrency: pure.
    """
    if name in _TYPED:
        codec: Codec[Any] = _TYPED[name](type)
        return codec
    if name != Raw.name:
        known = ", ".join(sorted([*_TYPED, Raw.name]))
        raise CodecMismatchError(
            f"no built-in codec is named {name!r} (known: {known}): pass codec= with an instance of it"
        )
    if type is not None and type is not Any:
        raise CodecMismatchError("the raw codec gives bytes as they are and decodes to no type: leave type= out")
    return Raw()
