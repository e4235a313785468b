"""Metrics of stores for Prometheus (extra ``prometheus``: prometheus-client).

In every worker, beside its other metrics::

    from prometheus_client import REGISTRY
    from shmcow.contrib.prometheus import StoreCollector

    REGISTRY.register(StoreCollector("app-config", "app-flags"))

Under a server that forks its workers a scrape reaches any one of them. That is no trouble here: what is said of a store
lies in shared memory and in the kernel, and is the same whoever is asked; ``PROMETHEUS_MULTIPROC_DIR`` is not needed
(and where other metrics need it, register this collector beside the ``MultiProcessCollector``, in the same registry).

What only a process knows about itself is there for the ``readers`` that were given, and carries its ``pid`` as a label:
``shmcow_reader_failures_total`` (versions that this process could not decode) and ``shmcow_reader_problem``. With many
workers these show whoever was scraped last; to see that *some* worker is stuck, whichever, use
``shmcow_readers_behind``: who cannot decode the newest version stays behind, and the kernel knows.

Ages are left to the query, as usual: ``time() - shmcow_published_timestamp_seconds``.

===============================================  =====================================================================
Metric (each has the label ``store``)            What it is
===============================================  =====================================================================
shmcow_store_status{status}                      1 for what is the case: ok, missing, destroyed, forbidden, foreign,
                                                 incompatible, damaged, error; 0 for the others
shmcow_current_version                           the version that readers get; 0 before the first
shmcow_created_timestamp_seconds                 when the store was created; when it changes, versions start anew
shmcow_published_timestamp_seconds               when the current version was published
shmcow_value_bytes                               payload of the current version
shmcow_segments_bytes                            all versions together, in shared memory
shmcow_segments_limit_bytes                      the most that there may be (absent without a limit)
shmcow_generations{state}                        entries of the generation table: building, ready, held (published),
                                                 condemned, doomed
shmcow_damaged_generations                       entries that cannot be read
shmcow_held_versions                             versions that any process holds
shmcow_oldest_held_version                       the oldest of them (absent without any)
shmcow_oldest_held_published_timestamp_seconds   when that one was published
shmcow_readers                                   processes that read the store
shmcow_readers_behind                            how many of them hold an older version than the current one, or
                                                 returned one last (an idle reader catches up when it is asked)
shmcow_versions_behind                           how many versions the last of them is behind
shmcow_holders                                   processes that hold any version
shmcow_publishes_total                           versions published, but for rollbacks
shmcow_rollbacks_total                           versions published that repeat an earlier one
shmcow_conflicts_total                           ``expected=`` was not the current version
shmcow_validation_failures_total                 values that were refused before they were published
shmcow_reclaimed_versions_total                  versions that were reclaimed
shmcow_given_up_versions_total                   retained versions that went early, to make room
shmcow_forced_versions_total                     held versions whose names went because the table was full
shmcow_recovered_generations_total               generations that a dead writer had left half-done
shmcow_swept_objects_total                       names in shared memory that belonged to nothing
shmcow_feed_…                                    of what feeds the store (absent if nothing ever did): running,
                                                 damaged (it cannot be read: the rest is then absent),
                                                 interval_seconds, started_timestamp_seconds,
                                                 last_contact_timestamp_seconds, last_success_timestamp_seconds,
                                                 last_error_timestamp_seconds, failures_in_a_row, contacts_total,
                                                 publishes_total, failures_total
shmcow_reader_failures_total{pid}                versions that a reader of this process could not use
shmcow_reader_problem{pid}                       1 while a reader of this process does not return the newest version
===============================================  =====================================================================

The readers and holders are those that the scraped process may look into: of the same user (root: all), in its pid
namespace. The held versions are all there are: the kernel tells of them whoever has them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from shmcow import errors, inspect
from shmcow.segments import check_name
from shmcow.store import COUNTERS, STATES

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise ImportError(
        f"shmcow.contrib.prometheus needs prometheus-client 0.15 or later ({exc}): pip install 'shmcow[prometheus]'"
    ) from exc

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from shmcow import Reader
    from shmcow.inspect import Activity, FeedState, StoreReport

__all__ = ["StoreCollector"]

_STATUSES: Final = ("ok", "missing", "destroyed", "forbidden", "foreign", "incompatible", "damaged", "error")
_GAUGES: Final = {
    "current_version": "The version that readers get; 0 before the first.",
    "created_timestamp_seconds": "When the store was created.",
    "published_timestamp_seconds": "When the current version was published.",
    "value_bytes": "Payload of the current version.",
    "segments_bytes": "All versions together, in shared memory.",
    "segments_limit_bytes": "The most that all versions together may take.",
    "damaged_generations": "Entries of the generation table that cannot be read.",
    "held_versions": "Versions that any process holds.",
    "oldest_held_version": "The oldest version that any process holds.",
    "oldest_held_published_timestamp_seconds": "When the oldest version that any process holds was published.",
    "readers": "Processes that read the store, of those that may be looked into.",
    "readers_behind": "How many of these hold, or returned last, an older version than the current one.",
    "versions_behind": "How many versions the last of these is behind.",
    "holders": "Processes that hold any version, of those that may be looked into.",
    "feed_running": "Whether a process feeds the store.",
    "feed_damaged": "Whether what it says of itself cannot be read.",
    "feed_interval_seconds": "How often that process has promised to look at the source.",
    "feed_started_timestamp_seconds": "When that process began.",
    "feed_last_contact_timestamp_seconds": "When the source was last looked at.",
    "feed_last_success_timestamp_seconds": "When the source was last found good.",
    "feed_last_error_timestamp_seconds": "When the source was last found bad.",
    "feed_failures_in_a_row": "Failures since the last success.",
}
_COUNTERS: Final = {  # header counter: (metric, help)
    "published": ("publishes", "Versions published, but for rollbacks."),
    "rolled_back": ("rollbacks", "Versions published that repeat an earlier one."),
    "conflicts": ("conflicts", "Times that expected= was not the current version."),
    "refused": ("validation_failures", "Values that were refused before they were published."),
    "reclaimed": ("reclaimed_versions", "Versions that were reclaimed."),
    "given_up": ("given_up_versions", "Retained versions that went early, to make room."),
    "forced": ("forced_versions", "Held versions whose names went because the table was full."),
    "recovered": ("recovered_generations", "Generations that a dead writer had left half-done."),
    "swept": ("swept_objects", "Names in shared memory that belonged to nothing."),
}
_FEED_COUNTERS: Final = {
    "contacts": "Looks at the source.",
    "publishes": "Versions published from the source.",
    "failures": "Looks that failed.",
}


class StoreCollector(Collector):
    """Tells Prometheus about stores, whichever process is scraped; see the module for the metrics.

    Args:
        names: of the stores; they need not exist yet. None: all that are on the machine when it is scraped.
        readers: readers of this process: what they could not decode is told too, with the process's pid as a label.
        owner: the uid whose stores these must be: that of another user has the status "foreign", and no metrics.
            /dev/shm is writable for everybody.
        processes: whether to look for readers and holders, which looks at every process of this user once a scrape.

    Raises:
        ValueError: a bad name.

    Concurrency: any number of threads may scrape at the same time. A scrape reads only, takes no lock and never fails
    because of a store: what cannot be read has a status that says so. A forked child may go on with it.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> from shmcow import Writer
        >>> with Writer("doc-metrics", initial={"n": 0}) as w:
        ...     registry = CollectorRegistry()
        ...     registry.register(StoreCollector("doc-metrics"))
        ...     print(registry.get_sample_value("shmcow_publishes_total", {"store": "doc-metrics"}))
        ...     w.destroy()
        1
    """

    def __init__(
        self, *names: str, readers: Iterable[Reader[Any]] = (), owner: int | None = None, processes: bool = True
    ) -> None:
        self._names = tuple(dict.fromkeys(check_name(name) for name in names))
        self._readers = tuple(readers)
        self._owner = owner
        self._processes = processes

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without samples: registering looks at no store."""
        return iter(_Families())

    def collect(self) -> Iterator[Metric]:
        """Look at the stores, and yield the metrics."""
        families = _Families()
        there = []
        for name in self._names or inspect.list_stores():
            status, report = self._look(name)
            if status == "missing" and not self._names:
                continue  # it has gone since it was listed
            families.add_status(name, status)
            if report is not None:
                families.add_store(name, report)
                there.append(name)
        if self._processes:
            for activity in _activity(there):
                families.add_processes(activity)
        families.add_readers(self._readers)
        return iter(families)

    def _look(self, name: str) -> tuple[str, StoreReport | None]:
        """Return a store's status, and what there is to know about it if that is good."""
        try:
            report = inspect.describe(name)
        except (errors.ShmcowError, OSError) as exc:
            return _status_of(exc), None
        if report.version < 0:
            return "destroyed", None
        if self._owner not in (None, report.uid):
            return "foreign", None
        return "ok", report


