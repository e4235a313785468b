"""What commands print that made a version: its number, or an object with ``version`` for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from shmcow.cli import params
from shmcow.cli.output import SCHEMA, write_json

__all__ = ["change_options", "print_version", "publish_options", "version_options"]


def change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that changes one part what ``set`` and ``unset`` take, ``version_options`` included."""
    for option in (
        version_options,
        click.option("--force", is_flag=True, help="Publish without the type, too; the version's source says so."),
        click.option("--author", default="", help="Who; kept with the version."),
        click.option("--message", default="", help="Why; kept with the version."),
        click.option("--type", "type_", type=params.TYPE, metavar="MODULE:CLASS", help=params.TYPE_HELP),
    ):
        command = option(command)
    return command


def publish_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that publishes a whole value what ``publish`` and ``import`` take."""
    for option in (
        click.option("--group", help="Group of a new store."),
        click.option("--no-create", is_flag=True, help="Do not make a store that does not exist."),
        click.option(
            "--force",
            is_flag=True,
            help="Publish also what readers may not be able to read; the version's source says so.",
        ),
        click.option(
            "--if-changed", is_flag=True, help="Publish nothing if the bytes are those of the current version."
        ),
        click.option(
            "--expected",
            type=params.VERSION_OR_NONE,
            help="Publish only if this version is current (0: none is).",
        ),
    ):
        command = option(command)
    return command


def version_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``-o/--output`` and ``--json``, as the arguments ``form`` and ``as_json``."""
    command = click.option("--json", "as_json", is_flag=True, help="The same as -o json.")(command)
    return click.option(
        "-o", "--output", "form", type=click.Choice(["text", "json"]), help="Default: text, the number alone."
    )(command)


def print_version(version: int, form: str | None, as_json: bool, **more: Any) -> None:
    """Print the number of a version, or an object with it and ``more``."""
    if as_json or form == "json":
        write_json({"schema": SCHEMA, "version": version, **more})
    else:
        click.echo(str(version))
