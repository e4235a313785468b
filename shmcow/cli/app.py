"""The ``shmcow`` command: its commands, and what becomes of their errors.

A command is one module with a click command named ``command``; it is imported when it is used. To add one, add a line
to ``COMMANDS``, and one to ``GROUPS``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from typing import Any, Final

import click

import shmcow
from shmcow.cli import exits
from shmcow.cli.text import printable
from shmcow.errors import StoreNotFoundError

__all__ = ["COMMANDS", "GROUPS", "app", "run"]

COMMANDS: Final = {
    "completion": "shmcow.cli.completion",
    "demo": "shmcow.cli.demo.command",
    "diff": "shmcow.cli.diff",
    "doctor": "shmcow.cli.doctor",
    "drop": "shmcow.cli.drop",
    "export": "shmcow.cli.export",
    "follow": "shmcow.cli.follow",
    "gc": "shmcow.cli.gc",
    "get": "shmcow.cli.get",
    "history": "shmcow.cli.history",
    "import": "shmcow.cli.import_",
    "ls": "shmcow.cli.ls",
    "publish": "shmcow.cli.publish",
    "readers": "shmcow.cli.readers",
    "rm": "shmcow.cli.rm",
    "rollback": "shmcow.cli.rollback",
    "set": "shmcow.cli.set",
    "stat": "shmcow.cli.stat",
    "top": "shmcow.cli.top",
    "unset": "shmcow.cli.unset",
    "wait": "shmcow.cli.wait",
    "watch": "shmcow.cli.watch",
}

# What the help says of each, without importing any.
GROUPS: Final = {
    "Look": {
        "ls": "all stores: version, age, bytes, readers, owner",
        "stat": "everything about one store: settings, counters, room, versions",
        "get": "the value, or a part of it; of a table by key",
        "history": "the versions that can still be opened: when, who, why",
        "diff": "what changed from one version to another",
        "readers": "who reads: pid, command, versions held and seen, how far behind",
        "top": "live: publishes per second, who is behind, who holds what",
        "doctor": "what is wrong or may go wrong, each with its fix",
    },
    "Follow": {
        "watch": "print each new version, or run a command with it",
        "wait": "until a version is published, or no reader is behind it",
    },
    "Change": {
        "publish": "a new version from a file, or from standard input",
        "follow": "feed a store from a file, directory or function",
        "set": "replace one part of the value",
        "unset": "remove one part of the value",
        "import": "publish what export saved",
    },
    "Undo and remove": {
        "rollback": "a new version with the content of an older one",
        "drop": "give up an older version now: a leaked secret, say",
        "rm": "remove a store",
    },
    "Keep house": {
        "export": "save a version to a file, with where it comes from",
        "gc": "reclaim old versions, and what crashed processes left",
        "completion": "the script that completes commands and names in a shell",
        "demo": "real processes that share a value, which changes under them",
    },
}


_COMPLETES: Final = "_SHMCOW_COMPLETE"  # in the environment of a completion


class _Debug:
    """Whether ``--debug`` was given, which must be known after click has forgotten its context."""

    on = False


def _set_debug(_context: click.Context, _parameter: click.Parameter, given: bool) -> None:
    _Debug.on = _Debug.on or given


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show a traceback if something fails."
    )


class _OutputClosedError(Exception):
    """Whoever read our output has gone; of a BrokenPipeError click makes exit code 1, which means something here."""


class _Group(click.Group):
    """A group that imports a command's module when it is asked for, and gives it ``--debug``."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            raise _OutputClosedError from exc
        except StoreNotFoundError as exc:
            from shmcow.cli import hints, params

            raise hints.with_likely_name(exc, ctx.meta.get(params.TYPED_STORES, ())) from exc

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:  # of a command that there is not, or of an option in its place
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, 1) if args[0][:1] != "-" else []
            if close:
                raise click.UsageError(f"{exc.message} Did you mean {close[0]!r}?", ctx) from exc
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        widest = max(map(len, COMMANDS))
        for title, lines in GROUPS.items():
            rows = [(name.ljust(widest), line) for name, line in lines.items() if name in COMMANDS]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        if not any(parameter.name == "debug" for parameter in command.params):
            command.params.append(_debug_option())
        return command


@click.group(
    cls=_Group,
    params=[_debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine, 1 differences or problems found, 2 usage, 3 no such store, version or path, "
    "4 version conflict, 5 permission or owner, 6 corrupt or incompatible, 7 time-out, 8 no space, "
    "9 validation failed, 70 a bug of ours.",
)
@click.version_option(shmcow.__version__, prog_name="shmcow", message="%(prog)s %(version)s")
def app() -> None:
    """See and change what shmcow stores in shared memory.

    A store is a named sequence of versions of one value. Writers publish versions; any number of processes read the
    newest one. To watch it happen: shmcow demo
    """


def run(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code; an error has been told on stderr, without a traceback unless ``--debug`` was given.
    """
    _Debug.on = False
    try:
        result: Any = app.main(args=arguments, prog_name="shmcow", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as exc:
        _trace()
        with contextlib.suppress(OSError):  # stderr is closed or full: the exit code still says it
            exc.show()
        return exc.exit_code
    except SystemExit as exc:
        if _COMPLETES in os.environ:
            raise  # so click ends a completion
        _trace()
        _say(f"the code that was named called sys.exit({printable(repr(exc.code))})")
        return exits.REFUSED
    except (click.Abort, KeyboardInterrupt):
        _trace()
        return exits.INTERRUPTED
    except (BrokenPipeError, _OutputClosedError):
        # End as if by SIGPIPE, and let the interpreter's last flush go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.CUT_OFF
    except Exception as exc:
        return _tell(exc)
    return result if isinstance(result, int) else 0


def _trace() -> None:
    if _Debug.on:
        traceback.print_exc()


def _tell(exc: Exception) -> int:
    _trace()
    if isinstance(exc, RecursionError):
        _say("the value is nested too deeply for this command (shmcow get --raw and shmcow export take it as it is)")
        return exits.UNUSABLE
    code = exits.exit_code(exc)
    if code is not None:
        _say(printable(str(exc) or type(exc).__name__))
        return code
    _say(f"{type(exc).__name__}: {printable(str(exc))}")
    hint = "" if _Debug.on else ": please report it with what `shmcow --debug ...` shows"
    _say(f"this is a bug in shmcow, not in what you typed{hint}")
    return exits.OUR_BUG


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # stderr is closed or full: the exit code still says it
        click.echo(f"shmcow: {text}", err=True)
