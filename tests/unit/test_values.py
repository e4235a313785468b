"""Values at the edges: what a Writer publishes is what a Reader gets, typed and untyped, in each codec."""

from __future__ import annotations

import array
import dataclasses
import datetime
import decimal
import enum
import gc
import math
import os
import typing
import uuid
from collections import namedtuple
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import attrs
import msgspec
import pytest

import shmcow
from shmcow import JSON, FrozenDict, FrozenList, MsgPack, Raw, Reader, Writer
from shmcow.segments import room

UTC = datetime.UTC


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Point(msgspec.Struct, frozen=True):
    x: int
    y: float = 0.5


class Tight(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, rename="camel"):
    first_name: str
    age: int = 0


class Cat(msgspec.Struct, frozen=True, tag="cat"):
    lives: int = 9


class Dog(msgspec.Struct, frozen=True, tag="dog"):
    good: bool = True


class Tree(msgspec.Struct, frozen=True):
    left: Tree | None = None
    right: Tree | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    a: int
    b: list[str]
    c: dict[str, Point] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class SlottedData:
    a: tuple[int, ...] = ()


@attrs.frozen
class Attrs:
    a: int
    b: list[str] = attrs.field(factory=list)


class Typed(TypedDict, total=False):
    a: int
    b: str


class Named(NamedTuple):
    a: int
    b: str = "b"


Plain = namedtuple("Plain", "a b")  # noqa: PYI024 - the untyped kind is the point

TYPED: list[tuple[Any, Any]] = [
    (None, None),
    (bool, True),
    (int, 0),
    (int, (1 << 63) - 1),
    (int, -(1 << 63)),
    (int, (1 << 64) - 1),
    (float, -0.0),
    (float, math.inf),
    (float, 5e-324),
    (float, 1.7976931348623157e308),
    (str, ""),
    (str, "naïve \U0001f600 \0 \x7f  \u202e"),
    (str, "x" * 200_000),
    (bytes, b""),
    (bytes, bytes(range(256)) * 300),
    (bytearray, bytearray(b"abc")),
    (list[int], []),
    (list[int], list(range(100_000))),
    (dict[str, int], {}),
    (dict[int, str], {1: "a", -5: "b"}),
    (dict[str, list[dict[str, float | None]]], {"a": [{"b": 1.5}, {"c": None}], "": []}),
    (set[int], {1, 2, 3}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], ()),
    (datetime.datetime, datetime.datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC)),
    (datetime.datetime, datetime.datetime(1, 1, 1, tzinfo=UTC)),
    (datetime.datetime, datetime.datetime(9999, 12, 31, 23, 59, 59)),
    (
        datetime.datetime,
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
    ),
    (datetime.date, datetime.date(1969, 12, 31)),
    (datetime.time, datetime.time(23, 59, 59, 1)),
    (datetime.timedelta, datetime.timedelta(days=-3, microseconds=7)),
    (decimal.Decimal, decimal.Decimal("1.1000000000000000000000000000001")),
    (decimal.Decimal, decimal.Decimal("-0")),
    (uuid.UUID, uuid.UUID(int=(1 << 128) - 1)),
    (Color, Color.BLUE),
    (Level, Level.HIGH),
    (dict[Color, Level], {Color.RED: Level.LOW}),
    (Literal["a", 5], 5),
    (Annotated[int, msgspec.Meta(ge=0, le=9)], 9),
    (int | str | None, "x"),
    (Point, Point(1)),
    (list[Point], [Point(1), Point(2, 3.5)]),
    (Tight, Tight("a")),
    (Cat | Dog, Dog(False)),
    (dict[str, Cat | Dog | None], {"a": Cat(1), "b": None, "c": Dog()}),
    (Tree, Tree(Tree(Tree()), Tree())),
    (Data, Data(1, ["x"], {"p": Point(1)})),
    (SlottedData, SlottedData((1, 2))),
    (Attrs, Attrs(1, ["x"])),
    (Typed, {"a": 1}),
    (Named, Named(1)),
    (list[Named], [Named(1, "x")]),
    (typing.Any, {"a": [1, None, True, 2.5, "x"]}),
]


# What a frozen value has in place of a mutable builtin; FrozenDict and FrozenList are subclasses of theirs.
FROZEN: dict[type, type] = {set: frozenset, bytearray: bytes}


def shown(case: tuple[Any, Any]) -> str:
    return f"{getattr(case[0], '__name__', case[0])}-{repr(case[1])[:20]}".encode("ascii", "replace").decode()


