"""What ``publish``, ``import`` and ``follow`` are asked: options of tables, checks, new stores, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from shmcow.arguments import check_group, check_mode
from shmcow.cli import params
from shmcow.cli.text import printable
from shmcow.documents import Rows
from shmcow.store import Settings

__all__ = [
    "COUNT",
    "TABLE_OPTIONS",
    "check_options",
    "checks_of",
    "mode_option",
    "rows_of",
    "said_options",
    "settings_of",
    "table_options",
]

_KEYS: Final[dict[str, type]] = {"str": str, "int": int, "bytes": bytes}
COUNT: Final = click.IntRange(min=0, max=(1 << 63) - 1)
TABLE_OPTIONS: Final = ("key", "columns", "key_type", "delimiter", "header", "ip")


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what it takes to make a table of a CSV file: the arguments ``TABLE_OPTIONS``."""
    for option in (
        click.option("--ip", is_flag=True, help="CSV: make a table of IP networks or ranges."),
        click.option(
            "--header/--no-header",
            default=None,
            help="CSV: whether the first row names the columns. Default: if --key does.",
        ),
        click.option("--delimiter", metavar="CHAR", help="CSV: default: a comma; in .tsv a tab."),
        click.option(
            "--key-type", type=click.Choice(list(_KEYS)), help="CSV: of the keys. Default: as the store has, or str."
        ),
        click.option("--columns", metavar="COLUMN,...", help="CSV: what becomes the value: else all others."),
        click.option("--key", metavar="COLUMN", help="CSV: column of the keys; with --ip of networks, or FIRST,LAST."),
    ):
        command = option(command)
    return command


def check_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--validate``, as the argument ``checks``."""
    return click.option(
        "--validate",
        "checks",
        type=params.TYPE,
        multiple=True,
        metavar="MODULE:FUNCTION",
        help="Called as (old, new); raises to refuse.",
    )(command)


def said_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--message`` and ``--author``."""
    command = click.option("--author", default="", help="Who; kept with each version.")(command)
    return click.option("--message", default="", help="Why; kept with each version.")(command)


def mode_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--mode``."""
    text = "Permissions of a new store: 600 (the default), 640, 604 or 644."
    return click.option("--mode", metavar="OCTAL", help=text)(command)


def checks_of(checks: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what ``--validate`` names, which must be functions."""
    for check in checks:
        if not callable(check):
            raise click.BadParameter(f"{printable(repr(check))} is no function", param_hint="--validate")
    return checks


def settings_of(mode: str | None, group: str | None) -> Settings:
    """Return what ``--mode`` and ``--group`` ask of a new store."""
    try:
        return Settings(None if mode is None else check_mode(int(mode, 8)), check_group(_gid(group)))
    except ValueError as exc:
        raise click.BadParameter(printable(str(exc)), param_hint="--mode, --group") from exc


def _gid(group: str | None) -> int | str | None:
    return int(group) if group is not None and group.isdecimal() else group


def rows_of(table: dict[str, Any]) -> Rows:
    """Return what the options of ``table_options`` say, as far as they are there.

    A table of which nobody said what its keys are is refused.
    """
    given = {option: table.get(option) for option in TABLE_OPTIONS}
    if not given["key"] and not given["ip"]:
        raise click.UsageError("a table needs --key COLUMN: whose values are the keys (with --ip: the networks)")
    return Rows(
        key=tuple(_columns_of(given["key"])),
        columns=tuple(_columns_of(given["columns"])) or None,
        key_type=_KEYS[given["key_type"]] if given["key_type"] else None,
        delimiter="\t" if given["delimiter"] == "\\t" else given["delimiter"] or "",  # as a shell passes a tab on
        header=given["header"],
        ip=bool(given["ip"]),
    )


def _columns_of(given: str | None) -> list[int | str]:
    """Return what ``--key`` and ``--columns`` name: columns by name, or by number."""
    names = [name.strip() for name in given.split(",")] if given else []
    return [int(name) if name.isdecimal() and len(name) < 10 else name for name in names]
