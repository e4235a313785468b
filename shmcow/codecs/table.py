"""Tables: mappings whose keys are looked up in shared memory, where they lie; nobody decodes the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, overload

from typing_extensions import Buffer, TypeForm, TypeVar

from shmcow import _core, schema
from shmcow.codecs.base import Codec, StoredPart
from shmcow.codecs.msgpack import MsgPack
from shmcow.codecs.values import decoding, scalars_of
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError, ValidationError
from shmcow.frozen import thaw
from shmcow.words import counted

__all__ = ["Table", "TableView"]

K = TypeVar("K")
V = TypeVar("V", default=Any)
D = TypeVar("D")

_KINDS: Final = {str: 1, bytes: 2, int: 3}  # as in csrc/shmcow_table.h
# Which values C decodes itself (csrc/core_values.h). Everything else is msgspec's.


class _Values(ValuesView[V]):
    def __iter__(self) -> Iterator[V]:
        table: Any = self._mapping  # type: ignore[attr-defined]
        return iter(table._walk_values())

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)


class _Items(ItemsView[K, V]):
    def __iter__(self) -> Iterator[tuple[K, V]]:
        table: Any = self._mapping  # type: ignore[attr-defined]
        return iter(table._walk_items())


# Lookups go straight into C, as long as nothing in here overrides __getitem__, __contains__, __len__ or get.
class TableView(_core.Table, Mapping[K, V]):
    """A table of one version: an immutable mapping that is looked up in shared memory. Readers of a ``Table`` get it.

    It behaves as a dict that cannot be changed: ``t[key]``, ``get``, ``in``, ``len``, ``==``, ``keys``, ``values`` and
    ``items`` in the order in which the rows were published; an unhashable key raises TypeError, and True and 1.0 find
    the key 1. It is unhashable.

    A value is decoded when it is asked for, and frozen, unless the Reader has ``freeze=False``. Some decoded values
    are kept for each view, so what is used often is the same object each time (a scalar that only one row has: from the
    second time on): 256 of any size (of 16 MiB together), and up to 4,096 that take 256 KiB together. What is no text
    and no number counts by its encoded length there, and takes four to eight times that. So the memory that a process
    needs for itself stays small, however much it looks up.

    The view keeps its version held, and its memory mapped: whoever took it has one consistent version as long as it
    lives. It is not pickled: send its Snapshot. ``copy.deepcopy`` and ``to_dict`` give dicts, with all rows in the
    memory of this process.

    Raises:
        KeyError: a key is not there.
        DecodeError: a value is not of the type that this reader expects.
        CorruptSegmentError: the segment was overwritten from outside.

    Concurrency: immutable; one view serves all threads, and forked children.
    """

    __slots__ = ("__weakref__",)

    if TYPE_CHECKING:

        def __getitem__(self, key: K, /) -> V: ...
        def __iter__(self) -> Iterator[K]: ...  # type: ignore[override]
        @overload
        def get(self, key: K, default: None = None) -> V | None: ...
        @overload
        def get(self, key: K, default: V | D) -> V | D: ...
        def get(self, key: Any, default: Any = None) -> Any: ...
        @overload
        def get_many(self, keys: Iterable[K], default: None = None) -> list[V | None]: ...
        @overload
        def get_many(self, keys: Iterable[K], default: D) -> list[V | D]: ...
        def get_many(self, keys: Iterable[Any], default: Any = None) -> list[Any]: ...
        def longest_prefix(self, text: K, /) -> tuple[K, V] | None: ...

    def keys(self) -> KeysView[K]:
        """Return a set-like view of the keys, in the order of the rows."""
        return KeysView(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values, in the order of the rows; equal ones come as often as they were published."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """Return a set-like view of the pairs of key and value, in the order of the rows."""
        return _Items(self)

    def to_dict(self) -> dict[K, V]:
        """Return a dict of all rows: keys and decoded values in the memory of this process; the values stay frozen."""
        return dict(self._walk_items())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        if len(self) != len(other):
            return False
        missing = object()
        for key, value in self._walk_items():
            found = other.get(key, missing)
            if found is not value and not (found is not missing and found == value):
                return False
        return True

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<TableView of {counted(len(self), 'row')}, keys of {self._kind}>"

    def __copy__(self) -> TableView[K, V]:
        return self

    def __deepcopy__(self, memo: object) -> dict[K, V]:
        return {key: thaw(value) for key, value in self._walk_items()}

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TableView cannot be pickled: send its Snapshot, or to_dict()")


class Table(Codec[Mapping[K, V]], Generic[K, V]):
    """Publish a mapping that readers look up in shared memory, without decoding it: reference data of any size.

    A reader gets a TableView. A lookup costs about what it costs in a dict, and all processes share one copy. Equal
    values are stored once. Beside its key and value a row takes 17 to 35 bytes. A lookup is fastest, and waits for
    memory once, where keys are of like length and short; a value of its own that is short lies beside its key.

    What is published is a mapping, or an iterable of pairs ``(key, value)``, such as a generator: it is encoded row by
    row, so that the rows need not be in memory as Python objects at the same time. The order is kept. Each different
    value is decoded once with its type before anything is published. What the iterable itself raises passes as it is.

    A table is published as a whole. ``Writer.update(lambda old: {**old, "de": 1})`` works: it builds the table anew.
    ``Writer.edit`` and ``Writer.patch`` refuse it. To change a small part beside a large table, use a ``Bundle``.

    Args:
        key: what the keys are: ``str``, ``bytes`` or ``int`` (of -2**63 to 2**64 - 1). Left out, the codec only reads,
            whatever the keys are.
        value: the type of the values, or a ``MsgPack`` codec for them, which may have hooks.

    Raises:
        TypeError: the keys are of another type, or the values' codec is none.
        ValidationError: msgspec does not support the values' type.

    Concurrency: immutable; one instance serves all threads. Picklable if the values' type and hooks are.

    Example:
        >>> from shmcow import Reader, Table, Writer
        >>> countries = Table(key=str, value=str)
        >>> with Writer("doc-table", codec=countries) as w:
        ...     w.publish({"de": "Germany", "fr": "France"})
        ...     view = Reader("doc-table", codec=countries).get()
        ...     print(view["de"], len(view), view.get("xx"), view.longest_prefix("fr-CA"))
        ...     w.destroy()
        1
        Germany 2 None ('fr', 'France')
    """

    name = "table"
    holds = True

    @overload
    def __init__(self: Table[Any, Any]) -> None: ...
    @overload
    def __init__(self, *, key: type[K]) -> None: ...
    @overload
    def __init__(self, *, key: type[K], value: MsgPack[V]) -> None: ...
    @overload
    def __init__(self, *, key: type[K], value: TypeForm[V]) -> None: ...
    def __init__(self, *, key: Any = Any, value: Any = Any) -> None:
        if key is not Any and key not in _KINDS:
            raise TypeError(f"key= is str, bytes or int: the type of the keys, found {key!r}")
        if isinstance(value, Codec) and not isinstance(value, MsgPack):
            raise TypeError(
                f"the values of a table are MessagePack: value= is a type or a MsgPack(...), found {value!r}"
            )
        self.key = key
        self.values: MsgPack[Any] = value if isinstance(value, MsgPack) else MsgPack(value)
        self._scalars = scalars_of(self.values)
        self._encode = _encoding(self.values)

    @property
    def fingerprint(self) -> bytes:
        """Tell what schema the codec expects: 16 bytes; b"" for a codec that only reads."""
        if self.key is Any:
            return b""
        text = f"table:{self.key.__name__}:{self.values.fingerprint.hex()}"
        return schema.digest(text.encode())

    @property
    def type_name(self) -> str:
        """Name the types for people, as in ``Table[str, app.Country]``."""
        if self.key is Any:
            return ""
        return f"Table[{self.key.__name__}, {self.values.type_name or 'Any'}]"

    def check_frozen(self) -> None:
        """Refuse a type whose decoded values would be mutable.

        Raises:
            ValidationError: naming the path of the offending field.

        Concurrency: pure.
        """
        self.values.check_frozen()

    def encode(self, value: Any) -> list[Buffer]:
        """Lay out a table.

        Args:
            value: a mapping, or an iterable of pairs.

        Returns:
            One buffer, in a list.

        Raises:
            ValidationError: a row is no pair, a key is of the wrong type, out of range or repeated, or a value does not
                encode; says which row, counted from 1, and which key.
            Exception: what the iterable raises.

        Concurrency: any thread; other threads go on meanwhile.
        """
        if self.key is Any:
            raise ValidationError("name the type of the keys to publish a table: Table(key=str, value=...)")
        if isinstance(value, TableView) and self._is_ours(value):
            return [value._data]  # as it lies there
        rows = value.items() if isinstance(value, Mapping) else value
        if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes, bytearray, memoryview)):
            raise ValidationError(
                "a table is published from a mapping, or an iterable of pairs (key, value), found "
                f"{schema.type_name(type(value))}"
            )
        builder = _core.TableBuilder(_KINDS[self.key], self.values.fingerprint, int.from_bytes(os.urandom(8)))
        try:
            builder.extend(rows, self._encode)
        except MemoryError:
            raise  # it is not the row's fault
        except Exception as exc:
            if builder.failed is None:
                raise
            self._refuse(*builder.failed, exc)
        builder.finish()
        return [builder]

    def encode_parts(self, value: Any) -> list[Any]:
        """Lay out a table; what a writer calls.

        Args, Raises, Concurrency: as ``encode``.

        Returns:
            One part.
        """
        return self.split(value)

    def decode_parts(self, parts: Sequence[StoredPart], *, freeze: bool = False) -> TableView[K, V]:
        """View a table; a value is decoded when it is asked for.

        Args:
            parts: one, as it is stored.
            freeze: whether values are frozen when they are decoded.

        Returns:
            The view, which holds on to the part's memory.

        Raises:
            CodecMismatchError: its keys are of another type, or a release with another format of tables made it.
            CorruptSegmentError: it is no table, or contradicts itself.

        Concurrency: any thread.
        """
        if len(parts) != 1:
            raise DecodeError(f"expected one part for the table codec, found {len(parts)}")
        view: TableView[K, V] = TableView(parts[0].view, decoding(self.values, freeze), self._scalars)
        if self.key is not Any and view._kind != self.key.__name__:
            raise CodecMismatchError(
                f"the keys of the table are of the type {view._kind}, expected {self.key.__name__}: give reader and "
                f"writer the same Table(key=...)"
            )
        return view

    def prove(self, value: Any) -> None:
        """Look at every row, and decode each different value once.

        Raises:
            DecodeError: a value does not decode; says which row, counted from 1, and which key.
            CorruptSegmentError: the table contradicts itself.

        Concurrency: any thread; other threads go on meanwhile.
        """
        found = value._prove()
        if found is not None:
            row, key, exc = found
            kind = type(exc) if isinstance(exc, (DecodeError, CorruptSegmentError)) else DecodeError
            raise kind(f"row {row}, key {_shown(key)}: {exc}") from exc

    def check_fits(self, value: Any) -> None:
        """Decode each different value once, unless they were published with this very type.

        Raises:
            DecodeError: a value does not decode.

        Concurrency: any thread.
        """
        if self.values.is_typed and not self._is_ours(value):
            self.prove(value)

    def check_follows(self, parts: Sequence[StoredPart]) -> None:
        """Refuse to publish after a table of other keys, or of values that do not fit this type.

        Raises:
            CodecMismatchError, DecodeError: says what does not fit.

        Concurrency: any thread.
        """
        view = self.decode_parts(parts)
        if any(view._schema) and not self.values.fingerprint:
            raise CodecMismatchError("its values have a type, and this codec has none to check values with: name it")
        self.prove(view)

    def _is_ours(self, view: TableView[Any, Any]) -> bool:
        return view._kind == self.key.__name__ and view._schema.strip(b"\0") == self.values.fingerprint.strip(b"\0")

    def _refuse(self, row: int, key: Any, value: Any, exc: Exception) -> NoReturn:
        where = f"row {row}, key {_shown(key)}"
        try:
            self.values.encode_parts(value)
        except ValidationError as better:
            raise ValidationError(f"{where}: {better}") from exc
        raise ValidationError(f"{where}: the value cannot be encoded: {type(exc).__name__}: {exc}") from exc

    def __repr__(self) -> str:
        if self.key is Any:
            return "Table()"
        return f"Table(key={self.key.__name__}, value={self.values.type_name or 'Any'})"

    def __eq__(self, other: object) -> bool:
        return (self.key, self.values) == (other.key, other.values) if type(other) is Table else NotImplemented

    def __hash__(self) -> int:
        return hash((self.name, self.key, self.values))

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.key, self.values)


def _remake(key: Any, values: MsgPack[Any]) -> Table[Any, Any]:
    return Table(key=key, value=values)


def _shown(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 80 else text[:80] + "…"


def _encoding(codec: MsgPack[Any]) -> Callable[[Any], bytes]:
    if codec._fields is None:
        encode: Callable[[Any], bytes] = codec._encoder.encode
        return encode
    return lambda value: codec.encode(value)[0]  # type: ignore[return-value]
