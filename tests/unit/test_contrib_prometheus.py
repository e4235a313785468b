"""The Prometheus collector: what it says of stores that are well, and of those that are not, to a real parser."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import users
from processes import SHM, Child, Link

import shmcow
from shmcow import JSON, Reader, VersionConflictError, Writer
from shmcow.store import COUNTERS

pytest.importorskip("prometheus_client", reason="needs prometheus-client: pip install 'shmcow[prometheus]'")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from shmcow.contrib import prometheus
from shmcow.contrib.prometheus import StoreCollector
from shmcow.inspect import FeedState

ROOT = Path(__file__).parents[2]


class Scrape:
    """What a registry answers, as a scraper reads it."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, metric: str, store: str, **labels: str) -> float | None:
        """Return the value of a metric, without its prefix; None: there is none."""
        return self._samples.get((f"shmcow_{metric}", frozenset((labels | {"store": store}).items())))

    def status(self, store: str) -> str:
        """Return the one status that a store has."""
        (status,) = [
            dict(labels)["status"]
            for (name, labels), value in self._samples.items()
            if name == "shmcow_store_status" and ("store", store) in labels and value
        ]
        return status

    def of(self, store: str) -> dict[Any, float]:
        """Return all that was said of a store."""
        return {key: value for key, value in self._samples.items() if ("store", store) in key[1]}


def scrape(*names: str, **options: Any) -> Scrape:
    """Scrape some stores once."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(*names, **options))
    return Scrape(generate_latest(registry).decode())


def refuse(_old: Any, new: Any) -> None:
    if new == "bad":
        raise ValueError("no")


# ---- a store that is well ----


def test_metrics_tell_what_has_happened_to_a_store(name: str) -> None:
    """Version, times, bytes, generations, holds and every counter agree with what was done and with inspect."""
    before = time.time()
    writer = Writer(name, initial=[1], retain=2, validators=[refuse], max_total_bytes=1 << 20)
    with writer, Reader(name) as reader, reader.snapshot().hold():
        for n in range(2, 6):
            writer.publish([n])
        writer.rollback()
        with pytest.raises(VersionConflictError):
            writer.publish([7], expected=3)
        with pytest.raises(ValueError, match="no"):
            writer.publish("bad")
        found, report = scrape(name), shmcow.describe(name)
    assert found.status(name) == "ok"
    assert found("current_version", name) == 6
    assert before <= found("created_timestamp_seconds", name) <= found("published_timestamp_seconds", name)
    assert found("published_timestamp_seconds", name) <= time.time()
    assert found("value_bytes", name) == len(msgspec.msgpack.encode([4]))
    assert found("segments_bytes", name) == report.total_bytes > 0
    assert found("segments_limit_bytes", name) == 1 << 20
    assert found("generations", name, state="held") == len(report.generations) == 4  # retained, current and held
    assert found("generations", name, state="building") == found("damaged_generations", name) == 0
    assert (found("held_versions", name), found("oldest_held_version", name)) == (1, 1)
    assert before <= found("oldest_held_published_timestamp_seconds", name) <= time.time()
    readers = ("readers", "readers_behind", "versions_behind", "holders")
    assert [found(metric, name) for metric in readers] == [1, 1, 5, 1]
    expected = {"publishes": 5, "rollbacks": 1, "conflicts": 1, "validation_failures": 1, "reclaimed_versions": 2}
    for counter, value in expected.items():
        assert found(f"{counter}_total", name) == value, counter
    assert found("feed_running", name) is None  # nothing ever fed it


def test_each_counter_of_the_header_is_a_metric(name: str) -> None:
    """With the value that the header has, and words of its own."""
    with Writer(name, initial=1):
        found, counters = scrape(name), shmcow.describe(name).counters
    assert set(COUNTERS) == set(prometheus._COUNTERS)
    for counter, (metric, _) in prometheus._COUNTERS.items():
        assert found(f"{metric}_total", name) == counters[counter], counter


def test_empty_store_has_no_publish_time(name: str) -> None:
    """Before the first version there is none to tell of."""
    with Writer(name):
        found = scrape(name)
    assert (found.status(name), found("current_version", name)) == ("ok", 0)
    assert found("published_timestamp_seconds", name) is None
    assert found("value_bytes", name) is None
    assert found("oldest_held_version", name) is None


def test_reader_that_has_gone_on_is_not_behind(name: str) -> None:
    """A reader counts from its first get() on, and is behind until it has seen the newest version."""
    with Writer(name, initial=1) as writer, Reader(name) as reader:
        assert scrape(name)("readers", name) == 0
        reader.get()
        writer.publish(2)
        found = scrape(name)
        assert [found(metric, name) for metric in ("readers", "readers_behind", "versions_behind")] == [1, 1, 1]
        reader.get()
        found = scrape(name)
        assert [found(metric, name) for metric in ("readers", "readers_behind", "versions_behind")] == [1, 0, 0]
        assert scrape(name, processes=False)("readers", name) is None


def test_names_units_and_documentation_keep_the_conventions(name: str) -> None:
    """Counters end in _total, times in _seconds; each metric has help, and is in the module's table."""
    with Writer(name, initial=1), Reader(name) as reader:
        registry = CollectorRegistry()
        registry.register(StoreCollector(name, readers=[reader]))
        strict = {
            family.name: family
            for family in openmetrics_parser.text_string_to_metric_families(
                openmetrics.generate_latest(registry).decode()
            )
        }
        found = scrape(name, readers=[reader])
    assert set(strict) == set(found.families)
    words = prometheus.__doc__ or ""
    for family in strict.values():
        assert family.documentation.endswith(".")
        assert re.fullmatch(r"shmcow_[a-z_]+", family.name)
        assert family.type in ("counter", "gauge")
        metric = family.name + "_total" * (family.type == "counter")
        assert metric in words or metric.replace("shmcow_feed_", "") in words, metric
        for sample in family.samples:
            assert sample.name == metric
            assert ("timestamp" in metric) <= metric.endswith("_timestamp_seconds")


