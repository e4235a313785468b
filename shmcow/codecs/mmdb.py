"""MaxMind DB files, as they are: readers look things up in the mapped segment."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from typing_extensions import Buffer

from shmcow.codecs.base import Codec, StoredPart
from shmcow.codecs.raw import Raw
from shmcow.errors import DecodeError, ValidationError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = ["MMDB", "MMDBView"]


class MMDBView:
    """A ``maxminddb`` reader of one version, opened on its segment in shared memory.

    It has the methods of ``maxminddb.Reader``, which do the work, but for ``close``: it is shared by all threads, and
    goes with its last user. It keeps its version held.

    Concurrency: any thread.
    """

    __slots__ = ("__weakref__", "_reader", "_view", "get", "get_with_prefix_len")

    def __init__(self, reader: Any, view: memoryview) -> None:
        self._reader = reader
        self._view = view  # holds the version
        self.get = reader.get
        self.get_with_prefix_len = reader.get_with_prefix_len

    def metadata(self) -> Any:
        """Return what the file says of itself: ``database_type``, ``build_epoch``, ``node_count`` and so on."""
        return self._reader.metadata()

    def __iter__(self) -> Iterator[tuple[IPv4Network | IPv6Network, Any]]:
        return iter(self._reader)

    def __contains__(self, address: str | IPv4Address | IPv6Address) -> bool:
        return self.get(address) is not None

    def __repr__(self) -> str:
        return f"<MMDBView, {self._view.nbytes} bytes>"

    def __copy__(self) -> MMDBView:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an MMDBView cannot be pickled: send its Snapshot")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("an MMDBView has no plain copy: take what get() returns, or bytes(snapshot.data)")


class MMDB(Codec[Any]):
    """Publish a MaxMind DB file (GeoIP and the like); read it with ``maxminddb``, in place.

    Published are the file's bytes, from a bytes-like object or a path; a reader gets an MMDBView, and all processes
    share one copy. Needs ``maxminddb`` (``pip install 'shmcow[mmdb]'``) on both sides; its C extension makes the
    lookups fast. For tables that you make yourself, ``IPTable`` is faster.

    Format: MaxMind DB, version 2 (maxmind.github.io/MaxMind-DB). The payload lies at the start of the segment's
    file, so that any reader of such files can open it.

    Concurrency: immutable; one instance serves all threads. Picklable.
    """

    name = "mmdb"
    holds = True

    def encode(self, value: Buffer | str | os.PathLike[str] | MMDBView) -> list[Buffer]:
        """Return the file's bytes.

        Args:
            value: a bytes-like object, the path of a file, or an MMDBView.

        Returns:
            One buffer, in a list.

        Raises:
            ValidationError: it is neither, or the file cannot be read.

        Concurrency: any thread.
        """
        if isinstance(value, MMDBView):
            return [value._view]
        if isinstance(value, str | os.PathLike):
            try:
                with open(value, "rb") as file:
                    return [file.read()]
            except OSError as exc:
                raise ValidationError(f"cannot read the MaxMind DB file {os.fspath(value)}: {exc.strerror}") from exc
        try:
            return Raw().encode(value)
        except ValidationError as exc:
            raise ValidationError(
                f"expected a MaxMind DB file, as bytes or a path, found a {type(value).__name__}"
            ) from exc

    def join(self, parts: Sequence[StoredPart]) -> MMDBView:
        """Open a reader on the segment.

        Args:
            parts: one part.

        Returns:
            The view.

        Raises:
            DecodeError: it is no MaxMind DB file, or ``maxminddb`` is not installed.

        Concurrency: any thread.
        """
        if len(parts) != 1:
            raise DecodeError(f"expected one part for the mmdb codec, found {len(parts)}")
        (part,) = parts
        return MMDBView(_open(part), part.view)

    def __repr__(self) -> str:
        return "MMDB()"

    def __eq__(self, other: object) -> bool:
        return True if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)


class _Bytes(io.BytesIO):
    """What maxminddb takes for an open file."""

    name = "the value"


def _open(part: StoredPart) -> Any:
    try:
        import maxminddb
    except ImportError as exc:
        raise DecodeError("the MMDB codec needs maxminddb: pip install 'shmcow[mmdb]'") from exc
    if part.path:
        try:
            return maxminddb.open_database(part.path, maxminddb.MODE_AUTO)
        except FileNotFoundError:  # forced out meanwhile: mapped still, by us
            pass
    # A name it never had (a writer checks what it will publish), or has no more: a private copy.
    return maxminddb.open_database(_Bytes(part.view), maxminddb.MODE_FD)
