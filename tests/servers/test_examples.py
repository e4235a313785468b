"""The examples that are plain programs, run as their first lines say: each shows what it claims, and leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmcow

ROOT = Path(shmcow.__file__).parents[1]
WATCHDOG = 120.0
PLAIN = sorted(
    path.name
    for path in (ROOT / "examples").glob("*.py")
    if f"\nRun: python examples/{path.name}\n" in path.read_text(encoding="utf-8")
)


def start(example: str, *options: str, folder: Path = ROOT) -> subprocess.Popen[str]:
    """Start an example; in another folder, by its whole path."""
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    file = f"examples/{example}" if folder == ROOT else str(ROOT / "examples" / example)
    return subprocess.Popen(
        [sys.executable, *options, file],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(program: subprocess.Popen[str]) -> str:
    """Wait for the end of an example, and return what it printed; it must have said nothing else, and left nothing."""
    try:
        printed, said = program.communicate(timeout=WATCHDOG)
    finally:
        program.kill()
    assert (program.returncode, said) == (0, "")
    left = [file for file in os.listdir("/dev/shm") if re.match(rf"shmcow\.example-\w+-{program.pid}(\.|$)", file)]
    assert not left
    return printed


def check_config_workers(lines: list[str]) -> None:
    """Four workers each see versions 2 and 3, with the greeting of that version."""
    found = [re.fullmatch(r"worker (\d+) sees version (\d): (.+)", line) for line in lines]
    assert [(seen[2], seen[3]) for seen in found if seen] == [("2", "good morning")] * 4 + [("3", "good night")] * 4
    assert len({seen[1] for seen in found if seen}) == 4


def check_pool_on_one_version(lines: list[str]) -> None:
    """All jobs computed on version 1, which was there beside the newest, and went."""
    assert lines == [
        "40 jobs computed on version 1; versions there at the end: [41, 1]",
        "nobody holds version 1 any more; versions there: [41]",
    ]


CHECKS = {"config_workers.py": check_config_workers, "pool_on_one_version.py": check_pool_on_one_version}


def test_every_check_finds_its_example() -> None:
    """An example that lost its "Run:" line would not be run here."""
    assert set(CHECKS) <= set(PLAIN)


@pytest.mark.parametrize("example", PLAIN)
def test_example_shows_what_it_claims(example: str, tmp_path: Path) -> None:
    """Two at once, from the checkout and from elsewhere with every warning shown, neither in the other's way."""
    programs = [start(example), start(example, "-X", "dev", folder=tmp_path)]
    try:
        for program in programs:
            printed = finish(program)
            assert "version" in printed
            if example in CHECKS:
                CHECKS[example](printed.splitlines())
    finally:
        for program in programs:
            program.kill()
            program.wait()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("example", PLAIN)
def test_example_is_short_and_checks_its_own_claim(example: str) -> None:
    """What a newcomer reads first: fewer than 80 lines, with an assertion, in a store that is named as an example's."""
    text = (ROOT / "examples" / example).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert re.match(r'"""[A-Z].*\.\n\nRun: python examples/', text)
    assert "    assert " in text
    assert 'STORE = f"example-' in text
