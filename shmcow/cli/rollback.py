"""``shmcow rollback``: publish an older version's content again."""

from __future__ import annotations

import click

from shmcow import Writer
from shmcow.cli import params
from shmcow.cli.versions import print_version, version_options

__all__ = ["command"]


@click.command("rollback")
@click.argument("name", type=params.STORE)
@click.option("--to", type=params.VERSION, help="The version to go back to.  [default: the one before]")
@click.option("--expected", type=params.VERSION, help="Only if this version is current.")
@click.option("--message", default="", help="Why; kept with the version.  [default: what was rolled back]")
@click.option("--author", default="", help="Who; kept with the version.")
@version_options
def command(
    name: str, to: int | None, expected: int | None, message: str, author: str, form: str | None, as_json: bool
) -> None:
    """Publish a new version of store NAME with an older one's content, and print its number.

    Nothing is copied, and readers see one more version like any other. One rollback after the other goes further back:
    what was rolled back to is not rolled back to again.

    \b
    Examples:
      shmcow rollback app-config
      shmcow rollback app-config --to 41 --message "42 breaks the login"
      shmcow rollback app-config --expected 42 -o json
    """
    with Writer(name, create=False) as writer:
        version = writer.rollback(to, expected=expected, message=message, author=author, source="shmcow rollback")
    print_version(version, form, as_json, name=name)
