"""Two releases of shmcow whose layouts differ, on one machine: neither understands the other, both say so, and a
service gets from one to the other.

The other release is this one with the next ABI number and a larger header, built anew.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest

sys.path.append(str(Path(__file__).parents[1] / "proof"))

import copies

import shmcow
from shmcow import Reader, Writer, _core

OURS = copies.ROOT
DEFAULT = {"timeout": "the default"}

# Evaluates a line at a time. What is no expression is a statement.
ANSWERS = """
import sys
from shmcow import *
for line in sys.stdin:
    try:
        try:
            said = eval(line)
        except SyntaxError:
            said = exec(line)
        print("ok", ascii(said), flush=True)
    except (ShmcowError, OSError) as exc:
        print(type(exc).__name__, ascii(str(exc)), flush=True)
"""


@pytest.fixture(scope="session")
def other_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a package whose layout has another number and a larger header."""
    if copies.compiler() is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev python3-dev)")
    directory = tmp_path_factory.mktemp("other")
    sources = directory / "csrc"
    shutil.copytree(copies.SOURCES, sources)
    layout = sources / "shmcow_layout.h"
    text = layout.read_text()
    for pattern, new in (
        (r"#define SHMCOW_ABI \d+u", f"#define SHMCOW_ABI {_core.ABI + 1}u"),
        (r"\} shmcow_header;", "    _Alignas(64) _Atomic uint64_t more[8];\n} shmcow_header;"),
        (r"static_assert\(sizeof\(shmcow_header\)[^;]*;", ""),
    ):
        text, times = re.subn(pattern, new, text)
        assert times == 1, f"{pattern} does not fit {layout.name} any more"
    layout.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "SOURCES", sources)
        (package,) = copies.build(directory / "build", [copies.Copy("the other release")])
    return package


class Process:
    """A process of one of the two releases, that does as it is told."""

    def __init__(self, package: Path) -> None:
        self._process = subprocess.Popen(  # Python looks into the current directory first
            [sys.executable, "-c", ANSWERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=package,
        )

    def ask(self, line: str) -> tuple[str, Any]:
        """Return ("ok", result), or (the error's class, its text)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        kind, _, said = self._process.stdout.readline().partition(" ")
        return kind, ast.literal_eval(said)

    def __call__(self, line: str) -> Any:
        kind, said = self.ask(line)
        assert kind == "ok", f"{line}: {kind}: {said}"
        return said

    def refused(self, line: str) -> str:
        """Return the text of the IncompatibleStoreError that this must raise."""
        kind, said = self.ask(line)
        assert kind == "IncompatibleStoreError", f"{line}: {kind}: {said}"
        return str(said)

    def end(self) -> None:
        self._process.communicate(timeout=processes.WATCHDOG)


Start = Callable[[Path], Process]


@pytest.fixture
def start(name: str) -> Iterator[Start]:  # noqa: ARG001 - the stores go after the processes
    """Start processes of a release; they end with the test."""
    started: list[Process] = []

    def start_one(package: Path) -> Process:
        started.append(Process(package))
        return started[-1]

    yield start_one
    for process in started:
        process.end()


def command(package: Path, *words: str) -> tuple[int, str]:
    """Run a shmcow command of a release; return its exit code and all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "shmcow", *words],
        capture_output=True,
        text=True,
        timeout=processes.WATCHDOG,
        cwd=package,
    )
    return done.returncode, done.stdout + done.stderr


def numbers(text: str) -> list[int]:
    """Return the two ABI numbers of a refusal: expected, found."""
    return [int(number) for number in re.findall(r"expected ABI (\d+), found (\d+)", text)[0]]


OURS_FIRST = pytest.mark.parametrize("ours_first", [True, False], ids=["newer meets older", "older meets newer"])


# ---- what happens if they meet ----


@OURS_FIRST
def test_neither_release_reads_or_writes_the_others_store(
    name: str, start: Start, other_release: Path, ours_first: bool
) -> None:
    """Every way in is refused with both numbers, at once, and the owner of the store notices nothing."""
    first, second = (OURS, other_release) if ours_first else (other_release, OURS)
    owner, stranger = start(first), start(second)
    owner(f"w = Writer({name!r}, initial=1, retain=0)")
    owner(f"r = Reader({name!r})")
    assert owner("r.get()") == 1
    before = processes.objects_of(name)
    expected = [_core.ABI + 1, _core.ABI] if ours_first else [_core.ABI, _core.ABI + 1]
    for line in (
        f"Reader({name!r}).get()",
        f"Reader({name!r}, attach_timeout=1e6).get()",
        f"Reader({name!r}).wait(timeout=1e6)",
        f"Writer({name!r})",
        f"Writer({name!r}, initial=2)",
        f"destroy({name!r})",
        f"describe({name!r})",
        f"wait_readers({name!r}, 1, 1e6)",
    ):
        assert numbers(stranger.refused(line)) == expected, line
    assert processes.objects_of(name) == before
    assert owner("w.publish(2)") == 2
    assert owner("r.get()") == 2
    owner("w.destroy()")
    assert processes.objects_of(name) == set()


