"""``shmcow rm``: remove a store."""

from __future__ import annotations

import os

import click

from shmcow import NotOwnerError, ShmcowError, _core, destroy, inspect, segments
from shmcow.cli import params
from shmcow.cli.confirm import confirm_options, confirmed
from shmcow.cli.output import size
from shmcow.errors import CorruptSegmentError, IncompatibleStoreError, StoreNotFoundError
from shmcow.fdinfo import describe_process
from shmcow.holders import holders
from shmcow.words import counted

__all__ = ["command"]

_SHOWN = 20  # readers named


@click.command("rm")
@click.argument("name", type=params.STORE)
@click.option(
    "--force",
    is_flag=True,
    help="Also what is no usable store: unlink all that has the name, without waiting for its writers.",
)
@confirm_options
def command(name: str, force: bool, yes: bool, dry_run: bool) -> None:
    """Remove store NAME with all its versions.

    Says who reads it. Readers keep their last value, and find a new store of that name by themselves.

    \b
    Examples:
      shmcow rm app-config
      shmcow rm app-config --yes
      shmcow rm app-config --dry-run
      shmcow rm broken --force
    """
    if not confirmed(_plan(name, force), yes=yes, dry_run=dry_run):
        return
    if force:
        from shmcow import garbage

        garbage.unlink_all(name)
    else:
        destroy(name)
    click.echo(f"shmcow: store {name} was removed", err=True)


def _plan(name: str, force: bool) -> list[str]:
    """Say what will go, and who reads it; refuse what cannot be done."""
    try:
        report = inspect.describe(name)
    except (IncompatibleStoreError, CorruptSegmentError) as exc:
        if not force:
            raise type(exc)(f"{exc} (to remove it all the same: shmcow rm --force {name})") from exc
        return _objects(name)
    except StoreNotFoundError:
        if not force:
            raise
        return _objects(name)
    if os.geteuid() not in (0, report.uid):
        raise NotOwnerError(f"store {name} belongs to user {report.uid}: only that user (or root) may remove it")
    lines = [f"remove store {name}: {counted(len(report.generations), 'version')}, {size(report.total_bytes)}"]
    pids = _readers(name)
    lines += [f"leave a reader with its last value: {describe_process(pid)}" for pid in pids[:_SHOWN]]
    if len(pids) > _SHOWN:
        lines.append(f"leave {counted(len(pids) - _SHOWN, 'more reader')} with their last value")
    return lines


def _readers(name: str) -> list[int]:
    try:
        return [holder.pid for holder in holders(_core.Store(segments.header_path(name)))]
    except (ShmcowError, OSError):  # it went meanwhile
        return []


def _objects(name: str) -> list[str]:
    return [f"unlink {segments.DIRECTORY}/{item.filename}" for item in segments.check_found(name)]
