"""Files that a command reads or writes, and what may be wrong with them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

import click

from shmcow.cli.exits import USAGE, exit_code
from shmcow.cli.text import printable
from shmcow.errors import ShmcowError

__all__ = ["InputError", "file_errors", "opened"]


class InputError(click.ClickException):
    """What was typed is right, and what it names is not: exit code 2, and one line without the usage."""

    exit_code = USAGE

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"shmcow: {self.format_message()}", file=file, err=True)


@contextlib.contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """Open a file to read its bytes; "-" is standard input."""
    with contextlib.ExitStack() as stack:
        if path == "-":
            if sys.stdin is None:
                raise InputError("standard input is closed")
            file = sys.stdin.buffer
        else:
            with file_errors(path):
                file = stack.enter_context(open(path, "rb"))
        assert isinstance(file, io.BufferedReader)
        yield file


@contextlib.contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Tell a wrong FILE as a wrong argument; no permission and no room have exit codes of their own."""
    try:
        yield
    except OSError as exc:
        ours = isinstance(exc, ShmcowError) or "/shmcow." in os.fsdecode(exc.filename or "")
        if ours or exit_code(exc) is not None:
            raise
        raise InputError(f"{printable(path)}: {exc.strerror or exc}") from exc
