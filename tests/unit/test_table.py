"""Tables, published and read: what is refused, what holds, what is shared."""

from __future__ import annotations

import copy
import decimal
import gc
import pickle
import random
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest

from shmcow import (
    JSON,
    Bundle,
    CodecMismatchError,
    DecodeError,
    FrozenList,
    MsgPack,
    Reader,
    StoredPart,
    Table,
    TableView,
    ValidationError,
    WaitTimeoutError,
    Writer,
)


class Country(msgspec.Struct, frozen=True):
    name: str
    codes: list[int] = []


class Mutable(msgspec.Struct):
    a: int = 0


CODES = Table(key=str, value=Country)
ROWS = {"de": Country("Germany", [49]), "fr": Country("France", [33]), "de-AT": Country("Austria")}


def view_of(codec: Table[Any, Any], rows: Any, *, freeze: bool = True) -> TableView[Any, Any]:
    """Return the view of a table that was never published."""
    (part,) = codec.encode_parts(rows)
    return codec.decode_parts([StoredPart(memoryview(part.buffers[0]))], freeze=freeze)


@pytest.fixture
def writer(name: str) -> Iterator[Writer[Any]]:
    with Writer(name, codec=CODES, initial=ROWS) as writer:
        yield writer


@pytest.mark.usefixtures("writer")
def test_a_table_is_read_as_published(name: str) -> None:
    """A typed view, a plain one without a codec, and both are mappings."""
    view = Reader(name, codec=CODES).get()
    assert view["de"] == Country("Germany", [49])
    assert view["de"] is view["de"]
    assert isinstance(view, Mapping)
    assert view == ROWS
    assert view.longest_prefix("de-AT-9") == ("de-AT", Country("Austria"))
    with pytest.raises(TypeError, match="immutable"):
        view["de"].codes.append(1)
    plain = Reader(name).get()
    assert plain["de"] == {"name": "Germany", "codes": [49]}
    assert Reader(name, codec=CODES, freeze=False).get()["de"].codes.append(1) is None


@pytest.mark.usefixtures("writer")
def test_a_view_cannot_be_changed_sent_or_hashed(name: str) -> None:
    """It is compared and copied; a copy is plain, and a snapshot is what is sent."""
    reader = Reader(name, codec=CODES)
    view = reader.get()
    with pytest.raises(TypeError, match="item assignment"):
        view["de"] = 1
    with pytest.raises(AttributeError):
        view.anything = 1
    with pytest.raises(TypeError, match="send its Snapshot"):
        pickle.dumps(view)
    with pytest.raises(TypeError, match="unhashable"):
        hash(view)
    assert copy.copy(view) is view
    assert type(copy.deepcopy(view)) is dict
    assert type(copy.deepcopy(view)["de"].codes) is list
    assert type(view.to_dict()["de"].codes) is FrozenList
    assert reader.snapshot().copy() == ROWS
    assert repr(view) == "<TableView of 3 rows, keys of str>"
    assert pickle.loads(pickle.dumps(reader.snapshot())).value == view
    assert view != 3
    assert view != {**ROWS, "it": None}


