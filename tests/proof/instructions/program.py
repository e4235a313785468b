"""The hot paths, each in a loop between two marks. Runs under callgrind, which counts what happens between them.

program.py LIBRARY      the library made of marks.c
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import secrets
import sys
from collections.abc import Callable
from typing import Any

import msgspec

import shmcow
from shmcow.codecs.iptable import IPTable
from shmcow.codecs.table import Table

TURNS = 2_000
PUBLISHES = 100
KEYS = 1_000


class Config(msgspec.Struct, frozen=True):
    """A configuration of about 1 kB."""

    name: str = "checkout"
    timeout: float = 2.5
    hosts: tuple[str, ...] = tuple(f"10.20.{k}.{k}:8080" for k in range(40))


def turn(call: Callable[..., Any], arguments: list[Any]) -> None:
    """Call with each argument."""
    for argument in arguments:
        call(argument)


def turn_bare(call: Callable[[], Any], n: int) -> None:
    """Call n times."""
    for _ in itertools.repeat(None, n):
        call()


def main(library: str) -> None:
    """Run each path once to warm it, then count it."""
    marks = ctypes.CDLL(library)
    with contextlib.ExitStack() as stack:
        for path, (call, times) in hot_paths(stack).items():
            loop = turn_bare if isinstance(times, int) else turn
            loop(call, times)  # the first turn fills caches
            marks.begin()
            loop(call, times)
            marks.end(f"{path}|{times if isinstance(times, int) else len(times)}".encode())


def hot_paths(stack: contextlib.ExitStack) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Make the stores that the paths need, and the paths: what is called, and how often or with what."""
    name = f"t-count-{secrets.token_hex(4)}"

    def store(what: str, **settings: Any) -> tuple[Any, Any]:
        initial = settings.pop("initial")
        writer: shmcow.Writer[Any] = shmcow.Writer(f"{name}-{what}", initial=initial, **settings)
        stack.callback(writer.destroy)
        return writer, shmcow.Reader(f"{name}-{what}", **settings)

    config = Config()
    writer, reader = store("config", type=Config, initial=config)
    _, words = store("words", codec=Table(key=str, value=int), initial={f"key-{k:06}": k % 50 for k in range(KEYS)})
    rows = [(f"10.{k >> 8}.{k & 255}.0/24", f"C{k % 50}") for k in range(KEYS)]
    _, places = store("places", codec=IPTable(value=str), initial=[*rows, ("2001:db8::/32", "DOC")])
    turns = [k * 7 % KEYS for k in range(TURNS)]
    gc.collect()
    gc.disable()

    def hold_and_let_go() -> None:
        with reader.snapshot():
            pass

    def first_get() -> None:
        reader._forget()  # as after a publish: hold, decode, freeze, cache, let go
        reader.get()

    def publish() -> None:
        writer.publish(config)

    return {
        "empty call": (reader._pass, TURNS),
        "get": (reader.get, TURNS),
        "Table[key]": (words.get().__getitem__, [f"key-{k:06}" for k in turns]),
        "IPTable[v4]": (places.get().__getitem__, [f"10.{k >> 8}.{k & 255}.{k % 250}" for k in turns]),
        "IPTable[v6]": (places.get().__getitem__, [f"2001:db8:{k:x}::{k % 99:x}" for k in turns]),
        "hold and let go": (hold_and_let_go, PUBLISHES),
        "first get 1 kB": (first_get, PUBLISHES),
        "publish 1 kB": (publish, PUBLISHES),
    }


if __name__ == "__main__":
    main(sys.argv[1])
