"""What commands print that made a version: its number, or an object with ``version`` for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from shmcow.cli.output import SCHEMA, write_json

__all__ = ["print_version", "version_options"]


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
