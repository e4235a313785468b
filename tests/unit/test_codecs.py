# ruff: noqa: ARG001
"""Codecs: what goes in comes out, and whatever goes wrong is one of two errors."""

from __future__ import annotations

import array
import datetime as dt
import decimal
import enum
import math
import pickle
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import attrs
import msgspec
import pytest

from shmcow.codecs import JSON, Codec, MsgPack, Part, Raw, StoredPart, for_name
from shmcow.errors import CodecMismatchError, CorruptSegmentError, DecodeError, ValidationError
from shmcow.frozen import FrozenDict, FrozenList, freeze

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "r"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: str = ""


class Keys(TypedDict, total=False):
    a: int


@dataclass(frozen=True)
class Plain:
    a: int
    b: list[int] = field(default_factory=list)
    c: int = field(init=False, default=4)


@dataclass(frozen=True, slots=True)
class Slotted:
    a: list[int]


@attrs.frozen
class Att:
    a: int
    b: tuple[int, ...] = ()


class Cat(msgspec.Struct, frozen=True, tag=True):
    lives: int = 9


class Dog(msgspec.Struct, frozen=True, tag=True):
    friends: list[Cat | Dog] = []


class Box(msgspec.Struct, Generic[T], frozen=True):
    item: T


class Row(msgspec.Struct, frozen=True, array_like=True):
    a: int
    b: int = 0


class Sparse(msgspec.Struct, frozen=True, omit_defaults=True):
    a: int | msgspec.UnsetType = msgspec.UNSET
    b: int = 1


class Limited(msgspec.Struct, frozen=True):
    # Inside a class: msgspec.Meta itself does not pickle.
    a: Annotated[int, msgspec.Meta(ge=5)]


class Config(msgspec.Struct, frozen=True, rename="camel"):
    time_out: float = 1.0
    hosts: list[str] = []


UTC = dt.UTC
NESTED: Any = None
for _ in range(200):
    NESTED = {"a": [NESTED]}

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (None, Any),
    (None, int | None),
    (True, bool),
    (0, int),
    (-(2**63), int),
    (2**64 - 1, int),
    (1.5, float),
    (-0.0, float),
    ("", str),
    ("żółw 🐢\x00", str),
    (b"", bytes),
    (bytes(range(256)), bytes),
    (bytearray(b"x"), bytearray),
    (dt.datetime(2024, 2, 29, 12, 30, 1, 5), dt.datetime),
    (dt.datetime(2024, 2, 29, tzinfo=UTC), dt.datetime),
    (dt.datetime(2024, 2, 29, tzinfo=dt.timezone(dt.timedelta(hours=2))), dt.datetime),
    (dt.date(1, 1, 1), dt.date),
    (dt.time(23, 59, 59, 999999), dt.time),
    (dt.timedelta(days=-1, microseconds=3), dt.timedelta),
    (uuid.UUID(int=5), uuid.UUID),
    (decimal.Decimal("1.10"), decimal.Decimal),
    (Colour.RED, Colour),
    (Level.LOW, Level),
    ((1, "a"), tuple[int, str]),
    ((), tuple[int, ...]),
    (Point(1), Point),
    ({"a": 1}, Keys),
    ({}, Keys),
    (Plain(1, [2]), Plain),
    (Slotted([1]), Slotted),
    (Att(1, (2,)), Att),
    (Cat(), Cat | Dog),
    (Dog([Cat(1), Dog()]), Cat | Dog),
    (Row(1), Row),
    (Row(1, 2), Row),
    (Sparse(), Sparse),
    (Sparse(2, 3), Sparse),
    ("a", Literal["a", "b"]),
    ({1, 2}, set[int]),
    (frozenset({1}), frozenset[int]),
    (frozenset({(1, 2)}), frozenset[tuple[int, int]]),
    (Box(Box([None, 1])), Box[Box[list[int | None]]]),
    ([], list[int]),
    ({}, dict[str, int]),
    ({1: {2.5: None}}, dict[int, dict[float, None]]),
    ({dt.date(2024, 1, 1): 1}, dict[dt.date, int]),
    ([[], {}, "", 0, None, False], Any),
    (NESTED, Any),
    (Limited(5), Limited),
    (Config(2.0, ["a"]), Config),
]
IDS = [f"{type(value).__name__}-{index}" for index, (value, _) in enumerate(ROUND_TRIPS)]


