"""Fingerprints: equal for equal schemas in any process, different for different ones."""

from __future__ import annotations

import datetime
import decimal
import enum
import os
import subprocess
import sys
import typing
import uuid
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union

import attrs
import msgspec
import pytest

from shmcow.errors import ValidationError
from shmcow.schema import fingerprint, type_name

T = TypeVar("T")


class Node(msgspec.Struct, frozen=True):
    value: int
    next: Node | None = None


class Box(msgspec.Struct, Generic[T], frozen=True):
    item: T


class Colour(enum.Enum):
    RED = "r"


class Pair(NamedTuple):
    a: int
    b: str = ""


class Keys(TypedDict, total=False):
    a: int


@dataclass(frozen=True)
class Plain:
    a: int
    b: list[int] = field(default_factory=list)


@attrs.frozen
class Att:
    a: int


TYPES: list[Any] = [
    bool,
    int,
    float,
    str,
    bytes,
    bytearray,
    memoryview,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    decimal.Decimal,
    msgspec.Raw,
    msgspec.msgpack.Ext,
    Colour,
    Literal["a", 1],
    Pair,
    Keys,
    Plain,
    Att,
    Node,
    Box[int],
    Box[str],
    list,
    list[int],
    set[int],
    frozenset[int],
    tuple[int, ...],
    tuple[int, str],
    tuple[()],
    dict[str, int],
    dict[int, str],
    int | None,
    int | str,
    complex,
    dict[str, Any],
    Annotated[int, msgspec.Meta(ge=0)],
    Annotated[int, msgspec.Meta(ge=1)],
    Annotated[str, msgspec.Meta(pattern="^a")],
    Annotated[datetime.datetime, msgspec.Meta(tz=True)],
]


def test_every_kind_of_type_has_its_own_fingerprint() -> None:
    """Sixteen bytes each, no two alike, the same on a second call."""
    prints = [fingerprint(tp) for tp in TYPES]
    assert {len(item) for item in prints} == {16}
    assert len(set(prints)) == len(TYPES)
    assert [fingerprint(tp) for tp in TYPES] == prints


def test_no_type_has_no_fingerprint() -> None:
    """With Any nothing can disagree."""
    assert fingerprint(Any) == fingerprint(None) == b""


def define(*fields: Any, name: str = "C", **options: Any) -> Any:
    return msgspec.defstruct(name, fields, frozen=True, **options)


BASE = define(("a", int), ("b", str, "x"))


@pytest.mark.parametrize(
    "same",
    [
        define(("a", int), ("b", str, "another default")),
        define(("a", int), ("b", str, "x"), name="Renamed", module="elsewhere"),
        define(("b", str, "x"), ("a", int), kw_only=True),
        define(("a", NewType("Id", int)), ("b", str, "x")),
        define(("a", Annotated[int, msgspec.Meta(description="for people")]), ("b", str, "x")),
    ],
    ids=["default value", "class name", "field order", "NewType", "description"],
)
def test_fingerprint_ignores_what_does_not_matter(same: Any) -> None:
    """Default values, class names, field order and documentation do not count."""
    assert fingerprint(same) == fingerprint(BASE)


@pytest.mark.parametrize(
    "other",
    [
        define(("a", int), ("b", str)),
        define(("a", int), ("c", str, "x")),
        define(("a", float), ("b", str, "x")),
        define(("a", int), ("b", str | None, "x")),
        define(("a", int)),
        define(("a", int), ("b", str, "x"), rename="upper"),
        define(("a", int), ("b", str, "x"), tag="t"),
        define(("a", int), ("b", str, "x"), array_like=True),
        define(("a", int), ("b", str, "x"), forbid_unknown_fields=True),
        define(("a", Annotated[int, msgspec.Meta(ge=1)]), ("b", str, "x")),
    ],
)
def test_fingerprint_sees_what_matters(other: Any) -> None:
    """Requiredness, names, encoded names, types, tags, layout and constraints count."""
    assert fingerprint(other) != fingerprint(BASE)


def test_field_order_counts_where_the_encoding_depends_on_it() -> None:
    """An array-like Struct and a named tuple are encoded by position."""
    one = define(("a", int), ("b", str), array_like=True)
    two = define(("b", str), ("a", int), array_like=True)
    assert fingerprint(one) != fingerprint(two)
    three, four = namedtuple("N", "a b"), namedtuple("N", "b a")  # noqa: PYI024
    assert fingerprint(three) != fingerprint(four)


def test_the_order_of_a_union_does_not_count() -> None:
    """typing's caches swap it depending on what ran before."""
    assert fingerprint(Union[int, str, None]) == fingerprint(None | str | int)  # type: ignore[operator]  # noqa: UP007
    left, right = define(("a", int), name="L", tag="l"), define(("b", int), name="R", tag="r")
    assert fingerprint(left | right) == fingerprint(right | left)
    assert fingerprint(Literal["a", "b"]) == fingerprint(Literal["b", "a"])


