"""Recipes for frameworks: one module for each, which imports its framework only. Nothing else in shmcow needs them.

None of them has to run for shmcow to be right: a worker that was killed, forked or recycled without any hook goes on,
because the kernel keeps the markers. They are here so that a request has one version from its start to its end.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


@contextlib.contextmanager
def needed(package: str, at_least: str) -> Iterator[None]:
    """Turn the ImportError of a framework that is missing, or older than what is used here, into words that help.

    Args:
        package: its name for pip; the module that it brings is imported inside of ``with``.
        at_least: the first release that will do, as numbers with dots.

    Raises:
        ImportError: it is missing or older; the message has the line for pip.
    """
    from importlib.metadata import PackageNotFoundError, version

    line = f"pip install '{package}>={at_least}'"
    try:
        found = version(package)
    except PackageNotFoundError:
        found = ""
    # First: an old release may fail at the import of a name, with an error that says nothing of ages.
    if found and _numbers(found) < _numbers(at_least):
        raise ImportError(f"this needs {package} {at_least} or later, found {found}: {line}")
    try:
        yield
    except ImportError as exc:
        if found:
            raise
        raise ImportError(f"this needs {package}, which is not installed: {line}") from exc


def _numbers(version: str) -> list[int]:
    """Return the numbers at the start of a version: of "5.0rc1" those of 5.0."""
    return [int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]
