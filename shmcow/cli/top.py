"""``shmcow top``: what goes on in stores, live."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from shmcow import inspect, segments
from shmcow.cli import params
from shmcow.cli.output import SCHEMA, form_options, is_terminal, size
from shmcow.cli.text import printable, shortened
from shmcow.cli.values import one_line
from shmcow.errors import ShmcowError, StoreNotFoundError
from shmcow.words import counted

__all__ = ["command"]

_LEAST: Final = 3  # lines of either table, whatever the height of the terminal
_SHORTEST, _LONGEST = 0.05, 86400.0  # seconds between two looks


def _interval(_context: click.Context, _parameter: click.Parameter, given: float) -> float:
    if not _SHORTEST <= given <= _LONGEST:
        raise click.BadParameter(f"it is a number of seconds, {_SHORTEST} to {_LONGEST:.0f}")
    return given


@click.command("top")
@click.argument("names", metavar="[NAME]...", type=params.STORE, nargs=-1)
@click.option(
    "--interval",
    type=params.SECONDS,
    callback=_interval,
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many.")
@form_options
def command(names: tuple[str, ...], interval: float, count: int | None, form: str | None, as_json: bool) -> None:
    """Watch what goes on in all stores, or in those named: how fast they are published, who is behind, who holds what.

    On a terminal q or Ctrl-C ends it. The stores that are published most come first, then who holds versions, the
    oldest first: pid (? is a process that you may not look into), store, versions, how many versions behind, command.

    In a pipe it is one line a store for each look, from the second one on, separated by tabs: time, name, version,
    bytes, versions alive, publishes per second, readers, how many of them are behind, how many versions the last one is
    behind, processes that hold versions, the pid and command of who holds the oldest, and what is wrong, if anything.
    As JSON it is one object a look.

    \b
    Examples:
      shmcow top
      shmcow top app-config flags --interval 0.5
      shmcow top --count 1 --json
    """
    for name in names:
        _check_there(name)
    form = "jsonl" if as_json or form == "json" else form or ("table" if is_terminal() else "tsv")
    looks = _Looks(names)
    if form == "table" and sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from shmcow.cli.live import show_live

        show_live(looks.screen, interval, count)
        return
    looks.again()
    while count is None or looks.done <= count:
        time.sleep(interval)
        looks.again()
        looks.print(form)


def _check_there(name: str) -> None:
    try:
        inspect.describe(name)
    except StoreNotFoundError:
        raise
    except (ShmcowError, OSError):
        return  # is told in its line


class _Looks:
    """One look after the other."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.done = 0
        self._names = names
        self._at = datetime.datetime.now(datetime.UTC)
        self._found: list[inspect.Activity] = []

    def again(self) -> None:
        self._found = inspect.activity(self._names, self._found)
        self._at = datetime.datetime.now(datetime.UTC)
        self.done += 1

    def screen(self, console: Any, anew: bool) -> Any:
        if anew:
            self.again()
        return _page(self._found, self._at, console.height)

    def print(self, form: str) -> None:
        if form == "tsv":
            for item in self._found:
                click.echo("\t".join(printable(str(cell)) for cell in _cells(item, self._at)))
        elif form == "jsonl":
            stores = [dataclasses.asdict(item) for item in self._found]
            click.echo(one_line({"schema": SCHEMA, "time": self._at, "stores": stores}))
        else:
            from rich.console import Console

            console = Console()
            console.print(_page(self._found, self._at, console.height if sys.stdout.isatty() else 1 << 30))
        sys.stdout.flush()


def _cells(item: inspect.Activity, at: datetime.datetime) -> list[Any]:
    rate = item.published_per_second
    first = item.holds[0] if item.holds else None
    return [
        at.isoformat(),
        item.name,
        item.version,
        item.total_bytes,
        item.versions,
        "" if rate is None else f"{rate:.3f}",
        item.readers,
        item.lagging,
        item.behind,
        len(item.holds),
        first.pid if first else "",
        first.command if first else "",
        item.problem,
    ]


def _page(found: Sequence[inspect.Activity], at: datetime.datetime, height: int) -> Any:
    """Return what is shown to people: never more lines than the terminal has."""
    from rich.console import Group
    from rich.text import Text

    holds = [(item, hold) for item in found for hold in item.holds]
    holds.sort(key=lambda pair: (-pair[1].behind, pair[0].name, pair[1].pid))
    stores = sorted(found, key=lambda item: (not item.problem, -round(item.published_per_second or 0), item.name))
    room = max(height - 5 - (2 if holds else 0), 2 * _LEAST)  # without heads, empty lines, and the prompt's line
    for_holds = min(len(holds) + 1, max(_LEAST, room // 3, room - len(stores) - 1))
    shown = stores[: max(room - for_holds - 1, 1)] if len(stores) > room - for_holds else stores
    parts: list[Any] = [_cut(_summary(found, at)), Text(""), _stores(shown)]
    parts += _more(len(stores) - len(shown), "store")
    if holds:
        listed = holds if len(holds) <= for_holds else holds[: for_holds - 1]
        parts += [Text(""), _holds(listed), *_more(len(holds) - len(listed), "hold")]
    return Group(*parts)


def _summary(found: Sequence[inspect.Activity], at: datetime.datetime) -> str:
    free, total = segments.room()
    words = [
        f"shmcow top  {at.astimezone():%H:%M:%S}",
        f"{counted(len(found), 'store')}, {size(sum(item.total_bytes for item in found))}",
        f"{sum(item.published_per_second or 0 for item in found):,.1f} publishes/s",
        f"{segments.DIRECTORY}: {size(free)} free of {size(total)}",
    ]
    return "   ".join(words)


def _more(number: int, what: str) -> list[Any]:
    return [_cut(f"… and {counted(number, f'more {what}')}", "dim")] if number > 0 else []


def _table(flexible: Sequence[str], titles: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="" if os.environ.get("NO_COLOR") else "bold")
    for title in titles:
        # What may be cut is told by its column that it may wrap, and by its cells that it does not.
        table.add_column(title, justify="left" if title in flexible else "right", no_wrap=title not in flexible)
    return table


def _cut(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _stores(found: Sequence[inspect.Activity]) -> Any:
    problems = any(item.problem for item in found)
    titles = ["name", "version", "bytes", "alive", "pub/s", "readers", "lagging", "behind"]
    table = _table(("name", "problem"), titles + (["problem"] if problems else []))
    for item in found:
        rate = item.published_per_second
        row = [
            _cut("destroyed" if item.version < 0 else f"{item.version}"),
            _cut(size(item.total_bytes)),
            _cut(f"{item.versions}"),
            _cut("" if rate is None else f"{rate:,.1f}", "green" if rate else ""),
            _cut(f"{item.readers}"),
            _cut(f"{item.lagging}", "yellow" if item.lagging else ""),
            _cut(f"{item.behind}", "yellow" if item.behind else ""),
        ]
        row = row if item.epoch else [_cut("")] * len(row)
        table.add_row(_cut(item.name), *row, *([_cut(item.problem, "red")] if problems else []))
    return table


def _holds(found: Sequence[tuple[inspect.Activity, inspect.Holding]]) -> Any:
    table = _table(("store", "held", "command"), ("pid", "store", "held", "behind", "command"))
    for item, hold in found:
        ranges = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in hold.held)
        pid, command = str(hold.pid or "?"), shortened(hold.command, 90)
        behind = _cut(f"{hold.behind}", "yellow" if hold.behind else "")
        table.add_row(_cut(pid), _cut(item.name), _cut(shortened(ranges, 30)), behind, _cut(command))
    return table
