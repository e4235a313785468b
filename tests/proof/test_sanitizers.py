"""C unit tests, and a part of the Python suite with the extension, under ASan and UBSan: no reports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).with_name("sanitize")))

import san_build

# What reads and writes shared memory, and what is given back after an error, a fork or a thread.
TESTS = [
    "tests/unit/test_snapshot.py",
    "tests/unit/test_writer.py",
    "tests/unit/test_reader.py",
    "tests/unit/test_corruption.py",
    "tests/unit/test_table.py",
    "tests/unit/test_table_hostile.py",
    "tests/unit/test_iptable.py",
    "tests/concurrency/test_fork.py",
]
SLOW = "not another_user and not root_writes and not read_permission and not group_that"  # processes of other users

Builds = tuple[Path, list[Path]]


def _cpu() -> float:
    return sum(os.times()[:4])


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    if san_build.possible():
        pytest.skip(san_build.possible())
    return san_build.build_all(tmp_path_factory.mktemp("sanitizers"))


def test_format_and_words_have_no_report(tmp_path: Path) -> None:
    """The C functions that Python reaches only with sound bytes, at their edges."""
    if san_build.possible():
        pytest.skip(san_build.possible())
    program = san_build.build_program(san_build.HERE / "format_test.c", tmp_path / "format_test")
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[0]) > 10_000


def test_suite_has_no_report(builds: Builds) -> None:
    """The tests pass, and neither sanitizer has anything to say, in any of their processes."""
    cpu = _cpu()
    done, reports = san_build.run_tests(builds[0], TESTS, "-k", SLOW)
    last = done.stdout.splitlines()[-1]
    print(f"ASan and UBSan: {last}; {len(reports)} reports; {_cpu() - cpu:.0f} s of CPU")
    assert not reports, reports[:5]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", last)
    assert passed is not None
    assert int(passed[1]) > 150


@pytest.mark.parametrize("number", range(len(san_build.PLANTED)), ids=lambda n: san_build.PLANTED[n].name)
def test_planted_bug_is_reported(builds: Builds, number: int) -> None:
    """A bug in a copy of the source is reported for what it is."""
    bug = san_build.PLANTED[number]
    _, reports = san_build.run_tests(builds[1][number], [bug.tests], "-x")
    print(f"{bug.name}: {reports[:1]}")
    assert any(bug.expected in report for report in reports)