def test_commands_say_that_a_store_is_of_another_release(name: str, other_release: Path, tmp_path: Path) -> None:
    """Commands exit 6 with both numbers, lists name the store, and nothing that is not forced touches it."""
    writer = Writer(name, initial=1)
    before = processes.objects_of(name)
    file = tmp_path / "value.json"
    file.write_text("2")
    for words in (["get", name], ["publish", name, str(file)], ["rm", name, "--yes"], ["readers", name]):
        code, said = command(other_release, *words)
        assert code == 6, words
        assert numbers(said) == [_core.ABI + 1, _core.ABI]
    for code_expected, words in ((0, ["ls"]), (1, ["doctor", name]), (0, ["gc", name])):
        code, said = command(other_release, *words)
        assert code == code_expected, words
        (line,) = [line for line in said.splitlines() if name in line]
        assert numbers(line) == [_core.ABI + 1, _core.ABI]
    assert processes.objects_of(name) == before
    assert writer.publish(2) == 2
    code, said = command(other_release, "rm", name, "--force", "--yes")
    assert code == 0, said
    assert processes.objects_of(name) == set()
    writer.close()


def test_default_hides_a_store_of_another_release_until_there_is_one_that_fits(
    name: str, start: Start, other_release: Path
) -> None:
    """A reader with a default goes on with that, its problem says why, and a store that it understands is taken up."""
    worker = start(other_release)
    worker(f"r = Reader({name!r}, default={DEFAULT})")
    with Writer(name, initial={"timeout": 1}) as writer:
        assert worker("r.get()") == DEFAULT
        assert numbers(worker("str(r.problem)")) == [_core.ABI + 1, _core.ABI]
        writer.destroy()
    worker(f"w = Writer({name!r}, initial={{'timeout': 2}})")
    assert worker("r.get()") == {"timeout": 2}
    assert worker("r.problem") is None
    worker("w.destroy()")


def test_running_reader_keeps_its_value_when_the_other_release_takes_the_name(
    name: str, start: Start, other_release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once, and takes up the next store that it understands."""
    with Writer(name, initial={"timeout": 1}) as writer:
        reader = Reader(name)
        assert reader.get() == {"timeout": 1}
        writer.destroy()
    other = start(other_release)
    other(f"w = Writer({name!r}, initial={{'timeout': 2}})")
    for _ in range(3):
        reader.refresh()
        assert reader.get() == {"timeout": 1}
    assert isinstance(reader.problem, shmcow.IncompatibleStoreError)
    assert numbers(str(reader.problem)) == [_core.ABI, _core.ABI + 1]
    assert sum("expected ABI" in record.message for record in caplog.records) == 1
    other("w.destroy()")
    with Writer(name, initial={"timeout": 3}) as writer:
        reader.refresh()
        assert reader.get() == {"timeout": 3}
        assert reader.problem is None
        writer.destroy()


# ---- the ways through ----


def test_rolling_restart_under_a_new_name(name: str, start: Start, other_release: Path) -> None:
    """Workers are restarted one by one while both releases publish: each has the newest value at any time."""
    names = {OURS: name, other_release: f"{name}-2"}
    writers: dict[Path, Process] = {}
    published = 0

    def publish() -> None:
        nonlocal published
        published += 1
        for writer in writers.values():
            writer(f"w.publish({published})")

    def work(package: Path) -> Process:
        worker = start(package)
        worker(f"r = Reader({names[package]!r})")
        return worker

    def write(package: Path) -> None:
        writers[package] = start(package)
        writers[package](f"w = Writer({names[package]!r}, initial={published})")

    def all_are_up_to_date() -> None:
        publish()
        assert [worker("(r.get(), r.problem)") for worker in workers] == [(published, None)] * len(workers)

    write(OURS)
    workers = [work(OURS) for _ in range(2)]
    all_are_up_to_date()
    write(other_release)
    for number in (0, 1):
        workers[number] = work(other_release)
        all_are_up_to_date()
    workers[0] = work(OURS)  # and back, as the old store is still fed
    all_are_up_to_date()
    workers[0] = work(other_release)
    assert command(OURS, "rm", name, "--yes")[0] == 0
    del writers[OURS]
    assert processes.objects_of(name) == set()
    all_are_up_to_date()
    writers[other_release]("w.destroy()")


def test_restart_under_the_same_name(name: str, start: Start, other_release: Path, tmp_path: Path) -> None:
    """Saved and removed with the old release, imported with the new: old workers live on their last value meanwhile."""
    saved = str(tmp_path / "saved")
    writer, old = start(OURS), start(OURS)
    writer(f"w = Writer({name!r}, initial={{'timeout': 1}})")
    writer("w.publish({'timeout': 2}, message='why', author='me')")
    old(f"r = Reader({name!r})")
    assert old("r.get()") == {"timeout": 2}
    for words in (["export", name, saved], ["rm", name, "--yes"]):
        assert command(OURS, *words)[0] == 0, words
    assert processes.objects_of(name) == set()
    assert old("r.refresh() or r.get()") == {"timeout": 2}
    assert "destroyed" in old("str(r.problem)")
    code, said = command(other_release, "import", name, saved)
    assert code == 0, said
    assert old("r.refresh() or r.get()") == {"timeout": 2}
    assert "expected ABI" in old("str(r.problem)")
    new = start(other_release)
    new(f"r = Reader({name!r})")
    assert new("(r.get(), r.version)") == ({"timeout": 2}, 1)
    new(f"destroy({name!r})")