def test_keys_are_asked_for_as_in_a_dict() -> None:
    """Equal keys of other types are found, unhashable ones raise, the error has the key."""
    view = view_of(Table(key=int), {0: "a", 1: "b", 2**64 - 1: "c", -(2**63): "d"})
    for key in (True, 1.0, 1 + 0j, decimal.Decimal(1)):
        assert view[key] == "b"  # type: ignore[index]
    assert view[2**64 - 1] == "c"
    assert view.get(-(2**63)) == "d"
    for missing in ("1", None, 1.5, float("nan"), float("inf"), 2**64, -(2**63) - 1, (1,), decimal.Decimal("nan")):
        assert missing not in view
    with pytest.raises(KeyError) as caught:
        view[(1, 2)]
    assert caught.value.args == ((1, 2),)
    for bad in ([], {}, bytearray(b"a")):
        for kind in (str, bytes, int):
            other = view_of(Table(key=kind), {})
            for ask in (other.__getitem__, other.__contains__, other.get, lambda key, t=other: t.get_many([key])):
                with pytest.raises(TypeError, match="unhashable"):
                    ask(bad)
    assert view_of(Table(key=bytes), {b"ab": 1})[memoryview(b"xaby")[1:3]] == 1  # type: ignore[index]
    assert view.get(7, default="x") == "x"
    for wrong in ({}, {"d": 1}, {"default": 1, "x": 2}):
        with pytest.raises(TypeError, match=r"get\(\)"):
            view.get(*[1] * (3 if not wrong else 1), **wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="integers have no prefixes"):
        view.longest_prefix(1)
    with pytest.raises(TypeError, match="takes a str"):
        view_of(Table(key=str), {}).longest_prefix(b"a")


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        (str, {}),
        (str, {"": None}),
        (str, {"k": 1}),
        (str, {"ä" * 50_000: 1, "ä" * 50_001: 2, "a" * 65_535: 3, "a" * 65_536: 4, "b" * 65_536: 5}),
        (bytes, {b"": 0, b"\0": 1, b"\0" * 7: 2, b"\0" * 8: 3, b"\0" * 9: 4, b"\0" * 16: 5, b"\0" * 17: 6}),
        (int, {}),
        (int, {2**64 - 1: 1, 2**63: 2, 2**63 - 1: 3, -1: 4, 0: 5, -(2**63): 6}),
    ],
    ids=["nothing", "the empty key", "one row", "long keys", "zeros", "no integers", "all of 64 bits"],
)
def test_small_and_large_keys(key: Any, rows: dict[Any, Any]) -> None:
    """The limits; and the longest prefix is found among lengths of any size."""
    view = view_of(Table(key=key, value=int | None), rows)
    assert view.to_dict() == rows
    assert len(view) == len(rows)
    assert [view[k] for k in rows] == view.get_many(rows) == list(rows.values())
    for k in rows:
        if key is not int:
            assert view.longest_prefix(k) == (k, rows[k])
    assert view.get("zoo") is None


BAD: list[tuple[Any, Any, str]] = [
    (str, [("a", 1), (2, 1)], r"row 2: the key 2 is of the type int, expected str"),
    (str, [("a", 1), (b"b", 1)], r"row 2: the key b'b' is of the type bytes, expected str"),
    (bytes, [(bytearray(b"b"), 1)], "row 1: .* bytearray, expected bytes"),
    (int, [(1, 1), (1.0, 1)], r"row 2: the key 1.0 is of the type float, expected int"),
    (int, [(float("nan"), 1)], "row 1: the key nan is of the type float, expected int"),
    (int, [(True, 1)], "row 1: the key True is of the type bool, expected int"),
    (int, [(2**64, 1)], r"row 1: the key 18446744073709551616 is out of range: expected -2\*\*63 to 2\*\*64 - 1"),
    (int, [(0, 1), (-(2**63) - 1, 1)], "row 2: .*out of range"),
    (str, [("a", 1), ("\ud800", 1)], r"row 2: the key '\\ud800' is no text that UTF-8 has bytes for"),
    (str, [("a", 1), ("b", 2), ("a", 3)], "row 3: the key 'a' is repeated: row 1 has it already"),
    (str, [("a", 1), ("b",)], r"row 2: expected a pair \(key, value\), found a tuple of 1"),
    (str, [("a", 1, 2)], "row 1: .*found a tuple of 3"),
    (str, ["ab"], "row 1: .*found str"),
    (str, [{"a": 1}], "row 1: .*found dict"),
    (str, "ab", "a mapping, or an iterable of pairs .*found str"),
    (str, None, "found None"),
    (str, 3, "found int"),
    (str, [("a", 1), ("b", 2**64)], r"(?s)row 2, key 'b': cannot encode `\$` \(int\) with msgpack"),
    (str, [("a", 1), ("b" * 100, object())], r"row 2, key 'b{79}…: cannot encode `\$` \(object\)"),
    (str, [("a", {"x": [object()]})], r"row 1, key 'a': cannot encode `\$.x\[0\]`"),
]


@pytest.mark.parametrize(("key", "rows", "message"), BAD)
def test_bad_rows_are_refused(name: str, key: Any, rows: Any, message: str) -> None:
    """Nothing is published, and the message names the row and the key."""
    with Writer(name, codec=Table(key=key)) as writer:
        with pytest.raises(ValidationError, match=message):
            writer.publish(rows)
        assert writer.version == 0


def test_values_that_would_not_be_readable_are_refused(writer: Writer[Any]) -> None:
    """Each is decoded with its type before the flip; what another class encodes to is refused at once."""
    with pytest.raises(ValidationError, match=r"row 2, key 'b': .*expected a value of the type .*Country, found int"):
        writer.publish([("a", Country("A")), ("b", 3)])
    with pytest.raises(ValidationError, match=r"row 2, key 'b': .*`\$.name`"):
        writer.publish([("a", Country("A")), ("b", {"name": 3})])
    with pytest.raises(ValidationError, match=r"row 1, key 'x': .*Country has no field 'nom'"):
        writer.publish([("x", {"nom": "A"})])
    assert writer.version == 1
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValidationError, match="nested too deeply"):
        view_of(Table(key=str), {"a": nested})


