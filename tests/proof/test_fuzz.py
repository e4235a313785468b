"""libFuzzer with ASan and UBSan over everything that parses shared bytes; each planted bug is found within seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).with_name("fuzz")))

import fuzz_runs
import fuzz_seeds

import shmcow

SECONDS = {"header": 12}  # of wall-clock time; the others have less to say
OTHERS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if fuzz_runs.missing():
        pytest.skip(fuzz_runs.missing())
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def planted(folder: Path) -> dict[str, Path]:
    """The targets with all planted bugs in them, each of them off."""
    sources = fuzz_runs.plant(folder / "csrc")
    return {target: fuzz_runs.build(target, folder / f"planted-{target}", sources) for target in fuzz_runs.TARGETS}


@pytest.mark.parametrize("target", fuzz_runs.TARGETS)
def test_hostile_bytes_are_refused_or_mean_what_they_say(folder: Path, target: str) -> None:
    """Whatever the bytes: nothing is read outside, nothing loops for ever, and what is accepted has its invariants."""
    program = fuzz_runs.build(target, folder / target)
    did = fuzz_runs.run(target, program, folder / f"corpus-{target}", SECONDS.get(target, OTHERS))
    print(f"{target}: {did.executions:,} executions, cov: {did.covered} of {did.places}, ft: {did.features}")
    assert not did.report, did.output[-4000:]
    assert did.executions > 100


@pytest.mark.parametrize("number", range(1, len(fuzz_runs.PLANTED) + 1), ids=lambda n: fuzz_runs.PLANTED[n - 1].name)
def test_planted_bug_is_found(folder: Path, planted: dict[str, Path], number: int) -> None:
    """A check that is taken out of a copy of the source is found out."""
    bug = fuzz_runs.PLANTED[number - 1]
    did = fuzz_runs.run(bug.target, planted[bug.target], folder / f"planted-{number}", 60, number, seed=1)
    print(f"{bug.target}: {bug.name}: {did.report[:100] or 'MISSED'}, after {did.executions:,} executions")
    assert did.report


def test_seeds_are_those_of_a_store_of_today(name: str) -> None:
    """The seeds have the shape that stores have: after a change of the ABI, make them anew."""
    with shmcow.Writer(name, retain=2) as w:
        for version in (1, 2):
            w.publish({"version": version}, message="seed")
        made = fuzz_seeds.from_store(name)
        w.destroy()
    kept = {target: {file.name: file.read_bytes() for file in (fuzz_runs.SEEDS / target).iterdir()} for target in made}
    assert set(made) == set(fuzz_runs.TARGETS) == set(os.listdir(fuzz_runs.SEEDS))
    for target, files in made.items():
        assert {file: len(data) for file, data in kept[target].items()} == {f: len(d) for f, d in files.items()}
    assert kept["identity"]["store"][:40] == made["identity"]["store"][:40]
