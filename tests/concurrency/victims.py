"""Processes that are killed, or frozen, at a given step of the protocol. Also the program that forks them.

The program runs with a build of shmcow that has kill points compiled in (killpoints.h). It has everything imported
already, so a victim costs one fork. It reads one JSON command a line and answers with one JSON line.

Steps are those of the C code (SHMCOW_STEP) and, as ``py.*``, those between the system calls of shmcow/segments.py.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from processes import WATCHDOG, die_with_parent, shm_descriptors, value_of

import shmcow
from shmcow import _core, segments
from shmcow.codecs import Codec, Part

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"


class Thirds(Codec[Any]):
    """Three segments for each version, so that a version can be half-made and half-removed."""

    name = "t-thirds"

    def split(self, value: Any) -> list[Part]:
        cells = value["cells"]
        third = (len(cells) + 2) // 3
        pieces = [cells[k : k + third] for k in range(0, 3 * third, third)]
        return [Part(f"p{k}", self.name, [msgspec.msgpack.encode([value["version"], p])]) for k, p in enumerate(pieces)]

    def join(self, parts: Any) -> Any:
        pieces = [msgspec.msgpack.decode(part.view) for part in parts]
        cells = [version for version, _ in pieces] + [cell for _, piece in pieces for cell in piece]
        return {"version": pieces[0][0], "cells": cells}


class Beside(Codec[Any]):
    """A part that changes beside one that never does: each version shares the second one's segment."""

    name = "t-beside"

    def split(self, value: Any) -> list[Part]:
        return [
            Part("value", self.name, [msgspec.msgpack.encode(value)]),
            Part("fixed", self.name, [bytes(range(256)) * 20]),
        ]

    def join(self, parts: Any) -> Any:
        value, fixed = parts
        assert fixed.view == bytes(range(256)) * 20
        return msgspec.msgpack.decode(value.view)


CODECS: dict[str, Callable[[], Codec[Any]]] = {"thirds": Thirds, "beside": Beside}


# ---- the build ----


def compiler() -> str | None:
    """Return the C compiler, or None."""
    import shutil

    return shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")


def build(directory: Path) -> Path:
    """Build shmcow with kill points below ``directory``, and return what to put on PYTHONPATH."""
    package = directory / "shmcow"
    product = Path(shmcow.__file__).parent
    for file in product.rglob("*.py"):
        target = package / file.relative_to(product)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    command = [compiler() or "cc", "-std=c11", "-O0", "-fPIC", "-shared", "-pthread"]
    command += [
        "-D_GNU_SOURCE",
        "-DPy_LIMITED_API=0x030B0000",
        "-include",
        str(Path(__file__).with_name("killpoints.h")),
    ]
    command += [f"-I{sysconfig.get_paths()['include']}", f"-I{SOURCES}"]
    command += [str(file) for file in sorted(SOURCES.glob("*.c"))] + ["-o", str(package / "_core.abi3.so")]
    subprocess.run(command, check=True)
    return directory


def steps_in_sources() -> set[str]:
    """Return the names of all steps that the C code has."""
    return {
        step for file in SOURCES.glob("*.[ch]") for step in re.findall(r'SHMCOW_STEP\("([^"]+)"\)', file.read_text())
    }


# ---- the side of the tests ----


class Fate(NamedTuple):
    """What became of a victim.

    Attributes:
        exit: its exit status, or minus the signal that killed it; None while it lives (frozen, or lingering).
        steps: the names of the steps that it reached, in order.
        fatal: the step at which it was killed or frozen, or "".
        result: what its job returned.
    """

    pid: int
    exit: int | None
    steps: list[str]
    fatal: str
    result: Any


