"""What the tests of this folder share: a build with kill points, and the program that forks its victims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import victims


@pytest.fixture(scope="session")
def killbuild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of shmcow with kill points compiled in."""
    if victims.compiler() is None:
        pytest.skip("needs a C compiler (Debian: apt-get install gcc libc6-dev python3-dev)")
    return victims.build(tmp_path_factory.mktemp("killbuild"))


@pytest.fixture
def killer(name: str, killbuild: Path) -> Iterator[victims.Victims]:  # noqa: ARG001 - as above
    """The program that forks victims."""
    program = victims.Victims(killbuild)
    yield program
    program.close()
