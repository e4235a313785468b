"""From a held version's bytes to a value: which codec, is the payload whole, is it frozen."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from shmcow import _core, codecs
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError
from shmcow.frozen import freeze

if TYPE_CHECKING:
    from shmcow.codecs import Codec

CHECKED_BYTES = 1 << 20  # payloads up to here always carry a CRC, and are always checked


class Decoding(NamedTuple):
    """How a process turns a version's bytes into a value.

    Attributes:
        codec: None: the built-in codec that the version names, with ``type``.
        type: what to decode to when ``codec`` is None.
        freeze: whether the value is deeply frozen.
        transform: applied to the value once for each version and process.
        verify: whether to check a CRC above 1 MiB too, where there is one.
        made: keeps the built-in codecs made so far, by name: making one walks the whole type.
    """

    codec: Codec[Any] | None = None
    type: Any = Any
    freeze: bool = True
    transform: Callable[[Any], Any] | None = None
    verify: bool = False
    made: dict[str, Codec[Any]] | None = None


def decode(hold: _core.Hold, entry: dict[str, Any], how: Decoding) -> tuple[Any, bool]:
    """Decode a held version.

    Returns:
        The value, and whether it looks into the version's memory, so that the version must stay held.

    Raises:
        CodecMismatchError: it was published with another codec.
        CorruptSegmentError: its checksum is wrong.
        DecodeError: it does not decode, or ``transform`` raised.

    Concurrency: any thread, no lock held: decoders and ``transform`` may use the same store again.
    """
    where = f"version {entry['version']} of store {hold.store.name}"
    codec = choose(how, entry, where)
    views = [hold.view(k) for k in range(len(entry["parts"]))]
    for view, part in zip(views, entry["parts"], strict=True):
        check_payload(view, part, how.verify, where)
    try:
        value = codec.decode_parts(views)
        if how.freeze:
            value = freeze(value)
    except DecodeError as exc:
        raise DecodeError(f"{where}{_published_as(entry)}: {exc}") from exc
    except RecursionError as exc:
        raise DecodeError(f"{where} is nested too deeply to be frozen") from exc
    if how.transform is not None:
        try:
            value = how.transform(value)
        except Exception as exc:
            raise DecodeError(f"transform= raised {type(exc).__name__} for {where}: {exc}") from exc
    return value, codec.holds


def choose(how: Decoding, entry: dict[str, Any], where: str) -> Codec[Any]:
    """Return the codec to decode an entry with.

    Raises:
        CodecMismatchError: the entry names another codec than the one given, or one that is not built in.
    """
    found = entry["codec"]
    if how.codec is None:
        codec = how.made.get(found) if how.made is not None else None
        if codec is None:
            codec = codecs.for_name(found, how.type)
            if how.made is not None:
                how.made[found] = codec
        return codec
    if how.codec.name != found:
        raise CodecMismatchError(
            f"{where} was published with the codec {found!r}, expected {how.codec.name!r}: "
            "give reader and writer the same codec"
        )
    return how.codec


def _published_as(entry: dict[str, Any]) -> str:
    return f" (published as {entry['type_name']})" if entry["type_name"] else ""


def check_payload(view: memoryview, part: dict[str, Any], verify: bool, where: str) -> None:
    """Check a payload's CRC: always up to 1 MiB, above on request.

    Raises:
        CorruptSegmentError: it is wrong.
    """
    if not part["flags"] & _core.HAS_CRC or (part["length"] > CHECKED_BYTES and not verify):
        return
    found = zlib.crc32(view)
    if found != part["crc"]:
        raise CorruptSegmentError(
            f"the payload of {where} has the CRC {found:08x}, expected {part['crc']:08x}: it was overwritten from "
            "outside; publish again"
        )
