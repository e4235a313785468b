"""Read the histories of a soak and decide: is there an order in which all of it could have happened?

Nothing of shmcow is used here. Times are of one clock for all processes, so "before" means: its call had returned
before the other one's began. A call whose end nobody knows (its process was killed) may or may not have had its effect.
"""

from __future__ import annotations

import bisect
import collections
import graphlib
import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from soak_epochs import NEVER, order_of_epochs
from soak_history import (
    AT,
    DESTROY,
    DONE,
    ERROR,
    EXPECT,
    FORKED,
    GONE,
    INVOKE,
    NAMES,
    OK,
    READ,
    REFUSED,
    ROLLBACK,
    SWAP,
    TORN,
    UPDATE,
    Record,
)

KINDS = ("torn", "went back", "stale", "lost", "order", "nowhere", "held and gone", "epoch", "error")
LOOKS = 16  # reads in a row by which a reader must have found the new store after a destroy (it promises 8)
BUCKETS = (
    ("before the writer knew", 0),
    ("0.1 ms", 100_000),
    ("1 ms", 10**6),
    ("10 ms", 10**7),
    ("100 ms", 10**8),
)

Place = tuple[int, int]  # epoch, version


class Op(NamedTuple):
    """A writer's call. Its outcome is 0 if nobody knows how it ended."""

    what: int
    outcome: int
    begin: int
    end: int
    epoch: int
    version: int
    stamp: int
    prev: int
    total: int
    epoch_before: int


class Verdict(NamedTuple):
    """What was found."""

    violations: dict[str, list[str]]
    figures: dict[str, int]
    ages: dict[str, int]

    @property
    def count(self) -> int:
        return sum(len(found) for found in self.violations.values())


def ops_of(records: Iterable[Record]) -> list[Op]:
    """Return a process's calls; the last may be without an end."""
    ops = []
    open_call: Record | None = None
    for r in records:
        if r.kind == INVOKE:
            open_call = r
        elif r.kind == DONE and open_call is not None:
            before = open_call.epoch
            ops.append(Op(r.what, r.outcome, r.begin, r.end, r.epoch, r.version, r.stamp, r.prev, r.total, before))
            open_call = None
    if open_call is not None:
        r = open_call
        ops.append(Op(r.what, 0, r.begin, NEVER, r.epoch, 0, r.stamp, 0, 0, r.epoch))
    return ops


def check(histories: Mapping[str, list[Record]]) -> Verdict:
    """Check everything."""
    return _Checker(histories).verdict()