def test_registering_looks_at_no_store(name: str) -> None:
    """A collector may be registered at import, before there is a store; what it will tell is known by then."""
    collector = StoreCollector(name)
    described = {metric.name: metric.samples for metric in collector.describe()}
    assert not any(described.values())
    assert {metric.name for metric in collector.collect()} == described.keys()
    registry = CollectorRegistry()
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(StoreCollector(name))
    with Writer(name, initial=1):
        assert registry.get_sample_value("shmcow_current_version", {"store": name}) == 1


def test_without_names_all_stores_are_told_of(name: str) -> None:
    """Those that exist when it is scraped."""
    registry = CollectorRegistry()
    registry.register(StoreCollector())
    assert name not in generate_latest(registry).decode()
    with Writer(name, initial=1):
        assert Scrape(generate_latest(registry).decode()).status(name) == "ok"


def test_bad_name_is_refused() -> None:
    """When the collector is made, and not in a scrape."""
    with pytest.raises(ValueError, match="bad store name"):
        StoreCollector("no name")


# ---- stores that are not well ----


class Trouble(NamedTuple):
    """Something to do to a store, and the status that it has then."""

    status: str
    make: Callable[[str], None]
    options: dict[str, Any]


def _patched(offset: int, data: bytes) -> Callable[[str], None]:
    def patch(name: str) -> None:
        fd = os.open(SHM / f"shmcow.{name}", os.O_RDWR)
        os.pwrite(fd, data, offset)
        os.close(fd)

    return patch


