"""The protocol header under threads that die at any step; and what the stress finds in each weakened copy of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "stress"
CSRC = Path(__file__).parents[2] / "csrc"
sys.path.insert(0, str(HERE))

from mutants import MUTANTS, Mutant, weaken  # noqa: E402

COMPILE = ["-std=c11", "-D_GNU_SOURCE", "-pthread", "-Wall", "-Wextra", "-Wno-unused-variable", "-Wno-unused-function"]
SANITIZER = ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan"]
FIGURES = re.compile(r"([a-z ]+) (\d+)")


def build(folder: Path, name: str, flags: list[str], header: str | None = None) -> Path:
    """Compile the stress program against a protocol header, the project's own or a changed one."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev)")
    include = folder / f"{name}-include"
    include.mkdir()
    for file in CSRC.glob("shmcow_*.h"):
        shutil.copy(file, include)
    if header is not None:
        (include / "shmcow_protocol.h").write_text(header)
    program = folder / name
    done = subprocess.run(
        [compiler, *COMPILE, *flags, f"-I{include}", str(HERE / "stress.c"), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in done.stderr and "tsan" in done.stderr:
        pytest.skip("needs ThreadSanitizer's library (Debian: apt-get install libtsan2)")
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False
    )


def figures(output: str) -> dict[str, int]:
    return {name.strip(): int(number) for name, number in FIGURES.findall(output)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stress")


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    return build(folder, "plain", ["-O2"])


@pytest.fixture(scope="module")
def sanitized(folder: Path) -> Path:
    return build(folder, "sanitized", SANITIZER)


@pytest.mark.parametrize("seed", range(2))
def test_threads_that_die_at_any_step_lose_and_tear_nothing(program: Path, seed: int) -> None:
    """50,000 publishes by dying writers under dying readers: whole, monotonic, none lost, nothing left."""
    done = run(program, 50_000, seed)
    print(done.stdout)
    found = figures(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert found["published"] >= 50_000
    assert min(found[what] for what in ("writers died", "recovered", "older held", "readers died", "given up")) > 1000


@pytest.mark.parametrize("seed", range(2))
def test_full_table_forces_out_only_names(program: Path, seed: int) -> None:
    """With more versions held than the table has places: the oldest loses its names, and what is held stays whole."""
    done = run(program, 10_000, seed, "hoard")
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert figures(done.stdout)["forced"] > 1000


@pytest.mark.parametrize("arguments", [(20_000, 1), (3_000, 2, "hoard")], ids=["", "hoard"])
def test_no_data_race(sanitized: Path, arguments: tuple[object, ...]) -> None:
    """ThreadSanitizer sees no access to a segment's bytes that the protocol's own atomics do not order."""
    done = run(sanitized, *arguments)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_weakened_protocol_is_caught(folder: Path, mutant: Mutant) -> None:
    """Each mutant of the source is found out: a stress that cannot fail proves nothing."""
    header = weaken((CSRC / "shmcow_protocol.h").read_text(), mutant)
    name = re.sub(r"\W+", "-", mutant.name)
    flags = [*(SANITIZER if mutant.tsan else ["-O1"]), *mutant.flags, "-w"]
    weak = build(folder, name, flags, header)
    for seed in range(4 if mutant.tsan else 20):
        try:
            done = run(weak, 5_000 if mutant.tsan else 20_000, seed, *(["hoard"] if mutant.hoard else []), timeout=60)
        except subprocess.TimeoutExpired:
            print(f"{mutant.name}: hangs")
            return
        if done.returncode != 0:
            found = re.findall(r"VIOLATION: (.*?) \(|(WARNING: ThreadSanitizer: [a-z ]+)", done.stderr)
            print(f"{mutant.name}: {found[:1] or f'ends with {done.returncode}'} with seed {seed}")
            return
    raise AssertionError(f"nothing caught the mutant {mutant.name!r}: a hole in the proofs")


def test_mutant_that_no_longer_applies_is_found() -> None:
    """A mutant whose text has gone from the source is an error, not a pass."""
    with pytest.raises(ValueError, match="found 0 times"):
        weaken("", MUTANTS[0])