def payload(codec: Codec[Any], value: Any) -> memoryview:
    (part,) = codec.encode_parts(value)
    assert part[:2] == ("", codec.name)
    return memoryview(b"".join(bytes(memoryview(buffer)) for buffer in part.buffers)).toreadonly()


def round_trip(codec: Codec[Any], value: Any) -> Any:
    return codec.decode_parts([StoredPart(payload(codec, value))])


@pytest.mark.parametrize("codec_class", [MsgPack, JSON])
@pytest.mark.parametrize(("value", "tp"), ROUND_TRIPS, ids=IDS)
def test_what_goes_in_comes_out(codec_class: Any, value: Any, tp: Any) -> None:
    """With the type, frozen or not, and also from a pickled codec."""
    codec = codec_class(tp)
    back = round_trip(codec, value)
    assert back == value
    assert type(back) is type(value)
    assert round_trip(pickle.loads(pickle.dumps(codec)), freeze(value)) == value
    codec.check_frozen()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_msgpack_keeps_nan_and_infinities(value: float) -> None:
    """Bit for bit what was published."""
    back = round_trip(MsgPack(float), value)
    assert repr(back) == repr(value)


class FloatEnum(enum.Enum):
    BAD = math.nan


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda x: x, "$"),
        (lambda x: {"a": [None, x]}, "$.a[1]"),
        (lambda x: {"not a name": x}, "$[...]"),
        (lambda x: Box((1, x)), "$.item[1]"),
        (lambda x: [Plain(x)], "$[0].a"),
        (lambda x: [Att(x)], "$[0].a"),
        (lambda x: Point(x), "$[0]"),
        (lambda x: {x}, "$[...]"),
    ],
)
def test_json_refuses_what_it_would_turn_into_null(bad: float, wrap: Any, path: str) -> None:
    """msgspec writes null for it, which would publish another value: an error, with the path."""
    with pytest.raises(ValidationError) as caught:
        JSON().encode_parts(wrap(bad))
    assert f"`{path}`" in str(caught.value)
    assert "MsgPack" in str(caught.value)


def test_json_sees_a_nan_behind_an_enum_and_a_hook() -> None:
    """And lets real nulls, the word itself, and a hook's own answer pass."""
    with pytest.raises(ValidationError, match="NaN"):
        JSON().encode_parts([FloatEnum.BAD])
    with pytest.raises(ValidationError, match="NaN"):
        JSON(enc_hook=lambda obj: [obj.real]).encode_parts({"z": complex(math.nan)})

    class MyFloat(float):
        pass

    codec = JSON(enc_hook=lambda obj: "nan" if isinstance(obj, MyFloat) else str(obj))
    assert round_trip(codec, [None, "null", MyFloat("nan"), complex(1)]) == [None, "null", "nan", "(1+0j)"]
    assert round_trip(JSON(), {"null": None, "f": 1.5}) == {"null": None, "f": 1.5}


@pytest.mark.parametrize("codec_class", [MsgPack, JSON])
@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        (object(), "$", "object"),
        ({"a": [1, {"b": object()}]}, "$.a[1].b", "object"),
        (Box([complex(1)]), "$.item[0]", "complex"),
        ({"user@example.com": object()}, "$[...]", "object"),
        (["\ud800"], "$[0]", "surrogates"),
    ],
)
def test_encode_errors_say_what_and_where(codec_class: Any, value: Any, path: str, said: str) -> None:
    """A ValidationError, chained, that hides keys which may be data."""
    with pytest.raises(ValidationError, match=said) as caught:
        codec_class().encode_parts(value)
    assert f"`{path}`" in str(caught.value)
    assert codec_class.name in str(caught.value)
    assert caught.value.__cause__ is not None


def test_msgpack_refuses_integers_beyond_64_bits() -> None:
    """OverflowError becomes a ValidationError with the path."""
    with pytest.raises(ValidationError, match=r"`\$\.a` \(int\).*2\*\*64"):
        MsgPack().encode_parts({"a": 2**64})


def deep_and_cyclic() -> list[Any]:
    deep: Any = []
    for _ in range(200_000):
        deep = [deep]
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    return [deep, cyclic]


@pytest.mark.parametrize("codec_class", [MsgPack, JSON])
def test_nesting_without_end_is_an_error_of_ours(codec_class: Any) -> None:
    """On the way in, and on the way out with a hostile payload."""
    for value in deep_and_cyclic():
        with pytest.raises(ValidationError, match="nested too deeply, or contains itself"):
            codec_class().encode_parts(value)
    hostile = b"[" * 200_000 if codec_class is JSON else b"\x91" * 200_000
    with pytest.raises(DecodeError, match="nested too deeply"):
        codec_class().decode_parts([StoredPart(memoryview(hostile))])


