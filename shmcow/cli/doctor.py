"""``shmcow doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import click

from shmcow import inspect
from shmcow.cli import exits, params
from shmcow.cli.output import Column, form_options, is_terminal, show
from shmcow.cli.text import printable

__all__ = ["command"]

_COLUMNS: Final = (
    Column("level", lambda item: item.level),
    Column("store", lambda item: item.store),
    Column("check", lambda item: item.check),
    Column("found", lambda item: item.what),
    Column("fix", lambda item: item.fix),
)


@click.command("doctor")
@click.argument("name", type=params.STORE, required=False)
@form_options
@click.pass_context
def command(context: click.Context, name: str | None, form: str | None, as_json: bool) -> None:
    """Look for what is wrong, or soon will be, with store NAME or with all, and say how to fix it.

    Looks at room in /dev/shm against need, leftovers, owners and permissions, lost files, damaged versions (the current
    one is read whole), one that was forced, stopped processes that hold an old version or the writer lock, resource
    limits, logind's RemoveIPC and a container's small /dev/shm.

    Exits 1 if there are problems, 0 if there are none, or warnings only.

    \b
    Examples:
      shmcow doctor
      shmcow doctor app-config
      shmcow doctor --json
    """
    found = inspect.diagnose(name)
    if not as_json and (form == "table" or (form is None and is_terminal())):
        _tell(found)
    else:
        show(found, _COLUMNS, form=form, as_json=as_json, name="findings", plain=dataclasses.asdict)
        if not found:
            click.echo("shmcow: nothing wrong was found", err=True)
    problems = sum(item.level == "problem" for item in found)
    if problems:
        context.exit(exits.FOUND)


def _tell(found: list[Any]) -> None:
    """Print findings for people: a paragraph each, as a table's columns would be too narrow for them."""
    import os

    bold = (lambda text: text) if os.environ.get("NO_COLOR") else (lambda text: click.style(text, bold=True))
    for item in found:
        where = f"{item.store}: " if item.store else ""
        click.echo(f"{bold(item.level)}  {printable(where + item.what)}")
        click.echo(f"  fix: {printable(item.fix)}")
    if not found:
        click.echo("nothing wrong was found")
