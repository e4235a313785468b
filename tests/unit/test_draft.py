"""Drafts: private, mutable, and closed to the classes they came from."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import attrs
import msgspec
import pytest

from shmcow.draft import Draft, close_draft, open_draft, patched
from shmcow.errors import ValidationError
from shmcow.frozen import freeze


class Pool(msgspec.Struct, frozen=True, tag="pool"):
    hosts: list[str] = []
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size must not be negative")


class BigPool(Pool, frozen=True, tag="big", kw_only=True):
    extra: dict[str, int]


class Config(msgspec.Struct, frozen=True, rename="camel"):
    main_pool: Pool | BigPool
    pools: list[Pool] = []
    pair: tuple[Pool, int] | None = None
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Area:
    width: int
    height: int
    area: int = field(init=False)
    note: str = field(init=False, default="")
    parts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "area", self.width * self.height)


@dataclass(frozen=True, slots=True)
class Slotted:
    items: list[int]


@attrs.frozen
class Att:
    items: list[int]
    _private: int = attrs.field(default=1, converter=int)
    aliased: int = attrs.field(default=2, alias="other")
    derived: int = attrs.field(init=False, default=3)


class Point(NamedTuple):
    x: list[int]


@dataclass
class Mutable:
    items: list[int]


def test_a_draft_of_a_dict_is_a_plain_private_dict() -> None:
    """Edits stay in the draft; the frozen value stays as it was."""
    value = freeze({"hosts": ["a"], "n": {"m": [1]}, "t": (1, [2]), "s": {1}})
    draft = open_draft(value)
    assert type(draft) is dict
    draft["hosts"].append("b")
    draft["n"]["m"][0] = 5
    draft["t"][1].append(3)
    draft["s"].add(2)
    draft["new"] = 1
    closed = close_draft(draft)
    assert closed == {"hosts": ["a", "b"], "n": {"m": [5]}, "t": (1, [2, 3]), "s": {1, 2}, "new": 1}
    assert value == {"hosts": ["a"], "n": {"m": [1]}, "t": (1, [2]), "s": {1}}
    draft["hosts"].append("late")
    assert closed["hosts"] == ["a", "b"], "a closed draft is of no consequence"


def test_struct_fields_can_be_set_at_every_level() -> None:
    """Nested Structs, subclasses with tags, Structs in lists and tuples."""
    value = freeze(Config(BigPool(["a"], extra={"x": 1}), [Pool()], (Pool(), 2)))
    draft = open_draft(value)
    draft.main_pool.hosts.append("b")
    draft.main_pool.extra["y"] = 2
    draft.pools[0].size = 7
    draft.pools.append(Pool(["new"]))
    draft.pair[0].size = 9
    draft.tags.add("t")
    closed = close_draft(draft)
    assert closed == Config(
        BigPool(["a", "b"], extra={"x": 1, "y": 2}),
        [Pool(size=7), Pool(["new"])],
        (Pool(size=9), 2),
        {"t"},  # type: ignore[arg-type]
    )
    assert type(closed.main_pool) is BigPool
    assert msgspec.json.decode(msgspec.json.encode(closed), type=Config).tags == frozenset({"t"})
    assert value == Config(BigPool(["a"], extra={"x": 1}), [Pool()], (Pool(), 2))


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {1, 2},
        Config(Pool()),
        Area(2, 3),
        Slotted([1]),
        Att([1], 5, 6),  # type: ignore[call-arg]
        [Point([1])],
        {"a": Mutable([1])},
        Mutable([1]),
        [b"x", None, 1.5, bytearray(b"x")],
    ],
    ids=lambda value: type(value).__name__,
)
def test_closing_an_unedited_draft_gives_an_equal_value(value: Any) -> None:
    """Every kind that can be opened can be rebuilt, and the copy is another object."""
    closed = close_draft(open_draft(value))
    assert closed == value
    assert type(closed) is type(value)
    assert closed is not value


def test_derived_fields_are_derived_anew_unless_set() -> None:
    """The constructor runs; a field that it does not take keeps what the caller set by hand."""
    draft = open_draft(Area(2, 3))
    draft.width = 10
    draft.note = "by hand"
    closed = close_draft(draft)
    assert (closed.width, closed.area, closed.note) == (10, 30, "by hand")


def test_attrs_private_names_aliases_and_converters_work() -> None:
    """The constructor's argument is not always the field's name."""
    draft = open_draft(Att([1]))
    draft._private = "7"
    draft.aliased = 8
    draft.derived = 9
    closed = close_draft(draft)
    assert (closed._private, closed.aliased, closed.derived) == (7, 8, 9)


def test_an_unknown_field_names_the_known_ones() -> None:
    """On reading and on setting alike."""
    draft = open_draft(Pool())
    with pytest.raises(AttributeError, match="has no field `sise`; its fields are `hosts`, `size`"):
        draft.sise = 1
    with pytest.raises(AttributeError, match="has no field `sise`"):
        _ = draft.sise
    with pytest.raises(AttributeError, match="cannot delete"):
        del draft.size
    assert "size" in dir(draft)


def test_a_draft_shows_no_values_and_cannot_be_taken_away() -> None:
    """repr names the type and its fields; copies and pickles are refused."""
    draft = open_draft(Pool(["secret"], 12345))
    assert type(draft) is Draft
    assert repr(draft) == f"<Draft of {__name__}.Pool: hosts, size>"
    for take in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot copy or pickle"):
            take(draft)


def test_a_field_may_have_any_ordinary_name() -> None:
    """Names that a lesser draft would use for itself."""
    names = ["form", "origin", "values", "_values", "cls", "self", "name"]
    value = msgspec.defstruct("Odd", [(name, int, 0) for name in names], frozen=True)()
    draft = open_draft(value)
    for index, name in enumerate(names, 1):
        setattr(draft, name, index)
    assert [getattr(close_draft(draft), name) for name in names] == list(range(1, 8))


def test_a_constructor_that_refuses_is_a_validation_error() -> None:
    """Chained, with the name of the class."""
    draft = open_draft({"p": Pool()})
    draft["p"].size = -1
    with pytest.raises(
        ValidationError, match=r"Pool refused its fields: ValueError: size must not be negative"
    ) as caught:
        close_draft(draft)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_piece_of_the_draft_may_move_into_a_new_record() -> None:
    """Drafts inside a record that the caller made are closed too."""
    draft = open_draft({"p": Pool(["a"]), "c": None})
    draft["c"] = Config(draft["p"])
    draft["p"].size = 4
    assert close_draft(draft)["c"] == Config(Pool(["a"], 4))


def test_a_draft_that_contains_itself_is_refused() -> None:
    """Not a RecursionError."""
    draft = open_draft({})
    draft["me"] = draft
    with pytest.raises(ValidationError, match="contains itself"):
        close_draft(draft)


@pytest.mark.parametrize("value", [None, 1, "x", b"x", 1.5, (1, [2])])
def test_what_has_nothing_to_edit_is_refused(value: Any) -> None:
    """Scalars and tuples are replaced, not edited."""
    with pytest.raises(ValidationError, match=r"Writer\.publish.*Writer\.update"):
        open_draft(value)


@pytest.mark.parametrize(
    ("value", "changes", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 3, "c": 4}, {"a": 3, "b": 2, "c": 4}),
        (Pool(["a"], 1), {"size": 2}, Pool(["a"], 2)),
        (BigPool(["a"], extra={}), {"extra": {"x": 1}}, BigPool(["a"], extra={"x": 1})),
        (Slotted([1]), {"items": []}, Slotted([])),
        (Att([1]), {"_private": 4, "aliased": 5}, Att([1], 4, 5)),  # type: ignore[call-arg]
        (Pool(), {}, Pool()),
    ],
)
def test_patched_replaces_fields_and_keys(value: Any, changes: dict[str, Any], expected: Any) -> None:
    """A new value; the frozen one stays."""
    before = freeze(copy.deepcopy(value))
    assert patched(before, changes) == expected
    assert before == value
    assert type(patched(before, changes)) is type(value)


def test_patched_derives_anew_and_sets_what_the_constructor_does_not_take() -> None:
    """As in a draft."""
    new = patched(Area(2, 3), {"width": 4, "note": "n"})
    assert (new.area, new.note) == (12, "n")


def test_patched_refuses_unknown_fields_bad_values_and_other_kinds() -> None:
    """Each with what to do about it."""
    with pytest.raises(ValidationError, match="has no field `sise`; its fields are `hosts`, `size`"):
        patched(Pool(), {"sise": 1})
    with pytest.raises(ValidationError, match="refused its fields"):
        patched(Pool(), {"size": -1})
    for value in ([1], 3, None, (1,), Pool):
        with pytest.raises(ValidationError, match="cannot patch"):
            patched(value, {"a": 1})
