"""IP tables: publishing and reading them, what is refused, and what damaged ones do."""

from __future__ import annotations

import copy
import gc
import gzip
import ipaddress
import pickle
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import (
    Bundle,
    CodecMismatchError,
    CorruptSegmentError,
    DecodeError,
    IPTable,
    IPTableView,
    MsgPack,
    Raw,
    Reader,
    StoredPart,
    ValidationError,
    Writer,
    _core,
)
from shmcow import snapshot as snapshots

A4, A6 = ipaddress.IPv4Address, ipaddress.IPv6Address
NESTED = [
    ("10.0.0.0/8", "site"),
    ("10.1.0.0/16", "lab"),
    ("10.1.2.3", "host"),
    ("2001:db8::", "2001:db8::ff", "test"),
    ("192.0.2.0", "192.0.2.9", "odd"),
]
# In the other family: values of more than 65,535 words, so that leaves have references of 32 bits.
WIDE = [("192.0.2.77", bytes(270_000)), ("2001:db8:ffff::77", bytes(270_000))]
HEADER = struct.Struct("<8s2IQ9I")  # up to its CRC


class Country(msgspec.Struct, frozen=True):
    code: str
    tags: list[str] = []


class Mutable(msgspec.Struct):
    a: int = 0


def opened(rows: Any, value: Any = Any, freeze: bool = True) -> IPTableView[Any]:
    """Build a table and open it, without a store."""
    codec = IPTable(value)
    (part,) = codec.encode_parts(rows)
    return codec.decode_parts([StoredPart(memoryview(part.buffers[0]))], freeze=freeze)


def refused(rows: Any, value: Any = Any) -> str:
    """The words with which rows are refused."""
    with pytest.raises(ValidationError) as caught:
        IPTable(value).encode_parts(rows)
    return str(caught.value)


# ---- lookups ----


def test_the_most_specific_row_answers(name: str) -> None:
    """Nested networks, ranges and lone addresses, by text, object and packed bytes, in a store."""
    with Writer(name, codec=IPTable(str), initial=NESTED):  # type: ignore[arg-type]
        table = Reader(name, codec=IPTable(str)).get()
        for ip, value in [
            ("10.0.0.0", "site"),
            ("10.255.255.255", "site"),
            ("10.1.0.0", "lab"),
            ("10.1.2.2", "lab"),
            ("10.1.2.3", "host"),
            ("10.1.2.4", "lab"),
            ("10.2.0.0", "site"),
            ("192.0.2.9", "odd"),
            ("2001:db8::", "test"),
            ("2001:DB8:0::00ff", "test"),
        ]:
            address = ipaddress.ip_address(ip)
            assert table[ip] == table[address] == table[address.packed] == table.get(ip) == value
            assert ip in table
            first, last = table.network_of(ip)
            assert first <= address <= last  # type: ignore[operator]
        for ip in ("9.255.255.255", "11.0.0.0", "192.0.2.10", "0.0.0.0", "255.255.255.255", "::", "2001:db8::100"):
            assert ip not in table
            assert table.get(ip) is None
            assert table.get(ip, 5) == table.get(ip, default=5) == 5
            for ask in (table.__getitem__, table.network_of):
                with pytest.raises(KeyError) as caught:
                    ask(ip)
                assert caught.value.args == (ip,)
        assert table.network_of("10.1.2.3") == (A4("10.1.2.3"), A4("10.1.2.3"))
        assert table.network_of("2001:db8::1") == (A6("2001:db8::"), A6("2001:db8::ff"))


def test_an_ipv4_address_written_as_ipv6_is_the_ipv4_address() -> None:
    """In lookups and in rows; an IPv6 row, however wide, answers for none of them."""
    table = opened([("1.2.3.0/24", "a"), ("::ffff:9.9.0.0/112", "b"), ("::/0", "all")])
    assert table["::ffff:1.2.3.4"] == table[A6("::ffff:1.2.3.4")] == table[A6("::ffff:1.2.3.4").packed] == "a"
    assert table["9.9.1.1"] == "b"
    assert table.network_of("::ffff:9.9.9.9") == (A4("9.9.0.0"), A4("9.9.255.255"))
    assert "::ffff:7.7.7.7" not in table
    assert table["::7.7.7.7"] == table["::fffe:ffff:ffff"] == table["::1:0:0:0"] == "all"
    assert opened([("::ffff:1.1.1.1", "::ffff:1.1.1.9", 1)])["1.1.1.9"] == 1
    both = opened([("::ffff:0:0/96", "mapped"), ("::fffe:0:0/95", "wide")])
    assert both["8.8.8.8"] == "mapped"
    assert both["::fffe:0:1"] == "wide"


def test_a_scope_id_is_not_looked_at() -> None:
    """A scope id changes neither what is found nor what a row is, whatever text it is."""
    table = opened([("fe80::%eth0/64", "link"), (A6("fe80:1::1%9"), "one")])
    assert table["fe80::1%eth7"] == table["fe80::1"] == table["fe80::1%\udc80 ü"] == table[A6("fe80::1%x")] == "link"
    assert table["fe80:1::1"] == "one"
    with pytest.raises(ValueError, match="no IP address"):
        table["fe80::1%"]


