"""``shmcow readers``: who reads a store."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import click

from shmcow import inspect
from shmcow.cli import params
from shmcow.cli.output import SCHEMA, Column, form_options, show, size, write_json
from shmcow.cli.text import shortened

__all__ = ["command"]


def _versions(ranges: tuple[tuple[int, int], ...]) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


_COLUMNS: Final = (
    Column("pid", lambda item: item.pid, right=True),
    Column("user", lambda item: item.user),
    Column("state", lambda item: item.state),
    Column("behind", lambda item: item.behind, right=True),
    Column("seen", lambda item: _versions(item.seen)),
    Column("held", lambda item: _versions(item.held)),
    Column(
        "mapped",
        lambda item: item.mapped_bytes,
        lambda item: "?" if item.mapped_bytes is None else size(item.mapped_bytes),
        right=True,
    ),
    Column("command", lambda item: item.command, lambda item: shortened(item.command, 60)),
)


@click.command("readers")
@click.argument("name", type=params.STORE)
@form_options
def command(name: str, form: str | None, as_json: bool) -> None:
    """List the processes that read store NAME, the one that is most behind first.

    Columns: pid, user, whether it is running or stopped, how many versions it is behind, the versions that it has seen
    last and those that it holds, bytes of the store's segments that it has mapped, its command.

    A process is a reader from its first read on. Who may not look into the processes of other users (root may) is told
    what they hold, and not who they are.

    \b
    Examples:
      shmcow readers app-config
      shmcow readers app-config --json
    """
    report = inspect.readers(name)
    if as_json or form == "json":
        write_json({"schema": SCHEMA, **dataclasses.asdict(report)})
    else:
        show(report.processes, _COLUMNS, form=form, as_json=False, name="processes", plain=dataclasses.asdict)
    if report.hidden is not None:
        click.echo(f"shmcow: {_told(report.hidden)}", err=True)


def _told(hidden: inspect.Hidden) -> str:
    have: list[Any] = [
        f"{verb} {_versions(tuple(sorted(set(ranges))))}"
        for verb, ranges in (("hold", hidden.held), ("have seen", hidden.seen))
        if ranges
    ]
    many = "1 more process reads" if hidden.processes == 1 else f"{hidden.processes} more processes read"
    which = f" (versions: they {' and '.join(have)})" if have else ""
    return f"{many} it that this user may not look into{which}; root may, outside of any container"
