"""Programs that sweep, side by side: tasks go to whoever is free."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


class Program:
    """One program that sweeps, with a store name of its own."""

    def __init__(self, tracer: Path, store: str, package: Path) -> None:
        path = os.pathsep.join([str(package), *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)])
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "sweep_program.py"), str(tracer), store, str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def do(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do one task."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or b'{"failed": "the program that sweeps died"}')
        assert "failed" not in answer, f"{task}: {answer['failed']}"
        return dict(answer)

    def close(self) -> None:
        """End the program."""
        self._process.communicate(timeout=60)


def run_all(
    tasks: Iterable[dict[str, Any]], tracer: Path, store: str, package: Path, programs: int = 2
) -> list[dict[str, Any]]:
    """Do all tasks, and return their answers in order."""
    free: queue.SimpleQueue[Program] = queue.SimpleQueue()
    all_of_them = [Program(tracer, f"{store}-{k}", package) for k in range(programs)]
    for program in all_of_them:
        free.put(program)

    def do(task: dict[str, Any]) -> dict[str, Any]:
        program = free.get()
        try:
            return program.do(task)
        finally:
            free.put(program)

    try:
        with ThreadPoolExecutor(programs) as pool:
            return list(pool.map(do, tasks))
    finally:
        for program in all_of_them:
            program.close()
