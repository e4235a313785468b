"""Builds of shmcow with AddressSanitizer and UndefinedBehaviorSanitizer, and pytest run with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import copies

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FLAGS = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
UNDEFINED = re.compile(r"runtime error: .*")
REPORT = re.compile(r"(runtime error: .*|ERROR: AddressSanitizer: [\w-]+)")


class Planted(NamedTuple):
    """A bug in a copy of the source, and the tests that run into it."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    expected: str


PLANTED = (
    Planted(
        "a read beyond the entry",
        "core_hold.c",
        "core_text(entry->codec, sizeof entry->codec)",
        "core_text((const char *)memchr(entry + 1, 0, 4096), 1)",
        "tests/unit/test_snapshot.py",
        "AddressSanitizer: stack-buffer-overflow",
    ),
    Planted(
        "use after free",
        "core_store.c",
        "    PyMem_Free(self->marks);\n",
        "    PyMem_Free(self->path);\n    self->refused = self->path ? self->path[0] : 0;\n    self->path = NULL;\n",
        "tests/unit/test_snapshot.py",
        "AddressSanitizer: heap-use-after-free",
    ),
    Planted(
        "an integer overflow",
        "core_store.c",
        "    self->serial = ++attaches;\n",
        "    self->serial = ++attaches;\n    self->refused = INT_MAX - 1;\n    self->refused += 1 + (int)attaches;\n",
        "tests/unit/test_snapshot.py",
        "runtime error: signed integer overflow",
    ),
)


def possible() -> str:
    """Say what is missing, "" if nothing is."""
    if shutil.which("gcc") is None or not Path(_library("libasan.so")).is_absolute():
        return "needs gcc with AddressSanitizer (Debian: apt-get install gcc libc6-dev)"
    return ""


def _library(name: str) -> str:
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def build_all(directory: Path) -> tuple[Path, list[Path]]:
    """Build the extension as it is, and with each planted bug; returns where the packages are."""
    made = [copies.Copy("as it is")]
    for bug in PLANTED:
        edit = copies.Edit(f"csrc/{bug.file}", bug.old, bug.new)
        made.append(copies.Copy(bug.name, (edit,), bug.file.removesuffix(".c")))
    places = copies.build(directory, made, FLAGS, cc="gcc")
    return places[0], places[1:]


def build_program(file: Path, program: Path, *flags: str) -> Path:
    """Build a C program with the sanitizers."""
    common = ["-std=c11", "-pthread", "-D_GNU_SOURCE", "-Wall", "-Wextra", *FLAGS]
    subprocess.run(["gcc", *common, *flags, f"-I{copies.SOURCES}", str(file), "-o", str(program)], check=True)
    return program


def run_tests(package: Path, tests: list[str], *options: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run tests with a build; returns how pytest ended, and what the sanitizers reported in all of its processes."""
    reports = package / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    said = f"log_path={reports}/report:detect_leaks=0"  # Python itself leaks by design
    environment = {
        **os.environ,
        "LD_PRELOAD": _library("libasan.so"),
        "PYTHONMALLOC": "malloc",  # so that each object has its own red zones
        "PYTHONPATH": os.pathsep.join([str(package), str(HERE)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ASAN_OPTIONS": f"{said}:malloc_context_size=6:quarantine_size_mb=64:allocator_may_return_null=1",
        "UBSAN_OPTIONS": f"{said}:print_stacktrace=1",
        "SAN_PACKAGE": str(package),
    }
    for ours in ("SHMCOW_NO_SKIPS", "PYTEST_ADDOPTS"):
        environment.pop(ours, None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "san_plugin", "-s"]
    command += ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", *options]
    command += [str(ROOT / test) for test in tests]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=package, env=environment, **pipes) as process:
        said_out, said_err = process.communicate()
    for left in Path("/dev/shm").glob(f"shmcow.t-{process.pid}-*"):  # by a process that a report has ended
        left.unlink(missing_ok=True)
    done = subprocess.CompletedProcess(command, process.returncode, said_out, said_err)
    # AddressSanitizer writes to log_path, gcc's UBSan to standard error: -s lets the children's through
    files = [file.read_text(errors="replace") for file in sorted(reports.iterdir())]
    found = [REPORT.search(text) for text in files]
    return done, [report[1] if report else "a report" for report in found] + UNDEFINED.findall(
        done.stdout + done.stderr
    )
