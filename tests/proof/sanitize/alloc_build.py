"""Copies of shmcow whose allocations fail on demand (alloc_hooks.c); as the source is, and with a planted bug each."""

from __future__ import annotations

import os
import platform
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import sweep_tracer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SOURCES = ROOT / "csrc"


class Forgetful(NamedTuple):
    """A bug in a copy of the source.

    Attributes:
        op: the operation that must show it.
        compiles: the C file to compile anew, if ``file`` is a header.
    """

    name: str
    file: str
    old: str
    new: str
    op: str
    compiles: str = ""


MUTANTS = (
    Forgetful(
        "the object of a hold is not looked at",
        "core_hold.c",
        "(state->hold_type, 0);\n    if (self == NULL)\n        return NULL;",
        "(state->hold_type, 0);",
        "hold",
    ),
    Forgetful(
        "a path is not looked at",
        "core_module.c",
        "    if (out == NULL) {\n        PyErr_NoMemory();\n        return NULL;\n    }\n",
        "",
        "hold",
    ),
    Forgetful(
        "the array of buffers is not looked at",
        "core_fill.c",
        "    if (views == NULL)\n        return PyErr_Occurred() ? -ECANCELED : -ENOMEM;\n",
        "",
        "publish",
    ),
    Forgetful(
        "a writer that fails to fill goes home",
        "shmcow_protocol.h",
        "        (void)shmcow_drop(h, ops, ctx, i); /* what this cannot remove, the next recover will */\n",
        "",
        "publish",
        "core_writer.c",
    ),
    Forgetful(
        "a marker is kept when the map fails",
        "shmcow_protocol.h",
        "    if (r < 0)\n        ops->clear(ctx, version);\n",
        "",
        "hold",
        "core_hold.c",
    ),
    Forgetful(
        "giving back the writer lock needs memory",
        "core_turn.c",
        "PyObject_CallMethodObjArgs(self->mutex, core_known.is_owned, NULL)",
        'PyObject_CallMethod(self->mutex, "_is_owned", NULL)',
        "publish",
    ),
    Forgetful(
        "a descriptor whose number has no room stays open",
        "core_module.c",
        "    Py_XDECREF(PyObject_CallMethodObjArgs(made, core_known.close_fd, NULL));\n",
        "",
        "publish",
    ),
)


def _command(sources: Path, out: Path, *more: str) -> list[str]:
    command = [sweep_tracer.compiler() or "cc", "-std=c11", "-O0", "-fPIC", "-pthread", "-D_GNU_SOURCE", "-w"]
    command += os.environ.get("SHMCOW_ALLOC_CFLAGS", "").split()  # nightly/coverage measures the sweep, too
    return [*command, f"-I{sysconfig.get_paths()['include']}", f"-I{sources}", *more, "-o", str(out)]


def possible() -> str:
    """Say why this cannot be done here, "" if it can."""
    if sweep_tracer.compiler() is None:
        return "needs a C compiler (Debian: apt-get install gcc libc6-dev python3-dev)"
    if platform.python_implementation() != "CPython":
        return "needs CPython: its allocators are replaced"
    return ""


def build_all(directory: Path) -> tuple[Path, dict[str, Path]]:
    """Build the copies; returns where the packages are: that of the source as it is, and those with bugs, by name."""
    objects = directory / "objects"
    objects.mkdir(parents=True)
    hooked = ["-finstrument-functions", "-Dcalloc=alloc_calloc", "-DPy_LIMITED_API=0x030B0000", "-fvisibility=hidden"]

    def compile_one(file: Path, out: Path, sources: Path = SOURCES) -> None:
        subprocess.run(_command(sources, out, *hooked, "-c", str(file)), check=True)

    def build_one(number: int) -> Path:
        place = directory / f"copy{number}"
        for file in (ROOT / "shmcow").rglob("*.py"):
            target = place / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        parts = {file.name: file for file in objects.glob("*.o")}
        if number > 0:
            mutant = MUTANTS[number - 1]
            sources = place / "csrc"
            sources.mkdir()
            for file in SOURCES.glob("*.[ch]"):
                (sources / file.name).write_bytes(file.read_bytes())
            text = (sources / mutant.file).read_text()
            assert text.count(mutant.old) == 1, f"the mutant {mutant.name!r} does not fit the source any more"
            (sources / mutant.file).write_text(text.replace(mutant.old, mutant.new))
            changed = mutant.compiles or mutant.file
            compile_one(sources / changed, place / "changed.o", sources)
            parts[changed.replace(".c", ".o")] = place / "changed.o"
        library = place / "shmcow" / "_core.abi3.so"
        subprocess.run(_command(SOURCES, library, "-shared", *map(str, parts.values())), check=True)
        return place

    with ThreadPoolExecutor(2) as pool:
        hooks = _command(SOURCES, objects / "alloc_hooks.o", "-fvisibility=hidden", "-c", str(HERE / "alloc_hooks.c"))
        done = pool.submit(subprocess.run, hooks, check=True)
        list(pool.map(lambda file: compile_one(file, objects / f"{file.stem}.o"), sorted(SOURCES.glob("*.c"))))
        done.result()
        places = list(pool.map(build_one, range(len(MUTANTS) + 1)))
    return places[0], {mutant.name: place for mutant, place in zip(MUTANTS, places[1:], strict=True)}