def test_a_change_at_the_far_end_of_a_chain_shows() -> None:
    """Hashing does not stop at the depth at which classes are told apart."""

    def chain(leaf: Any) -> Any:
        tp = leaf
        for index in range(8):
            tp = define((f"f{index}", tp))
        return tp

    assert fingerprint(chain(int)) == fingerprint(chain(int))
    assert fingerprint(chain(int)) != fingerprint(chain(str))


def test_recursive_types_have_fingerprints() -> None:
    """A type that contains itself ends, and differs from a near one."""

    class Other(msgspec.Struct, frozen=True):
        value: int
        next: Node | None = None

    assert fingerprint(Node) == fingerprint(Other), "unrolled once, the same schema"
    assert fingerprint(list[Node]) != fingerprint(Node)


def test_many_mutually_recursive_types_are_quick() -> None:
    """Expanding each class wherever it is used would take longer than the universe is old."""
    source = ["import msgspec, typing"]
    names = [f"T{index}" for index in range(25)]
    for name in names:
        source.append(f"class {name}(msgspec.Struct, frozen=True, tag=True):")
        source += [f"    f{index}: 'Any_'" for index in range(5)]
    source.append(f"Any_ = typing.Union[{', '.join(names)}]")
    space: dict[str, Any] = {"__name__": "fingerprint_many"}
    module = type(sys)("fingerprint_many")
    module.__dict__.update(space)
    sys.modules["fingerprint_many"] = module
    try:
        exec("\n".join(source), module.__dict__)
        assert len({fingerprint(getattr(module, name)) for name in names}) == 25
    finally:
        del sys.modules["fingerprint_many"]


SCRIPT = """
import enum, typing, msgspec
from shmcow.schema import fingerprint
class E(enum.Enum):
    A = "a"; B = "b"; C = "c"
class L(msgspec.Struct, tag=True): a: set[E]
class R(msgspec.Struct, tag=True): b: typing.Literal["x", "y", "z"] | int; n: "R | L | None" = None
class D(typing.TypedDict, total=False): x: R; y: L; z: dict[str, typing.Union[int, str, float, None]]
print(fingerprint(D).hex())
"""


def test_fingerprint_is_the_same_in_every_process() -> None:
    """Independent of the hash seed and of the process."""
    path = os.pathsep.join(item for item in sys.path if item)
    seen = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(seen) == 1


def test_fingerprint_never_changes_between_releases() -> None:
    """Stores outlive a deploy: an edit that changes this value makes every reader disagree with its store."""
    assert fingerprint(dict[str, int | None]).hex() == "d2dbba86f9ca4a68fb411af6efd82fba"
    assert fingerprint(Node).hex() == "b656c7968f24a73cc241ef3d620f2748"


def test_an_unhashable_type_still_works() -> None:
    """Not cached, but right."""
    tp = Annotated[int, msgspec.Meta(ge=0, extra={"a": []})]
    assert fingerprint(tp) == fingerprint(Annotated[int, msgspec.Meta(ge=0)])


@pytest.mark.parametrize("bad", [Node | Plain, 3, "Forward", list["Missing"]])  # type: ignore[name-defined]  # noqa: F821
def test_an_unsupported_type_is_a_validation_error(bad: Any) -> None:
    """msgspec's TypeError arrives as ours, chained, with advice."""
    with pytest.raises(ValidationError, match=r"cannot use .* as the type of a store") as caught:
        fingerprint(bad)
    assert caught.value.__cause__ is not None


def test_an_undefined_annotation_says_what_to_define() -> None:
    """The usual cause is a codec made before the class it refers to."""
    tp = msgspec.defstruct("Early", [("a", "NotYet")])
    with pytest.raises(ValidationError, match=r"NotYet.*define every class"):
        fingerprint(tp)


@pytest.mark.parametrize(
    ("tp", "name"),
    [
        (Any, ""),
        (None, ""),
        (int, "int"),
        (Node, f"{__name__}.Node"),
        (dict[str, int], "dict[str, int]"),
        (dict[str, Node | None], f"dict[str, {__name__}.Node | None]"),
        (typing.List[int], "list[int]"),  # noqa: UP006
        (Optional[int], "int | None"),  # noqa: UP045
        (Box[int], f"{__name__}.Box[int]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (tuple[()], "tuple[()]"),
        (dict[str, Any], "dict[str, Any]"),
        (Annotated[int, msgspec.Meta(ge=1)], "int"),
        (datetime.date, "datetime.date"),
        (T, "T"),
        (list["X"], "list[X]"),  # type: ignore[name-defined]  # noqa: F821
    ],
)
def test_type_names_are_for_people(tp: Any, name: str) -> None:
    """Qualified, without the noise of typing."""
    assert type_name(tp) == name
