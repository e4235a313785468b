"""The protocol's functions one by one in C, and that this test catches slips of the pen (see coverage.md)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).with_name("mutation")))

import mutation_operators
from equivalent import EQUIVALENT

HERE = Path(__file__).with_name("mutation")
CSRC = Path(__file__).parents[2] / "csrc"
FILES = ("shmcow_protocol.h", "shmcow_format.h", "shmcow_crc.h")
SAMPLE = 40  # one mutant in so many; nightly/mutation has all
TRAP = ["-fsanitize=undefined,bounds-strict", "-fsanitize-undefined-trap-on-error"]  # needs no library


@pytest.fixture(scope="module")
def compiler() -> str:
    """The C compiler."""
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev)")
    return found


def _unit(compiler: str, place: Path, mutant: mutation_operators.Mutant | None) -> subprocess.CompletedProcess[str]:
    place.mkdir()
    for file in CSRC.glob("shmcow_*.h"):
        text = file.read_text()
        (place / file.name).write_text(mutant.apply(text) if mutant and mutant.file == file.name else text)
    flags = ["-std=c11", "-D_GNU_SOURCE", *(["-O0", "-w", *TRAP] if mutant else ["-O2", "-Wall"])]
    command = [compiler, *flags, f"-I{place}", f"-I{HERE}", str(HERE / "unit.c"), "-o", str(place / "unit")]
    subprocess.run(command, check=True)
    try:
        return subprocess.run([place / "unit"], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 1, "hangs", "")


def _all() -> list[mutation_operators.Mutant]:
    return [mutant for file in FILES for mutant in mutation_operators.mutants(file, (CSRC / file).read_text())]


def test_each_function_of_the_protocol_answers_as_it_says(compiler: str, tmp_path: Path) -> None:
    """Every result, both sides of every bound, every failure of the world, and the order of the steps."""
    done = _unit(compiler, tmp_path / "unit", None)
    assert (done.returncode, done.stdout) == (0, "unit: 0 failures\n")


def test_unit_test_catches_slips_of_the_pen(compiler: str, tmp_path: Path) -> None:
    """One in so many mutants of protocol and format is built, and makes the unit test fail."""
    chosen = [mutant for mutant in _all() if mutant.name not in EQUIVALENT and "fence" not in mutant.name][::SAMPLE]

    def one(number: int) -> tuple[str, str]:
        done = _unit(compiler, tmp_path / str(number), chosen[number])
        return chosen[number].name, "" if done.returncode == 0 else done.stdout.strip() or f"dies ({done.returncode})"

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(one, range(len(chosen))))
    for name, by in answers:
        print(f"mutant: {name[:110]}: {by or 'MISSED'}")
    assert len(answers) >= 10
    assert not [name for name, by in answers if not by]


def test_list_of_equivalent_mutants_fits_the_source() -> None:
    """Each mutant that is called equivalent exists, and has its reason."""
    names = {mutant.name for mutant in _all()}
    assert set(EQUIVALENT) <= names
    assert all(len(reason) > 20 for reason in EQUIVALENT.values())
