"""Private, mutable copies of immutable values, for ``Writer.edit``, and single replacements, for ``Writer.patch``.

A draft of a dict or list is a plain dict or list. A draft of a Struct, dataclass or attrs instance is a ``Draft``,
an object with the same fields that can be set; ``close_draft`` then calls the class again, so that a
``__post_init__`` or a converter sees the new fields and derived ones are derived anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import msgspec

from shmcow import frozen, schema
from shmcow.errors import ValidationError

__all__ = ["Draft", "close_draft", "open_draft", "patched"]


class Draft:
    """Stand in for a frozen record while it is edited: its fields can be read and set.

    Only fields: no methods, properties or items of the record. Made by ``open_draft`` only.

    Concurrency: private to the thread that edits; not shared, not picklable.
    """

    # Dunder-like names, so that a field of any ordinary name goes through __getattr__.
    __slots__ = ("__shmcow_form__", "__shmcow_origin__", "__shmcow_values__")

    __shmcow_form__: frozen.Shape
    __shmcow_origin__: Any
    __shmcow_values__: dict[str, Any]

    def __init__(self, origin: Any, form: frozen.Shape) -> None:
        values = {name: _open(getattr(origin, name)) for name in form.fields if hasattr(origin, name)}
        object.__setattr__(self, "__shmcow_form__", form)
        object.__setattr__(self, "__shmcow_origin__", origin)
        object.__setattr__(self, "__shmcow_values__", values)

    def __getattr__(self, name: str) -> Any:
        values = object.__getattribute__(self, "__shmcow_values__")
        if name in values:
            return values[name]
        raise self.__shmcow_unknown__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__shmcow_form__.fields:
            raise self.__shmcow_unknown__(name)
        self.__shmcow_values__[name] = value

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"cannot delete `{name}`: a {_class_name(self.__shmcow_origin__)} has all of its fields")

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self.__shmcow_form__.fields]

    def __repr__(self) -> str:
        return f"<Draft of {_class_name(self.__shmcow_origin__)}: {', '.join(self.__shmcow_form__.fields)}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {self!r}: it lives in one `with Writer.edit()` only")

    def __shmcow_unknown__(self, name: str) -> AttributeError:
        fields = self.__shmcow_form__.fields
        return AttributeError(f"{_class_name(self.__shmcow_origin__)} has no field `{name}`; {_known(fields)}")


def _class_name(record: Any) -> str:
    return schema.type_name(type(record))


def _known(names: Any) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return f"its fields are {listed}" if listed else "it has no fields"


def open_draft(value: Any) -> Any:
    """Make a private copy of a value that can be edited.

    Dicts and lists become plain ones, sets and frozensets sets, records ``Draft`` objects, at every level; tuples stay
    tuples, with drafts inside.

    Args:
        value: a dict, list, set, Struct, dataclass or attrs instance.

    Returns:
        The draft.

    Raises:
        ValidationError: a value of this type has nothing in it that could be edited, or it is nested too deeply.

    Concurrency: any thread; the draft belongs to the caller.
    """
    editable = isinstance(value, (dict, list, set, frozenset)) or _form(value) is not None
    if not editable:
        raise ValidationError(
            f"cannot edit a {schema.type_name(type(value))} in place: replace it with Writer.publish(new) or "
            f"Writer.update(lambda old: ...)"
        )
    try:
        return _open(value)
    except RecursionError as exc:
        raise ValidationError("cannot edit a value that is nested too deeply: use Writer.publish(new)") from exc


def close_draft(draft: Any) -> Any:
    """Turn a draft back into a value of the original classes.

    Args:
        draft: what ``open_draft`` returned, after any edits.

    Returns:
        A new value that shares nothing mutable with the draft.

    Raises:
        ValidationError: a class refused its fields (chained), or the draft is nested too deeply or contains itself.

    Concurrency: as ``open_draft``.
    """
    try:
        return _close(draft)
    except RecursionError as exc:
        raise ValidationError("the draft is nested too deeply, or contains itself") from exc


def patched(value: Any, changes: dict[str, Any]) -> Any:
    """Make a copy of a value with some fields or keys replaced.

    Args:
        value: a dict, Struct, dataclass or attrs instance.
        changes: field names, or keys of the dict, and their new values. A dict also takes new keys.

    Returns:
        The new value, of the same class (of a FrozenDict: a plain dict).

    Raises:
        ValidationError: there is no such field, the class refused its fields (chained), or the value is of another
            kind.

    Concurrency: any thread; ``value`` is not changed.
    """
    if isinstance(value, dict):
        return {**value, **changes}
    form = _form(value)
    if form is None:
        raise ValidationError(
            f"cannot patch a {schema.type_name(type(value))}, which has neither fields nor keys: replace it with "
            f"Writer.publish(new) or Writer.update(lambda old: ...)"
        )
    for name in changes:
        if name not in form.fields:
            raise ValidationError(f"{_class_name(value)} has no field `{name}`; {_known(form.fields)}")
    values = {name: getattr(value, name) for name in form.fields if hasattr(value, name)}
    return _rebuild(value, form, values | changes)


_UNSET = object()


def _form(value: Any) -> frozen.Shape | None:
    return None if isinstance(value, type) else frozen.shape(type(value))


def _open(value: Any) -> Any:
    cls = type(value)
    if cls is dict or cls is frozen.FrozenDict:
        return {key: _open(item) for key, item in value.items()}
    if cls is list or cls is frozen.FrozenList:
        return [_open(item) for item in value]
    if cls is set or cls is frozenset:
        # The elements are hashable, hence immutable as they are.
        return set(value)
    if isinstance(value, tuple):
        return _map_tuple(value, _open)
    form = frozen.shape(cls)
    return frozen.thaw(value) if form is None else Draft(value, form)


def _close(value: Any) -> Any:
    cls = type(value)
    if cls is Draft:
        form: frozen.Shape = value.__shmcow_form__
        origin = value.__shmcow_origin__
        values = {name: _close(item) for name, item in value.__shmcow_values__.items()}
        return _rebuild(origin, form, values)
    if cls is dict or cls is frozen.FrozenDict:
        return {key: _close(item) for key, item in value.items()}
    if cls is list or cls is frozen.FrozenList:
        return [_close(item) for item in value]
    if cls is set:
        return set(value)
    if isinstance(value, tuple):
        return _map_tuple(value, _close)
    form_of_new = frozen.shape(cls)
    if form_of_new is not None:
        # A record that the caller put in may hold a piece of the draft.
        items = {name: getattr(value, name) for name in form_of_new.fields if hasattr(value, name)}
        closed = {name: _close(item) for name, item in items.items()}
        return frozen.clone(value, form_of_new, {name: new for name, new in closed.items() if new is not items[name]})
    return value


def _map_tuple(value: tuple[Any, ...], change: Any) -> Any:
    items = [change(item) for item in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    make = getattr(type(value), "_make", None)
    return make(items) if make is not None else tuple(items)


def _same(new: Any, origin: Any, name: str) -> bool:
    old = getattr(origin, name, _UNSET)
    try:
        return new is old or bool(new == old)
    except Exception:
        # An object that cannot be compared counts as changed.
        return False


def _rebuild(origin: Any, form: frozen.Shape, values: dict[str, Any]) -> Any:
    cls = type(origin)
    arguments = _arguments(cls, form)
    try:
        new = cls(**{arguments[name]: value for name, value in values.items() if name in arguments})
    except RecursionError:
        raise
    except Exception as exc:
        raise ValidationError(f"{_class_name(origin)} refused its fields: {type(exc).__name__}: {exc}") from exc
    # What the constructor does not take has to be set by hand, but only if the caller changed it: a derived field that
    # was left alone must follow the fields that it derives from.
    by_hand = {
        name: value for name, value in values.items() if name not in arguments and not _same(value, origin, name)
    }
    return frozen.clone(new, form, by_hand) if by_hand else new


def _arguments(cls: Any, form: frozen.Shape) -> dict[str, str]:
    # Field name -> name of the constructor's argument, of those fields that it takes.
    if form.kind == "dataclass":
        return {field.name: field.name for field in dataclasses.fields(cls) if field.init}
    if form.kind == "attrs class":
        # attrs drops the leading underscores of a private name, unless an alias says otherwise.
        return {
            attribute.name: getattr(attribute, "alias", None) or attribute.name.lstrip("_")
            for attribute in cls.__attrs_attrs__
            if attribute.init
        }
    assert issubclass(cls, msgspec.Struct)
    return {name: name for name in form.fields}
