"""Child processes for the tests: started at a barrier, talked to over a pipe, killed, stopped, and never forgotten.

Nothing here sleeps and hopes: whoever waits, waits for a message, an exit or a condition, and gives up after WATCHDOG.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import shmcow

WATCHDOG = 120.0  # seconds after which a wait counts as a hang; no test measures time
SHM = Path("/dev/shm")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


# ---- values that carry their version ----


def value_of(version: int, cells: int = 64) -> dict[str, Any]:
    """Return a value that carries its version in every element."""
    return {"version": version, "cells": [version] * cells}


def version_in(value: Any) -> int:
    """Return the version that a value carries; 0 if its elements do not agree, that is, if it is torn."""
    version = value["version"]
    return version if value["cells"] and set(value["cells"]) == {version} else 0


class Words:
    """A few 64-bit words shared by this process and those that it forks."""

    def __init__(self, n: int) -> None:
        self._map = mmap.mmap(-1, 8 * n)
        self._words = (ctypes.c_uint64 * n).from_buffer(self._map)

    def __getitem__(self, k: int) -> int:
        return self._words[k]

    def __setitem__(self, k: int, value: int) -> None:
        self._words[k] = value


# ---- waiting ----


def until(condition: Callable[[], Any], what: str, watchdog: float = WATCHDOG) -> Any:
    """Poll until a condition is true, and return what it returned."""
    deadline = time.monotonic() + watchdog
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.001)


def state_of(pid: int) -> str:
    """Return the kernel's letter for a process's state: R, S, D, T (stopped), Z (dead, not reaped) or "" (gone)."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


# ---- children ----


class ChildFailedError(AssertionError):
    """A child ended with an exception; its traceback is the message."""


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


class Link:
    """The child's end of the pipe between parent and child."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def send(self, message: Any) -> None:
        self._connection.send(message)

    def recv(self) -> Any:
        return self._connection.recv()

    def poll(self) -> bool:
        """Tell whether a message is there."""
        return bool(self._connection.poll(0))


class Child:
    """A forked process that runs ``body(link, *args)``, and exits without any of the parent's finalizers."""

    def __init__(self, body: Callable[..., Any], *args: Any, fork: Callable[[], int] = os.fork) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self.status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of fork with threads
            self.pid = fork()
        if self.pid == 0:
            _run(body, Link(theirs), args)
        assert self.pid > 0
        theirs.close()

    def send(self, message: Any) -> None:
        try:
            self._ours.send(message)
        except BrokenPipeError:
            self.recv()  # says why the child has ended
            raise

    def recv(self) -> Any:
        """Return the child's next message."""
        assert self._ours.poll(WATCHDOG), f"child {self.pid} said nothing (state {state_of(self.pid)})"
        try:
            message = self._ours.recv()
        except EOFError:
            raise ChildFailedError(f"child {self.pid} ended: {self.wait()}") from None
        if isinstance(message, _Failure):
            self.wait()
            raise ChildFailedError(message.text)
        return message

    def ask(self, message: Any) -> Any:
        self.send(message)
        return self.recv()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Send SIGSTOP, and return when the process has stopped."""
        self.signal(signal.SIGSTOP)
        until(lambda: state_of(self.pid) == "T", f"{self.pid} stops")

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process, and return when it is dead: its locks have gone then, although nobody reaped it."""
        self.signal(signal.SIGKILL)
        until(lambda: state_of(self.pid) in ("Z", ""), f"{self.pid} dies")

    def wait(self) -> int:
        """Reap the process; its exit status, or minus the signal that ended it."""
        if self.status is None:

            def reaped() -> bool:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.status = os.waitstatus_to_exitcode(status)
                return pid != 0

            until(reaped, f"{self.pid} ends (state {state_of(self.pid)})")
            self._ours.close()
        assert self.status is not None
        return self.status

    def done(self) -> None:
        """Wait for a clean end; a message that the child left must not be a failure."""
        try:
            while self._ours.poll(WATCHDOG):
                message = self._ours.recv()
                if isinstance(message, _Failure):
                    self.wait()
                    raise ChildFailedError(message.text)
        except (EOFError, ConnectionResetError):
            pass
        assert self.wait() == 0

    def end(self) -> None:
        """Kill and reap, whatever its state."""
        if self.status is None:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.wait()


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends: a crashed test run leaves nobody behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _run(body: Callable[..., Any], link: Link, args: Iterable[Any]) -> NoReturn:
    code = 1
    try:
        die_with_parent()
        body(link, *args)
        code = 0
    except BaseException:
        text = traceback.format_exc()
        try:
            link.send(_Failure(text))
        except OSError:
            os.write(2, text.encode())
    finally:
        os._exit(code)


# ---- what is left ----


def objects_of(store: str) -> set[str]:
    """Return the names of all objects of a store, whatever epoch."""
    return {entry for entry in os.listdir(SHM) if entry == f"shmcow.{store}" or entry.startswith(f"shmcow.{store}.")}


def expected_objects(store: str) -> set[str]:
    """Return the names that a store at rest consists of: header, lock, holds, and what its generations list."""
    report = shmcow.describe(store)
    base = f"shmcow.{store}.{report.epoch}."
    listed = {f"{base}{segment}" for generation in report.generations for segment in generation.segments}
    return {f"shmcow.{store}", f"{base}lock", f"{base}holds"} | listed


def versions_of(store: str) -> list[int]:
    """Return the versions in the generation table, newest first."""
    return [generation.version for generation in shmcow.describe(store).generations]


def assert_at_rest(store: str) -> None:
    """Fail unless every generation is published, and shared memory holds exactly what the table lists."""
    report = shmcow.describe(store)
    assert {generation.state for generation in report.generations} <= {"held"}, report.generations
    assert not any(generation.damaged for generation in report.generations)
    assert objects_of(store) == expected_objects(store)


def shm_descriptors(pid: int | str = "self") -> list[str]:
    """Return what a process's descriptors on shared memory lead to, sorted."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue
        if target.startswith(str(SHM)):
            found.append(target)
    return sorted(found)


def locks_of(pid: int | str) -> list[tuple[str, int]]:
    """Return the locks of a process's descriptors on shared memory, from its fdinfo: (file, byte), sorted."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            info = (Path("/proc") / str(pid) / "fdinfo" / number).read_text()
        except FileNotFoundError:
            continue
        if not target.startswith(str(SHM)):
            continue
        for line in info.splitlines():
            if line.startswith("lock:"):
                first, last = (int(word) for word in line.split()[-2:])  # neighbours are joined into one
                assert last - first < 1000, line
                found += [(Path(target.removesuffix(" (deleted)")).name, byte) for byte in range(first, last + 1)]
    return sorted(found)


def held_by(pid: int, store: str) -> set[int]:
    """Return the versions of a store that a process holds, as the kernel says."""
    return {offset for _, offset in _markers(pid, store) if offset < 1 << 62}


def seen_by(pid: int, store: str) -> set[int]:
    """Return the versions of a store that a process has marked as seen, as the kernel says."""
    return {offset - (1 << 62) for _, offset in _markers(pid, store) if offset >= 1 << 62}


def _markers(pid: int, store: str) -> list[tuple[str, int]]:
    return [
        (file, offset)
        for file, offset in locks_of(pid)
        if file.startswith(f"shmcow.{store}.") and file.endswith(".holds")
    ]
