"""Tables of IP ranges, looked up in shared memory."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, NoReturn, TypeAlias, overload

from typing_extensions import Buffer, TypeForm, TypeVar

from shmcow import _core, frozen, schema
from shmcow.codecs.base import Codec, Part, StoredPart
from shmcow.codecs.iprows import Column, FileRows, from_csv, from_mmdb
from shmcow.codecs.msgpack import MsgPack
from shmcow.codecs.values import decoding, scalars_of
from shmcow.errors import DecodeError, ShmcowError, ValidationError
from shmcow.words import counted

__all__ = ["IPTable", "IPTableView"]

V = TypeVar("V", default=Any)

_log = logging.getLogger("shmcow")

_Overlaps: TypeAlias = Literal["refuse", "drop"]
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_NETWORKS: Final = (ipaddress.IPv4Network, ipaddress.IPv6Network)
_INTERFACES: Final = (ipaddress.IPv4Interface, ipaddress.IPv6Interface)


class IPTableView(_core.IPTable[V], Generic[V]):
    """Look up IP addresses in a version of a table, in shared memory: nothing is copied but the values asked for.

    ``t[ip]`` (KeyError if no row covers it), ``t.get(ip, default)``, ``ip in t``, ``t.get_many(ips)``,
    ``t.network_of(ip)``. An address is text, an ``IPv4Address`` or ``IPv6Address``, or its 4 or 16 packed bytes. The
    most specific row answers. An IPv4 address written as an IPv6 one (``::ffff:192.0.2.1``) finds the rows of IPv4, and
    those only. A scope id (``fe80::1%eth0``) is not looked at.

    ``len(t)`` is the number of rows; iterating yields them as ``rows()`` does. Equal if the rows are. Immutable; it
    keeps its version held as long as it lives. ``copy.deepcopy`` makes a plain list of the rows.

    Values are decoded when they are asked for, and up to 4,096 distinct ones are kept, as in a TableView: asking again
    yields the same object.

    Raises:
        ValueError: a text is no IP address, or the bytes are not 4 or 16, also in ``in`` and ``get``.
        TypeError: the address is of another type.
        DecodeError: a value does not decode to the type.
        CorruptSegmentError: the table was overwritten from outside.

    Concurrency: any thread; a forked child may go on with it. It cannot be pickled: send its Snapshot.
    """

    __slots__ = ("__weakref__", "_codec")

    _codec: MsgPack[V]

    def rows(self) -> Iterator[tuple[_Address, _Address, V]]:
        """Iterate over the rows in the order of their addresses, IPv4 first, a network before what is nested in it.

        Yields:
            (first address, last address, value).

        Raises:
            DecodeError, CorruptSegmentError: as lookups do.

        Concurrency: any thread.
        """
        for k in range(len(self)):
            yield self._row(k)

    def __iter__(self) -> Iterator[tuple[_Address, _Address, V]]:
        return self.rows()

    def to_dict(self) -> dict[str, V]:
        """Copy the table into a plain dict.

        Returns:
            The values by "network/bits", or by "first-last" where a range is no network.

        Raises:
            DecodeError, CorruptSegmentError: as lookups do.

        Concurrency: any thread.
        """
        return {range_text(first, last): frozen.thaw(value) for first, last, value in self.rows()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IPTableView):
            return NotImplemented
        if self._codec == other._codec and _core.same(self._view, other._view):
            return True
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<IPTableView of {counted(len(self), 'row')}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an IPTableView cannot be pickled: send its Snapshot, or to_dict()")

    def __copy__(self) -> IPTableView[V]:
        return self

    def __deepcopy__(self, memo: object) -> list[tuple[_Address, _Address, V]]:
        return [(first, last, frozen.thaw(value)) for first, last, value in self.rows()]


class IPTable(Codec[Any], Generic[V]):  # Any: published are rows, read is an IPTableView
    """Publish a table from IP ranges to values; readers look addresses up in shared memory, without decoding the table.

    Published from an iterable of rows, ``(network, value)`` or ``(first, last, value)``, or from a mapping of networks
    to values; rows are taken one by one, so a generator of millions needs no list. Addresses are text or objects of the
    ``ipaddress`` module, IPv4 and IPv6 together. Readers get an IPTableView.

    - Rows may come in any order, and nest: the most specific one answers. Ranges that overlap without nesting, and the
      same range twice, are refused (see ``overlaps``).
    - A network has no host bits set. A lone address is a network of one.
    - A row within ``::ffff:0:0/96`` is the IPv4 row that it maps. Any other IPv6 row, ``::/0`` too, answers for no IPv4
      address, however that is written. Scope ids are dropped.
    - Equal values are stored once.

    Args:
        value: the type of the values, or a ``MsgPack`` codec for them; ``Any`` (the default) decodes to builtins.
        overlaps: what a writer does with ranges that overlap without nesting, and with a range that comes twice:
            "refuse" the table and name two of them, or "drop" the row that begins later (of the same range the one that
            came later) and log how many; geo-IP files as they come have a few.

    Raises:
        ValidationError: msgspec does not support the type.
        TypeError: ``value`` is a codec, and not MsgPack.
        ValueError: ``overlaps`` is something else.

    Concurrency: immutable; one instance serves all threads. Picklable if the type is.

    Source: text of addresses and networks as in Python's ipaddress module (RFC 4291, RFC 4632); values are MessagePack
    (msgpack.org). The format of the segment is in csrc/shmcow_iptable.h.

    Example:
        >>> from shmcow import IPTable, Reader, Writer
        >>> rows = [("10.0.0.0/8", "site"), ("10.1.0.0/16", "lab"), ("2001:db8::", "2001:db8::ff", "test")]
        >>> with Writer("doc-iptable", codec=IPTable(str), initial=rows) as w:
        ...     table = Reader("doc-iptable", codec=IPTable(str)).get()
        ...     print(table["10.1.2.3"], table.get("192.0.2.1", "unknown"), "2001:db8::7" in table)
        ...     print(*table.network_of("10.9.9.9"))
        ...     w.destroy()
        lab unknown True
        10.0.0.0 10.255.255.255
    """

    name = "iptable"
    holds = True

    @overload
    def __init__(self, *, overlaps: _Overlaps = ...) -> None: ...
    @overload
    def __init__(self, value: TypeForm[V] | MsgPack[V], *, overlaps: _Overlaps = ...) -> None: ...
    def __init__(self, value: Any = Any, *, overlaps: _Overlaps = "refuse") -> None:
        if overlaps not in ("refuse", "drop"):
            raise ValueError(f"overlaps is 'refuse' or 'drop', found {overlaps!r}")
        self.overlaps = overlaps
        if isinstance(value, Codec) and not isinstance(value, MsgPack):
            raise TypeError(
                f"the values of a table are stored as msgpack: give a type or MsgPack(...), found {value!r}"
            )
        self.value: MsgPack[Any] = value if isinstance(value, MsgPack) else MsgPack(value)

    @property
    def fingerprint(self) -> bytes:
        """Tell what schema the codec expects: 16 bytes, or b"" when anything goes."""
        inner = self.value.fingerprint
        return schema.digest(b"iptable:" + inner) if inner else b""

    @property
    def type_name(self) -> str:
        """Name the type of the values for people."""
        inner = self.value.type_name
        return f"IPTable[{inner}]" if inner else ""

    def check_frozen(self) -> None:
        """Refuse a type of values that would be mutable.

        Raises:
            ValidationError: naming the path of the offending field.

        Concurrency: pure.
        """
        self.value.check_frozen()

    def encode(self, value: Any) -> list[Buffer]:
        """Build a table.

        Args:
            value: an iterable of rows, a mapping of networks, or an IPTableView, which is taken as it lies there.

        Returns:
            One buffer, in a list.

        Raises:
            ValidationError: a row is malformed, or clashes with another; it says which, counted from 1, or the line.

        Concurrency: any thread; nobody else may use the iterable meanwhile.
        """
        if isinstance(value, IPTableView) and value._codec == self.value:
            return [value._view]
        if isinstance(value, Mapping):
            value = value.items()
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise ValidationError(
                "a table is published from rows, (network, value) or (first, last, value), or from a mapping of "
                f"networks, found {type(value).__name__}"
            )
        return [_build(self, value)]

    def encode_parts(self, value: Any) -> list[Part]:
        """Build a table; what a writer calls. What the iterable itself raises passes as it is.

        Args, Returns, Raises, Concurrency: as ``encode``.
        """
        return self.split(value)

    def decode(self, view: memoryview) -> IPTableView[V]:
        """View a table; its values are not frozen.

        Args:
            view: the payload.

        Returns:
            The view.

        Raises:
            CodecMismatchError: a release with another format of tables made it.
            CorruptSegmentError: the table contradicts itself.

        Concurrency: any thread.
        """
        return self._open(view, False)

    def decode_parts(self, parts: Sequence[StoredPart], *, freeze: bool = False) -> IPTableView[V]:
        """View a table; each value is decoded when it is asked for.

        Args:
            parts: as they are stored.
            freeze: whether values are frozen.

        Returns:
            The view.

        Raises:
            DecodeError: there is more than one part.
            CodecMismatchError: a release with another format of tables made it.
            CorruptSegmentError: the table contradicts itself.

        Concurrency: any thread.
        """
        if len(parts) != 1:
            raise DecodeError(f"expected one part for the {self.name} codec, found {len(parts)}")
        return self._open(parts[0].view, freeze)

    def _open(self, view: memoryview, freeze: bool) -> IPTableView[V]:
        table: IPTableView[V] = IPTableView(view, decoding(self.value, freeze), scalars_of(self.value))
        table._codec = self.value
        return table

    def prove(self, value: IPTableView[V]) -> None:
        """Decode each distinct value, unless that was done while the table was built.

        Raises:
            DecodeError: one does not decode.
            CorruptSegmentError: the table contradicts itself.

        Concurrency: any thread.
        """
        if not isinstance(value._view.obj, _core.IPTableBuilder):
            value._decode_values()

    @staticmethod
    def rows_from_csv(
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        network: Column | None = None,
        first: Column | None = None,
        last: Column | None = None,
        value: Callable[[Any], Any] | Sequence[Column] | Column | None = None,
        delimiter: str = ",",
        header: bool | None = None,
        encoding: str = "utf-8-sig",
    ) -> FileRows:
        """Stream the rows of a CSV file, to be published: ``w.publish(IPTable.rows_from_csv("geo.csv.gz"))``.

        Without columns, the file is ``network,value`` or ``first,last,value``, whichever has as many columns as its
        first row. A column is a number, counted from 0, or a name in the header.

        Args:
            path: of the file, or several, one after the other; one that ends in ".gz" is unpacked.
            network: column of the networks.
            first, last: columns of the first and last addresses, instead of ``network``.
            value: what becomes the value: a column (its text; the default is the one after the addresses), several
                columns (a dict by the header's names), or a function of the row, which is a dict by the header's names,
                or a list without a header.
            delimiter: one character.
            header: whether the first row names the columns; None: if a column is given by its name.
            encoding: of the text; a byte order mark is skipped.

        Returns:
            An iterator of rows. Whatever is wrong with a row, the ValidationError names the file and the line, also
            where only building the table shows it; behind ``filter``, ``map`` or a generator it can count rows only.

        Raises:
            ValueError: the arguments contradict each other.
            OSError: the file cannot be opened.

        Concurrency: one thread at a time.

        Source: CSV as in RFC 4180; blank lines are skipped.
        """
        return from_csv(path, network, first, last, value, delimiter, header, encoding)

    @staticmethod
    def rows_from_mmdb(
        path: str | os.PathLike[str], *, value: Callable[[Any], Any] | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Read the rows of a MaxMind DB file: one for each network in it.

        What such files repeat under other prefixes of IPv6 to find IPv4 addresses there (``::ffff:0:0/96``,
        ``2001::/32``, ``2002::/16``) is left out.

        Args:
            path: of the file.
            value: called with each record; returns the row's value. None: the record as it is.

        Returns:
            An iterator, for ``publish``.

        Raises:
            ValidationError: while it is iterated over, the file is damaged, or ``value`` raised; names the network.
            OSError: the file cannot be opened.
            ImportError: ``maxminddb`` is not installed: pip install 'shmcow[mmdb]'.

        Concurrency: one thread at a time.
        """
        return from_mmdb(path, value)

    def __repr__(self) -> str:
        return f"IPTable({self.value.type_name})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IPTable):
            return NotImplemented
        return (self.value, self.overlaps) == (other.value, other.overlaps)

    def __hash__(self) -> int:
        return hash((self.name, self.value))

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.value, self.overlaps)


