"""A WSGI application for gunicorn whose workers share one configuration that changes while they run.

Run, in this directory (pip install shmcow gunicorn):

    gunicorn app:app                                     sync workers
    gunicorn app:app --worker-class gthread --threads 4

and from another shell:

    curl localhost:8000              who answers, with which version, and the values
    python publish.py                publish: the next answer has it, whichever worker gives it
    curl -X POST localhost:8000      the same from inside a worker, as an admin page would do it (behind a login)

The store outlives them all; to remove it:

    python -c 'import shmcow; shmcow.destroy("gunicorn-example")'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from publish import publish
from settings import answer


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer every path with the current configuration; publish first if the method is POST."""
    if environ["REQUEST_METHOD"] == "POST":
        publish()
    body = answer()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
