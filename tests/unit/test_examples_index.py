"""examples/README.md names, for each use that shmcow is made for, the file that shows it and the test that runs it."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

import shmcow

ROOT = Path(shmcow.__file__).parents[1]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))

# What shmcow must be good for. A use that is added here needs an example, and a test that runs it.
USES = [
    "reloadable configuration",
    "feature flags",
    "service-discovery cache refreshed by a timer",
    "routing table with longest-prefix match",
    "country and currency reference data",
    "geo-IP reference data",
    "TLS certificate rotation",
    "metric registry",
    "A/B buckets (millions of user ids)",
    "trusted-IP allowlist (CIDR)",
    "a small key-value map: get, set, delete, range, batch put",
    "an append-only log of bounded size",
    "watch with unsubscribe",
    "cancel and restart a job when configuration changes",
    "what changed since version n",
    "several keys read from one consistent version",
    "compare-and-swap update",
    "swap that returns the previous value",
    "one snapshot per request in middleware",
    "sharding by key across stores",
    "two related tables changed together",
    "snapshot exported as a metrics or debug page",
    "logger whose level follows the snapshot",
    "graceful degradation on a failed reload, counted",
    "validation inside the writer",
    "an exception while building leaves the old version",
]


def rows() -> dict[str, tuple[list[str], list[str]]]:
    """Return the rows of the index: the files and the tests by the use."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for line in (EXAMPLES / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 3 or cells[0] == "use" or set(cells[0]) == {"-"}:
            continue
        assert cells[0] not in found, f"two rows for {cells[0]}"
        found[cells[0]] = re.findall(r"\]\(([^)]+)\)", cells[1]), re.findall(r"`([^`]+)`", cells[2])
    return found


@functools.cache
def functions(path: Path) -> dict[str, str]:
    """Return the source of each test function of a file, by its name."""
    text = path.read_text(encoding="utf-8")
    return {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def source_of(test: str) -> str:
    """Return the source of a test that is named as pytest names it."""
    path, _, function = test.partition("::")
    return functions(ROOT / path)[function]


def test_every_use_has_its_row() -> None:
    """Nothing that shmcow must be good for is without an example."""
    assert [use for use in USES if use not in rows()] == []


@pytest.mark.parametrize("use", rows())
def test_row_names_files_and_tests_that_exist(use: str) -> None:
    """Each row links to files of the project and names tests that are there."""
    files, tests = rows()[use]
    assert files
    assert tests
    for file in files:
        assert (EXAMPLES / file).exists(), file
    for test in tests:
        assert source_of(test)


def test_every_example_has_its_row() -> None:
    """No program and no folder of examples is missing in the index."""
    named = {Path(file).parts[0] for files, _ in rows().values() for file in files}
    there = {
        path.name for path in EXAMPLES.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert there - named == set()


@pytest.mark.parametrize("example", PROGRAMS)
def test_example_begins_with_what_it_is_for(example: str) -> None:
    """What a newcomer reads first: the problem, what to run, what is printed; short, and checking its own claim."""
    text = (EXAMPLES / example).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    words = ast.get_docstring(ast.parse(text)) or ""
    if f"\nRun: python examples/{example}" not in words:  # those are in test_examples.py
        assert re.search(
            rf"^[A-Z].*[.?]\n\nProblem: .*\nRun it: python examples/{example}\b.*\nIt prints: ", words, re.DOTALL
        )
    assert "    assert " in text
    assert 'STORE = f"example-' in text


@pytest.mark.parametrize("example", PROGRAMS)
def test_example_is_run_by_a_test_of_each_of_its_rows(example: str) -> None:
    """A row that links an example names a test that runs this very file."""
    plain = "tests/servers/test_examples.py::test_example_shows_what_it_claims"  # runs all with a line "Run: ..."
    is_plain = f"\nRun: python examples/{example}\n" in (EXAMPLES / example).read_text(encoding="utf-8")
    for use, (files, tests) in rows().items():
        if example in files:
            assert any(is_plain if test == plain else f'"{example}"' in source_of(test) for test in tests), use
