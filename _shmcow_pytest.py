"""What pytest finds of shmcow: its fixtures. ``shmcow.contrib.pytest_plugin`` says what they do, and does it.

Every pytest run imports this file, where shmcow is installed. It imports shmcow when a test asks for a store.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmcow.contrib.pytest_plugin import IsolatedStore

_raised: weakref.WeakSet[pytest.Item] = weakref.WeakSet()


@pytest.fixture
def shmcow_store(shmcow_store_factory: Callable[[], IsolatedStore]) -> IsolatedStore:
    """The name of a store for this test alone, with writer(...) and reader(...); the test fails if any is left."""
    return shmcow_store_factory()


@pytest.fixture
def shmcow_store_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], IsolatedStore]]:
    """A callable that returns one more store for this test alone, each like ``shmcow_store``."""
    from shmcow.contrib.pytest_plugin import Isolation

    isolation, pid = Isolation(), os.getpid()
    yield isolation.make
    if os.getpid() != pid:  # a child that the test forked, and that came back from it: nothing here is its own
        return
    _drop_finished_fixtures(request.node)
    # The frames of a test that raised are kept, and what is in them: that is no leak.
    left = isolation.end(float(request.config.getini("shmcow_patience")), own=request.node not in _raised)
    if left:
        pytest.fail("\n".join(f"left behind: {what}" for what in left), pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what can be set in the project's pytest settings."""
    parser.addini("shmcow_patience", "seconds for processes and threads that are about to end", default="5")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note which tests raise."""
    if call.excinfo is not None:
        _raised.add(item)


def _drop_finished_fixtures(item: pytest.Item) -> None:
    """Let go of what fixtures returned that have been torn down: pytest keeps it until the very end of the test."""
    values = getattr(item, "funcargs", None) or {}
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for name in list(values):
        found = definitions.get(name)
        if found and all(definition.cached_result is None for definition in found):
            del values[name]
