"""The Spin model of the protocol: every interleaving within the bounds, a death before every step, and its mutants."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = Path(__file__).parent / "model" / "protocol.pml"
CSRC = ROOT / "csrc"
PAN = ("-DSAFETY", "-DNOCLAIM", "-DPEG", "-DVECTORSZ=2048", "-w")
EXACT = "-DMEMLIM=6000"  # every state is kept as it is: some 1600 MiB, and a third less time than with -DCOLLAPSE
STATES = 15_000_000

# Bounds that are searched to the end. Together they reach every line of the model but those marked UNREACHED.
CONFIGURATIONS = {
    "two writers": "-DNW=2 -DNR=1 -DG=3",
    "a reader frozen for ever, a full table": "-DNW=1 -DNR=1 -DG=4 -DNI=2 -DFREEZE -DKILLS=0",
    "a quota, one version retained": "-DNW=1 -DNR=1 -DG=4 -DRETAIN=1 -DQUOTA=4",
    "a full /dev/shm": "-DNW=1 -DNR=1 -DG=3 -DNI=2 -DRETAIN=1 -DNOSPC=1",
    "two readers": "-DNW=1 -DNR=2 -DG=2 -DNI=2",
    "create, destroy, create again": "-DNW=1 -DNR=1 -DG=3 -DNI=2 -DE=4",
    "two writers create and destroy": "-DNW=2 -DNR=1 -DG=2 -DNI=2 -DE=4 -DKILLS=0",
}

SMALL = "-DNW=1 -DNR=1 -DG=3"
LIFE = "-DNW=2 -DNR=1 -DT=0 -DG=2 -DNI=2 -DE=4"
# What each mutant drops, and the bounds that are enough to catch it.
MUTANTS = {
    "NO_REVAL": (SMALL, "a reader does not look at the word after it marked"),
    "NO_SECOND_LOOK": (SMALL + " -DNI=2", "a reader does not look at the word after the copy"),
    "STATE_ONLY": ("-DNW=1 -DNR=1 -DG=4 -DNI=2", "a reader looks at the state, not at the version"),
    "NO_CONDEMNED": (SMALL, "the judge tests the marker before it announces"),
    "NO_DOOMED": (SMALL + " -DFREEZE", "a version can come back to life half removed"),
    "EARLY_FLIP": (SMALL, "the flip comes before the fill"),
    "FREE_FIRST": (SMALL, "a generation is freed before its names go"),
    "UNLINK_SHARED": (SMALL, "a drop unlinks what other versions list"),
    "NO_INTENT": (SMALL, "no BUILDING before the fill"),
    "DEAF_JUDGE": (SMALL, "the judge does not see markers"),
    "LOCK_SURVIVES": ("-DNW=2 -DNR=1 -DG=2", "the writer lock outlives its holder"),
    "NO_RECOVER": (SMALL, "a turn does not recover first"),
    "READY_LIVES": (SMALL, "recover keeps what was never flipped"),
    "NO_RETAIN": (SMALL + " -DRETAIN=1", "reclaim keeps no older version"),
    "NO_PROTECT": ("-DNW=1 -DNR=1 -DG=4 -DNI=2", "the version that a rollback repeats is given up"),
    "LOCK_FIRST": (LIFE, "destroy unlinks the lock file before the header"),
    "NO_NAMED": ("-DNW=2 -DNR=1 -DT=0 -DG=3 -DNI=2 -DE=4 -DKILLS=0", "destroy does not look whose header it unlinks"),
    "NO_LOCK_CHECK": (LIFE, "who has the lock does not look whether the store is still there"),
    "NO_FINISH": (LIFE, "a half-destroyed store is not finished, its header is removed"),
}


@dataclass
class Search:
    """What one run of the model checker said."""

    states: int
    transitions: int
    depth: int
    errors: list[str]
    complete: bool
    taken: dict[int, int] = field(default_factory=dict)  # by line of the model
    unreached: set[int] = field(default_factory=set)


def expanded(flags: str) -> str:
    """Return the model with its macros expanded and every line at its place: spin miscounts lines behind directives."""
    command = ["gcc", "-E", "-x", "c", *flags.split(), str(MODEL)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines: dict[int, str] = {}
    at, ours = 0, False
    for line in text.splitlines():
        marker = re.match(r'# (\d+) "(.*?)"', line)
        if marker:
            at, ours = int(marker[1]), marker[2] == str(MODEL)
            continue
        if ours and line.strip():
            lines[at] = lines.get(at, "") + line + " "
        at += 1
    return "\n".join(lines.get(k, "") for k in range(1, max(lines) + 1)) + "\n"


def search(folder: Path, flags: str, optimize: str, kept: str = EXACT, *run: str) -> Search:
    """Build the checker for some bounds in a folder of its own, and run it to the end or to the first error."""
    folder.mkdir()
    (folder / "expanded.pml").write_text(expanded(flags))
    # -o3: statements are not merged, which counting transitions needs
    spin = subprocess.run(["spin", "-o3", "-Pcat", "-a", "expanded.pml"], cwd=folder, capture_output=True, text=True)
    assert spin.returncode == 0, spin.stdout + spin.stderr
    subprocess.run(["gcc", optimize, *PAN, *kept.split(), "-o", "pan", "pan.c"], cwd=folder, check=True)
    pan = subprocess.run(["./pan", "-m1000000", *run], cwd=folder, capture_output=True, text=True).stdout
    shutil.rmtree(folder)
    return parse(pan)


def parse(pan: str) -> Search:
    """Read the checker's report."""

    def number(pattern: str) -> int:
        found = re.search(pattern, pan)
        assert found, pan[-2000:]
        return round(float(found[1]))  # from 100 million on it has eight digits and an exponent

    errors = [line for line in re.findall(r"^pan:\d+: (.*)", pan, re.M) if "wrote" not in line]
    assert bool(errors) == bool(number(r"errors: (\d+)")), pan[-2000:]
    complete = not re.search("search not completed", pan, re.IGNORECASE) and "max search depth too small" not in pan
    result = Search(
        states=number(r"(\S+) states, stored"),
        transitions=number(r"(\S+) transitions \(="),
        depth=number(r"depth reached (\d+)"),
        errors=errors,
        complete=complete and "out of memory" not in pan,
    )
    for count, line in re.findall(r"^\s*(\d+)\s+trans\s+\d+ \S*?:(\d+)", pan, re.M):
        result.taken[int(line)] = max(result.taken.get(int(line), 0), int(count))
    for line, text in re.findall(r'^\t\S*?:(\d+), state \d+, "(.*)"', pan, re.M):
        if text != "-end-":
            result.unreached.add(int(line))
    return result


