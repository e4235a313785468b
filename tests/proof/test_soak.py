"""Processes that are killed, stopped and forked at random, and a checker of what they saw (see soak.md)."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.extend([str(Path(__file__).with_name("soak")), str(Path(__file__).parents[1] / "concurrency")])

import copies
import soak_checker
import soak_go
import soak_history
import soak_mutants
from soak_history import (
    AT,
    DESTROY,
    DONE,
    ERROR,
    EXPECT,
    FORKED,
    GONE,
    INVOKE,
    OK,
    PUBLISH,
    READ,
    REFUSED,
    ROLLBACK,
    SWAP,
    TORN,
    UPDATE,
    Record,
    record,
)

import shmcow

PACKAGE = Path(shmcow.__file__).resolve().parents[1]
ASKED = {"versions": 100_000, "kills": 500, "seconds": 1200}  # the last is a watchdog
SHORT = {"versions": 2500, "kills": 15, "seconds": 30, "destroy_every": 0.7}
EPOCH, NEXT_EPOCH = 7, 8


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, run_name: str) -> dict[str, list[Record]]:
    """A real history, of a short soak."""
    directory = tmp_path_factory.mktemp("short")
    result = soak_go.go(run_name, directory, PACKAGE, {**SHORT, "versions": 1500})
    assert not sum(result.violations.values()), result.told()
    return soak_history.load(directory)


@pytest.fixture(scope="module")
def run_name() -> str:
    """A store name for the whole module, in the manner of ``name``."""

    return f"t-{os.getpid()}-{secrets.token_hex(4)}"


# ---- the soak ----


def test_soak_tears_loses_and_leaks_nothing(name: str, tmp_path: Path, record_property: Callable[..., None]) -> None:
    """After 100,000 versions and 500 kills there is an order in which it all happened, and nothing is left."""
    result = soak_go.go(name, tmp_path, PACKAGE, ASKED)
    figures, done = result.verdict.figures, result.said["done"]
    print(f"soak: {figures}, {done}, {result.said['seconds']:.0f} s, {result.said['cpu']:.0f} s of CPU")
    print(f"violations: {result.violations}")
    print(f"acknowledged -> first seen by a reader: {result.verdict.ages}")
    print(f"at rest: {result.said['rest']}")
    for kind, samples in result.said["samples"].items():
        print(f"the {kind} that was spared, early and late: {soak_go.growth(samples)}")
    record_property("versions", figures["acknowledged"])
    record_property("kills", done["kills"])
    assert not sum(result.violations.values()), result.told()
    assert figures["acknowledged"] >= ASKED["versions"]
    assert done["kills"] >= ASKED["kills"]
    assert min(figures["epochs"], figures["end unknown"], figures["holds"], done["stops"]) > 10
    for samples in result.said["samples"].values():
        assert len(samples) > 20
        growth = soak_go.growth(samples)
        for what, allowed in (("private kB", soak_go.GROWTH), ("shared kB", soak_go.GROWTH), ("descriptors", 2)):
            early, late = growth[what]
            assert late <= early + allowed, (what, growth)


def test_soak_finds_its_mutants(name: str, tmp_path: Path) -> None:
    """Each weakened build of shmcow is caught by a short soak, as what it is."""
    if copies.compiler() is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev)")
    places = soak_mutants.build_all(tmp_path, soak_mutants.MUTANTS)
    missed = []
    for number, mutant in enumerate(soak_mutants.MUTANTS):
        for attempt in range(
            1, 4
        ):  # which step a kill meets is chance: on a busy machine one soak may meet none of them
            directory = tmp_path / f"history{number}-{attempt}"
            directory.mkdir()
            asked = {**SHORT, **mutant.asked, "seed": attempt}
            result = soak_go.go(f"{name}-{number}-{attempt}", directory, places[mutant.name], asked)
            found = {kind: count for kind, count in result.violations.items() if count}
            print(f"mutant: {mutant.name}: {found or 'MISSED'} ({result.said['cpu']:.1f} s of CPU)")
            if set(mutant.found_as) & set(found):
                break
        else:
            missed.append((mutant.name, found, result.told()))
    assert not missed


# ---- the checker itself ----


def call(what: int, begin: int, end: int, version: int, stamp: int, **fields: int) -> list[Record]:
    """A writer's call that was acknowledged (or as `outcome` says; 0: its end is not known)."""
    epoch = fields.setdefault("epoch", EPOCH)
    invoke = record(INVOKE, what=what, begin=begin, epoch=fields.pop("was", epoch), stamp=stamp)
    if fields.get("outcome") == 0:
        return [invoke]
    fields.setdefault("outcome", OK)
    return [invoke, record(DONE, what=what, begin=begin, end=end, version=version, stamp=stamp, **fields)]


