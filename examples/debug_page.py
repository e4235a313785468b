"""A snapshot exported as a debug page and as metrics: what does this worker serve with, since when, and why?

Problem: "is the new configuration live?" should be a URL, not a question to the person who deployed it.
Run it: python examples/debug_page.py
It prints: what a server process answers at /debug and at /metrics, before and after a publish. (For Prometheus in
earnest there is shmcow.contrib.prometheus; this is for everything else, and needs nothing.)
"""

from __future__ import annotations

import http.server
import multiprocessing
import os
import urllib.request
from multiprocessing.connection import Connection

import msgspec
from msgspec.structs import replace

import shmcow
from shmcow import Reader, Writer

STORE = f"example-debug-{os.getpid()}"


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0
    hosts: tuple[str, ...] = ()
    password: str = "hunter2"  # only to be hidden here: a secret does not belong into a store


config = Reader(STORE, type=Config)


def debug() -> bytes:
    """Show the value that this process serves with, and its origin; what is secret is hidden by name."""
    now = config.snapshot()
    value = {**msgspec.to_builtins(now.value), "password": "(hidden)"}
    origin = {"version": now.version, "published_at": now.published_at, "message": now.message}
    return msgspec.json.encode(origin | {"problem": str(config.problem or ""), "value": value})


def metrics() -> bytes:
    """Show numbers about the store, in the text format of Prometheus; they are the same from every worker."""
    report = shmcow.describe(STORE)
    figures = {"version": report.version, "bytes": report.total_bytes, "versions_alive": len(report.generations)}
    for name in ("published", "refused", "conflicts", "reclaimed"):
        figures[f"{name}_total"] = report.counters[name]
    return "".join(f'shmcow_{name}{{store="{STORE}"}} {figure}\n' for name, figure in figures.items()).encode()


class Pages(http.server.BaseHTTPRequestHandler):
    """The two pages."""

    def do_GET(self) -> None:
        page = {"/debug": debug, "/metrics": metrics}.get(self.path)
        self.send_response(200 if page else 404)
        self.end_headers()
        self.wfile.write(page() if page else b"/debug /metrics\n")

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def serve(link: Connection) -> None:
    """Be the server."""
    with http.server.HTTPServer(("127.0.0.1", 0), Pages) as server:
        link.send(server.server_port)
        server.serve_forever()


def main() -> None:
    """Ask a server process for its pages, publish, and ask again."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    theirs.close()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    port = ours.recv()
    with Writer(STORE, type=Config, initial=Config()) as writer:
        for hosts in (("db1",), ("db1", "db2")):
            version = writer.update(lambda old, hosts=hosts: replace(old, hosts=hosts), message=f"use {len(hosts)}")
            for path in ("/debug", "/metrics"):
                with opener.open(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
                    text = response.read().decode().strip()
                print(f"GET {path}\n{text}")
                assert str(version) in text
    server.terminate()
    server.join()
    shmcow.destroy(STORE)


if __name__ == "__main__":
    main()
