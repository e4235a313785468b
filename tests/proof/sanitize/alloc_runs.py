"""Run the sweep over allocations (alloc_program.py) with one of the builds of alloc_build.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def sweep(store: str, package: Path, operations: Iterable[str], how: int = 0, stop: bool = False) -> list[Any]:
    """Sweep some operations, in a process of their own; returns the answers."""
    arguments = [store, str(package), str(how), *(["--stop"] if stop else []), *operations]
    path = os.pathsep.join([str(package), *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)])
    done = subprocess.run(
        [sys.executable, str(HERE / "alloc_program.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if stop else None,  # mutants crash as they should
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, f"the sweep ended with {done.returncode}: {done.stderr}"
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [answer["failed"] for answer in answers if "failed" in answer]
    assert not failed, failed[0]
    return answers


def sweep_all(store: str, package: Path, operations: list[str], how: int = 0, programs: int = 2) -> list[Any]:
    """Sweep operations, side by side."""
    with ThreadPoolExecutor(programs) as pool:
        parts = [operations[k::programs] for k in range(programs)]
        done = pool.map(lambda k: sweep(f"{store}-{k}", package, parts[k], how), range(programs))
        return [answer for answers in done for answer in answers]
