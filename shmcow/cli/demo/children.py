"""The processes of the demo: workers that read, a writer, a writer that dies, and the rival.

Each writes what it sees to its standard output, one JSON object a line, and ends when its standard input ends: so none
outlives the demo, however that dies.
"""

from __future__ import annotations

import collections
import itertools
import json
import logging
import mmap
import os
import select
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from shmcow import Reader, Snapshot, StoreDestroyedError, StoreNotFoundError, Writer, WriterBusyError, segments
from shmcow.errors import NotPublishedError

__all__ = ["BALLAST", "BURST", "ELEMENTS", "SOURCE", "first_value", "main"]

SOURCE: Final = "shmcow demo"
ELEMENTS: Final = 64
BALLAST: Final = 8 << 20  # bytes that the dying writer publishes one half of

_PEEK: Final = 0.001  # seconds between two looks of a worker
_REPORT: Final = 0.1
_BATCH: Final = 2000
_BATCHES: Final = 5
BURST: Final = 40
_BURST_EVERY: Final = 25  # publishes


def first_value() -> dict[str, Any]:
    """Return what the demo publishes first: ``stamps`` says in every element which publish it belongs to."""
    return {
        "banner": "nobody has set me yet",
        "timeout": 2.5,
        "hosts": ["db-1", "db-2"],
        "clock": time.monotonic_ns(),
        "stamps": [0] * ELEMENTS,
    }


def _say(**report: Any) -> None:
    os.write(1, json.dumps(report).encode() + b"\n")


class _EndedError(Exception):
    """Standard input has ended: so does this process."""


def _asked(pause: float) -> str:
    """Sleep for a while, or until the parent says something; returns what it said, or ""."""
    if not select.select([0], [], [], pause)[0]:
        return ""
    said = os.read(0, 100).decode()
    if not said:
        raise _EndedError
    return said.strip()


class _Acknowledged:
    """The last publish that the writer knows to be done, in memory that the processes of a demo share.

    One aligned word, so that no reader of it sees half a number. It is the yardstick, so it is no shmcow store.
    """

    def __init__(self, fd: int) -> None:
        self._word = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")

    def get(self) -> int:
        return self._word[0]

    def set(self, stamp: int) -> None:
        self._word[0] = stamp


class _Checker:
    """Checks every value that a worker reads, and counts what must not happen."""

    def __init__(self) -> None:
        self.stamp = 0
        self.torn = self.lost = self.back = 0
        self._seen: object = None

    def check(self, value: Any, acknowledged: int) -> bool:
        """Check one value, read after publish number ``acknowledged`` was done. True: it is a new publish."""
        if value is self._seen:
            return False
        self._seen = value
        stamps = value.get("stamps") if isinstance(value, dict) else None
        if not isinstance(stamps, list) or not stamps:
            return False  # somebody published a value of their own: nothing to check it by
        stamp = stamps[0]
        if stamps.count(stamp) != ELEMENTS:
            self.torn += 1
            return False
        self.lost += stamp < acknowledged
        self.back += stamp < self.stamp
        new: bool = stamp > self.stamp
        self.stamp = stamp
        return new


class _Worker:
    def __init__(self, name: str, acknowledged: _Acknowledged) -> None:
        self.reader = Reader(name)
        self.acknowledged = acknowledged
        self.checker = _Checker()
        self.gets = 0
        self.delays: list[float] = []
        self.ns = 0.0
        self.banner: object = None
        self.held: Snapshot[Any] | None = None

    def run(self) -> None:
        due = 0.0
        while True:
            try:
                asked = _asked(_PEEK)
            except _EndedError:
                self.report(final=True)
                return
            if asked == "hold":
                self.held = self.reader.snapshot().hold()
                _say(held=self.held.version)
            changed = self.peek()
            if time.monotonic() >= due:
                self.measure()
                due = time.monotonic() + _REPORT
                changed = True
            if changed:
                self.report()

    def peek(self) -> bool:
        """Read once, as a request would. True: the banner has changed."""
        done = self.acknowledged.get()
        value = self.reader.get()
        now = time.monotonic_ns()
        self.gets += 1
        if self.checker.check(value, done):
            self.delays.append((now - value["clock"]) / 1e6)
        banner = value.get("banner") if isinstance(value, dict) else None
        if banner == self.banner:
            return False
        self.banner = banner
        after = time.time() - self.reader.snapshot().published_at.timestamp()
        _say(banner=_text(banner), after_ms=after * 1e3)
        return True

    def measure(self) -> None:
        """Read in short batches; take the median batch."""
        get = self.reader.get
        taken = []
        for _ in range(_BATCHES):
            done = self.acknowledged.get()
            calls = itertools.repeat((), _BATCH)
            start = time.perf_counter_ns()
            values = list(itertools.starmap(get, calls))
            taken.append((time.perf_counter_ns() - start) / _BATCH)
            self.gets += _BATCH
            for value in values:
                self.checker.check(value, done)
        self.ns = statistics.median(taken)

    def report(self, *, final: bool = False) -> None:
        checker = self.checker
        _say(
            version=self.reader.version,
            ns=self.ns,
            seen_ms=statistics.median(self.delays) if self.delays else None,
            gets=self.gets,
            # A version that does not decode is as bad as a torn one.
            torn=checker.torn + self.reader.failures,
            lost=checker.lost,
            back=checker.back,
            final=final,
        )
        del self.delays[:-50]