TROUBLES = {
    "never made": Trouble("missing", shmcow.destroy, {}),
    "another ABI": Trouble("incompatible", _patched(12, struct.pack("<I", 999)), {}),
    "no store": Trouble("incompatible", _patched(0, b"nonsense"), {}),
    "a damaged header": Trouble("damaged", _patched(64, b"X"), {}),
    "an empty file": Trouble("incompatible", lambda name: os.truncate(SHM / f"shmcow.{name}", 0), {}),
    "being destroyed": Trouble("destroyed", _patched(256, b"\xff" * 8), {}),
    "another owner's": Trouble("foreign", lambda name: None, {"owner": 54321}),  # noqa: ARG005
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_status_says_what_is_wrong_and_the_others_are_told_of(name: str, trouble: Trouble) -> None:
    """A scrape never fails because of a store, and says nothing of it that it cannot know."""
    writer = Writer(name, initial=1)
    writer.close()
    good = f"{name}-good"
    whole = (SHM / f"shmcow.{name}").read_bytes()
    with Writer(good, initial=1) as other:
        trouble.make(name)
        try:
            found = scrape(good, name, **trouble.options)
        finally:
            if trouble.status != "missing":
                (SHM / f"shmcow.{name}").write_bytes(whole)
        other.destroy()
    assert found.status(name) == trouble.status
    assert found("current_version", name) is None
    if not trouble.options:
        assert (found.status(good), found("current_version", good)) == ("ok", 1)


def test_damaged_generation_is_counted(name: str) -> None:
    """An entry that cannot be read costs no scrape; what it would tell is left out."""
    with Writer(name, initial=1):
        _patched(1024 + 600, b"\xff" * 32)(name)  # inside the first entry
        found = scrape(name)
        assert (found.status(name), found("damaged_generations", name)) == ("ok", 1)
        assert found("value_bytes", name) is None
        assert found("published_timestamp_seconds", name) is None


def _look_as(link: Link, user: users.User, name: str) -> None:
    list(StoreCollector(name).collect())  # imports all, where this user may
    user.become()
    link.send(scrape(name).status(name))


@users.needs_root
def test_store_that_may_not_be_read_is_forbidden(name: str, spawn: Callable[..., Child]) -> None:
    """Another user's store, without permission for this one."""
    with Writer(name, initial=1):
        child = spawn(_look_as, users.User(54321, 54321), name)
        assert child.recv() == "forbidden"
        child.done()


def test_scrapes_go_on_while_stores_come_and_go(name: str) -> None:
    """Two threads scrape one collector while its store is published, destroyed and created: no scrape fails."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(name))
    problems: list[BaseException] = []
    statuses: set[str] = set()
    over = threading.Event()

    def look() -> None:
        try:
            while not over.is_set():
                statuses.add(Scrape(generate_latest(registry).decode()).status(name))
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        with Writer(name, initial=1, retain=1) as writer:
            for n in range(5):
                writer.publish(n)
            writer.destroy()
    over.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert statuses <= {"ok", "missing", "destroyed"}


# ---- what is of a process ----


def test_what_this_process_could_not_decode_has_its_pid(name: str) -> None:
    """Readers that were given are told of, together for each store; the others' trouble shows in who is behind."""
    with Writer(name, codec=JSON(), initial={"n": 1}) as writer:
        typed, other = Reader(name, codec=JSON(dict[str, int])), Reader(name)
        mine = {"pid": str(os.getpid())}
        for reader in (typed, other):
            reader.get()
        assert scrape(name, readers=[typed, other])("reader_failures_total", name, **mine) == 0
        writer.publish({"n": "one"})
        for reader in (typed, other):
            reader.get()
        found = scrape(name, readers=[typed, other])
        assert found("reader_failures_total", name, **mine) == 1
        assert found("reader_problem", name, **mine) == 1
        assert scrape(name)("readers_behind", name) == 1
        writer.publish({"n": 3})
        for reader in (typed, other):
            reader.get()
        found = scrape(name, readers=[typed, other])
        assert (found("reader_failures_total", name, **mine), found("reader_problem", name, **mine)) == (1, 0)
        for reader in (typed, other):
            reader.close()


def _scrape_in_child(link: Link, registry: CollectorRegistry) -> None:
    link.send(generate_latest(registry).decode())


def test_forked_child_tells_the_same_of_a_store(name: str, spawn: Callable[..., Child]) -> None:
    """With a registry that it inherited; only what is of a process differs, and carries its pid."""
    with Writer(name, initial=1) as writer, Reader(name) as reader:
        registry = CollectorRegistry()
        registry.register(StoreCollector(name, readers=[reader]))
        reader.get()
        writer.publish(2)
        mine = Scrape(generate_latest(registry).decode()).of(name)
        child = spawn(_scrape_in_child, registry)
        its = Scrape(child.recv()).of(name)
        child.done()

    def of_the_store(found: dict[Any, float]) -> dict[Any, float]:
        return {key: value for key, value in found.items() if not key[0].startswith("shmcow_reader_")}

    assert of_the_store(its) == of_the_store(mine)
    assert {dict(labels)["pid"] for _, labels in its if "pid" in dict(labels)} == {str(child.pid)}


# ---- what feeds a store ----


def test_feed_state_is_told() -> None:
    """Times, counts and whether it runs; what is not known is left out, and so is the source, which may be secret."""
    families = prometheus._Families()
    fed = FeedState(
        source="/etc/app.toml",
        pid=1,
        running=True,
        started_at=100.0,
        last_contact=300.0,
        last_success=200.0,
        contacts=7,
        publishes=2,
        failures=3,
        failures_in_a_row=1,
    )
    families._add_feed("fed", fed)
    families._add_feed("damaged", FeedState(running=True, damaged=True))

    class Once:
        def collect(self) -> Iterator[Any]:
            return iter(families)

    registry = CollectorRegistry()
    registry.register(Once())  # type: ignore[arg-type]
    text = generate_latest(registry).decode()
    found = Scrape(text)
    expected = {
        "running": 1,
        "damaged": 0,
        "interval_seconds": None,
        "started_timestamp_seconds": 100,
        "last_contact_timestamp_seconds": 300,
        "last_success_timestamp_seconds": 200,
        "last_error_timestamp_seconds": None,
        "failures_in_a_row": 1,
        "contacts_total": 7,
        "publishes_total": 2,
        "failures_total": 3,
    }
    assert {metric: found(f"feed_{metric}", "fed") for metric in expected} == expected
    assert (found("feed_damaged", "damaged"), found("feed_failures_total", "damaged")) == (1, None)
    assert "app.toml" not in text


# ---- without the client ----


@pytest.mark.parametrize("old", [False, True], ids=["missing", "too old"])
def test_missing_client_is_said_with_what_to_install(tmp_path: Path, old: bool) -> None:
    """An ImportError with the line for pip, also where there is a client that lacks what is needed."""
    (tmp_path / "prometheus_client").mkdir()
    (tmp_path / "prometheus_client" / "__init__.py").write_text("" if old else "raise ImportError('none here')")
    run = subprocess.run(
        [sys.executable, "-c", "import shmcow.contrib.prometheus"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ImportError: shmcow.contrib.prometheus needs prometheus-client")
    assert last.endswith("pip install 'shmcow[prometheus]'")