def steps_of_model() -> dict[str, list[int]]:
    """Return the lines of the model at which each step of the C code stands."""
    lines: dict[str, list[int]] = {}
    for at, line in enumerate(MODEL.read_text().splitlines(), 1):
        for step in re.findall(r"STEP ([a-z]+\.[a-z]+)", line):
            lines.setdefault(step, []).append(at)
    return lines


def steps_of(*files: Path) -> set[str]:
    return {step for file in files for step in re.findall(r'SHMCOW_STEP\("([^"]+)"\)', file.read_text())}


@pytest.fixture(scope="module")
def tools() -> None:
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: apt-get install {tool}")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_model_has_every_step_of_the_protocol_and_no_other() -> None:
    """The names of the steps agree with the C code, both ways."""
    model = set(steps_of_model())
    assert steps_of(CSRC / "shmcow_protocol.h") <= model
    assert model == steps_of(*CSRC.glob("*.[ch]"))


def test_the_functions_that_the_model_names_are_those_of_the_code() -> None:
    """Every inline shmcow_*, and every function that stands behind a step, is defined in the C code."""
    text = MODEL.read_text()
    named = set(re.findall(r"^inline (shmcow_\w+|op_\w+)", text, re.M))
    for inside in re.findall(r"STEP [a-z]+\.[a-z]+ \(([\w, ]+)\)", text):
        named.update(inside.split(", "))
    code = "".join(file.read_text() for file in CSRC.glob("*.[ch]"))
    missing = [name for name in sorted(named) if not re.search(rf"^(?:static )?[\w \*]*\b{name}\(", code, re.M)]
    assert not missing
    assert len(named) > 15


@pytest.mark.usefixtures("tools")
def test_no_interleaving_and_no_death_breaks_the_protocol(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Within the bounds every state is searched, none is bad, and every line of the model that can be was taken."""
    folder = tmp_path_factory.mktemp("model")
    before = cpu_seconds()
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda item: search(folder / str(item[0]), item[1], "-O1"), enumerate(CONFIGURATIONS.values()))
        )
    for (title, flags), run in zip(CONFIGURATIONS.items(), found, strict=True):
        print(f"{run.states:>12,} states {run.transitions:>12,} transitions, depth {run.depth}: {title} ({flags})")
    states = sum(run.states for run in found)
    taken = {
        step: sum(run.taken.get(line, 0) for run in found for line in lines) for step, lines in steps_of_model().items()
    }
    print(f"{states:>12,} states in all, {cpu_seconds() - before:.0f} s of CPU")
    for step, count in taken.items():
        print(f"{count:>12,} x {step}")
    for (title, _), run in zip(CONFIGURATIONS.items(), found, strict=True):
        assert not run.errors, (title, run.errors)
        assert run.complete, title
    assert all(taken.values()), [step for step, count in taken.items() if not count]
    reached = {line for run in found for line, count in run.taken.items() if count}
    unreached = {line for run in found for line in run.unreached} - reached
    source = MODEL.read_text().splitlines()
    assert unreached == {line for line, text in enumerate(source, 1) if "/* UNREACHED: " in text}, "\n".join(
        f"{line}: {source[line - 1]}" for line in sorted(unreached)
    )
    assert states >= STATES


@pytest.mark.usefixtures("tools")
def test_every_mutant_of_the_model_is_caught(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A model that lets a weakened protocol pass proves nothing."""
    folder = tmp_path_factory.mktemp("mutants")
    before = cpu_seconds()
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda item: search(folder / item[0], f"{item[1][0]} -D{item[0]}", "-O0"), MUTANTS.items())
        )
    for (mutant, (flags, what)), run in zip(MUTANTS.items(), found, strict=True):
        verdict = run.errors[0] if run.errors else "NOT CAUGHT"
        print(f"{mutant}: {what} ({flags}): {run.states:,} states: {verdict}")
    print(f"{len(MUTANTS)} mutants, {cpu_seconds() - before:.0f} s of CPU")
    assert not [mutant for mutant, run in zip(MUTANTS, found, strict=True) if not run.errors]
