"""``shmcow history``: the versions of a store that can still be opened."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, NamedTuple

import click

from shmcow import inspect
from shmcow.cli import params
from shmcow.cli.ls import owner
from shmcow.cli.output import Column, age, form_options, is_terminal, iso, show, size

__all__ = ["command", "plain_versions"]


class _Item(NamedTuple):
    """A version, and the pids of who holds it."""

    of: inspect.Generation
    held_by: tuple[int, ...]


_COLUMNS: Final = (
    Column("version", lambda item: item.of.version, right=True),
    Column("state", lambda item: "current" if item.of.current else "held" if item.of.marked else ""),
    Column("published", lambda item: iso(item.of.published_at), lambda item: age(item.of.published_at)),
    Column("bytes", lambda item: item.of.size_bytes, lambda item: size(item.of.size_bytes), right=True),
    Column("by", lambda item: item.of.author or owner(item.of.uid)),
    Column("pid", lambda item: item.of.pid, right=True),
    Column("held by", lambda item: ",".join(map(str, item.held_by)), lambda item: _pids(item)),
    Column("rollback of", lambda item: item.of.rollback_of, right=True),
    Column("source", lambda item: item.of.source, cut=True),
    Column("message", lambda item: "its entry is damaged" if item.of.damaged else item.of.message),
)
_FOR_SCRIPTS: Final = ("pid", "rollback of")  # people have the message, which says so, and a narrow terminal


def _pids(item: _Item) -> str:
    if item.of.marked and not item.held_by:
        return "others"
    more = f" and {len(item.held_by) - 3} more" if len(item.held_by) > 3 else ""
    return ", ".join(map(str, item.held_by[:3])) + more


def _plain(item: _Item) -> dict[str, Any]:
    return {**dataclasses.asdict(item.of), "held_by": item.held_by}


def _items(generations: tuple[inspect.Generation, ...], name: str) -> list[_Item]:
    holders = inspect.held_by(name) if any(item.marked for item in generations) else {}
    return [_Item(item, holders.get(item.version, ())) for item in generations]


def plain_versions(report: inspect.StoreReport) -> list[dict[str, Any]]:
    """Return all generations of a report as JSON has them."""
    return [_plain(item) for item in _items(report.generations, report.name)]


@click.command("history")
@click.argument("name", type=params.STORE)
@form_options
def command(name: str, form: str | None, as_json: bool) -> None:
    """List the versions of store NAME that can still be opened, newest first.

    Columns: version, state (current; held by a process), when and by whom it was published (author, or else user),
    bytes of its payload, the pids of who holds it ("others": of processes that you may not look into), source and
    message. In a pipe also the pid of its writer, before who holds it, and the version whose content it repeats, after.

    \b
    Examples:
      shmcow history app-config
      shmcow history app-config -o json
    """
    report = inspect.describe(name)
    openable = tuple(item for item in report.generations if item.state in ("ready", "held", "condemned"))
    people = not as_json and (form == "table" or (form is None and is_terminal()))
    columns = [column for column in _COLUMNS if not people or column.title not in _FOR_SCRIPTS]
    show(_items(openable, name), columns, form=form, as_json=as_json, name="versions", plain=_plain)