@pytest.mark.parametrize(
    ("codec", "data", "said"),
    [
        (MsgPack(), b"", "truncated"),
        (MsgPack(), b"\xc1", "malformed"),
        (MsgPack(), b"\xa1\xff", "utf-8"),
        (MsgPack(), b"\x81\x81\x01\x01\x01", "hashable"),
        (MsgPack(dict[str, list[int]]), b"\x81\xa1a\x91\xa1b", r"Expected `int`, got `str` - at `\$\[...\]\[0\]`"),
        (MsgPack(Config), b"\x81\xa5hosts\x01", r"Expected `array`, got `int` - at `\$.hosts`"),
        (MsgPack(Annotated[int, msgspec.Meta(ge=3)]), b"\x01", ">= 3"),
        (JSON(), b"", "truncated"),
        (JSON(), b"{", "truncated"),
        (JSON(), b"nope", "malformed"),
        (JSON(int), b'"1"', "Expected `int`"),
        (JSON(Cat | Dog), b'{"type":"Cow"}', r"Invalid value .* at `\$\.type`"),
    ],
)
def test_decode_errors_say_what_and_where(codec: Codec[Any], data: bytes, said: str) -> None:
    """msgspec's message and path, with the codec and the type."""
    with pytest.raises(DecodeError, match=said) as caught:
        codec.decode_parts([StoredPart(memoryview(data))])
    assert caught.value.__cause__ is not None
    assert codec.name in str(caught.value)
    assert codec.type_name in str(caught.value)


def test_strict_false_converts() -> None:
    """As in msgspec."""
    assert round_trip(MsgPack(int, strict=False), "1") == 1
    with pytest.raises(DecodeError):
        round_trip(MsgPack(int), "1")


def enc_complex(obj: Any) -> Any:
    if isinstance(obj, complex):
        return [obj.real, obj.imag]
    raise NotImplementedError(f"no hook for {type(obj).__name__}")


def dec_complex(tp: Any, obj: Any) -> Any:
    return tp(*obj)


@pytest.mark.parametrize("codec_class", [MsgPack, JSON])
def test_hooks_encode_and_decode_other_classes(codec_class: Any) -> None:
    """Also after pickling the codec."""
    codec = codec_class(dict[str, complex], enc_hook=enc_complex, dec_hook=dec_complex)
    for each in (codec, pickle.loads(pickle.dumps(codec))):
        assert round_trip(each, {"a": 1 + 2j}) == {"a": 1 + 2j}
    with pytest.raises(ValidationError, match=r"`\$\.a` \(set\)|NotImplementedError.*no hook for object"):
        codec.encode_parts({"a": object()})


@pytest.mark.parametrize("error", [KeyError("k"), ValueError("v"), ValidationError("ours"), RuntimeError("r")])
def test_whatever_a_decode_hook_raises_is_a_decode_error(error: Exception) -> None:
    """Chained, so that nothing else reaches the reader."""

    def hook(tp: Any, obj: Any) -> Any:
        raise error

    with pytest.raises(DecodeError) as caught:
        MsgPack(complex, dec_hook=hook).decode_parts([StoredPart(memoryview(b"\x01"))])
    assert str(error) in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupts_and_memory_errors_pass_through(error: type[BaseException]) -> None:
    """They say nothing about the value."""

    def hook(*args: Any) -> Any:
        raise error

    with pytest.raises(error):
        MsgPack(complex, dec_hook=hook).decode_parts([StoredPart(memoryview(b"\x01"))])
    with pytest.raises(error):
        MsgPack(enc_hook=hook).encode_parts(1j)


@pytest.mark.parametrize(
    ("tp", "value", "data"),
    [
        (list[memoryview], [b"abc"], lambda x: bytes(x[0])),
        (dict[str, msgspec.Raw], {"a": [1]}, lambda x: bytes(x["a"])),
        (Box[msgspec.Raw], Box([1]), lambda x: bytes(x.item)),
        (msgspec.msgpack.Ext, msgspec.msgpack.Ext(1, b"abc"), lambda x: x.data),
        (Any, msgspec.msgpack.Ext(1, b"abc"), lambda x: x.data),
        (Any, {"a": b"abc"}, lambda x: x["a"]),
    ],
)
def test_a_decoded_value_never_looks_into_the_segment(tp: Any, value: Any, data: Any) -> None:
    """The reader lets go of the version at once, so even Raw and memoryview must be copies."""
    codec = MsgPack(tp)
    segment = bytearray(payload(codec, value))
    view = memoryview(segment)
    decoded = codec.decode_parts([StoredPart(view)])
    before = data(decoded)
    view.release()
    segment[:] = bytes(len(segment))
    assert data(decoded) == before
    segment.clear()  # BufferError if anything still exported it
    assert codec.holds is False


