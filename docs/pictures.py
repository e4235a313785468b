"""Draw the terminal pictures of docs/cli.md, docs/*.svg: ``python docs/pictures.py``.

Each shows what the real ``shmcow`` printed on a terminal, about real stores with real processes that read them.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from shmcow import IPTable, Reader, Writer, list_stores

ROOT = Path(__file__).resolve().parents[1]
STORES = ("app-config", "flags", "geo")
COLUMNS, LINES = 100, 30
PICTURES = {
    "ls": ["ls"],
    "stat": ["stat", "app-config"],
    "readers": ["readers", "app-config"],
    "top": ["top", "--count", "3", "--interval", "1"],
}


# ---- on a terminal ----


def printed(*arguments: str) -> str:
    """Return what ``shmcow`` printed on a terminal, with its colours; of a screen that changes the last state."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    unset = ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES")
    plain = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-m", "shmcow", *arguments]
    seen = b""
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=plain | {"TERM": "xterm-256color"}, cwd=ROOT
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # the terminal's other end was closed
            while chunk := os.read(ours, 65536):
                seen += chunk
    os.close(ours)
    text = seen.decode().replace("\r\n", "\n")
    if process.returncode:
        raise RuntimeError(f"shmcow {' '.join(arguments)} ended with {process.returncode}: {text}")
    screens = text.rpartition("\x1b[?1049l")[0].split("\x1b[H")
    text = re.sub(r"\x1b\[\?\d+[hl]", "", screens[-1] if len(screens) > 1 else text)
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip() + "\n"


def svg(arguments: Sequence[str], text: str) -> str:
    """Draw what a command printed."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text(f"$ shmcow {' '.join(arguments)}", style="bold"))
    console.print(Text.from_ansi(text), end="")
    drawn = console.export_svg(title="", theme=MONOKAI, unique_id=f"shmcow-{arguments[0]}")
    # No font from elsewhere: whoever looks at it need not tell anybody.
    drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in drawn.rstrip().splitlines()) + "\n"


# ---- what there is to see ----


@contextlib.contextmanager
def stage(names: dict[str, str]) -> Iterator[None]:
    """Have three stores, some of whose readers are behind.

    Args:
        names: what each of ``STORES`` is called.
    """
    config, flags, geo = (names[store] for store in STORES)
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).resolve().relative_to(ROOT)), *arguments]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    rows = [(f"{n >> 8 & 255}.{n & 255}.0.0/16", "AU" if n % 3 else "US") for n in range(256, 57_088)]
    with (
        Writer(config, initial={"timeout": 1.0, "hosts": ["db1"]}) as writer,
        Writer(flags, initial={"n": 0}) as switches,
        Writer(geo, codec=IPTable(str), initial=rows) as table,
    ):
        try:
            writer.publish({"timeout": 2.5, "hosts": ["db1"]}, message="raise the timeout", author="ann")
            start("job", config)
            start("worker", config, geo)
            os.kill(start("worker", config, geo).pid, signal.SIGSTOP)
            writer.publish({"timeout": 2.5, "hosts": ["db1", "db2"]}, message="db2 is back", author="bob")
            for _ in range(3):
                start("worker", config, geo)
            start("switch", flags)
            start("worker", flags)
            yield
        finally:
            for process in processes:
                process.kill()
                process.communicate()
            for store in (writer, switches, table):
                store.destroy()


def play(part: str, *stores: str) -> None:
    """Be one of the processes: a worker reads, a job keeps what it has read, a switch publishes all the time."""
    kept: Any = [Reader(store).snapshot().hold() if part == "job" else Reader(store) for store in stores]
    if part == "worker":
        kept = [(reader, reader.get()) for reader in kept]
    print("ready", flush=True)
    while part != "switch":
        signal.pause()
    with Writer(stores[0]) as writer:
        while True:
            writer.update(lambda old: {"n": old["n"] + 1})
            time.sleep(0.005)


def main() -> None:
    """Draw all pictures."""
    taken = set(STORES) & set(list_stores())
    if taken:
        sys.exit(f"there are stores named {', '.join(sorted(taken))} already: they are not to be played with")
    with stage({name: name for name in STORES}):
        for name, arguments in PICTURES.items():
            text = printed(*arguments, *(STORES if name == "top" else ()))
            if name == "ls":  # nothing of whatever else there is
                head, *lines = text.splitlines(True)
                text = head + "".join(line for line in lines if line.split()[0] in STORES)
            (ROOT / "docs" / f"{name}.svg").write_text(svg(arguments, text))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(*sys.argv[1:])
    else:
        main()