class _Checker:
    def __init__(self, histories: Mapping[str, list[Record]]) -> None:
        self.histories = histories
        self.found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.ops = [op for records in histories.values() for op in ops_of(records)]
        self.readers = [(r, name) for name, records in histories.items() for r in records if r.kind == READ]
        self.readers = [(r, name) for r, name in self.readers if r.outcome == OK]
        self.reads = [r for r, _ in self.readers]
        self.acks: dict[Place, Op] = {}
        self.by_stamp = {op.stamp: op for op in self.ops if op.stamp}
        self.content: dict[Place, int] = {}  # stamp of each version
        self.seen: dict[Place, Record] = {}

    def say(self, kind: str, text: str) -> None:
        self.found[kind].append(text)

    def verdict(self) -> Verdict:
        self._plain()
        self._collect_acks()
        self._collect_content()
        self._updates()
        self._gaps()
        self._real_time()
        self._went_back()
        self._held()
        self._epochs()
        known = [op for op in self.ops if op.outcome]
        figures = {
            "acknowledged": len(self.acks),
            "refused": sum(op.outcome == REFUSED for op in known),
            "end unknown": len(self.ops) - len(known),
            "reads": sum(max(r.count, 1) for r in self.reads),
            "records of reads": len(self.reads),
            "holds": sum(r.kind == AT for records in self.histories.values() for r in records),
            "epochs": len({epoch for epoch, _ in self.acks}),
            "processes": len(self.histories),
        }
        return Verdict(self.found, figures, self._ages())

    # ---- what each record says by itself ----

    def _plain(self) -> None:
        for name, records in self.histories.items():
            for r in records:
                if r.outcome == TORN:
                    self.say("torn", f"{name}: version {r.version} is not of one piece")
                elif r.outcome == ERROR:
                    self.say("error", f"{name}: an error that nothing explains")

    # ---- versions: each once, each with one content ----

    def _collect_acks(self) -> None:
        for op in self.ops:
            if op.outcome != OK or op.what == DESTROY:
                continue
            other = self.acks.setdefault((op.epoch, op.version), op)
            if other is not op:
                self.say("lost", f"version {op.version} was acknowledged twice: {_named(other)}, {_named(op)}")

    def _collect_content(self) -> None:
        for at, op in self.acks.items():
            if op.what != ROLLBACK:
                self.content[at] = op.stamp
        for r in self.reads:
            at = (r.epoch, r.version)
            maker = self.by_stamp.get(r.stamp)
            if maker is None:
                self.say("nowhere", f"version {r.version} has a value that nobody published: {r.stamp}")
            elif maker.outcome == REFUSED:
                self.say("nowhere", f"version {r.version} has the value of {_named(maker)}, which was refused")
            elif maker.begin > r.end:
                self.say("nowhere", f"version {r.version} was read before {_named(maker)} began")
            if r.what == 0 and maker is not None and maker.outcome == OK and (maker.epoch, maker.version) != at:
                self.say("nowhere", f"version {r.version} has the value that {_named(maker)} published")
            known = self.content.setdefault(at, r.stamp)
            if known != r.stamp:
                self.say("lost", f"version {r.version}: {r.stamp} was read, {known} was acknowledged or read")
            self.seen.setdefault(at, r)

    # ---- no update is lost ----

    def _updates(self) -> None:
        made: dict[Place, tuple[int, int]] = {}  # (stamp before, total) where a value was made from another
        for at, op in self.acks.items():
            if op.what in (UPDATE, EXPECT, SWAP):
                made[at] = op.prev, op.total
        for at, r in self.seen.items():
            maker = self.by_stamp.get(r.stamp)
            if r.what == 0 and maker is not None and maker.what in (UPDATE, EXPECT):
                made.setdefault(at, (r.prev, r.total))
        for (epoch, version), (prev, _) in made.items():
            known = self.content.setdefault((epoch, version - 1), prev)
            if known != prev:
                self.say("lost", f"version {version} was made from {prev}, but {known} was version {version - 1}")
        totals: dict[int, int] = {}
        for r in self.reads:
            totals.setdefault(r.stamp, r.total)
        for op in self.acks.values():
            if op.stamp:
                totals.setdefault(op.stamp, op.total)
        for (_, version), (prev, total) in made.items():
            if total and totals.get(prev, total - 1) != total - 1:
                self.say("lost", f"version {version} counts {total}, the one before {totals[prev]}")

    def _gaps(self) -> None:
        """Every version up to the newest was acknowledged, or is the work of somebody who was killed."""
        newest: dict[int, int] = {}
        for epoch, version in [*self.acks, *self.content]:
            newest[epoch] = max(newest.get(epoch, 0), version)
        unknown = [op for op in self.ops if op.outcome == 0 and op.what != DESTROY]
        used: set[int] = set()
        nameless: list[Place] = []
        for epoch, most in newest.items():
            for version in range(1, most + 1):
                at = (epoch, version)
                if at in self.acks:
                    continue
                maker = self.by_stamp.get(self.content.get(at, 0))
                rolled_back = at in self.seen and self.seen[at].what == 1
                if maker is None or rolled_back or (maker.epoch, maker.version) in self.acks:
                    nameless.append(at)  # a rollback, or a version that nobody saw
                elif maker.outcome == 0:
                    if maker.stamp in used:
                        self.say("lost", f"version {version} is a second effect of {_named(maker)}")
                    used.add(maker.stamp)
        left = [op for op in unknown if op.stamp == 0 or op.stamp not in used]
        if len(nameless) > len(left):
            self.say("lost", f"nobody published {len(nameless) - len(left)} of the versions {nameless[:5]} ...")

    # ---- real time ----

    def _real_time(self) -> None:
        by_epoch: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        for (epoch, version), op in self.acks.items():
            by_epoch[epoch].append((op.end, version))
        self.known_at: dict[int, tuple[list[int], list[int]]] = {}
        for epoch, ends in by_epoch.items():
            ends.sort()
            highest, most = [], 0
            for _, version in ends:
                most = max(most, version)
                highest.append(most)
            self.known_at[epoch] = [end for end, _ in ends], highest
        for (epoch, version), op in self.acks.items():
            known = self._acknowledged_before(epoch, op.begin)
            if version <= known:
                self.say("order", f"version {version} was published after {known} had been acknowledged")
        ended = self._destroyed_from()
        for r, name in self.readers:
            known = self._acknowledged_before(r.epoch, r.last)
            if r.version < known and r.over < ended.get(r.epoch, NEVER):  # else: the last that it had
                late = (r.last - self.acks[r.epoch, known].end) / 1e6 if (r.epoch, known) in self.acks else 0
                self.say("stale", f"{name}: read version {r.version} {late:.2f} ms after {known} was acknowledged")

    def _acknowledged_before(self, epoch: int, when: int) -> int:
        ends, highest = self.known_at.get(epoch, ([], []))
        k = bisect.bisect_left(ends, when)
        return highest[k - 1] if k else 0

    def _went_back(self) -> None:
        for name, records in self.histories.items():
            epoch = version = 0
            left: set[int] = set()
            for r in records:
                if r.kind not in (READ, FORKED) or r.outcome != OK or r.epoch == 0:
                    continue
                if r.epoch != epoch:
                    if r.epoch in left:
                        self.say("went back", f"{name}: to an epoch that it had left")
                    left.add(epoch)
                    epoch, version = r.epoch, 0
                if r.version < version:
                    self.say("went back", f"{name}: from version {version} to {r.version}")
                version = r.version

    # ---- holds, epochs ----

    def _held(self) -> None:
        ended = self._destroyed_from()
        for name, records in self.histories.items():
            for r in records:
                if r.kind == AT and r.outcome == GONE and ended.get(r.epoch, NEVER) > r.end:
                    self.say("held and gone", f"{name}: version {r.version} was held, and could not be opened")

    def _destroyed_from(self) -> dict[int, int]:
        """When somebody first began to destroy each epoch."""
        ended: dict[int, int] = {}
        for op in self.ops:
            if op.what == DESTROY and op.outcome != REFUSED:
                ended[op.epoch_before] = min(op.begin, ended.get(op.epoch_before, NEVER))
        return ended

    def _epochs(self) -> None:
        acknowledged: dict[int, int] = {}
        last_begin: dict[int, int] = {}
        for (epoch, _), op in self.acks.items():
            acknowledged[epoch] = min(op.end, acknowledged.get(epoch, NEVER))
            last_begin[epoch] = max(op.begin, last_begin.get(epoch, 0))
        first = dict(acknowledged)
        for r in self.reads:
            first[r.epoch] = min(r.end, first.get(r.epoch, NEVER))
        try:
            order = order_of_epochs(self.histories, first)
        except graphlib.CycleError:
            self.say("epoch", "two processes saw stores of this name in different orders")
            return
        ended = self._destroyed_from()
        for older, newer in itertools.pairwise(order):
            if ended.get(older, NEVER) > first[newer]:
                self.say("epoch", "a new store came up though nobody had destroyed the one before")
            if last_begin.get(older, 0) > first[newer]:
                self.say("epoch", "something was published in a store that had been replaced")
        place = {epoch: k for k, epoch in enumerate(order)}
        for r, name in self.readers:
            if r.count <= LOOKS:
                continue
            for newer in order[place[r.epoch] + 1 :]:  # was one of them there all the time?
                if acknowledged.get(newer, NEVER) < r.begin and r.over < ended.get(newer, NEVER):
                    self.say("epoch", f"{name}: {r.count} reads in a row of a store that was replaced before the first")

    def _ages(self) -> dict[str, int]:
        """How long after the acknowledgement a version was first seen by a process, as a histogram."""
        ages = dict.fromkeys([name for name, _ in BUCKETS] + ["more"], 0)
        known: set[tuple[str, int, int]] = set()
        for r, name in self.readers:
            op = self.acks.get((r.epoch, r.version))
            if op is None or (name, r.epoch, r.version) in known:
                continue
            known.add((name, r.epoch, r.version))
            age = r.end - op.end
            ages[next((name for name, most in BUCKETS if age <= most), "more")] += 1
        return ages


def _named(op: Op) -> str:
    return f"{NAMES.get(op.what, '?')} {op.stamp}"
