"""A geo-IP service for gunicorn: each worker looks addresses up in one table in shared memory, which nobody decodes.

Run, in this directory (pip install shmcow gunicorn):

    python publish.py          first, and again whenever there is new data: requests go on meanwhile
    gunicorn app:app --workers 4
    curl localhost:8000/1.1.1.1

A request takes one view of the table and uses it to its end: what it answers is of one version, also if the next one is
published meanwhile. To remove the store: python -c 'import shmcow; shmcow.destroy("geoip-example")'
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from table import Place, geo


class Answer(msgspec.Struct):
    """What a request is answered with."""

    pid: int
    version: int
    address: str
    network: list[str]
    place: Place | None


def look_up(address: str) -> Answer:
    """Find an address.

    Raises:
        ValueError: it is no IP address.
        LookupError: nothing has been published yet.
    """
    snapshot = geo.snapshot()  # version and table that belong together; geo.get() is enough without the version
    table = snapshot.value
    place = table.get(address)
    network = [] if place is None else [str(end) for end in table.network_of(address)]
    return Answer(os.getpid(), snapshot.version, address, network, place)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer ``GET /<address>``."""
    try:
        status, body = "200 OK", msgspec.json.encode(look_up(environ["PATH_INFO"].strip("/")))
    except ValueError as exc:
        status, body = "400 Bad Request", msgspec.json.encode({"error": str(exc)})
    except LookupError as exc:
        status, body = "503 Service Unavailable", msgspec.json.encode({"error": str(exc)})
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