# ---- values ----


def _prover(codec: MsgPack[Any]) -> Callable[[bytes], None]:
    def prove(data: bytes) -> None:
        value = codec.decode_parts([StoredPart(memoryview(data))])
        try:
            frozen.freeze(value)
        except ValidationError:
            pass  # of a mutable type: check_frozen refuses it wherever values are frozen
        except RecursionError as exc:
            raise DecodeError("it is nested too deeply") from exc

    return prove


def _remake(value: MsgPack[Any], overlaps: _Overlaps) -> IPTable[Any]:
    return IPTable(value, overlaps=overlaps)


# ---- building ----


def _build(codec: IPTable[Any], rows: Iterable[Any]) -> _core.IPTableBuilder:
    lines = rows if isinstance(rows, FileRows) else None
    builder = _core.IPTableBuilder(_prover(codec.value), int.from_bytes(os.urandom(8), "little"))
    encode = codec.value.encode
    add = builder.add
    count = 0
    for row in rows:
        count = count + 1 if lines is None else lines.line
        try:
            if type(row) is not tuple or not 2 <= len(row) <= 3:
                row = _checked(row)
            (data,) = encode(row[-1])
            if len(row) == 3:
                add(row[0], row[1], data, count)
            elif isinstance(row[0], str):
                add(row[0], None, data, count)
            else:
                add(*_ends(row[0]), data, count)
        except MemoryError:
            raise  # it is not the row's fault
        except Exception as exc:
            place = f"row {count}" if lines is None else lines.place(count)
            problem = exc
            try:
                if _add_slowly(codec, builder, row, count, exc):
                    continue
            except (ShmcowError, ValueError, TypeError) as said:
                problem = said
            raise ValidationError(f"{place}{_row_text(row)}: {problem}") from problem
    found = builder.finish(codec.overlaps == "drop")
    if not isinstance(found, int):
        _refuse_clash(lines, *found)
    if found:
        _log.warning("%d rows overlap others without nesting, or repeat their range, and were left out", found)
    return builder


