"""Several parts, one version: they change together, in one flip, and what did not change is shared."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from shmcow import _core, schema
from shmcow.codecs.base import Codec, Part, StoredPart
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError, ValidationError
from shmcow.frozen import thaw

__all__ = ["Bundle", "BundleView"]

_NAME_BYTES: Final = 32  # room for a part's name in a generation's entry


class _Lazy(NamedTuple):
    """A part that is decoded when it is asked for."""

    codec: Codec[Any]
    stored: StoredPart
    freeze: bool

    def decode(self) -> Any:
        return self.codec.decode_parts([self.stored], freeze=self.freeze)


class BundleView:
    """The parts of one version, as attributes: ``view.config``, ``view.geo``. Each is decoded at its first use.

    Immutable. It keeps its version held, so whoever took it has parts that belong together as long as it lives.
    Names with an underscore are methods, as in a named tuple; ``name in view``, ``len(view)`` and ``iter(view)`` are
    about the parts' names.

    Concurrency: any thread; a part is the same object for all of them.
    """

    __slots__ = ("__dict__", "__weakref__", "_shmcow_parts")

    _shmcow_parts: dict[str, _Lazy | None]  # all of them, in their order; None: `known` has it

    def __init__(self, parts: dict[str, _Lazy | None], known: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_shmcow_parts", parts)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        lazy = self._shmcow_parts.get(name)
        if lazy is None:
            raise AttributeError(f"this version has no part {name!r}: it has {', '.join(self)}")
        return self.__dict__.setdefault(name, _decode_part(name, lazy))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(
            "a bundle is an immutable snapshot, shared by all threads: change a part with "
            f"Writer.publish_parts({name}=...)"
        )

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BundleView):
            return NotImplemented
        return self is other or (set(self) == set(other) and all(_equal(self, other, name) for name in self))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<BundleView of {', '.join(self)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a BundleView cannot be pickled: send its Snapshot, or a part of it")

    def __copy__(self) -> BundleView:
        return self

    def __deepcopy__(self, memo: object) -> dict[str, Any]:
        return {name: thaw(value) for name, value in self._asdict().items()}

    @property
    def _fields(self) -> tuple[str, ...]:
        """The names of the parts, in their order."""
        return tuple(self._shmcow_parts)

    def _codec_of(self, name: str) -> str:
        """Name the codec that a part was published with; "" for one that was not."""
        lazy = self._shmcow_parts[name]
        return lazy.codec.name if lazy is not None else ""

    def _asdict(self) -> dict[str, Any]:
        """Return all parts by name, decoded."""
        return {name: getattr(self, name) for name in self}

    def _replace(self, /, **changes: Any) -> BundleView:
        """Return a bundle with other values for some parts, as ``Writer.update`` wants it; the rest is shared.

        Raises:
            ValidationError: a part is unknown.
        """
        for name in changes:
            if name not in self:
                raise ValidationError(f"there is no part {name!r}: the parts are {', '.join(self)}")
        parts = {name: None if name in changes else lazy for name, lazy in self._shmcow_parts.items()}
        return BundleView(parts, {**self.__dict__, **changes})


def _equal(view: BundleView, other: BundleView, name: str) -> bool:
    ours, theirs = getattr(view, name), getattr(other, name)
    return ours is theirs or bool(ours == theirs)


def _decode_part(name: str, lazy: _Lazy) -> Any:
    try:
        return lazy.decode()
    except (DecodeError, CodecMismatchError, CorruptSegmentError) as exc:
        raise type(exc)(f"part {name!r}: {exc}") from exc


def _each(view: BundleView, check: Callable[[_Lazy, Any], None]) -> None:
    """Decode each part, and check it."""
    for name, lazy in view._shmcow_parts.items():
        if lazy is None:  # replaced, and not published yet
            continue
        part = getattr(view, name)
        try:
            check(lazy, part)
        except (DecodeError, CodecMismatchError, CorruptSegmentError) as exc:
            raise type(exc)(f"part {name!r}: {exc}") from exc


class Bundle(Codec[Any]):
    """Publish several parts as one version, each with a codec of its own.

    All of them change in one flip; a version shares the segments of the parts that did not change with the one before,
    so ``Writer.publish_parts(config=...)`` beside a large table costs what the config costs. Readers get a BundleView;
    one that declares fewer parts than were published sees those.

    Args:
        codecs: a codec for each part, by name: at most 16 parts. A name is an identifier of at most 32 bytes that does
            not begin with an underscore. ``Bundle()``, of no parts, is for readers: it sees whatever there is, plain.

    Raises:
        ValueError: a bad name, or too many parts.
        TypeError: what should be a codec is none, or is a Bundle itself.

    Concurrency: immutable; one instance serves all threads. Picklable if its codecs are.

    Example:
        >>> from shmcow import Bundle, MsgPack, Raw, Writer
        >>> with Writer("doc-bundle", codec=Bundle(config=MsgPack(), blob=Raw())) as w:
        ...     w.publish({"config": {"timeout": 1.5}, "blob": b"much"})
        ...     w.publish_parts(config={"timeout": 2.0})
        ...     view = w.snapshot().value
        ...     print(view.config["timeout"], bytes(view.blob))
        ...     w.destroy()
        1
        2
        2.0 b'much'
    """

    name = "bundle"
    holds = True

    def __init__(self, /, **codecs: Codec[Any]) -> None:
        if len(codecs) > _core.MAX_SEGMENTS:
            raise ValueError(f"a bundle has 1 to {_core.MAX_SEGMENTS} parts, found {len(codecs)}")
        for name, codec in codecs.items():
            _check_part_name(name)
            if not isinstance(codec, Codec):
                raise TypeError(f"part {name!r} needs a codec object such as MsgPack(Config), found {codec!r}")
            if isinstance(codec, Bundle):
                raise TypeError(f"part {name!r} is itself a Bundle: name all parts in one Bundle")
        self.codecs: Mapping[str, Codec[Any]] = dict(codecs)

    @property
    def fingerprint(self) -> bytes:
        """Tell what schema the codec expects: 16 bytes; of the parts' names, codecs and schemas, in any order."""
        lines = [f"{name}:{codec.name}:{codec.fingerprint.hex()}" for name, codec in sorted(self.codecs.items())]
        return schema.digest("\n".join(lines).encode())

    @property
    def is_typed(self) -> bool:
        """Tell whether any part checks its values against a type."""
        return any(codec.is_typed for codec in self.codecs.values())

    @property
    def type_name(self) -> str:
        """Name the parts for people."""
        shown = [f"{name}={codec.type_name or codec.name}" for name, codec in self.codecs.items()]
        return f"Bundle({', '.join(shown)})"

    def check_frozen(self) -> None:
        """Refuse a part whose decoded values would be mutable.

        Raises:
            ValidationError: naming the path of the offending field.

        Concurrency: pure.
        """
        for codec in self.codecs.values():
            codec.check_frozen()

    def split(self, value: Any) -> list[Part]:
        """Encode the parts.

        Args:
            value: a mapping of part names to values, or a BundleView (from a snapshot, or its ``_replace``).

        Returns:
            The parts, in the order of the codecs.

        Raises:
            ValidationError: a part is missing, unknown, or does not encode.

        Concurrency: any thread.
        """
        if not isinstance(value, Mapping | BundleView):
            raise ValidationError(
                f"a bundle is published from a mapping of part names to values, found {type(value).__name__}"
            )
        self._check_names(value)
        missing = [name for name in self.codecs if name not in value]
        if missing:
            raise ValidationError(f"the part {missing[0]!r} is missing: a bundle is published with all its parts")
        return [self._encode_part(name, value) for name in self.codecs]

    def encode_parts(self, value: Any) -> list[Part]:
        """Encode the parts; what a writer calls. What a part's rows raise when they are read passes as it is.

        Args, Returns, Raises, Concurrency: as ``split``.
        """
        return self.split(value)

    @classmethod
    def like(cls, parts: Iterable[StoredPart]) -> Bundle:
        """Return a Bundle of built-in codecs for what was published, as a tool does that finds it in a store.

        Raises:
            CodecMismatchError: a part's codec is not built in.

        Concurrency: pure.
        """
        from shmcow.codecs import for_name  # which imports this module

        return cls(**{part.name: for_name(part.codec) for part in parts})

    def only(self, names: Iterable[str]) -> Bundle:
        """Return a Bundle of some of the parts.

        Raises:
            ValidationError: a part is unknown, or none is named.

        Concurrency: pure.
        """
        wanted = list(names)
        self._check_names(wanted)
        if not wanted:
            raise ValidationError(f"name at least one part to publish: the parts are {', '.join(self.codecs)}")
        return Bundle(**{name: codec for name, codec in self.codecs.items() if name in wanted})

    def _check_names(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self.codecs]
        if unknown:
            raise ValidationError(f"there is no part {unknown[0]!r}: the parts are {', '.join(self.codecs)}")

    def _encode_part(self, name: str, value: Mapping[str, Any] | BundleView) -> Part:
        codec = self.codecs[name]
        if isinstance(value, BundleView):
            lazy = value._shmcow_parts.get(name)
            if lazy is not None and lazy.stored.codec == codec.name:
                return Part(name, codec.name, [lazy.stored.view], codec.is_typed)  # as it lies there, decoded or not
            try:
                inner = getattr(value, name)
            except (DecodeError, CodecMismatchError, CorruptSegmentError) as exc:
                raise ValidationError(f"the value would not be readable: {exc}") from exc
        else:
            inner = value[name]
        try:
            (part,) = codec.encode_parts(inner)
        except ValidationError as exc:
            raise ValidationError(f"part {name!r}: {exc}") from exc
        return part._replace(name=name)

    def decode_parts(self, parts: Sequence[StoredPart], *, freeze: bool = False) -> BundleView:
        """View the parts; each is decoded when it is asked for.

        Args:
            parts: as they are stored.
            freeze: whether the parts' values are frozen.

        Returns:
            The view.

        Raises:
            CodecMismatchError: a part is missing, or was published with another codec.

        Concurrency: any thread.
        """
        stored = {part.name: part for part in parts}
        lazy: dict[str, _Lazy | None] = {}
        for name, codec in (self.codecs or Bundle.like(parts).codecs).items():
            part = stored.get(name)
            if part is None:
                raise CodecMismatchError(
                    f"there is no part {name!r} in it, only {', '.join(map(repr, stored))}: publish a version with all "
                    "parts, or read it without that one"
                )
            if part.codec != codec.name:
                raise CodecMismatchError(
                    f"part {name!r} was published with the codec {part.codec!r}, expected {codec.name!r}: give reader "
                    "and writer the same codecs"
                )
            lazy[name] = _Lazy(codec, part, freeze)
        return BundleView(lazy, {})

    def prove(self, value: BundleView) -> None:
        """Decode all parts.

        Raises:
            DecodeError: one does not decode.

        Concurrency: any thread.
        """
        _each(value, lambda lazy, part: lazy.codec.prove(part))

    def check_fits(self, value: BundleView) -> None:
        """Decode the parts, as far as they may not fit.

        Raises:
            DecodeError: one does not decode.

        Concurrency: any thread.
        """
        _each(value, lambda lazy, part: lazy.codec.check_fits(part))

    def check_follows(self, parts: Sequence[StoredPart]) -> None:
        """Refuse to change a part to what its readers cannot read. New parts are welcome, and unknown ones stay.

        Raises:
            CodecMismatchError, DecodeError: says which part.

        Concurrency: any thread.
        """
        ours = [part for part in parts if part.name in self.codecs]
        for part in ours:
            if part.typed and not self.codecs[part.name].is_typed:
                raise CodecMismatchError(
                    f"its part {part.name!r} was published with a type, and here it has none to check values with: "
                    "give its codec the type"
                )
        if ours:
            there = self.only(part.name for part in ours)
            there.prove(there.decode_parts(ours))

    def __repr__(self) -> str:
        return f"Bundle({', '.join(f'{name}={codec!r}' for name, codec in self.codecs.items())})"

    def __eq__(self, other: object) -> bool:
        return self.codecs == other.codecs if isinstance(other, Bundle) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, *self.codecs))

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (dict(self.codecs),)


def _remake(codecs: dict[str, Codec[Any]]) -> Bundle:
    return Bundle(**codecs)


def _check_part_name(name: str) -> None:
    if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name) or len(name.encode()) > _NAME_BYTES:
        raise ValueError(
            f"bad part name {name!r}: expected an identifier that does not begin with an underscore, of at most "
            f"{_NAME_BYTES} bytes"
        )
