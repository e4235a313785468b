"""One snapshot for each request of a Flask application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmcow.contrib import needed
from shmcow.contrib.request import check_readers, current_snapshot, current_value, holding
from shmcow.contrib.wsgi import SnapshotMiddleware

with needed("flask", "2.2"):
    from flask import Flask

if TYPE_CHECKING:
    from shmcow.reader import Reader

__all__ = ["Snapshots", "current_snapshot", "current_value", "holding"]


class Snapshots:
    """A Flask extension: every request sees one version, ``Snapshots(config).init_app(app)``.

    In views (also ``async def``), in what they stream, in templates' functions and in ``teardown_request``,
    ``current_snapshot(config)`` is always the same; it is let go when the response is done. For commands of
    ``flask`` use ``with holding(config):``.

    Args:
        readers: of which to take a snapshot at the start of each request.

    Raises:
        TypeError: there is no reader, or something else among them.

    Concurrency: as ``shmcow.contrib.wsgi.SnapshotMiddleware``, which does the work.

    Example::

        config = Reader("app-config", type=Config)
        app = Flask(__name__)
        Snapshots(config).init_app(app)

        @app.get("/")
        def index():
            return {"timeout": current_snapshot(config).value.timeout}
    """

    def __init__(self, *readers: Reader[Any]) -> None:
        self._readers = check_readers(readers)

    def init_app(self, app: Flask) -> None:
        """Let an application's requests have snapshots.

        Raises:
            TypeError: it is no Flask application.
        """
        if not isinstance(app, Flask):
            raise TypeError(f"init_app() takes a Flask application, found {app!r}")
        app.wsgi_app = SnapshotMiddleware(app.wsgi_app, *self._readers)  # type: ignore[method-assign, unused-ignore]