@pytest.mark.parametrize("codec", [MsgPack, JSON], ids=["msgpack", "json"])
@pytest.mark.parametrize(("type_", "value"), TYPED, ids=map(shown, TYPED))
def test_typed_value_comes_back_as_it_was(name: str, codec: type, type_: Any, value: Any) -> None:
    """A typed Reader gets an equal value of the same class."""
    if codec is JSON and isinstance(value, float) and not math.isfinite(value):
        with pytest.raises(shmcow.ValidationError):
            Writer(name, codec=JSON(type_), initial=value)
        return
    with Writer(name, codec=codec(type_), initial=value) as w:
        for got in (Reader(name, codec=codec(type_)).get(), w.snapshot().value):
            assert got == value
            assert isinstance(got, FROZEN.get(type(value), type(value)))
            if isinstance(value, float):
                assert math.copysign(1, got) == math.copysign(1, value)
        assert w.snapshot().copy() == value
        assert w.update(lambda old: old if old is not None else value) == 2 if value is not None else True


UNTYPED: list[Any] = [
    None,
    True,
    0,
    (1 << 64) - 1,
    -(1 << 63),
    -0.0,
    math.inf,
    "",
    "\U0001f600",
    b"",
    b"\0\xff",
    [],
    {},
    {"a": {"b": {"c": [1, [2, [3]]]}}},
    {1: "int key", "s": None},
    {True: 1, 2.5: 2, None: 3},
    datetime.datetime(2024, 1, 1, tzinfo=UTC),
]


@pytest.mark.parametrize(
    "value", UNTYPED, ids=[repr(value)[:30].encode("ascii", "replace").decode() for value in UNTYPED]
)
def test_untyped_value_comes_back_as_it_was(name: str, value: Any) -> None:
    """An untyped Reader gets equal builtins from MessagePack, deeply frozen."""
    with Writer(name, initial=value):
        got = Reader(name).get()
        assert got == value
        assert type(got) in (type(value), FrozenDict, FrozenList)


TO_BUILTINS: list[tuple[Any, Any]] = [
    (Point(1), {"x": 1, "y": 0.5}),
    (Data(1, ["x"]), {"a": 1, "b": ["x"], "c": {}}),
    (Attrs(1), {"a": 1, "b": []}),
    (Named(1), [1, "b"]),
    (Plain(1, 2), [1, 2]),
    ((1, (2, 3)), [1, [2, 3]]),
    ({1}, [1]),
    (Color.RED, "red"),
    (Bits.A | Bits.B, 3),
    (decimal.Decimal("1.50"), "1.50"),
    (uuid.UUID(int=5), str(uuid.UUID(int=5))),
    (datetime.date(2024, 1, 1), "2024-01-01"),
    (datetime.timedelta(seconds=90), "PT90S"),
    (bytearray(b"ab"), b"ab"),
    (memoryview(b"ab"), b"ab"),
    (FrozenDict({"a": FrozenList([1])}), {"a": [1]}),
]


@pytest.mark.parametrize(("value", "plain"), TO_BUILTINS, ids=[type(value).__name__ for value, _ in TO_BUILTINS])
def test_untyped_reader_gets_builtins_of_anything(name: str, value: Any, plain: Any) -> None:
    """What a type would tell apart is a builtin to a reader that has none."""
    with Writer(name, initial=value):
        assert Reader(name).get() == plain


def test_nan_stays_nan(name: str) -> None:
    """MessagePack carries NaN, typed and untyped."""
    with Writer(name, type=list[float], initial=[math.nan, -math.nan]):
        for r in (Reader(name), Reader(name, type=list[float])):
            assert all(math.isnan(x) for x in r.get())


@pytest.mark.parametrize("levels", [1, 50, 400])
def test_deeply_nested_values(name: str, levels: int) -> None:
    """Nesting as deep as msgspec goes is read, frozen, copied and published again."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    with Writer(name, initial=value) as w:
        assert Reader(name).get() == value
        assert w.snapshot().copy() == value
        assert w.update(lambda old: old) == 2


def test_nesting_beyond_what_a_reader_can_take_is_bad_news_only(name: str) -> None:
    """How deep a reader can go depends on its own stack: it reads the value, or keeps the last good one."""

    def from_a_deep_stack(frames: int, r: Reader[Any]) -> Any:
        return r.get() if frames == 0 else from_a_deep_stack(frames - 1, r)

    with Writer(name, initial="good") as w:
        r = Reader(name)
        assert r.get() == "good"
        value: Any = 1
        for _ in range(700):
            value = [value]
        w.publish(value)
        assert from_a_deep_stack(600, r) == "good"
        assert "nested too deeply" in str(r.problem)
        w.publish("better")
        assert r.get() == "better"


@pytest.mark.parametrize(
    "payload", [b"", b"x", bytes(63), bytes(64), bytes(65), os.urandom(1 << 20), os.urandom((1 << 20) + 1)], ids=len
)
def test_raw_bytes_of_any_length(name: str, payload: bytes) -> None:
    """Zero bytes, and lengths around the padding and the CRC's limit."""
    with Writer(name, codec=Raw(), initial=payload) as w:
        view = Reader(name, codec=Raw()).get()
        assert view == payload
        assert (view.readonly, view.format, view.ndim) == (True, "B", 1)
        assert Reader(name).snapshot().size_bytes == len(payload)
        assert bytes(w.snapshot().data) == payload
        del view


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray(b"abc"),
        memoryview(b"abc"),
        array.array("d", [1.5, 2.5]),
        memoryview(bytes(24)).cast("q", [3]),
        array.array("i"),
    ],
)
def test_raw_takes_any_contiguous_buffer(name: str, buffer: Any) -> None:
    """The bytes of an array or a cast view are published as they are."""
    with Writer(name, codec=Raw(), initial=buffer):
        assert bytes(Reader(name).get()) == bytes(buffer)


