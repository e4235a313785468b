"""IP tables against other ways to answer: ipaddress, a naive model, bisect over real rows, and maxminddb."""

from __future__ import annotations

import bisect
import csv
import functools
import gzip
import importlib.util
import ipaddress
import itertools
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmcow import IPTable, IPTableView, StoredPart, ValidationError

DATA = Path(__file__).parent / "data"
FULL = os.environ.get("SHMCOW_DATA")
CLASSES = {4: ipaddress.IPv4Address, 6: ipaddress.IPv6Address}

lean = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def opened(rows: Any) -> IPTableView[Any]:
    codec: IPTable[Any] = IPTable()
    (part,) = codec.encode_parts(rows)
    return codec.decode_parts([StoredPart(memoryview(part.buffers[0]))], freeze=True)


EMPTY_ENOUGH = opened([("0.0.0.0/0", 4), ("::/0", 6)])


# ---- the text of addresses ----


def number_of(text: str) -> tuple[int, int] | None:
    """What ipaddress says: the family and the number, an IPv4 address written as IPv6 as the IPv4 one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (4, int(mapped)) if mapped is not None else (address.version, int(address))


def found_number(text: str, value: tuple[int, int]) -> bool:
    """Whether our parser reads a text as that address: a table of it alone finds it, and its neighbours do not."""
    version, number = value
    alone = CLASSES[version](number)
    table = opened([(alone, "x")])
    return table.get(text) == "x" and text in table and table.network_of(text) == (alone, alone)


def agree(text: str) -> None:
    """Our verdict is that of ipaddress, and so is the number."""
    expected = number_of(text)
    if expected is None:
        with pytest.raises(ValueError, match="is no IP address"):
            EMPTY_ENOUGH.get(text)
    else:
        assert found_number(text, expected), text


PIECES = st.sampled_from(
    [*"0123456789abcdefABCDEFgx", ".", ":", "::", "%", "/", " ", "-", "+", "_", "0", "00", "25", "255", "256", "ffff",
     "10000",
     "1.2.3.4", "::ffff:", "\0", "\n", "٣", "é", "\ud800"]
)  # fmt: skip
ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n))),
    st.integers(0, 2**128 - 1).map(lambda n: str(ipaddress.IPv6Address(n))),
    st.integers(0, 2**128 - 1).map(lambda n: ipaddress.IPv6Address(n).exploded),
    # Mostly zeros, so that there is something to shorten.
    st.lists(st.sampled_from(["0", "", "1", "ff", "0db8", "FFFF", "00000"]), min_size=1, max_size=10).map(":".join),
    st.lists(st.integers(0, 300).map(str), min_size=3, max_size=5).map(".".join),
    st.integers(0, 2**32 - 1).map(lambda n: f"::ffff:{ipaddress.IPv4Address(n)}"),
    st.integers(0, 2**32 - 1).map(lambda n: f"64:ff9b::{ipaddress.IPv4Address(n)}%eth0"),
)


@given(ADDRESSES)
@lean
def test_texts_of_addresses_are_read_as_ipaddress_reads_them(text: str) -> None:
    """Generated addresses, in all their forms."""
    agree(text)


@given(ADDRESSES, st.lists(st.tuples(st.integers(0, 45), st.integers(0, 2), PIECES), min_size=1, max_size=3))
@lean
def test_mutated_texts_get_the_same_verdict(text: str, edits: list[tuple[int, int, str]]) -> None:
    """Addresses with something inserted, replaced or removed."""
    for at, removed, piece in edits:
        at = min(at, len(text))
        text = text[:at] + piece + text[at + removed :]
    agree(text)


@given(st.lists(PIECES, max_size=12).map("".join))
@lean
def test_any_text_gets_the_same_verdict(text: str) -> None:
    """Texts put together from what addresses are made of."""
    agree(text)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "...", "1", "1.2.3", "1.2.3.4", "1.2.3.4.", ".1.2.3.4", "1.2.3.4.5", "1..2.3", "00.0.0.0", "0.0.0.00",
        "01.2.3.4", "255.255.255.255", "256.1.1.1", "1.1.1.999", "1.1.1.1111", "1.2.3.4 ", "1.2.3.-4", "1.2.3.+4",
        "1.2.3.4%eth0", "0x1.2.3.4", "1.2.3.1e1", "١.2.3.4",
        ":", "::", ":::", "::::", "1::", "::1", "1::1", "::1::", ":1", "1:", ":1:2:3:4:5:6:7", "1:2:3:4:5:6:7:",
        "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3::4:5:6:7:8", "1:2:3:4:5:6:7:8:9",
        "1:2:3:4:5:6:7:8::",
        "::12345", "::0000", "::00000", "::g", "::1.2.3.4", "::1.2.3", "::01.2.3.4", "1.2.3.4::", "::1.2.3.4:5",
        "1:2:3:4:5:6:1.2.3.4",
        "1:2:3:4:5:6:7:1.2.3.4", "::2:3:4:5:6:7:1.2.3.4", "::ffff:1.2.3.4", "::FFFF:0102:0304", "::fffff:1.2.3.4",
        "fe80::1%eth0", "fe80::1%", "fe80::1%%", "fe80::1%a%b", "fe80::1%a/b", "%", "%a",
        "::%a", "fe80::1%25", "fe80::%é", "::1/64",
        "[::1]", "::1]", "::1 ", " ::1", "::1\n", "::\0", "1" * 100, ":" * 100, "1:" * 50, "1." * 50,
    ],
)  # fmt: skip
def test_corner_cases_of_texts(text: str) -> None:
    """Leading zeros, short forms, scope ids, IPv4 in IPv6, too many and too few parts."""
    agree(text)


# ---- nesting ----

LARGE = bytes(270_000)  # so many words of values that references take 32 bits
ALONE = ipaddress.ip_network("203.0.113.77/32")


class Row(NamedTuple):
    version: int
    first: int
    last: int
    value: Any

    def covers(self, version: int, number: int) -> bool:
        return self.version == version and self.first <= number <= self.last


def networks(version: int) -> st.SearchStrategy[Any]:
    """Networks that nest often: their bits are few, or follow a common prefix."""
    bits = 32 if version == 4 else 128
    heads = st.sampled_from([0, 2**bits - 1, 0x0A0A0A0A << (bits - 32), 0x20010DB8 << (bits - 32)])
    return st.tuples(heads, st.integers(0, bits), st.integers(0, 7)).map(
        lambda drawn: ipaddress.ip_network(
            (
                (drawn[0] ^ (drawn[2] << (bits - drawn[1]) if drawn[1] >= 3 else 0)) % 2**bits
                >> (bits - drawn[1])
                << (bits - drawn[1]),
                drawn[1],
            )
        )
    )


@given(
    st.dictionaries(st.one_of(networks(4), networks(6)), st.integers(0, 9), max_size=40),
    st.randoms(use_true_random=False),
    st.booleans(),
)
@lean
def test_nested_networks_are_those_of_a_naive_model(rows: dict[Any, Any], rng: random.Random, wide: bool) -> None:
    """The longest prefix that covers an address, found by looking at all of them; with narrow and wide references."""
    if wide:
        rows[ALONE] = LARGE
    order = [*rows.items()]
    rng.shuffle(order)
    table = opened(order)
    assert len(table) == len(rows)
    for network in rows:
        low, high = int(network.network_address), int(network.broadcast_address)
        for number in {low, high, low - 1, high + 1, (low + high) // 2}:
            if not 0 <= number < 2**network.max_prefixlen:
                continue
            ip = CLASSES[network.version](number)
            if network.version == 6 and ip.ipv4_mapped is not None:
                continue
            around = [other for other in rows if other.version == network.version and ip in other]
            best = max(around, key=lambda other: other.prefixlen, default=None)
            assert table.get(ip) == (None if best is None else rows[best])
            if best is not None:
                assert table.network_of(str(ip)) == (best.network_address, best.broadcast_address)


STEPS = st.tuples(st.integers(0, 34), st.integers(1, 3), st.sampled_from([0, 0, 0, 1, -1]))


@given(
    st.sampled_from([4, 6]),
    st.sampled_from([0, 1, 16, 63, 64, 65, 96]),
    st.lists(STEPS, min_size=1, max_size=80),
    st.booleans(),
)
@lean
def test_starts_are_exact_however_far_apart(version: int, up: int, steps: list[Any], wide: bool) -> None:
    """Ranges side by side whose starts differ by little, by much, by powers of two, and by a few more or less."""
    cls, top = CLASSES[version], 2 ** (32 if version == 4 else 128)
    start = 0 if version == 4 else 0x2001 << 112
    starts = [start]
    for bits, times, more in steps:
        start += max(1, (times << bits + (up if version == 6 else up % 8)) + more)
        if start >= top:
            break
        starts.append(start)
    rows: list[Any] = [
        (cls(first), cls(after - 1), k) for k, (first, after) in enumerate(itertools.pairwise(starts)) if k % 3 != 2
    ]
    table = opened([*rows, ("::7" if version == 4 else "0.0.0.7", LARGE)] if wide else rows)
    numbers = sorted({n for first in starts for n in (first - 1, first, first + 1, first + 77) if 0 <= n < top})
    expected = []
    for number in numbers:
        k = bisect.bisect_right(starts, number) - 1
        inside = 0 <= k < len(starts) - 1 and k % 3 != 2
        expected.append(k if inside else None)
        if inside:
            assert table.network_of(cls(number)) == (cls(starts[k]), cls(starts[k + 1] - 1))
    assert table.get_many([cls(number).packed for number in numbers]) == expected
    assert [table.get(str(cls(number))) for number in numbers] == expected


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), max_size=8))
@lean
def test_ranges_nest_or_are_refused(ranges: list[list[int]]) -> None:
    """Exactly those that cross another, or are there twice, are refused; all others answer as the smallest one."""
    base = 2**32 - 31
    rows = [(ipaddress.IPv4Address(base + a), ipaddress.IPv4Address(base + b), n) for n, (a, b) in enumerate(ranges)]
    clash = any(
        (a, b) == (c, d) or a < c <= b < d or c < a <= d < b for n, (a, b) in enumerate(ranges) for c, d in ranges[:n]
    )
    if clash:
        with pytest.raises(ValidationError, match=r"overlap|same range"):
            opened(rows)
        return
    table = opened(rows)
    for number in range(31):
        around = [(b - a, n) for n, (a, b) in enumerate(ranges) if a <= number <= b]
        assert table.get(ipaddress.IPv4Address(base + number)) == (min(around)[1] if around else None)


# ---- real rows ----


class Bisect:
    """Answers by bisect over the sorted rows: the last that begins before, or one that it lies in."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: list[Row] = []
        self.around: list[int] = []
        self.dropped = 0
        stack: list[int] = []
        for row in sorted(rows, key=lambda row: (row.first, -row.last)):
            while stack and self.rows[stack[-1]].last < row.first:
                stack.pop()
            if stack and (row.last > self.rows[stack[-1]].last or row[:3] == self.rows[stack[-1]][:3]):
                self.dropped += 1  # it overlaps without nesting
                continue
            self.around.append(stack[-1] if stack else -1)
            stack.append(len(self.rows))
            self.rows.append(row)
        self.starts = [row.first for row in self.rows]

    def find(self, number: int) -> Row | None:
        k = bisect.bisect_right(self.starts, number) - 1
        while k >= 0 and self.rows[k].last < number:
            k = self.around[k]
        return self.rows[k] if k >= 0 else None


@functools.cache
def real(version: int, full: bool) -> tuple[Bisect, IPTableView[Any]]:
    """The real rows of a family, all of them or the sample, and a table of them."""
    cls = CLASSES[version]
    path = Path(FULL or "") / f"geo-whois-asn-country-ipv{version}.csv.gz" if full else DATA / f"ipv{version}.csv"
    data = gzip.decompress(path.read_bytes()) if full else path.read_bytes()
    lines = csv.reader(data.decode().splitlines())
    texts = {Row(version, int(cls(a)), int(cls(b)), code): (a, b, code) for a, b, code in lines}
    model = Bisect(texts)
    return model, opened(texts[row] for row in model.rows)


SIZES = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not FULL, reason="set SHMCOW_DATA to the folder of the full files"))
    if FULL or not os.environ.get("SHMCOW_NO_SKIPS")
    else None,
]
SIZES = [size for size in SIZES if size is not None]


@pytest.mark.parametrize("full", SIZES)
@pytest.mark.parametrize("version", [4, 6])
def test_real_rows_answer_as_a_bisect_does(version: int, full: bool) -> None:
    """Each range's first, last, first - 1, last + 1, and random addresses, by text and packed, alone and together."""
    model, table = real(version, full)
    cls, top = CLASSES[version], 2 ** (32 if version == 4 else 128)
    rng = random.Random(version)
    numbers = {n for row in model.rows for n in (row.first, row.last, row.first - 1, row.last + 1) if 0 <= n < top}
    for _ in range(1_000_000 if full else 4_000):
        row = rng.choice(model.rows)
        numbers.add(rng.randrange(top) if rng.random() < 0.5 else rng.randint(row.first, row.last))
    packed = [number.to_bytes(4 if version == 4 else 16, "big") for number in numbers]
    answers = [row.value if (row := model.find(number)) is not None else None for number in numbers]
    assert table.get_many(packed) == answers
    assert table.get_many(str(cls(number)) for number in numbers) == answers
    for number, answer in zip(numbers, answers, strict=True):
        if full and rng.random() > 0.2:
            continue
        text = str(cls(number))
        assert table.get(text) == answer
        assert (text in table) == (answer is not None)
        row = model.find(number)
        if row is not None:
            assert table.network_of(text) == (cls(row.first), cls(row.last))
    large = ("::7" if version == 4 else "0.0.0.7", LARGE)
    wide = opened([*((cls(row.first), cls(row.last), row.value) for row in model.rows), large])
    assert wide.get_many(packed) == answers
    print(f"IPv{version}: {len(model.rows):,} rows ({model.dropped} that clash left out), {len(numbers):,} addresses")


