"""One snapshot for each request of a WSGI application: Flask, Django, or none at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shmcow.contrib.request import Body, RequestSnapshots, SizedBody, check_readers

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from shmcow.reader import Reader

__all__ = ["SnapshotMiddleware"]


class SnapshotMiddleware:
    """Let every request of a WSGI application see one version: ``app = SnapshotMiddleware(app, config)``.

    Inside of a request, ``current_snapshot(config)`` of ``shmcow.contrib.request`` is always the same. It is held until
    the server closes the response, as PEP 3333 demands of it, also of one that was never started or whose client went
    away; should a server not do it, until the response is collected. Of a response that the server sends as a file
    (``wsgi.file_wrapper``) nothing is computed any more: it goes to the server as it is, and the snapshot is let go.
    (uWSGI's wrapper cannot be recognized: it sends such a file piece by piece.)

    Args:
        app: the application.
        readers: of which to take a snapshot at the start of each request.

    Raises:
        TypeError: there is no reader, or something else among them.

    Concurrency: any number of threads and greenlets serve requests at once. Other threads that a request starts see its
    snapshot if they are started by ``contextvars.copy_context().run``.
    """

    def __init__(self, app: WSGIApplication, *readers: Reader[Any]) -> None:
        if not callable(app):
            raise TypeError(f"the first argument is the WSGI application, found {app!r}")
        self.app = app
        self._readers = check_readers(readers)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        snapshots = RequestSnapshots(self._readers)
        try:
            with snapshots.current():
                body = self.app(environ, start_response)
        except BaseException:
            snapshots.release()
            raise
        file_wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
            snapshots.release()
            return body
        return SizedBody(snapshots, body) if hasattr(body, "__len__") else Body(snapshots, body)
