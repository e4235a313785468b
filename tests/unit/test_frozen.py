"""Frozen values: nothing changes them, and they pass for plain ones."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import pickle
import sys
from collections import OrderedDict
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar

import attrs
import msgspec
import pytest

from shmcow.errors import ValidationError
from shmcow.frozen import FrozenDict, FrozenList, check_frozen, freeze, thaw

T = TypeVar("T")


class Pool(msgspec.Struct, frozen=True):
    hosts: list[str] = []
    size: int = 1


class Config(msgspec.Struct, frozen=True):
    pool: Pool = Pool()
    flags: dict[str, list[int]] = {}


class MutablePool(msgspec.Struct):
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Plain:
    items: list[int]
    derived: dict[str, int] = dataclasses.field(init=False, default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    items: list[int]


@dataclasses.dataclass
class MutablePlain:
    items: list[int]


@attrs.frozen
class Att:
    items: list[int]


@attrs.define
class MutableAtt:
    items: list[int]


class Point(NamedTuple):
    x: list[int]
    y: int = 0


class Keys(TypedDict):
    a: list[int]


class Colour(enum.Enum):
    RED = 1


class Base(msgspec.Struct, frozen=True, tag=True):
    pass


class Left(Base, frozen=True):
    items: list[int]


class Box(msgspec.Struct, Generic[T], frozen=True):
    item: T


class Node(msgspec.Struct, frozen=True):
    next: Node | None = None
    pool: MutablePool | None = None


class Tree(msgspec.Struct, frozen=True):
    children: list[Tree] = []


DICT_MUTATORS = {
    "setitem": lambda d: d.__setitem__("a", 2),
    "setitem_new": lambda d: d.__setitem__("z", 2),
    "delitem": lambda d: d.__delitem__("a"),
    "ior": lambda d: d.__ior__({"b": 1}),
    "clear": lambda d: d.clear(),
    "pop": lambda d: d.pop("a"),
    "popitem": lambda d: d.popitem(),
    "setdefault": lambda d: d.setdefault("b", 1),
    "update": lambda d: d.update(b=1),
}
LIST_MUTATORS = {
    "setitem": lambda x: x.__setitem__(0, 2),
    "setslice": lambda x: x.__setitem__(slice(None), []),
    "delitem": lambda x: x.__delitem__(0),
    "iadd": lambda x: x.__iadd__([1]),
    "imul": lambda x: x.__imul__(2),
    "append": lambda x: x.append(1),
    "clear": lambda x: x.clear(),
    "extend": lambda x: x.extend([1]),
    "insert": lambda x: x.insert(0, 1),
    "pop": lambda x: x.pop(),
    "remove": lambda x: x.remove(3),
    "reverse": lambda x: x.reverse(),
    "sort": lambda x: x.sort(),
}


@pytest.mark.parametrize("mutate", DICT_MUTATORS.values(), ids=DICT_MUTATORS)
def test_frozen_dict_refuses_every_mutator(mutate: Any) -> None:
    """Each mutator of a dict raises, says what to do instead, and changes nothing."""
    value = FrozenDict(a=1)
    with pytest.raises(TypeError, match=r"shared by all threads.*snap\.copy\(\).*Writer\.update"):
        mutate(value)
    assert value == {"a": 1}


@pytest.mark.parametrize("mutate", LIST_MUTATORS.values(), ids=LIST_MUTATORS)
def test_frozen_list_refuses_every_mutator(mutate: Any) -> None:
    """Each mutator of a list raises, says what to do instead, and changes nothing."""
    value = FrozenList([3, 1])
    with pytest.raises(TypeError, match=r"shared by all threads.*snap\.copy\(\).*Writer\.update"):
        mutate(value)
    assert value == [3, 1]


@pytest.mark.parametrize(
    ("frozen_class", "plain"),
    [(FrozenDict, dict), (FrozenList, list)],
)
def test_no_method_of_the_plain_class_was_forgotten(frozen_class: type, plain: type) -> None:
    """What is not overridden is known to leave the object alone, so a mutator new in Python fails here."""
    harmless = {
        "__add__", "__class__", "__class_getitem__", "__contains__", "__delattr__", "__dir__", "__eq__",
        "__format__", "__ge__", "__getattribute__", "__getitem__", "__getstate__", "__gt__", "__init_subclass__",
        "__iter__", "__le__", "__len__", "__lt__", "__mul__", "__ne__", "__or__", "__reduce__", "__repr__",
        "__reversed__", "__rmul__", "__ror__", "__setattr__", "__sizeof__", "__str__", "__subclasshook__", "copy",
        "count", "get", "index", "items", "keys", "values",
    }  # fmt: skip
    kept = {name for name in dir(plain) if getattr(frozen_class, name, None) == getattr(plain, name)}
    inherited = {name for name in kept if name not in vars(frozen_class)}
    assert inherited - harmless - {"__doc__", "__hash__", "__new__"} == set()


def test_calling_init_again_changes_nothing() -> None:
    """A list's own __init__ would empty it first."""
    items = FrozenList([1])
    items.__init__([2, 3])  # type: ignore[misc]
    keys = FrozenDict(a=1)
    keys.__init__(b=2)  # type: ignore[misc]
    assert items == [1]
    assert keys == {"a": 1}


