"""Codecs: how values become bytes in shared memory, and values again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmcow.codecs.arrays import Arrays
from shmcow.codecs.base import Codec, Part, StoredPart
from shmcow.codecs.bundle import Bundle, BundleView
from shmcow.codecs.iptable import IPTable, IPTableView
from shmcow.codecs.json import JSON
from shmcow.codecs.mmdb import MMDB, MMDBView
from shmcow.codecs.msgpack import MsgPack
from shmcow.codecs.raw import Raw
from shmcow.codecs.table import Table, TableView
from shmcow.errors import CodecMismatchError

__all__ = [
    "JSON",
    "MMDB",
    "Arrays",
    "Bundle",
    "BundleView",
    "Codec",
    "IPTable",
    "IPTableView",
    "MMDBView",
    "MsgPack",
    "Part",
    "Raw",
    "StoredPart",
    "Table",
    "TableView",
    "for_name",
]

_TYPED = {MsgPack.name: MsgPack, JSON.name: JSON}
_PLAIN: dict[str, Callable[[], Codec[Any]]] = {kind.name: kind for kind in (Raw, Bundle, MMDB, Arrays, Table, IPTable)}


def for_name(name: str, type: Any = Any) -> Codec[Any]:  # noqa: A002
    """Make the built-in codec of that name, as a tool does that finds the name in a store.

    Args:
        name: "msgpack", "json", "raw", "bundle", "mmdb", "arrays", "table" or "iptable".
        type: what to decode to; ``Any`` or None for builtins.

    Returns:
        The codec.

    Raises:
        CodecMismatchError: no built-in codec has that name, or it takes no type.
        ValidationError: msgspec does not support the type.

    Concurrency: pure.
    """
    if name in _TYPED:
        codec: Codec[Any] = _TYPED[name](type)
        return codec
    if name not in _PLAIN:
        known = ", ".join(sorted([*_TYPED, *_PLAIN]))
        raise CodecMismatchError(
            f"no built-in codec is named {name!r} (known: {known}): pass codec= with an instance of it"
        )
    if type is not None and type is not Any:
        raise CodecMismatchError(
            f"the {name} codec has no type of its own: leave type= out, or pass codec= with an instance of it"
        )
    return _PLAIN[name]()
