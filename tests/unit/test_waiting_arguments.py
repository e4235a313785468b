"""Arguments of everything that waits: what is no time-out, no version and no snapshot is refused before any sleep."""

from __future__ import annotations

import decimal
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shmcow import ClosedError, Reader, Snapshot, WaitTimeoutError, Writer, _core, wait_readers

_BAD_TIMES: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError),
    (-0.001, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (threading.TIMEOUT_MAX * 2, ValueError),
    (10**400, ValueError),  # no float
    ("1", TypeError),
    (True, TypeError),
    (decimal.Decimal(1), TypeError),
    ([1], TypeError),
    (1j, TypeError),
]
_BAD_VERSIONS: list[tuple[Any, type[Exception]]] = [
    (-1, ValueError),
    (_core.VERSION_MAX + 1, ValueError),
    (True, TypeError),
    (1.0, TypeError),
    ("1", TypeError),
    ([1], TypeError),
]


def _calls(name: str, writer: Writer[Any], reader: Reader[Any]) -> dict[str, Callable[[Any], Any]]:
    return {
        "wait": lambda timeout: reader.wait(after=0, timeout=timeout),
        "wait_readers": lambda timeout: wait_readers(name, at_least=1, timeout=timeout),
        "wait_unused": lambda timeout: writer.wait_unused(1, timeout=timeout),
    }


@pytest.mark.parametrize("call", ["wait", "wait_readers", "wait_unused"])
def test_what_is_no_timeout_is_refused(name: str, call: str) -> None:
    """A wrong time-out is an error even where there is nothing to wait for."""
    with Writer(name, initial=1) as writer, Reader(name) as reader:
        writer.publish(2)
        for timeout, error in _BAD_TIMES:
            with pytest.raises(error, match="timeout is a number of seconds"):
                _calls(name, writer, reader)[call](timeout)


@pytest.mark.parametrize("call", ["wait", "wait_readers", "wait_unused"])
def test_every_other_timeout_is_good(name: str, call: str) -> None:
    """None, nothing, and whatever a clock can count: it returns at once when there is nothing to wait for."""
    with Writer(name, initial=1) as writer, Reader(name) as reader:
        writer.publish(2)
        for timeout in (None, 0, 0.0, -0.0, 1, 10**9, threading.TIMEOUT_MAX):
            _calls(name, writer, reader)[call](timeout)


def test_what_is_no_attach_timeout_is_refused(name: str) -> None:
    """A wrong ``attach_timeout`` is an error when the reader is made; there, None is no time-out either."""
    for timeout, error in [*_BAD_TIMES, (None, TypeError)]:
        with pytest.raises(error, match="attach_timeout is a number of seconds"):
            Reader(name, attach_timeout=timeout)


def test_what_is_no_version_is_refused(name: str) -> None:
    """A wrong version is an error at once, without a look at the store."""
    for version, error in _BAD_VERSIONS:
        with pytest.raises(error, match="after= is a"):
            Reader(name).wait(after=version)
        with pytest.raises(error, match="at_least is a version"):
            wait_readers(name, at_least=version)
    with Writer(name, initial=1) as writer:
        for version, error in _BAD_VERSIONS:
            with pytest.raises(error, match="version is a version"):
                writer.wait_unused(version)


def test_version_zero(name: str) -> None:
    """Waiting after nothing is waiting for anything; no reader can be at version 0, and nobody can hold it."""
    with Writer(name, initial=1) as writer, Reader(name) as reader:
        assert reader.wait(after=0).version == 1
        with pytest.raises(ValueError, match=r"1 to \d+, found 0"):
            wait_readers(name, at_least=0)
        with pytest.raises(ValueError, match=r"1 to \d+, found 0"):
            writer.wait_unused(0)
        with pytest.raises(WaitTimeoutError):
            reader.wait(after=_core.VERSION_MAX, timeout=0)


def test_gate_of_a_bad_name_is_refused() -> None:
    """What is no store's name is an error, and never a path."""
    for bad in ("", "a/b", "a.b", "x" * 65):
        with pytest.raises(ValueError, match="bad store name"):
            wait_readers(bad, at_least=1)


def test_refresh_is_one_of_two(name: str) -> None:
    """Any other ``refresh`` is an error when the reader is made."""
    for refresh in ("Background", "", None, True):
        with pytest.raises(ValueError, match="refresh is 'inline' or 'background'"):
            Reader(name, refresh=refresh)  # type: ignore[arg-type]


def test_closed_reader_refuses_to_wait(name: str) -> None:
    """After close() nothing waits, and a watch that was made before has ended."""
    with Writer(name, initial=1):
        reader = Reader(name)
        watch = reader.watch()
        reader.close()
        assert list(watch) == []
        for call in (
            reader.wait,
            lambda: reader.wait(after=0, timeout=0),
            reader.watch,
            lambda: reader.subscribe(print),
        ):
            with pytest.raises(ClosedError):
                call()


# ---- the sleep itself ----


def test_sleep_refuses_what_is_no_sleep(name: str) -> None:
    """The C function checks what Python hands it, whoever calls it."""
    with Writer(name, initial=1) as writer:
        store = writer._store
        rings = _core.rings()
        for seconds in (-1.0, math.nan, math.inf, 1.1e9):
            with pytest.raises(ValueError, match="a sleep is 0 to"):
                _core.wait(rings, (), seconds)
        with pytest.raises(ValueError, match="at most 127 stores"):
            _core.wait(rings, ((store, 0),) * 128, 0.0)
        for watched in ((store,), ((store,),), (("store", 0),), ((store, "0"),), ((store, 0, 0),)):
            with pytest.raises(TypeError):
                _core.wait(rings, watched, 0.0)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            _core.wait(rings, [(store, 0)], 0.0)  # type: ignore[arg-type]
        _core.wait(rings, ((store, store.word),) * 127, 0.0)


def test_nobody_sleeps_on_a_word_that_has_changed(name: str) -> None:
    """What was published, or rung for, between the look and the sleep ends the sleep before it begins."""
    with Writer(name, initial=1) as writer:
        store, rings = writer._store, _core.rings()
        word = store.word
        writer.publish(2)
        _core.wait(rings, ((store, word),), 3600.0)
        _core.ring()
        assert _core.rings() != rings
        _core.wait(rings, (), 3600.0)
        _core.wait(rings, ((store, store.word),), 3600.0)


def test_generic_snapshot_of_the_same_store_is_accepted(name: str) -> None:
    """It does not matter which reader, or writer, a snapshot comes from."""
    with Writer(name, initial=1) as writer, Reader(name) as reader:
        first: Snapshot[Any] = writer.snapshot()
        writer.publish(2)
        assert reader.wait(after=first, timeout=0).version == 2
