"""``shmcow import``: a new version out of what was exported."""

from __future__ import annotations

from typing import Any

import click

from shmcow import files
from shmcow.cli import params
from shmcow.cli.asked import settings_of
from shmcow.cli.hints import with_hint
from shmcow.cli.inputs import file_errors
from shmcow.cli.progress import bar
from shmcow.cli.publish import tell
from shmcow.cli.text import printable
from shmcow.cli.versions import publish_options, version_options
from shmcow.errors import CodecMismatchError

__all__ = ["command"]


@click.command("import")
@click.argument("name", type=params.STORE)
@click.argument("path", metavar="FILE")
@click.option("--type", "type_", type=params.TYPE, metavar="MODULE:CLASS", help=params.TYPE_HELP)
@publish_options
@click.option("--dry-run", is_flag=True, help="Check the file and everything else, and publish nothing.")
@click.option("--mode", metavar="OCTAL", help="Permissions of a new store. Default: as it was.")
@click.option("--message", help="Why. Default: as it was.")
@click.option("--author", help="Who. Default: as it was.")
@version_options
def command(
    name: str,
    path: str,
    type_: Any,
    expected: int | None,
    if_changed: bool,
    dry_run: bool,
    force: bool,
    no_create: bool,
    mode: str | None,
    group: str | None,
    message: str | None,
    author: str | None,
    form: str | None,
    as_json: bool,
) -> None:
    """Publish what shmcow export saved in FILE as a new version of store NAME, and print its number.

    A store that does not exist is made, with the permissions that it had. The file must be whole, and its type that of
    the store; with --type the value is checked against that one. The version's source says where it comes from.

    \b
    Examples:
      shmcow import app-config /var/backups/app-config.shmcow
      shmcow import app-config before.shmcow --dry-run
      shmcow import orders orders.shmcow --type shop.config:Limits --expected 7
    """
    settings = settings_of(mode, group)
    with bar(f"checking {printable(path)}") as progress, file_errors(path):
        try:
            published, said = files.import_file(
                name,
                path,
                type=type_,
                expected=expected,
                message=message,
                author=author,
                create=not no_create,
                mode=settings.mode,
                gid=settings.gid,
                if_changed=if_changed,
                dry_run=dry_run,
                force=force,
                progress=progress,
            )
        except CodecMismatchError as exc:
            raise with_hint(exc, type_) from exc
    exported = {"store": said.store, "version": said.version, "published_at": said.published_at}
    tell(name, published, dry_run, form, as_json, exported=exported)
