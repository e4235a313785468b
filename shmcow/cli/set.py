"""``shmcow set``: replace one part of a store's value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from shmcow import Writer, codecs, describe, publishing
from shmcow.cli import params, paths
from shmcow.cli.hints import with_hint
from shmcow.cli.output import REDACT
from shmcow.cli.text import shortened
from shmcow.cli.versions import change_options, print_version
from shmcow.encoded import say
from shmcow.errors import CodecMismatchError

__all__ = ["change_part", "check_codec", "command", "steps_of"]

_PLAIN: Final = ("msgpack", "json")  # codecs of values that have parts


# A VALUE such as -5 is no option.
@click.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("name", type=params.STORE)
@click.argument("path", type=params.PATH)
@click.argument("value")
@click.option("--string", is_flag=True, help="Take VALUE as text, not as JSON.")
@change_options
def command(
    name: str,
    path: str,
    value: str,
    string: bool,
    type_: Any,
    message: str,
    author: str,
    force: bool,
    form: str | None,
    as_json: bool,
) -> None:
    """Replace one part of the value of store NAME, and print the new version.

    PATH names the part: keys and indexes joined by dots, such as db.pool.size or hosts.0, or a JSON pointer. VALUE is
    JSON. What other writers change at the same time is kept. A dict's last key may be a new one. Tables and bytes are
    published as a whole, with shmcow publish.

    A store that was published with a type needs --type, which imports that module: a class or a codec object in a file
    here, or in a module that is installed. Of a bundle only the part that PATH begins with changes: --type is that
    part's type, or the whole Bundle.

    \b
    Examples:
      shmcow set app-config timeout 2.5
      shmcow set app-config hosts.0 '"db-2.example"' --message "db-1 retires"
      shmcow set app-config banner 'Back at noon' --string
      shmcow set orders limits.max 10 --type shop.config:Limits
    """
    steps = steps_of(path)
    check_codec(name)  # before whatever is wrong with the value
    new = value if string else _from_json(value, secret=re.search(REDACT, path) is not None)
    said = {"message": message, "author": author, "source": "shmcow set"}
    version = change_part(
        name, steps, type_, force, said, lambda old, codec: paths.replaced_typed(old, steps, new, codec)
    )
    print_version(version, form, as_json)


def steps_of(path: str) -> tuple[str, ...]:
    """Return the steps of a PATH that was typed."""
    try:
        return paths.parse_path(path)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="PATH") from exc


def _from_json(text: str, *, secret: bool) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as exc:
        if secret:  # which must not end in a log
            raise click.BadParameter(f"it is no JSON ({exc}): quote it, or use --string", param_hint="VALUE") from None
        quoted = msgspec.json.encode(text.encode("utf-8", "replace").decode()).decode().replace("'", "'\\''")
        raise click.BadParameter(
            f"{shortened(text, 60)} is no JSON ({exc}). For a text, quote it as JSON, '{shortened(quoted, 60)}', "
            "or use --string",
            param_hint="VALUE",
        ) from exc


def check_codec(name: str) -> None:
    """Refuse a store whose values have no parts that JSON could replace."""
    current = [generation.codec for generation in describe(name).generations if generation.current]
    if current and current[0] and current[0] not in (*_PLAIN, codecs.Bundle.name):
        raise CodecMismatchError(
            f"store {name} is published with the codec {current[0]!r}, and only values of msgpack and json, and such "
            "parts of a bundle, can be changed here: publish it as a whole"
        )


def change_part(
    name: str,
    steps: tuple[str, ...],
    type_: Any,
    force: bool,
    said: dict[str, str],
    change: Callable[[Any, codecs.Codec[Any]], Any],
) -> int:
    """Replace the value of a store by ``change(value, codec)``, under the writer lock; returns the new version.

    Of a bundle only the part that the first of ``steps`` names is published; ``type_`` is its type or codec, or a
    Bundle that has it.
    """
    check_codec(name)
    try:
        codec = publishing.codec_to_change(name, steps[0], type_, force=force)
        with Writer(name, codec=codec, create=False, force=force) as writer:
            if isinstance(codec, codecs.Bundle) and steps[0] in codec.codecs:
                return writer._update_part(steps[0], lambda old: getattr(change(old, codec), steps[0]), say(**said))
            return writer.update(lambda old: change(old, codec), **said)
    except CodecMismatchError as exc:
        raise with_hint(exc, type_) from exc
