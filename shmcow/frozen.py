"""Immutable values: what a decoder made, frozen deeply, because every thread of the process shares it.

A frozen value is still a dict, a list, a Struct: it compares, indexes, and encodes like a plain one, and a pickle or a
``copy.deepcopy`` of it *is* a plain one. This guards against accidents, not against malice:
``dict.__setitem__(frozen, ...)`` still works, as does ``object.__setattr__`` on any frozen dataclass.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import functools
import operator
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, NoReturn, SupportsIndex, TypeVar

import msgspec
import msgspec.inspect
import msgspec.structs

from shmcow import schema
from shmcow.errors import ValidationError

__all__ = ["FrozenDict", "FrozenList", "check_frozen", "freeze", "thaw"]

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


def _refuse(self: object, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ARG001
    raise TypeError(
        f"this {type(self).__name__} is an immutable snapshot, shared by all threads: take a plain copy with "
        f"snap.copy() or copy.deepcopy() to change it here, or change the store with Writer.update() or Writer.edit()"
    )


class FrozenDict(dict[K, V]):
    """Hold a dict that nothing can change any more.

    Freezes its own items only; ``freeze`` also freezes what is inside them. It equals a dict of the same items, and
    encodes and prints like one. ``copy()``, ``|`` and ``copy.copy`` give a plain dict of the same items;
    ``copy.deepcopy`` and pickling give one that is plain all the way down. It is unhashable, like a dict.

    Args:
        items: a mapping or an iterable of pairs, with keywords as for dict.

    Concurrency: immutable; share it between threads at will.
    """

    __slots__ = ()

    # Filled here rather than in __init__, so that calling __init__ once more changes nothing.
    def __new__(cls, *items: Any, **kwargs: Any) -> FrozenDict[K, V]:
        self: FrozenDict[K, V] = dict.__new__(cls)
        dict.update(self, *items, **kwargs)
        return self

    def __init__(self, *items: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def fromkeys(cls, iterable: Iterable[Any], value: Any = None, /) -> FrozenDict[Any, Any]:
        """Make one with the given keys, all with one value.

        Args:
            iterable: the keys.
            value: the value of every key.

        Returns:
            A FrozenDict.

        Concurrency: pure.
        """
        return cls(dict.fromkeys(iterable, value))

    __setitem__ = _refuse
    __delitem__ = _refuse
    __ior__ = _refuse
    clear = _refuse
    pop = _refuse
    popitem = _refuse
    setdefault = _refuse
    update = _refuse

    def __copy__(self) -> dict[K, V]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[K, V]:
        return {copy.deepcopy(key, memo): copy.deepcopy(value, memo) for key, value in self.items()}

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items())


class FrozenList(list[V]):
    """Hold a list that nothing can change any more.

    Freezes itself only; ``freeze`` also freezes what is inside the items. It equals a list of the same items, and
    encodes and prints like one. ``copy()``, slices, ``+``, ``*`` and ``copy.copy`` give a plain list of the same items;
    ``copy.deepcopy`` and pickling give one that is plain all the way down. It is unhashable, like a list.

    Args:
        items: an iterable, as for list.

    Concurrency: immutable; share it between threads at will.
    """

    __slots__ = ()

    # As in FrozenDict: list.__init__ on a list that has items would empty it first.
    def __new__(cls, *items: Iterable[V]) -> FrozenList[V]:
        self: FrozenList[V] = list.__new__(cls)
        if items:
            (only,) = items
            list.extend(self, only)
        return self

    def __init__(self, *items: Iterable[V]) -> None:
        pass

    __setitem__ = _refuse
    __delitem__ = _refuse
    __iadd__ = _refuse
    __imul__ = _refuse
    append = _refuse
    clear = _refuse
    extend = _refuse
    insert = _refuse
    pop = _refuse
    remove = _refuse
    reverse = _refuse
    sort = _refuse

    def __copy__(self) -> list[V]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> list[V]:
        return [copy.deepcopy(item, memo) for item in self]

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return list, (), None, iter(self)


# --- Structs, dataclasses and attrs classes -------------------------------------------------------------------------


class Shape(NamedTuple):
    """Say what kind of record a class is.

    Attributes:
        kind: which library made it.
        fields: its field names, in order.
        frozen: whether setting a field raises.
        extra: what else an instance stores: slots that are not fields.
    """

    kind: Literal["Struct", "dataclass", "attrs class"]
    fields: tuple[str, ...]
    frozen: bool
    extra: tuple[str, ...]


def shape(cls: Any) -> Shape | None:
    """Look at a class as a record.

    Args:
        cls: any class.

    Returns:
        Its Shape, or None if it is no Struct, dataclass or attrs class.

    Concurrency: pure; any thread. Not cached: keep the result when speed matters.
    """
    if isinstance(cls, enum.EnumMeta):
        # An enum may have a dataclass mixed in; its members are constants all the same.
        return None
    if isinstance(cls, type) and issubclass(cls, msgspec.Struct):
        return Shape("Struct", cls.__struct_fields__, cls.__struct_config__.frozen, ())
    if hasattr(cls, "__dataclass_fields__"):
        fields = tuple(field.name for field in dataclasses.fields(cls))
        return Shape("dataclass", fields, cls.__dataclass_params__.frozen, _other_slots(cls, fields))
    if hasattr(cls, "__attrs_attrs__"):
        fields = tuple(attribute.name for attribute in cls.__attrs_attrs__)
        # attrs tells only since 25.4 (`__attrs_props__`); the name of its guard has told for much longer.
        guarded = cls.__setattr__.__name__ == "_frozen_setattrs"
        props = getattr(cls, "__attrs_props__", None)
        return Shape("attrs class", fields, guarded or getattr(props, "is_frozen", False), _other_slots(cls, fields))
    return None


def _other_slots(cls: Any, fields: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            slot = f"_{base.__name__.lstrip('_')}{name}" if private else name
            if slot not in fields and slot not in ("__dict__", "__weakref__"):
                found.append(slot)
    return tuple(found)


def clone(record: Any, form: Shape, changes: dict[str, Any]) -> Any:
    """Copy a record, with some fields set, without running its constructor.

    Args:
        record: a Struct, dataclass or attrs instance.
        form: the Shape of its class.
        changes: field names and their new values.

    Returns:
        A new instance of the same class.

    Concurrency: any thread; touches nothing but the copy.
    """
    if form.kind == "Struct":
        new = copy.copy(record)
        for name, value in changes.items():
            msgspec.structs.force_setattr(new, name, value)
        return new
    new = object.__new__(type(record))
    kept = getattr(record, "__dict__", None)
    if kept:
        new.__dict__.update(kept)
    for name in (*form.fields, *form.extra):
        # A slot may be unset, and a field may live in __dict__, already copied.
        if (kept is None or name not in kept) and hasattr(record, name):
            object.__setattr__(new, name, getattr(record, name))
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Walk one level down, for messages that say where in a value something is.

    Args:
        value: anything.

    Yields:
        Pairs of a path step (".name", "[0]" or "[...]") and what is there. A dict's keys are shown when they look like
        names and hidden as "[...]" otherwise, since they may be data.

    Concurrency: pure.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield (f".{key}" if type(key) is str and key.isidentifier() and len(key) <= 64 else "[...]"), item
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield "[...]", item
    elif isinstance(value, enum.Enum):
        yield "", value.value
    elif not isinstance(value, type) and (form := shape(type(value))) is not None:
        for name in form.fields:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


# --- freeze -----------------------------------------------------------------------------------------------------------

_Handler = Callable[[Any], Any]


class _MutableFoundError(Exception):
    pass


class _Handlers(dict[Any, "_Handler | None"]):
    # type -> what to do with its instances; None: nothing. One dict lookup for each leaf, since most values are leaves.
    __slots__ = ("_choose", "leaves")

    def __init__(self, choose: Callable[[Any], _Handler | None]) -> None:
        self._choose = choose
        # The types met so far with nothing to do.
        self.leaves: set[Any] = set()

    def __missing__(self, cls: Any) -> _Handler | None:
        handler = self[cls] = self._choose(cls)
        if handler is None:
            self.leaves.add(cls)
        return handler


# Looked up once: this runs for every container of every new version, in every process.
_new_dict: Any = dict.__new__
_new_list: Any = list.__new__
_dict_update, _dict_set = dict.update, dict.__setitem__
_list_extend, _list_set = list.extend, list.__setitem__


def _freeze_dict(value: dict[Any, Any]) -> FrozenDict[Any, Any]:
    new: FrozenDict[Any, Any] = _new_dict(FrozenDict)
    _dict_update(new, value)
    if not _all_frozen(map(type, value.values())):
        for key, item in value.items():
            handler = _freezers[type(item)]
            if handler is not None:
                _dict_set(new, key, handler(item))
    return new


def _freeze_list(value: list[Any]) -> FrozenList[Any]:
    new: FrozenList[Any] = _new_list(FrozenList)
    _list_extend(new, value)
    if not _all_frozen(map(type, value)):
        for index, item in enumerate(value):
            handler = _freezers[type(item)]
            if handler is not None:
                _list_set(new, index, handler(item))
    return new


def _changed(handlers: _Handlers, items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    # Only what came out as another object: most tuples and records hold leaves only and are kept as they are.
    changes = {}
    for key, item in items:
        handler = handlers[type(item)]
        if handler is not None:
            new = handler(item)
            if new is not item:
                changes[key] = new
    return changes


def _tuple_handler(handlers: _Handlers, make: Callable[[list[Any]], Any]) -> _Handler:
    def handle(value: tuple[Any, ...]) -> Any:
        changes = _changed(handlers, enumerate(value))
        if not changes:
            return value
        items = list(value)
        for index, item in changes.items():
            items[index] = item
        return make(items)

    return handle


def _record_handler(handlers: _Handlers, form: Shape) -> _Handler:
    # All fields in one C call; a class without fields has nothing to look at, one field comes without a tuple.
    several = len(form.fields) > 1
    look = operator.attrgetter(*form.fields) if several else None

    def handle(value: Any) -> Any:
        if look is not None:
            try:
                found = look(value)
            except AttributeError:  # a field that is not set
                found = None
            if found is not None:
                if form.frozen and handlers.leaves.issuperset(map(type, found)):
                    return value
                changes = _changed(handlers, zip(form.fields, found, strict=True))
                return clone(value, form, changes) if changes or not form.frozen else value
        items = [(name, getattr(value, name)) for name in form.fields if hasattr(value, name)]
        changes = _changed(handlers, items)
        # Never in place, not even in a value that was decoded a moment ago: a default such as `pool: Pool = Pool()` is
        # one object that the application and every decoded value share.
        return clone(value, form, changes) if changes or not form.frozen else value

    return handle


def _refuse_record(value: Any) -> NoReturn:  # noqa: ARG001
    raise _MutableFoundError


def _is_namedtuple(cls: Any) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make")


def _freeze_frozen_dict(value: FrozenDict[Any, Any]) -> FrozenDict[Any, Any]:
    # Made by hand, hence frozen on the outside only, perhaps.
    return _freeze_dict(value) if _changed(_freezers, value.items()) else value


def _freeze_frozen_list(value: FrozenList[Any]) -> FrozenList[Any]:
    return _freeze_list(value) if _changed(_freezers, enumerate(value)) else value


_BUILTIN_FREEZERS: dict[Any, _Handler] = {
    dict: _freeze_dict,
    list: _freeze_list,
    set: frozenset,
    bytearray: bytes,
    FrozenDict: _freeze_frozen_dict,
    FrozenList: _freeze_frozen_list,
}


def _choose_freezer(cls: Any) -> _Handler | None:
    handler: _Handler | None = None
    if cls in _BUILTIN_FREEZERS:
        handler = _BUILTIN_FREEZERS[cls]
    elif issubclass(cls, enum.Enum):
        # A member is a constant, whatever was mixed in.
        pass
    elif cls is tuple:
        handler = _tuple_handler(_freezers, tuple)
    elif _is_namedtuple(cls):
        handler = _tuple_handler(_freezers, cls._make)
    elif (form := shape(cls)) is not None:
        handler = _record_handler(_freezers, form) if form.frozen else _refuse_record
    return handler


_freezers = _Handlers(_choose_freezer)
# Whether all of these types are leaves, in one C call.
_all_frozen = _freezers.leaves.issuperset


def freeze(value: Any) -> Any:
    """Freeze deeply what a decoder produced.

    Dicts become FrozenDict, lists FrozenList, sets frozenset, bytearrays bytes; tuples, named tuples and frozen
    Structs, dataclasses and attrs instances stay what they are, with frozen contents. Dict keys and the elements of
    sets are hashable and left alone, as are objects of classes that are unknown here (what a ``dec_hook`` made).

    Args:
        value: what a decoder produced.

    Returns:
        The frozen value; the same object if there was nothing to freeze in it. ``value`` itself is not changed.

    Raises:
        ValidationError: it contains an instance of a mutable Struct, dataclass or attrs class (see ``check_frozen``).
        RecursionError: it is nested too deeply.

    Concurrency: any thread; nothing is locked, and nobody else may change ``value`` meanwhile.
    """
    handler = _freezers[type(value)]
    if handler is None:
        return value
    try:
        return handler(value)
    except _MutableFoundError:
        path, cls = _find_mutable(value, "$")
    raise ValidationError(_not_frozen("the value", path, cls))


def _find_mutable(value: Any, path: str) -> tuple[str, Any]:
    if _freezers[type(value)] is _refuse_record:
        return path, type(value)
    for step, item in children(value):
        found = _find_mutable(item, path + step)
        if found[1] is not None:
            return found
    return path, None


# --- thaw -------------------------------------------------------------------------------------------------------------

_ATOMS = (
    types.NoneType,
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    memoryview,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    uuid.UUID,
    decimal.Decimal,
    enum.Enum,
    frozenset,
    msgspec.Raw,
    msgspec.msgpack.Ext,
    msgspec.UnsetType,
)


def _thaw_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    new = dict(value)
    for key, item in value.items():
        handler = _thawers[type(item)]
        if handler is not None:
            new[key] = handler(item)
    return new


def _thaw_list(value: list[Any]) -> list[Any]:
    new = list(value)
    for index, item in enumerate(value):
        handler = _thawers[type(item)]
        if handler is not None:
            new[index] = handler(item)
    return new


def _choose_thawer(cls: Any) -> _Handler | None:
    handler: _Handler | None
    if issubclass(cls, _ATOMS):
        handler = None
    elif cls is dict or cls is FrozenDict:
        handler = _thaw_dict
    elif cls is list or cls is FrozenList:
        handler = _thaw_list
    elif cls is set or cls is bytearray:
        handler = cls
    elif cls is tuple:
        handler = _tuple_handler(_thawers, tuple)
    elif _is_namedtuple(cls):
        handler = _tuple_handler(_thawers, cls._make)
    elif (form := shape(cls)) is not None:
        handler = _record_handler(_thawers, form)
    else:
        handler = copy.deepcopy
    return handler


_thawers = _Handlers(_choose_thawer)


def thaw(value: T) -> T:
    """Make a plain, deep copy that the caller owns and may change.

    FrozenDict and FrozenList become dict and list at every level. A frozenset stays one: it cannot be told whether
    ``freeze`` made it from a set. Records are copied if anything in them can change, without running their
    constructors.

    Args:
        value: any value, frozen or not.

    Returns:
        The copy. What is immutable all the way down is shared with ``value``.

    Raises:
        RecursionError: it is nested too deeply.

    Concurrency: any thread.
    """
    handler = _thawers[type(value)]
    if handler is None:
        return value
    return typing.cast("T", handler(value))


# --- check_frozen -----------------------------------------------------------------------------------------------------

_DECLARE = {
    "Struct": "declare it `class {name}(msgspec.Struct, frozen=True)`",
    "dataclass": "declare it with `@dataclass(frozen=True)`",
    "attrs class": "declare it with `@attrs.frozen`",
}


def _not_frozen(what: str, path: str, cls: Any) -> str:
    form = shape(cls)
    kind = form.kind if form else "Struct"
    declare = _DECLARE[kind].format(name=cls.__name__)
    return (
        f"{what} is not frozen at `{path}`: {schema.type_name(cls)} is a mutable {kind}, and a value is shared by all "
        f"threads; {declare}, or pass freeze=False"
    )


def check_frozen(type: Any) -> None:  # noqa: A002
    """Refuse a type whose decoded values could be changed.

    Builtin containers are fine (``freeze`` deals with them), as is a class that only a ``dec_hook`` can make, of which
    nothing is known.

    Args:
        type: the type of a store's values; ``Any`` and None pass.

    Raises:
        ValidationError: there is a mutable Struct, dataclass or attrs class in it, at the path that the message names;
            or msgspec does not support the type.

    Concurrency: pure; any thread. The answer is cached by type.
    """
    if type is None or type is Any:
        return
    try:
        message = _cached_complaint(type)
    except TypeError:
        # Not hashable, hence not cached.
        message = _complaint(type)
    if message:
        raise ValidationError(message)


def _complaint(tp: Any) -> str:
    found = _mutable_in(schema.inspect_type(tp), "$", set())
    return _not_frozen(schema.type_name(tp), *found) if found else ""


_cached_complaint = functools.lru_cache(maxsize=256)(_complaint)


def _mutable_in(info: msgspec.inspect.Type, path: str, seen: set[int]) -> tuple[str, Any] | None:
    if isinstance(
        info,
        (
            msgspec.inspect.StructType,
            msgspec.inspect.DataclassType,
            msgspec.inspect.TypedDictType,
            msgspec.inspect.NamedTupleType,
        ),
    ):
        if id(info) in seen:
            return None
        seen.add(id(info))
        # Of a generic class, Box[int], the class is the origin.
        cls = typing.get_origin(info.cls) or info.cls
        form = shape(cls)
        if form is not None and not form.frozen:
            return path, cls
        steps = [(f".{field.name}", field.type) for field in info.fields]
    else:
        inside = schema.parts_of(info)
        if isinstance(info, (msgspec.inspect.UnionType, msgspec.inspect.Metadata)):
            steps = [("", part) for part in inside]
        elif isinstance(info, msgspec.inspect.TupleType):
            steps = [(f"[{index}]", part) for index, part in enumerate(inside)]
        else:
            steps = [("[...]", part) for part in inside]
    for step, part in steps:
        found = _mutable_in(part, path + step, seen)
        if found is not None:
            return found
    return None
