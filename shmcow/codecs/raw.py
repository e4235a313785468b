"""Bytes as they are, read in place."""

from __future__ import annotations

from typing_extensions import Buffer

from shmcow.codecs.base import Codec
from shmcow.errors import ValidationError

__all__ = ["Raw"]


class Raw(Codec[Buffer]):
    """Publish bytes as they are; read them in place, as a read-only memoryview.

    Nothing is copied on either side but into shared memory. The view keeps its version held, and its memory mapped.

    Concurrency: immutable; one instance serves all threads. Picklable.
    """

    name = "raw"
    holds = True

    def encode(self, value: Buffer) -> list[Buffer]:
        """View any bytes-like object as bytes, without a copy.

        Args:
            value: a C-contiguous bytes-like object of any shape and item type.

        Returns:
            One buffer, in a list; it points into ``value``.

        Raises:
            ValidationError: it is not bytes-like, or not C-contiguous.

        Concurrency: any thread; nobody may change ``value`` until it is published.
        """
        try:
            view = memoryview(value)
        except TypeError as exc:
            raise ValidationError(
                f"cannot encode a {type(value).__name__} with raw: expected bytes-like (bytes, bytearray, memoryview, "
                f"array, ...); use the MsgPack codec for other values"
            ) from exc
        if not view.c_contiguous:
            raise ValidationError(
                "cannot encode a buffer with raw that is not C-contiguous: copy it, as with bytes(view)"
            )
        if view.nbytes == 0:
            # Cannot be cast with a zero in its shape.
            return [b""]
        try:
            return [view.cast("B")]
        except TypeError:
            # An item format that memoryview does not know (records, foreign byte order). Rare; worth one copy.
            return [view.tobytes()]

    def decode(self, view: memoryview) -> memoryview:
        """Return the view itself, read-only.

        Args:
            view: the payload.

        Returns:
            A read-only memoryview of the payload.

        Raises:
            Nothing.

        Concurrency: any thread.
        """
        return view.toreadonly()

    def __repr__(self) -> str:
        return "Raw()"

    def __eq__(self, other: object) -> bool:
        return True if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)
