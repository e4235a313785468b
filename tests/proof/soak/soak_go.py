"""Run a soak in a process of its own, and check its histories: for the tests and for the nightly run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import soak_checker
import soak_history

HERE = Path(__file__).resolve().parent
GROWTH = 512  # kB by which a process that lives through the soak may grow from its second to its last fifth
AT_REST = ("names too many", "names missing", "bytes too many", "not at rest", "held")
AT_THE_END = ("names after destroy", "descriptors after close")


class Result(NamedTuple):
    """A soak and what its histories say."""

    said: dict[str, Any]
    verdict: soak_checker.Verdict
    errors: list[str]

    @property
    def left(self) -> list[str]:
        """What is wrong at rest, one reclaim after the soak."""
        rest = self.said["rest"]
        wrong = [f"{what}: {rest.get(what)}" for what in (*AT_REST, *AT_THE_END) if rest.get(what, "not known")]
        return wrong + ([] if rest.get("versions too many", 1) <= 0 else ["versions that nobody holds"])

    @property
    def violations(self) -> dict[str, int]:
        """How many of each kind; "at rest": something is left, or a process failed."""
        count = {kind: len(found) for kind, found in self.verdict.violations.items()}
        return {**count, "at rest": len(self.left) + len(self.said["failed"])}

    def told(self) -> str:
        """The first violations in words."""
        found = [f"{kind}: {text}" for kind, texts in self.verdict.violations.items() for text in texts[:3]]
        return "\n".join([*found, *self.left, *self.said["failed"], *self.errors[:5]])


def go(store: str, directory: Path, package: Path, asked: dict[str, Any]) -> Result:
    """Run one soak of the shmcow that is in `package`."""
    path = os.pathsep.join([str(package), *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)])
    run = subprocess.run(
        [sys.executable, str(HERE / "soak_run.py"), store, str(directory), json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=asked["seconds"] + 120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    errors = [line for file in sorted(directory.glob("*.error")) for line in file.read_text().splitlines()]
    errors += run.stderr.splitlines()[-5:]
    return Result(json.loads(run.stdout), soak_checker.check(soak_history.load(directory)), errors)


def growth(samples: list[list[int]]) -> dict[str, Any]:
    """Compare a process's early with its late samples: memory (kB) and descriptors."""
    fifth = max(1, len(samples) // 5)
    early, late = samples[fifth : 2 * fifth], samples[-fifth:]
    median = {name: [int(statistics.median(s[k] for s in part)) for part in (early, late)] for k, name in NAMES}
    most = {name: [max(s[k] for s in part) for part in (early, late)] for k, name in NAMES}
    return {"private kB": median["private"], "shared kB": median["shared"], "descriptors": most["descriptors"]}


NAMES = ((0, "private"), (1, "shared"), (2, "descriptors"))
