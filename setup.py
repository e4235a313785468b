"""Build the C helper. Everything else about the package is in pyproject.toml."""

import os
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

SOURCES = [
    *("module", "store", "hold", "slot", "wait", "fill", "writer", "turn", "feed", "values"),
    *("table", "table_type", "table_build", "address", "iptable", "iptable_many", "iptable_build"),
]
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
]  # CI adds -Werror; a newcomer with a newer compiler must not be stopped by a new warning


class BuildCore(build_ext):
    def run(self):
        if not sys.platform.startswith("linux"):
            raise SystemExit(
                "shmcow runs on Linux only: it is built on open-file-description locks and futexes. "
                f"This is {sys.platform}."
            )
        if sys.maxsize <= 2**32:
            raise SystemExit("shmcow needs a 64-bit Python: versions and generations are 64-bit atomics.")
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise SystemExit(
                "shmcow does not support free-threaded Python yet: its reference counts are guarded by the "
                "interpreter lock, and the limited API that it is built with has no free-threaded build before "
                "Python 3.15. Use the ordinary build of Python."
            )
        super().run()

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError) as exc:
            raise SystemExit(
                f"shmcow could not compile its C helper: {exc}\n"
                "It needs a C11 compiler and the Python headers "
                "(Debian: apt-get install gcc libc6-dev python3-dev; Fedora: dnf install gcc python3-devel)."
            ) from exc


setup(
    ext_modules=[
        Extension(
            "shmcow._core",
            sources=["csrc/shmcow_os.c", "csrc/shmcow_sleep.c", *(f"csrc/core_{name}.c" for name in SOURCES)],
            depends=[
                f"csrc/{name}.h"
                for name in (
                    "core",
                    "core_values",
                    "core_table",
                    "shmcow_table",
                    "shmcow_table_build",
                    "core_iptable",
                    "core_iptable_type",
                    "shmcow_address",
                    "shmcow_address_fast",
                    "shmcow_iptable",
                    "shmcow_iptable_compare",
                    "shmcow_iptable_find",
                    "shmcow_iptable_pack",
                    "shmcow_iptable_build",
                    "shmcow_values",
                    "shmcow_layout",
                    "shmcow_crc",
                    "shmcow_format",
                    "shmcow_protocol",
                    "shmcow_os",
                )
            ],
            include_dirs=["csrc"],
            define_macros=[("_GNU_SOURCE", None), ("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            extra_compile_args=[
                "-std=c11",
                "-O2",
                "-fvisibility=hidden",
                *WARNINGS,
                *os.environ.get("SHMCOW_CFLAGS", "").split(),
            ],
            extra_link_args=["-pthread", *os.environ.get("SHMCOW_LDFLAGS", "").split()],
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    cmdclass={"build_ext": BuildCore},
)
