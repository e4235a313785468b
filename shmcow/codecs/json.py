"""JSON: for payloads that people or other programs look at."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import msgspec
from typing_extensions import Buffer, TypeVar

from shmcow import frozen
from shmcow.codecs.base import MsgspecCodec
from shmcow.errors import ValidationError

__all__ = ["JSON"]

T = TypeVar("T", default=Any)


class JSON(MsgspecCodec[T]):
    """Encode values as JSON.

    Takes the arguments of ``MsgspecCodec``. NaN and infinities, which JSON does not have, are refused rather than
    turned into null. Without a type, what JSON has no notation for comes back as what it has: a datetime or bytes as
    a string, the key 1 as "1".

    Concurrency: immutable; one instance serves all threads. Picklable if the type and the hooks are.
    """

    name = "json"
    _format: ClassVar[Any] = msgspec.json

    def encode(self, value: T) -> list[Buffer]:
        """Encode a value as one buffer.

        Args:
            value: the value.

        Returns:
            One bytes object, in a list.

        Raises:
            ValidationError: there is a NaN or an infinity in it, or it is of another class than the type.
            Exception: what msgspec or ``enc_hook`` raises; ``encode_parts`` maps it.

        Concurrency: any thread.
        """
        self._check_kind(value)
        data = self._encoder.encode(value)
        # msgspec writes null for such floats. Looking for the word is a memory search; only a hit costs a walk.
        if b"null" in data:
            path = self._find_nonfinite(value, "$")
            if path is not None:
                raise ValidationError(
                    f"cannot encode `{path}` with json: JSON has no NaN and no infinity; use None there, or the "
                    f"MsgPack codec"
                )
        return [data]

    def _find_nonfinite(self, value: Any, path: str) -> str | None:
        # Exactly float: msgspec hands subclasses to enc_hook.
        if type(value) is float:
            return None if math.isfinite(value) else path
        for step, child in self._children(value):
            found = self._find_nonfinite(child, path + step)
            if found is not None:
                return found
        return None

    def _children(self, value: Any) -> list[tuple[str, Any]]:
        found = list(frozen.children(value))
        if not found and self.enc_hook is not None and self._is_hooked(value):
            found = [("", self.enc_hook(value))]
        return found

    def _is_hooked(self, value: Any) -> bool:
        # Whether msgspec asks enc_hook about it: whether it fails without.
        try:
            msgspec.json.encode(value)
        except TypeError:
            return True
        return False
