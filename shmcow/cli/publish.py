"""``shmcow publish``: a new version out of a file."""

from __future__ import annotations

import io
from typing import Any

import click

from shmcow import documents, publishing
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
from shmcow.cli.inputs import InputError, file_errors, opened
from shmcow.cli.output import size
from shmcow.cli.progress import bar
from shmcow.cli.text import printable
from shmcow.cli.versions import print_version, publish_options, version_options
from shmcow.codecs import Codec
from shmcow.codecs.iprows import FileRows
from shmcow.documents import Progress
from shmcow.errors import CodecMismatchError, ShmcowError, ValidationError
from shmcow.publishing import Published

__all__ = ["command", "tell"]


@click.command("publish")
@click.argument("name", type=params.STORE)
@click.argument("path", metavar="FILE")
@click.option("--format", "form_in", type=click.Choice(documents.FORMATS), help="Default: by FILE's suffix; - is JSON.")
@click.option("--type", "type_", type=params.TYPE, metavar="MODULE:CLASS", help=params.TYPE_HELP)
@table_options
@check_options
@publish_options
@click.option("--dry-run", is_flag=True, help="Check everything, say what would happen, and publish nothing.")
@mode_option
@click.option("--retain", type=COUNT, metavar="N", help="How many older versions a new store keeps openable: 4.")
@click.option("--max-total-bytes", type=COUNT, metavar="N", help="Limit of all versions of a new store together.")
@said_options
@version_options
def command(
    name: str,
    path: str,
    form_in: str | None,
    type_: Any,
    checks: tuple[Any, ...],
    expected: int | None,
    if_changed: bool,
    dry_run: bool,
    force: bool,
    no_create: bool,
    mode: str | None,
    group: str | None,
    retain: int | None,
    max_total_bytes: int | None,
    message: str,
    author: str,
    form: str | None,
    as_json: bool,
    **table: Any,
) -> None:
    """Publish what is in FILE as a new version of store NAME, and print its number.

    FILE is JSON, TOML, YAML, MessagePack (.msgpack), CSV (.csv, .tsv, also packed as .gz), a MaxMind DB (.mmdb) or
    bytes (.bin, .raw); - is standard input. A store that does not exist is made.

    A CSV file becomes a table: --key names the column of the keys, by its name in the header, or by its number from 0;
    one more column is the value, several are a dict. Without --type all of them are texts, numbers, too. With --ip it
    is a table of networks or ranges.

    A store that was published with a type needs --type, which imports that module. For a table it is the type of the
    values (builtins:str for texts); for a bundle, a codec object.

    \b
    Examples:
      shmcow publish app-config config.toml --message "raise timeout"
      shmcow publish orders limits.json --type shop.config:Limits --expected 7
      shmcow publish countries countries.csv --key code --columns name
      shmcow publish geo geo.csv --ip --key network
      curl -s https://flags.example/all | shmcow publish flags - --if-changed
    """
    form_in = form_in or _format(path)
    if form_in != "csv":
        given = [option for option in TABLE_OPTIONS if table[option]]
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is for CSV, and {printable(path)} is {form_in}")
    checks_of(checks)
    value = None
    settings = settings_of(mode, group)._replace(retain=retain, max_total_bytes=max_total_bytes)
    with opened(path) as file, bar(f"reading {printable(path)}") as progress:
        try:
            codec, value = _read(name, file, path, form_in, type_, force, table, progress)
            published = publishing.publish(
                name,
                value,
                codec=codec,
                expected=expected,
                message=message,
                author=author,
                source=f"shmcow publish {path}",
                validators=checks,
                create=not no_create,
                settings=settings,
                if_changed=if_changed,
                dry_run=dry_run,
                force=force,
            )
        except ImportError as exc:
            raise InputError(str(exc)) from exc
        except CodecMismatchError as exc:
            raise with_hint(exc, type_) from exc
        except ValidationError as exc:
            if table["header"] is None and isinstance(value, FileRows) and value.line == 1:
                raise ValidationError(f"{exc} (a header? name the column, or give --header)") from exc
            raise
    if not published.created and (retain, max_total_bytes) != (None, None):
        click.echo(f"store {name} was there before, and keeps its limits", err=True)
    tell(name, published, dry_run, form, as_json)


def _format(path: str) -> str:
    if path == "-":
        return "json"
    form = documents.format_of(path)
    if form is None:
        raise click.UsageError(
            f"the name {printable(path)} does not say what it is: give --format {'|'.join(documents.FORMATS)}"
        )
    return form


def _read(
    name: str,
    file: io.BufferedReader,
    path: str,
    form: str,
    type_: Any,
    force: bool,
    table: dict[str, Any],
    progress: Progress | None,
) -> tuple[Codec[Any], Any]:
    where = "standard input" if path == "-" else path
    if form == "csv":
        try:
            return publishing.table_of(name, file, rows_of(table), type_, where=where, progress=progress)
        except ShmcowError:
            raise
        except ValueError as exc:
            raise click.UsageError(printable(str(exc))) from exc
    codec = publishing.codec_for(name, type_, form, force=force)
    with file_errors(path):
        data = documents.contents(file, progress)
    if form in ("raw", "mmdb"):
        return codec, data
    typed = codec if codec.name in ("msgpack", "json") else None
    return codec, documents.parse(data, form, where=where, codec=typed)


def tell(name: str, published: Published, dry_run: bool, form: str | None, as_json: bool, **more: Any) -> None:
    """Print the version, and say what became of the store."""
    what = f"{size(published.size_bytes)} of {published.codec}"
    if published.type_name:
        what += f" ({printable(published.type_name)})"
    if dry_run and not (as_json or form == "json"):
        if published.changed:
            made = ", and make the store" if published.created else ""
            click.echo(f"would publish version {published.version} of {name}: {what}{made}")
        else:
            click.echo(f"would publish nothing: version {published.version} of {name} has these bytes")
        return
    if not dry_run:
        if published.created:
            click.echo(f"made the store {name}", err=True)
        if not published.changed:
            click.echo(f"nothing changed: version {published.version} of {name} has these bytes", err=True)
    print_version(
        published.version,
        form,
        as_json,
        changed=published.changed,
        created=published.created,
        dry_run=dry_run,
        size_bytes=published.size_bytes,
        codec=published.codec,
        type_name=published.type_name,
        **more,
    )
