"""Kills at every instruction of the protocol header, and meetings of readers and writers at every instruction."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("stepping")))

import stepping_build
import stepping_mutants
from stepping_build import CSRC

SECONDS = 600  # a watchdog
HEADER = CSRC / "shmcow_protocol.h"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stepping")


@pytest.fixture(scope="module")
def made(folder: Path) -> list[str]:
    """What all builds have in common, compiled once."""
    if stepping_build.compiler() is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev)")
    if platform.machine() != "x86_64":
        pytest.skip("single-steps x86-64 only (tests/proof/nightly/stepping does aarch64, in an emulator on x86-64)")
    return stepping_build.objects(folder)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_kill_at_every_instruction_leaves_a_store_that_recovers(folder: Path, made: list[str]) -> None:
    """Killed behind any instruction, and its successors in recovery, too, a writer leaves a store that is whole."""
    begin = _cpu()
    done = stepping_build.run(stepping_build.program(folder, "gcc-O2", made, ["-O2"]), "kills", SECONDS)
    print(done.stdout, f"{_cpu() - begin:.1f} s of CPU")
    assert (done.returncode, done.stderr) == (0, "")
    found = stepping_build.totals(done.stdout)
    assert found["violations"] == 0
    assert found["stops"] > 50_000
    assert found["images"] > 2_000
    assert found["kills in a row"] > 1


@pytest.mark.parametrize(("cc", "flags"), [("gcc", ["-O0"]), ("clang", ["-O2"])], ids=["gcc -O0", "clang -O2"])
def test_other_compilers_instructions_leave_a_store_that_recovers(
    folder: Path, made: list[str], cc: str, flags: list[str]
) -> None:
    """Killed behind any store, as other compilers order them, a writer leaves a store that is whole."""
    if stepping_build.compiler(cc) is None:
        pytest.skip(f"needs {cc} (Debian: apt-get install {cc})")
    begin = _cpu()
    done = stepping_build.run(stepping_build.program(folder, cc + flags[0], made, flags, cc), "stores", SECONDS)
    print(done.stdout.splitlines()[-2], f"{_cpu() - begin:.1f} s of CPU")
    assert (done.returncode, done.stderr) == (0, "")
    assert stepping_build.totals(done.stdout)["images"] > 2_000


def test_reader_and_writer_may_meet_at_any_instruction(folder: Path, made: list[str]) -> None:
    """A hold anywhere within a writer's operation, and turns of writers anywhere within a hold, do no harm."""
    begin = _cpu()
    done = stepping_build.run(stepping_build.program(folder, "meet", made, ["-O2"]), "meet", SECONDS)
    print(done.stdout, f"{_cpu() - begin:.1f} s of CPU")
    assert (done.returncode, done.stderr) == (0, "")
    assert stepping_build.totals(done.stdout)["meetings"] > 10_000


def test_stepping_finds_its_mutants(folder: Path, made: list[str]) -> None:
    """Each weakening of the protocol that a kill or a meeting at one instruction can show is caught."""
    source = HEADER.read_text()
    missed, begin = [], _cpu()
    for number, (mutant, how) in enumerate(stepping_mutants.ALL):
        weak = stepping_mutants.weaken(source, mutant)
        built = stepping_build.program(folder, f"mutant-{number}", made, ["-O0"], header=weak)
        done = stepping_build.run(built, how, 300, "first")
        print(f"{mutant.name} ({how}): {done.stderr.partition(chr(10))[0] or 'MISSED'}")
        if done.returncode == 0 or "VIOLATION" not in done.stderr:
            missed.append(mutant.name)
    print(f"{len(stepping_mutants.ALL)} mutants, {_cpu() - begin:.1f} s of CPU")
    assert len(stepping_mutants.ALL) == len(stepping_mutants.KILLS + stepping_mutants.MEETINGS + stepping_mutants.OWN)
    assert not missed
