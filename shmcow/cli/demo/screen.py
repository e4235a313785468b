"""What the demo shows: one live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shmcow.cli.demo.stage import Row, Stage
from shmcow.cli.text import printable, shortened
from shmcow.words import counted

__all__ = ["Screen", "choose"]

_FRAME: Final = 0.1
_STORY: Final = 8  # lines of the story that fit below the rows


class Screen(Protocol):
    """One way of showing a stage."""

    def show(self, stage: Stage, at_once: bool) -> None:
        """Show how things are, if it is time to."""

    def end(self, stage: Stage) -> None:
        """Show the last of it, after everything was removed."""


def choose(console: Console) -> Screen:
    """Return the live screen for a terminal that can, plain lines for anything else."""
    # Not console.is_terminal: that is true of a pipe, too, when FORCE_COLOR is set.
    live = console.file.isatty() and not console.no_color and not console.is_dumb_terminal
    return _Live(console) if live else _Plain(console)


def _ns(ns: float) -> str:
    return f"{ns:,.0f}" if ns else "-"


def _ms(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.2f} ms"


def _hint(stage: Stage) -> str:
    return f"""{_own_name()} set {stage.name} banner '"hi"'"""


def _own_name() -> str:
    """Return what to type for this very program: `shmcow` where that is found, else the way to it."""
    own = Path(sys.argv[0])
    if own.name != "shmcow":
        return "shmcow"
    found = shutil.which("shmcow")
    if found and Path(found).resolve() == own.resolve():
        return "shmcow"
    near = os.path.relpath(own)
    return near if len(near) < len(str(own)) else str(own)


def _median_ns(stage: Stage) -> float:
    known = sorted(row.ns for row in stage.rows if row.ns)
    return known[len(known) // 2] if known else 0.0


def _rival(stage: Stage) -> str:
    ours = _median_ns(stage)
    if not (stage.rival_ns and ours):
        return "multiprocessing.Manager: starting"
    return (
        f"the same read through multiprocessing.Manager: {stage.rival_ns:,.0f} ns, "
        f"{stage.rival_ns / ours:,.0f} times as long"
    )


def _writer(stage: Stage) -> str:
    if stage.writer is None or not stage.writing:
        return "writer: starting"
    said = stage.writing
    done = counted(said["published"], "publish", "publishes")
    burst = " (just now, a burst)" if said["burst"] else ""
    return f"writer pid {stage.writer.pid}: {done}, {said['publish_us']:,.0f} µs each{burst}"


class _Plain:
    """A block a second, and each line of the story when it happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = 0.0
        self._told = 0
        self._begun = False

    def show(self, stage: Stage, at_once: bool) -> None:
        del at_once
        if not stage.name:
            return
        if not self._begun:
            self._begun = True
            self._line(f"shmcow demo: {len(stage.rows) or 'some'} processes read store {stage.name}, one writes it")
            self._line(f"in another terminal: {_hint(stage)}")
        for line in stage.story[self._told :]:
            self._line(f"* {line}")
        self._told = len(stage.story)
        now = time.monotonic()
        if now >= self._due and any(row.ns for row in stage.rows):
            self._due = now + 1.0
            self._block(stage)

    def _block(self, stage: Stage) -> None:
        self._line(f"-- {stage.elapsed:.1f} s of {stage.seconds:g} s")
        for row in stage.rows:
            self._line(_plain_row(row))
        self._line(f"  {_writer(stage)}")
        self._line(f"  {_rival(stage)}")

    def end(self, stage: Stage) -> None:
        self.show(stage, True)
        _print_verdict(self._console, stage)

    def _line(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
        self._console.file.flush()


def _plain_row(row: Row) -> str:
    start = f"  worker {row.number}  pid {row.child.pid}"
    if row.state != "reading":
        return f"{start}  {row.state}"
    return (
        f"{start}  version {row.version}  {_ns(row.ns)} ns/get  seen after {_ms(row.seen_ms)}  {row.gets:,} gets  "
        f"banner: {printable(row.banner)}"
    )


class _Live:
    """One screen that changes in place; it fits 80 columns and 24 lines with four workers."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._due = 0.0

    def show(self, stage: Stage, at_once: bool) -> None:
        now = time.monotonic()
        if not stage.name or not (at_once or now >= self._due):
            return
        self._due = now + _FRAME
        self._live.start()
        self._live.update(self._picture(stage), refresh=True)

    def end(self, stage: Stage) -> None:
        if stage.name:
            self._live.update(self._picture(stage, final=True), refresh=True)
        self._live.stop()
        _print_verdict(self._console, stage)

    def _picture(self, stage: Stage, *, final: bool = False) -> Group:
        stage.count()
        now = f"{min(stage.elapsed, stage.seconds):.1f} of {stage.seconds:g} s"
        title = Text.assemble(
            ("shmcow demo", "bold"),
            f": {len(stage.rows)} processes read one value while a writer changes it  ",
            (now, "dim"),
        )
        hint = Text.assemble("in another terminal: ", (_hint(stage), "bold cyan"))
        verdict = stage.verdict
        so_far = Text(f"{verdict.so_far()}   of {verdict.reads:,} reads so far", style="green")
        last = len(stage.story) - 1
        story = [
            Text(line, style="" if n == last else "dim", no_wrap=True, overflow="ellipsis")
            for n, line in enumerate(stage.story)
        ][-_STORY:]
        lines = [Text(_writer(stage)), Text(_rival(stage), style="yellow"), so_far]
        for line in (title, hint, *lines):
            line.no_wrap, line.overflow = True, "ellipsis"
        if final:  # the verdict comes below, and nobody can set a banner any more
            return Group(title, Text(), self._table(stage), Text(), *lines[:-1], Text(), *story)
        return Group(title, hint, Text(), self._table(stage), Text(), *lines, Text(), *story)

    def _table(self, stage: Stage) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        table.add_column("worker", width=6)
        for title, width in (("pid", 7), ("version", 7), ("ns/get", 6), ("seen after", 10), ("gets", 9)):
            table.add_column(title, justify="right", width=width, no_wrap=True)
        table.add_column("banner", ratio=1, no_wrap=True, overflow="ellipsis", style="bold cyan")
        room = max(4, self._console.height - 18)
        for row in stage.rows[:room]:
            number, pid = str(row.number), str(row.child.pid)
            if row.state != "reading":
                style = "bold red" if row.state == "killed" else "dim"
                table.add_row(number, pid, "", "", Text(row.state, style), "", "")
            else:
                cells = (f"{row.version:,}", _ns(row.ns), _ms(row.seen_ms), f"{row.gets:,}")
                table.add_row(number, pid, *cells, Text(shortened(row.banner, 200)))
        if len(stage.rows) > room:
            table.add_row("…", f"+{len(stage.rows) - room}", "", "", "", "", "")
        return table


def _print_verdict(console: Console, stage: Stage) -> None:
    verdict = stage.verdict
    style = "bold green" if verdict.holds else "bold red"
    for trouble in verdict.trouble:
        console.print(Text(f"trouble: {trouble}", style="red"), soft_wrap=True)
    console.print(Text(f"verdict: {verdict.counts()}", style=style), soft_wrap=True)
    for line in (verdict.checked(), verdict.tidied()):
        console.print(Text(f"         {line}"), soft_wrap=True)
