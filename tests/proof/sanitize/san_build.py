"""Builds of shmcow with AddressSanitizer and UndefinedBehaviorSanitizer, and pytest run with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SOURCES = ROOT / "csrc"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
PYTHON = ["-DPy_LIMITED_API=0x030B0000", f"-I{sysconfig.get_paths()['include']}"]
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


def _command(sources: Path, out: Path, *more: str, warnings: bool = False) -> list[str]:
    command = ["gcc", "-std=c11", "-O1", "-g", "-fPIC", "-pthread", "-D_GNU_SOURCE", *SANITIZE, f"-I{sources}"]
    return [*command, *(["-Wall", "-Wextra"] if warnings else ["-w"]), *more, "-o", str(out)]


def build_all(directory: Path) -> tuple[Path, list[Path]]:
    """Build the extension as it is, and with each planted bug; returns where the packages are."""
    objects = directory / "objects"
    objects.mkdir(parents=True)

    def build_one(number: int) -> Path:
        place = directory / f"copy{number}"
        shutil.copytree(ROOT / "shmcow", place / "shmcow", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        parts = {file.stem: file for file in objects.glob("*.o")}
        if number > 0:
            bug = PLANTED[number - 1]
            text = (SOURCES / bug.file).read_text()
            assert text.count(bug.old) == 1, f"the planted bug {bug.name!r} does not fit the source any more"
            changed = place / bug.file
            changed.write_text(text.replace(bug.old, bug.new))
            parts[changed.stem] = changed.with_suffix(".o")
            subprocess.run(_command(SOURCES, parts[changed.stem], *PYTHON, "-c", str(changed)), check=True)
        library = place / "shmcow" / "_core.abi3.so"
        subprocess.run(_command(SOURCES, library, "-shared", *map(str, parts.values())), check=True)
        return place

    def compile_one(file: Path) -> None:
        subprocess.run(_command(SOURCES, objects / f"{file.stem}.o", *PYTHON, "-c", str(file)), check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sorted(SOURCES.glob("*.c"))))
        places = list(pool.map(build_one, range(len(PLANTED) + 1)))
    return places[0], places[1:]


def build_program(file: Path, program: Path, *flags: str) -> Path:
    """Build a C program with the sanitizers."""
    subprocess.run(_command(SOURCES, program, *flags, str(file), warnings=True), check=True)
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
