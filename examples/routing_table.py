"""A routing table that every worker consults: the longest prefix wins, and routes change while requests are served.

Problem: an API gateway sends "/shop/cart/7" to the backend of "/shop/cart", not to that of "/shop". Routes are
deployed several times a day, and no request may see half of a deployment.
Run it: python examples/routing_table.py
It prints: where four requests go, by the table of version 1 and by that of version 2, as a worker process answers.
"""

from __future__ import annotations

import multiprocessing
import os

import msgspec

import shmcow
from shmcow import Reader, Table, Writer

STORE = f"example-routes-{os.getpid()}"


class Backend(msgspec.Struct, frozen=True):
    host: str
    timeout: float = 1.0


ROUTES = Table(key=str, value=Backend)
routes = Reader(STORE, codec=ROUTES)


def prefix(path: str) -> str:
    """End a path with one "/", in the table as in requests: prefixes are compared by characters.

    Without it "/shop" would be a prefix of "/shopping".
    """
    return path.rstrip("/") + "/"


def route(path: str) -> tuple[int, str, str]:
    """Find the backend of a request, in whatever process this is; say which version of the table answered."""
    now = routes.snapshot()
    found = now.value.longest_prefix(prefix(path))
    return now.version, path, found[1].host if found else "404"


def main() -> None:
    """Route the same requests by two versions of the table."""
    first = {"/shop": Backend("shop"), "/shop/cart": Backend("cart", timeout=0.2)}
    requests = ("/shop/cart/7", "/shop/", "/shopping", "/")
    with Writer(STORE, codec=ROUTES) as writer, multiprocessing.get_context("fork").Pool(2) as pool:
        writer.publish({prefix(path): backend for path, backend in first.items()})
        answers = pool.map(route, requests)
        # New routes, in a table that is built anew; it becomes visible as a whole.
        writer.update(lambda old: {**old, prefix("/shopping"): Backend("mall"), prefix("/"): Backend("www")})
        answers += pool.map(route, requests)
    for version, path, host in answers:
        print(f"version {version}: {path} -> {host}")
    assert [version for version, _, _ in answers] == [1] * 4 + [2] * 4
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