class Victims:
    """The program that forks victims, as the tests see it."""

    def __init__(self, path: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def _ask(self, **command: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(command).encode() + b"\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], WATCHDOG)
        assert ready, f"no answer to {command}"
        answer = json.loads(stdout.readline() or "null")
        assert answer is not None, f"the victims' program died of {command}"
        assert "error" not in answer, answer.get("error")
        return answer

    def run(
        self,
        job: str,
        store: str,
        *,
        at: int = 0,
        step: str = "",
        number: int = signal.SIGKILL,
        early: bool = False,
        linger: bool = False,
        **arguments: Any,
    ) -> Fate:
        """Fork a victim that does a job, and return when it is dead, frozen or (``linger``) done and waiting.

        Args:
            job: the name of a function below.
            at: send it the signal at this step; 0: never.
            step: count only steps of this name.
            early: count from the job's begin, rather than from when it is attached.
        """
        answer = self._ask(
            do="run", job=job, store=store, at=at, step=step, number=number, early=early, linger=linger, args=arguments
        )
        return Fate(**answer)

    def go_on(self, pid: int) -> Fate:
        """Let a frozen victim finish."""
        return Fate(**self._ask(do="go_on", pid=pid))

    def kill(self, pid: int) -> Fate:
        """Kill a frozen or lingering victim."""
        return Fate(**self._ask(do="kill", pid=pid))

    def descriptors(self) -> list[str]:
        """Return the program's own descriptors on shared memory: a victim's must not be among them."""
        return shm_descriptors(self._process.pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b'{"do": "quit"}\n')
        self._process.stdin.close()
        self._process.wait(WATCHDOG)
        self._process.stdout.close()


# ---- jobs: what victims do. `arm` starts the count. ----


def _writer(store: str, codec: str = "", **settings: Any) -> shmcow.Writer[Any]:
    if codec:
        return shmcow.Writer(store, codec=CODECS[codec](), **settings)
    return shmcow.Writer(store, **settings)


def publish(
    store: str, arm: Callable[[], None], version: int, cells: int = 64, codec: str = "", **settings: Any
) -> Any:
    writer = _writer(store, codec, **settings)
    arm()
    return writer.publish(value_of(version, cells))


def update(store: str, arm: Callable[[], None], version: int, cells: int = 64) -> Any:
    writer = shmcow.Writer(store)
    arm()
    return writer.update(lambda _: value_of(version, cells))


def rollback(store: str, arm: Callable[[], None], codec: str = "") -> Any:
    writer = _writer(store, codec)
    arm()
    return writer.rollback()


def reclaim(store: str, arm: Callable[[], None], retain: int, codec: str = "") -> Any:
    writer = _writer(store, codec, retain=retain)
    arm()
    return writer.reclaim()


def create(store: str, arm: Callable[[], None], version: int) -> Any:
    arm()
    return shmcow.Writer(store, initial=value_of(version)).created


def destroy(store: str, arm: Callable[[], None]) -> Any:
    writer = shmcow.Writer(store)
    arm()
    writer.destroy()


def get(store: str, arm: Callable[[], None]) -> Any:
    reader = shmcow.Reader(store)
    arm()
    return reader.get()


_kept: list[Any] = []


def hold(store: str, arm: Callable[[], None], version: int = 0) -> Any:
    reader = shmcow.Reader(store)
    arm()
    snapshot = reader.at(version) if version else reader.snapshot()
    _kept.append((snapshot.hold(), snapshot.data))
    return snapshot.version


# ---- the program ----


def _add_python_steps(library: ctypes.CDLL) -> None:
    """Put steps between the system calls that segments.py makes."""

    def step(name: str) -> None:
        library.killpoints_step(name.encode())

    def around(function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            step(before)
            result = function(*args)
            step(after)
            return result

        return call

    for module_name, before, after in (
        ("make", "py.create", "py.created"),
        ("unlink", "py.unlink", "py.unlinked"),
        ("unlink_segment", "py.unlink", "py.unlinked"),
    ):
        setattr(segments, module_name, around(getattr(segments, module_name), before, after))


class _Running:
    def __init__(self, pid: int, log: int) -> None:
        self.pid = pid
        self.log = log
        self.text = b""

    def read_until(self, done: Callable[[list[str]], bool]) -> bool:
        """Read the log until a condition holds (True) or the victim has ended (False)."""
        while not done(self.lines()):
            more = os.read(self.log, 65536)
            if not more:
                return False
            self.text += more
        return True

    def lines(self) -> list[str]:
        return self.text.decode().splitlines()

    def fate(self, status: int | None) -> dict[str, Any]:
        lines = self.lines()
        errors = [line[1:] for line in lines if line.startswith("?")]
        if errors:
            return {"error": json.loads(errors[0])}
        results = [json.loads(line[1:]) for line in lines if line.startswith("=")]
        return {
            "pid": self.pid,
            "exit": None if status is None else os.waitstatus_to_exitcode(status),
            "steps": [line for line in lines if line[0] not in "!=?"],
            "fatal": next((line[1:] for line in lines if line.startswith("!")), ""),
            "result": results[0] if results else None,
        }


def _be_victim(library: ctypes.CDLL, command: dict[str, Any], log: int) -> None:
    os.dup2(2, 1)
    die_with_parent()

    def arm() -> None:
        library.killpoints_arm(log, command["number"], ctypes.c_long(command["at"]), command["step"].encode())

    def already_armed() -> None:
        pass

    try:
        if command["early"]:
            arm()
        job = globals()[command["job"]]
        result = job(command["store"], already_armed if command["early"] else arm, **command["args"])
        os.write(log, f"={json.dumps(result)}\n".encode())
        if command["linger"]:
            signal.pause()
        os._exit(0)
    except BaseException:
        os.write(log, f"?{json.dumps(traceback.format_exc())}\n".encode())
        os._exit(1)


def main(path: str) -> None:
    assert _core.__file__.startswith(path), f"not the build with kill points: {_core.__file__}"
    die_with_parent()
    logging.getLogger("shmcow").addHandler(logging.NullHandler())  # what victims say is of no interest
    library = ctypes.CDLL(_core.__file__)
    _add_python_steps(library)
    living: dict[int, _Running] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "quit":
            break
        if command["do"] == "run":
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(read)
                _be_victim(library, command, write)
            os.close(write)
            victim = _Running(pid, read)
            freezes = command["number"] == signal.SIGSTOP
            lives = victim.read_until(
                lambda lines, command=command, freezes=freezes: any(  # type: ignore[misc]
                    (freezes and line.startswith("!")) or (command["linger"] and line.startswith("=")) for line in lines
                )
            )
            if lives:
                if victim.fate(None).get("fatal"):
                    os.waitpid(pid, os.WUNTRACED)
                living[pid] = victim
                print(json.dumps(victim.fate(None)), flush=True)
                continue
        else:
            victim = living.pop(command["pid"])
            os.kill(victim.pid, signal.SIGCONT if command["do"] == "go_on" else signal.SIGKILL)
            victim.read_until(lambda _: False)
        os.close(victim.log)
        print(json.dumps(victim.fate(os.waitpid(victim.pid, 0)[1])), flush=True)
    for pid in living:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1])