def test_rows_are_streamed(writer: Writer[Any]) -> None:
    """A generator's rows are let go one by one, and its own error comes out as it is."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Row(msgspec.Struct, frozen=True, weakref=True):
        n: int

    def rows(n: int) -> Iterator[tuple[str, Row]]:
        nonlocal most
        for k in range(n):
            row = Row(k)
            alive.add(row)
            most = max(most, len(alive))
            yield f"k{k}", row
        if n > 5000:
            raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here"):
        Table(key=str, value=Row).encode_parts(rows(6000))
    assert most <= 3
    view = view_of(Table(key=str, value=Row), rows(5000))
    assert view["k4999"] == Row(4999)
    assert writer.publish([key, value] for key, value in ROWS.items()) == 2
    tracemalloc.start()
    try:
        Table(key=int).encode_parts((k, str(k)) for k in range(20_000))
        assert tracemalloc.get_traced_memory()[1] < 100_000  # what Python's own objects took at most
    finally:
        tracemalloc.stop()


def test_a_table_is_changed_as_a_whole(name: str, writer: Writer[Any]) -> None:
    """update builds it anew; edit and patch say what to do instead; rollback repeats what was there."""
    assert writer.update(lambda old: {**old, "it": Country("Italy")}) == 2
    assert writer.update(lambda old: old) == 3
    with pytest.raises(ValidationError, match=r"(?s)cannot edit a .*Writer.update"), writer.edit():
        pass
    with pytest.raises(ValidationError, match=r"(?s)cannot patch a .*Writer.update"):
        writer.patch(it=Country("Italia"))
    reader = Reader(name, codec=CODES)
    assert list(reader.get()) == ["de", "fr", "de-AT", "it"]
    writer.rollback(1)
    assert reader.get() == ROWS


def test_a_bundle_shares_a_table_that_did_not_change(name: str) -> None:
    """Publishing equal rows again, or another part, needs no segment for the table; a view is published as it lies."""
    codec = Bundle(config=MsgPack(int), geo=CODES)
    with Writer(name, codec=codec) as writer:
        writer.publish({"config": 1, "geo": ROWS})  # type: ignore[arg-type]
        writer.publish({"config": 2, "geo": dict(ROWS)})  # type: ignore[arg-type]
        writer.publish_parts(config=3)
        view = Reader(name, codec=codec).get()
        writer.publish({"config": 4, "geo": view.geo})  # type: ignore[arg-type]
        assert view.geo["de"] == Country("Germany", [49])
        assert len({segment for g in _generations(name) for segment in g.segments}) == 1 + 4
        with pytest.raises(ValidationError, match="part 'geo': row 2: the key 'a' is repeated"):
            writer.publish_parts(geo=[("a", Country("A"))] * 2)


def _generations(name: str) -> Any:
    import shmcow

    return shmcow.describe(name).generations


def test_readers_of_another_kind_are_told(name: str, writer: Writer[Any]) -> None:
    """Other keys, other values, another codec, and no key to publish with."""
    with pytest.raises(CodecMismatchError, match="keys of the table are of the type str, expected int"):
        Reader(name, codec=Table(key=int, value=Country)).get()
    with pytest.raises(CodecMismatchError, match="'table', expected 'msgpack'"):
        Reader(name, codec=MsgPack()).get()
    with pytest.raises(DecodeError, match=r"row 1, key 'de': .*Expected `int`"):
        Reader(name, codec=Table(key=str, value=int)).get()
    with pytest.raises(CodecMismatchError, match="keys of the table"):
        Writer(name, codec=Table(key=int)).publish({1: 1})
    with pytest.raises(CodecMismatchError, match="row 1, key 'de'"):
        Writer(name, codec=Table(key=str, value=int)).publish({"a": 1})
    with pytest.raises(CodecMismatchError, match="has none to check values with"):
        Writer(name, codec=Table(key=str)).publish({"a": 1})
    with pytest.raises((CodecMismatchError, ValidationError)):
        Writer(name).publish({"a": 1})
    assert writer.version == 1


def test_bad_codecs_are_refused() -> None:
    """Other keys, other codecs of values, mutable values."""
    for key in (float, tuple, "str", None, bool):
        with pytest.raises(TypeError, match="key= is str, bytes or int"):
            Table(key=key)
    with pytest.raises(TypeError, match="MessagePack"):
        Table(key=str, value=JSON(int))
    with pytest.raises(ValidationError, match="mutable"):
        Table(key=str, value=Mutable).check_frozen()
    with pytest.raises(ValidationError, match="name the type of the keys"):
        Table().encode_parts({"a": 1})
    with pytest.raises(TypeError):
        Table(str)  # type: ignore[call-overload]


def test_codecs_compare_and_travel() -> None:
    """Equal ones are equal, their schemas differ where their types do, and a pickle is an equal one."""
    codec = Table(key=str, value=Country)
    assert codec == pickle.loads(pickle.dumps(codec)) == Table(key=str, value=MsgPack(Country))
    assert hash(codec) == hash(Table(key=str, value=Country))
    assert repr(codec) == "Table(key=str, value=test_table.Country)"
    assert (repr(Table()), Table().fingerprint, Table().type_name) == ("Table()", b"", "")
    kinds = [Table(key=str), Table(key=bytes), Table(key=str, value=int), Table(key=str, value=Country)]
    assert len({kind.fingerprint for kind in kinds}) == len(kinds)
    assert codec.type_name == "Table[str, test_table.Country]"
    assert codec != Table(key=str)
    assert codec != 3


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def _from_point(point: Any) -> int:
    return int(point.x)


def _to_point(kind: Any, x: int) -> Any:
    return kind(x)


HOOKED = Table(key=int, value=MsgPack(Point, enc_hook=_from_point, dec_hook=_to_point))


def test_values_may_have_hooks() -> None:
    """A MsgPack codec's hooks make and take the values, also a plain number's."""
    view = view_of(HOOKED, {1: Point(5)})
    assert view[1].x == 5
    assert type(view[1]) is Point


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (float, 3.0), (float, 1e300), (int, 2**64 - 1), (int, -(2**63)), (str, "é" * 70_000), (bytes, b"x" * 300),
        (bool, False), (int | str, "a"), (int | None, None), (float | None, 2.5), (list[int], [1]),
    ],
)  # fmt: skip
def test_plain_values_are_what_they_were(type_: Any, value: Any) -> None:
    """Decoded in C or not, it is the same value of the same type."""
    found = view_of(Table(key=str, value=type_), {"k": value}, freeze=False)["k"]
    assert (type(found), found) == (type(value), value)


def test_equal_values_are_stored_once() -> None:
    """And different ones of equal kind are not: 1, 1.0 and True stay what they are."""
    one = memoryview(Table(key=int).encode_parts(dict.fromkeys(range(1000), "x" * 100))[0].buffers[0]).nbytes
    many = memoryview(Table(key=int).encode_parts({k: f"{k:0100}" for k in range(1000)})[0].buffers[0]).nbytes
    assert one < 35_000 < 130_000 < many
    found = list(view_of(Table(key=int), {1: 1, 2: 1.0, 3: True}).values())
    assert [(type(v), v) for v in found] == [(int, 1), (float, 1.0), (bool, True)]


@pytest.mark.parametrize("spread", [1, 30, 400], ids=["all alike", "mixed", "most too long for a cell"])
def test_rows_of_any_length_are_found(spread: int) -> None:
    """In cells, as records, with a value of their own or one that they share; and no key that is not there."""
    rng = random.Random(spread)
    rows: dict[str, Any] = {}
    for k in range(3000):
        key = f"{k:04}" + "é" * rng.randrange(spread)
        rows[key] = rng.choice([k % 7, f"own {k}", f"own {k}" + "x" * rng.randrange(2 * spread), None, "shared" * 60])
    view = view_of(Table(key=str), rows)
    assert list(view.items()) == list(rows.items())
    assert all(view[key] == value for key, value in rows.items())
    assert view.get_many(list(rows)) == list(rows.values())
    assert not any(key + "é" in view or key[:-1] in view for key in rows)
    assert Table(key=str).prove(view) is None


# ---- memory ----


def test_memory_goes_with_the_last_view(name: str, writer: Writer[Any]) -> None:
    """A view keeps its version held, whatever else is let go; and not an instant longer."""
    reader = Reader(name, codec=CODES)
    view = reader.get()
    walk = iter(view.items())
    writer.publish({"x": Country("X")})
    assert list(reader.get()) == ["x"]
    with pytest.raises(WaitTimeoutError):
        writer.wait_unused(1, timeout=0)
    gone = weakref.ref(view)
    del view
    assert next(walk) == ("de", ROWS["de"])
    with pytest.raises(WaitTimeoutError):
        writer.wait_unused(1, timeout=0)
    del walk
    assert gone() is None
    writer.wait_unused(1, timeout=0)


def kept_by(view: TableView[int, Any], n: int) -> int:
    """Ask for all values 0 to n - 1, twice each, and return the bytes that are kept of them."""
    tracemalloc.start()
    try:
        for k in range(n):
            assert view[k] == view[k]  # a text is kept when it is asked for again
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("make", "n", "least", "most"),
    [
        (lambda k: f"text {k}", 20_000, 250_000, 400_000),
        (lambda k: k / 2, 20_000, 150_000, 250_000),
        (lambda k: ["text", 1.5, 1000, {"key": k}], 20_000, 500_000, 2_000_000),
        (lambda k: f"{k:3000}", 1_000, 256 * 3_000, 300 * 3_000),
        (lambda k: f"{k:300000}", 200, 15_000_000, 18_000_000),
    ],
    ids=["texts", "numbers", "lists", "large ones", "larger ones"],
)
def test_decoded_values_are_kept_within_bounds(make: Callable[[int], Any], n: int, least: int, most: int) -> None:
    """A process that looks up everything has no copy of everything, and uses what it may use."""
    assert least < kept_by(view_of(Table(key=int), ((k, make(k)) for k in range(n))), n) < most


def test_some_values_stay_however_large() -> None:
    """Who uses 200 large values has them decoded once, though smaller ones come and go meanwhile."""
    rows = [(k, [f"value {k}", "x" * 10_000]) for k in range(200)] + [(k, [k]) for k in range(200, 250)]
    view = view_of(Table(key=int), rows)
    first = [view[k] for k in range(250)]
    assert all(view[k] is first[k] for k in range(250))


def test_what_is_used_all_the_time_comes_back_into_the_cache() -> None:
    """Values that were pushed out by others are kept again once they are asked for."""
    view = view_of(Table(key=int), ((k, [f"value {k}", "x" * 500]) for k in range(5_000)))
    first = view[0]
    for k in range(1, 5_000):
        view[k]
    assert view[0] is not first
    assert view[0] is view[0]


def test_values_that_are_asked_for_once_are_not_kept() -> None:
    """Else who reads everything once would have the cache full of what nobody asks for again."""
    n = 20_000
    view = view_of(Table(key=int, value=str), ((k, f"value {k} " * 10) for k in range(n)))
    tracemalloc.start()
    try:
        for k in range(n):
            view[k]
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 200_000
    found = view[7], view[7], view[7]
    assert found[1] is found[2]


def test_cycles_through_a_view_are_collected() -> None:
    """A cached value that refers to its table does not keep it; nor does an iterator."""
    view = view_of(HOOKED, {1: Point(5), 2: Point(6)})
    view[1].table = view  # type: ignore[attr-defined]
    view[2].walk = iter(view)  # type: ignore[attr-defined]
    gone = weakref.ref(view)
    del view
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("width", [1, 500], ids=["sets overflow", "values weigh too much"])
def test_a_finalizer_of_a_value_may_look_something_up(width: int) -> None:
    """Values that are dropped from the cache run Python code, while others are looked up."""
    calls = 0

    class Noisy(Point):
        def __del__(self) -> None:
            nonlocal calls
            calls += 1
            if calls < 20_000:
                views[0].get(calls % 9000)

    hooks = MsgPack(Noisy, enc_hook=lambda point: f"{point.x:>{width}}", dec_hook=lambda kind, text: kind(int(text)))
    codec = Table(key=int, value=hooks)
    views = [view_of(codec, ((k, Point(k)) for k in range(9000)))]
    for k in range(9000):
        assert views[0][k].x == k
    assert calls > 1000
    calls = 20_000


def test_a_builder_is_used_once() -> None:
    """A builder is of no more use after an error, and cannot be entered twice."""
    from shmcow import _core

    builder = _core.TableBuilder(1, b"", 7)
    with pytest.raises(BufferError, match="not finished"):
        memoryview(builder)

    def again() -> Iterator[Any]:
        with pytest.raises(RuntimeError, match="at work"):
            builder.extend([], len)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="at work"):
            builder.finish()
        yield "a", 1

    builder.extend(again(), msgspec.msgpack.encode)
    builder.finish()
    with pytest.raises(RuntimeError, match="finished"):
        builder.extend([], msgspec.msgpack.encode)
    for bad in ((0, b"", 1), (4, b"", 1), (1, b"x", 1)):
        with pytest.raises(ValueError, match="a table of the kind"):
            _core.TableBuilder(*bad)
    assert memoryview(builder).readonly
