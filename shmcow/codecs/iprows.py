"""Rows of IP tables out of files, streamed: one row at a time is in memory, and errors name the line."""

from __future__ import annotations

import bisect
import ipaddress
import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeAlias

from shmcow.errors import ValidationError

__all__ = ["Column", "FileRows"]

Column: TypeAlias = int | str
_Fields: TypeAlias = list[str]
_Value: TypeAlias = Callable[[Any], Any] | Sequence[Column] | Column | None


class FileRows:
    """Iterate over the rows of a CSV file, as ``IPTable.rows_from_csv`` makes it. Read once.

    Attributes:
        path: of the file.
        line: where the latest row stands, from 1; errors of a table that is built from it name it.

    Concurrency: one thread at a time, as a generator.
    """

    def __init__(self, path: str, rows: Callable[[FileRows], Iterator[tuple[Any, ...]]]) -> None:
        self.path = path
        self.line = 0
        self._rows = rows(self)

    def __iter__(self) -> FileRows:
        return self

    def __next__(self) -> tuple[Any, ...]:
        return next(self._rows)

    def place(self, line: int) -> str:
        """Name a line of the file."""
        return f"line {line} of {self.path}"

    def __repr__(self) -> str:
        return f"<rows of {self.path}, at line {self.line}>"


class _Reading:
    """How to read one CSV file."""

    def __init__(
        self,
        path: str,
        network: Column | None,
        first: Column | None,
        last: Column | None,
        value: _Value,
        delimiter: str,
        header: bool | None,
        encoding: str,
    ) -> None:
        if (first is None) != (last is None) or (network is not None and first is not None):
            raise ValueError("give network=, or first= and last=, or none of them")
        if len(delimiter) != 1:
            raise ValueError(f"delimiter= is one character, found {delimiter!r}")
        self.path, self.delimiter, self.encoding = path, delimiter, encoding
        self.ends = [column for column in (network, first, last) if column is not None]
        self.value = value
        wanted = [*self.ends, *_columns(value)]
        for column in wanted:
            if (
                isinstance(column, bool)
                or not isinstance(column, int | str)
                or (isinstance(column, int) and column < 0)
            ):
                raise ValueError(f"a column is a number from 0, or a name in the header, found {column!r}")
        self.header = any(isinstance(column, str) for column in wanted) if header is None else header

    def open(self, errors: str = "strict") -> IO[str]:
        if self.path.endswith(".gz"):
            import gzip  # not for every worker

            return gzip.open(self.path, "rt", encoding=self.encoding, errors=errors, newline="")
        return open(self.path, encoding=self.encoding, errors=errors, newline="")

    def undecodable(self) -> int:
        """Find the first line that the encoding does not fit: files are decoded in larger pieces."""
        with self.open("surrogateescape") as file:
            for line, text in enumerate(file, 1):
                try:
                    text.encode(self.encoding)
                except UnicodeEncodeError:
                    return line
        return 1

    def rows(self, at: FileRows) -> Iterator[tuple[Any, ...]]:
        import csv  # not for every worker
        import gzip

        reader = None
        try:
            with self.open() as file:
                reader = csv.reader(file, delimiter=self.delimiter, strict=True)
                yield from self._rows(reader, at)
        except (csv.Error, UnicodeError, EOFError, gzip.BadGzipFile) as exc:
            line = self.undecodable() if isinstance(exc, UnicodeError) else reader.line_num if reader is not None else 1
            raise ValidationError(f"{at.place(max(line, 1))}: cannot be read: {exc}") from exc

    def _rows(self, reader: Any, at: FileRows) -> Iterator[tuple[Any, ...]]:
        names: _Fields | None = None
        pick: Callable[[_Fields], tuple[Any, ...]] | None = None
        for fields in reader:
            at.line = reader.line_num
            if not fields:
                continue
            if names is None and self.header:
                names = [field.strip() for field in fields]
                continue
            try:
                if pick is None:
                    pick = self._picker(names, len(fields))
                row = pick(fields)
            except IndexError as exc:
                raise ValidationError(
                    f"{at.place(at.line)}: it has {len(fields)} columns only: {self.delimiter.join(fields)!r}"
                ) from exc
            except ValidationError as exc:
                raise ValidationError(f"{at.place(at.line)}: {exc}") from exc
            except Exception as exc:
                raise ValidationError(f"{at.place(at.line)}: value= raised {type(exc).__name__}: {exc}") from exc
            yield row

    def _picker(self, names: _Fields | None, width: int) -> Callable[[_Fields], tuple[Any, ...]]:
        ends = [_number(column, names) for column in self.ends]
        if not ends:
            if width not in (2, 3):
                raise ValidationError(
                    f"expected `network,value` or `first,last,value`, found {width} columns: name them with network=, "
                    "or first= and last=, and value="
                )
            ends = list(range(width - 1))
        value = self._value(names, max(ends) + 1)
        if len(ends) == 1:
            (network,) = ends
            return lambda fields: (fields[network].strip(), value(fields))
        first, last = ends
        return lambda fields: (fields[first].strip(), fields[last].strip(), value(fields))

    def _value(self, names: _Fields | None, default: int) -> Callable[[_Fields], Any]:
        wanted = self.value
        if callable(wanted):
            made = wanted
            if names is None:
                return made
            return lambda fields: made(dict(zip(names, fields, strict=False)))
        if wanted is None or isinstance(wanted, int | str):
            column = default if wanted is None else _number(wanted, names)
            return lambda fields: fields[column]
        if names is None:
            raise ValidationError("value= with several columns makes a dict by the header's names: give header=True")
        columns = {names[_number(column, names)]: _number(column, names) for column in wanted}
        return lambda fields: {name: fields[column] for name, column in columns.items()}


