"""Commands run in a forked child, as `shmcow` runs them: in a pipe, on a terminal, as another user, and cheaply."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import importlib
import os
import pty
import re
import struct
import sys
import tempfile
import termios
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "concurrency"))

import rich.live
import rich.table  # noqa: F401 - imported before the fork: another user may not be able to read where it lies
from processes import SHM, Child, Link, objects_of
from users import ROOT, STRANGER, User

from shmcow.cli import app, live  # noqa: F401

__all__ = ["ROOT", "STRANGER", "Done", "files_of", "plain_text", "ran", "reads"]

_SCREEN = re.compile(r"\x1b\[(?:\?\d+[hl]|\d*[AJKH]|2?J|[\d;]*m)")  # what rich writes: colours, the cursor, the screen


class Done(NamedTuple):
    """How a command ended, and what it printed; on a terminal all of it is ``out``."""

    code: int
    out: str
    err: str


def ran(
    *arguments: str,
    terminal: tuple[int, int] | None = None,
    user: User = ROOT,
    **environment: str,
) -> Done:
    """Run a command.

    Args:
        arguments: without the program's name.
        terminal: (lines, columns) of that on which it runs; None: in a pipe.
        user: who runs it.
        environment: what is in it besides; NO_COLOR and FORCE_COLOR are not, unless they are here.
    """
    for encoding in ("unicode_escape", "utf-16-be"):
        codecs.lookup(encoding)  # another user may not be able to read where it lies, nor the modules
    for module in app.COMMANDS.values():
        importlib.import_module(module)
    if terminal is None:
        ours, theirs = os.pipe()
    else:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *terminal, 0, 0))
    with tempfile.TemporaryFile("w+") as err:
        child = Child(_run, arguments, theirs, terminal is not None, err.fileno(), user, environment)
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal's other end was closed
            while chunk := os.read(ours, 65536):
                seen += chunk
        os.close(ours)
        code = child.recv()
        child.done()
        err.seek(0)
        return Done(code, seen.decode().replace("\r\n", "\n"), err.read())


def _run(
    link: Link,
    arguments: tuple[str, ...],
    out: int,
    terminal: bool,
    err: int,
    user: User,
    environment: dict[str, str],
) -> None:
    os.setsid()
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES"):
        os.environ.pop(name, None)
    os.environ.update({"TERM": "xterm-256color", **environment})
    os.dup2(out if terminal else os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out if terminal else err, 2)
    os.close(out)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the rest of the child's life
    sys.stdout = open(1, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    user.become()
    code = app.run(list(arguments))
    sys.stdout.flush()
    link.send(code)


def reads(name: str, timeout: str = "60") -> list[list[str]]:
    """Return every command that reads, on a store with two versions; those that may wait do so for some seconds."""
    return [
        ["ls"],
        ["stat", name],
        ["history", name],
        ["get", name],
        ["diff", name],
        ["readers", name],
        ["top", name, "--count", "1", "--interval", "0.05"],
        ["watch", name, "--count", "1", "--timeout", timeout],
        ["wait", name, "--version", "1", "--timeout", timeout],
    ]


def files_of(name: str) -> dict[str, tuple[int, bytes]]:
    """Return what every file of a store is like: when it was changed, and its bytes."""
    return {entry: ((SHM / entry).stat().st_mtime_ns, (SHM / entry).read_bytes()) for entry in objects_of(name)}


def plain_text(text: str) -> str:
    """Return what a terminal shows of a text that rich wrote."""
    return _SCREEN.sub("", text)
