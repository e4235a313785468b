"""numpy arrays, read in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from typing_extensions import Buffer

from shmcow.codecs.base import Codec
from shmcow.errors import CorruptSegmentError, DecodeError, ValidationError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Arrays"]

_MAGIC: Final = b"cowarray"
_ALIGN: Final = 64  # bytes: a cache line, and what vector instructions like
_KINDS: Final = "biufcmMSUV"  # numpy's: plain numbers, times, fixed-size strings, records
_HEAD: Final = len(_MAGIC) + 8


class _Listed(msgspec.Struct, array_like=True, frozen=True):
    """One array, as the header lists it."""

    name: str
    dtype: Any  # as in the .npy format
    shape: tuple[int, ...]
    fortran: bool
    at: int  # bytes from the first multiple of 64 after the header
    size: int  # bytes


class Arrays(Codec[Any]):
    """Publish a dict of numpy arrays; read them in place, as read-only arrays that nobody copied.

    Any shape, any dtype of fixed size: numbers, times, strings of fixed length, records (structured dtypes). Objects
    refused. C and Fortran order are kept; other strides are copied once. Each array begins at a multiple of 64
    bytes, and keeps its version held, also when it is a slice or a view of one.

    Needs numpy (``pip install 'shmcow[numpy]'``) on both sides.

    Format: "cowarray", the header's length (8 bytes), a header in MessagePack (name, dtype as in numpy's .npy format,
    shape, order, place, size of each), and the arrays.

    Concurrency: immutable; one instance serves all threads. Picklable.
    """

    name = "arrays"
    holds = True

    def encode(self, value: Mapping[str, npt.NDArray[Any]]) -> list[Buffer]:
        """List the arrays and point to them.

        Args:
            value: arrays by name.

        Returns:
            Buffers; those of large arrays point into the arrays.

        Raises:
            ValidationError: it is no mapping of names to arrays, or one of them has objects in it.

        Concurrency: any thread; nobody may change the arrays until they are published.
        """
        try:
            import numpy as np
        except ImportError as exc:
            raise ValidationError("the Arrays codec needs numpy: pip install 'shmcow[numpy]'") from exc
        if not isinstance(value, Mapping):
            raise ValidationError(f"expected a dict of numpy arrays, found a {type(value).__name__}")
        arrays = [_checked(name, array) for name, array in value.items()]
        listed: list[_Listed] = []
        end = 0
        for name, array in zip(value, arrays, strict=True):
            fortran = array.flags.f_contiguous and not array.flags.c_contiguous
            dtype = np.lib.format.dtype_to_descr(array.dtype)
            listed.append(_Listed(name, dtype, array.shape, fortran, _aligned(end), array.nbytes))
            end = _aligned(end) + array.nbytes
        header = msgspec.msgpack.encode(listed)
        head = _MAGIC + len(header).to_bytes(8, "little") + header
        buffers: list[Buffer] = [head, bytes(_aligned(len(head)) - len(head))]
        end = 0
        for item, array in zip(listed, arrays, strict=True):
            buffers += [bytes(item.at - end), _bytes_of(array, item.fortran)]
            end = item.at + item.size
        return buffers

    def decode(self, view: memoryview) -> dict[str, npt.NDArray[Any]]:
        """Make arrays of the payload, without copying it.

        Args:
            view: the payload.

        Returns:
            Read-only arrays by name.

        Raises:
            CorruptSegmentError: the header leads out of the payload.
            DecodeError: numpy is not installed.

        Concurrency: any thread.
        """
        try:
            import numpy as np
        except ImportError as exc:
            raise DecodeError("the Arrays codec needs numpy: pip install 'shmcow[numpy]'") from exc
        listed, data = _header(view)
        return {item.name: _array(np, data, item) for item in listed}

    def __repr__(self) -> str:
        return "Arrays()"

    def __eq__(self, other: object) -> bool:
        return True if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)


def _aligned(at: int) -> int:
    return -(-at // _ALIGN) * _ALIGN


def _checked(name: object, array: Any) -> npt.NDArray[Any]:
    import numpy as np

    if not isinstance(name, str):
        raise ValidationError(f"an array's name is a str, found {name!r}")
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise ValidationError(
            f"`{name}` is a {type(array).__name__}, expected a numpy array: convert it with numpy.asarray() (and a "
            "mask into an array of its own)"
        )
    if array.dtype.hasobject or array.dtype.kind not in _KINDS:
        raise ValidationError(
            f"`{name}` has the dtype {array.dtype}, whose items are Python objects or of no fixed size: use numbers, "
            "times, strings of fixed length (such as 'U16') or records of them"
        )
    plain = np.asarray(array)
    return plain if plain.flags.c_contiguous or plain.flags.f_contiguous else np.asarray(plain, order="C")


def _bytes_of(array: npt.NDArray[Any], fortran: bool) -> Buffer:
    import numpy as np

    if array.nbytes == 0:
        return b""
    flat = (array.T if fortran else array).reshape(-1)
    return flat.view(np.uint8).data


def _header(view: memoryview) -> tuple[list[_Listed], memoryview]:
    """Return what is listed, all of it inside, and the bytes after the header."""
    length = int.from_bytes(view[len(_MAGIC) : _HEAD], "little")
    if bytes(view[: len(_MAGIC)]) != _MAGIC or length > view.nbytes - _HEAD:
        raise CorruptSegmentError("expected arrays, found something else: publish again")
    try:
        listed = msgspec.msgpack.decode(view[_HEAD : _HEAD + length], type=list[_Listed])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CorruptSegmentError(f"the header of the arrays is damaged: {exc}: publish again") from exc
    data = view[_aligned(_HEAD + length) :]
    for item in listed:
        if not 0 <= item.at <= data.nbytes or not 0 <= item.size <= data.nbytes - item.at:
            raise CorruptSegmentError(f"the array {item.name!r} leads out of its segment: publish again")
    return listed, data


def stored_arrays(view: memoryview) -> dict[str, tuple[str, memoryview]]:
    """Return what a payload has in it, without numpy: by name what an array is, in words, and its bytes.

    Raises:
        CorruptSegmentError: the header leads out of the payload.

    Concurrency: pure.
    """
    listed, data = _header(view)
    return {
        item.name: (
            f"array of {item.dtype}, {' x '.join(map(str, item.shape))}{', in Fortran order' if item.fortran else ''}",
            data[item.at : item.at + item.size],
        )
        for item in listed
    }


def _array(np: Any, data: memoryview, item: _Listed) -> npt.NDArray[Any]:
    array: npt.NDArray[Any]
    try:
        dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(_tuples(item.dtype))
        if dtype.hasobject:
            raise ValueError("its items are Python objects")
        if min(item.shape, default=0) < 0 or math.prod(item.shape) * dtype.itemsize != item.size:
            raise ValueError("its size is wrong")
        order = "F" if item.fortran else "C"
        if item.size == 0:
            array = np.empty(item.shape, dtype, order=order)
            array.flags.writeable = False
        else:
            array = np.frombuffer(data[item.at : item.at + item.size], dtype).reshape(item.shape, order=order)
        return array
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError) as exc:
        raise CorruptSegmentError(f"the header of the array {item.name!r} is damaged: {exc}: publish again") from exc


def _tuples(descr: Any) -> Any:
    """Undo what a round trip does to a dtype's description: fields are tuples in a list, shapes are tuples."""
    if not isinstance(descr, list):
        return descr
    fields = []
    for field in descr:
        name, inner, *shape = field
        fields.append((tuple(name) if isinstance(name, list) else name, _tuples(inner), *map(tuple, shape)))
    return fields
