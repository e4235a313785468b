"""Words that messages are made of."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, noun: str, plural: str = "") -> str:
    """Write how many of something there are: 1 version, 1,234 versions.

    Args:
        number: how many.
        noun: what one of them is called.
        plural: what several are called; "": the same with an s.

    Concurrency: pure.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