def test_constructors_take_what_the_plain_ones_take() -> None:
    """Pairs, keywords, iterables, nothing."""
    assert FrozenDict() == {}
    assert FrozenDict([("a", 1)], b=2) == {"a": 1, "b": 2}
    assert FrozenDict.fromkeys("ab", 0) == {"a": 0, "b": 0}
    assert FrozenList() == []
    assert FrozenList("ab") == ["a", "b"]
    assert not hasattr(FrozenDict(), "__dict__")
    assert not hasattr(FrozenList(), "__dict__")


def test_operators_yield_plain_objects() -> None:
    """What a caller derives from a frozen value is the caller's."""
    keys, items = FrozenDict(a=1), FrozenList([1])
    for made, plain in [
        (keys | {"b": 2}, dict),
        ({"b": 2} | keys, dict),
        (keys.copy(), dict),
        (copy.copy(keys), dict),
        (items + [2], list),  # noqa: RUF005
        (items * 2, list),
        (items[:], list),
        (items.copy(), list),
        (copy.copy(items), list),
    ]:
        assert type(made) is plain


VALUE = {"a": [1, {"b": [2.5, None, "x"]}], "c": {}, "d": []}


def test_frozen_values_pass_for_plain_ones() -> None:
    """They compare, index, print and encode alike."""
    value = freeze(copy.deepcopy(VALUE))
    assert value == VALUE
    assert value["a"][1]["b"][0] == 2.5
    assert repr(value) == repr(VALUE)
    assert isinstance(value, dict)
    assert json.dumps(value) == json.dumps(VALUE)
    assert msgspec.json.encode(value) == msgspec.json.encode(VALUE)
    assert msgspec.msgpack.encode(value) == msgspec.msgpack.encode(VALUE)
    assert msgspec.to_builtins(value) == VALUE
    assert list(reversed(value["a"])) == list(reversed(VALUE["a"]))  # type: ignore[call-overload]


