"""The pages in docs/: their blocks, and a place of their own in which what they show is tried out as written.

What stands in a page:

- ```python: a program; what it prints is the ```text block behind it, or nothing.
- ```console: ``$ `` commands, each with what it prints.
- a block behind ``<!-- file: NAME -->`` is written to that file, for what comes after it.
- ```sh, ```yaml, ```ini without a file name: cannot be tried here (another host, an engine, systemd); commands in them
  must exist.

Expected output may have ``...`` for what differs from run to run.
"""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
KINDS = {"python", "console", "text", "sh", "yaml", "ini", "json", "toml"}
WATCHDOG = 60  # seconds after which a command counts as hanging
ROOM = 64 << 20  # bytes of /dev/shm in which pages are tried out: what Docker gives a container
_FENCE = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)```", re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    kind: str
    file: str
    text: str


class Step(NamedTuple):
    """Something that a page does, and what it says that this prints."""

    line: int
    command: str
    is_python: bool
    expected: str


def blocks(page: Path) -> list[Block]:
    """Return a page's fenced blocks."""
    text = page.read_text()
    return [
        Block(text[: found.start("text")].count("\n") + 1, found["kind"], found["file"] or "", found["text"])
        for found in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def commands(block: Block) -> list[Step]:
    """Return the commands of a ```console block."""
    steps: list[Step] = []
    lines = block.text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("$ "):
            steps.append(Step(block.line + number, line[2:], False, ""))
        elif steps and steps[-1].command.endswith("\\") and not steps[-1].expected:
            steps[-1] = steps[-1]._replace(command=steps[-1].command + "\n" + line)
        else:
            steps[-1] = steps[-1]._replace(expected=steps[-1].expected + line + "\n")
    return steps


def steps(page: Path) -> list[Step | Block]:
    """Return what a page does: the steps, and the blocks that are files."""
    found: list[Step | Block] = []
    for block in blocks(page):
        if block.file:
            found.append(block)
        elif block.kind == "python":
            found.append(Step(block.line, block.text, True, ""))
        elif block.kind == "console":
            found += commands(block)
        elif block.kind == "text":
            last = found[-1]
            assert isinstance(last, Step), f"{page.name}:{block.line}: nothing comes before this output"
            found[-1] = last._replace(expected=block.text)
    return found


def make_place(directory: Path) -> dict[str, str]:
    """Make a directory for a page's programs, with the commands that it uses; return their environment."""
    tools = directory / "bin"
    tools.mkdir()
    for name, words in {"shmcow": "-m shmcow ", "python": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words}"$@"\n')
        (tools / name).chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {
        **own,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # ours once, by its file, also where shmcow is not installed
        "PYTEST_PLUGINS": "_shmcow_pytest",
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{directory / 'work'}",
        "COLUMNS": "200",
    }


def run(page: Path, directory: Path) -> list[str]:
    """Do what a page does, and return what came out otherwise than the page says.

    Call it where /dev/shm is empty and nobody else's.
    """
    environment, wrong = make_place(directory), []
    work = directory / "work"
    work.mkdir()
    for step in steps(page):
        if isinstance(step, Block):
            target = work / step.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(step.text)
            continue
        words = [sys.executable if step.is_python else "/bin/sh", "-c", step.command]
        found = output_of(words, work, environment)
        if not matches(step.expected, found):
            wrong.append(f"{page.name}:{step.line}: expected\n{step.expected}found\n{found}")
    return wrong


def output_of(words: list[str], work: Path, environment: dict[str, str]) -> str:
    """Run a command, and return all that it wrote; what it left running is killed."""
    with (work.parent / "output").open("w+") as output:
        process = subprocess.Popen(
            words, cwd=work, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(WATCHDOG)
        except subprocess.TimeoutExpired:
            output.write(f"(did not end within {WATCHDOG} s)\n")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Path(output.name).read_text()


def matches(expected: str, found: str) -> bool:
    """Tell whether an output is the expected one, in which ``...`` stands for anything."""
    return doctest.OutputChecker().check_output(expected, found, doctest.ELLIPSIS)