def read(begin: int, version: int, stamp: int, **fields: int) -> Record:
    """A read that takes 2 units of time."""
    said = {"outcome": OK, "epoch": EPOCH, "count": 1, "end": begin + 2, "last": begin, **fields}
    said.setdefault("over", said["last"] + 2)
    return record(READ, begin=begin, version=version, stamp=stamp, **said)


GOOD = {
    "a": [
        *call(PUBLISH, 0, 10, 1, 101),
        *call(UPDATE, 20, 30, 2, 102, prev=101, total=1),
        *call(ROLLBACK, 60, 70, 4, 0),
        *call(EXPECT, 75, 78, 0, 103, outcome=REFUSED),
        *call(DESTROY, 80, 90, 0, 0),
        *call(PUBLISH, 95, 99, 1, 104, epoch=NEXT_EPOCH),
    ],
    "b": call(UPDATE, 35, 0, 0, 201, outcome=0),
    "r": [
        read(12, 1, 101),
        read(22, 2, 102, prev=101, total=1),
        read(50, 3, 201, prev=102, total=2),
        read(72, 4, 102, what=1, prev=101, total=1),
        record(AT, outcome=OK, begin=74, end=75, epoch=EPOCH, version=3),
        read(85, 4, 102, what=1, prev=101, total=1),
        read(100, 1, 104, epoch=NEXT_EPOCH),
    ],
    "s": [read(82, 2, 102, prev=101, total=1), record(AT, outcome=GONE, begin=82, end=84, epoch=EPOCH, version=2)],
}
BAD = {
    "torn": ("torn", {"x": [read(40, 2, 0, outcome=TORN)]}),
    "a reader goes back": ("went back", {"x": [read(50, 3, 201, prev=102, total=2), read(51, 2, 102, last=34)]}),
    "a child goes back": ("went back", {"x": [record(FORKED, outcome=OK, epoch=EPOCH, version=3), read(24, 2, 102)]}),
    "an epoch comes back": (
        "went back",
        {"x": [read(81, 4, 102, what=1), GOOD["r"][-1], read(101, 4, 102)]},
    ),
    "stale": ("stale", {"x": [read(31, 1, 101)]}),
    "the last of many reads is stale": ("stale", {"x": [read(12, 1, 101, count=9, last=33)]}),
    "two acknowledgements": ("lost", {"x": call(PUBLISH, 21, 31, 2, 301)}),
    "another value than acknowledged": ("lost", {"x": [*call(PUBLISH, 21, 0, 0, 301, outcome=0), read(23, 2, 301)]}),
    "lost update": ("lost", {"x": call(UPDATE, 71, 73, 5, 301, prev=201, total=3)}),
    "lost swap": ("lost", {"x": call(SWAP, 71, 73, 5, 301, prev=201)}),
    "a count that does not go on": ("lost", {"x": call(UPDATE, 71, 73, 5, 301, prev=102, total=3)}),
    "a version of nobody": ("lost", {"x": call(PUBLISH, 71, 73, 6, 301)}),
    "one call, two versions": ("lost", {"x": [read(76, 5, 201, prev=102, total=2)]}),
    "older after newer": ("order", {"x": call(PUBLISH, 12, 14, 9, 301)}),
    "a value that nobody published": ("nowhere", {"x": [read(62, 4, 999)]}),
    "a value that was refused": ("nowhere", {"x": [read(77, 5, 103)]}),
    "a value from the future": ("nowhere", {"x": [read(15, 2, 102)]}),
    "another version than acknowledged": ("nowhere", {"x": [read(45, 3, 102)]}),
    "held and gone": ("held and gone", {"x": [record(AT, outcome=GONE, begin=40, end=41, epoch=EPOCH, version=1)]}),
    "an error": ("error", {"x": [record(READ, outcome=ERROR)]}),
    "a store that nobody destroyed": ("epoch", {"x": call(PUBLISH, 100, 110, 1, 301, epoch=9)}),
    "published in what was replaced": ("epoch", {"x": call(PUBLISH, 105, 110, 5, 301)}),
    "a reader stays with what was replaced": ("epoch", {"x": [read(105, 4, 102, what=1, count=50, last=109)]}),
}