def _status_of(exc: Exception) -> str:
    match exc:
        case errors.StoreNotFoundError():
            return "missing"
        case errors.StoreDestroyedError():
            return "destroyed"
        case PermissionError():
            return "forbidden"
        case errors.IncompatibleStoreError():
            return "incompatible"
        case errors.CorruptSegmentError():
            return "damaged"
        case _:
            return "error"


def _activity(names: list[str]) -> list[Activity]:
    """Tell what goes on in stores, for those that can be read still."""
    if not names:
        return []
    try:
        return [found for found in inspect.activity(names) if found.epoch]
    except OSError:  # no /proc
        return []


class _Families:
    """The metrics of one scrape; to iterate over when all are in."""

    def __init__(self) -> None:
        labels = ["store"]
        self._status = GaugeMetricFamily(
            "shmcow_store_status", "1 for what is the case with the store.", labels=[*labels, "status"]
        )
        self._generations = GaugeMetricFamily(
            "shmcow_generations", "Entries of the generation table.", labels=[*labels, "state"]
        )
        self._gauges = {
            name: GaugeMetricFamily(f"shmcow_{name}", words, labels=labels) for name, words in _GAUGES.items()
        }
        counters = {name: _COUNTERS.get(name, (name, f"The counter {name} of the store.")) for name in COUNTERS}
        counters |= {f"feed {name}": (f"feed_{name}", words) for name, words in _FEED_COUNTERS.items()}
        self._counters = {
            name: CounterMetricFamily(f"shmcow_{metric}", words, labels=labels)
            for name, (metric, words) in counters.items()
        }
        self._reader_failures = CounterMetricFamily(
            "shmcow_reader_failures",
            "Versions that the readers of this process could not use.",
            labels=[*labels, "pid"],
        )
        self._reader_problem = GaugeMetricFamily(
            "shmcow_reader_problem",
            "Whether a reader of this process does not return the newest version.",
            labels=[*labels, "pid"],
        )

    def __iter__(self) -> Iterator[Metric]:
        yield from (self._status, *self._gauges.values(), self._generations, *self._counters.values())
        yield from (self._reader_failures, self._reader_problem)

    def _set(self, store: str, gauges: Mapping[str, float | None]) -> None:
        for name, value in gauges.items():
            if value is not None:
                self._gauges[name].add_metric([store], value)

    def add_status(self, store: str, status: str) -> None:
        for each in _STATUSES:
            self._status.add_metric([store, each], each == status)

    def add_store(self, store: str, report: StoreReport) -> None:
        """Add what lies in shared memory."""
        current = next((item for item in report.generations if item.current), None)
        held = [item for item in report.generations if item.marked]
        oldest = min(held, key=lambda item: item.version, default=None)
        self._set(
            store,
            {
                "current_version": report.version,
                "created_timestamp_seconds": report.created_at.timestamp(),
                "published_timestamp_seconds": _published(current),
                "value_bytes": None if current is None or current.damaged else current.size_bytes,
                "segments_bytes": report.total_bytes,
                "segments_limit_bytes": report.max_total_bytes or None,
                "damaged_generations": sum(item.damaged for item in report.generations),
                "held_versions": len(held),
                "oldest_held_version": None if oldest is None else oldest.version,
                "oldest_held_published_timestamp_seconds": _published(oldest),
            },
        )
        states = Counter(item.state for item in report.generations)
        for state in dict.fromkeys([*STATES[1:], *states]):  # a free entry is none; an unknown one is told as it is
            self._generations.add_metric([store, state], states[state])
        for name, value in report.counters.items():
            self._counters[name].add_metric([store], value)
        self._add_feed(store, report.feed)

    def _add_feed(self, store: str, feed: FeedState | None) -> None:
        if feed is None:
            return
        self._set(store, {"feed_running": feed.running, "feed_damaged": feed.damaged})
        if feed.damaged:
            return
        self._set(
            store,
            {
                "feed_interval_seconds": feed.every,
                "feed_started_timestamp_seconds": feed.started_at,
                "feed_last_contact_timestamp_seconds": feed.last_contact,
                "feed_last_success_timestamp_seconds": feed.last_success,
                "feed_last_error_timestamp_seconds": feed.last_error_at,
                "feed_failures_in_a_row": feed.failures_in_a_row,
            },
        )
        for name in _FEED_COUNTERS:
            self._counters[f"feed {name}"].add_metric([store], getattr(feed, name))

    def add_processes(self, activity: Activity) -> None:
        """Add what the kernel tells of the processes that read a store."""
        self._set(
            activity.name,
            {
                "readers": activity.readers,
                "readers_behind": activity.lagging,
                "versions_behind": activity.behind,
                "holders": sum(holding.pid != 0 for holding in activity.holds),
            },
        )

    def add_readers(self, readers: Iterable[Reader[Any]]) -> None:
        """Add what this process knows about its own readers, together for each store."""
        failures: Counter[str] = Counter()
        problems: Counter[str] = Counter()
        for reader in readers:
            failures[reader.name] += reader.failures
            problems[reader.name] += reader.problem is not None
        pid = str(os.getpid())
        for store, count in failures.items():
            self._reader_failures.add_metric([store, pid], count)
            self._reader_problem.add_metric([store, pid], problems[store] > 0)


def _published(generation: inspect.Generation | None) -> float | None:
    if generation is None or generation.published_at is None:
        return None
    return generation.published_at.timestamp()
