"""What the tables share: how values that lie in a segment one by one are decoded when they are asked for."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any, Final

from shmcow import schema
from shmcow.codecs.base import StoredPart
from shmcow.codecs.msgpack import MsgPack
from shmcow.frozen import freeze as frozen_of

# Bits of enum core_scalar in csrc/core_values.h.
_SCALARS: Final = {types.NoneType: 1, bool: 2, int: 4, float: 8, str: 16, bytes: 32}


def scalars_of(codec: MsgPack[Any]) -> int:
    """Tell which MessagePack scalars mean themselves for a type, so that C may decode them: a set of bits."""
    if codec.type is Any:
        return sum(_SCALARS.values())
    if not codec.strict:
        return 0
    union = typing.get_origin(codec.type) in (typing.Union, types.UnionType)
    members = typing.get_args(codec.type) if union else (codec.type,)
    return sum({_SCALARS.get(member, 0) for member in members if isinstance(member, type)})


def decoding(codec: MsgPack[Any], freeze: bool) -> Callable[[bytes], Any]:
    """Return what decodes one value, with the codec's errors."""
    plain = codec._decoder.decode
    freeze = freeze and schema.may_be_mutable(codec.type)

    def decode(data: bytes) -> Any:
        try:
            value = plain(data)
            return frozen_of(value) if freeze else value
        except Exception:
            return codec.decode_parts([StoredPart(memoryview(data))], freeze=freeze)  # says it better

    return decode
