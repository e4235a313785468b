"""Before something goes for good: say what, ask on a terminal, and take ``--yes`` for an answer in a pipe.

A destructive command has ``@confirm_options`` and calls ``confirmed`` with what it is about to do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from shmcow.cli.inputs import InputError
from shmcow.cli.text import printable

__all__ = ["confirm_options", "confirmed"]


def confirm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--yes`` and ``--dry-run``, as the arguments ``yes`` and ``dry_run``."""
    command = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(command)
    return click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where nobody can be asked.")(command)


def confirmed(what: Sequence[str], *, yes: bool, dry_run: bool) -> bool:
    """Say what is about to be done, and find out whether it shall be.

    Args:
        what: one line for each thing, as "destroy store x (3 versions, 8.2 kB)".
        yes: whether ``--yes`` was given.
        dry_run: whether ``--dry-run`` was given; then the lines are the result, and go to stdout.

    Returns:
        Whether to go on. False: it was a dry run.

    Raises:
        InputError: nobody can be asked, as stdin is no terminal.
        click.Abort: the answer is no.

    Concurrency: what was said may have changed by the time of the answer; the command must look again.
    """
    if dry_run:
        for line in what:
            click.echo(f"would {printable(line)}")
        return False
    for line in what:
        click.echo(f"shmcow: will {printable(line)}", err=True)
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise InputError("stdin is no terminal, so nobody can be asked: give --yes to go on, or --dry-run")
    if not click.confirm("Go on?", err=True):
        click.echo("shmcow: nothing was done", err=True)
        raise click.Abort
    return True
