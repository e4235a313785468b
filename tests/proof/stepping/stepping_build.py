"""Builds the stepping program: the checks once, the stepped operations with the flags and the header in question."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
STRICT = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra"]
CHECKS = ("main.c", "checks.c", "scenes.c", "engine.c", "images.c")
REMOTE = ("main.c", "checks.c", "scenes.c", "remote.c", "images.c")
TOTALS = re.compile(r"([a-z][a-z ]*) (\d+)")


def compiler(name: str = "gcc") -> str | None:
    """Return a compiler's path, if it is there."""
    return shutil.which(name) or (shutil.which("cc") if name == "gcc" else None)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def objects(folder: Path, sources: tuple[str, ...] = CHECKS) -> list[str]:
    """Compile what does not change; returns the object files."""
    gcc = compiler()
    assert gcc is not None
    made = []
    for source in sources:
        made.append(str(folder / f"{source}.o"))
        _run([gcc, *STRICT, "-O2", f"-I{CSRC}", "-c", str(HERE / source), "-o", made[-1]])
    return made


def program(folder: Path, name: str, made: list[str], flags: list[str], cc: str = "gcc", header: str = "") -> Path:
    """Compile what is stepped, against a changed protocol header if one is given, and link it with the rest."""
    include, path = CSRC, compiler(cc)
    assert path is not None
    if header:
        include = folder / f"{name}-include"
        include.mkdir()
        for file in CSRC.glob("shmcow_*.h"):
            shutil.copy(file, include)
        (include / "shmcow_protocol.h").write_text(header)
        flags = [*flags, "-w"]
    victim = folder / f"{name}.o"
    _run([path, *STRICT, *flags, f"-I{include}", f"-I{HERE}", "-c", str(HERE / "victim.c"), "-o", str(victim)])
    _run([str(compiler()), "-static", *made, str(victim), "-o", str(folder / name)])
    return folder / name


def run(built: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run([str(built), *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False)


def totals(output: str) -> dict[str, int]:
    """Return the figures of the line `in all: ...` and the violations."""
    lines = [
        line.removeprefix("in all: ") for line in output.splitlines() if line.startswith(("in all:", "violations"))
    ]
    return {name.strip(): int(number) for line in lines for name, number in TOTALS.findall(line)}