@pytest.mark.parametrize("version", [4, 6])
def test_real_rows_come_out_again(version: int) -> None:
    """Iterating gives the rows in order, and a table of them is the same table."""
    model, table = real(version, False)
    assert [(int(first), int(last), value) for first, last, value in table] == [row[1:] for row in model.rows]
    assert opened(table.to_dict()) == table


def test_real_rows_with_a_clash_are_refused() -> None:
    """What the full files have, too: a range that overlaps two others."""
    rows = [
        ("5.182.128.0", "5.182.130.255", "DK"),
        ("5.182.130.8", "5.182.130.15", "DE"),
        ("5.182.130.120", "5.182.131.255", "DK"),
    ]
    with pytest.raises(
        ValidationError, match=r"row 1 \(5.182.128.0-5.182.130.255\) and row 3 \(5.182.130.120-5.182.131.255\) overlap"
    ):
        opened(rows)


def test_real_rows_answer_as_maxminddb_does(tmp_path: Path) -> None:
    """An MMDB file of the same rows, both families in one, read by maxminddb."""
    missing = [module for module in ("maxminddb", "mmdb_writer", "netaddr") if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: pip install maxminddb mmdb-writer")
    import maxminddb
    import mmdb_writer
    import netaddr

    writer = mmdb_writer.MMDBWriter(ip_version=6, ipv4_compatible=True)
    rows: list[Row] = []
    for version in (4, 6):
        rows += real(version, False)[0].rows  # a range before what is nested in it, which so wins
    for row in rows:
        cls = CLASSES[row.version]
        cidrs = ipaddress.summarize_address_range(cls(row.first), cls(row.last))
        writer.insert_network(netaddr.IPSet([str(cidr) for cidr in cidrs]), row.value)
    writer.to_db_file(str(tmp_path / "sample.mmdb"))
    table = opened((CLASSES[row.version](row.first), CLASSES[row.version](row.last), row.value) for row in rows)
    rng = random.Random(7)
    with maxminddb.open_database(tmp_path / "sample.mmdb") as reader:
        for row in rows:
            cls, top = CLASSES[row.version], 2 ** (32 if row.version == 4 else 128)
            for number in (
                row.first,
                row.last,
                (row.first - 1) % top,
                (row.last + 1) % top,
                rng.randint(row.first, row.last),
            ):
                text = str(cls(number))
                assert table.get(text) == reader.get(text), text
