"""Started with every Python of a measured run (by a .pth file): coverage.py, and gcov's counts in spite of _exit().

gcov writes its counts at exit, and so does coverage.py. A forked child that ends with os._exit() (multiprocessing's do,
and most of the tests') runs no exit handlers: so os._exit() writes both first. Who is killed writes nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import NoReturn

import coverage


def _dump_gcov() -> None:
    core = sys.modules.get("shmcow._core")
    if core is not None:
        library = ctypes.PyDLL(core.__file__)
        if hasattr(library, "__gcov_dump"):  # a build that a test made for itself is not measured
            library.__gcov_dump()


def _patch_exit() -> None:
    leave = os._exit

    def dump_and_leave(status: int) -> NoReturn:
        try:
            _dump_gcov()
        finally:
            leave(status)

    os._exit = dump_and_leave


def start(config: str) -> None:
    """Measure this process as ``config``, a file of coverage.py, says."""
    if os.path.exists(config):
        _patch_exit()
        os.environ["COVERAGE_PROCESS_START"] = config
        coverage.process_startup()
