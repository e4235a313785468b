"""``shmcow follow``: feed a store from a source, until a signal."""

from __future__ import annotations

import datetime
import logging
import os
import re
from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from shmcow import documents
from shmcow.cli import params
from shmcow.cli.asked import (
    COUNT,
    TABLE_OPTIONS,
    check_options,
    checks_of,
    mode_option,
    rows_of,
    said_options,
    settings_of,
    table_options,
)
from shmcow.cli.hints import with_hint
from shmcow.cli.inputs import InputError
from shmcow.cli.output import SCHEMA, form_options, is_terminal, printable_json, tsv_line
from shmcow.cli.text import printable
from shmcow.codecs import Codec
from shmcow.errors import CodecMismatchError
from shmcow.feed import Directory, Event, File, Origin, follow, poll

__all__ = ["command"]

_FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_DIRECTORY: Final = "directory"
_WATCHED: Final = ("file", _DIRECTORY)
# Options, by the sources that they are for.
_FOR: Final = {
    **dict.fromkeys(TABLE_OPTIONS, ("csv",)),
    "parse": (_DIRECTORY,),
    "debounce": _WATCHED,
    "max_bytes": _WATCHED,
    "jitter": ("function",),
    "timeout": ("function",),
}


@click.command("follow")
@click.argument("source")
@click.argument("name", type=params.STORE)
@click.option(
    "--format",
    "form_in",
    type=click.Choice([*documents.FORMATS, _DIRECTORY]),
    help="Default: by SOURCE's suffix, or what is there.",
)
@click.option("--type", "type_", type=params.TYPE, metavar="MODULE:CLASS", help=params.TYPE_HELP)
@click.option("--every", type=params.SECONDS, metavar="SECONDS", help="Look at least so often: 10; a function: 30.")
@click.option("--debounce", type=params.SECONDS, metavar="SECONDS", help="Read when it has rested so long: 0.05.")
@click.option("--jitter", type=click.FloatRange(0, 1), help="A function: by which part --every varies: 0.1.")
@click.option("--timeout", type=params.SECONDS, metavar="SECONDS", help="A function: it hangs after so long.")
@click.option("--max-bytes", type=click.IntRange(min=1), metavar="N", help="Refuse more than that: 268435456.")
@click.option("--save", type=click.Path(dir_okay=False), metavar="PATH", help="Keep the last good version there.")
@check_options
@click.option("--parse", is_flag=True, help="A directory: JSON, TOML and YAML files become their values.")
@table_options
@click.option("--force", is_flag=True, help="Publish also what readers may not be able to read.")
@mode_option
@click.option("--group", help="Group of a new store.")
@click.option("--retain", type=COUNT, metavar="N", help="How many older versions stay openable: 4.")
@click.option("--max-total-bytes", type=COUNT, metavar="N", help="Limit of all versions together.")
@said_options
@form_options
def command(
    source: str,
    name: str,
    form_in: str | None,
    type_: Any,
    save: str | None,
    checks: tuple[Any, ...],
    force: bool,
    mode: str | None,
    group: str | None,
    retain: int | None,
    max_total_bytes: int | None,
    message: str,
    author: str,
    form: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Feed store NAME from SOURCE: publish what is there, and again when it really changes, until SIGTERM or Ctrl-C.

    SOURCE is a file (as for `shmcow publish`), a directory (each file is a key, as in a mounted ConfigMap), or
    MODULE:FUNCTION, which is called again and again. Atomic replacement and symlinks that change are followed. SIGHUP
    reads it at once, and publishes what differs from the current version.

    What is malformed, does not fit the type or is refused leaves the last good version in service; `shmcow stat NAME`
    says what is wrong, and since when. With --save a store that is lost, as after a reboot, gets the last good version
    back before SOURCE is asked.

    One line for each event: when, what (published, failed, ...), version, and what is wrong. As JSON it is one object a
    line. A store has one follower: a second one ends with exit code 4. A store that was published with a type needs
    --type; without it, or if SOURCE makes another kind of value than the store has, it ends with exit code 6.

    \b
    Examples:
      shmcow follow /etc/app/config.toml app-config --type app.config:Config
      shmcow follow /etc/config app-config --save /var/lib/app/app-config.shmcow
      shmcow follow app.discovery:backends backends --every 30
      shmcow follow networks.csv allowed --ip --key network --json
    """
    given = checks_of(checks)
    settings = settings_of(mode, group)
    origin = _origin(source, form_in, force, options)
    logging.getLogger("shmcow").addHandler(logging.NullHandler())  # what it would say is said here
    how = {"codec": type_} if isinstance(type_, Codec) else {"type": type_}
    try:
        follow(
            origin,
            name,
            **how,
            validators=given,
            retain=retain,
            max_total_bytes=max_total_bytes,
            mode=settings.mode,
            group=None if settings.gid == -1 else settings.gid,
            message=message,
            author=author,
            force=force,
            save=save,
            on_event=_printer("json" if as_json else form or ("table" if is_terminal() else "tsv")),
        )
    except CodecMismatchError as exc:
        raise with_hint(exc, type_) from exc


def _origin(source: str, form: str | None, force: bool, options: dict[str, Any]) -> Origin:
    kind = _kind(source, form)
    csv = kind == "file" and (form or documents.format_of(source)) == "csv"
    given = {
        option: value
        for option, value in options.items()
        if value is not None and not (value is False and option in ("ip", "parse"))
    }
    for option in given:
        wanted = _FOR.get(option, (kind,))
        if kind not in wanted and not (csv and "csv" in wanted):
            name = option.replace("_", "-")
            raise click.UsageError(f"--{name} is for {' and '.join(wanted)}, and {printable(source)} is a {kind}")
    try:
        if kind == "function":
            function = params.TYPE.convert(source, None, None)
            return poll(function, **given)
        if kind == _DIRECTORY:
            return Directory(source, **given)
        table = {option: given.pop(option) for option in list(given) if _FOR.get(option) == ("csv",)}
        rows = rows_of(table) if csv else None
        return File(source, format=form, rows=rows, force=force, **given)
    except ImportError as exc:
        raise InputError(str(exc)) from exc
    except (TypeError, ValueError) as exc:
        raise click.UsageError(printable(str(exc))) from exc


def _kind(source: str, form: str | None) -> str:
    if form == _DIRECTORY or (form is None and os.path.isdir(source)):
        return _DIRECTORY
    if form is None and not os.path.lexists(source) and _FUNCTION.fullmatch(source):
        return "function"
    if form is None and documents.format_of(source) is None:
        known = "|".join([*documents.FORMATS, _DIRECTORY])
        raise click.UsageError(f"the name {printable(source)} does not say what it is: give --format {known}")
    return "file"


def _printer(form: str) -> Callable[[Event], None]:
    def show(event: Event) -> None:
        now = datetime.datetime.now(datetime.UTC)
        if form in ("json", "jsonl"):
            record = {"schema": SCHEMA, "at": now, **event._asdict()}
            click.echo(printable_json(msgspec.json.encode(record).decode()))
        elif form == "tsv":
            click.echo(tsv_line(now.isoformat(), event.kind, str(event.version), event.error))
        else:
            version = f"version {event.version}" if event.version else "no version yet"
            words = [f"{now.astimezone():%H:%M:%S}", f"{event.kind:<9}", version]
            words += [event.error or event.source] if event.kind in ("failed", "following") else []
            click.echo(printable("  ".join(words)))

    return show
