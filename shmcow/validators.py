"""Ready-made checks for ``Writer(validators=...)``, and how a writer runs them.

A validator is a callable ``(old, new) -> None`` that raises when ``new`` must not be published. ``old`` is the current
value, None before the first version. A validator that returns exactly False refuses as well, so that a plain
predicate works; any other result, None included, lets the value pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from shmcow.errors import ValidationError

__all__ = ["Validator", "check", "max_shrink", "max_size", "min_count", "run"]

Validator = Callable[[Any, Any], object]

_MISSING = object()


def _part(value: Any, path: str) -> Any:
    # A step is a key of a mapping, an index of a list or tuple, or a field; _MISSING when there is no such thing.
    for step in path.split(".") if path else ():
        if isinstance(value, Mapping):
            value = value.get(step, _MISSING)
        elif isinstance(value, (list, tuple)) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else _MISSING
        else:
            value = getattr(value, step, _MISSING)
        if value is _MISSING:
            break
    return value


def _count(value: Any, path: str) -> int:
    part = _part(value, path)
    where = f"`{path}`" if path else "the value"
    if part is _MISSING:
        raise ValidationError(f"the new value has no {where}, whose items were to be counted")
    if hasattr(type(part), "_asdict") and not isinstance(part, tuple):  # how many parts it has says nothing
        raise ValidationError(f"{where} is a bundle: name the part whose items are to be counted, as in path='geo'")
    try:
        return len(part)
    except TypeError as exc:
        raise ValidationError(
            f"{where} is a {type(part).__name__}, which has no items to count: name a part that has with path="
        ) from exc


def _check_path(path: str) -> None:
    if not isinstance(path, str):
        raise TypeError(f"path must be a str such as 'db.hosts', got {type(path).__name__}")
    if path and not all(path.split(".")):
        raise ValueError(f"path must be names with single dots between them, such as 'db.hosts', got {path!r}")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


class _MinCount(msgspec.Struct, frozen=True):
    n: int
    path: str

    def __call__(self, old: Any, new: Any) -> None:  # noqa: ARG002
        found = _count(new, self.path)
        if found < self.n:
            where = f"`{self.path}`" if self.path else "the value"
            raise ValidationError(f"{where} must have at least {self.n} items, found {found}")

    def __repr__(self) -> str:
        return f"min_count({self.n}{_also(self.path)})"


class _MaxShrink(msgspec.Struct, frozen=True):
    fraction: float
    path: str

    def __call__(self, old: Any, new: Any) -> None:
        if old is None:
            return
        from fractions import Fraction  # few writers ask, and every worker would import it

        # The old value may predate the part, and then there is nothing to shrink from; the new one must have it.
        part = _part(old, self.path)
        before = len(part) if hasattr(part, "__len__") else 0
        after = _count(new, self.path)
        # Exact: 0.29 * 100 is 28.999..., and would refuse a loss of 29 in 100. str() is the number that was written.
        if before - after > Fraction(str(self.fraction)) * before:
            where = f"`{self.path}`" if self.path else "the value"
            raise ValidationError(
                f"{where} must not lose more than {self.fraction:.4g} of its items at once, found {before} before and "
                f"{after} now"
            )

    def __repr__(self) -> str:
        return f"max_shrink({self.fraction!r}{_also(self.path)})"


class _MaxSize(msgspec.Struct, frozen=True):
    size_bytes: int

    def __call__(self, old: Any, new: Any) -> None:
        # The size is known only once the value is encoded: run() compares it.
        pass

    def __repr__(self) -> str:
        return f"max_size({self.size_bytes})"


def _also(path: str) -> str:
    return f", path={path!r}" if path else ""


def min_count(n: int, path: str = "") -> Validator:
    """Refuse a value with fewer than ``n`` items.

    Args:
        n: the least number of items, 0 or more.
        path: where to count, as dotted keys, fields or indexes ("db.hosts"); "" counts the value itself.

    Returns:
        A validator for ``Writer(validators=...)``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``n`` is negative, or ``path`` has an empty step.

    Concurrency: the validator is immutable; share it at will.
    """
    _check_count("n", n)
    _check_path(path)
    return _MinCount(n, path)


def max_shrink(fraction: float, path: str = "") -> Validator:
    """Refuse a value that lost more than this fraction of its items at once, as after a truncated download.

    Counts items only: replacing every item by another one passes. The first version passes, as does a part that the old
    value did not have.

    Args:
        fraction: from 0 (no loss at all) to 1 (anything goes).
        path: where to count, as dotted keys, fields or indexes ("db.hosts"); "" counts the value itself.

    Returns:
        A validator for ``Writer(validators=...)``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: ``fraction`` is not within 0 and 1, or ``path`` has an empty step.

    Concurrency: the validator is immutable; share it at will.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
        raise TypeError(f"fraction must be a number from 0 to 1, got {type(fraction).__name__}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be from 0 to 1, got {fraction}")
    _check_path(path)
    return _MaxShrink(fraction, path)


