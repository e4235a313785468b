"""Parts of a value, by path: ``hosts.0``, ``db.pool.size``, or a JSON pointer such as ``/a.b/0``.

A path names keys as they are stored (as in the JSON of the value), whatever class the value is decoded to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmcow import codecs
from shmcow.cli.exits import PathNotFoundError
from shmcow.cli.text import shortened
from shmcow.errors import DecodeError, ValidationError

__all__ = ["parse_path", "part", "removed", "removed_typed", "replaced", "replaced_typed"]

_SHOWN = 12  # keys named in a message
_DIGITS = 20  # of the largest whole number that MessagePack has


def parse_path(text: str) -> tuple[str, ...]:
    """Return the steps of a path: dotted, or a JSON pointer (RFC 6901) if it starts with a slash.

    Raises:
        ValueError: it is empty, or a step of a dotted path is.

    Concurrency: pure.
    """
    if text.startswith("/"):
        return tuple(step.replace("~1", "/").replace("~0", "~") for step in text[1:].split("/"))
    steps = tuple(text.split("."))
    if not all(steps):
        raise ValueError(
            "a path is keys and indexes joined by dots, such as db.hosts.0 (or a JSON pointer: /db/hosts/0)"
        )
    return steps


def part(value: Any, steps: tuple[str, ...]) -> Any:
    """Return a part of a value.

    Args:
        value: made of mappings, lists and scalars.
        steps: the path; none: the value itself.

    Raises:
        PathNotFoundError: there is no such part; says what there is.

    Concurrency: pure.
    """
    for depth, step in enumerate(steps):
        if isinstance(value, dict):
            key = _key(value, step)
            if key not in value:
                raise _missing(steps, depth, f"known keys: {_listed(value)}")
            value = value[key]
        elif isinstance(value, (list, tuple)):
            value = value[_index(steps, depth, len(value))]
        else:
            raise _missing(steps, depth, f"{_where(steps, depth)} is {_kind(value)}, which has no parts")
    return value


def replaced(value: Any, steps: tuple[str, ...], new: Any) -> Any:
    """Return a value with one part replaced; the value itself is left as it is.

    Args:
        value: made of dicts, lists and scalars; a dict's missing key is added at the last step.
        steps: the path, at least one step.
        new: what to put there.

    Raises:
        PathNotFoundError: there is no such part; says what there is.

    Concurrency: pure.
    """
    return _changed(value, steps, 0, lambda parent, key: _with(parent, key, new))


def removed(value: Any, steps: tuple[str, ...]) -> Any:
    """Return a value without one part; the value itself is left as it is.

    Args:
        value: made of dicts, lists and scalars.
        steps: the path, at least one step; in a list what follows moves up.

    Raises:
        PathNotFoundError: there is no such part; says what there is.

    Concurrency: pure.
    """
    part(value, steps)
    return _changed(value, steps, 0, _without)


def replaced_typed(value: Any, steps: tuple[str, ...], new: Any, codec: codecs.Codec[Any]) -> Any:
    """Return a value of any class with one part replaced by plain data, as the stored form of the value has it.

    Args:
        value: what ``codec`` encodes.
        steps: the path in the stored form: there a field has its encoded name, and an instance is a dict or list.
        new: made of dicts, lists and scalars.
        codec: of the store, with its type.

    Raises:
        PathNotFoundError: there is no such part, or the class has no such field.
        ValidationError: the result does not fit the type.

    Concurrency: pure.
    """
    if isinstance(value, codecs.BundleView) and len(steps) == 1:
        _check_part(value, steps)
        return value._replace(**{steps[0]: new})
    return _changed_typed(value, steps, codec, lambda stored, inside: replaced(stored, inside, new))


def removed_typed(value: Any, steps: tuple[str, ...], codec: codecs.Codec[Any]) -> Any:
    """Return a value of any class without one part of its stored form; a field then has its default.

    Args:
        value, steps, codec: as for ``replaced_typed``.

    Raises:
        PathNotFoundError: there is no such part.
        ValidationError: the result does not fit the type, or the part is one of a bundle, which keeps its parts.

    Concurrency: pure.
    """
    if isinstance(value, codecs.BundleView) and len(steps) == 1:
        _check_part(value, steps)
        raise ValidationError(f"the part {steps[0]!r} of a bundle cannot be removed: its readers may need it")
    return _changed_typed(value, steps, codec, removed)


def _changed_typed(
    value: Any, steps: tuple[str, ...], codec: codecs.Codec[Any], change: Callable[[Any, tuple[str, ...]], Any]
) -> Any:
    if isinstance(value, codecs.BundleView):
        _check_part(value, steps)
        name, *inside = steps
        codec = codec.codecs[name] if isinstance(codec, codecs.Bundle) else codecs.for_name(value._codec_of(name))
        if codec.name not in ("msgpack", "json"):
            raise _missing(
                steps, len(steps) - 1, f"{name} is of the codec {codec.name!r}, whose values have no parts to change"
            )
        return value._replace(**{name: _changed_typed(getattr(value, name), tuple(inside), codec, change)})
    plain = codecs.for_name(codec.name)
    stored = plain.decode_parts([_stored(part) for part in codec.encode_parts(value)])
    changed = change(stored, steps)
    if codec.type is Any:
        return changed
    try:
        result = codec.decode_parts([_stored(part) for part in plain.encode_parts(changed)])
    except DecodeError as exc:
        raise ValidationError(f"the new value does not fit: {exc}") from exc
    _check_field(result, steps)
    return result


def _check_part(view: codecs.BundleView, steps: tuple[str, ...]) -> None:
    if steps[0] not in view:
        raise _missing(steps, 0, f"known keys: {_listed(view)}")


def _stored(part: codecs.Part) -> codecs.StoredPart:
    return codecs.StoredPart(memoryview(b"".join(part.buffers)), part.name, part.codec)


def _with(parent: Any, key: Any, new: Any) -> Any:
    if isinstance(parent, dict):
        return {**parent, key: new}
    return [*parent[:key], new, *parent[key + 1 :]]


def _without(parent: Any, key: Any) -> Any:
    if isinstance(parent, dict):
        return {known: item for known, item in parent.items() if known != key}
    return [*parent[:key], *parent[key + 1 :]]


def _changed(value: Any, steps: tuple[str, ...], depth: int, change: Callable[[Any, Any], Any]) -> Any:
    last = depth == len(steps) - 1
    if isinstance(value, dict):
        key = _key(value, steps[depth])
        if key not in value and not last:
            raise _missing(steps, depth, f"known keys: {_listed(value)}")
        return change(value, key) if last else _with(value, key, _changed(value[key], steps, depth + 1, change))
    if isinstance(value, (list, tuple)):
        index = _index(steps, depth, len(value))
        return change(value, index) if last else _with(value, index, _changed(value[index], steps, depth + 1, change))
    raise _missing(steps, depth, f"{_where(steps, depth)} is {_kind(value)}, which has no parts")


def _key(value: dict[Any, Any], step: str) -> Any:
    """The key that a step means: the text itself, or the only kind of key that reads like it (MessagePack has more)."""
    if step in value:
        return step
    for key in value:
        if not isinstance(key, str) and str(key) == step:
            return key
    if value and all(type(key) is int for key in value) and _is_number(step.removeprefix("-")):
        return int(step)
    return step


def _is_number(step: str) -> bool:
    return step.isdecimal() and len(step) <= _DIGITS  # Python refuses to read thousands of digits


def _index(steps: tuple[str, ...], depth: int, length: int) -> int:
    step = steps[depth]
    if _is_number(step) and int(step) < length:
        return int(step)
    there = f"{_where(steps, depth)} is a list with " + (f"indexes 0 to {length - 1}" if length else "nothing in it")
    raise _missing(steps, depth, there)


def _missing(steps: tuple[str, ...], depth: int, there: str) -> PathNotFoundError:
    return PathNotFoundError(f"the value has no part {shortened(_text(steps[: depth + 1]), 80)!r}: {there}")


def _where(steps: tuple[str, ...], depth: int) -> str:
    return shortened(_text(steps[:depth]), 80) if depth else "the value"


def _text(steps: tuple[str, ...]) -> str:
    from shmcow.differ import path_text  # a path that is right has no use for it

    return path_text(steps)


def _listed(keys: Any) -> str:
    names = [str(key) for key in keys]
    shown = ", ".join(shortened(name, 40) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return shown + more if names else "none"


def _kind(value: Any) -> str:
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _check_field(value: Any, steps: tuple[str, ...]) -> None:
    """Refuse a step that no field has: decoding ignores an unknown key, and what was asked for would be lost."""
    for depth, step in enumerate(steps):
        if isinstance(value, dict):
            key = _key(value, step)
            if key not in value:
                return
            value = value[key]
        elif isinstance(value, (list, tuple)) and _is_number(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            from shmcow.documents import fields_of

            fields = fields_of(value)
            if fields is None:
                return
            if step not in fields:
                names = [name for name in fields if not name.isdecimal()] or list(fields)
                raise _missing(steps, depth, f"the fields of {type(value).__qualname__} are {_listed(names)}")
            value = getattr(value, fields[step], None)
