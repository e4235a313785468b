"""What to type instead: where a store asks for a type, and where no store has a name."""

from __future__ import annotations

import builtins
import contextlib
import difflib
import re
from collections.abc import Iterable
from typing import Any

from shmcow import inspect
from shmcow.cli.text import printable
from shmcow.errors import CodecMismatchError, StoreNotFoundError

__all__ = ["type_option", "with_hint", "with_likely_name"]


def with_hint(exc: CodecMismatchError, type_: Any) -> CodecMismatchError:
    """Say which options there are where a codec or type does not follow from what is current."""
    force = "--force publishes all the same"
    if exc.published and type_ is None:
        what = str(exc).rpartition(": give ")[0]  # the rest is for programs
        return CodecMismatchError(f"{what}: give {type_option(exc.published)} ({force})")
    first = "" if type_ is not None else "--type MODULE:CLASS gives the type, or a codec object; "
    return CodecMismatchError(f"{exc} (here: {first}{force})")


def type_option(published: str) -> str:
    """Return ``--type`` as it is typed for what a store says of its type, as far as it can be told.

    Args:
        published: as in ``app.config.Config``, ``IPTable[str]`` or ``Bundle(config=app.config.Config)``.

    Concurrency: pure.
    """
    values = re.fullmatch(r"(?:Table\[\w+, |IPTable\[)(.*)\]", published)
    name = values[1] if values else published
    *modules, last = name.split(".")
    if all(word.isidentifier() for word in (*modules, last)) and modules != ["__main__"]:
        if not modules:
            return f"--type builtins:{name}" if hasattr(builtins, name) else f"--type MODULE:{name}"
        # Of a class inside a class the name does not say where the module ends, but by how the two are written.
        inside = next((k for k, word in enumerate(modules) if k and word[:1].isupper()), len(modules))
        return f"--type {'.'.join(modules[:inside])}:{'.'.join([*modules[inside:], last])}"
    return f"--type MODULE:NAME, a class or codec object for {printable(published)}"


def with_likely_name(exc: StoreNotFoundError, names: Iterable[str]) -> StoreNotFoundError:
    """Say which store was meant, if one has nearly the name that was typed.

    Args:
        exc: what is to be told.
        names: the names that were typed.

    Concurrency: reads only.
    """
    with contextlib.suppress(OSError):
        there = inspect.list_stores()
        for name in names:
            close = difflib.get_close_matches(name, there, 1) if name not in there else []
            if close:
                return StoreNotFoundError(f"{exc} (did you mean {close[0]}?)")
    return exc
