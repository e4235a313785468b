"""Arrays: numpy arrays read in place."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

import shmcow
from shmcow import Arrays, CorruptSegmentError, Reader, StoredPart, ValidationError, Writer

CODEC = Arrays()
ALL = {
    "plain": np.arange(10.0),
    "records": np.zeros((3, 4), dtype=[("x", "<f4"), ("y", "S3", (2,)), ("z", [("a", ">i2")])]),
    "aligned": np.ones(3, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "zero dimensions": np.array(5),
    "nothing": np.empty((0, 3)),
    "no bytes": np.array(["", ""], dtype="S0"),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "strided": np.arange(100)[::3],
    "reversed": np.arange(9).reshape(3, 3)[::-1],
    "big endian": np.arange(5, dtype=">u4"),
    "times": np.array(["2020-01-01T00:00:01", "NaT"], dtype="M8[s]"),
    "spans": np.arange(3).astype("m8[ms]"),
    "texts": np.array(["äß", "c"]),
    "truth": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "seven": np.zeros((1, 2, 1, 2, 1, 2, 1), dtype="f2"),
    "matrix": np.arange(4).reshape(2, 2).view(np.matrix),
    "": np.zeros(1),
}


@pytest.fixture
def writer(name: str) -> Iterator[Writer[Any]]:
    with Writer(name, codec=CODEC) as made:
        yield made


def payload(value: Any) -> bytes:
    (part,) = CODEC.encode_parts(value)
    return b"".join(
        bytes(memoryview(buffer).cast("B")) if memoryview(buffer).nbytes else b"" for buffer in part.buffers
    )


def decoded(data: bytes) -> dict[str, Any]:
    return CODEC.decode_parts([StoredPart(memoryview(data))])  # type: ignore[no-any-return]


def test_arrays_come_back_as_they_were(name: str, writer: Writer[Any]) -> None:
    """Same dtype, shape and content; read-only, and at multiples of 64 bytes."""
    writer.publish(ALL)
    for reader in (Reader(name, codec=CODEC), Reader(name)):
        found = reader.get()
        assert list(found) == list(ALL)
        for key, array in ALL.items():
            there = found[key]
            assert there.dtype == array.dtype, key
            assert there.shape == array.shape, key
            assert np.array_equal(there, array, equal_nan=array.dtype.kind in "Mm"), key
            assert not there.flags.writeable, key
            assert there.nbytes == 0 or there.ctypes.data % 64 == 0, key
        assert found["fortran"].flags.f_contiguous
        with pytest.raises(ValueError, match="read-only"):
            found["plain"][0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            found["plain"].flags.writeable = True
        with pytest.raises(TypeError, match="immutable"):
            found["plain"] = 1


def test_arrays_hold_their_version(name: str, writer: Writer[Any]) -> None:
    """A slice of an array keeps the version, and its memory; it goes with the last one."""
    writer.publish({"a": np.arange(100_000)})
    reader = Reader(name, codec=CODEC)
    part = reader.get()["a"][10:20]
    for n in range(6):
        writer.publish({"a": np.full(10, n)})
    reader.get()
    assert [g.version for g in shmcow.describe(name).generations if g.marked] == [7, 1]
    assert part.tolist() == list(range(10, 20))
    del part
    gc.collect()
    writer.reclaim()
    assert [g.version for g in shmcow.describe(name).generations] == [7, 6, 5, 4, 3]


def test_a_copy_is_plain_and_writable(name: str, writer: Writer[Any]) -> None:
    """Snapshot.copy() gives arrays that can be changed."""
    writer.publish({"a": np.arange(3)})
    copy = Reader(name, codec=CODEC).snapshot().copy()
    copy["a"][0] = 9
    assert copy["a"].tolist() == [9, 1, 2]
    assert writer.patch(b=np.zeros(1)) == 2
    assert sorted(writer.snapshot().value) == ["a", "b"]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        nps.arrays(
            st.one_of(nps.scalar_dtypes(), nps.array_dtypes(), nps.unicode_string_dtypes()),
            nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        ),
        max_size=4,
    )
)
def test_any_array_comes_back(value: dict[str, Any]) -> None:
    """Whatever dtype and shape hypothesis makes."""
    there = decoded(payload(value))
    assert list(there) == list(value)
    for key, array in value.items():
        assert (there[key].dtype, there[key].shape) == (array.dtype, array.shape)
        assert there[key].tobytes() == array.tobytes()


BAD: list[tuple[Any, str]] = [
    (3, "expected a dict of numpy arrays, found a int"),
    ({1: np.zeros(1)}, "an array's name is a str, found 1"),
    ({"a": [1, 2]}, "`a` is a list, expected a numpy array"),
    ({"a": np.ma.zeros(2)}, "`a` is a MaskedArray"),
    ({"a": np.float64(1)}, "`a` is a float64"),
    ({"a": np.array([object()])}, "`a` has the dtype object"),
    ({"a": np.zeros(1, dtype=[("x", "f4"), ("y", "O")])}, "whose items are Python objects"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_bad_values_are_refused(writer: Writer[Any], value: Any, message: str) -> None:
    """What is no dict of arrays of fixed size."""
    with pytest.raises(ValidationError, match=message):
        writer.publish(value)
    assert writer.version == 0


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="needs numpy 2 (StringDType)")
def test_texts_of_no_fixed_size_are_refused() -> None:
    """numpy's own variable texts live outside of the array."""
    with pytest.raises(ValidationError, match="no fixed size"):
        payload({"a": np.array(["a", "b"], dtype=np.dtypes.StringDType())})