def _checked(row: Any) -> tuple[Any, ...]:
    if isinstance(row, Sequence) and not isinstance(row, str | bytes) and 2 <= len(row) <= 3:
        return tuple(row)
    raise ValidationError("expected (network, value) or (first, last, value)")


def _add_slowly(codec: IPTable[Any], builder: _core.IPTableBuilder, row: Any, number: int, exc: Exception) -> bool:
    """Add a row whose network the C helper did not read, such as one with a netmask. False: there is more wrong."""
    if isinstance(exc, DecodeError):
        raise ValidationError(f"the value would not be readable: {exc}") from exc
    row = _checked(row)
    (part,) = codec.value.encode_parts(row[-1])  # says where in the value
    (data,) = part.buffers
    if len(row) != 2 or not isinstance(row[0], str) or not isinstance(exc, ValueError):
        return False
    builder.add(*_ends_of_text(row[0]), data, number)
    return True


def _ends(key: Any) -> tuple[Any, Any]:
    if isinstance(key, _INTERFACES):
        raise ValidationError("an interface is no network: give its .network")
    return (key.network_address, key.broadcast_address) if isinstance(key, _NETWORKS) else (key, None)


def _ends_of_text(text: str) -> tuple[Any, Any]:
    try:
        return _ends(ipaddress.ip_network(text))
    except ValueError as exc:
        first, dash, last = text.partition("-")
        if dash and "/" not in text:
            return first.strip(), last.strip()  # as to_dict() writes ranges
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise exc from None
        raise ValidationError(f"{exc}: did you mean {meant}?") from exc


def _row_text(row: Any) -> str:
    try:
        return f" ({' - '.join(str(end) for end in row[:-1])})" if isinstance(row, list | tuple) and row[:-1] else ""
    except Exception:
        return ""


_Place: TypeAlias = tuple[int, _Address, _Address]


def _refuse_clash(lines: FileRows | None, same: bool, one: _Place, other: _Place) -> NoReturn:
    places = [
        f"{f'row {number}' if lines is None else lines.place(number)} ({range_text(first, last)})"
        for number, first, last in sorted([one, other], key=lambda p: p[0])
    ]
    how = "have the same range" if same else "overlap, and neither contains the other"
    raise ValidationError(
        f"{places[0]} and {places[1]} {how}: leave one out, make their ranges disjoint, or let IPTable(..., "
        "overlaps='drop') leave out those that begin later"
    )


def range_text(first: _Address, last: _Address) -> str:
    """Write a row's addresses as a network, or as "first-last" where they are none."""
    low, high = int(first), int(last)
    size = high - low + 1
    if size & (size - 1) == 0 and low % size == 0:
        return f"{first}/{first.max_prefixlen - size.bit_length() + 1}"
    return f"{first}-{last}"
