"""Files that a command reads or writes, and what may be wrong with them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

import click

from shmcow.cli.exits import exit_code
from shmcow.cli.text import printable
from shmcow.errors import ShmcowError

__all__ = ["file_errors", "opened"]


@contextlib.contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """Open a file to read its bytes; "-" is standard input."""
    with contextlib.ExitStack() as stack:
        if path == "-":
            if sys.stdin is None:
                raise click.BadParameter("standard input is closed", param_hint="FILE")
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
        raise click.BadParameter(f"{printable(path)}: {exc.strerror or exc}", param_hint="FILE") from exc
