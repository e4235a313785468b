"""Kinds of arguments that several commands take."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from shmcow import _core
from shmcow.cli.text import printable
from shmcow.segments import check_name
from shmcow.store import TIMEOUT_MAX, check_timeout

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["PATH", "SECONDS", "STORE", "TYPE", "TYPED_STORES", "TYPE_HELP", "VERSION", "VERSION_OR_NONE"]

TYPED_STORES = "shmcow.stores"  # in a context's meta: the names of stores that were typed


class _Store(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic in newer clicks only
    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            name = check_name(value)
        except ValueError as exc:
            self.fail(printable(str(exc)), param, ctx)
        if ctx is not None:
            ctx.meta.setdefault(TYPED_STORES, []).append(name)
        return name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del ctx, param
        from shmcow.cli import completing

        return completing.stores(incomplete)


def _typed_name(ctx: click.Context) -> str | None:
    """Return the store's name that stands before what is being completed."""
    name = ctx.params.get("name")
    if name is None and ctx.args:  # click gives up at an option that has no value yet
        name = ctx.args[0]
    return name


class _Version(click.IntRange):
    """A version; completed to those that can be opened."""

    def __init__(self, least: int = 1) -> None:
        super().__init__(min=least, max=_core.VERSION_MAX)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del param
        from shmcow.cli import completing

        return completing.versions(_typed_name(ctx), incomplete, older=ctx.command.name in ("drop", "rollback"))


class _Path(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A path in a store's value; completed to the keys that there are."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        del param, ctx
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del param
        from shmcow.cli import completing

        return completing.paths(_typed_name(ctx), incomplete)


class _Type(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``module:Class``, imported from where the command runs as well."""

    name = "module:class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        module, colon, path = value.partition(":")
        if not (module and colon and path):
            self.fail(f"{printable(value)!r} is not of the form module:Class, such as shop.config:Config", param, ctx)
        here = os.getcwd()
        if here not in sys.path:
            sys.path.append(here)  # not in front: a directory such as /tmp must not replace a module that is installed
        try:
            found: Any = importlib.import_module(module)
        except (Exception, SystemExit) as exc:  # whatever the user's module raises is for the user
            self.fail(f"cannot import {printable(module)}: {type(exc).__name__}: {printable(str(exc))}", param, ctx)
        for name in path.split("."):
            if not hasattr(found, name):
                self.fail(f"{printable(module)} has no {printable(path)}", param, ctx)
            found = getattr(found, name)
        return found


class _Seconds(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """How long to wait."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
            check_timeout("it", seconds)
        except ValueError:
            self.fail(f"{printable(str(value))!r} is no number of seconds, 0 to {TIMEOUT_MAX:.0f}", param, ctx)
        return seconds


PATH = _Path()
SECONDS = _Seconds()
STORE = _Store()
TYPE = _Type()
VERSION = _Version()
TYPE_HELP = "Of the values; or a codec object. MODULE is looked for in the current directory, too."
VERSION_OR_NONE = _Version(0)  # 0: there is none yet
