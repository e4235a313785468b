"""One snapshot for each request of a Django project: a class for ``MIDDLEWARE``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmcow.contrib import needed
from shmcow.contrib.request import AsyncBody, Body, RequestSnapshots, current_snapshot, current_value, holding
from shmcow.reader import Reader

with needed("django", "4.2"):  # the first that streams from asynchronous iterators
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django import conf
    from django.core.exceptions import ImproperlyConfigured
    from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponseBase

__all__ = ["SnapshotMiddleware", "current_snapshot", "current_value", "holding"]


class SnapshotMiddleware:
    """Let every request of a Django project see one version, under WSGI and under ASGI.

    In ``settings.py``::

        MIDDLEWARE = ["shmcow.contrib.django.SnapshotMiddleware", ...]
        SHMCOW_READERS = ["shop.config.config"]  # where the Readers are, or the Readers themselves

    Put it first: what stands before it is outside of the request. Inside, views (also ``async def``), templates, other
    middleware and what is streamed see the same ``current_snapshot(config)``. It is let go when the middleware has the
    response, or when a streamed one is done; of one whose client went away, when Django has dropped it.

    Raises:
        ImproperlyConfigured: there is no ``SHMCOW_READERS``, or it is wrong. Django says so when it starts.

    Concurrency: as ``shmcow.contrib.request.current_snapshot``.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._readers = _readers_of_settings()
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Serve one request; under ASGI the answer is awaited."""
        if self._is_async:
            return self._serve(request)
        snapshots = RequestSnapshots(self._readers)
        try:
            with snapshots.current():
                response: HttpResponseBase = self.get_response(request)
        except BaseException:
            snapshots.release()
            raise
        return _until_sent(response, snapshots)

    async def _serve(self, request: HttpRequest) -> HttpResponseBase:
        snapshots = RequestSnapshots(self._readers)
        try:
            with snapshots.current():
                response: HttpResponseBase = await self.get_response(request)
        except BaseException:
            snapshots.release()
            raise
        return _until_sent(response, snapshots)


def _until_sent(response: Any, snapshots: RequestSnapshots) -> HttpResponseBase:
    """Let go of the snapshots now, or when a streamed response is closed."""
    if not response.streaming or getattr(response, "file_to_stream", None):  # nothing is computed any more
        snapshots.release()
    elif response.is_async:
        response.streaming_content = AsyncBody(snapshots, response.streaming_content)
    else:
        response.streaming_content = Body(snapshots, response.streaming_content)
    checked: HttpResponseBase = response
    return checked


def _readers_of_settings() -> tuple[Reader[Any], ...]:
    given = getattr(conf.settings, "SHMCOW_READERS", None)
    if not given or isinstance(given, str):
        raise ImproperlyConfigured(
            "shmcow.contrib.django.SnapshotMiddleware needs SHMCOW_READERS in the settings: a list of Readers, or of "
            f"where they are, such as ['shop.config.config']; found {given!r}"
        )
    readers = tuple(import_string(each) if isinstance(each, str) else each for each in given)
    for where, reader in zip(given, readers, strict=True):
        if not isinstance(reader, Reader):
            raise ImproperlyConfigured(f"SHMCOW_READERS: expected a Reader at {where!r}, found {reader!r}")
    return readers
