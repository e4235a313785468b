"""Every allocation of the extension fails, one at a time: MemoryError or success, and nothing is left behind."""

from __future__ import annotations

import collections
import os
import secrets
import sys
from pathlib import Path

import pytest

sys.path.extend([str(Path(__file__).with_name("sanitize")), str(Path(__file__).with_name("sweeps"))])

import alloc_build
import alloc_runs

OPERATIONS = [
    "create with a first version",
    "publish",
    "update, few versions",
    "rollback, few versions",
    "attach a writer, few versions",
    "attach a reader",
    "hold",
    "hold an older version",
    "wait",
    "subscribe",
    "pickle",
    "fork",
    "destroy",
    "build tables",
    "look tables up",
]

Builds = tuple[Path, dict[str, Path]]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    if alloc_build.possible():
        pytest.skip(alloc_build.possible())
    return alloc_build.build_all(tmp_path_factory.mktemp("allocations"))


def test_every_failed_allocation_is_a_memory_error_or_harmless(builds: Builds, name: str) -> None:
    """Whatever allocation of the extension fails: the old version or the new one, nothing kept, and it can go on."""
    answers = alloc_runs.sweep_all(name, builds[0], OPERATIONS, programs=len(os.sched_getaffinity(0)))
    outcomes: collections.Counter[str] = collections.Counter()
    for answer in answers:
        outcomes.update(answer["outcomes"])
        print(f"{answer['op']}: {answer['cases']} allocations, {answer['cpu']} s of CPU")
    violations = [text for answer in answers for text in answer["violations"]]
    print(f"allocations that failed: {outcomes.total()}, {len(violations)} violations: {dict(outcomes)}")
    assert not violations, "\n".join(violations[:5])
    assert {answer["op"] for answer in answers if answer["cases"] >= 5} == set(OPERATIONS)
    assert set(outcomes) <= {"MemoryError", "OSError", "success"}
    assert outcomes["MemoryError"] > 300


@pytest.mark.parametrize("mutant", alloc_build.MUTANTS, ids=lambda mutant: mutant.name)
def test_forgetful_code_is_caught(builds: Builds, name: str, mutant: alloc_build.Forgetful) -> None:
    """A check or a cleaning up that is taken out of the source is found out."""
    store = f"{name}-{secrets.token_hex(2)}"
    (answer,) = alloc_runs.sweep(store, builds[1][mutant.name], [mutant.op], stop=True)
    found = " ".join((answer["violations"] or ["MISSED"])[0].split())
    print(f"{mutant.name}: {found[:200]}")
    assert answer["violations"]