def test_raw_value_may_change_after_publish(name: str) -> None:
    """What was published is a copy: the caller's buffer is the caller's."""
    mine = bytearray(b"before")
    with Writer(name, codec=Raw(), initial=mine) as w:
        mine[:] = b"after!"
        assert bytes(Reader(name).get()) == b"before"
        mine.clear()
        assert bytes(w.snapshot().value) == b"before"


class Holder(msgspec.Struct, frozen=True):
    raw: msgspec.Raw
    view: memoryview


@pytest.mark.parametrize("type_", [Holder, list[Holder], dict[str, msgspec.Raw], list[memoryview]])
def test_fields_that_would_look_into_the_payload_are_copies(name: str, type_: Any) -> None:
    """Raw and memoryview fields stay valid after the version is reclaimed and unmapped, and hold nothing."""
    raw = msgspec.Raw(msgspec.msgpack.encode("r" * 5000))
    one = Holder(raw, memoryview(b"v" * 5000))
    value = (
        {Holder: one}.get(type_) or {list[Holder]: [one], dict[str, msgspec.Raw]: {"k": raw}}.get(type_) or [one.view]
    )
    with Writer(name, type=type_, initial=value, retain=0) as w:
        r = Reader(name, type=type_)
        got = r.get()
        assert not shmcow.describe(name).generations[0].marked
        w.publish(value)
        w.publish(value)
        r.get()
        gc.collect()
        assert msgspec.msgpack.encode(got) == msgspec.msgpack.encode(value)
        r.close()
        w.destroy()
        assert msgspec.msgpack.encode(got) == msgspec.msgpack.encode(value)


def test_ext_values_of_an_untyped_reader_are_copies(name: str) -> None:
    """MessagePack extension types come back with bytes of their own."""
    with Writer(name, initial=[msgspec.msgpack.Ext(5, b"e" * 5000)], retain=0) as w:
        got = Reader(name).get()
        w.publish(1)
        w.publish(2)
        assert got[0].code == 5
        assert bytes(got[0].data) == b"e" * 5000


class Number:
    def __init__(self, n: int) -> None:
        self.n = n


def encode_number(value: Any) -> Any:
    if isinstance(value, Number):
        return value.n
    raise NotImplementedError(type(value).__name__)


def decode_number(type_: type, value: Any) -> Any:
    return type_(value)


def test_hooks_carry_other_classes(name: str) -> None:
    """enc_hook and dec_hook of a codec take what msgspec does not know."""
    codec = MsgPack(Number, enc_hook=encode_number, dec_hook=decode_number)
    with Writer(name, codec=codec, initial=Number(7), freeze=False):
        assert Reader(name, codec=codec, freeze=False).get().n == 7


@pytest.mark.huge
def test_more_than_two_gib(name: str) -> None:
    """A payload beyond what one write() takes, and beyond 31 bits, is published and read whole."""
    size = (1 << 31) + 4097
    if room()[0] < size + (1 << 20):
        pytest.skip(f"needs {size >> 20} MiB free in /dev/shm: enlarge it (mount -o remount,size=4G /dev/shm)")
    payload = bytearray(size)
    marks = [0, 1, (1 << 31) - 1, 1 << 31, size - 1]
    for k, at in enumerate(marks):
        payload[at] = k + 1
    with Writer(name, codec=Raw(), retain=0) as w:
        w.publish(payload)
        del payload
        view = Reader(name).get()
        assert len(view) == size
        assert [view[at] for at in marks] == [1, 2, 3, 4, 5]
        assert Reader(name).snapshot().size_bytes == size
        del view
