"""``shmcow gc``: collect what belongs to nothing any more."""

from __future__ import annotations

import dataclasses
from typing import Final

import click

from shmcow import garbage
from shmcow.cli import params
from shmcow.cli.output import Column, form_options, show, size
from shmcow.segments import check_found
from shmcow.store import DEFAULT_LOCK_TIMEOUT

__all__ = ["command"]


def _done(item: garbage.Garbage) -> str:
    return "collected" if item.collected else "kept" if item.kept else "would go"


_COLUMNS: Final = (
    Column("store", lambda item: item.store),
    Column("", _done),
    Column("what", lambda item: item.what),
    Column("version", lambda item: item.version, right=True),
    Column("files", lambda item: len(item.files), right=True),
    Column("bytes", lambda item: item.size_bytes, lambda item: size(item.size_bytes), right=True),
    Column("why", lambda item: item.why),
    Column("kept because", lambda item: item.kept),
)


@click.command("gc")
@click.argument("name", type=params.STORE, required=False)
@click.option("--dry-run", is_flag=True, help="Say what would be collected, and do nothing.")
@click.option(
    "--older-than",
    type=params.SECONDS,
    default=garbage.MIN_AGE,
    show_default=True,
    metavar="SECONDS",
    help="Objects without a store that are younger may be of a store in the making, and stay.",
)
@click.option(
    "--lock-timeout",
    type=params.SECONDS,
    default=DEFAULT_LOCK_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each store's writers.",
)
@form_options
def command(
    name: str | None, dry_run: bool, older_than: float, lock_timeout: float, form: str | None, as_json: bool
) -> None:
    """Collect what belongs to nothing any more, of store NAME or of all: say what, and why.

    That is: versions beyond those retained that nobody holds any more, what killed writers left half-done, stores that
    were half destroyed or never finished, and objects whose store was removed. What any process may be using stays,
    and so does what is another user's.

    Columns: store, what became of it, kind, version, files, bytes of shared memory, why it is garbage, and why it is
    left alone all the same.

    \b
    Examples:
      shmcow gc --dry-run
      shmcow gc
      shmcow gc app-config --json
    """
    if name is not None:
        check_found(name)
    if dry_run:
        found = garbage.garbage(name, min_age=older_than)
    else:
        found = garbage.collect(name, min_age=older_than, lock_timeout=lock_timeout)
    show(found, _COLUMNS, form=form, as_json=as_json, name="garbage", plain=dataclasses.asdict)
    gone = sum(item.size_bytes for item in found if (item.collected or dry_run) and not item.kept)
    kept = sum(bool(item.kept) for item in found)
    said = f"{size(gone)} {'would be freed' if dry_run else 'freed'}" if len(found) > kept else "nothing to collect"
    click.echo(f"shmcow: {said}{f', {kept} left alone' if kept else ''}", err=True)
