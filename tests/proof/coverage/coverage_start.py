"""Started with every Python of a measured run (by a .pth file): coverage.py, and gcov's counts in spite of _exit().

gcov writes its counts at exit, and so does coverage.py. A forked child that ends with os._exit() (multiprocessing's do,
and most of the tests') runs no exit handlers: so os._exit() writes both first. Who is killed writes nothing.
(coverage.py's own ``patch = _exit`` saves the parent's measurement in the child, too: it waits for a lock that a thread
of the parent had at the fork, and the child hangs.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import NoReturn


def _dump_gcov() -> None:
    core = sys.modules.get("shmcow._core")
    if core is not None:
        library = ctypes.PyDLL(core.__file__)
        if hasattr(library, "__gcov_dump"):  # a build that a test made for itself is not measured
            library.__gcov_dump()


def _save_python() -> None:
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if current is not None:
        current.save()


def _patch_exit() -> None:
    leave = os._exit

    def dump_and_leave(status: int) -> NoReturn:
        for write in (_dump_gcov, _save_python):
            with contextlib.suppress(Exception):
                write()
        leave(status)

    os._exit = dump_and_leave


def start(config: str) -> None:
    """Measure this process as ``config``, a file of coverage.py, says; with SHMCOW_C_COVERAGE_ONLY, only its C code."""
    if not os.path.exists(config):
        return
    _patch_exit()
    if "SHMCOW_C_COVERAGE_ONLY" not in os.environ:
        import coverage

        os.environ["COVERAGE_PROCESS_START"] = config
        coverage.process_startup()
