"""From a held version's bytes to a value: which codec, is the payload whole, is it frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from shmcow import _core, codecs
from shmcow.codecs import StoredPart
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError

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
    codec = choose(how, entry, hold)
    parts = stored_parts(hold, entry)
    for k, listed in enumerate(entry["parts"]):
        check_payload(parts[k].view, listed, how.verify, hold)
    try:
        value = codec.decode_parts(parts, freeze=how.freeze)
        if codec.fingerprint != entry["fingerprint"] and codec.is_typed:
            codec.check_fits(value)
    except (DecodeError, CodecMismatchError) as exc:
        raise type(exc)(f"{hold}{_published_as(entry)}: {exc}") from exc
    if how.transform is not None:
        try:
            value = how.transform(value)
        except Exception as exc:
            raise DecodeError(f"transform= raised {type(exc).__name__} for {hold}: {exc}") from exc
    return value, codec.holds


def stored_parts(hold: _core.Hold, entry: dict[str, Any]) -> list[StoredPart]:
    """Return the parts of a held version, as a codec takes them."""
    return [StoredPart(*fields) for fields in map(hold.stored, range(len(entry["parts"])))]


def choose(how: Decoding, entry: dict[str, Any], where: object) -> Codec[Any]:
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


def check_payload(view: memoryview, part: dict[str, Any], verify: bool, where: object) -> None:
    """Check a payload's CRC: always up to 1 MiB, above on request.

    Raises:
        CorruptSegmentError: it is wrong, in what ``str(where)`` names.
    """
    if not part["flags"] & _core.HAS_CRC or (part["length"] > CHECKED_BYTES and not verify):
        return
    found = _core.crc32(view)
    if found != part["crc"]:
        raise CorruptSegmentError(
            f"the payload of {where} has the CRC {found:08x}, expected {part['crc']:08x}: it was overwritten from "
            "outside; publish again"
        )


def strip(kept: BaseException, callers: BaseException | None) -> None:
    """Drop the tracebacks of an error that is kept: their frames would keep the version held, and grow.

    Args:
        kept: the error; with it all that led to it.
        callers: the exception that our caller was handling already: it is not ours.
    """
    todo: list[BaseException | None] = [kept]
    done = {id(None), id(callers)}
    while todo:
        exc = todo.pop()
        if exc is None or id(exc) in done:
            continue
        done.add(id(exc))
        exc.__traceback__ = None
        if exc.__context__ is callers:
            exc.__context__ = None
        todo += [exc.__cause__, exc.__context__]
        if isinstance(exc, BaseExceptionGroup):
            todo += exc.exceptions


# ---- sent to another process ----


def dump(what: str, how: object) -> bytes:
    """Pickle how to decode.

    Bytes in bytes: a receiver that lacks the type finds out when it uses what it has received. An error while a task is
    being unpickled would take a pool's worker down, and its caller would wait for ever.

    Raises:
        PicklingError: a type, codec or ``transform`` cannot be found by its name.
    """
    import pickle  # most workers send nothing

    try:
        return pickle.dumps(how)
    except Exception as exc:
        raise pickle.PicklingError(
            f"{what} cannot be sent: its type, codec and transform= go by name, so each must be importable in the "
            f"other process ({exc})"
        ) from exc


def undump(how: bytes, what: str) -> Any:
    """Undo ``dump``.

    Raises:
        DecodeError: this process lacks the type, the codec or the ``transform``.
    """
    import pickle

    try:
        return pickle.loads(how)
    except Exception as exc:
        raise DecodeError(
            f"{what} was sent to this process, which lacks the type or the codec to decode it: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
