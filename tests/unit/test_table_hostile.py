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

from shmcow import CodecMismatchError, CorruptSegmentError, DecodeError, Reader, StoredPart, Table, TableView, Writer

HEADER = 128
FIELDS = {
    "rows": "16Q",
    "seed": "24Q",
    "homes": "32Q",
    "cell_count": "40Q",
    "records_bytes": "48Q",
    "values_bytes": "56Q",
    "value_count": "64Q",
    "length_count": "72Q",
    "cell_bytes": "96I",
    "distance_max": "100I",
}
SMALL: list[tuple[Table[Any, Any], dict[Any, Any]]] = [
    (Table(key=str), {"": 1, "ab": "zwei", "abc": [3]}),
    (Table(key=bytes), {b"a": None, b"longer than eight": 2.5}),
    (Table(key=int), {1: "one", 2**64 - 1: True, -5: "one"}),
    (Table(key=str), {**{str(k): k % 2 for k in range(9)}, "long " * 60: "x" * 300, "long" * 60: "once"}),
]
KINDS = ["str", "bytes", "int", "records"]


def field(data: bytearray, name: str) -> int:
    """Return a number of a header."""
    number: int = struct.unpack_from("=" + FIELDS[name][-1], data, int(FIELDS[name][:-1]))[0]
    return number


def put(data: bytearray, name: str, number: int) -> None:
    struct.pack_into("=" + FIELDS[name][-1], data, int(FIELDS[name][:-1]), number)


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
    except (CorruptSegmentError, DecodeError, CodecMismatchError):
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


@pytest.mark.parametrize("name", FIELDS)
def test_forged_counts_are_survived(name: str) -> None:
    """Each number of the header at its limits, with a checksum that fits."""
    codec, rows = SMALL[0]
    data = made(codec, rows)
    now, bits = field(data, name), 32 if FIELDS[name].endswith("I") else 64
    numbers = [0, 1, now - 1, now + 1, now + 4, now + 8, now * 2, len(data)]
    numbers += [2**31, 2**32, 2**40, 2**61, 2**63, 2**64 - 8, 2**64 - 1]
    for number in {number % 2**bits for number in numbers}:
        changed = data.copy()
        put(changed, name, number)
        refused = use(codec, sealed(changed), list(rows))
        if name not in ("seed", "homes", "distance_max", "value_count") and number != now:
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


def test_full_cells_without_a_match_end() -> None:
    """A lookup looks at no more cells than there are, when none is empty and each seems to be at home."""
    codec, rows = SMALL[0]
    data = made(codec, rows)
    cells, size = field(data, "cell_count"), field(data, "cell_bytes")
    for cell in range(cells):
        data[HEADER + size * cell] = 1 + cell
    put(data, "homes", 1)
    put(data, "distance_max", cells - 1)
    view = opened(codec, sealed(data))
    assert view.get("zoo") is None
    assert view.longest_prefix("zoo") == ("", 1)


def test_a_distance_that_no_cell_may_have_is_refused() -> None:
    """A lookup that comes upon it does not say that the key is not there."""
    codec, rows = SMALL[0]
    data = made(codec, rows)
    cells, size = field(data, "cell_count"), field(data, "cell_bytes")
    for cell in range(cells):
        data[HEADER + size * cell] = field(data, "distance_max") + 2
    with pytest.raises(CorruptSegmentError, match="publish again"):
        opened(codec, data).get("ab")


@pytest.mark.parametrize("number", [1, 3, 2**32 - 1])
def test_another_format_is_told_with_both_numbers(number: int) -> None:
    """What an older or a newer release wrote is not called damaged; a changed byte is."""
    codec, rows = SMALL[0]
    data = made(codec, rows)
    assert struct.unpack_from("=I", data, 8) == (2,)
    struct.pack_into("=I", data, 8, number)
    with pytest.raises(CorruptSegmentError, match="the checksum of its header is wrong"):
        opened(codec, data)
    with pytest.raises(CodecMismatchError) as caught:
        opened(codec, sealed(data))
    assert str(caught.value) == (
        f"it is a table of format {number}, made by another release of shmcow, and this one reads and writes format 2: "
        "use the same release in all processes, or publish it from its source with this one"
    )


def test_a_key_that_is_no_text_is_refused() -> None:
    """Bytes that UTF-8 does not have, in a table of texts."""
    codec = Table(key=str)
    data = made(codec, {"ab": 1})
    data[data.index(b"ab", HEADER)] = 0xFF
    with pytest.raises(CorruptSegmentError, match="a key is no text"):
        list(opened(codec, data))


def test_keys_cannot_be_made_to_collide() -> None:
    """Not even by who knows the hash: words that would be multiplied by zero, were the seed not in them."""
    odd1, odd2 = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
    for odd in (odd1, odd2, odd1 ^ odd2):
        keys = [struct.pack("=QQ", k, odd) for k in range(20_000)] + [struct.pack("=QQ", odd, k) for k in range(20_000)]
        data = made(Table(key=bytes), dict.fromkeys(keys, 1))
        assert field(data, "distance_max") < 200


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
