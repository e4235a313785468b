"""What a shell is offered to complete an argument to: stores, versions, paths. Reads only, and is never in the way."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from click.shell_completion import CompletionItem

from shmcow import Reader, ShmcowError, inspect
from shmcow.cli.exits import PathNotFoundError
from shmcow.cli.paths import parse_path, part
from shmcow.cli.text import printable, shortened
from shmcow.codecs import BundleView

__all__ = ["paths", "stores", "versions"]

_MOST: Final = 200  # keys offered
_LARGEST: Final = 4 << 20  # bytes of a value that is decoded for it: nobody waits for a completion


def stores(incomplete: str) -> list[CompletionItem]:
    """Offer the names of stores.

    Concurrency: reads only.
    """
    with contextlib.suppress(OSError):
        return [CompletionItem(name) for name in inspect.list_stores() if name.startswith(incomplete)]
    return []


def versions(name: Any, incomplete: str, *, older: bool) -> list[CompletionItem]:
    """Offer the versions of a store that can be opened, newest first, with what was said about them.

    Args:
        name: of the store, as far as it is known.
        incomplete: what has been typed.
        older: whether the current one is left out.

    Concurrency: reads only.
    """
    if not isinstance(name, str):
        return []
    with contextlib.suppress(ShmcowError, OSError, ValueError):
        return [
            CompletionItem(str(item.version), help=shortened(item.message, 60) or None)
            for item in inspect.describe(name).generations
            if item.state in ("ready", "held") and not (older and item.current)
            if str(item.version).startswith(incomplete)
        ]
    return []


def paths(name: Any, incomplete: str) -> list[CompletionItem]:
    """Offer the keys of a store's value that a dotted path can go on with.

    Args:
        name: of the store, as far as it is known.
        incomplete: what has been typed: "db.po" is completed to the keys of "db".

    Concurrency: reads only, and never a value of more than 4 MiB.
    """
    if not isinstance(name, str) or incomplete.startswith("/"):
        return []
    above, dot, last = incomplete.rpartition(".")
    with contextlib.suppress(ShmcowError, OSError, ValueError, PathNotFoundError):
        keys = _keys(name, parse_path(above) if dot else ())
        found = [key for key in keys if key.startswith(last) and _is_plain(key)]
        return [CompletionItem(above + dot + key) for key in found[:_MOST]]
    return []


def _keys(name: str, steps: tuple[str, ...]) -> list[str]:
    size = [item.size_bytes for item in inspect.describe(name).generations if item.current]
    if not size or size[0] > _LARGEST:
        return []
    with Reader(name, on_bad="raise") as reader:
        value: Any = reader.get()
        if isinstance(value, BundleView):
            if not steps:
                return list(value)
            value, steps = getattr(value, steps[0], None), steps[1:]
        found = part(value, steps)
    if isinstance(found, dict):
        return [str(key) for key in found]
    return [str(k) for k in range(len(found))] if isinstance(found, list | tuple) else []


def _is_plain(key: str) -> bool:
    """Tell whether a key can be typed as a step of a dotted path, in any shell, without quotes."""
    return printable(key) == key and not set(key) & set(" .,:/\\'\"`$&|;<>()[]{}*?!#~=%^") and key.isascii()
