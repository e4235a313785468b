"""Values as commands print them: masked, as JSON on one line, and short enough for people."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from shmcow.cli.output import REDACT, printable_json
from shmcow.cli.text import shortened
from shmcow.codecs import BundleView, IPTableView, MMDBView, TableView
from shmcow.differ import Sealed
from shmcow.words import counted

__all__ = ["coloured", "contrast", "one_line", "redact_option", "short", "view_digest", "without_views"]

_ROOM: Final = 100  # characters of a value for people


def _pattern(_context: click.Context, _parameter: click.Parameter, given: str) -> str:
    try:
        return re.compile(given).pattern
    except re.error as exc:
        raise click.BadParameter(f"it is no regular expression: {exc}") from exc


def redact_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--redact``, as the argument ``redact``: a regular expression, "" to mask nothing."""
    return click.option(
        "--redact",
        default=REDACT,
        metavar="PATTERN",
        callback=_pattern,
        help="Mask what has such a name; '' masks nothing.",
    )(command)


def one_line(value: Any) -> str:
    """Write a value as JSON on one line."""
    return printable_json(msgspec.json.encode(value, enc_hook=repr).decode())


def without_views(value: Any) -> Any:
    """Return plain data with views of tables, bytes and arrays as texts that say what they are."""
    if isinstance(value, BundleView):
        return {name: without_views(part) for name, part in value._asdict().items()}
    if isinstance(value, memoryview):
        return f"<{counted(value.nbytes, 'byte')}>"
    if hasattr(value, "dtype"):
        return f"<array of {value.dtype}, {' x '.join(map(str, value.shape))}>"
    if isinstance(value, TableView | IPTableView | MMDBView):
        return repr(value)
    if isinstance(value, dict) and any(hasattr(item, "dtype") for item in value.values()):
        return {name: without_views(item) for name, item in value.items()}
    return value


def short(value: Any, room: int = _ROOM) -> str:
    """Write a value for people: JSON, cut to ``room`` characters."""
    if isinstance(value, Sealed):
        rows = f", {counted(value.rows, 'row')}" if value.rows is not None else ""
        return shortened(f"<{value.what}{rows}, {counted(value.size_bytes, 'byte')}, {value.digest[:12]}…>", room)
    return shortened(one_line(value), room)


def contrast(old: Any, new: Any, room: int = _ROOM) -> tuple[str, str]:
    """Write two values for people; of long ones from where they begin to differ."""
    if isinstance(old, Sealed) or isinstance(new, Sealed):
        return short(old, room), short(new, room)
    texts = one_line(old), one_line(new)
    same = _common(*texts)
    if max(map(len, texts)) <= room or same <= room // 2:
        return shortened(texts[0], room), shortened(texts[1], room)
    begin = same - room // 4
    return shortened("…" + texts[0][begin:], room), shortened("…" + texts[1][begin:], room)


def _common(one: str, other: str) -> int:
    """Return how long a beginning two texts have in common; of megabytes, too."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def coloured(text: str, colour: str) -> str:
    """Colour a text for a terminal, unless NO_COLOR says not to."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


def view_digest(value: Any) -> bytes | None:
    """Return a digest of the bytes that views show, of arrays as well; None: it is no view, but plain data."""
    data: Any = None
    if isinstance(value, TableView):
        data = value._data
    elif isinstance(value, IPTableView | MMDBView):
        data = value._view
    elif isinstance(value, memoryview):
        data = value
    elif hasattr(value, "dtype"):
        data = f"{value.dtype} {value.shape}".encode() + value.tobytes()
    elif isinstance(value, dict) and any(hasattr(item, "dtype") for item in value.values()):
        data = b"".join(name.encode() + (view_digest(item) or b"") for name, item in value.items())
    return None if data is None else hashlib.blake2b(data, digest_size=16).digest()
