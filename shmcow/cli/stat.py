"""``shmcow stat``: everything about one store."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from typing import Final

import click
from msgspec.structs import asdict

from shmcow import inspect, segments
from shmcow.cli import params
from shmcow.cli.history import command as history
from shmcow.cli.history import plain_versions
from shmcow.cli.ls import owner
from shmcow.cli.output import SCHEMA, age, form_options, is_terminal, iso, size, tsv_line, write_json
from shmcow.cli.text import printable
from shmcow.words import counted

__all__ = ["command"]

_MOMENTS: Final = ("started_at", "last_contact", "last_success", "last_error_at")  # of a feed: seconds since 1970


@click.command("stat")
@click.argument("name", type=params.STORE)
@form_options
@click.pass_context
def command(context: click.Context, name: str, form: str | None, as_json: bool) -> None:
    """Tell everything about store NAME: settings, counters, room, and its versions.

    In a pipe: one name and one figure a line, then the versions as `shmcow history` prints them.

    \b
    Examples:
      shmcow stat app-config
      shmcow stat app-config --json
    """
    report = inspect.describe(name)
    free, total = segments.room()
    if as_json or form in ("json", "jsonl"):
        found = {**dataclasses.asdict(report), "generations": plain_versions(report)}
        write_json({"schema": SCHEMA, **found, "shm_free_bytes": free, "shm_total_bytes": total})
        return
    people = form == "table" or (form is None and is_terminal())
    lines = list(_for_people(report, free, total) if people else _for_scripts(report, free, total))
    width = max(len(title) for title, _ in lines) if people else 0
    for title, text in lines:
        click.echo(f"{title:<{width}}  {printable(text)}" if people else tsv_line(title, text))
    click.echo()
    context.invoke(history, name=name, form=form, as_json=False)


def _version(report: inspect.StoreReport) -> str:
    return "none: it is being destroyed" if report.version < 0 else str(report.version)


def _for_people(report: inspect.StoreReport, free: int, total: int) -> Iterator[tuple[str, str]]:
    yield "store", report.name
    yield "epoch", report.epoch
    yield "version", _version(report)
    yield "created", f"{report.created_at:%Y-%m-%d %H:%M:%S} UTC, {age(report.created_at)} ago"
    yield "owner, mode", f"{owner(report.uid)}, {report.mode:04o}"
    limit = f" of at most {size(report.max_total_bytes)}" if report.max_total_bytes else ", no limit"
    yield "bytes", f"{size(report.total_bytes)}{limit}"
    yield "retained", counted(report.retain, "older version")
    yield segments.DIRECTORY, f"{size(free)} free of {size(total)}"
    counters = [f"{n} {what.replace('_', ' ')}" for what, n in report.counters.items() if n]
    yield "counted", ", ".join(counters) or "nothing yet"
    if report.feed is not None:
        yield from _feed(report.feed)


def _feed(feed: inspect.FeedState) -> Iterator[tuple[str, str]]:
    if feed.damaged:
        yield "feed", "its state is damaged: start its follower again"
        return
    runs = f"pid {feed.pid}" if feed.running else f"nobody any more (pid {feed.pid} has ended)"
    every = f", every {feed.every:g} s" if feed.every else ""
    yield "feed", f"{feed.source}{every}, by {runs}"
    yield "", f"asked {_ago(feed.last_contact)}, found good {_ago(feed.last_success)}"
    publishes = counted(feed.publishes, "publish", "publishes")
    yield "", f"{counted(feed.contacts, 'contact')}, {publishes}, {counted(feed.failures, 'failure')}"
    if feed.last_error_at:
        row = f"{feed.failures_in_a_row} in a row" if feed.failures_in_a_row else "good again"
        yield "", f"last failure {_ago(feed.last_error_at)} ({row}): {feed.last_error}"


def _ago(moment: float | None) -> str:
    return "never" if moment is None else f"{age(_moment(moment))} ago"


def _moment(seconds: float | None) -> datetime.datetime | None:
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _for_scripts(report: inspect.StoreReport, free: int, total: int) -> Iterator[tuple[str, str]]:
    fields = dataclasses.asdict(report)
    del fields["generations"]
    counters = fields.pop("counters")
    fields["mode"] = f"{report.mode:04o}"
    fields["created_at"] = report.created_at.isoformat()
    del fields["feed"]
    feed = {} if report.feed is None else asdict(report.feed)
    feed = {f"feed_{what}": iso(_moment(said or None)) if what in _MOMENTS else said for what, said in feed.items()}
    for title, figure in {**fields, **counters, "shm_free_bytes": free, "shm_total_bytes": total, **feed}.items():
        yield title, "" if figure is None else str(figure)
