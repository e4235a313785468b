"""An exhaustive checker of small programs under RC11, a repaired C11 memory model.

Source: Ori Lahav, Viktor Vafeiadis, Jeehoon Kang, Chung-Kil Hur, Derek Dreyer: "Repairing Sequential Consistency in
C/C++11", PLDI 2017. The names are those of the paper: sb (sequenced before), rf (reads from), mo (modification order),
rb (reads before), eco, sw, hb, psc. An execution is consistent when

    COHERENCE     hb ; eco? is irreflexive
    ATOMICITY     no write comes between the two halves of a read-modify-write
    SC            psc is acyclic
    NO-THIN-AIR   sb + rf is acyclic

Two options ask for more than the paper does: `load_buffering` leaves the last axiom away (C11 and its hardware allow it
to be broken), and `short_sequences` takes C++20's release sequences, without the later stores of the same thread.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .program import PLAIN, Event, Program, Run, runs
from .relations import Relation, bits, closure, identity, is_acyclic, is_irreflexive, maybe, of, then, union


@dataclass(frozen=True)
class Model:
    load_buffering: bool = False
    short_sequences: bool = False


@dataclass
class Verdict:
    """What all consistent executions of a program came to."""

    executions: int = 0
    races: int = 0
    outcomes: Counter[tuple[object, ...]] = field(default_factory=Counter)


class Candidate:
    """One run of every thread, and what does not depend on who reads from whom."""

    def __init__(self, initial: dict[str, int], chosen: tuple[Run, ...]) -> None:
        self.events = [Event("W", location, "relaxed", value) for location, value in initial.items()]
        self.first = len(self.events)  # the initial writes come before everything
        self.thread = [-1] * self.first
        for number, run in enumerate(chosen):
            self.events.extend(run.events)
            self.thread.extend([number] * len(run.events))
        self.size = len(self.events)
        everything = range(self.size)
        self.sb = of(
            self.size,
            (
                (a, b)
                for a in everything
                for b in range(max(a + 1, self.first), self.size)
                if self.thread[a] in (-1, self.thread[b])
            ),
        )
        self.rmw = of(self.size, ((b - 1, b) for b in everything if self.events[b].second_half))
        self.writes = {
            location: [a for a in everything if self.events[a].kind == "W" and self.events[a].location == location]
            for location in initial
        }
        self.reads = [a for a in everything if self.events[a].kind == "R"]
        self.fences = [a for a in everything if self.events[a].kind == "F"]
        self.same = of(
            self.size,
            (
                (a, b)
                for a in everything
                for b in everything
                if self.events[a].location is not None and self.events[a].location == self.events[b].location
            ),
        )

    def sources(self) -> Iterator[dict[int, int]]:
        """Every choice of a write for each read: read -> write."""
        choices = []
        for read in self.reads:
            event = self.events[read]
            choices.append([w for w in self.writes[event.location or ""] if self.events[w].value == event.value])
        for choice in itertools.product(*choices):
            halves = [w for r, w in zip(self.reads, choice, strict=True) if self.rmw[r]]
            if len(halves) == len(set(halves)):  # no two read-modify-writes follow the same write at once
                yield dict(zip(self.reads, choice, strict=True))


def synchronizes(c: Candidate, rf: Relation, model: Model) -> Relation:
    """sw = [rel] ; ([F] ; sb)? ; rs ; rf ; (sb ; [F])? ; [acq]"""
    e = c.events
    atomic = [a for a in range(c.size) if e[a].kind == "W" and e[a].order != PLAIN]
    sequence = identity(c.size, atomic)
    if not model.short_sequences:
        sequence = union(sequence, of(c.size, ((a, b) for a in atomic for b in atomic if c.sb[a] & c.same[a] & 1 << b)))
    sequence = then(sequence, maybe(closure(then(rf, c.rmw))))
    pairs: list[tuple[int, int]] = []
    for head in (a for a in range(c.first, c.size) if e[a].kind == "W"):
        starts = [head] if e[head].releases else []
        starts += [f for f in c.fences if e[f].releases and c.sb[f] >> head & 1]
        for write in bits(sequence[head]) if starts else ():
            for read in bits(rf[write]):
                if e[read].order == PLAIN:
                    continue
                ends = [read] if e[read].acquires else []
                ends += [f for f in c.fences if e[f].acquires and c.sb[read] >> f & 1]
                pairs += itertools.product(starts, ends)
    return of(c.size, pairs)


def modification_orders(c: Candidate, hb: Relation, source: dict[int, int]) -> Iterator[Relation]:
    """Every mo that agrees with hb and keeps read-modify-writes whole."""
    follows = {read + 1: write for read, write in source.items() if c.rmw[read]}

    def chains(done: list[int], left: list[int]) -> Iterator[list[int]]:
        if not left:
            yield done
        for w in left:
            if w in follows and (not done or done[-1] != follows[w]):
                continue
            if any(hb[other] >> w & 1 for other in left if other != w):
                continue
            yield from chains([*done, w], [other for other in left if other != w])

    each = [list(chains([], writes)) for writes in c.writes.values()]
    for choice in itertools.product(*each):
        yield of(c.size, (pair for chain in choice for pair in itertools.combinations(chain, 2)))


def partial_sc(c: Candidate, hb: Relation, mo: Relation, rb: Relation, eco: Relation) -> Relation:
    """psc, the order that seq_cst accesses and fences must agree on."""
    sc = [a for a in range(c.size) if c.events[a].order == "seq_cst"]
    access = identity(c.size, sc)
    fences = identity(c.size, (a for a in sc if c.events[a].kind == "F"))
    elsewhere = [row & ~same for row, same in zip(c.sb, c.same, strict=True)]
    nearby = [row & same for row, same in zip(hb, c.same, strict=True)]
    scb = union(c.sb, then(then(elsewhere, hb), elsewhere), nearby, mo, rb)
    before = union(access, then(fences, maybe(hb)))
    after = union(access, then(maybe(hb), fences))
    across = union(hb, then(then(hb, eco), hb))
    return union(then(then(before, scb), after), then(then(fences, across), fences))


def has_race(c: Candidate, hb: Relation) -> bool:
    for a, b in itertools.combinations(range(c.first, c.size), 2):
        one, other = c.events[a], c.events[b]
        if (
            c.same[a] >> b & 1
            and c.thread[a] != c.thread[b]
            and "W" in (one.kind, other.kind)
            and PLAIN in (one.order, other.order)
            and not (hb[a] >> b & 1 or hb[b] >> a & 1)
        ):
            return True
    return False


def consistent(c: Candidate, model: Model) -> Iterator[Relation]:
    """The happens-before of every consistent execution of these runs."""
    needs_sc = any(event.order == "seq_cst" for event in c.events)
    for source in c.sources():
        rf = of(c.size, ((w, r) for r, w in source.items()))
        if not model.load_buffering and not is_acyclic(union(c.sb, rf)):
            continue
        hb = closure(union(c.sb, synchronizes(c, rf, model)))
        if not is_irreflexive(hb):
            continue
        for mo in modification_orders(c, hb, source):
            rb = of(c.size, ((r, later) for r, w in source.items() for later in bits(mo[w])))
            eco = closure(union(rf, mo, rb))
            if not is_irreflexive(then(hb, eco)):
                continue
            if needs_sc and not is_acyclic(partial_sc(c, hb, mo, rb, eco)):
                continue
            yield hb


def check(program: Program, model: Model | None = None) -> Verdict:
    """Look at every execution of the program."""
    verdict = Verdict()
    every = runs(program)
    for chosen in itertools.product(*every.values()):
        candidate = Candidate(dict(program.initial), chosen)
        outcome = tuple(run.result for run in chosen)
        for hb in consistent(candidate, model or Model()):
            verdict.executions += 1
            verdict.outcomes[outcome] += 1
            verdict.races += has_race(candidate, hb)
    return verdict
