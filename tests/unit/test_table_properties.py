"""A table against a dict, over generated rows: whatever a dict says, the table says, too."""

from __future__ import annotations

import decimal
import fractions
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmcow import StoredPart, Table, TableView, ValidationError

QUICK = settings(max_examples=60, derandomize=True, database=None, deadline=None)

SHORT = st.text("abé😀/\0", max_size=4)
TEXTS = st.one_of(SHORT, st.text(max_size=40))
BLOBS = st.one_of(st.binary(max_size=3), st.binary(max_size=40))
EDGES = [-(2**63), -(2**63) + 1, -1, 0, 1, 255, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = st.one_of(st.integers(-5, 5), st.sampled_from(EDGES), st.integers(-(2**63), 2**64 - 1))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=300),
)
VALUES = st.one_of(
    st.integers(0, 3),
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(TEXTS, SCALARS, max_size=3),
)
KEYS: list[tuple[Any, st.SearchStrategy[Any]]] = [(str, TEXTS), (bytes, BLOBS), (int, NUMBERS)]
# What a caller may ask for besides: other numbers that equal an integer, and what never is in a table.
ODD = st.one_of(
    TEXTS,
    BLOBS,
    BLOBS.map(memoryview),
    NUMBERS,
    NUMBERS.map(float),
    NUMBERS.map(fractions.Fraction),
    NUMBERS.map(decimal.Decimal),
    NUMBERS.map(complex),
    NUMBERS.map(lambda n: n + 2**64),
    st.floats(),
    st.booleans(),
    st.none(),
    st.tuples(NUMBERS),
    st.just("\ud800"),
    st.just(decimal.Decimal("nan")),
    st.complex_numbers(),
)


def view_of(codec: Table[Any, Any], rows: Mapping[Any, Any] | Iterable[Any]) -> TableView[Any, Any]:
    """Return the view of a table that was never published."""
    (part,) = codec.encode_parts(rows)
    view = codec.decode_parts([StoredPart(memoryview(part.buffers[0]))], freeze=True)
    codec.prove(view)
    return view


def same(a: Any, b: Any) -> bool:
    """Equal and of one type, a NaN equal to itself, frozen containers to plain ones."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize(("kind", "keys"), KEYS, ids=["str", "bytes", "int"])
def test_a_table_answers_as_the_dict_that_it_was_made_of(kind: Any, keys: st.SearchStrategy[Any]) -> None:
    """Every accessor, for keys that are there, that are not, and that are of other types."""

    @QUICK
    @given(st.dictionaries(keys, VALUES, max_size=30), st.lists(st.one_of(keys, ODD), max_size=30))
    def check(model: dict[Any, Any], asked: list[Any]) -> None:
        view = view_of(Table(key=kind), model)
        assert len(view) == len(model)
        assert list(view) == list(view.keys()) == list(model)
        assert [type(key) for key in view] == [type(key) for key in model]
        assert same(list(view.values()), list(model.values()))
        assert same(view.to_dict(), model)
        assert [key for key, _ in view.items()] == list(model)
        missing = object()
        for key in [*model, *asked]:
            assert (key in view) == (key in model), key
            expected = model.get(key, missing)
            assert same(view.get(key, missing), expected) or view.get(key, missing) is expected is missing
            if key in model:
                assert same(view[key], model[key])
            else:
                with pytest.raises(KeyError) as caught:
                    view[key]
                assert caught.value.args[0] is key
        found = view.get_many(iter([*model, *asked]), missing)
        assert all(
            a is b or same(a, b) for a, b in zip(found, [model.get(k, missing) for k in [*model, *asked]], strict=True)
        )

    check()


@pytest.mark.parametrize("kind", [str, bytes])
def test_the_longest_prefix_is_the_longest_key_that_a_text_begins_with(kind: Any) -> None:
    """Against a search through all keys, with keys that are prefixes of each other."""
    pieces = st.sampled_from(["", "a", "b", "é", "/", "\0", "ab", "😀"])
    words = st.lists(pieces, max_size=6).map("".join)

    def as_key(text: str) -> Any:
        return text if kind is str else text.encode()

    @QUICK
    @given(st.lists(words, max_size=20, unique=True), st.lists(words, max_size=20))
    def check(keys: list[str], texts: list[str]) -> None:
        model = {as_key(key): n for n, key in enumerate(keys)}
        view = view_of(Table(key=kind, value=int), model)
        for text in map(as_key, [*keys, *texts, *(key + "x" for key in keys)]):
            fits = [key for key in model if text.startswith(key)]
            best = max(fits, key=len, default=None)
            assert view.longest_prefix(text) == (None if best is None else (best, model[best]))
        if kind is str and model:
            assert view.longest_prefix(keys[0] + "\ud800") is not None

    check()


@pytest.mark.parametrize(("kind", "keys"), KEYS, ids=["str", "bytes", "int"])
def test_tables_are_equal_to_what_has_the_same_rows(kind: Any, keys: st.SearchStrategy[Any]) -> None:
    """Whatever the order, and whichever side asks."""
    values = st.one_of(st.integers(0, 3), st.text(max_size=3), st.lists(st.integers(0, 1), max_size=2))

    @QUICK
    @given(st.dictionaries(keys, values, max_size=6), st.dictionaries(keys, values, max_size=6))
    def check(a: dict[Any, Any], b: dict[Any, Any]) -> None:
        table = Table(key=kind)
        backwards = dict(reversed(a.items()))
        one, two = view_of(table, a), view_of(table, b)
        assert one == a == one
        assert one == view_of(table, backwards)
        assert (one == two) == (one == b) == (b == one) == (a == b)
        assert one.items() == a.items()
        assert (one.keys() & two.keys(), one.keys() | two.keys()) == (a.keys() & b.keys(), a.keys() | b.keys())

    check()


@pytest.mark.parametrize(("kind", "keys"), KEYS, ids=["str", "bytes", "int"])
def test_a_repeated_key_is_refused_with_both_rows(kind: Any, keys: st.SearchStrategy[Any]) -> None:
    """Exactly when there is one; the message has the first repetition, and where the key was before."""

    @QUICK
    @given(st.lists(keys, max_size=12))
    def check(rows: list[Any]) -> None:
        seen: dict[Any, int] = {}
        repeated = None
        for number, key in enumerate(rows, 1):
            if key in seen:
                repeated = (number, seen[key])
                break
            seen[key] = number
        if repeated is None:
            assert len(view_of(Table(key=kind), ((key, 1) for key in rows))) == len(rows)
        else:
            with pytest.raises(ValidationError, match=rf"(?s)^row {repeated[0]}: .*row {repeated[1]} has it already"):
                view_of(Table(key=kind), ((key, 1) for key in rows))

    check()


def test_equal_rows_make_equal_bytes() -> None:
    """What a bundle needs to share the segment of a table that did not change."""

    @QUICK
    @given(st.dictionaries(TEXTS, VALUES, max_size=10))
    def check(rows: dict[str, Any]) -> None:
        made = [Table(key=str).encode_parts(rows)[0].buffers[0] for _ in range(2)]
        assert bytes(made[0]) == bytes(made[1])  # type: ignore[arg-type]

    check()
