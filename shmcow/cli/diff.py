"""``shmcow diff``: what changed from one version to another."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import click

from shmcow import inspect
from shmcow.cli import exits, params
from shmcow.cli.output import SCHEMA, form_options, is_terminal, masked, tsv_line, write_json
from shmcow.cli.text import printable, shortened
from shmcow.cli.values import coloured, contrast, one_line, redact_option, short

__all__ = ["command"]

_MARKS: Final = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


@click.command("diff")
@click.argument("name", type=params.STORE)
@click.argument("old", metavar="[A]", type=params.VERSION, required=False)
@click.argument("new", metavar="[B]", type=params.VERSION, required=False)
@click.option(
    "--limit", type=click.IntRange(min=0), default=1000, show_default=True, help="Differences shown at most; 0: all."
)
@redact_option
@form_options
def command(
    name: str, old: int | None, new: int | None, limit: int, redact: str, form: str | None, as_json: bool
) -> int:
    """Show what changed in store NAME from version A to version B.

    Without B it is the current version, without A the one before it that can still be opened. The exit code is 1 if
    anything differs, and 0 if nothing does.

    A line is + for what was added, - for what was removed, ~ for what changed, with its path as `shmcow get` takes it:
    of what was removed the path in A, else that in B. Tables are compared row by row; bytes, MaxMind DB files and
    arrays as a whole. In a pipe: added, removed or changed, path, old and new value as JSON, separated by tabs.

    \b
    Examples:
      shmcow diff app-config
      shmcow diff app-config 41
      shmcow diff app-config 41 43 --json
    """
    difference = inspect.diff(name, old, new)
    form = "json" if as_json else form or ("table" if is_terminal() else "tsv")
    if form == "table":
        click.echo(f"{name}: version {difference.old_version} -> {difference.new_version}")
    counts: Counter[str] = Counter()
    records = []
    for change in difference:
        counts[change.kind] += 1
        if limit and counts.total() > limit:
            continue
        if form == "table":
            _show(change, redact)
        elif form == "tsv":
            click.echo(tsv_line(*_cells(change, redact)))
        elif form == "jsonl":
            click.echo(one_line({"schema": SCHEMA, **_record(change, redact)}))
        else:
            records.append(_record(change, redact))
    more = max(0, counts.total() - limit) if limit else 0
    if form == "json":
        write_json(
            {
                "schema": SCHEMA,
                "name": name,
                "old_version": difference.old_version,
                "new_version": difference.new_version,
                **{kind: counts[kind] for kind in _MARKS},
                "changes": records,
                "more": more,
                "problems": difference.problems,
            }
        )
    elif form == "table":
        click.echo(", ".join(f"{counts[kind]:,} {kind}" for kind in _MARKS) if counts else "no difference")
    if more:
        click.echo(f"shmcow: {more:,} more differences are not shown (--limit 0 shows all)", err=True)
    for problem in difference.problems:
        click.echo(f"shmcow: {printable(problem)}: only its bytes were compared", err=True)
    return exits.UNUSABLE if difference.problems else exits.FOUND if counts else 0


def _sides(change: inspect.Change, redact: str) -> dict[str, Any]:
    """Return what there was and is, masked; a side that there is not is left out."""
    sides = {"old": change.old, "new": change.new}
    sides.pop({"added": "old", "removed": "new"}.get(change.kind, ""), None)
    return {side: masked(change.path, value, redact) for side, value in sides.items()}


def _record(change: inspect.Change, redact: str) -> dict[str, Any]:
    return {"change": change.kind, "path": change.where, "steps": change.path, **_sides(change, redact)}


def _cells(change: inspect.Change, redact: str) -> list[str]:
    sides = {side: one_line(value) for side, value in _sides(change, redact).items()}
    return [change.kind, change.where, sides.get("old", ""), sides.get("new", "")]


def _show(change: inspect.Change, redact: str) -> None:
    mark, colour = _MARKS[change.kind]
    sides = _sides(change, redact)
    if change.kind == "changed":
        before, after = contrast(sides["old"], sides["new"])
        text = f"{before} -> {after}"
    else:
        text = short(*sides.values())
    where = shortened(change.where, 200) or "(the value)"
    # True: as it is; whether there are colours was decided here, also for FORCE_COLOR in a pipe.
    click.echo(coloured(f"{mark} {where}: {text}", colour) if is_terminal() else f"{mark} {where}: {text}", color=True)
