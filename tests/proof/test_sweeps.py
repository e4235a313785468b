"""Kills and errors at every system call of every operation: nothing is torn, lost or left behind (see sweeps.md)."""

from __future__ import annotations

import collections
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.extend([str(Path(__file__).with_name("sweeps")), str(Path(__file__).parents[1] / "concurrency")])

import sweep_mutants
import sweep_pool
import sweep_tracer
from sweep_jobs import OPS
from sweep_tracer import ALLOCATOR, KILL_AT_ENTRY, KILL_AT_EXIT, without_allocator

import shmcow

ERRORS = ["ENOSPC", "ENOMEM", "EMFILE", "EINTR", "EACCES", "EIO", "EFBIG", "ENOLCK"]
PACKAGE = Path(shmcow.__file__).resolve().parents[1]
# Also killed at the exit of each call: done, but the process has not gone on.
BOTH_SIDES = (
    "create with a first version",
    "publish, three segments",
    "rollback, three segments",
    "reclaim, readers come late",
    "destroy, three segments",
)
# What recovery is killed in: of the distinct images that the kills of an operation leave, one in so many.
RECOVERIES = {
    "publish, three segments": 3,
    "rollback, three segments": 2,
    "reclaim": 6,
    "destroy, three segments": 5,
    "create with a first version": 4,
}
EVERY_ERROR = ("publish, three segments",)
# Where errors once did harm: what fails, and with what.
REGRESSIONS = (
    ("attach a writer", "EIO"),  # a lock file that could not be looked at ended the store
    ("destroy by name", "EACCES"),  # a header that could not be looked at: success, and nothing was destroyed
    ("publish", "ENOLCK"),  # an unlock that failed kept the writer lock for the life of the process
    ("rollback", "ENOLCK"),  # and kept a version from being reclaimed
    ("publish", "ENOSPC"),  # a new segment that could not be looked at: "something else has the name"
    ("create", "ENOMEM"),  # a descriptor that could not be looked at was left open
)
Run = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def tracer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tracer was built."""
    if sweep_tracer.compiler() is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev)")
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the tracer knows the registers of x86-64 and aarch64")
    directory = tmp_path_factory.mktemp("tracer")
    sweep_tracer.build(directory)
    return directory


@pytest.fixture
def run(tracer: Path, name: str) -> Run:
    """Do tasks, on as many programs as there are cores."""

    def run_all(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sweep_pool.run_all(tasks, tracer, name, PACKAGE, len(os.sched_getaffinity(0)))

    return run_all


def _no_violations(answers: list[dict[str, Any]]) -> None:
    found = [text for answer in answers for text in answer["violations"]]
    assert not found, f"{len(found)} violations:\n" + "\n".join(found[:10])


def _cpu(answers: list[dict[str, Any]]) -> str:
    return f"{sum(answer['cpu'] for answer in answers):.0f} s of CPU"


def test_kill_at_every_system_call_leaves_a_whole_store(run: Run, record_property: Callable[..., None]) -> None:
    """Killed at any system call that strace sees, an operation leaves a store that reads, goes on and comes to rest."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace (Debian: apt-get install strace)")
    kills = [{"do": "kill", "name": name, "wheres": [KILL_AT_ENTRY]} for name in OPS]
    exits = [{"do": "kill", "name": name, "wheres": [KILL_AT_EXIT]} for name in BOTH_SIDES]
    traces = [{"do": "strace", "name": name} for name in OPS]
    answers = run(kills + exits + traces)
    killed, more, seen = answers[: len(OPS)], answers[len(OPS) : -len(OPS)], answers[-len(OPS) :]
    _no_violations(killed + more)

    def calls(kill: dict[str, Any]) -> dict[str, int]:
        return {call: n for call, n in kill["calls"].items() if call not in ALLOCATOR}

    for at, (name, trace) in enumerate(zip(OPS, seen, strict=True)):
        by_strace, by_tracer = without_allocator(trace["strace"]), without_allocator(trace["tracer"])
        assert by_tracer == by_strace, f"{name}: the tracer does not see what strace sees"
        assert calls(killed[at]) == collections.Counter(by_strace), f"{name}: not every call was killed at"
    for kill, trace in zip(killed, seen, strict=True):
        mapped = collections.Counter(trace["strace"])
        assert {call: kill["calls"].get(call, 0) > 0 for call in ("mmap", "munmap")} == {
            call: mapped[call] > 0 for call in ("mmap", "munmap")
        }
    points = sum(kill["points"] for kill in killed)
    at_exit = sum(kill["points"] for kill in more)
    print(
        f"kills: {points} of {points} (name, k) pairs of {len(OPS)} operations at the entry, {at_exit} at the exit "
        f"of a call, 0 violations, {_cpu(answers)}"
    )
    record_property("kill_points", points + at_exit)
    assert points >= 300


def test_recovery_killed_at_every_system_call_has_a_successor(run: Run, record_property: Callable[..., None]) -> None:
    """Killed at any system call of recovery, from what another kill left, a writer has a successor."""
    tasks = [
        {"do": "recover", "name": name, "wheres": [KILL_AT_ENTRY], "distinct": True, "parts": parts}
        for name, parts in RECOVERIES.items()
    ]
    answers = run(tasks)
    _no_violations(answers)
    points = sum(answer["points"] for answer in answers)
    images = sum(answer["images"] for answer in answers)
    print(f"kills in recovery: {points}, after {images} distinct images, 0 violations, {_cpu(answers)}")
    record_property("recovery_points", points)
    assert points >= 300


def test_error_of_every_system_call_is_told_or_harmless(run: Run, record_property: Callable[..., None]) -> None:
    """Whatever system call fails, there is a specific error and the old version, or success and the new one."""
    tasks = [{"do": "fail", "name": n, "errors": ERRORS, "rotate": n not in EVERY_ERROR} for n in OPS]
    answers = run(tasks)
    _no_violations(answers)
    outcomes: collections.Counter[str] = collections.Counter()
    for answer in answers:
        outcomes.update(answer["outcomes"])
    cases = sum(answer["cases"] for answer in answers)
    kinds = collections.Counter()
    for outcome, n in outcomes.items():
        kinds[outcome.partition(": ")[2]] += n
    print(f"errors: {cases} cases, 0 violations, {_cpu(answers)}: {dict(kinds.most_common())}")
    record_property("error_cases", cases)
    assert cases >= 300
    assert {outcome.partition(":")[0] for outcome in outcomes} == set(ERRORS)


def test_errors_that_once_did_harm_do_none(run: Run) -> None:
    """Errors that ended a store, kept a lock or lost a descriptor are told, and nothing else happens."""
    answers = run([{"do": "fail", "name": name, "errors": [error]} for name, error in REGRESSIONS])
    _no_violations(answers)
    cases = sum(answer["cases"] for answer in answers)
    print(f"errors that once did harm: {cases} cases, {_cpu(answers)}")
    assert cases >= 200


def test_sweeps_find_their_mutants(tracer: Path, name: str, tmp_path: Path) -> None:
    """Each weakened build of shmcow is caught by a sweep."""
    missed = []
    places = sweep_mutants.build_all(tmp_path)
    for number, mutant in enumerate(sweep_mutants.MUTANTS):
        store = f"{name}-{number}-{secrets.token_hex(2)}"
        (answer,) = sweep_pool.run_all([mutant.task], tracer, store, places[mutant.name], 1)
        first = (answer["violations"] or [""])[0]
        print(f"mutant: {mutant.name}: {' '.join(first.split())[:160] or 'MISSED'}")
        if not first:
            missed.append(mutant.name)
    assert not missed