def test_decoding_freezes_nothing_by_itself() -> None:
    """That is the reader's choice."""
    assert type(round_trip(MsgPack(), {"a": []})) is dict
    assert round_trip(MsgPack(), FrozenDict(a=FrozenList())) == {"a": []}


def test_equality_repr_and_hash_go_by_type() -> None:
    """repr shows no values; codecs with other hooks are other codecs."""
    assert MsgPack(Config) == MsgPack(Config)
    assert hash(MsgPack(Config)) == hash(MsgPack(Config))
    assert MsgPack(Config) != MsgPack(Cat)
    assert MsgPack(Config) != JSON(Config)
    assert MsgPack(int) != MsgPack(int, strict=False)
    assert MsgPack(complex, dec_hook=dec_complex) != MsgPack(complex)
    assert repr(MsgPack(Config)) == f"MsgPack({__name__}.Config)"
    assert repr(JSON()) == "JSON()"
    assert MsgPack(None) == MsgPack() == MsgPack(Any)
    odd = Annotated[int, msgspec.Meta(extra={"a": []})]
    assert hash(MsgPack(odd)) == hash(MsgPack(odd))


def test_fingerprint_and_type_name_come_from_the_type() -> None:
    """The codec's name is no part of them."""
    assert MsgPack(Config).fingerprint == JSON(Config).fingerprint != b""
    assert MsgPack().fingerprint == Raw().fingerprint == b""
    assert MsgPack(Config).type_name == f"{__name__}.Config"
    assert MsgPack().type_name == Raw().type_name == ""


@pytest.mark.parametrize("bad", [Cat | Plain, 3, "Forward"])
def test_an_unsupported_type_is_refused_when_the_codec_is_made(bad: Any) -> None:
    """Not at the first read."""
    with pytest.raises(ValidationError, match="cannot use"):
        MsgPack(bad)


def test_a_hook_that_cannot_be_called_is_refused() -> None:
    """When the codec is made."""
    with pytest.raises(TypeError, match="dec_hook must be callable"):
        JSON(int, dec_hook=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="enc_hook must be callable"):
        JSON(int, enc_hook=3)  # type: ignore[arg-type]


def test_check_frozen_refuses_a_mutable_type() -> None:
    """The path is in the message; without a type there is nothing to say."""

    class Mutable(msgspec.Struct):
        a: int

    with pytest.raises(ValidationError, match=r"`\$\[\.\.\.\]`"):
        MsgPack(list[Mutable]).check_frozen()
    MsgPack().check_frozen()
    Raw().check_frozen()


@pytest.mark.parametrize(
    "value",
    [
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abc"),
        memoryview(b"xabcx")[1:4],
        array.array("d", [1.5, 2.5]),
        memoryview(array.array("i", range(6))).cast("B").cast("i", [2, 3]),
        b"",
        memoryview(b"").cast("B"),
    ],
)
def test_raw_publishes_any_buffer_without_a_copy(value: Any) -> None:
    """The buffer points into the caller's; what comes back is the view, read-only, without a copy."""
    codec = Raw()
    (part,) = codec.encode_parts(value)
    (buffer,) = part.buffers
    assert bytes(memoryview(buffer)) == memoryview(value).tobytes()
    if memoryview(value).nbytes:
        assert isinstance(buffer, memoryview)
        assert buffer.obj is memoryview(value).obj
        assert (buffer.format, buffer.ndim) == ("B", 1)
    segment = bytearray(memoryview(value).tobytes())
    view = codec.decode_parts([StoredPart(memoryview(segment))])
    assert isinstance(view, memoryview)
    assert view.readonly
    assert view.obj is segment
    assert codec.holds is True


@pytest.mark.parametrize("bad", ["text", 1, [1], None, memoryview(b"abcd")[::2]])
def test_raw_refuses_what_is_no_contiguous_buffer(bad: Any) -> None:
    """With what to do instead."""
    with pytest.raises(ValidationError, match="with raw"):
        Raw().encode_parts(bad)


