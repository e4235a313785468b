"""How a command prints what it found: for people on a terminal, for scripts in a pipe, as JSON for programs."""

from __future__ import annotations

import datetime
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import click
import msgspec

from shmcow.cli.text import printable

__all__ = [
    "SCHEMA",
    "Column",
    "age",
    "form_options",
    "is_terminal",
    "iso",
    "masked",
    "plain",
    "redacted",
    "show",
    "size",
    "tsv_line",
    "write_json",
]

SCHEMA: Final = 1  # of all JSON that commands print; grows when a field changes its meaning
REDACT: Final = "(?i)passw|secret|token|api_?key|private_?key|credential"
_HIDDEN: Final = "********"
_NOT_ASCII: Final = re.compile(r"[^ -~]")


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: for people.
        exact: the cell's figure as scripts want it; a str, int or None.
        human: the cell for people; None: the exact one.
        right: whether it is a number, aligned to the right.
        cut: whether it is cut, and not wrapped, where a terminal is too narrow.
    """

    title: str
    exact: Callable[[Any], Any]
    human: Callable[[Any], str] | None = None
    right: bool = False
    cut: bool = False


def form_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``-o/--output`` and ``--json``, as the argument ``form``: "table", "tsv", "json" or "jsonl"."""
    choice = click.Choice(["table", "tsv", "json", "jsonl"])
    command = click.option("--json", "as_json", is_flag=True, help="The same as -o json.")(command)
    return click.option(
        "-o",
        "--output",
        "form",
        type=choice,
        help="Default: table on a terminal, in a pipe tab-separated values without a header (an empty one is -).",
    )(command)


def is_terminal() -> bool:
    """Tell whether what is printed is for people: a terminal, or FORCE_COLOR says to take it for one."""
    return sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))


def show(
    records: Sequence[Any],
    columns: Sequence[Column],
    *,
    form: str | None,
    as_json: bool,
    name: str,
    plain: Callable[[Any], Mapping[str, Any]],
) -> None:
    """Print records.

    Args:
        records: what was found.
        columns: for tables and tab-separated values (which have no header: one line for each record).
        form: what ``-o`` said; None: whatever suits the output.
        as_json: whether ``--json`` was given.
        name: of the list in the JSON.
        plain: a record as JSON has it.
    """
    form = "json" if as_json else form or ("table" if is_terminal() else "tsv")
    if form == "json":
        write_json({"schema": SCHEMA, name: [plain(record) for record in records]})
    elif form == "jsonl":
        for record in records:
            click.echo(printable_json(msgspec.json.encode({"schema": SCHEMA, **plain(record)}).decode()))
    elif form == "tsv":
        for record in records:
            click.echo(tsv_line(*(_text(column.exact(record)) for column in columns)))
    else:
        _table(records, columns)


def tsv_line(*cells: str) -> str:
    """Return cells as a line of tab-separated values.

    An empty cell is "-": a shell's ``read`` takes several tabs for one, and what follows would move to the left.
    """
    return "\t".join(printable(cell) or "-" for cell in cells)


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def _table(records: Sequence[Any], columns: Sequence[Column]) -> None:
    from rich.console import Console  # for people only: importing it takes longer than most commands
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=not sys.stdout.isatty())
    table = Table(box=None, pad_edge=False, header_style="" if os.environ.get("NO_COLOR") else "bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        most = console.width // 4 if column.cut else None  # without it the others are squeezed to nothing first
        table.add_column(column.title, justify=justify, no_wrap=column.right or column.cut, max_width=most)
    for record in records:
        table.add_row(*(Text(printable(_text((column.human or column.exact)(record)))) for column in columns))
    console.print(table)


def write_json(value: Any) -> None:
    """Print a value as JSON: indented on a terminal, on one line in a pipe."""
    data = msgspec.json.encode(value, enc_hook=plain)
    if is_terminal():
        data = msgspec.json.format(data, indent=2)
    click.echo(printable_json(data.decode()))


def printable_json(text: str) -> str:
    """Escape what JSON leaves as it is and a terminal might obey: C1 controls, and what turns a line around.

    What the encoding of the output has not is escaped, too: as JSON does it, and not as Python would.
    """
    unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()

    def escaped(found: re.Match[str]) -> str:
        char = found[0]
        return char if char.isprintable() and unicode else "".join(f"\\u{unit:04x}" for unit in _utf16(char))

    def is_fine(line: str) -> bool:
        return line.isprintable() and (unicode or line.isascii())

    return "\n".join(line if is_fine(line) else _NOT_ASCII.sub(escaped, line) for line in text.split("\n"))


def _utf16(char: str) -> list[int]:
    data = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[k : k + 2], "big") for k in range(0, len(data), 2)]


def plain(value: Any) -> Any:
    """Return plain data for what msgspec cannot write: views of tables, arrays and bytes."""
    if isinstance(value, memoryview):
        return bytes(value)
    for method in ("to_dict", "_asdict", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value)


def redacted(value: Any, pattern: str) -> Any:
    """Return a value made of dicts and lists with what has a telling name masked.

    Args:
        value: plain data.
        pattern: a regular expression, looked for in each key; "" masks nothing.

    Raises:
        re.error: it is none.
    """
    found = re.compile(pattern) if pattern else None
    return _masked(value, found) if found else value


def masked(steps: tuple[Any, ...], value: Any, pattern: str) -> Any:
    """Return a value with what has a telling name masked: in it, or on the way to it.

    Args:
        steps: the path to the value.
        value: plain data, or anything that has no names in it.
        pattern: a regular expression; "" masks nothing.
    """
    for step in reversed(steps):
        value = {step.decode(errors="replace") if isinstance(step, bytes) else step: value}
    value = redacted(value, pattern)
    for _ in steps:
        if not isinstance(value, Mapping):
            return value  # the mask of a name on the way
        (value,) = value.values()
    return value


def _masked(value: Any, found: re.Pattern[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _HIDDEN if found.search(_name_of(key)) else _masked(item, found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, found) for item in value]
    if hasattr(value, "to_dict") or hasattr(value, "_asdict"):  # names may be in a bundle, or in a table's rows
        return _masked(plain(value), found)
    return value


def _name_of(key: Any) -> str:
    if isinstance(key, bytes):
        return key.decode(errors="replace")
    return key if isinstance(key, str) else ""


def size(number: int) -> str:
    """Write a number of bytes for people: 640 B, 1.2 kB, 100 MB."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.1f} {unit}"


def iso(moment: datetime.datetime | None) -> str | None:
    """Write a moment for scripts."""
    return None if moment is None else moment.isoformat()


def age(moment: datetime.datetime | None) -> str:
    """Write how long ago something was: 3 s, 5 min, 2 h, 4 d."""
    if moment is None:
        return ""
    seconds = max(0.0, time.time() - moment.timestamp())
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