def max_size(size_bytes: int) -> Validator:
    """Refuse a value that encodes to more bytes than this.

    Args:
        size_bytes: the most bytes that the encoded value may have, in bytes.

    Returns:
        A validator whose ``size_bytes`` attribute ``run`` compares with the encoded size; calling it checks nothing.

    Raises:
        TypeError: ``size_bytes`` is no int.
        ValueError: ``size_bytes`` is negative.

    Concurrency: the validator is immutable; share it at will.
    """
    _check_count("size_bytes", size_bytes)
    return _MaxSize(size_bytes)


def check(validators: Iterable[Validator]) -> tuple[Validator, ...]:
    """Check what was given as ``validators=``, before anything is published.

    Args:
        validators: an iterable of callables.

    Returns:
        The same as a tuple.

    Raises:
        TypeError: it is no iterable, or something in it cannot be called or is a coroutine function.

    Concurrency: pure.
    """
    if callable(validators) or not isinstance(validators, Iterable):
        raise TypeError(
            f"validators must be a sequence of callables (old, new), got {_label(validators)}: write validators=[...]"
        )
    checked = tuple(validators)
    for validator in checked:
        if not callable(validator):
            raise TypeError(f"a validator must be a callable (old, new), got {type(validator).__name__}")
        if inspect.iscoroutinefunction(validator):
            raise TypeError(f"a validator must be a plain function, got the coroutine function {_label(validator)}")
    return checked


def run(validators: Iterable[Validator], old: Any, new: Any, size_bytes: int) -> None:
    """Run validators on a value about to be published; return if all let it pass.

    Args:
        validators: the callables, run in order; the first refusal ends it.
        old: the current value, None before the first version.
        new: the value to be published.
        size_bytes: how many bytes ``new`` encodes to, in bytes.

    Raises:
        ValidationError: a validator raised (chained, whatever it was) or returned False, or the encoded value is larger
            than a ``max_size``. KeyboardInterrupt and SystemExit pass through.

    Concurrency: any thread; validators run one after the other in the calling one.
    """
    for validator in validators:
        if isinstance(validator, _MaxSize) and size_bytes > validator.size_bytes:
            raise ValidationError(
                f"refused by {validator!r}: the value encodes to {size_bytes} bytes, at most {validator.size_bytes} "
                f"are allowed"
            )
        try:
            verdict = validator(old, new)
        except Exception as exc:
            said = str(exc) if isinstance(exc, ValidationError) else f"{type(exc).__name__}: {exc}"
            raise ValidationError(f"refused by {_label(validator)}: {said}") from exc
        if verdict is False:
            raise ValidationError(f"refused by {_label(validator)}: it returned False")


def _label(validator: Any) -> str:
    if isinstance(validator, (_MinCount, _MaxShrink, _MaxSize)):
        return repr(validator)
    name = getattr(validator, "__qualname__", None)
    return name if isinstance(name, str) else type(validator).__name__
