"""``shmcow export``: a version, saved to a file."""

from __future__ import annotations

import os

import click

from shmcow import files
from shmcow.cli import params
from shmcow.cli.inputs import file_errors
from shmcow.cli.output import size
from shmcow.cli.progress import bar
from shmcow.cli.text import printable
from shmcow.cli.versions import print_version, version_options

__all__ = ["command"]


@click.command("export")
@click.argument("name", type=params.STORE)
@click.argument("path", metavar="FILE")
@click.option("--at", "version", type=params.VERSION, help="An older version, if it can still be opened.")
@version_options
def command(name: str, path: str, version: int | None, form: str | None, as_json: bool) -> None:
    """Save the current version of store NAME to FILE, and print its number.

    The file has its bytes, who published it, when and why, its type, and a checksum; shmcow import publishes it again,
    after a reboot say. It appears whole or not at all, and only you may read it. An older export is replaced, any other
    file is not.

    \b
    Examples:
      shmcow export app-config /var/backups/app-config.shmcow
      shmcow export app-config before.shmcow --at 41
    """
    with bar(f"writing {printable(path)}") as progress, file_errors(path):
        said = files.export_file(name, path, version=version, progress=progress)
    click.echo(f"saved version {said.version} of {name}, {size(said.size_bytes)}, to {printable(path)}", err=True)
    file = os.fsencode(path).decode(errors="backslashreplace")  # JSON is UTF-8, whatever a name is
    print_version(said.version, form, as_json, file=file, size_bytes=said.size_bytes)
