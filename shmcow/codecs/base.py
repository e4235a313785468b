"""What a codec is: how a value becomes bytes in shared memory, and a value again.

A codec is an object that a Writer and a Reader are given. Nothing in shared memory names code: a segment carries the
codec's *name*, and a Reader whose codec has another name refuses the version.

To write one, subclass ``Codec``, set ``name``, and choose:

- **one part** (a blob, a table): override ``encode`` and ``decode``. The value is one segment.
- **several parts** (see ``Bundle``): override ``split`` and ``join`` instead. Each part is a segment of its own, so a
  part that encodes to the same bytes as before is shared with the previous version. ``split`` names each part and its
  codec, and ``join`` gets them in the same order. An inner codec is called through *its* ``encode_parts`` and
  ``decode_parts``, so that its errors are mapped.

Set ``holds = True`` if what ``decode`` returns looks into the view: the reader then keeps the version held for as long
as the value lives. With False the value must be a full copy, for the reader lets go of the version at once. A codec
whose values decode something later overrides ``decode_parts`` (it is told whether to freeze) and ``prove``.

Writers and readers call ``encode_parts`` and ``decode_parts`` only; these turn whatever goes wrong into ValidationError
or DecodeError, so that ``encode`` and the others may raise what they like.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, overload

import msgspec
from typing_extensions import Buffer, TypeForm, TypeVar

from shmcow import frozen, schema
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError, ValidationError

__all__ = ["Codec", "MsgspecCodec", "Part", "StoredPart"]

T = TypeVar("T", default=Any)

_NAME_MAX = 31


class Part(NamedTuple):
    """Hold one encoded part of a value: what goes into one segment.

    Attributes:
        name: the part's name; "" when a value is one part.
        codec: name of the codec that encoded this part.
        buffers: C-contiguous bytes-like objects, written one after the other.
        typed: whether the codec has checked it against a type.
    """

    name: str
    codec: str
    buffers: list[Buffer]
    typed: bool = False


class StoredPart(NamedTuple):
    """One part as it lies in shared memory, or is about to.

    Attributes:
        view: the payload: read-only, one-dimensional bytes.
        name: the part's name; "" when a value is one part.
        codec: name of the codec that encoded it; "" when unknown.
        path: of its file, which may have gone; "" when there is none yet.
        typed: whether its writer checked it against a type.
    """

    view: memoryview
    name: str = ""
    codec: str = ""
    path: str = ""
    typed: bool = False


class Codec(abc.ABC, Generic[T]):
    """Turn values into bytes-like buffers and back. See the module's docstring for how to write one.

    Attributes:
        name: at most 31 printable ASCII characters, stored with each version and compared by readers.
        type: the type of the values; ``Any`` when nothing is known of it.
        holds: whether a decoded value looks into the segment, so that its version must stay held.

    Concurrency: immutable; one instance serves all threads, and a forked child. Must be picklable and cheap to make.
    """

    name: str
    type: Any = Any
    holds: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if isinstance(name, str) and not (0 < len(name) <= _NAME_MAX and name.isascii() and name.isprintable()):
            raise ValueError(f"a codec's name must be 1 to {_NAME_MAX} printable ASCII characters, got {name!r}")

    @property
    def fingerprint(self) -> bytes:
        """Tell what schema the codec expects: 16 bytes, or b"" when anything goes."""
        return b""

    @property
    def is_typed(self) -> bool:
        """Tell whether the codec checks values against a type: where one does, one that does not may not follow."""
        return bool(self.fingerprint)

    @property
    def type_name(self) -> str:
        """Name the type of the values for people; "" when anything goes."""
        return schema.type_name(self.type)

    def check_frozen(self) -> None:
        """Refuse a type whose decoded values would be mutable; called unless ``freeze=False``.

        Raises:
            ValidationError: naming the path of the offending field.

        Concurrency: pure.
        """
        return

    def encode(self, value: T) -> list[Buffer]:
        """Encode a value as one part. To be overridden; not called by writers.

        Args:
            value: the value.

        Returns:
            Bytes-like, C-contiguous buffers that are written one after the other. May point into ``value``.

        Raises:
            Exception: anything; ``encode_parts`` maps it.

        Concurrency: any thread.
        """
        raise NotImplementedError(f"{type(self).__name__} must override encode and decode, or split and join")

    def decode(self, view: memoryview) -> T:
        """Decode one part. To be overridden; not called by readers.

        Args:
            view: the payload: read-only, one-dimensional bytes in shared memory.

        Returns:
            The value: a full copy if ``holds`` is False.

        Raises:
            Exception: anything; ``decode_parts`` maps it.

        Concurrency: any thread.
        """
        raise NotImplementedError(f"{type(self).__name__} must override encode and decode, or split and join")

    def split(self, value: T) -> list[Part]:
        """Encode a value as its parts, 1 to 16. To be overridden by a codec of several parts.

        Args:
            value: the value.

        Returns:
            The parts, in an order that is always the same; here: one, from ``encode``.

        Raises:
            Exception: anything; ``encode_parts`` maps it.

        Concurrency: any thread.
        """
        return [Part("", self.name, self.encode(value), self.is_typed)]

    def join(self, parts: Sequence[StoredPart]) -> T:
        """Decode a value from its parts. To be overridden by a codec of several parts.

        Args:
            parts: in the order in which ``split`` gave them.

        Returns:
            The value; here: ``decode`` of the only one.

        Raises:
            Exception: anything; ``decode_parts`` maps it.

        Concurrency: any thread.
        """
        if len(parts) != 1:
            raise DecodeError(
                f"expected one part for the {self.name} codec, found {len(parts)}: read it with the codec it was "
                f"published with"
            )
        return self.decode(parts[0].view)

    def encode_parts(self, value: T) -> list[Part]:
        """Encode a value; what a writer calls.

        Args:
            value: the value.

        Returns:
            The parts, each for one segment.

        Raises:
            ValidationError: the value cannot be encoded; says what in it, and where.

        Concurrency: any thread; nobody may change ``value`` meanwhile.
        """
        try:
            return self.split(value)
        except (ValidationError, MemoryError):
            raise
        except RecursionError as exc:
            raise ValidationError(
                f"cannot encode the value with {self.name}: it is nested too deeply, or contains itself"
            ) from exc
        except Exception as exc:
            where = self._locate(value, exc)
            raise ValidationError(f"cannot encode {where} with {self.name}: {_said(exc)}") from exc

    def decode_parts(self, parts: Sequence[StoredPart], *, freeze: bool = False) -> T:
        """Decode a value; what a reader calls.

        Args:
            parts: as they are stored.
            freeze: whether to freeze the value deeply; a value that decodes later freezes then.

        Returns:
            The value.

        Raises:
            DecodeError: the payload is damaged, or does not fit the type; says where.
            CorruptSegmentError: raised by a codec that checks its own structure.

        Concurrency: any thread.
        """
        try:
            value = self.join(parts)
            return frozen.freeze(value) if freeze else value
        except (DecodeError, CorruptSegmentError, CodecMismatchError, MemoryError):
            raise
        except RecursionError as exc:
            raise DecodeError(f"cannot decode {self._expected()}: the payload is nested too deeply") from exc
        except Exception as exc:
            raise DecodeError(f"cannot decode {self._expected()}: {_said(exc)}") from exc

    def check_fits(self, value: T) -> None:
        """Decode what a value would decode later, as far as it may not fit.

        A reader calls this where the writer's schema is another than this codec's: it goes on with the last good value.

        Args:
            value: what ``decode_parts`` returned.

        Raises:
            DecodeError: something in it does not decode.

        Concurrency: any thread.
        """
        self.prove(value)

    def prove(self, value: T) -> None:
        """Decode what a value would decode later: a writer calls this before it publishes.

        Args:
            value: what ``decode_parts`` returned.

        Raises:
            DecodeError: something in it does not decode.

        Concurrency: any thread.
        """

    def check_follows(self, parts: Sequence[StoredPart]) -> None:
        """Refuse to publish after a version whose schema this codec cannot go on with: its readers must not be lost.

        Args:
            parts: of the version that is current.

        Raises:
            DecodeError, CodecMismatchError: it cannot be read with this codec.

        Concurrency: any thread.
        """
        self.prove(self.decode_parts(parts))

    def _expected(self) -> str:
        return f"{self.name} as {self.type_name}" if self.type_name else self.name

    def _locate(self, value: Any, exc: Exception) -> str:  # noqa: ARG002
        # Where in `value` the encoder failed, for the message.
        return "the value"


def _said(exc: Exception) -> str:
    # msgspec's own messages stand alone; of anything else (a hook's KeyError) the class is half of the message.
    known = isinstance(exc, (msgspec.MsgspecError, TypeError, ValueError, OverflowError))
    return f"{exc}" if known and str(exc) else f"{type(exc).__name__}: {exc}"


_Hook = Callable[..., Any]


class MsgspecCodec(Codec[T]):
    """Share what the codecs on top of msgspec have in common. Not a codec by itself: use MsgPack or JSON.

    Args:
        type: what to decode to, which also checks it; ``Any`` (the default) decodes to builtins.
        enc_hook: called with an object that msgspec cannot encode; returns one that it can.
        dec_hook: called as ``dec_hook(type, obj)`` for a type that msgspec does not know; returns the instance.
        strict: False lets msgspec convert between types, such as "1" to 1.

    Raises:
        ValidationError: msgspec does not support the type.
        TypeError: a hook cannot be called.

    Concurrency: immutable; one instance serves all threads. Picklable if the type and the hooks are.
    """

    _encoder: Any
    _decoder: Any
    # msgspec.msgpack or msgspec.json.
    _format: ClassVar[Any]

    @overload
    def __init__(self, *, enc_hook: _Hook | None = ..., dec_hook: _Hook | None = ..., strict: bool = ...) -> None: ...
    @overload
    def __init__(
        self,
        type: TypeForm[T],
        *,
        enc_hook: _Hook | None = ...,
        dec_hook: _Hook | None = ...,
        strict: bool = ...,
    ) -> None: ...
    def __init__(
        self,
        type: Any = Any,  # noqa: A002
        *,
        enc_hook: _Hook | None = None,
        dec_hook: _Hook | None = None,
        strict: bool = True,
    ) -> None:
        # "No type", as in type=None of a Reader; a store of nothing but None would be of no use.
        self.type = Any if type is None else type
        self.enc_hook = enc_hook
        self.dec_hook = dec_hook
        self.strict = strict
        for name, hook in (("enc_hook", enc_hook), ("dec_hook", dec_hook)):
            if hook is not None and not callable(hook):
                raise TypeError(f"{name} must be callable, got {hook.__class__.__name__}")
        self._encoder = self._format.Encoder(enc_hook=enc_hook)
        try:
            self._decoder = self._format.Decoder(self.type, dec_hook=dec_hook, strict=strict)
        except Exception as exc:
            raise schema.unsupported(self.type, exc) from exc
        self._aliases: bool | None = None
        self._fields = schema.field_names(self.type)

    @property
    def fingerprint(self) -> bytes:
        """Tell what schema the codec expects: 16 bytes, or b"" for ``Any``."""
        return schema.fingerprint(self.type)

    @property
    def is_typed(self) -> bool:
        """Tell whether there is a type: only ``Any`` has no fingerprint."""
        return self.type is not Any

    def check_frozen(self) -> None:
        """Refuse a type with a mutable Struct, dataclass or attrs class in it.

        Raises:
            ValidationError: naming the path of the offending field.

        Concurrency: pure; the answer is cached by type.
        """
        frozen.check_frozen(self.type)

    def encode(self, value: T) -> list[Buffer]:
        """Encode a value as one buffer.

        Args:
            value: the value.

        Returns:
            One bytes object, in a list.

        Raises:
            Exception: what msgspec or ``enc_hook`` raises; ``encode_parts`` maps it.

        Concurrency: any thread.
        """
        self._check_kind(value)
        return [self._encoder.encode(value)]

    def decode(self, view: memoryview) -> T:
        """Decode a value, all of it copied out of the view.

        Args:
            view: the payload.

        Returns:
            The value.

        Raises:
            Exception: what msgspec or ``dec_hook`` raises; ``decode_parts`` maps it.

        Concurrency: any thread.
        """
        if self._aliases is None:
            self._aliases = _aliases(self.type)
        # A memoryview or msgspec.Raw in the type would point into the payload: let it point into a copy.
        value: T = self._decoder.decode(bytes(view) if self._aliases else view)
        return value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type_name})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, MsgspecCodec)
        return self._state() == other._state()

    def __hash__(self) -> int:
        try:
            return hash((self.name, self.type))
        except TypeError:
            # The type may be an Annotated with a dict in it.
            return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (type(self), *self._state())

    def _state(self) -> tuple[Any, ...]:
        return self.type, self.enc_hook, self.dec_hook, self.strict

    def _locate(self, value: Any, exc: Exception) -> str:
        path = "$"
        # Down into the first child that fails in the same way, as far as there is one.
        for _ in range(200):
            for step, child in frozen.children(value):
                if type(self._failure(child)) is type(exc):
                    path, value = path + step, child
                    break
            else:
                break
        return f"`{path}` ({schema.type_name(type(value))})"

    def _check_kind(self, value: Any) -> None:
        # A value of another class encodes as a map, and decodes as this one with nothing but defaults.
        if self._fields is None or isinstance(value, self.type):
            return
        expected = schema.type_name(self.type)
        if not isinstance(value, dict):
            raise ValidationError(f"expected a value of the type {expected}, found {schema.type_name(type(value))}")
        unknown = [key for key in value if key not in self._fields]
        if unknown:
            raise ValidationError(
                f"{expected} has no field {unknown[0]!r}: its fields are {', '.join(sorted(self._fields))}"
            )

    def _failure(self, value: Any) -> Exception | None:
        try:
            self._encoder.encode(value)
        except Exception as exc:
            return exc
        return None


def _remake(cls: Any, type: Any, enc_hook: Any, dec_hook: Any, strict: bool) -> Any:  # noqa: A002
    return cls(type, enc_hook=enc_hook, dec_hook=dec_hook, strict=strict)


def _aliases(tp: Any) -> bool:
    if tp is Any:
        return False
    todo = [schema.inspect_type(tp)]
    seen: set[int] = set()
    while todo:
        info = todo.pop()
        if id(info) in seen:
            continue
        seen.add(id(info))
        if isinstance(info, (msgspec.inspect.MemoryViewType, msgspec.inspect.RawType)):
            return True
        todo += schema.parts_of(info)
        todo += [field.type for field in getattr(info, "fields", ())]
    return False
