# ruff: noqa: ARG001, ARG005
"""Validators: what they refuse, and how a writer hears of it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from shmcow.errors import ValidationError
from shmcow.validators import check, max_shrink, max_size, min_count, run


class Db(msgspec.Struct, frozen=True):
    hosts: list[str] = []


class Config(msgspec.Struct, frozen=True):
    db: Db = Db()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([1, 2], ""),
        ({"a": [1, 2]}, "a"),
        (Config(Db(["a", "b"])), "db.hosts"),
        ([{"a": "xy"}], "0.a"),
        (({"a": SimpleNamespace(b=(1, 2))},), "0.a.b"),
    ],
)
def test_min_count_counts_the_value_or_a_part(value: Any, path: str) -> None:
    """Keys, fields and indexes lead to the part."""
    min_count(2, path)(None, value)
    with pytest.raises(ValidationError, match="at least 3 items, found 2"):
        min_count(3, path)(None, value)


@pytest.mark.parametrize("path", ["x", "db.x", "db.hosts.5", "db.hosts.x"])
def test_a_missing_part_is_refused(path: str) -> None:
    """A path that leads nowhere in the new value is no zero."""
    for validator in (min_count(0, path), max_shrink(1, path)):
        with pytest.raises(ValidationError, match=f"has no `{path}`"):
            validator(Config(), Config())


def test_a_part_without_items_is_refused() -> None:
    """Counting a number is a mistake in the path, said as such."""
    with pytest.raises(ValidationError, match="no items to count"):
        min_count(1, "a")(None, {"a": 5})


@pytest.mark.parametrize(
    ("fraction", "before", "after", "passes"),
    [
        (0.5, 10, 5, True),
        (0.5, 10, 4, False),
        (0.29, 100, 71, True),
        (0.29, 100, 70, False),
        (0, 10, 10, True),
        (0, 10, 9, False),
        (1, 10, 0, True),
        (0.1, 0, 0, True),
        (0.1, 5, 50, True),
        (0.1, 0, 3, True),
    ],
)
def test_max_shrink_is_exact(fraction: float, before: int, after: int, passes: bool) -> None:
    """Floating point does not refuse what is just allowed."""
    validator = max_shrink(fraction)
    if passes:
        validator([0] * before, [0] * after)
    else:
        with pytest.raises(ValidationError, match=f"found {before} before and {after} now"):
            validator([0] * before, [0] * after)


def test_max_shrink_passes_the_first_version_and_a_new_part() -> None:
    """There is nothing to shrink from."""
    max_shrink(0)(None, [])
    max_shrink(0, "a")({}, {"a": []})
    max_shrink(0, "a")({"a": 3}, {"a": []})


def test_max_size_looks_at_the_encoded_size_only() -> None:
    """Calling it does nothing; run compares."""
    validator: Any = max_size(10)
    assert validator.size_bytes == 10
    validator(None, "x" * 1000)
    run([validator], None, "x", 10)
    with pytest.raises(ValidationError, match=r"max_size\(10\).*11 bytes, at most 10"):
        run([validator], None, "x", 11)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: min_count(-1), ValueError),
        (lambda: min_count(True), TypeError),
        (lambda: min_count(1.5), TypeError),  # type: ignore[arg-type]
        (lambda: min_count(1, "a..b"), ValueError),
        (lambda: min_count(1, 3), TypeError),  # type: ignore[arg-type]
        (lambda: max_shrink(-0.1), ValueError),
        (lambda: max_shrink(1.1), ValueError),
        (lambda: max_shrink(float("nan")), ValueError),
        (lambda: max_shrink("0.5"), TypeError),  # type: ignore[arg-type]
        (lambda: max_shrink(True), TypeError),
        (lambda: max_shrink(0.5, "."), ValueError),
        (lambda: max_size(-1), ValueError),
        (lambda: max_size("1k"), TypeError),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_refused_at_once(make: Any, error: type[Exception]) -> None:
    """Not at the first publish."""
    with pytest.raises(error):
        make()


def test_check_returns_a_tuple_and_refuses_what_cannot_be_called() -> None:
    """A single callable, a non-callable and a coroutine function are mistakes."""

    async def asynchronous(old: Any, new: Any) -> None:
        pass

    assert check(iter([len])) == (len,)
    for bad in (min_count(1), len, 3, [3], [None], [asynchronous]):
        with pytest.raises(TypeError):
            check(bad)  # type: ignore[arg-type]


def refuses(old: Any, new: Any) -> None:
    raise KeyError("no such thing")


def test_run_names_the_validator_and_chains_its_exception() -> None:
    """Whatever it raised, a writer sees a ValidationError."""
    with pytest.raises(ValidationError, match=r"refused by refuses: KeyError: 'no such thing'") as caught:
        run([refuses], None, 1, 1)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ValidationError, match=r"refused by min_count\(3, path='a'\): `a` must have at least 3 items"):
        run([min_count(3, "a")], None, {"a": []}, 1)


def test_run_takes_false_for_a_refusal_and_nothing_else() -> None:
    """None, 0 and "" let a value pass: a validator need not return anything."""
    for result in (None, True, 0, ""):
        run([lambda old, new, result=result: result], None, 1, 1)  # type: ignore[misc]
    with pytest.raises(ValidationError, match="returned False"):
        run([lambda old, new: False], None, 1, 1)


def test_run_passes_old_and_new_and_stops_at_the_first_refusal() -> None:
    """In order."""
    seen: list[Any] = []
    with pytest.raises(ValidationError):
        run([lambda old, new: seen.append((old, new)), refuses, lambda old, new: seen.append("late")], 1, 2, 3)
    assert seen == [(1, 2)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_run_lets_interrupts_through(error: type[BaseException]) -> None:
    """Ctrl-C is no verdict."""

    def interrupted(old: Any, new: Any) -> None:
        raise error

    with pytest.raises(error):
        run([interrupted], None, 1, 1)


def test_ready_made_validators_compare_print_and_pickle() -> None:
    """They may sit in a configuration."""
    for one, text in [
        (min_count(1), "min_count(1)"),
        (max_shrink(0.5, "a"), "max_shrink(0.5, path='a')"),
        (max_size(3), "max_size(3)"),
    ]:
        assert repr(one) == text
        assert pickle.loads(pickle.dumps(one)) == one
