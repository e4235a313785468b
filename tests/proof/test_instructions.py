"""The hot paths take no more instructions than they did: counted, not timed, so that a busy machine changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "instructions"))

import count


def test_hot_paths_take_the_instructions_that_they_took() -> None:
    """Each path, as a multiple of an empty call in the same run, is within the tolerance of the committed baseline."""
    if why := count.missing():
        pytest.skip(why)
    baseline = json.loads(count.BASELINE.read_text())
    if baseline["machine"] != count.machine():
        pytest.skip(
            f"the baseline was counted with {baseline['machine']}, this is {count.machine()}: "
            "run `python tests/proof/instructions/count.py --write` before your change, and this test after it"
        )
    now = count.relative(count.count())
    print("\n".join(f"{path:<18} {figure:8.2f} empty calls" for path, figure in now.items()))
    assert count.changed(now, baseline["relative"]) == [], (
        "if this is meant, `python tests/proof/instructions/count.py --write` makes it the baseline"
    )
    assert now["get"] <= 1.1


def test_dearer_path_is_found() -> None:
    """Three per cent more, a path that is gone, and one that nobody counted before are each told."""
    before = {"get": 1.0, "publish": 400.0, "hold": 40.0}
    assert count.changed(before, before) == []
    found = count.changed({"get": 1.03, "publish": 388.0, "new": 2.0}, before)
    assert [line.split(":")[0] for line in found] == ["get", "hold", "new", "publish"]
