"""``shmcow get``: a store's value, or a part of it."""

from __future__ import annotations

import bisect
import ipaddress
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from shmcow import Reader, Snapshot
from shmcow.cli import params, paths
from shmcow.cli.exits import PathNotFoundError
from shmcow.cli.inputs import InputError
from shmcow.cli.output import REDACT, is_terminal, masked, write_json
from shmcow.cli.text import printable, shortened
from shmcow.codecs import BundleView, IPTableView, MMDBView, TableView

__all__ = ["command", "find"]


@click.command("get", context_settings={"ignore_unknown_options": True})
@click.argument("name", type=params.STORE)
@click.argument("path", type=params.PATH, required=False)
@click.option("--at", "version", type=params.VERSION, help="An older version, if it can still be opened.")
@click.option("--raw", is_flag=True, help="The bytes of the payload as they are (of one part: name it in PATH).")
@click.option("--redact", default=REDACT, metavar="PATTERN", help="Mask what has such a name; '' masks nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON, also where the part is a text.")
@click.option("-o", "--output", "form", type=click.Choice(["json", "raw"]), help="The same as --json, or --raw.")
def command(
    name: str, path: str | None, version: int | None, raw: bool, redact: str, as_json: bool, form: str | None
) -> None:
    """Print the value of store NAME, or a part of it, as JSON.

    PATH names the part: keys and indexes joined by dots, such as db.hosts.0, or a JSON pointer. A text is printed
    without quotes. Of a bundle the first step is the part's name; of a table the rest is the key. Parts with names such
    as "password" are masked, unless you ask for the raw bytes, or for no masking.

    \b
    Examples:
      shmcow get app-config
      shmcow get app-config hosts.0
      shmcow get app-config --at 41
      shmcow get geo 8.8.8.8
      shmcow get app-config --raw > config.msgpack
    """
    with Reader(name, on_bad="raise") as reader:
        try:
            pattern = re.compile(redact)
        except re.error as exc:
            raise click.BadParameter(f"it is no regular expression: {exc}", param_hint="--redact") from exc
        snapshot = reader.snapshot() if version is None else reader.at(version)
        if raw or form == "raw":
            _write(_payload(snapshot, path))
            return
        _print(find(snapshot.value, path), path, pattern.pattern, as_json or form == "json")


def _payload(snapshot: Snapshot[Any], path: str | None) -> memoryview:
    if path is None:
        try:
            return snapshot.data
        except TypeError as exc:
            raise click.UsageError(f"{exc}: here, name it in PATH") from exc
    try:
        return snapshot.part(path)
    except KeyError as exc:
        raise PathNotFoundError(str(exc.args[0])) from exc


def _write(data: memoryview) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _print(value: Any, path: str | None, pattern: str, as_json: bool) -> None:
    shown = masked(paths.parse_path(path) if path is not None else (), value, pattern)
    if isinstance(shown, str) and not as_json:
        click.echo(printable(shown) if is_terminal() else shown, color=True)  # True: a pipe gets it as it is
    else:
        write_json(shown)


def find(value: Any, path: str | None) -> Any:
    """Return the part of a value that a path names.

    Args:
        value: of a snapshot.
        path: as people write it; None: the value itself.

    Raises:
        PathNotFoundError: there is no such part; says what there is.
        click.BadParameter, InputError: it is no path, or no key of the table.
    """
    if path is None:
        return value
    try:
        steps = paths.parse_path(path)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="PATH") from exc
    if isinstance(value, BundleView):
        if steps[0] not in value:
            raise PathNotFoundError(f"there is no part {shortened(steps[0], 80)!r}: the parts are {', '.join(value)}")
        value, steps = getattr(value, steps[0]), steps[1:]
    if isinstance(value, TableView | IPTableView | MMDBView) and steps:
        return _look_up(value, ("/" if path.startswith("/") else ".").join(steps))
    return paths.part(value, steps)


def _look_up(table: Any, key: str) -> Any:
    try:
        if isinstance(table, IPTableView) and ("/" in key or "-" in key):
            return _row_of(table, key)
        wanted: Any = int(key) if getattr(table, "_kind", "") == "int" else key
        wanted = wanted.encode() if getattr(table, "_kind", "") == "bytes" else wanted
        found = table.get(wanted, _NOTHING) if isinstance(table, Mapping) else table.get(wanted)
    except ValueError as exc:
        raise InputError(f"{shortened(key, 80)!r} is no key of this table: {printable(str(exc))}") from exc
    if found is _NOTHING or (found is None and wanted not in table):
        raise PathNotFoundError(f"the table has no {shortened(key, 80)!r}")
    return found


def _row_of(table: IPTableView[Any], text: str) -> Any:
    """Return the value of the very row that a network or a range names, as `shmcow diff` prints them."""
    ends: Sequence[Any] = text.split("-")
    if len(ends) != 2:
        network = ipaddress.ip_network(text)
        ends = network.network_address, network.broadcast_address
    wanted = _place(*map(ipaddress.ip_address, ends))
    at = bisect.bisect_left(range(len(table)), wanted, key=lambda k: _place(*table._row(k)[:2]))
    found = table._row(at) if at < len(table) else None
    if found is None or _place(*found[:2]) != wanted:
        raise PathNotFoundError(f"the table has no row {shortened(text, 80)!r}; an address finds the row that it is in")
    return found[2]


def _place(first: Any, last: Any) -> tuple[int, int, int]:
    """Where a row stands among all: the rows are sorted, and a network comes before what is nested in it."""
    return first.version, int(first), -int(last)


_NOTHING: Any = object()
