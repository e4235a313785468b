"""mypy and pyright see the public face as it is meant: tests/typing/check_types.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = ROOT / "tests" / "typing" / "check_types.py"


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is missing: pip install 'shmcow[lint]'")
    return subprocess.run(
        [sys.executable, "-m", tool, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)},
        check=False,
    )


def test_mypy_agrees(tmp_path: Path) -> None:
    """mypy --strict accepts the file, and each of its ignore comments is needed."""
    done = run(
        "mypy",
        "--strict",
        "--warn-unused-ignores",
        "--enable-incomplete-feature=TypeForm",
        f"--cache-dir={tmp_path}",
        str(CHECKED),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_agrees(tmp_path: Path) -> None:
    """pyright in strict mode accepts the file, and each of its ignore comments is needed."""
    project = tmp_path / "pyrightconfig.json"
    project.write_text(
        f"""{{"include": ["{CHECKED}"], "extraPaths": ["{ROOT}"], "pythonVersion": "3.11",
        "enableTypeIgnoreComments": false,
        "enableExperimentalFeatures": true, "reportUnnecessaryTypeIgnoreComment": "error"}}"""
    )
    done = run("pyright", "--project", str(project), "--pythonpath", sys.executable)
    if "unable to" in done.stderr.lower() and "node" in done.stderr.lower():
        pytest.skip("pyright found no node: pip install 'pyright[nodejs]'")
    assert done.returncode == 0, done.stdout + done.stderr
