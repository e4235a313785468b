"""What gunicorn serves in the question `server`: a request reads the configuration and looks up one address.

Told by the environment: BENCH_WAY, and BENCH_AT (a store's name, a socket or a path). All ways serve the same values.
"""

from __future__ import annotations

import bisect
import importlib
import ipaddress
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

import shmcow
from benchmarks.scene import Config
from shmcow import Bundle, IPTable, MsgPack

PARTS = Bundle(config=MsgPack(Config), geo=IPTable(str))
RANGES = int(os.environ.get("BENCH_RANGES", "50000"))
POLL = 0.1  # seconds between two looks at the file
Look = Callable[[str], tuple[int, str]]  # address -> revision of the configuration, country


def rows() -> list[tuple[str, str, str]]:
    """Make the ranges: 64 addresses each, with gaps."""
    of = ipaddress.IPv4Address
    first = 0x01000000
    return [
        (str(of(first + 256 * k)), str(of(first + 256 * k + 63)), f"{chr(65 + k % 26)}{chr(65 + k % 23)}")
        for k in range(RANGES)
    ]


def addresses() -> list[str]:
    """Make some that are in the ranges."""
    return [str(ipaddress.IPv4Address(0x01000000 + 256 * (k * 7919 % RANGES) + k % 64)) for k in range(1000)]


class PrivateTable:
    """A sorted list and bisect: what a worker has of its own."""

    def __init__(self) -> None:
        of = ipaddress.IPv4Address
        self.rows = [(int(of(first)), int(of(last)), country) for first, last, country in rows()]
        self.firsts = [row[0] for row in self.rows]

    def __getitem__(self, address: str) -> str:
        number = int(ipaddress.IPv4Address(address))
        _, last, country = self.rows[bisect.bisect_right(self.firsts, number) - 1]
        if number > last:
            raise KeyError(address)
        return country


def _constant(path: str) -> Look:
    """Nothing shared, nothing that changes: the floor."""
    with open(path, "rb") as stream:
        config, table = msgspec.msgpack.decode(stream.read(), type=Config), PrivateTable()
    return lambda address: (config.revision, table[address])


def _shmcow(name: str) -> Look:
    reader = shmcow.Reader(name, codec=PARTS)

    def look(address: str) -> tuple[int, str]:
        now = reader.get()
        return now.config.revision, now.geo[address]

    return look


def _redis(path: str) -> Look:
    """One round trip for both; the ranges are a sorted set by their last address."""
    client = importlib.import_module("redis").Redis(unix_socket_path=path)
    decode = msgspec.msgpack.Decoder(Config).decode

    def look(address: str) -> tuple[int, str]:
        number = int(ipaddress.IPv4Address(address))
        ask = client.pipeline(transaction=False)
        ask.get("config")
        ask.zrange("geo", number, "+inf", byscore=True, offset=0, num=1)
        data, found = ask.execute()
        first, _, country = found[0].decode().partition(" ")
        if number < int(first):
            raise KeyError(address)
        return decode(data).revision, country

    return look


def _stash(_: str) -> Look:
    """The configuration in the stash; it has no ranges, so each worker has a table of its own."""
    stash = importlib.import_module("gunicorn.dirty").stash
    decode, table = msgspec.msgpack.Decoder(Config).decode, PrivateTable()
    return lambda address: (decode(stash.get("config", "value")).revision, table[address])


def _polling(path: str) -> Look:
    """A thread in each worker that looks at a file ten times a second, and a table of its own."""
    decode, table = msgspec.msgpack.Decoder(Config).decode, PrivateTable()
    kept: dict[str, Any] = {}

    def read() -> None:
        with open(path, "rb") as stream:
            kept["config"] = decode(stream.read())

    def poll() -> None:
        seen = 0
        while True:
            if (now := os.stat(path).st_mtime_ns) != seen:
                read()
                seen = now
            time.sleep(POLL)

    read()
    threading.Thread(target=poll, daemon=True).start()
    return lambda address: (kept["config"].revision, table[address])


WAYS = {"floor": _constant, "shmcow": _shmcow, "redis": _redis, "stash": _stash, "file": _polling}


def make_app() -> Callable[..., Iterable[bytes]]:
    """Make the application, in the worker."""
    look = WAYS[os.environ["BENCH_WAY"]](os.environ["BENCH_AT"])
    wanted = itertools.cycle(addresses())
    encode = msgspec.json.encode

    def app(_: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        revision, country = look(next(wanted))
        body = encode({"revision": revision, "country": country})
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return app
