"""``shmcow demo``: fifteen seconds that show what shmcow does."""

from __future__ import annotations

import signal
from types import FrameType

import click
from rich.console import Console

from shmcow.cli import exits, params
from shmcow.cli.demo import screen
from shmcow.cli.demo.stage import Stage

__all__ = ["command"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("demo")
@click.option("--seconds", type=click.FloatRange(1, 3600), default=13, show_default=True, help="How long, about.")
@click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="How many processes read.")
@click.option("--store", type=params.STORE, default="demo", show_default=True, help="The name of the demo's store.")
def command(seconds: float, workers: int, store: str) -> int:
    """Watch real processes share a value that changes under them.

    Worker processes read a store while a writer publishes. A second writer gets killed in mid-publish, and a worker
    while it holds a version. Every read is checked; the verdict says how many were torn, lost or went back, and what
    is left in /dev/shm. Exits 0 only if all of that is 0. Everything is removed at the end, also after Ctrl-C.

    \b
    Examples:
      shmcow demo
      shmcow demo --seconds 60 --workers 8
    """
    view = screen.choose(Console(highlight=False))
    stage = Stage(store, workers, seconds, lambda at_once: view.show(stage, at_once))

    def stop(number: int, _frame: FrameType | None) -> None:
        stage.stopped_by = number

    before = [(number, signal.signal(number, stop)) for number in _SIGNALS]
    try:
        try:
            stage.open()
            stage.play()
        finally:
            stage.close()
        view.end(stage)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if stage.stopped_by:
        return 128 + stage.stopped_by
    return 0 if stage.verdict.holds else exits.FOUND