def test_get_many_answers_as_get_does() -> None:
    """Many at once, from any iterable, in order, of both families, with a default."""
    table = opened(NESTED)
    ips = ["10.1.2.3", "11.0.0.0", A6("2001:db8::1"), A4("10.0.0.1").packed, "::1", "::ffff:10.1.0.0"] * 40
    assert table.get_many(ips) == [table.get(ip) for ip in ips]
    assert table.get_many(iter(ips), "none") == table.get_many(tuple(ips), default="none")
    assert table.get_many(iter(ips), "none") == [table.get(ip, "none") for ip in ips]
    assert table.get_many([]) == []
    assert opened([]).get_many(ips, 0) == [0] * len(ips)
    with pytest.raises(ValueError, match="'x' is no IP address"):
        table.get_many([*ips, "x"])
    with pytest.raises(ZeroDivisionError):
        table.get_many(1 // 0 for _ in range(3))
    with pytest.raises(TypeError, match="takes one argument and default="):
        table.get_many()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="takes one argument and default="):
        table.get("::", other=1)  # type: ignore[call-overload]


def test_what_is_no_address_is_refused_everywhere() -> None:
    """ValueError for a text or bytes that are none, TypeError for another type, wherever an address is taken."""
    table = opened(NESTED)
    asks = (table.__getitem__, table.__contains__, table.get, table.network_of, lambda ip: table.get_many([ip]))
    for ask in asks:
        for wrong in ("", "10.0.0", "010.0.0.1", "10.0.0.256", "10.0.0.1/32", " 10.0.0.1", "1::2::3", b"", b"10.0.0.1"):
            with pytest.raises(ValueError, match="is no IP address: expected text such as"):
                ask(wrong)  # type: ignore[operator]
        for other in (5, None, 1.0, ipaddress.ip_network("10.0.0.0/8"), bytearray(4), ("10.0.0.1",)):
            with pytest.raises(TypeError, match=r"an IP address is text, .* found"):
                ask(other)  # type: ignore[operator]


def test_rows_come_in_address_order(name: str) -> None:
    """IPv4 first, a network before what is nested in it; all copies agree."""
    with Writer(name, codec=IPTable(str), initial=reversed(NESTED)) as writer:  # type: ignore[arg-type]
        table = writer.snapshot().value
        rows = [(str(first), str(last), value) for first, last, value in table]
        assert rows == [
            ("10.0.0.0", "10.255.255.255", "site"),
            ("10.1.0.0", "10.1.255.255", "lab"),
            ("10.1.2.3", "10.1.2.3", "host"),
            ("192.0.2.0", "192.0.2.9", "odd"),
            ("2001:db8::", "2001:db8::ff", "test"),
        ]
        assert len(table) == 5
        assert repr(table) == "<IPTableView of 5 rows>"
        assert list(table.rows()) == copy.deepcopy(table) == writer.snapshot().copy()
        plain = table.to_dict()
        assert plain["192.0.2.0-192.0.2.9"] == "odd"
        assert plain["2001:db8::/120"] == "test"
        for again in (plain, list(table), table):
            writer.publish(again)  # type: ignore[arg-type]
            assert writer.snapshot().value == table
        writer.update(lambda old: [*old, ("198.51.100.0/24", "new")])  # type: ignore[arg-type, return-value]
        assert writer.snapshot().value != table
        assert writer.snapshot().value["198.51.100.7"] == "new"
        with pytest.raises(ValidationError, match=r"cannot edit a .*IPTableView in place"), writer.edit():
            pass
        with pytest.raises(IndexError):
            table._row(5)
        with pytest.raises(IndexError):
            table._row(-1)


