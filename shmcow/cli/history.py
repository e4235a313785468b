"""``shmcow history``: the versions of a store that can still be opened."""

from __future__ import annotations

import dataclasses
from typing import Final

import click

from shmcow import inspect
from shmcow.cli import params
from shmcow.cli.ls import owner
from shmcow.cli.output import Column, age, form_options, iso, show, size

__all__ = ["command"]

_COLUMNS: Final = (
    Column("version", lambda item: item.version, right=True),
    Column("", lambda item: "current" if item.current else "held" if item.marked else ""),
    Column("published", lambda item: iso(item.published_at), lambda item: age(item.published_at)),
    Column("bytes", lambda item: item.size_bytes, lambda item: size(item.size_bytes), right=True),
    Column("by", lambda item: item.author or owner(item.uid)),
    Column("pid", lambda item: item.pid, right=True),
    Column("rollback of", lambda item: item.rollback_of, right=True),
    Column("source", lambda item: item.source, cut=True),
    Column("message", lambda item: "its entry is damaged" if item.damaged else item.message),
)


@click.command("history")
@click.argument("name", type=params.STORE)
@form_options
def command(name: str, form: str | None, as_json: bool) -> None:
    """List the versions of store NAME that can still be opened, newest first.

    Columns: version, whether it is current, or held by a process, when and by whom it was published (author, or else
    user, and pid), bytes of its payload, the version whose content it repeats, source and message.

    \b
    Examples:
      shmcow history app-config
      shmcow history app-config -o json
    """
    report = inspect.describe(name)
    openable = [item for item in report.generations if item.state in ("ready", "held", "condemned")]
    show(openable, _COLUMNS, form=form, as_json=as_json, name="versions", plain=dataclasses.asdict)