def plain_everywhere(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(map(plain_everywhere, value.values()))
    if isinstance(value, list):
        return type(value) is list and all(map(plain_everywhere, value))
    if isinstance(value, msgspec.Struct):
        return all(plain_everywhere(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, tuple):
        return all(map(plain_everywhere, value))
    if dataclasses.is_dataclass(value) or attrs.has(type(value)):
        return plain_everywhere(getattr(value, "items"))  # noqa: B009
    return True


RECORDS = [
    VALUE,
    [VALUE],
    (VALUE, 1),
    Config(Pool(["a"]), {"x": [1]}),
    {"k": Plain([1])},
    [Slotted([1])],
    [Att([1])],
    Point([1]),
    [Left([1])],
    Box([1]),
]


# Slotted frozen dataclasses and attrs classes pickle from protocol 2 on, as the same classes do without shmcow.
PICKLED = [
    pytest.param(plain, protocol, id=f"{type(plain).__name__}{k}-{protocol}")
    for k, plain in enumerate(RECORDS)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    if protocol >= 2 or not (isinstance(plain, list) and isinstance(plain[0], Slotted | Att))
]


@pytest.mark.parametrize(("plain", "protocol"), PICKLED)
def test_pickles_are_plain_all_the_way_down(plain: Any, protocol: int) -> None:
    """A pickle of a frozen value loads without shmcow's classes in it."""
    data = pickle.dumps(freeze(copy.deepcopy(plain)), protocol)
    assert b"shmcow" not in data
    assert pickle.loads(data) == plain
    assert plain_everywhere(pickle.loads(data))


@pytest.mark.parametrize("plain", RECORDS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("copier", [copy.deepcopy, thaw])
def test_deep_copies_are_plain_all_the_way_down(plain: Any, copier: Any) -> None:
    """deepcopy and thaw both give what the caller may change."""
    frozen = freeze(copy.deepcopy(plain))
    thawed = copier(frozen)
    assert thawed == plain == frozen
    assert type(thawed) is type(plain)
    assert plain_everywhere(thawed)
    assert not plain_everywhere(frozen)


@pytest.mark.parametrize(
    ("value", "frozen_type"),
    [
        ({}, FrozenDict),
        ([], FrozenList),
        (set(), frozenset),
        ({1}, frozenset),
        (bytearray(b"x"), bytes),
        (frozenset({1}), frozenset),
        (OrderedDict(a=1), OrderedDict),
    ],
)
def test_freeze_maps_each_container(value: Any, frozen_type: type) -> None:
    """Each container becomes its frozen twin and stays equal; unknown classes stay what they are."""
    frozen = freeze(value)
    assert type(frozen) is frozen_type
    assert frozen == value


@pytest.mark.parametrize(
    "value", [None, True, 1, 2**64, 1.5, "x", b"x", (), (1, ("a",)), Pool((), 1), Colour.RED, Point(1), object()]
)  # type: ignore[arg-type]
def test_freeze_returns_what_has_nothing_to_freeze(value: Any) -> None:
    """Nothing is rebuilt without need."""
    assert freeze(value) is value


def test_freeze_reaches_into_records_and_tuples() -> None:
    """The lists in a tuple, a Struct, a dataclass and an attrs instance are frozen; the classes stay."""
    value = freeze([(1, [2]), Point([1]), Pool(["a"]), Plain([1]), Slotted([1]), Att([1]), Left([1]), Box({"a": [1]})])
    assert [type(item) for item in value] == [tuple, Point, Pool, Plain, Slotted, Att, Left, Box]
    for item in (value[0][1], value[1].x, value[2].hosts, *(part.items for part in value[3:7]), value[7].item["a"]):
        assert type(item) is FrozenList
    assert type(value[3].derived) is FrozenDict


def test_freeze_does_not_touch_a_default_that_the_application_shares() -> None:
    """Decoded values share a Struct default with every new instance: it must stay as it was."""
    decoded = msgspec.msgpack.decode(b"\x80", type=Config)
    assert decoded.pool is Config().pool
    frozen = freeze(decoded)
    assert type(frozen.pool.hosts) is FrozenList
    assert type(Config().pool.hosts) is list


def test_freeze_of_a_hand_made_frozen_dict_goes_deeper() -> None:
    """The constructor freezes one level; freeze does the rest, and a second time nothing."""
    value = freeze(FrozenDict(a=FrozenList([[1]])))
    assert type(value["a"][0]) is FrozenList
    assert freeze(value) is value


@pytest.mark.parametrize("bad", [MutablePool(), MutablePlain([1]), MutableAtt([1])], ids=lambda v: type(v).__name__)
def test_freeze_names_the_path_of_a_mutable_record(bad: Any) -> None:
    """A mutable record that got through decoding is an error with a path."""
    with pytest.raises(ValidationError, match=r"not frozen at `\$\.a\[1\]\.item`.*freeze=False"):
        freeze({"a": [1, Box(bad)]})
    with pytest.raises(ValidationError, match=r"not frozen at `\$`"):
        freeze(bad)


def test_freeze_and_thaw_let_recursion_errors_through() -> None:
    """What is nested too deeply is the caller's to map."""
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]
    with pytest.raises(RecursionError):
        freeze(deep)
    with pytest.raises(RecursionError):
        thaw(deep)


def test_thaw_copies_what_is_mutable_and_shares_the_rest() -> None:
    """Mutable records, sets and bytearrays are copied; an immutable record is not."""
    plain, config = {1}, Pool((), 1)  # type: ignore[arg-type]
    mutable = MutablePool(3)
    value = thaw([plain, bytearray(b"x"), config, mutable, OrderedDict(a=[1])])
    assert value[0] == plain
    assert value[0] is not plain
    assert value[2] is config
    assert value[3] == mutable
    assert value[3] is not mutable
    assert thaw(b"x") == b"x"


@pytest.mark.parametrize(
    "good",
    [
        Any,
        None,
        int,
        Config,
        Plain,
        Slotted,
        Att,
        Point,
        Keys,
        Tree,
        dict[str, set[int]],
        Box[list[int]],
        Left | None,
        complex,
        bytearray,
        Annotated[dict[str, int], msgspec.Meta(min_length=1)],
    ],
)
def test_check_frozen_accepts_what_can_be_frozen(good: Any) -> None:
    """Builtins, frozen records, recursive types, and classes that only a hook can make."""
    check_frozen(good)
    check_frozen(good)


@pytest.mark.parametrize(
    ("bad", "path", "advice"),
    [
        (MutablePool, "$", "class MutablePool(msgspec.Struct, frozen=True)"),
        (dict[str, list[MutablePool]], "$[...][...]", "frozen=True"),
        (Node, "$.pool", "frozen=True"),
        (Box[MutablePool], "$.item", "frozen=True"),
        (tuple[int, MutablePlain], "$[1]", "@dataclass(frozen=True)"),
        (list[MutableAtt | None], "$[...]", "@attrs.frozen"),
        (Annotated[list[MutableAtt], msgspec.Meta(title="x", extra={"a": []})], "$[...]", "@attrs.frozen"),
    ],
)
def test_check_frozen_names_the_path_and_the_remedy(bad: Any, path: str, advice: str) -> None:
    """The message says where the mutable class is and how to declare it."""
    for _ in range(2):
        with pytest.raises(ValidationError) as caught:
            check_frozen(bad)
        assert f"not frozen at `{path}`" in str(caught.value)
        assert advice in str(caught.value)
        assert "freeze=False" in str(caught.value)


def test_check_frozen_refuses_a_type_that_msgspec_does_not_know() -> None:
    """Not a TypeError from the depths."""
    with pytest.raises(ValidationError, match="cannot use"):
        check_frozen(Pool | Config)