def forged(*items: Any, data: bytes = bytes(64)) -> bytes:
    header = msgspec.msgpack.encode(items)
    head = b"cowarray" + len(header).to_bytes(8, "little") + header
    return head.ljust(-(-len(head) // 64) * 64, b"\0") + data


FORGED: list[tuple[bytes, str]] = [
    (b"", "expected arrays"),
    (b"cowarray", "expected arrays|damaged"),
    (b"cowarray" + b"\xff" * 8, "expected arrays"),
    (b"cowarrax" + bytes(8), "expected arrays"),
    (forged(["a", "<f8", [9], False, 0, 72]), "leads out"),
    (forged(["a", "<f8", [8], False, 8, 64]), "leads out"),
    (forged(["a", "<f8", [8], False, -8, 64]), "leads out"),
    (forged(["a", "<f8", [4], False, 0, 64]), "size is wrong"),
    (forged(["a", "<f8", [-8], False, 0, 64]), "size is wrong"),
    (forged(["a", "<f8", [10**6, 10**6], False, 0, 0]), "size is wrong"),
    (forged(["a", "<f8", [2**40, 2**40, 0, 2], False, 0, 0]), "damaged"),
    (forged(["a", "|O", [8], False, 0, 64]), "Python objects"),
    (forged(["a", [["x", "|O"]], [8], False, 0, 64]), "Python objects"),
    (forged(["a", "what", [8], False, 0, 64]), "damaged"),
    (forged(["a", [["x"]], [8], False, 0, 64]), "damaged"),
    (forged(["a", "<f8"]), "header of the arrays is damaged"),
    (forged(3), "header of the arrays is damaged"),
]


@pytest.mark.parametrize(("data", "message"), FORGED)
def test_forged_headers_are_refused(data: bytes, message: str) -> None:
    """Nothing outside the payload is reached, and nothing large is made."""
    with pytest.raises(CorruptSegmentError, match=message):
        decoded(data)


def test_truncated_and_damaged_payloads_never_crash() -> None:
    """Every truncation and a flip in every byte of the header: arrays of that size, or a specific error."""
    whole = payload({"a": np.arange(9.0), "b": np.array(["x"])})
    for end in range(len(whole)):
        with pytest.raises(CorruptSegmentError):
            decoded(whole[:end])
    refused = 0
    for at in range(128):
        data = bytearray(whole)
        data[at] ^= 0x11
        try:
            for array in decoded(bytes(data)).values():
                assert array.nbytes <= len(whole)
        except CorruptSegmentError:
            refused += 1
    assert refused > 30


def test_the_codec_is_equal_to_its_like() -> None:
    """Picklable, comparable, and unlike others."""
    assert pickle.loads(pickle.dumps(CODEC)) == CODEC
    assert hash(CODEC) == hash(Arrays())
    assert shmcow.Raw() != CODEC
    assert repr(CODEC) == "Arrays()"
