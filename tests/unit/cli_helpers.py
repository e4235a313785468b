"""What tests of the command line share: processes that hold versions, terminals that answer, and other users."""

from __future__ import annotations

import contextlib
import importlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from test_cli import environment

from shmcow.cli.app import COMMANDS, run

NOBODY = 65534
WATCHDOG = 60.0  # seconds; no test measures time

_HOLD = """
import sys
from shmcow import Reader
reader = Reader(sys.argv[1])
snapshot = reader.at(int(sys.argv[2])).hold() if sys.argv[2] != "0" else reader.snapshot()
view = snapshot.data if sys.argv[2] != "0" and not hasattr(snapshot.value, "_asdict") else None
print("ready", flush=True)
for line in sys.stdin:
    if line == "read\\n":
        print(bytes(view).hex(), flush=True)
    elif line == "at\\n":
        try:
            Reader(sys.argv[1]).at(int(sys.argv[2]))
            print("there", flush=True)
        except Exception as exc:
            print(type(exc).__name__, flush=True)
    else:
        break
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until a condition is true, and return what it returned."""
    deadline = time.monotonic() + WATCHDOG
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.002)
    return found


def killed(program: str, name: str) -> None:
    """Run a program that ends itself with SIGKILL somewhere inside shmcow: ``die`` does it."""
    start = "import os, signal, sys\nfrom shmcow import Writer, segments\nname = sys.argv[1]\n"
    die = "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", start + die + program, name], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL


class Process:
    """A process that holds a version, or has read the current one (version 0), and does as it is told."""

    def __init__(self, name: str, version: int) -> None:
        command = [sys.executable, "-c", _HOLD, name, str(version)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        self.pid = self._process.pid
        if self._line() != "ready":
            self.end()
            raise AssertionError("a process that should hold a version ended")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, order: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._line()

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def holding(name: str, version: int) -> Iterator[Process]:
    """Have a process that holds a version of a store; 0: that has read the current one, and holds nothing."""
    process = Process(name, version)
    try:
        yield process
    finally:
        process.end()


def answered(answer: str, *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal and answer its question; return the exit code and what reached the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shmcow", *arguments]
    plain = environment() | {"NO_COLOR": "1", "COLUMNS": "200"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=plain) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal's other end was closed
            while chunk := os.read(ours, 65536):
                seen += chunk
                if seen.endswith(b"[y/N]: "):
                    os.write(ours, answer.encode() + b"\n")
        code = process.wait(WATCHDOG)
    os.close(ours)
    return code, seen.decode().replace("\r\n", "\n")


def as_user(uid: int, *arguments: str) -> tuple[int, str]:
    """Run a command as another user, in a forked child; return its exit code and all that it printed."""
    for module in [*COMMANDS.values(), "psutil", "rich.table", "shmcow.cli.completing"]:
        importlib.import_module(module)  # the other user may not be able to read where they lie
    out, into = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.close(out)
            sys.stdin = open(os.devnull)  # noqa: SIM115 - for the rest of the child's life
            sys.stdout = sys.stderr = open(into, "w", buffering=1)  # noqa: SIM115 - not what pytest captures
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            code = run(list(arguments))
        finally:
            os._exit(code)
    os.close(into)
    with open(out) as told:
        seen = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen
