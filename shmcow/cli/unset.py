"""``shmcow unset``: remove one part of a store's value."""

from __future__ import annotations

from typing import Any

import click

from shmcow.cli import params, paths
from shmcow.cli.set import change_part, steps_of
from shmcow.cli.versions import change_options, print_version

__all__ = ["command"]


@click.command("unset", context_settings={"ignore_unknown_options": True})
@click.argument("name", type=params.STORE)
@click.argument("path", type=params.PATH)
@change_options
def command(
    name: str, path: str, type_: Any, message: str, author: str, force: bool, form: str | None, as_json: bool
) -> None:
    """Remove one key or item of the value of store NAME, and print the new version.

    PATH names it: keys and indexes joined by dots, such as db.hosts.0, or a JSON pointer. In a list, what follows moves
    up. A field of a type goes back to its default, if it has one. What other writers change at the same time is kept.

    \b
    Examples:
      shmcow unset app-config banner
      shmcow unset app-config hosts.2 --message "db-3 is gone"
      shmcow unset orders limits.max --type shop.config:Limits
    """
    steps = steps_of(path)
    said = {"message": message, "author": author, "source": "shmcow unset"}
    version = change_part(name, steps, type_, force, said, lambda old, codec: paths.removed_typed(old, steps, codec))
    print_version(version, form, as_json)
