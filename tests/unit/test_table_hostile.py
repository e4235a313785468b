"""Tables whose bytes somebody else has made or changed: a specific error at worst, whatever is asked."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmcow import CorruptSegmentError, DecodeError, Reader, StoredPart, Table, TableView, Writer

HEADER = 128
FIELDS = {
    "rows": 16,
    "seed": 24,
    "slot_count": 32,
    "probe_max": 40,
    "records_bytes": 48,
    "values_bytes": 56,
    "value_count": 64,
    "length_count": 72,
}
SMALL: list[tuple[Table[Any, Any], dict[Any, Any]]] = [
    (Table(key=str), {"": 1, "ab": "zwei", "abc": [3]}),
    (Table(key=bytes), {b"a": None, b"longer than eight": 2.5}),
    (Table(key=int), {1: "one", 2**64 - 1: True, -5: "one"}),
]
KINDS = ["str", "bytes", "int"]


def made(codec: Table[Any, Any], rows: Any) -> bytearray:
    """Return the bytes of a table."""
    (part,) = codec.encode_parts(rows)
    return bytearray(memoryview(part.buffers[0]))


def sealed(data: bytearray) -> bytearray:
    """Give a header its checksum, as who forges one would."""
    if len(data) >= HEADER:
        data[124:128] = struct.pack("=I", zlib.crc32(data[:124]))
    return data


def opened(codec: Table[Any, Any], data: bytes | bytearray) -> TableView[Any, Any]:
    return codec.decode_parts([StoredPart(memoryview(bytes(data)))], freeze=True)


def use(codec: Table[Any, Any], data: bytes | bytearray, keys: Any) -> int:
    """Do everything that readers do; return how many things were refused."""
    refused = 0

    @contextlib.contextmanager
    def refusing() -> Iterator[None]:
        nonlocal refused
        try:
            yield
        except (CorruptSegmentError, DecodeError):
            refused += 1

    try:
        view = opened(codec, data)
    except (CorruptSegmentError, DecodeError):
        return 1
    asks: list[Callable[[], Any]] = [
        lambda: list(itertools.islice(view, 1000)),
        lambda: list(itertools.islice(view.items(), 1000)),
        lambda: list(itertools.islice(view.values(), 1000)),
        lambda: view.get_many(keys),
        lambda: codec.prove(view),
    ]
    asks += [lambda key=key: view.get(key) for key in keys]
    if codec.key is not int:
        asks += [lambda key=key: view.longest_prefix(key + key) for key in keys]
    for ask in asks:
        with refusing():
            ask()
    return refused


@pytest.mark.parametrize(("codec", "rows"), SMALL, ids=KINDS)
def test_truncated_tables_are_refused(codec: Table[Any, Any], rows: dict[Any, Any]) -> None:
    """At every length, also when the header still has its checksum; and a longer one, too."""
    data = made(codec, rows)
    for length in range(len(data)):
        with pytest.raises(CorruptSegmentError, match="a table contradicts itself"):
            opened(codec, data[:length])
    with pytest.raises(CorruptSegmentError):
        opened(codec, data + b"\0" * 8)


@pytest.mark.parametrize(("codec", "rows"), SMALL, ids=KINDS)
def test_a_changed_header_is_refused(codec: Table[Any, Any], rows: dict[Any, Any]) -> None:
    """Its checksum covers every byte of it."""
    data = made(codec, rows)
    for at in range(HEADER):
        changed = data.copy()
        changed[at] ^= 1 << at % 8
        with pytest.raises(CorruptSegmentError):
            opened(codec, changed)


@pytest.mark.parametrize(("codec", "rows"), SMALL, ids=KINDS)
def test_any_changed_byte_is_survived(codec: Table[Any, Any], rows: dict[Any, Any]) -> None:
    """Each byte in several ways, the header with a checksum that fits: the deeper checks have the word."""
    data = made(codec, rows)
    refused = 0
    kind = 12  # the byte that says what the keys are: for the codec to compare
    for at in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            changed = data.copy()
            changed[at] ^= change
            if at != kind:
                refused += use(codec, sealed(changed), list(rows)) > 0
    assert refused > len(data) // 4


@pytest.mark.parametrize("field", FIELDS)
def test_forged_counts_are_survived(field: str) -> None:
    """Each number of the header at its limits, with a checksum that fits."""
    codec, rows = SMALL[0]
    data = made(codec, rows)
    (now,) = struct.unpack_from("=Q", data, FIELDS[field])
    numbers = [
        0,
        1,
        now - 1,
        now + 1,
        now + 4,
        now + 8,
        now * 2,
        len(data),
        2**31,
        2**32,
        2**40,
        2**61,
        2**63,
        2**64 - 8,
    ]
    for number in [*numbers, 2**64 - 1]:
        changed = data.copy()
        struct.pack_into("=Q", changed, FIELDS[field], number % 2**64)
        changed = sealed(changed)
        refused = use(codec, changed, list(rows))
        if field not in ("seed", "probe_max", "value_count") and number != now:
            assert refused, number


def test_random_bytes_are_survived() -> None:
    """Sections of noise behind a header that fits them."""
    rng = random.Random(7)
    for codec, rows in SMALL:
        data = made(codec, rows)
        for _ in range(300):
            changed = data.copy()
            for _ in range(rng.choice([1, 4, 40])):
                changed[rng.randrange(HEADER, len(changed))] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
            use(codec, changed, list(rows))


def test_full_slots_without_a_match_end() -> None:
    """A lookup looks at no more slots than there are, when none is empty."""
    codec, rows = SMALL[0]
    data = made(codec, rows)
    records, values, slots = (
        struct.unpack_from("=Q", data, FIELDS[f])[0] for f in ("records_bytes", "values_bytes", "slot_count")
    )
    at = HEADER + records + (values + 7) // 8 * 8
    for slot in range(slots):
        struct.pack_into("=Q", data, at + 8 * slot, 0xABCDEF << 40 | 1)
    struct.pack_into("=Q", data, FIELDS["probe_max"], slots)
    view = opened(codec, sealed(data))
    assert view.get("zoo") is None
    assert view.longest_prefix("zoo") is None


def test_a_key_that_is_no_text_is_refused() -> None:
    """Bytes that UTF-8 does not have, in a table of texts."""
    codec = Table(key=str)
    data = made(codec, {"ab": 1})
    data[HEADER + 8] = 0xFF
    with pytest.raises(CorruptSegmentError, match="a key is no text"):
        list(opened(codec, data))


def test_keys_cannot_be_made_to_collide() -> None:
    """Not even by who knows the hash: words that would be multiplied by zero, were the seed not in them."""
    odd1, odd2 = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
    for odd in (odd1, odd2, odd1 ^ odd2):
        keys = [struct.pack("=QQ", k, odd) for k in range(20_000)] + [struct.pack("=QQ", odd, k) for k in range(20_000)]
        data = made(Table(key=bytes), dict.fromkeys(keys, 1))
        assert struct.unpack_from("=Q", data, FIELDS["probe_max"])[0] < 400


def test_a_table_that_is_overwritten_while_it_is_read(name: str) -> None:
    """In a store: small ones are refused by their checksum, and each access of a large one looks for itself."""
    codec = Table(key=int, value=str)
    with Writer(name, codec=codec) as writer:
        writer.publish((k, str(k % 100)) for k in range(60_000))
        reader = Reader(name, codec=codec)
        view = reader.get()
        (path,) = _files(name)
        with open(path, "r+b") as file:
            file.seek(HEADER)
            file.write(b"\xff" * 960_000)
        with pytest.raises(CorruptSegmentError, match="publish again"):
            view[1]
        with pytest.raises(CorruptSegmentError):
            list(view)
        writer.publish({1: "one"})
        assert reader.get()[1] == "one"


def _files(name: str) -> list[str]:
    return [
        f"/dev/shm/{file}"
        for file in os.listdir("/dev/shm")
        if file.startswith(f"shmcow.{name}.") and file[-1].isdigit()
    ]