def _text(banner: object) -> str:
    text = banner if isinstance(banner, str) else json.dumps(banner, default=repr)
    return text[:500]


def _worker(name: str, fd: str) -> None:
    _Worker(name, _Acknowledged(int(fd))).run()


def _writer(name: str, fd: str) -> None:
    """Publish ten times a second, and now and then many times at once."""
    acknowledged = _Acknowledged(int(fd))
    stamp = version = 0
    taken: list[float] = []
    due = 0.0
    with Writer(name) as writer:
        while True:
            burst = stamp % _BURST_EVERY == _BURST_EVERY - 1
            for _ in range(BURST if burst else 1):
                stamp += 1
                start = time.perf_counter()
                version = _publish(writer, stamp)
                taken.append((time.perf_counter() - start) * 1e6)
                acknowledged.set(stamp)
            if time.monotonic() >= due:
                _say(version=version, published=stamp, publish_us=statistics.median(taken[-50:]), burst=burst)
                due = time.monotonic() + _REPORT / 2
            try:
                _asked(0.1)
            except _EndedError:
                return


def _publish(writer: Writer[Any], stamp: int) -> int:
    def changed(old: Any) -> Any:
        kept = old if isinstance(old, dict) else first_value()
        return {**kept, "clock": time.monotonic_ns(), "stamps": [stamp] * ELEMENTS}

    while True:
        try:
            return writer.update(changed, source=SOURCE)
        except (StoreDestroyedError, StoreNotFoundError, NotPublishedError):
            return writer.publish(changed(None), source=SOURCE)
        except WriterBusyError:
            continue  # somebody takes long over an edit: readers go on meanwhile, and so do we afterwards


def _dying_writer(name: str) -> None:
    """Publish a large value, and die by SIGKILL when half of it is written."""

    make = segments.make

    def make_half(name: str) -> Any:
        made = make(name)
        half = os.write(made.fd, bytes(BALLAST // 2))
        _say(written=half, of=BALLAST)
        os.kill(os.getpid(), signal.SIGKILL)
        return made

    setattr(segments, "make", make_half)  # noqa: B010 - for this process, whose end it is
    with Writer(name) as writer:
        writer.update(lambda old: {**old, "ballast": bytes(BALLAST)}, source=SOURCE)


def _rival(_name: str) -> None:
    """Read the same value through multiprocessing's Manager."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Manager() as manager:
        shared = manager.dict(config=first_value())
        taken: collections.deque[int] = collections.deque(maxlen=500)
        while True:
            for _ in range(50):
                start = time.perf_counter_ns()
                shared["config"]
                taken.append(time.perf_counter_ns() - start)
            _say(ns=statistics.median(taken))
            try:
                _asked(0.25)
            except _EndedError:
                return


_ROLES: Final[dict[str, Callable[..., None]]] = {
    "worker": _worker,
    "writer": _writer,
    "dying-writer": _dying_writer,
    "rival": _rival,
}


def main() -> None:
    """Play the role that the command line names, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    logging.getLogger("shmcow").addHandler(logging.NullHandler())  # the demo tells the story itself
    role, *arguments = sys.argv[1:]
    try:
        _ROLES[role](*arguments)
    except (BrokenPipeError, _EndedError):
        pass  # the parent has gone
    except Exception:
        traceback.print_exc()
        sys.exit(1)