def _columns(value: _Value) -> list[Column]:
    if value is None or callable(value):
        return []
    return [value] if isinstance(value, int | str) else list(value)


def _number(column: Column, names: _Fields | None) -> int:
    if isinstance(column, int):
        return column
    if names is None:
        raise ValidationError(f"there is no header to find the column {column!r} in: give its number")
    if column not in names:
        raise ValidationError(f"there is no column {column!r}: the header has {', '.join(names)}")
    return names.index(column)


class _Chain(FileRows):
    """The rows of several files, one after the other; lines are counted through, and named by file."""

    def __init__(self, files: list[FileRows]) -> None:
        self._files = files
        self._before: list[int] = []  # lines of all files before each one that was begun
        super().__init__(", ".join(file.path for file in files), lambda _: self._chained())

    def _chained(self) -> Iterator[tuple[Any, ...]]:
        before = 0
        for file in self._files:
            self._before.append(before)
            for row in file:
                self.line = before + file.line
                yield row
            before += file.line

    def place(self, line: int) -> str:
        """Name a file, and a line of it."""
        at = bisect.bisect_left(self._before, line) - 1
        return self._files[at].place(line - self._before[at])


def from_csv(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    network: Column | None,
    first: Column | None,
    last: Column | None,
    value: _Value,
    delimiter: str,
    header: bool | None,
    encoding: str,
) -> FileRows:
    """Make the rows of a CSV file; see ``IPTable.rows_from_csv``."""
    files = []
    for one in [path] if isinstance(path, str | os.PathLike) else path:
        reading = _Reading(os.fspath(one), network, first, last, value, delimiter, header, encoding)
        with open(reading.path, "rb"):
            pass  # a file that is not there is told where it was named, and not where it is read
        files.append(FileRows(reading.path, reading.rows))
    return files[0] if len(files) == 1 else _Chain(files)


# Where MaxMind DB files repeat the tree of IPv4: mapped addresses, Teredo, 6to4.
_ALIASES = tuple(ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "2001::/32", "2002::/16"))


def from_mmdb(path: str | os.PathLike[str], value: Callable[[Any], Any] | None) -> Iterator[tuple[Any, ...]]:
    """Make the rows of a MaxMind DB file; see ``IPTable.rows_from_mmdb``."""
    try:
        import maxminddb
    except ImportError as exc:
        raise ImportError("rows_from_mmdb needs maxminddb: pip install 'shmcow[mmdb]'") from exc
    try:
        database = maxminddb.open_database(path)
    except maxminddb.InvalidDatabaseError as exc:
        raise ValidationError(f"{os.fspath(path)} is no MaxMind DB file: {exc}") from exc
    return _rows_of(database, os.fspath(path), value)


def _rows_of(database: Any, path: str, value: Callable[[Any], Any] | None) -> Iterator[tuple[Any, ...]]:
    network = None
    try:
        with database:
            for network, record in database:
                if network.version == 6 and any(network.subnet_of(alias) for alias in _ALIASES):
                    continue
                yield network, record if value is None else value(record)
    except GeneratorExit:
        raise
    except Exception as exc:
        where = f"at {network} " if network is not None else ""
        raise ValidationError(f"{path} {where}cannot be read: {type(exc).__name__}: {exc}") from exc
