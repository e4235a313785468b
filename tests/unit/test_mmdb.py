"""MMDB: MaxMind DB files, looked up in place."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import maxminddb
import mmdb_writer
import netaddr
import pytest

import shmcow
from shmcow import MMDB, DecodeError, IPTable, MMDBView, Reader, StoredPart, ValidationError, Writer


def make(path: Path, **countries: str) -> bytes:
    """Make a MaxMind DB file of networks; underscores in their names stand for dots."""
    tree = mmdb_writer.MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Test", description="ours")
    for network, country in countries.items():
        tree.insert_network(netaddr.IPSet([network.replace("_", ".").removeprefix("n") + "/8"]), {"country": country})
    tree.to_db_file(str(path))
    return path.read_bytes()


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    return make(tmp_path / "a.mmdb", n1_0_0_0="AU", n2_0_0_0="FR")


@pytest.fixture
def writer(name: str) -> Iterator[Writer[Any]]:
    with Writer(name, codec=MMDB()) as made:
        yield made


def test_lookups_are_maxminddbs(name: str, writer: Writer[Any], data: bytes, tmp_path: Path) -> None:
    """The same answers as from the file, from bytes and from a path, and a new version replaces it."""
    writer.publish(data)
    reader = Reader(name, codec=MMDB())
    view = reader.get()
    assert isinstance(view, MMDBView)
    with maxminddb.open_database(tmp_path / "a.mmdb") as database:
        for address in ("1.2.3.4", "2.2.2.2", "3.3.3.3", "::1.2.3.4"):
            assert view.get(address) == database.get(address)
            assert view.get_with_prefix_len(address) == database.get_with_prefix_len(address)
        assert view.metadata().database_type == database.metadata().database_type == "Test"
        assert list(view) == list(database)
    assert "1.2.3.4" in view
    assert "3.3.3.3" not in view
    make(tmp_path / "b.mmdb", n3_0_0_0="US")
    assert writer.publish(tmp_path / "b.mmdb") == 2
    assert writer.publish(str(tmp_path / "b.mmdb")) == 3
    assert reader.get().get("3.3.3.3") == {"country": "US"}
    assert view.get("3.3.3.3") is None
    assert Reader(name).get().get("3.3.3.3") == {"country": "US"}


def test_a_view_holds_its_version(name: str, writer: Writer[Any], data: bytes) -> None:
    """As long as somebody has the view."""
    writer.publish(data)
    reader = Reader(name, codec=MMDB())
    view = reader.get()
    for _ in range(6):
        writer.publish(data)
    reader.get()
    assert [g.version for g in shmcow.describe(name).generations if g.marked] == [7, 1]
    del view
    gc.collect()
    writer.reclaim()
    assert [g.version for g in shmcow.describe(name).generations] == [7, 6, 5, 4, 3]


def test_a_segment_whose_name_has_gone_is_read_from_its_memory(data: bytes) -> None:
    """A version may be forced out between hold and decode: it is mapped still."""
    view = MMDB().decode_parts([StoredPart(memoryview(data), path="/dev/shm/shmcow.no-such-segment")])
    assert view.get("1.2.3.4") == {"country": "AU"}


@pytest.mark.parametrize("bad", [b"", b"x" * 1000, b"\xab\xcd\xefMaxMind.com", 3, {"a": 1}, "/no/such/file", Path("/")])
def test_what_is_no_mmdb_is_refused(name: str, writer: Writer[Any], bad: Any) -> None:
    """Nothing is published."""
    with pytest.raises(ValidationError, match=r"MaxMind DB|mmdb|raw"):
        writer.publish(bad)
    assert shmcow.describe(name).version == 0


def test_every_truncation_is_refused(data: bytes) -> None:
    """A file that was cut off says so."""
    for end in range(0, len(data) - 1, 7):
        with pytest.raises(DecodeError, match="mmdb"):
            MMDB().decode_parts([StoredPart(memoryview(data[:end]))])


def test_views_are_shared_and_say_so(name: str, writer: Writer[Any], data: bytes) -> None:
    """No close(), no pickling, no copy; the codec compares and pickles."""
    writer.publish(data)
    view = Reader(name, codec=MMDB()).get()
    assert not hasattr(view, "close")
    assert repr(view) == f"<MMDBView, {len(data)} bytes>"
    with pytest.raises(TypeError, match="send its Snapshot"):
        pickle.dumps(view)
    with pytest.raises(TypeError, match="no plain copy"):
        copy.deepcopy(view)
    assert copy.copy(view) is view
    assert writer.publish(view) == 2
    assert Reader(name).get().get("1.2.3.4") == {"country": "AU"}
    assert pickle.loads(pickle.dumps(MMDB())) == MMDB()
    assert hash(MMDB()) == hash(MMDB())
    assert MMDB() != 3
    assert repr(MMDB()) == "MMDB()"


def test_without_maxminddb_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """A reader that lacks it goes on with what it has, and says why."""
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    with pytest.raises(DecodeError, match=r"pip install 'shmcow\[mmdb\]'"):
        MMDB().decode_parts([StoredPart(memoryview(data))])


def test_the_payload_can_be_opened_by_any_reader_of_such_files(name: str, writer: Writer[Any], data: bytes) -> None:
    """It lies at the start of its file, and what follows does not disturb."""
    writer.publish(data)
    (segment,) = [entry for entry in os.listdir("/dev/shm") if entry.startswith(f"shmcow.{name}.") and entry[-1] == "1"]
    with maxminddb.open_database(f"/dev/shm/{segment}") as database:
        assert database.get("2.0.0.1") == {"country": "FR"}


@pytest.mark.usefixtures("data")
def test_rows_of_a_file_become_a_table(tmp_path: Path) -> None:
    """rows_from_mmdb streams networks and records; what the file repeats for IPv4 under IPv6 is left out."""
    path = tmp_path / "a.mmdb"
    rows = list(IPTable.rows_from_mmdb(path, value=lambda record: record["country"]))
    assert [(str(network), country) for network, country in rows] == [("1.0.0.0/8", "AU"), ("2.0.0.0/8", "FR")]
    codec = IPTable(str)
    (part,) = codec.encode_parts(IPTable.rows_from_mmdb(str(path), value=lambda record: record["country"]))
    table = codec.decode_parts([StoredPart(memoryview(part.buffers[0]))])
    assert (table["1.2.3.4"], table.get("::ffff:2.0.0.1"), table.get("3.0.0.0")) == ("AU", "FR", None)
    assert [record for _, record in IPTable.rows_from_mmdb(path)] == [{"country": "AU"}, {"country": "FR"}]


@pytest.mark.usefixtures("data")
def test_rows_of_a_bad_file_say_so(tmp_path: Path) -> None:
    """No file, something else, and a value= that raises."""
    with pytest.raises(FileNotFoundError):
        IPTable.rows_from_mmdb(tmp_path / "none.mmdb")
    (tmp_path / "else.mmdb").write_bytes(b"x" * 100)
    with pytest.raises(ValidationError, match="is no MaxMind DB file"):
        IPTable.rows_from_mmdb(tmp_path / "else.mmdb")
    rows = IPTable.rows_from_mmdb(tmp_path / "a.mmdb", value=lambda record: record["city"])
    with pytest.raises(ValidationError, match=r"a.mmdb at 1.0.0.0/8 cannot be read: KeyError"):
        next(rows)