def test_checker_accepts_what_may_happen() -> None:
    """A history with a killed update, a rollback, a refusal, a destroy and a late reader is fine."""
    verdict = soak_checker.check(GOOD)
    assert not verdict.count, verdict.violations
    assert verdict.figures["acknowledged"] == 4
    assert verdict.figures["end unknown"] == 1


@pytest.mark.parametrize("planted", BAD)
def test_checker_finds_a_planted_violation(planted: str) -> None:
    """Each planted history is found, as what it is."""
    kind, more = BAD[planted]
    verdict = soak_checker.check({**GOOD, **more})
    assert verdict.violations[kind], verdict.violations


WRONG = ("stale", "lost", "nowhere", "went back")
CORRUPTIONS: dict[str, tuple[tuple[str, ...], Callable[[Record], Record]]] = {
    "an older version was read": (
        ("stale", "lost", "nowhere", "went back"),
        lambda r: r._replace(version=r.version - 1),
    ),
    "a newer version was read": (WRONG, lambda r: r._replace(version=r.version + 1)),
    "another value was read": (("nowhere",), lambda r: r._replace(stamp=r.stamp + (1 << 19))),
    "it was read much earlier": (("nowhere",), lambda r: r._replace(begin=1, end=2, last=1)),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_checker_finds_one_corrupted_read_in_a_real_history(history: dict[str, list[Record]], corruption: str) -> None:
    """One read, changed by one field in a real history, is found, wherever it stands."""
    kinds, change = CORRUPTIONS[corruption]
    versions = [(name, k) for name, records in history.items() for k, r in enumerate(records) if _is_telling(r)]
    assert len(versions) > 20
    for name, k in versions[:: len(versions) // 10]:
        records = list(history[name])
        records[k] = change(records[k])
        verdict = soak_checker.check({**history, name: records})
        assert any(verdict.violations[kind] for kind in kinds), (name, records[k], verdict.violations)


def _is_telling(r: Record) -> bool:
    return r.kind == READ and r.outcome == OK and r.version > 1 and r.what == 0


def test_checker_finds_one_lost_update_in_a_real_history(history: dict[str, list[Record]]) -> None:
    """An acknowledgement, changed in a real history to another version's number, is found."""
    verdicts = []
    for name, records in history.items():
        done = [k for k, r in enumerate(records) if r.kind == DONE and r.outcome == OK and r.version > 2]
        for k in done[: len(done) : max(1, len(done) // 2)]:
            changed = list(records)
            changed[k] = changed[k]._replace(version=changed[k].version - 1)
            verdicts.append(soak_checker.check({**history, name: changed}))
    assert len(verdicts) > 3
    assert all(verdict.violations["lost"] for verdict in verdicts)


def test_last_record_that_is_torn_is_left_out() -> None:
    """A history cut off anywhere in its last record has the records before it; damage elsewhere is an error."""
    raw = b"".join(soak_history.packed(r) for r in GOOD["r"])
    size = soak_history.SIZE
    for cut in range(1, size):
        records, torn = soak_history.parse(raw[:-cut])
        assert torn
        assert records == GOOD["r"][:-1]
    assert soak_history.parse(raw) == (GOOD["r"], False)
    assert soak_history.parse(raw[:-1] + bytes([raw[-1] ^ 1])) == (GOOD["r"][:-1], True)
    with pytest.raises(ValueError, match="damaged"):
        soak_history.parse(bytes([raw[0] ^ 1]) + raw[1:])
