"""``shmcow drop``: give up a retained version now."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import click

from shmcow import VersionConflictError, Writer, inspect
from shmcow.cli import params
from shmcow.cli.confirm import confirm_options, confirmed
from shmcow.cli.output import SCHEMA, form_options, is_terminal, size, write_json
from shmcow.cli.text import printable
from shmcow.fdinfo import describe_process

__all__ = ["command"]


@click.command("drop")
@click.argument("name", type=params.STORE)
@click.argument("version", type=params.VERSION)
@click.option(
    "--wait",
    type=params.SECONDS,
    metavar="SECONDS",
    help="Wait until nobody holds it any more, for this long at most (then exit 7).",
)
@confirm_options
@form_options
def command(
    name: str, version: int, wait: float | None, yes: bool, dry_run: bool, form: str | None, as_json: bool
) -> None:
    """Give up version VERSION of store NAME now: nobody can open it any more.

    For what must not stay, such as a secret published by mistake. The current version cannot be dropped: publish
    another, or roll back, first. A process that holds it keeps its memory until it lets go; what other versions share
    with it stays until they are dropped, too. Both are told, and so is who has read it: a decoded value is out of
    reach until its reader reads again.

    \b
    Examples:
      shmcow drop app-config 41
      shmcow drop app-config 41 --yes --wait 30
      shmcow drop app-config 41 --dry-run
    """
    to_json = as_json or form in ("json", "jsonl")
    found = _look(name, version)
    if dry_run and to_json:
        _write(name, found, False)
        return
    if not confirmed([f"drop version {version} of store {name}: {size(found.size_bytes)}", *_told(found)],
                     yes=yes, dry_run=dry_run):  # fmt: skip
        return
    with Writer(name, create=False) as writer:
        found = writer.drop(version)
        if to_json:
            _write(name, found, True)
        else:
            click.echo(f"dropped version {version}" if _people(form) else f"dropped\t{version}\t{found.size_bytes}")
        if found.held and wait is None:
            click.echo(f"shmcow: it goes when let go: {_processes(found.holders)}", err=True)
        if wait is not None:
            writer.wait_unused(version, wait)


def _people(form: str | None) -> bool:
    return form == "table" or (form is None and is_terminal())


def _look(name: str, version: int) -> inspect.Dropped:
    current = inspect.describe(name).version
    if version == current:
        raise VersionConflictError(
            version,
            current,
            f"version {version} of store {name} is current, and readers need it: publish another value first, or go "
            f"back to an older one (shmcow rollback {name}), then drop it",
        )
    return inspect.would_drop(name, version)


def _told(found: inspect.Dropped) -> Iterator[str]:
    if found.shared_with:
        listed = ", ".join(str(version) for version in found.shared_with)
        yield f"leave what version {listed} shares with it (drop that, too, to be rid of it)"
    if found.held:
        yield f"leave its memory with who holds it, until they let go: {_processes(found.holders)}"
    seen = tuple(pid for pid in found.seen_by if pid not in found.holders)
    if seen:
        yield f"leave decoded copies with who has read it, until they read again: {_processes(seen)}"


def _processes(pids: tuple[int, ...]) -> str:
    if not pids:
        return "processes that this user may not look into"
    named = [printable(describe_process(pid)) for pid in pids[:5]]
    return ", ".join(named) + (f" and {len(pids) - 5} more" if len(pids) > 5 else "")


def _write(name: str, found: inspect.Dropped, dropped: bool) -> None:
    fields: dict[str, Any] = dataclasses.asdict(found)
    write_json({"schema": SCHEMA, "name": name, "dropped": dropped, **fields})
