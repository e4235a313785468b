"""The application that gunicorn's dirty workers load: it does nothing but declare the stash."""

from __future__ import annotations

from typing import Any

from gunicorn.dirty import DirtyApp


class App(DirtyApp):  # type: ignore[misc]
    """Keeps a stash."""

    stashes = ["config"]  # noqa: RUF012 - as gunicorn documents it

    def __call__(self, *_: Any, **__: Any) -> None:
        """Do nothing."""
