"""What a person sees whose machine cannot build the C helper."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PATCHED = """
import sys, sysconfig, setuptools, setuptools.command.build_ext
known = sysconfig.get_config_var
{patch}
sys.argv = ["setup.py", "build_ext"]
exec(compile(open("setup.py").read(), "setup.py", "exec"))
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a copy of what the build needs."""
    for item in ("csrc", "shmcow"):
        shutil.copytree(ROOT / item, tmp_path / item, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for item in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / item, tmp_path / item)
    return tmp_path


def build(sources: Path, patch: str = "", **environment: str) -> str:
    """Run the build and return what it said; it must fail without a traceback."""
    pytest.importorskip("setuptools", reason="needs setuptools: pip install 'shmcow[test]'")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PATCHED.format(patch=patch)],
        cwd=sources,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_missing_compiler_is_named_with_what_to_install(sources: Path) -> None:
    """Without a C compiler the build says which packages bring one."""
    said = build(sources, CC="/nonexistent/cc")
    assert "needs a C11 compiler" in said
    assert "apt-get install gcc" in said


def test_a_free_threaded_build_is_refused_with_the_reason(sources: Path) -> None:
    """A free-threaded Python gets a sentence, not a compiler error."""
    patch = 'sysconfig.get_config_var = lambda name: 1 if name == "Py_GIL_DISABLED" else known(name)'
    assert "does not support free-threaded Python yet" in build(sources, patch)


def test_another_platform_is_refused_with_the_reason(sources: Path) -> None:
    """Elsewhere than on Linux the build says that it cannot be."""
    assert "runs on Linux only" in build(sources, 'sys.platform = "darwin"')


def test_a_32_bit_python_is_refused_with_the_reason(sources: Path) -> None:
    """A 32-bit Python gets a sentence."""
    assert "needs a 64-bit Python" in build(sources, "sys.maxsize = 2**31 - 1")
