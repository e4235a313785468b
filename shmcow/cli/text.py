"""Text that is safe and short enough for a terminal."""

from __future__ import annotations

__all__ = ["printable", "shortened"]


def printable(text: str) -> str:
    """Return a text with everything that could steer a terminal written as an escape such as ``\\x1b``.

    Concurrency: pure.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shortened(text: str, room: int) -> str:
    """Return a printable text, cut to ``room`` characters with an ellipsis at the end.

    Concurrency: pure.
    """
    shown = printable(text[: room + 1])  # an escape is never shorter than what it stands for
    return shown if len(shown) <= room else shown[: room - 1] + "…"