def test_raw_codecs_are_all_alike() -> None:
    """Equal, hashable, picklable, and different from the rest."""
    assert Raw() == Raw() == pickle.loads(pickle.dumps(Raw()))
    assert hash(Raw()) == hash(Raw())
    assert Raw() != MsgPack()
    assert repr(Raw()) == "Raw()"


@pytest.mark.parametrize(
    ("name", "tp", "codec"),
    [
        ("msgpack", Any, MsgPack()),
        ("msgpack", Config, MsgPack(Config)),
        ("json", dict[str, int], JSON(dict[str, int])),
        ("json", None, JSON()),
        ("raw", Any, Raw()),
        ("raw", None, Raw()),
    ],
)
def test_for_name_makes_the_built_in_codecs(name: str, tp: Any, codec: Codec[Any]) -> None:
    """By the name that a store keeps."""
    assert for_name(name, tp) == codec
    assert for_name(name).name == name


def test_for_name_refuses_others() -> None:
    """An unknown name lists the known ones; raw has no type."""
    with pytest.raises(CodecMismatchError, match=r"'tables' \(known: arrays, .*, table\)"):
        for_name("tables", Any)
    with pytest.raises(CodecMismatchError, match="has no type of its own"):
        for_name("raw", bytes)


class Two(Codec[dict[str, Any]]):
    """A codec of two parts, as a bundle will be."""

    name = "two"

    def split(self, value: dict[str, Any]) -> list[Part]:
        return [part._replace(name=key) for key in ("a", "b") for part in MsgPack().encode_parts(value[key])]

    def join(self, parts: Sequence[StoredPart]) -> dict[str, Any]:
        if len(parts) == 3:
            raise CorruptSegmentError("three")
        return {key: MsgPack().decode_parts([part]) for key, part in zip(("a", "b"), parts, strict=True)}


def test_a_codec_of_several_parts_needs_split_and_join_only() -> None:
    """Inner errors keep their class and message; others are mapped."""
    codec = Two()
    parts = codec.encode_parts({"a": 1, "b": [2]})
    assert [part[:2] for part in parts] == [("a", "msgpack"), ("b", "msgpack")]
    stored = [StoredPart(memoryview(b"".join(bytes(memoryview(item)) for item in part.buffers))) for part in parts]
    assert codec.decode_parts(stored) == {"a": 1, "b": [2]}
    with pytest.raises(ValidationError, match="with two: KeyError: 'b'"):
        codec.encode_parts({"a": 1})
    with pytest.raises(ValidationError, match="with msgpack"):
        codec.encode_parts({"a": 1, "b": object()})
    with pytest.raises(DecodeError, match="cannot decode two"):
        codec.decode_parts(stored[:1])
    with pytest.raises(DecodeError, match="cannot decode msgpack"):
        codec.decode_parts([StoredPart(memoryview(b""))] * 2)
    with pytest.raises(CorruptSegmentError, match="three"):
        codec.decode_parts(stored + stored[:1])


def test_a_codec_of_one_part_refuses_several() -> None:
    """A version of several parts was published with another codec."""
    with pytest.raises(DecodeError, match="expected one part for the msgpack codec, found 2"):
        MsgPack().decode_parts([StoredPart(memoryview(b"\x01"))] * 2)


def test_a_codec_that_overrides_nothing_says_so() -> None:
    """Which methods to override."""

    class Empty(Codec[int]):
        name = "empty"

    with pytest.raises(ValidationError, match="must override encode and decode, or split and join"):
        Empty().encode_parts(1)
    with pytest.raises(DecodeError, match="must override"):
        Empty().decode_parts([StoredPart(memoryview(b""))])


@pytest.mark.parametrize("name", ["", "x" * 32, "nämé", "a\n"])
def test_a_codec_name_must_fit_the_store(name: str) -> None:
    """31 printable ASCII characters, checked when the class is made."""
    with pytest.raises(ValueError, match="codec's name"):
        type("Bad", (Codec,), {"name": name})


def test_one_codec_serves_many_threads() -> None:
    """Encoders and decoders are shared without a lock."""
    codec = MsgPack(dict[str, list[int]])
    problems: list[Any] = []

    def work(seed: int) -> None:
        for index in range(200):
            value = {str(seed): list(range(index)), "k": [seed, index]}
            if round_trip(codec, value) != value:
                problems.append((seed, index))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
