"""Random programs of the public API in real processes, held to a model of what is promised (see machine.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.extend([str(Path(__file__).with_name("machine")), str(Path(__file__).parents[1] / "concurrency")])

pytest.importorskip("hypothesis", reason="needs hypothesis (pip install hypothesis, or the test extra)")

import machine_go
import machine_mutants

RUNS = 500
VERBS = ("publish", "update", "patch", "edit", "swap", "rollback", "reclaim", "destroy", "destroy_by_name", "unused")
VERBS += ("get", "snapshot", "at", "wait", "hold", "release", "drop", "view", "send", "receive", "fork")
VERBS += ("close_reader", "close_writer", "idle kills", "die_in_update", "die_in_fill")


def test_processes_do_what_the_model_says(name: str, record_property: Callable[..., None]) -> None:
    """In 500 runs of up to 30 steps, every answer, the generation table and the markers are as the model says."""
    counts = machine_go.go(name, RUNS)
    print(f"state machine: {counts}")
    record_property("runs", counts["runs"])
    assert counts["runs"] >= RUNS
    assert counts["steps"] >= RUNS * 20
    assert all(counts.get(verb, 0) >= 5 for verb in VERBS), {verb: counts.get(verb, 0) for verb in VERBS}


@pytest.mark.parametrize("mutant", machine_mutants.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_planted_mistake_is_found(name: str, mutant: Callable[[], None]) -> None:
    """The state machine finds a wrong behaviour that was planted in the processes."""
    found = machine_go.failure(name, 200, mutant)
    print(f"{mutant.__name__}: {found or 'MISSED'}")
    assert found
