"""``shmcow ls``: which stores there are."""

from __future__ import annotations

import dataclasses
import pwd
from typing import Any, Final

import click

from shmcow import inspect
from shmcow.cli.output import Column, age, form_options, is_terminal, show, size

__all__ = ["command", "owner"]


def owner(uid: int) -> str:
    """Return a user's name, or the number of one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _of(field: str) -> Any:
    return lambda item: getattr(item.report, field) if item.report is not None else None


def _published(item: inspect.Overview) -> Any:
    current = [generation for generation in item.report.generations if generation.current] if item.report else []
    return current[0].published_at if current else None


def _version(item: inspect.Overview) -> Any:
    return "being destroyed" if item.report and item.report.version < 0 else _of("version")(item)


_COLUMNS: Final = (
    Column("name", lambda item: item.name),
    Column("version", _version, right=True),
    Column(
        "published", lambda item: _published(item) and _published(item).isoformat(), lambda item: age(_published(item))
    ),
    Column("bytes", _of("total_bytes"), lambda item: size(item.report.total_bytes) if item.report else "", right=True),
    Column("versions", lambda item: len(item.report.generations) if item.report else None, right=True),
    Column("readers", lambda item: item.readers, right=True),
    Column("owner", lambda item: owner(item.report.uid) if item.report else None),
    Column("mode", lambda item: f"{item.report.mode:04o}" if item.report else None),
    Column("problem", lambda item: item.problem),
)


def _plain(item: inspect.Overview) -> dict[str, Any]:
    return {
        "name": item.name,
        "readers": item.readers,
        "problem": item.problem or None,
        "report": dataclasses.asdict(item.report) if item.report else None,
    }


@click.command("ls")
@form_options
def command(form: str | None, as_json: bool) -> None:
    """List the stores of this machine.

    Columns: name, current version (0: none yet), when it was published, bytes of all segments, how many versions are
    alive, processes that read (of those that you may look into), owner, mode, and what is wrong with it, if anything.

    \b
    Examples:
      shmcow ls
      shmcow ls --json
    """
    stores = inspect.overview()
    people = not as_json and (form == "table" or (form is None and is_terminal()))
    columns = _COLUMNS[:-1] if people and not any(item.problem for item in stores) else _COLUMNS
    show(stores, columns, form=form, as_json=as_json, name="stores", plain=_plain)
