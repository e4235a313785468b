"""Values out of files that people and programs write: JSON, TOML, YAML, MessagePack, CSV.

Whatever is wrong in a file is a ValidationError that names the file, the line and the column.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import mmap
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Final, NamedTuple, TypeAlias

import msgspec
from typing_extensions import Buffer

from shmcow import frozen, schema
from shmcow.codecs.iprows import Column, FileRows
from shmcow.codecs.msgpack import MsgPack
from shmcow.errors import ValidationError

__all__ = ["FORMATS", "MAPPED_BYTES", "Progress", "Rows", "contents", "csv_rows", "fields_of", "format_of", "parse"]

FORMATS: Final = ("json", "toml", "yaml", "msgpack", "raw", "csv", "mmdb")
MAPPED_BYTES: Final = 64 << 20  # a file from here on is mapped and not read: no second copy of it in memory
_SUFFIXES: Final = {
    ".json": "json",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".msgpack": "msgpack",
    ".bin": "raw",
    ".raw": "raw",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".mmdb": "mmdb",
}
_CHUNK: Final = 1 << 20
_MARK: Final = b"\xef\xbb\xbf"  # what some editors put in front of UTF-8
_LISTED: Final = 12  # names in a message

# Called with the bytes done and all bytes; 0: nobody knows how many there are.
Progress: TypeAlias = Callable[[int, int], object]


def format_of(path: str) -> str | None:
    """Return the format that a file's name says: one of ``FORMATS``; None: its suffix says nothing.

    Concurrency: pure.
    """
    name = os.path.basename(path).lower()
    return next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix)), None)


def contents(file: IO[bytes], progress: Progress | None = None) -> memoryview:
    """Read all of a file, from where it stands.

    A regular file of ``MAPPED_BYTES`` and more is mapped: nobody may truncate it meanwhile, or this process ends by
    SIGBUS. A file that is replaced by another one, as careful programs do, is no trouble.

    Args:
        file: opened for reading; must have a descriptor.
        progress: called now and then.

    Returns:
        Its bytes, read-only.

    Raises:
        OSError: it cannot be read.

    Concurrency: any thread; nobody else may use ``file`` meanwhile.
    """
    status = os.fstat(file.fileno())
    total = status.st_size if stat.S_ISREG(status.st_mode) else 0
    if total >= MAPPED_BYTES and file.tell() == 0:
        return memoryview(mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ))
    data = bytearray()
    while chunk := file.read(_CHUNK):
        data += chunk
        if progress is not None:
            progress(len(data), total)
    return memoryview(data).toreadonly()


# ---- documents: JSON, TOML, YAML, MessagePack ----


def parse(data: Buffer, form: str, *, where: str, codec: Any = None) -> Any:
    """Make a value of a document.

    Args:
        data: the document's bytes; text is UTF-8.
        form: "json", "toml", "yaml" or "msgpack".
        where: what messages call it, such as the file's name.
        codec: a MsgPack or JSON codec with the type that the value shall have, and hooks; None: plain data.

    Returns:
        The value: of the codec's type, or made of dicts, lists and scalars.

    Raises:
        ValidationError: it is malformed (says in which line and column), does not fit the type, or has a field that
            the type does not know: decoding would drop it without a word.
        ImportError: YAML needs PyYAML: pip install 'shmcow[yaml]'.

    Concurrency: any thread.
    """
    if form == "json" and bytes(memoryview(data)[:3]) == _MARK:
        data = memoryview(data)[3:]
    plain = _PARSERS[form](memoryview(data), where)
    if codec is None or codec.type is Any:
        return plain
    try:
        typed = _converted(plain, data, form, codec)
    except msgspec.ValidationError as exc:
        raise ValidationError(f"{where} does not fit {schema.type_name(codec.type)}: {exc}") from exc
    except Exception as exc:  # of a dec_hook
        raise ValidationError(
            f"{where} does not fit {schema.type_name(codec.type)}: {type(exc).__name__}: {exc}"
        ) from exc
    _check_known(plain, typed, "$", where)
    return typed


def _converted(plain: Any, data: Buffer, form: str, codec: Any) -> Any:
    if form == "json":  # which has notations of its own, as for bytes
        return msgspec.json.Decoder(codec.type, dec_hook=codec.dec_hook, strict=codec.strict).decode(data)
    if form == "msgpack":
        # A copy: a memoryview in the type would point into the file.
        return msgspec.msgpack.Decoder(codec.type, dec_hook=codec.dec_hook, strict=codec.strict).decode(bytes(data))
    return msgspec.convert(
        plain,
        codec.type,
        strict=codec.strict,
        str_keys=form == "toml",
        builtin_types=(datetime.datetime, datetime.date, datetime.time),
        dec_hook=codec.dec_hook,
    )


def _at(where: str, line: int, column: int, said: object) -> ValidationError:
    return ValidationError(f"{where}, line {line}, column {column}: {said}")


def _at_byte(where: str, data: bytes, offset: int, said: object) -> ValidationError:
    before = data[:offset]
    start = before.rfind(b"\n") + 1
    column = len(before[start:].decode("utf-8", "replace")) + 1
    return _at(where, before.count(b"\n") + 1, column, said)


def _text(data: Buffer, where: str) -> str:
    raw = bytes(data)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _not_utf8(raw, where) from None


def _not_utf8(raw: bytes, where: str) -> ValidationError:
    try:
        raw.decode()
    except UnicodeDecodeError as exc:
        return _at_byte(where, raw, exc.start, f"it is no UTF-8: {exc.reason}")
    return ValidationError(f"{where}: a text in it is no UTF-8")


def _parse_json(data: memoryview, where: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as exc:
        raw = bytes(data)
        if not raw.strip():
            raise ValidationError(f"{where}: it is empty, where JSON was expected") from exc
        raise _malformed_json(raw, where, str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise _not_utf8(bytes(data), where) from exc
    except RecursionError as exc:
        raise ValidationError(f"{where}: it is nested too deeply") from exc


def _malformed_json(raw: bytes, where: str, said: str) -> ValidationError:
    """Ask the parser of the standard library, which says exactly where."""
    import json

    try:
        json.loads(_text(raw, where))
    except json.JSONDecodeError as exc:
        return _at(where, exc.lineno, exc.colno, f"JSON is malformed: {exc.msg}")
    except (ValidationError, RecursionError) as exc:
        return exc if isinstance(exc, ValidationError) else ValidationError(f"{where}: it is nested too deeply")
    except ValueError:  # a number of thousands of digits
        pass
    found = re.search(r" \(byte (\d+)\)$", said)  # such as NaN, which that one takes
    return _at_byte(where, raw, int(found[1]), said[: found.start()]) if found else ValidationError(f"{where}: {said}")


def _parse_toml(data: memoryview, where: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(_text(data, where))
    except tomllib.TOMLDecodeError as exc:
        found = re.search(r" \(at line (\d+), column (\d+)\)$", str(exc))
        if found is None:
            said = str(exc).removesuffix(" (at end of document)")
            raise _at_byte(where, bytes(data), data.nbytes, f"TOML is malformed: {said}, and here it ends") from exc
        raise _at(where, int(found[1]), int(found[2]), f"TOML is malformed: {str(exc)[: found.start()]}") from exc
    except ValueError as exc:  # a number of thousands of digits
        if isinstance(exc, ValidationError):
            raise
        raise ValidationError(f"{where}: TOML is malformed: {exc}") from exc
    except RecursionError as exc:
        raise ValidationError(f"{where}: it is nested too deeply") from exc


def _parse_msgpack(data: memoryview, where: str) -> Any:
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        said = "it ends in the middle" if "truncated" in str(exc) else str(exc)
        raise ValidationError(f"{where}: it is no MessagePack: {said}") from exc
    except RecursionError as exc:
        raise ValidationError(f"{where}: it is nested too deeply") from exc


def _parse_yaml(data: memoryview, where: str) -> Any:
    try:
        import yaml
    except ImportError as exc:
        raise ImportError("YAML needs PyYAML: pip install 'shmcow[yaml]'") from exc
    text = _text(data, where)
    try:
        # Not the loader in C: deep nesting would overflow its stack, where this one raises RecursionError.
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise ValidationError(f"{where}: it is empty, where YAML was expected")
            _check_nodes(node, len(text), where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        said = f"YAML is malformed: {' '.join(filter(None, [exc.context, exc.problem]))}"
        if mark is None:
            raise ValidationError(f"{where}: {said}") from exc
        raise _at(where, mark.line + 1, mark.column + 1, said) from exc
    except yaml.reader.ReaderError as exc:
        offset = len(text[: exc.position].encode())
        raise _at_byte(where, text.encode(), offset, f"YAML is malformed: {exc.reason}") from exc
    except yaml.YAMLError as exc:
        raise ValidationError(f"{where}: YAML is malformed: {exc}") from exc
    except RecursionError as exc:
        raise ValidationError(f"{where}: it is nested too deeply") from exc
    except (ValueError, OverflowError) as exc:
        if isinstance(exc, ValidationError):
            raise
        raise ValidationError(f"{where}: YAML is malformed: {exc}") from exc  # a date such as 2026-13-45
    except (LookupError, AttributeError, TypeError) as exc:  # PyYAML's, of a tag such as !!bool before another text
        raise ValidationError(f"{where}: YAML is malformed: a value does not fit its tag") from exc


_REPEATED: Final = 10  # how often all of a YAML file may come again through its aliases


def _check_nodes(root: Any, length: int, where: str) -> None:
    """Refuse repeated keys, and aliases that lead into themselves, or would make much of little ("billion laughs").

    What a value weighs is counted as if aliases were written out, with each anchor weighed once.
    """
    most = _REPEATED * length + (1 << 20)
    weights: dict[int, int] = {}
    above: set[int] = set()
    todo = [(root, False)]
    while todo:
        node, inside_done = todo.pop()
        key = id(node)
        if inside_done:
            above.discard(key)
            weights[key] = 1 + sum(weights[id(child)] for child in _inside(node))
            if weights[key] > most:
                mark = node.start_mark
                raise _at(where, mark.line + 1, mark.column + 1, "its aliases repeat more than ten times what is here")
        elif key in above:
            mark = node.start_mark
            raise _at(where, mark.line + 1, mark.column + 1, "an alias leads into the value that it is part of")
        elif key not in weights:
            if isinstance(node.value, str):
                weights[key] = 1 + len(node.value)
                continue
            above.add(key)
            _check_keys(node, where)
            todo.append((node, True))
            todo += [(child, False) for child in _inside(node) if id(child) not in weights]


def _check_keys(node: Any, where: str) -> None:
    seen = set()
    for pair in node.value:
        name = pair[0] if isinstance(pair, tuple) else None
        if name is None or not isinstance(name.value, str) or name.value == "<<":
            continue
        if (name.tag, name.value) in seen:
            mark = name.start_mark
            raise _at(where, mark.line + 1, mark.column + 1, f"the key {name.value[:80]!r} is there already")
        seen.add((name.tag, name.value))


def _inside(node: Any) -> list[Any]:
    if isinstance(node.value, str):
        return []
    return [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]


_PARSERS: Final = {"json": _parse_json, "toml": _parse_toml, "yaml": _parse_yaml, "msgpack": _parse_msgpack}


# ---- what a type would drop without a word ----


def fields_of(value: Any) -> dict[str, str] | None:
    """Return the steps that lead into an instance, and its attributes: by encoded name, or by index where it is a list.

    Returns:
        None: it is no instance of a class with fields.

    Concurrency: pure.
    """
    if isinstance(value, msgspec.Struct):
        if value.__struct_config__.array_like:
            shift = value.__struct_config__.tag is not None
            return {str(n + shift): name for n, name in enumerate(value.__struct_fields__)}
        fields = dict(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
        if value.__struct_config__.tag_field is not None:
            fields.setdefault(value.__struct_config__.tag_field, "")
        return fields
    form = frozen.shape(type(value))
    return None if form is None else {name: name for name in form.fields}


def _check_known(plain: Any, typed: Any, path: str, where: str) -> None:
    if isinstance(plain, dict):
        fields = None if isinstance(typed, dict) else fields_of(typed)
        if fields is not None:
            for key, item in plain.items():
                if key not in fields:
                    names = [name for name in fields if not name.isdecimal()]
                    raise ValidationError(
                        f"{where}: {schema.type_name(type(typed))} has no field {str(key)!r} (at {path}): its fields "
                        f"are {', '.join(names[:_LISTED])}{' and more' if len(names) > _LISTED else ''}"
                    )
                if fields[key]:
                    _check_known(item, getattr(typed, fields[key], None), f"{path}.{key}", where)
        elif isinstance(typed, dict):
            for key, item in plain.items():
                _check_known(item, typed.get(key), f"{path}.{key}", where)
    elif isinstance(plain, list) and isinstance(typed, list | tuple):
        for n, (item, made) in enumerate(zip(plain, typed, strict=False)):
            _check_known(item, made, f"{path}[{n}]", where)


# ---- CSV ----


class Rows(NamedTuple):
    """How a CSV file becomes a table; see ``csv_rows``.

    Attributes:
        key: the columns of the keys, by name or by number from 0.
        columns: what becomes the value; None: all others.
        key_type: str, int or bytes; None: what the store has, or str.
        delimiter: one character; "": a tab in a ``.tsv``, else a comma.
        header: whether the first row names the columns; None: if a column is given by its name.
        ip: whether it is a table of IP networks or ranges.
    """

    key: tuple[Column, ...] = ()
    columns: tuple[Column, ...] | None = None
    key_type: type | None = None
    delimiter: str = ""
    header: bool | None = None
    ip: bool = False


def csv_rows(
    file: io.BufferedReader,
    *,
    where: str,
    key: Sequence[Column] = (),
    columns: Sequence[Column] | None = None,
    key_type: Any = str,
    values: MsgPack[Any] | None = None,
    delimiter: str = ",",
    header: bool | None = None,
    ip: bool = False,
    progress: Progress | None = None,
) -> FileRows:
    """Stream the rows of a CSV file, to be published as a Table or an IPTable.

    A column is named as in the header, or by its number from 0.

    Args:
        file: opened for reading bytes; UTF-8, packed by gzip or not. It is read while the rows are taken.
        where: what messages call it.
        key: the column of the keys. For an IPTable one of networks (or addresses, or "first-last"), or two of first
            and last addresses; none: the first, and the second, too, if the file has three columns.
        columns: what becomes the value: one column is a text, several are a dict by the header's names (a list without
            header). None: all but those of ``key``.
        key_type: str, int or bytes: of the keys of a Table.
        values: with the type that values are converted to: numbers are read from text, a dict becomes a Struct.
        delimiter: one character.
        header: whether the first row names the columns; None: unless all columns are given by numbers.
        ip: whether the rows are for an IPTable.
        progress: called now and then.

    Returns:
        An iterator: (key, value), (network, value) or (first, last, value).

    Raises:
        ValueError: the arguments contradict each other.
        ValidationError: while it is iterated over, what is wrong with a row; names the line.

    Concurrency: one thread at a time.

    Source: CSV as in RFC 4180; blank lines are skipped.
    """
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"the delimiter is one character, and no quote, found {delimiter!r}")
    if not ip and len(key) != 1:
        raise ValueError("a table has one column of keys: name it")
    if len(key) > 2:
        raise ValueError("give one column of networks, or two of first and last addresses")
    named = [*key, *(columns or ())]
    if header is None:
        header = any(isinstance(column, str) for column in named)
    if header is False and any(isinstance(column, str) for column in named):
        raise ValueError("without a header columns go by their numbers, from 0")
    reading = _Reading(file, key, columns, key_type, values, delimiter, header, ip, progress)
    return FileRows(where, reading.rows)


class _Reading:
    """How to read one CSV file."""

    def __init__(
        self,
        file: io.BufferedReader,
        key: Sequence[Column],
        columns: Sequence[Column] | None,
        key_type: Any,
        values: MsgPack[Any] | None,
        delimiter: str,
        header: bool,
        ip: bool,
        progress: Progress | None,
    ) -> None:
        self.file, self.key, self.columns, self.ip = file, key, columns, ip
        self.key_type, self.values = key_type, values
        self.delimiter, self.header, self.progress = delimiter, header, progress
        status = os.fstat(file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else 0

    def rows(self, at: FileRows) -> Iterator[tuple[Any, ...]]:
        reader = None
        try:
            reader = csv.reader(self._lines(at), delimiter=self.delimiter, strict=True)
            yield from self._rows(reader, at)
        except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as exc:
            line = reader.line_num if reader is not None else 1
            raise ValidationError(f"{at.place(max(line, 1))}: cannot be read: {exc}") from exc

    def _lines(self, at: FileRows) -> Iterator[str]:
        packed = self.file.peek(2)[:2] == b"\x1f\x8b"
        done = 0
        for number, raw in enumerate(gzip.GzipFile(fileobj=self.file) if packed else self.file, 1):
            if number == 1 and raw.startswith(_MARK):
                raw = raw[3:]
            try:
                yield raw.decode()
            except UnicodeDecodeError as exc:
                raise ValidationError(f"{at.place(number)}: it is no UTF-8: {exc.reason}") from exc
            done += len(raw)
            if self.progress is not None and number % 4096 == 0:
                self.progress(done, 0 if packed else self.size)

    def _rows(self, reader: Any, at: FileRows) -> Iterator[tuple[Any, ...]]:
        names: list[str] | None = None
        pick: Callable[[list[str]], tuple[Any, ...]] | None = None
        width = 0
        for fields in reader:
            at.line = reader.line_num
            if not fields:
                continue
            width = width or len(fields)
            if len(fields) != width:
                raise ValidationError(
                    f"{at.place(at.line)}: it has {len(fields)} columns, and the first row has {width}"
                )
            try:
                if names is None and self.header:
                    names = [field.strip() for field in fields]
                    pick = self._picker(names, width)
                    continue
                if pick is None:
                    pick = self._picker(None, width)
                row = pick(fields)
            except ValidationError as exc:
                raise ValidationError(f"{at.place(at.line)}: {exc}") from exc
            yield row
        if self.header and names is None:  # as a download that failed: a table without rows has its header
            raise ValidationError(f"{at.place(1)}: it is empty, where a header was expected")

    def _picker(self, names: list[str] | None, width: int) -> Callable[[list[str]], tuple[Any, ...]]:
        keys = [_number(column, names, width) for column in self.key] or list(range(2 if width == 3 else 1))
        wanted = [n for n in range(width) if n not in keys]
        if self.columns is not None:
            wanted = [_number(column, names, width) for column in self.columns]
        if not wanted:
            raise ValidationError("there is no column for the values")
        value = self._value(wanted, names)
        if self.ip and len(keys) == 2:
            first, last = keys
            return lambda fields: (fields[first].strip(), fields[last].strip(), value(fields))
        (column,) = keys
        if self.ip:
            return lambda fields: (fields[column].strip(), value(fields))
        make = _KEYS[self.key_type]
        return lambda fields: (make(fields[column]), value(fields))

    def _value(self, wanted: list[int], names: list[str] | None) -> Callable[[list[str]], Any]:
        def plain(fields: list[str]) -> Any:
            if len(wanted) == 1:
                return fields[wanted[0]]
            return [fields[n] for n in wanted] if names is None else {names[n]: fields[n] for n in wanted}

        codec = self.values
        if codec is None or codec.type is Any:
            return plain
        tp = codec.type
        if len(wanted) == 1 and names is not None and schema.field_names(tp) is not None:
            only, name = wanted[0], names[wanted[0]]
            return lambda fields: _typed({name: fields[only]}, codec)
        return lambda fields: _typed(plain(fields), codec)


def _typed(value: Any, codec: MsgPack[Any]) -> Any:
    try:
        typed = msgspec.convert(value, codec.type, strict=False, dec_hook=codec.dec_hook)
    except msgspec.ValidationError as exc:
        raise ValidationError(f"the value does not fit {schema.type_name(codec.type)}: {exc}") from exc
    except Exception as exc:  # of a dec_hook
        raise ValidationError(f"the value does not fit: {type(exc).__name__}: {exc}") from exc
    _check_known(value, typed, "$", "the row")
    return typed


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"\s*-?[0-9]{1,20}\s*", text):
        raise ValidationError(f"the key {text[:80]!r} is no whole number")
    return int(text)


_KEYS: Final[dict[type, Callable[[str], Any]]] = {str: str, int: _whole_number, bytes: str.encode}


def _number(column: Column, names: list[str] | None, width: int) -> int:
    if names is not None and str(column) in names:
        if names.count(str(column)) > 1:
            raise ValidationError(f"there are several columns {column!r}")
        return names.index(str(column))
    if isinstance(column, int) and 0 <= column < width:
        return column
    there = f"the header has {', '.join(names)}" if names is not None else f"a row has columns 0 to {width - 1}"
    raise ValidationError(f"there is no column {column!r}: {there}")
