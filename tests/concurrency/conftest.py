"""What the tests of this folder share: ``spawn`` starts a child and sees that it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import victims
from processes import Child


@pytest.fixture
def spawn(name: str) -> Iterator[Callable[..., Child]]:  # noqa: ARG001 - `name` is torn down after the children
    """Start children with ``spawn(body, *args)``; whoever lives at the end of the test is killed."""
    children: list[Child] = []

    def start(body: Callable[..., Any], *args: Any, **kwargs: Any) -> Child:
        children.append(Child(body, *args, **kwargs))
        return children[-1]

    yield start
    for child in children:
        child.end()


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
