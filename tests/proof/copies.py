"""Copies of shmcow with a change in their source, built: what planted mistakes and special builds are made of."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
COMMON = ("-std=c11", "-fPIC", "-pthread", "-D_GNU_SOURCE", "-w")
HEADERS = f"-I{sysconfig.get_paths()['include']}"
PYTHON = ("-DPy_LIMITED_API=0x030B0000", HEADERS)


class Edit(NamedTuple):
    """A change of one file.

    Attributes:
        file: below the root.
        times: how often the old text is there, all of which is changed.
    """

    file: str
    old: str
    new: str
    times: int = 1


class Copy(NamedTuple):
    """A copy of the package.

    Attributes:
        name: for messages.
        edits: what is changed; none: the source as it is.
        compiles: the C file that must be compiled anew, without its suffix; "" for a change in Python.
    """

    name: str
    edits: tuple[Edit, ...] = ()
    compiles: str = ""


def compiler() -> str | None:
    """Return the C compiler."""
    return shutil.which("cc") or shutil.which("gcc")


def build(
    directory: Path, copies: Sequence[Copy], flags: Sequence[str] = ("-O0",), more: Sequence[Path] = (), cc: str = ""
) -> list[Path]:
    """Build copies; the C files that none of them changes are compiled once.

    Args:
        directory: where; each copy gets a directory in it.
        flags: for compiling and linking, beside the common ones.
        more: object files that every copy gets as well.
        cc: the compiler; "": whichever there is.

    Returns:
        For each copy the directory that holds its package.
    """
    objects = directory / "objects"
    objects.mkdir(parents=True)
    command = [cc or compiler() or "cc", *COMMON]

    def compile_one(source: Path, out: Path) -> None:
        subprocess.run([*command, *flags, *PYTHON, f"-I{source.parent}", "-c", str(source), "-o", str(out)], check=True)

    def build_one(number: int) -> Path:
        copy, place = copies[number], directory / f"copy{number}"
        shutil.copytree(ROOT / "shmcow", place / "shmcow", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copytree(SOURCES, place / "csrc")
        for edit in copy.edits:
            text = (place / edit.file).read_text()
            assert text.count(edit.old) == edit.times, f"{copy.name!r} does not fit the source any more: {edit.file}"
            (place / edit.file).write_text(text.replace(edit.old, edit.new))
        parts = {file.stem: file for file in objects.glob("*.o")}
        if copy.compiles:
            parts[copy.compiles] = place / f"{copy.compiles}.o"
            compile_one(place / "csrc" / f"{copy.compiles}.c", parts[copy.compiles])
        link = [*command, *flags, "-shared", *map(str, [*parts.values(), *more])]
        subprocess.run([*link, "-o", str(place / "shmcow" / "_core.abi3.so")], check=True)
        return place

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda file: compile_one(file, objects / f"{file.stem}.o"), sorted(SOURCES.glob("*.c"))))
        return list(pool.map(build_one, range(len(copies))))
