"""What a value's type looks like: a name for people, and a fingerprint that two processes can compare.

The fingerprint answers one question, "would both sides describe the same fields?", and must give the same answer in
every process. So it is made of what msgspec reports (field names, encoded names, types, constraints, whether a field
has a default) and of nothing that differs between processes: no ``id``, no ``hash``, no module of a Struct (the
same class is ``__main__.Config`` in one process and ``app.Config`` in the next), no default values.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
from typing import Any, Final

import msgspec
import msgspec.inspect

from shmcow.errors import ValidationError

__all__ = ["digest", "fingerprint", "inspect_type", "type_name"]

_FIELD_KINDS = (
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
    msgspec.inspect.TypedDictType,
    msgspec.inspect.NamedTupleType,
)
# What has fields: the only kinds that can refer to themselves, hence the nodes of the type's graph.
_Node: typing.TypeAlias = (
    msgspec.inspect.StructType
    | msgspec.inspect.DataclassType
    | msgspec.inspect.TypedDictType
    | msgspec.inspect.NamedTupleType
)


def inspect_type(type: Any) -> msgspec.inspect.Type:  # noqa: A002
    """Describe a type as msgspec sees it.

    Args:
        type: a type that msgspec supports.

    Returns:
        What ``msgspec.inspect.type_info`` returns.

    Raises:
        ValidationError: msgspec does not support the type, or a name in its annotations is not defined (yet).

    Concurrency: pure; any thread, any process.
    """
    try:
        return msgspec.inspect.type_info(type)
    except Exception as exc:
        raise unsupported(type, exc) from exc


def unsupported(type: Any, exc: Exception) -> ValidationError:  # noqa: A002
    """Make the error for a type that msgspec refused.

    Args:
        type: the refused type.
        exc: what msgspec raised.

    Returns:
        The error to raise ``from exc``.

    Concurrency: pure.
    """
    name = type_name(type) or "Any"
    if isinstance(exc, NameError):
        return ValidationError(
            f"cannot use {name} as the type of a store: {exc}; define every class that its annotations name before "
            f"making the codec, Reader or Writer"
        )
    if isinstance(exc, RecursionError):
        return ValidationError(f"cannot use {name} as the type of a store: its definition is nested too deeply")
    return ValidationError(
        f"cannot use {name} as the type of a store: {exc}; use a type that msgspec can encode and decode (Struct, "
        f"dataclass, attrs class, TypedDict, NamedTuple, or builtins such as dict[str, int])"
    )


def type_name(type: Any) -> str:  # noqa: A002
    """Name a type for people, as in ``app.config.Config`` or ``dict[str, int]``.

    Args:
        type: any type or annotation.

    Returns:
        The qualified name, without ``builtins.`` and ``typing.``; "" for ``Any`` and None (no type).

    Concurrency: pure; any thread, any process.
    """
    return "" if type is None or type is Any else _name(type)


def _name(tp: Any) -> str:
    if tp is None or tp is types.NoneType:
        return "None"
    if tp is Any:
        return "Any"
    if tp is ...:
        return "..."
    if isinstance(tp, str):
        # A forward reference that nobody has resolved.
        return tp
    if isinstance(tp, typing.TypeVar):
        return tp.__name__
    if isinstance(tp, typing.ForwardRef):
        return tp.__forward_arg__
    origin = typing.get_origin(tp)
    if origin is typing.Annotated:
        return _name(tp.__origin__)
    if origin is typing.Literal:
        return f"Literal[{', '.join(repr(arg) for arg in tp.__args__)}]"
    if origin is typing.Union or origin is types.UnionType:
        return " | ".join(_name(arg) for arg in tp.__args__)
    if origin is not None:
        args = ", ".join(_name(arg) for arg in typing.get_args(tp))
        return f"{_name(origin)}[{args or '()'}]"
    name = getattr(tp, "__qualname__", None) or getattr(tp, "__name__", None)
    if not isinstance(name, str):
        return repr(tp).replace("typing.", "")
    module = getattr(tp, "__module__", "builtins")
    return name if module in ("builtins", "typing") else f"{module}.{name}"


def fingerprint(type: Any) -> bytes:  # noqa: A002
    """Hash what a type looks like, so that two processes can tell whether they mean the same one.

    Two types have the same fingerprint if they have the same kinds, field names, encoded names, tags, field types and
    constraints, and the same fields have defaults. The names and modules of Structs, dataclasses and the like do not
    count, nor do the values of defaults, nor the order in which a union or an object's fields were written.

    Args:
        type: a type that msgspec supports.

    Returns:
        16 bytes; b"" for ``Any`` and None (no type), with which nothing can disagree.

    Raises:
        ValidationError: msgspec does not support the type.

    Concurrency: pure; any thread, any process. The result is cached by type.
    """
    if type is None or type is Any:
        return b""
    try:
        return _cached_fingerprint(type)
    except TypeError:
        # Not hashable (an Annotated with a dict in it, say): correct all the same, only not cached.
        return _fingerprint(type)


def _fingerprint(tp: Any) -> bytes:
    # A type may refer to itself, so this hashes a graph. Each round gives every node the hash of its own fields, in
    # which other nodes appear as their hashes of the round before, until a round tells no further nodes apart.
    # Numbering the nodes instead would be shorter, and would depend on the order of unions, which typing's caches
    # shuffle.
    root = inspect_type(tp)
    nodes: dict[int, _Node] = {}
    _collect(root, nodes)
    labels = dict.fromkeys(nodes, "")
    while True:
        new = {key: digest(_bytes_of(_describe_node(node, labels))).hex() for key, node in nodes.items()}
        settled = len(set(new.values())) == len(set(labels.values()))
        # Both rounds go into the result: together they say which hash follows which, down to every leaf.
        pairs = sorted({f"{labels[key]}>{new[key]}" for key in nodes})
        labels = new
        if settled or not nodes:
            break
    return digest(_bytes_of("\n".join([_describe(root, labels), *pairs])))


_cached_fingerprint = functools.lru_cache(maxsize=256)(_fingerprint)


def digest(data: bytes) -> bytes:
    """Return the 16 bytes that stand for a description in a fingerprint: BLAKE2b (RFC 7693).

    Concurrency: pure.
    """
    try:
        from _blake2 import blake2b  # where hashlib has it from; hashlib would load OpenSSL, 0.4 MB in each reader
    except ImportError:  # a Python that keeps it elsewhere
        from hashlib import blake2b
    return blake2b(data, digest_size=16).digest()


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _collect(info: msgspec.inspect.Type, nodes: dict[int, _Node]) -> None:
    todo = [info]
    while todo:
        item = todo.pop()
        if isinstance(item, _FIELD_KINDS):
            # msgspec gives one description per class, so its identity is the node's; `nodes` keeps it alive.
            if id(item) not in nodes:
                nodes[id(item)] = item
                todo += [field.type for field in item.fields]
        else:
            todo += parts_of(item)


def parts_of(info: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    """List the types directly inside one that has no fields: items, keys, values, union members.

    Args:
        info: a description by msgspec.

    Returns:
        Their descriptions, in order.

    Concurrency: pure.
    """
    found: list[msgspec.inspect.Type] = []
    for name in info.__struct_fields__:
        value = getattr(info, name)
        if isinstance(value, msgspec.inspect.Type):
            found.append(value)
        elif isinstance(value, tuple):
            found += [item for item in value if isinstance(item, msgspec.inspect.Type)]
    return found


def _describe(info: msgspec.inspect.Type, labels: dict[int, str]) -> str:
    if isinstance(info, _FIELD_KINDS):
        return f"<{labels[id(info)]}>"
    if isinstance(info, msgspec.inspect.Metadata):
        # Titles and descriptions are for people.
        return _describe(info.type, labels)
    if isinstance(info, msgspec.inspect.UnionType):
        return f"union({', '.join(sorted(_describe(item, labels) for item in info.types))})"
    kind = type(info).__name__
    if isinstance(info, msgspec.inspect.EnumType):
        return f"{kind}({', '.join(sorted(_member(member) for member in info.cls))})"
    if isinstance(info, msgspec.inspect.CustomType):
        # Nothing else is known of it.
        return f"{kind}({info.cls.__module__}.{info.cls.__qualname__})"
    if isinstance(info, msgspec.inspect.LiteralType):
        return f"{kind}({', '.join(sorted(map(repr, info.values)))})"
    said = []
    for name in info.__struct_fields__:
        value = getattr(info, name)
        if isinstance(value, msgspec.inspect.Type):
            said.append(f"{name}={_describe(value, labels)}")
        elif isinstance(value, tuple):
            said.append(f"{name}=[{', '.join(_describe(item, labels) for item in value)}]")
        elif value is not None:
            # None is "no such constraint": left out, so that a constraint new in msgspec changes no old fingerprint.
            said.append(f"{name}={value!r}")
    return f"{kind}({', '.join(said)})"


def _describe_node(node: _Node, labels: dict[int, str]) -> str:
    fields = [
        f"{field.name!r}/{field.encode_name!r}{'!' if field.required else '?'}:{_describe(field.type, labels)}"
        for field in node.fields
    ]
    ordered = isinstance(node, msgspec.inspect.NamedTupleType)
    tag = ""
    if isinstance(node, msgspec.inspect.StructType):
        ordered = node.array_like
        tag = f"{node.tag_field!r}={node.tag!r} array={node.array_like} forbid={node.forbid_unknown_fields} "
    if not ordered:
        fields.sort()
    return f"{type(node).__name__}({tag}{', '.join(fields)})"


def _member(member: enum.Enum) -> str:
    # The repr of an odd value (an object's address) would differ between processes.
    value = member.value
    return f"{member.name}={value!r}" if isinstance(value, (int, str)) else f"{member.name}:{type(value).__name__}"


def is_bounded(type: Any) -> bool:  # noqa: A002
    """Tell whether the type itself limits how deep its values nest: nothing of unknown type, no type inside itself.

    Args:
        type: a type that msgspec supports.

    Returns:
        False also for what msgspec leaves to a hook, and for no type.

    Concurrency: pure.
    """
    return type is not None and type is not Any and _is_bounded(inspect_type(type), ())


def _is_bounded(info: Any, above: tuple[int, ...]) -> bool:
    if isinstance(info, (msgspec.inspect.AnyType, msgspec.inspect.CustomType, msgspec.inspect.RawType)):
        return False
    if id(info) in above:
        return False
    inside = [*parts_of(info), *(field.type for field in getattr(info, "fields", ()))]
    return all(_is_bounded(part, (*above, id(info))) for part in inside)


def field_names(tp: Any) -> frozenset[str] | None:
    """Return the names under which a class's fields are encoded; None for what is no Struct, dataclass or attrs class.

    Concurrency: pure.
    """
    if not isinstance(tp, type):
        return None
    info = inspect_type(tp)
    if not isinstance(info, msgspec.inspect.StructType | msgspec.inspect.DataclassType) or getattr(
        info, "array_like", False
    ):
        return None
    return frozenset(field.encode_name for field in info.fields)


_IMMUTABLE: Final = (
    msgspec.inspect.NoneType,
    msgspec.inspect.BoolType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.StrType,
    msgspec.inspect.BytesType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeType,
    msgspec.inspect.TimeDeltaType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
)
_TRANSPARENT: Final = (
    msgspec.inspect.UnionType,
    msgspec.inspect.Metadata,
    msgspec.inspect.TupleType,
    msgspec.inspect.VarTupleType,
    msgspec.inspect.FrozenSetType,
)


def may_be_mutable(type: Any) -> bool:  # noqa: A002
    """Tell whether values of a type may have something in them that freezing changes: a dict, a list, an unknown class.

    Args:
        type: a type that msgspec supports.

    Returns:
        False for scalars, and tuples, frozensets and frozen Structs of such.

    Concurrency: pure.
    """
    return type is None or type is Any or _may_be_mutable(inspect_type(type), ())


def _may_be_mutable(info: Any, above: tuple[int, ...]) -> bool:
    if isinstance(info, _IMMUTABLE) or id(info) in above:
        return False
    if isinstance(info, msgspec.inspect.StructType):
        if not info.cls.__struct_config__.frozen:
            return True
    elif not isinstance(info, _TRANSPARENT):
        return True
    inside = [*parts_of(info), *(field.type for field in getattr(info, "fields", ()))]
    return any(_may_be_mutable(part, (*above, id(info))) for part in inside)