def test_extremes() -> None:
    """No row at all, one row, everything, and the first and last addresses."""
    empty = opened([])
    assert len(empty) == 0
    assert "1.1.1.1" not in empty
    assert "::1" not in empty
    assert list(empty) == []
    assert memoryview(IPTable().encode([])[0]).nbytes == 64
    for rows in (
        [("0.0.0.0/0", 4)],
        [("::/0", 6)],
        [("0.0.0.0/0", 4), ("::/0", 6)],
        [("0.0.0.0", "255.255.255.255", 4)],
    ):
        table = opened(rows)
        for ip in (
            "0.0.0.0",
            "128.0.0.0",
            "255.255.255.255",
            "::",
            "8000::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ):
            family = ipaddress.ip_address(ip).version
            assert table.get(ip) == (family if any(row[-1] == family for row in rows) else None)
    ends = opened([("0.0.0.0", 1), ("255.255.255.255", 2), ("::", 3), ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 4)])
    assert ends.get_many(["0.0.0.0", "0.0.0.1", "255.255.255.254", "255.255.255.255"]) == [1, None, None, 2]
    assert ends.get_many(["::", "::1", "ffff::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]) == [3, None, None, 4]
    deep = opened([(f"0.0.0.0/{bits}", bits) for bits in range(33)] + [(f"::/{bits}", bits) for bits in range(129)])
    for bits in range(33):
        assert deep[A4((1 << (32 - bits)) - 1)] == bits
    for bits in range(80):  # the next would be an IPv4 address
        assert deep[A6((1 << (128 - bits)) - 1)] == bits


# ---- values ----


def test_values_are_decoded_to_their_type_frozen_and_shared(name: str) -> None:
    """A value is one object as long as it is cached; equal ones are stored once; a Struct's list is frozen."""
    codec = IPTable(Country)
    rows = [(f"10.0.{n}.0/24", Country("XX", ["a"])) for n in range(100)]
    with Writer(name, codec=codec, initial=rows) as writer:  # type: ignore[arg-type]
        table = Reader(name, codec=codec).get()
        value = table["10.0.1.1"]
        assert value == Country("XX", ["a"])
        assert table["10.0.99.1"] is value
        with pytest.raises(TypeError, match="immutable"):
            value.tags.append("b")
        assert Reader(name).get()["10.0.1.1"] == {"code": "XX", "tags": ["a"]}
        assert type(copy.deepcopy(table)[0][2].tags) is list
        assert writer.snapshot().size_bytes < 100 * 50
    scalars: list[Any] = [
        None,
        True,
        False,
        0,
        -1,
        200,
        -200,
        2**40,
        2**64 - 1,
        -(2**63),
        1.5,
        "",
        "ü" * 40,
        b"x" * 300,
    ]
    table = opened([(f"10.0.{n}.0/24", value) for n, value in enumerate([*scalars, {"a": [1]}])])
    for n, value in enumerate(scalars):
        assert table[f"10.0.{n}.1"] == value
        assert type(table[f"10.0.{n}.1"]) is type(value)
    assert table[f"10.0.{len(scalars)}.1"] == {"a": [1]}


def test_values_that_do_not_fit_name_their_row(name: str) -> None:
    """What does not encode, or does not decode to the type, is refused with the row's number and network."""
    assert refused([("1.1.1.1", "x"), ("10.0.0.0/8", 5)], str).startswith(
        "row 2 (10.0.0.0/8): the value would not be readable: cannot decode msgpack as str: Expected `str`, got `int`"
    )
    assert "row 1 (1.1.1.1): cannot encode `$[0]` (object)" in refused([("1.1.1.1", [object()])])
    assert "row 1 (1.1.1.1): " in refused([("1.1.1.1", 2**70)])
    assert "row 1 (1.1.1.1): expected a value of the type" in refused([("1.1.1.1", Mutable())], Country)
    with Writer(name, codec=IPTable(Country), initial=[("1.1.1.1", Country("DE"))]):  # type: ignore[arg-type]
        with pytest.raises(DecodeError, match="Expected `int`"):
            Reader(name, codec=IPTable(int)).get()
        with pytest.raises(shmcow.CodecMismatchError, match="iptable"):
            Reader(name, codec=MsgPack()).get()
        with pytest.raises(ValidationError, match="Expected `int`"):
            Writer(name, codec=IPTable(int)).publish([("1.1.1.1", "x")])  # type: ignore[arg-type]


def test_mutable_types_need_freeze_off(name: str) -> None:
    """As for MsgPack: a mutable Struct is refused, and possible with freeze=False."""
    codec = IPTable(Mutable)
    rows: Any = [("1.1.1.1", Mutable(3))]
    with pytest.raises(ValidationError, match="mutable"):
        Reader(name, codec=codec)
    with Writer(name, codec=codec, initial=rows, freeze=False):
        assert Reader(name, codec=codec, freeze=False).get()["1.1.1.1"].a == 3


def test_a_value_codec_may_have_hooks(name: str) -> None:
    """MsgPack(...) is taken as it is; another codec is refused."""
    codec: IPTable[Any] = IPTable(MsgPack(ipaddress.IPv4Network, enc_hook=str, dec_hook=lambda tp, obj: tp(obj)))
    with Writer(name, codec=codec, initial=[("1.1.1.1", ipaddress.ip_network("10.0.0.0/8"))]):  # type: ignore[arg-type]
        assert Reader(name, codec=codec).get()["1.1.1.1"] == ipaddress.ip_network("10.0.0.0/8")
    with pytest.raises(TypeError, match="stored as msgpack"):
        IPTable(Raw())  # type: ignore[call-overload]


def test_codecs_compare_pickle_and_have_fingerprints() -> None:
    """Equal by the type of their values, also after pickling; without a type there is no fingerprint."""
    codec = IPTable(Country)
    assert pickle.loads(pickle.dumps(codec)) == codec == IPTable(MsgPack(Country))
    assert hash(codec) == hash(IPTable(Country))
    assert codec != IPTable(int)
    assert codec != MsgPack(Country)
    assert len(codec.fingerprint) == 16
    assert codec.fingerprint != MsgPack(Country).fingerprint
    assert IPTable().fingerprint == b""
    assert repr(IPTable(int)) == "IPTable(int)"
    assert IPTable(int).type_name == "IPTable[int]"
    assert shmcow.codecs.for_name("iptable") == IPTable()


# ---- bad rows ----


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("10.0.0.1/8", 1), "10.0.0.1/8 has host bits set: did you mean 10.0.0.0/8?"),
        (("2001:db8::1/32", 1), "has host bits set: did you mean 2001:db8::/32?"),
        (("10.0.0.0/33", 1), "does not appear to be an IPv4 or IPv6 network"),
        (("10.0.0.0/-1", 1), "does not appear to be"),
        (("10.0.0.0/", 1), "does not appear to be"),
        (("010.0.0.0/8", 1), "does not appear to be"),
        (("10.0.0", 1), "does not appear to be"),
        (("", 1), "does not appear to be"),
        (("::/129", 1), "does not appear to be"),
        (("1.1.1.2", "1.1.1.1", 1), "the first address '1.1.1.2' is behind the last, '1.1.1.1'"),
        (("1.1.1.2-1.1.1.1", 1), "behind the last"),
        (("1.1.1.1", "::1", 1), "not of one family"),
        (("1.1.1.1", "::ffff:1.1.1.2", 1), "not of one family"),
        (("1.1.1.1", "01.1.1.2", 1), "'01.1.1.2' is no IP address"),
        ((A4("1.1.1.1"), A6("::1"), 1), "not of one family"),
        ((ipaddress.ip_interface("1.1.1.1/24"), 1), "an interface is no network"),
        ((None, 1), "found NoneType"),
        ((3, 1), "found int"),
        (("1.1.1.1",), "expected (network, value) or (first, last, value)"),
        (("1.1.1.1", "1.1.1.1", 1, 2), "expected (network, value)"),
        ("ab", "expected (network, value)"),
        (None, "expected (network, value)"),
        (7, "expected (network, value)"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_with_their_number(row: Any, words: str) -> None:
    """Each is the second row, and the message says so, and what is wrong."""
    said = refused([("9.0.0.0/8", 1), row])
    assert said.startswith("row 2")
    assert words in said


@pytest.mark.parametrize("value", [5, None, "1.1.1.1", b"1.1.1.1"])
def test_what_is_no_rows_at_all_is_refused(value: Any) -> None:
    """A text or a number is no table."""
    assert "a table is published from rows" in refused(value)


def test_clashing_rows_are_both_named() -> None:
    """Overlap without nesting, and the same range twice, by their numbers and ranges."""
    assert refused([("9.0.0.0/8", 0), ("10.0.0.128", "10.0.1.9", 1), ("10.0.0.0/24", 2)]) == (
        "row 2 (10.0.0.128-10.0.1.9) and row 3 (10.0.0.0/24) overlap, and neither contains the other: leave one out, "
        "make their ranges disjoint, or let IPTable(..., overlaps='drop') leave out those that begin later"
    )
    assert "row 1 (::/64) and row 3 (::/64) have the same range" in refused([("::/64", 1), ("::/65", 2), ("::0/64", 1)])
    assert "row 1 (1.1.1.1/32) and row 2 (1.1.1.1/32)" in refused([("1.1.1.1", 1), ("::ffff:1.1.1.1", 1)])
    assert "row 1 (0.0.0.0-0.0.0.10) and row 2 (0.0.0.5-0.0.0.20)" in refused(
        [("0.0.0.0", "0.0.0.10", 1), ("0.0.0.5", "0.0.0.20", 1), ("0.0.0.1", 1)]
    )


def test_networks_in_other_notations() -> None:
    """Netmasks, host masks, objects of all kinds and "first-last" mean what ipaddress says."""
    table = opened(
        {
            "10.0.0.0/255.0.0.0": "mask",
            "11.0.0.0/0.255.255.255": "hosts",
            "12.0.0.0/000000008": "zeros",
            ipaddress.ip_network("13.0.0.0/8"): "network",
            ipaddress.ip_network("2001:db8::/32"): "network6",
            A4("14.0.0.1"): "address",
            "15.0.0.1 - 15.0.0.7": "range",
            b"\x10\0\0\1": "packed",
        }
    )
    assert table.network_of("10.9.9.9") == (A4("10.0.0.0"), A4("10.255.255.255"))
    ips = ["10.0.0.1", "11.0.0.1", "12.9.0.1", "13.0.9.1", "2001:db8:9::", "14.0.0.1", "15.0.0.7", "16.0.0.1"]
    assert table.get_many(ips) == ["mask", "hosts", "zeros", "network", "network6", "address", "range", "packed"]
    assert len(opened([["1.1.1.1", "a"], [A4("1.1.1.2"), "1.1.1.3", "b"]])) == 2


def test_rows_are_taken_one_by_one() -> None:
    """A generator is never a list: while a row is taken, those before it are gone."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Text(str):
        pass

    def rows() -> Iterator[Any]:
        for n in range(2000):
            text = Text(A4(n * 256))
            alive.add(text)
            assert len(alive) <= 3
            yield text, text, n % 7

    table = opened(rows())
    assert len(table) == 2000
    assert table["0.0.1.0"] == 1


def test_an_error_of_the_iterable_publishes_nothing(name: str) -> None:
    """Whatever a generator raises comes out, and the old version stays."""

    def rows() -> Iterator[Any]:
        yield "1.1.1.1", 1
        raise OSError("the source went away")

    with Writer(name, codec=IPTable(), initial=[("1.1.1.1", 0)]) as writer:  # type: ignore[arg-type]
        with pytest.raises(OSError, match="the source went away"):
            writer.publish(rows())  # type: ignore[arg-type]
        assert writer.version == 1


def test_a_finished_builder_takes_nothing_more() -> None:
    """The builder exports its bytes when it is finished, and not before; then it takes no rows."""
    builder = _core.IPTableBuilder(id, 1)
    builder.add("1.1.1.1", None, b"\x01", 1)
    with pytest.raises(BufferError, match="not finished"):
        memoryview(builder)
    assert builder.finish() == 0
    for call in (builder.finish, lambda: builder.add("1.1.1.2", None, b"\x01", 1)):
        with pytest.raises(ValueError, match="the table is finished"):
            call()
    assert memoryview(builder).readonly


def test_equal_rows_make_equal_bytes(name: str) -> None:
    """So that a part of a Bundle that did not change is shared, however it was built."""
    assert bytes(memoryview(IPTable().encode(NESTED)[0])) == bytes(memoryview(IPTable().encode(list(NESTED))[0]))
    codec = Bundle(n=MsgPack(int), geo=IPTable(str))
    with Writer(name, codec=codec, initial={"n": 1, "geo": NESTED}) as writer:  # type: ignore[arg-type]
        writer.publish({"n": 2, "geo": iter(NESTED)})  # type: ignore[arg-type]
        writer.publish_parts(n=3)
        listed = [generation.segments[1] for generation in shmcow.describe(name).generations]
        assert len(set(listed)) == 1
        assert Reader(name, codec=codec).get().geo["10.1.1.1"] == "lab"
        assert Reader(name).get().geo["10.1.1.1"] == "lab"
        with pytest.raises(ValidationError, match="part 'geo': row 1"):
            writer.publish_parts(geo=[("x", 1)])


# ---- who holds what ----


def test_a_view_holds_its_version(name: str) -> None:
    """A view outlives newer versions, the reader and the store; the version goes with it."""
    with Writer(name, codec=IPTable(str), initial=NESTED, retain=0) as writer:  # type: ignore[arg-type]
        reader = Reader(name, codec=IPTable(str))
        old = reader.get()
        writer.publish([("10.0.0.0/8", "new")])  # type: ignore[arg-type]
        assert reader.get()["10.1.2.3"] == "new"
        assert old["10.1.2.3"] == "host"
        assert [generation.version for generation in shmcow.describe(name).generations] == [2, 1]
        iterator, gone = iter(old), weakref.ref(old)
        del old
        gc.collect()
        assert next(iterator)[2] == "site"
        del iterator
        gc.collect()
        assert gone() is None
        writer.reclaim()
        assert [generation.version for generation in shmcow.describe(name).generations] == [2]
        last = reader.get()
        reader.close()
        writer.destroy()
        assert last["10.1.2.3"] == "new"


def test_views_are_immutable_and_not_pickled(name: str) -> None:
    """Nothing can be set, a copy is itself, and pickling says what to send."""
    table = opened(NESTED)
    with pytest.raises(TypeError):
        table["1.1.1.1"] = "x"  # type: ignore[index]
    with pytest.raises(AttributeError):
        table.other = 1  # type: ignore[attr-defined]
    assert copy.copy(table) is table
    with pytest.raises(TypeError, match="send its Snapshot"):
        pickle.dumps(table)
    with pytest.raises(TypeError, match="unhashable"):
        hash(table)
    assert table == opened(reversed(NESTED))
    assert table != opened(NESTED[1:])
    assert table != opened([*NESTED[1:], ("10.0.0.0/8", "other")])
    assert table != 3
    with Writer(name, codec=IPTable(str), initial=NESTED):  # type: ignore[arg-type]
        again = pickle.loads(pickle.dumps(Reader(name, codec=IPTable(str)).snapshot()))
        assert again.value == table
        snapshots._kept.clear()  # what was received keeps its store attached for the next arrival


def test_a_cycle_through_a_cached_value_is_collected() -> None:
    """A value that leads back to its table does not keep it for ever."""

    class Node:
        table: Any = None

    codec: IPTable[Any] = IPTable(MsgPack(Node, enc_hook=lambda _: 1, dec_hook=lambda tp, _: tp()))
    (part,) = codec.encode_parts([("1.1.1.1", Node())])  # type: ignore[arg-type]
    table = codec.decode_parts([StoredPart(memoryview(part.buffers[0]))])
    table["1.1.1.1"].table = table
    gone = weakref.ref(table)
    del table
    gc.collect()
    assert gone() is None


def test_threads_look_up_together() -> None:
    """Eight threads, more distinct values than are cached, and a decoder that gives way to other threads."""
    rows = [(str(A4(n << 12)), str(A4((n << 12) + 99)), [n]) for n in range(6000)]
    table = opened(rows)
    wrong: list[Any] = []

    def look(seed: int) -> None:
        for n in range(seed, 6000 * 7, 97):
            if table[A4(((n * 31 % 6000) << 12) + 50)] != [n * 31 % 6000]:
                wrong.append(n)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 63, 64, 65, 1023, 1024, 1025])
@pytest.mark.parametrize(
    "base", ["10.0.0.0", "2001:db8::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0", "2001:db8:0:fff0::"]
)
def test_each_address_among_neighbours_finds_its_row(base: str, rows: int) -> None:
    """Leaves and nodes that are full, or one more or less; starts that differ in their lower half only."""
    step = 2 << 64 if base.endswith("fff0::") else 2
    first = int(ipaddress.ip_address(base))
    kind = A4 if base.startswith("10.") else A6
    for more in ([], [WIDE[kind is A4]]):
        table = opened([*((kind(first + k * step), k) for k in range(rows)), *more])
        for k in range(rows):
            assert table[kind(first + k * step)] == k
            assert kind(first + k * step + 1) not in table
            assert table.network_of(kind(first + k * step))[0] == kind(first + k * step)
        ends = [kind(2**32 - 1 if kind is A4 else 2**128 - 1), kind(first - 1), kind(0)]
        assert table.get_many([*ends, *(kind(first + k * step) for k in range(rows))]) == [None] * 3 + list(range(rows))


@pytest.mark.parametrize("words", [65_534, 65_535, 65_536])
def test_references_take_16_bits_as_long_as_all_fit(words: int) -> None:
    """A leaf has 16 intervals up to 65,535 words of values, and 10 from there on; all is found either way."""
    large = bytes(4 * (words - 3) - 5)  # with the 5 bytes that say what it is, and its length; the other takes 2 words
    rows = [("10.0.0.0", large), *((f"10.0.0.{2 * k}", "x") for k in range(1, 64))]
    data = bytes(memoryview(IPTable().encode(rows)[0]))
    header = HEADER.unpack_from(data)
    intervals, leaves, stored = header[6], header[8], header[10]
    assert (intervals, stored) == (129, words)
    assert leaves == 1 + -(-(intervals - 2) // (16 if words <= 65_535 else 10))  # 0.0.0.0 and 10.0.0.0 alone
    table = opened(rows)
    assert table["10.0.0.0"] == large
    assert table.get_many([f"10.0.0.{k}" for k in range(1, 127)]) == [None, "x"] * 63


def test_many_values_are_found() -> None:
    """More distinct values than 16 bits can name, in both families, each with its row."""
    rows = [(A4(n << 8), A4((n << 8) + 9), f"value {n:030}") for n in range(9_000)]
    rows6 = [(A6(n << 70), A6((n << 70) + 9), f"value {n:031}") for n in range(1, 3_000)]
    table = opened([*rows, *rows6])
    for first, last, value in (*rows[::7], *rows6[::7]):
        assert table[first] == table[last] == value
        assert table.network_of(last) == (first, last)
        assert last + 1 not in table


# ---- damaged tables ----


def probe(data: bytes | memoryview) -> None:
    """Do everything with a table: each answer, or error, must be one of those that are documented."""
    try:
        table = IPTable().decode_parts([StoredPart(memoryview(data))], freeze=True)
    except (CorruptSegmentError, CodecMismatchError):
        return
    for ask in (
        *(lambda ip=ip: table.get(ip) for ip in PROBES),  # type: ignore[misc]
        *(lambda ip=ip: table.network_of(ip) for ip in PROBES),  # type: ignore[misc]
        lambda: table.get_many(PROBES),
        *(lambda k=k: table._row(k) for k in range(min(len(table), 20))),  # type: ignore[misc]
        table._decode_values,
    ):
        try:
            ask()
        except (CorruptSegmentError, DecodeError, KeyError):
            pass


PROBES = [
    *("0.0.0.0", "10.1.2.3", "10.200.0.0", "255.255.255.255"),
    *("::", "2001:db8::80", "2001:db8::8000", "2001:db8::8031", "2001:db9::", "ffff::1"),
]


def sealed(data: bytes) -> bytes:
    """The table with the CRC that its header should have."""
    return data[:60] + struct.pack("<I", zlib.crc32(data[:60])) + data[64:]


def small(more: Any = ()) -> bytes:
    return bytes(memoryview(IPTable().encode([*NESTED, *more])[0]))


SEVERAL_LEAVES = [(A6(0x20010DB8 << 96 | 0x8000 + 2 * k), k % 5) for k in range(40)]  # of one upper half


@pytest.mark.parametrize("more", [[], SEVERAL_LEAVES, WIDE[1:]], ids=["small", "several leaves", "wide references"])
def test_each_damaged_byte_is_an_error_or_an_answer(more: Any) -> None:
    """Every byte of a small table, with other values, with and without a matching checksum."""
    good = small(more)
    assert sealed(good) == good
    bad = bytearray(good)  # one for all: copies of a large one would take nearly all of the time
    for at in range(min(len(good), 3_000)):  # more is but a large value
        for mask in (0x01, 0x80, 0xFF):
            bad[at] ^= mask
            if at < 64:
                with pytest.raises(CorruptSegmentError):
                    IPTable().decode_parts([StoredPart(memoryview(bad).toreadonly())])
            bad[60:64] = struct.pack("<I", zlib.crc32(bad[:60]))
            probe(memoryview(bad).toreadonly())
            bad[60:64] = good[60:64]
            bad[at] = good[at]


def test_truncated_tables_are_refused() -> None:
    """Every prefix of a table, and a table with a tail."""
    good = small()
    for length in [*range(len(good)), len(good) + 1]:
        data = (good + b"\0")[:length]
        with pytest.raises(CorruptSegmentError, match="a table contradicts itself"):
            IPTable().decode_parts([StoredPart(memoryview(data))])


def test_what_is_wrong_with_a_table_is_said() -> None:
    """Magic, byte order, format, checksum, counts, length."""
    good = small()
    fields = list(HEADER.unpack_from(good))

    def opening(**changes: int) -> str:
        names = ["magic", "order", "format", "bytes", "rows4", "rows6", "n4", "n6", "leaves4", "leaves6"]
        values = [
            changes.get(name, value) for name, value in zip([*names, "words", "count", "zero"], fields, strict=True)
        ]
        with pytest.raises((CorruptSegmentError, CodecMismatchError)) as caught:
            IPTable().decode_parts([StoredPart(memoryview(sealed(HEADER.pack(*values) + good[HEADER.size :])))])
        return str(caught.value)

    assert "does not begin as a table" in opening(magic=b"shmcowXX")  # type: ignore[arg-type]
    assert "other byte order" in opening(order=0x04030201)
    assert opening(format=1).startswith(
        "it is a table of format 1, made by another release of shmcow, and this one reads and writes format 2: "
    )
    assert "its length" in opening(bytes=1)
    for change in (
        {"rows4": 2**31},
        {"n4": 10},
        {"n6": 0},
        {"n6": 2**31},
        {"rows6": 0},
        {"leaves4": 0},
        {"leaves4": 10},
        {"leaves6": 2**31},
        {"rows6": 0, "n6": 0},
        {"count": 2**32 - 1},
        {"words": 0},
    ):
        assert "a count in its header is out of range" in opening(**change)
    assert "its length is not" in opening(words=64)
    assert "its length is not" in opening(words=2**32 - 1)
    assert "its length is not" in opening(leaves4=2)
    with pytest.raises(CorruptSegmentError, match="checksum of its header"):
        IPTable().decode_parts([StoredPart(memoryview(good[:61] + b"\0" + good[62:]))])


def test_what_a_forged_table_makes_decode_is_bounded() -> None:
    """Rows with references into the middle of a value, where each word says that a long one begins there."""
    inner = b"\0" + (16_000).to_bytes(4, "little") * 7_999  # so that they are words of the segment
    good = bytes(memoryview(IPTable().encode([(A4(2 * k), inner) for k in range(2_000)])[0]))
    rows = good.index(struct.pack("<3I", 2, 2, 0)) - 12
    forged = bytearray(good)
    for k in range(2_000):
        struct.pack_into("<I", forged, rows + 12 * k + 8, 2 + k)
    table = _core.IPTable(memoryview(bytes(forged)), bytes, 0)
    first = table._row(0)[2]
    assert table._row(0)[2] is first
    assert {len(table._row(k)[2]) for k in range(1, 2_000)} == {16_000}
    assert table._row(0)[2] is not first  # 32 MB were not kept
    assert table._row(1_999)[2] is table._row(1_999)[2]


def test_a_table_that_is_not_aligned_is_read() -> None:
    """A payload may be opened anywhere in memory."""
    table = IPTable().decode_parts([StoredPart(memoryview(b"xyz" + small())[3:])])
    assert table["10.1.2.3"] == "host"
    assert table["2001:db8::1"] == "test"


# ---- CSV ----


def written(tmp_path: Path, text: str, name: str = "rows.csv") -> Path:
    path = tmp_path / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def test_rows_from_csv_in_both_formats(tmp_path: Path, name: str) -> None:
    """network,value and first,last,value; plain and gzip; blank lines, a byte order mark and quotes."""
    text = '\ufeff1.0.0.0,1.0.0.255,AU\r\n\r\n2001:db8::,2001:db8::f,"A,B"\r\n'
    for file in ("rows.csv", "rows.csv.gz"):
        table = opened(IPTable.rows_from_csv(written(tmp_path, text, file)))
        assert table.get_many(["1.0.0.7", "2001:db8::1"]) == ["AU", "A,B"]
    cidr = written(tmp_path, "1.0.0.0/24,AU\n::/64,X\n", "cidr.csv")
    with Writer(name, codec=IPTable(str), initial=IPTable.rows_from_csv(str(cidr))) as writer:  # type: ignore[arg-type]
        assert writer.snapshot().value.to_dict() == {"1.0.0.0/24": "AU", "::/64": "X"}


def test_rows_from_csv_by_columns(tmp_path: Path) -> None:
    """Columns by number and by name, a dict of several, a function of the row, another delimiter."""
    path = written(tmp_path, "network;code; asn\n1.0.0.0/24;AU;13335\n2.0.0.0/24;FR;3215\n")
    read = IPTable.rows_from_csv
    assert opened(read(path, network="network", value="asn", delimiter=";"))["2.0.0.1"] == "3215"
    assert opened(read(path, network=0, value=1, header=True, delimiter=";"))["1.0.0.1"] == "AU"
    several = opened(read(path, network="network", value=["code", "asn"], delimiter=";"))
    assert several["2.0.0.1"] == {"code": "FR", "asn": "3215"}
    made = opened(read(path, network="network", value=lambda row: int(row["asn"]), delimiter=";"))
    assert made["1.0.0.1"] == 13335
    ranges = written(tmp_path, "DE,9,5.0.0.0,5.0.0.9\n", "ranges.csv")
    assert opened(read(ranges, first=2, last=3, value=0))["5.0.0.9"] == "DE"
    assert opened(read(ranges, first=2, last=3, value=lambda row: [row[0], int(row[1])]))["5.0.0.9"] == ["DE", 9]


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("1.0.0.0/24,A\n\n1.0.0.1/8,B\n", {}, "line 3 of PATH (1.0.0.1/8): 1.0.0.1/8 has host bits set"),
        ("1.0.0.0/24,A\nx,B\n", {}, "line 2 of PATH (x): 'x' does not appear"),
        ("1.0.0.9,1.0.0.1,A\n", {}, "line 1 of PATH (1.0.0.9 - 1.0.0.1): the first address"),
        ("1.0.0.0/24,A\n1.0.0.0/24\n", {}, "line 2 of PATH: it has 1 columns only: '1.0.0.0/24'"),
        ("1.0.0.0/24\n", {}, "line 1 of PATH: expected `network,value` or `first,last,value`, found 1 columns"),
        ("n,v\n1.0.0.0/24,A\n", {"network": "net"}, "line 2 of PATH: there is no column 'net': the header has n, v"),
        ("1.0.0.0/24,A\n", {"value": int}, "line 1 of PATH: value= raised TypeError"),
        ("1.0.0.0/24,A\n", {"value": [1, 0]}, "give header=True"),
        ("1.0.0.0/24,A\n1.0.0.0/25,\udcff\n", {}, "line 2 of PATH: cannot be read: 'utf-8' codec"),
        ('1.0.0.0/24,A\n1.0.0.0/25,"B', {}, "line 2 of PATH: cannot be read: unexpected end of data"),
        (
            "1.0.0.0/24,A\n\n1.0.0.0/24,A\n",
            {},
            "line 1 of PATH (1.0.0.0/24) and line 3 of PATH (1.0.0.0/24) have the same range",
        ),
    ],
)
def test_what_is_wrong_in_a_csv_names_the_line(
    tmp_path: Path, text: str, arguments: dict[str, Any], words: str
) -> None:
    """Whether reading, building or nesting shows it."""
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert words.replace("PATH", str(path)) in refused(IPTable.rows_from_csv(path, **arguments))


def test_broken_files_and_arguments(tmp_path: Path) -> None:
    """A file that is not there, one that is no gzip or cut off, and arguments that contradict each other."""
    with pytest.raises(FileNotFoundError):
        IPTable.rows_from_csv(tmp_path / "missing.csv")
    fake = tmp_path / "fake.csv.gz"
    fake.write_bytes(b"1.0.0.0/24,A\n")
    assert "line 1 of" in refused(IPTable.rows_from_csv(fake))
    whole = gzip.compress(b"".join(b"%d.0.0.0/24,%d\n" % (n, n * n) for n in range(200)))
    fake.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read: Compressed file ended" in refused(IPTable.rows_from_csv(fake))
    path = written(tmp_path, "1.0.0.0/24,A\n")
    for arguments in (
        {"first": 0},
        {"network": 0, "first": 0, "last": 1},
        {"delimiter": ""},
        {"network": -1},
        {"network": True},
        {"value": [1.5]},
    ):
        with pytest.raises(ValueError, match=r"give network=|one character|a column is"):
            IPTable.rows_from_csv(path, **arguments)  # type: ignore[arg-type]
    rows = IPTable.rows_from_csv(path)
    assert next(rows) == ("1.0.0.0/24", "A")
    assert "line 1" in repr(rows)


def test_rows_that_clash_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """With overlaps="drop" the row that begins later goes, of the same range the later one; a log says how many."""
    codec: IPTable[Any] = IPTable(overlaps="drop")
    rows = [
        ("10.0.0.0", "10.0.0.99", "first"),
        ("10.0.0.50", "10.0.0.150", "clashes"),
        ("10.0.0.60/32", "inside"),
        ("10.0.0.100", "10.0.0.120", "after what went"),
        ("10.0.0.0", "10.0.0.99", "again"),
        ("2001:db8::/32", "six"),
        ("2001:db8::", "2001:db9::", "around six"),
        ("2001:db8:1::", "2001:dba::", "clashes too"),
    ]
    (part,) = codec.encode_parts(rows)
    table = codec.decode_parts([StoredPart(memoryview(part.buffers[0]))], freeze=True)
    asked = [
        "10.0.0.1",
        "10.0.0.60",
        "10.0.0.55",
        "10.0.0.110",
        "10.0.0.150",
        "2001:db8::1",
        "2001:db9::",
        "2001:dba::",
    ]
    assert table.get_many(asked) == ["first", "inside", "first", "after what went", None, "six", "around six", None]
    assert len(table) == 5
    assert "3 rows overlap others" in caplog.text
    with pytest.raises(ValidationError, match="overlaps='drop'"):
        IPTable().encode_parts(rows)
    with pytest.raises(ValueError, match="'refuse' or 'drop'"):
        IPTable(overlaps="keep")  # type: ignore[call-overload]
    assert pickle.loads(pickle.dumps(codec)) == codec != IPTable()


def test_several_files_are_one_table(tmp_path: Path) -> None:
    """One after the other; whatever is wrong names the file and its line."""
    four, six = tmp_path / "four.csv", tmp_path / "six.csv"
    four.write_text("1.0.0.0,1.0.0.255,A\n2.0.0.0,2.0.0.255,B\n")
    six.write_text("2001:db8::,2001:db8::ff,C\n2.0.0.0,2.0.0.9,D\n")
    table = opened(IPTable.rows_from_csv([four, six]))
    assert table.get_many(["1.0.0.1", "2.0.0.5", "2001:db8::1"]) == ["A", "D", "C"]
    six.write_text("2001:db8::,2001:db8::ff,C\n3.0.0.0,3.0.1.9,D\n3.0.0.9,3.0.1.10,E\n")
    with pytest.raises(ValidationError, match=r"line 2 of .*six.csv .* and line 3 of .*six.csv .* overlap"):
        opened(IPTable.rows_from_csv([four, six]))
    six.write_text("2001:db8::,2001:db8::ff,C\n1.0.0.9,1.0.1.9,D\n")
    with pytest.raises(ValidationError, match=r"line 1 of .*four.csv .* and line 2 of .*six.csv .* overlap"):
        opened(IPTable.rows_from_csv([four, str(six)]))
    six.write_text("2001:db8::,nothing,C\n")
    with pytest.raises(ValidationError, match=r"line 1 of .*six.csv"):
        opened(IPTable.rows_from_csv([four, six]))
    with pytest.raises(FileNotFoundError):
        IPTable.rows_from_csv([four, tmp_path / "none.csv"])


def test_what_the_rows_raise_passes(name: str) -> None:
    """An error of the caller's own iterable is the caller's, as with a Table, also inside a bundle."""

    def rows() -> Any:
        yield "1.1.1.1", "x"
        raise RuntimeError("mine")

    with Writer(name, codec=Bundle(geo=IPTable(str))) as writer, pytest.raises(RuntimeError, match="mine"):
        writer.publish({"geo": rows()})
