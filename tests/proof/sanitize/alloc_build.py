"""Copies of shmcow whose allocations fail on demand (alloc_hooks.c); as the source is, and with a planted bug each."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

import copies

HERE = Path(__file__).resolve().parent


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

    @property
    def edit(self) -> copies.Edit:
        """The change."""
        return copies.Edit(f"csrc/{self.file}", self.old, self.new)

    @property
    def changed(self) -> str:
        """The C file to compile anew, without its suffix."""
        return (self.compiles or self.file).removesuffix(".c")


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


def possible() -> str:
    """Say why this cannot be done here, "" if it can."""
    if copies.compiler() is None:
        return "needs a C compiler (Debian: apt-get install gcc libc6-dev python3-dev)"
    if platform.python_implementation() != "CPython":
        return "needs CPython: its allocators are replaced"
    return ""


def build_all(directory: Path) -> tuple[Path, dict[str, Path]]:
    """Build the copies; returns where the packages are: that of the source as it is, and those with bugs, by name."""
    measured = os.environ.get("SHMCOW_ALLOC_CFLAGS", "").split()  # nightly/coverage measures the sweep, too
    flags = ["-O0", "-fvisibility=hidden", *measured]
    hooks = directory / "alloc_hooks.o"
    common = [*copies.COMMON, copies.HEADERS, f"-I{copies.SOURCES}"]  # the hooks want more than the limited API
    command = [copies.compiler() or "cc", *common, *flags]
    subprocess.run([*command, "-c", str(HERE / "alloc_hooks.c"), "-o", str(hooks)], check=True)
    made = [copies.Copy("as it is"), *(copies.Copy(m.name, (m.edit,), m.changed) for m in MUTANTS)]
    hooked = ["-finstrument-functions", "-Dcalloc=alloc_calloc", "-Drealloc=alloc_realloc"]
    places = copies.build(directory, made, [*flags, *hooked], [hooks])
    return places[0], {mutant.name: place for mutant, place in zip(MUTANTS, places[1:], strict=True)}
