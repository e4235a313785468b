"""The stage of the demo: its store, its processes, and the script that they play."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from shmcow import Reader, Snapshot, Writer, describe, destroy, segments
from shmcow.cli.demo import children
from shmcow.cli.demo.verdict import Verdict
from shmcow.errors import IncompatibleStoreError, NotOwnerError, ShmcowError, StoreNotFoundError
from shmcow.inspect import StoreReport

__all__ = ["Child", "Row", "Stage"]

_TICK: Final = 0.02
_OVERTIME: Final = 15.0  # how long a slow machine may take to play the script to its end
_BOOT: Final = (
    "import json,sys; sys.path[:]=json.loads(sys.argv.pop(1)); from shmcow.cli.demo import children as c; c.main()"
)


class Child:
    """One process of the demo, and what it reports.

    It is the leader of a process group of its own, so that a terminal's Ctrl-C reaches the parent only.
    """

    def __init__(self, role: str, store: str, log: Any, acknowledged: int | None = None) -> None:
        arguments = [role, store] + ([] if acknowledged is None else [str(acknowledged)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=() if acknowledged is None else (acknowledged,),
            process_group=0,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.role = role
        self.ended = False
        self._partial = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def reports(self) -> list[dict[str, Any]]:
        """Return what it has said since; sets ``ended`` when it will say no more."""
        assert self.process.stdout is not None
        try:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        self.ended = not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def ask(self, what: str) -> None:
        """Send it a request."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self.process.stdin.fileno(), what.encode() + b"\n")

    def dismiss(self) -> None:
        """Tell it to end."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        """Kill it with SIGKILL, together with what it started, and reap it."""
        if self.process.returncode is None:  # not reaped yet, so its id is nobody else's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Close the pipes of a process that was reaped."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@dataclasses.dataclass(slots=True)
class Row:
    """What is known of one worker: a row of the screen."""

    number: int
    child: Child
    state: str = "starting"
    version: int = 0
    ns: float = 0.0
    seen_ms: float | None = None
    gets: int = 0
    banner: str = ""
    held: int = 0
    bad: dict[str, int] = dataclasses.field(default_factory=dict)


class Stage:
    """Everything that a run of the demo has started; ``close`` ends and removes all of it.

    Args:
        name: of the store that is wanted.
        workers: how many.
        seconds: how long it plays.
        changed: called when there is something new to show; True: at once.

    Concurrency: one thread.
    """

    def __init__(self, name: str, workers: int, seconds: float, changed: Callable[[bool], None]) -> None:
        self.seconds = seconds
        self.rows: list[Row] = []
        self.writer: Child | None = None
        self.writing: dict[str, Any] = {}
        self.rival_ns = 0.0
        self.story: list[str] = []
        self.verdict = Verdict()
        self.stopped_by = 0  # a signal: set by its handler, obeyed between two ticks
        self.name = ""
        self._wanted = name
        self._workers = workers
        self._changed = changed
        self._children: list[Child] = []
        self._gone: list[Row] = []
        self._dying: dict[str, int] = {}
        self._flipped: dict[int, float] = {}
        self._first: Snapshot[Any] | None = None
        self._selector = selectors.DefaultSelector()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the stage
        self._acknowledged = os.memfd_create("shmcow-demo")
        os.ftruncate(self._acknowledged, os.sysconf("SC_PAGE_SIZE"))
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    # ---- beginning and end ----

    def open(self) -> None:
        """Make the store, and start the processes.

        Raises:
            ShmcowError: there can be no store.
        """
        self._make_store()
        self.writer = self._start("writer", self._acknowledged)
        self.rows = [Row(n + 1, self._start("worker", self._acknowledged)) for n in range(self._workers)]
        self._start("rival")

    def _make_store(self) -> None:
        for n in range(1, 100):
            name = self._wanted if n == 1 else f"{self._wanted[:60]}-{n}"
            with contextlib.suppress(NotOwnerError, IncompatibleStoreError):
                if _is_left_over(name):
                    destroy(name)
                    self.tell(f"removed the store {name}, which a demo that was killed had left")
                with contextlib.suppress(StoreNotFoundError):
                    describe(name)
                    continue
                with Writer(name, initial=children.first_value()) as writer:
                    if not writer.created:
                        continue
                    self.name = name
                    writer.update(lambda old: old, source=children.SOURCE)
                # While the demo lives it holds a version: so another demo knows that this store is in use.
                self._first = Reader(name).snapshot().hold()
                if n > 1:
                    self.tell(f"a store named {self._wanted} exists already: this demo uses {name}")
                return
        raise IncompatibleStoreError(f"{self._wanted} and all of {self._wanted}-2 to -99 exist: give another --store")

    def _start(self, role: str, acknowledged: int | None = None) -> Child:
        child = Child(role, self.name, self._log, acknowledged)
        self._children.append(child)
        assert child.process.stdout is not None
        self._selector.register(child.process.stdout, selectors.EVENT_READ, child)
        return child

    def close(self) -> None:
        """End all processes and remove the store; count what is left."""
        for child in self._children:
            child.dismiss()
        deadline = time.monotonic() + 5.0
        while self._selector.get_map() and time.monotonic() < deadline:
            self._listen(0.1)
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            child.kill()
            child.close()
        if self._first is not None:
            self._first.release()
            self._first = None
        if self.name:
            with contextlib.suppress(ShmcowError):
                self.verdict.counters = describe(self.name).counters
            try:
                destroy(self.name)
            except StoreNotFoundError:
                pass
            except (ShmcowError, OSError) as exc:
                self.verdict.trouble.append(f"the store could not be removed: {exc}")
            self.verdict.left = sum(1 for _ in segments.found(self.name))
        self._selector.close()
        os.close(self._acknowledged)
        self.count()
        self._log.seek(0)
        said = self._log.read(4000).decode("utf-8", "replace").strip()
        if said:
            self.verdict.trouble.append(f"a process of the demo said:\n{said}")
        self._log.close()

    def count(self) -> None:
        """Sum up in ``verdict`` what the workers have counted so far."""
        rows = self.rows + self._gone
        self.verdict.reads = sum(row.gets for row in rows)
        self.verdict.torn = sum(row.bad.get("torn", 0) for row in rows)
        self.verdict.lost = sum(row.bad.get("lost", 0) for row in rows)
        self.verdict.back = sum(row.bad.get("back", 0) for row in rows)
        self.verdict.versions = int(self.writing.get("published", 0))

    # ---- playing ----

    def play(self) -> None:
        """Play the script until the time is over; ``verdict.trouble`` says what did not work."""
        script = self._script()
        playing = True
        while (playing or self.elapsed < self.seconds) and not self.stopped_by:
            if playing:
                playing = next(script, None) is not None
            if self.elapsed > self.seconds + _OVERTIME:
                self.verdict.trouble.append(f"the script did not come to its end: {self.story[-1:]}")
                return
            self._listen(_TICK)
            self._changed(False)

    def tell(self, line: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{self.elapsed:4.1f} s  {line}")
        self._changed(True)

    def _listen(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            child: Child = key.data
            for report in child.reports():
                self._take(child, report)
            if child.ended:
                self._selector.unregister(key.fileobj)

    def _take(self, child: Child, report: dict[str, Any]) -> None:
        if child is self.writer:
            self.writing = report
        elif child.role == "rival":
            self.rival_ns = report["ns"]
        elif child.role == "dying-writer":
            self._dying = report
        else:
            row = next(row for row in self.rows + self._gone if row.child is child)
            if "banner" in report:
                self._take_banner(row, report)
            elif "held" in report:
                row.held = report["held"]
            else:
                row.state = "reading"
                row.version, row.ns, row.gets = report["version"], report["ns"], report["gets"]
                row.seen_ms = report["seen_ms"] if report["seen_ms"] is not None else row.seen_ms
                row.bad = {what: report[what] for what in ("torn", "lost", "back")}

    def _take_banner(self, row: Row, report: dict[str, Any]) -> None:
        before, row.banner = row.banner, report["banner"]
        if before == "":
            return  # its first look
        self._flipped[row.number] = report["after_ms"]
        reading = [other for other in self.rows if other.state == "reading"]
        if all(other.banner == row.banner for other in reading):
            self.tell(
                f"banner set: on all {len(reading)} workers {max(self._flipped.values()):.1f} ms after it was published"
            )
            self._flipped.clear()
        self._changed(True)

    # ---- the script: a generator that yields while it waits ----

    def _script(self) -> Iterator[bool]:
        while not (self.rival_ns and self.writing and all(row.state == "reading" and row.ns for row in self.rows)):
            if any(child.ended for child in self._children):
                self.verdict.trouble.append("a process of the demo ended at once")
                return
            yield True
        self.tell(f"{len(self.rows)} workers read; 10 publishes a second, now and then {children.BURST} at once")
        yield from self._until(0.28)
        yield from self._kill_writer()
        yield from self._until(0.5)
        yield from self._kill_worker(self.rows[min(1, len(self.rows) - 1)])

    def _until(self, part: float) -> Iterator[bool]:
        while self.elapsed < part * self.seconds:
            yield True

    def _kill_writer(self) -> Iterator[bool]:
        before = describe(self.name)
        child = self._start("dying-writer")
        while not child.ended:
            yield True
        code = child.process.wait()
        if code != -signal.SIGKILL or not self._dying:
            self.verdict.trouble.append(f"the writer that should die in mid-publish ended with {code}")
            return
        written, whole = (self._dying[key] / (1 << 20) for key in ("written", "of"))
        self.tell(f"writer {child.pid} killed (SIGKILL) in mid-publish, {written:.1f} of {whole:.1f} MB written")
        for _ in self._wait(lambda now: now.counters["recovered"] > before.counters["recovered"]):
            yield True
        now = describe(self.name)
        kept = sum(g.size_bytes for g in now.generations if g.pid == child.pid)
        kept += sum(size for size in _segment_sizes(self.name) if size >= self._dying["written"])
        if kept:
            self.verdict.trouble.append(f"of the dead writer's half-written version {kept} bytes are still there")
        recovered = now.counters["recovered"] - before.counters["recovered"]
        self.tell(f"next publish: recovered {recovered} half-done version, {kept} bytes of it left")

    def _kill_worker(self, row: Row) -> Iterator[bool]:
        victim = row.child
        victim.ask("hold")
        while not row.held:
            if victim.ended:
                self.verdict.trouble.append(f"worker {row.number} ended before its time")
                return
            yield True
        held = row.held
        # Until so many newer versions are retained that only the hold keeps this one.
        for _ in self._wait(lambda now: now.version > held + now.retain + 2):
            yield True
        newer = describe(self.name).version - held
        if not _openable(describe(self.name), held):
            self.verdict.trouble.append(f"version {held} was reclaimed while worker {row.number} held it")
        victim.kill()
        while not victim.ended:  # what it said last counts
            self._listen(_TICK)
        row.state = "killed"
        self._gone.append(dataclasses.replace(row))
        row.gets, row.bad = 0, {}
        self.tell(f"worker {row.number} killed (SIGKILL) holding version {held}, {newer} newer published")
        for _ in self._wait(lambda now: not _openable(now, held)):
            yield True
        self.tell(f"the kernel dropped its hold; the next publish reclaimed version {held}")
        yield from self._until(0.62)
        # A fresh row in the old one's place: what the dead worker counted stays counted.
        fresh = Row(row.number, self._start("worker", self._acknowledged))
        self.rows[row.number - 1] = fresh
        began = time.monotonic()
        while not fresh.ns:
            if fresh.child.ended:
                self.verdict.trouble.append("the worker's replacement ended at once")
                return
            yield True
        took = time.monotonic() - began
        self.tell(f"worker {row.number} replaced by pid {fresh.child.pid}, reading after {took:.1f} s")

    def _wait(self, done: Callable[[StoreReport], bool]) -> Iterator[bool]:
        """Yield until a report of the store satisfies ``done``; a store that somebody removed satisfies nothing."""
        while True:
            with contextlib.suppress(ShmcowError):
                if done(describe(self.name)):
                    return
            yield True


def _is_left_over(name: str) -> bool:
    """Whether a store is what a demo left when it was killed: by its marks, and nobody holds a version of it."""
    try:
        generations = describe(name).generations
    except StoreNotFoundError:
        return False
    made_here = any(generation.source == children.SOURCE for generation in generations)
    return made_here and not any(generation.marked for generation in generations)


def _segment_sizes(name: str) -> Iterator[int]:
    for item in segments.found(name):
        if item.what.isdigit():
            with contextlib.suppress(FileNotFoundError):  # reclaimed just now
                yield os.path.getsize(f"{segments.DIRECTORY}/{item.filename}")


def _openable(report: StoreReport, version: int) -> bool:
    return any(generation.version == version and generation.state == "held" for generation in report.generations)
