"""``shmcow top``, and the figures that it shows: how fast stores are published, who is behind, who holds what."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import ROOT, STRANGER, plain_text, ran
from rich.console import Console
from test_cli import environment, refused, run

sys.path.append(str(Path(__file__).parents[1] / "concurrency"))

from processes import Child, Link, state_of, until
from users import needs_root

from shmcow import Reader, Writer, inspect
from shmcow.cli import top
from shmcow.fdinfo import command_of


def _ready(child: Child) -> Child:
    assert child.recv() == "ready"
    return child


def _reading(link: Link, name: str, held: int) -> None:
    """Read the current version, hold another one (0: none), and wait for the end."""
    reader = Reader(name)
    reader.get()
    kept = reader.at(held).hold() if held else None
    link.send("ready")
    link.recv()
    del kept


# ---- the figures ----


def test_activity_tells_rates_readers_and_holds(name: str, spawn: Callable[..., Child]) -> None:
    """The rate is that of the time between two looks; a hold has its owner; whoever is behind counts."""
    with Writer(name, initial={"n": 0}) as writer:
        writer.publish({"n": 1})
        job, idle = _ready(spawn(_reading, name, 1)), _ready(spawn(_reading, name, 0))
        (first,) = inspect.activity([name])
        assert (first.version, first.versions, first.published_per_second) == (2, 2, None)
        assert (first.readers, first.lagging, first.behind) == (2, 1, 1)
        for n in range(30):
            writer.publish({"n": n})
        (now,) = inspect.activity([name], [first])
        assert now.published_per_second == pytest.approx(30 / (now.looked_at - first.looked_at))
        assert (now.version, now.readers, now.lagging, now.behind) == (32, 2, 2, 31)
        assert now.total_bytes == inspect.describe(name).total_bytes
        (hold,) = now.holds
        assert (hold.pid, hold.held, hold.behind) == (job.pid, ((1, 1),), 31)
        assert hold.command == command_of(os.getpid())  # the child was forked
        idle.kill()
        assert inspect.activity([name], [now])[0].readers == 1
        writer.destroy()
    with Writer(name, initial={"n": 0}):
        assert inspect.activity([name], [now])[0].published_per_second is None  # another store


def test_activity_of_what_cannot_be_read_has_a_problem(name: str) -> None:
    """A damaged store is listed with the others; one of those named that is not there, too."""
    bad = Path(f"/dev/shm/shmcow.{name}-bad")
    bad.write_bytes(b"x" * 100)
    try:
        with Writer(name, initial={"n": 0}):
            found = {item.name: item for item in inspect.activity()}
            assert "not that of a store" in found[f"{name}-bad"].problem
            assert (found[name].problem, found[name].version) == ("", 1)
            there, missing = inspect.activity([f"{name}-none", name])
            assert (missing.name, there.name) == (f"{name}-none", name)
            assert "no store" in missing.problem
    finally:
        bad.unlink()
    with pytest.raises(ValueError, match="name"):
        inspect.activity(["a b"])


def _look(link: Link, name: str) -> None:
    STRANGER.become()
    link.send(inspect.activity([name]))


@needs_root
def test_holds_of_processes_that_may_not_be_looked_into(name: str, spawn: Callable[..., Child]) -> None:
    """Another user is told what is held, and not by whom."""
    with Writer(name, initial={"n": 0}, mode=0o644) as writer:
        writer.publish({"n": 1})
        _ready(spawn(_reading, name, 1))
        child = Child(_look, name)
        (found,) = child.recv()
        child.done()
        assert (found.version, found.readers) == (2, 0)
        assert [(hold.pid, hold.command, hold.held) for hold in found.holds] == [(0, "", ((1, 1),))]
        assert "?" in ran("top", name, "--count", "1", "--interval", "0.05", terminal=(24, 80), user=STRANGER).out
        assert ran("top", name, "--count", "1", "--interval", "0.05", user=ROOT).out.split("\t")[9] == "1"


# ---- in a pipe ----


def test_top_prints_a_frame_each_interval_in_a_pipe(name: str, spawn: Callable[..., Child]) -> None:
    """Tab-separated lines, or one object a look; from the second look on, so that there are rates."""
    with Writer(name, initial={"n": 0}) as writer:
        job = _ready(spawn(_reading, name, 1))
        writer.publish({"n": 1})
        done = run("top", name, "--count", "2", "--interval", "0.05")
        assert (done.returncode, done.stderr) == (0, "")
        first, second = [line.split("\t") for line in done.stdout.splitlines()]
        assert first[0] < second[0]
        assert first[1:11] == [
            name,
            "2",
            str(inspect.describe(name).total_bytes),
            "2",
            "0.000",
            "1",
            "1",
            "1",
            "1",
            str(job.pid),
        ]
        assert first[11] == command_of(os.getpid())
        assert first[12] == ""
        told = [
            json.loads(line)
            for form in (["--json"], ["-o", "jsonl"])
            for line in ran("top", name, "--count", "1", "--interval", "0.05", *form).out.splitlines()
        ]
        assert len(told) == 2
        for frame in told:
            (store,) = frame["stores"]
            assert (frame["schema"], store["version"], store["published_per_second"]) == (1, 2, 0.0)
            assert store["holds"] == [{"pid": job.pid, "command": first[11], "held": [[1, 1]], "behind": 1}]
        table = ran("top", name, "--count", "2", "--interval", "0.05", "-o", "table").out
        assert table.count("pub/s") == 2
        assert "\x1b" not in table


def test_top_says_what_it_does_not_take(name: str) -> None:
    """A store that is not there is exit 3, a number out of range 2."""
    assert "no store" in refused(3, "top", name, "--count", "1")
    with Writer(name, initial={"n": 0}):
        for arguments in (["--interval", "0"], ["--interval", "nan"], ["--count", "0"]):
            assert ran("top", name, "--count", "1", *arguments).code == 2


# ---- on a terminal ----


class Screen:
    """A terminal of 24 lines with ``shmcow top`` on it, which has been drawn twice."""

    def __init__(self, *arguments: str) -> None:
        self.ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self._theirs)
        plain = {name: value for name, value in environment().items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        # A session of its own, whose terminal this is: Ctrl-C and Ctrl-Z are what they are to people.
        program = (
            "import fcntl, os, sys, termios\n"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "from shmcow.cli.app import run\n"
            "sys.exit(run(sys.argv[1:]))\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "top", "--interval", "0.05", *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=plain | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        self.seen = b""
        self.read_until(lambda: self.seen.count(b"pub/s") >= 2)

    def read_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.seen
            self.seen += os.read(self.ours, 65536)

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._theirs) == self.before

    def end(self) -> int:
        """Wait for the end, and return the exit status."""

        def ended() -> bool:
            os.set_blocking(self.ours, False)
            try:
                self.seen += os.read(self.ours, 65536)  # or it might wait for room
            except BlockingIOError:
                pass
            return self.process.poll() is not None

        try:
            until(ended, "top ends")
            ended()
        finally:
            self.process.kill()
            self.process.wait()
        return self.process.returncode

    def close(self) -> None:
        os.close(self.ours)
        os.close(self._theirs)


_HIDE, _SHOW = (b"\x1b[?1049h", b"\x1b[?25l"), (b"\x1b[?1049l", b"\x1b[?25h")


@pytest.mark.parametrize(
    ("how", "status"),
    [
        (b"q", 0),
        (b"\x03", 130),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGHUP, -signal.SIGHUP),
    ],
    ids=["q", "Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_top_leaves_the_terminal_as_it_was(name: str, how: Any, status: int) -> None:
    """However it ends: the cursor, the screen and the keyboard are as before, and nothing else was printed."""
    with Writer(name, initial={"n": 0}):
        screen = Screen(name)
        assert not screen.is_as_before()  # keys come one by one
        os.write(screen.ours, how) if isinstance(how, bytes) else screen.process.send_signal(how)
        assert screen.end() == status
        assert screen.is_as_before()
        screen.close()
        assert all(screen.seen.count(hide) == 1 for hide in _HIDE)
        assert all(screen.seen.rindex(show) > screen.seen.rindex(b"pub/s") for show in _SHOW)
        assert b"Traceback" not in screen.seen
        assert name.encode() in screen.seen


def test_top_can_be_stopped_and_goes_on(name: str) -> None:
    """Ctrl-Z gives the terminal back, and in the foreground again it is drawn anew."""
    with Writer(name, initial={"n": 0}):
        screen = Screen(name)
        os.write(screen.ours, b"\x1a")
        screen.read_until(lambda: _SHOW[0] in screen.seen)
        until(lambda: state_of(screen.process.pid) == "T", "it stops")
        assert screen.is_as_before()
        drawn = screen.seen.count(b"pub/s")
        screen.process.send_signal(signal.SIGCONT)
        screen.read_until(lambda: screen.seen.count(b"pub/s") > drawn + 2)
        os.write(screen.ours, b"q")
        assert screen.end() == 0
        assert screen.is_as_before()
        screen.close()
        assert screen.seen.count(_HIDE[0]) == screen.seen.count(_SHOW[0]) == 2


def test_terminal_that_has_gone_ends_top(name: str) -> None:
    """Nobody looks any more, and nothing is left behind that goes on looking."""
    with Writer(name, initial={"n": 0}):
        screen = Screen(name)
        screen.close()
        assert screen.process.wait(60) in (0, -signal.SIGHUP)


def test_page_is_never_higher_than_the_terminal() -> None:
    """Whatever there is to show, it says how many more there are."""
    holds = tuple(inspect.Holding(pid, f"worker {pid}", ((1, 1),), 1) for pid in range(1, 8))
    for stores in (0, 1, 5, 200):
        found = [
            inspect.Activity(
                f"store-{n}", 0.0, "epoch", version=1, published_per_second=float(n), holds=holds * (n % 2)
            )
            for n in range(stores)
        ]
        for height in (1, 10, 24, 50):
            looks = top._Looks(())
            looks._found = found
            console = Console(width=80, height=height, file=io.StringIO())
            console.print(looks.screen(console, False))
            shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
            assert len(shown) <= max(height - 1, 13)
            if stores == 200:
                listed = [line for line in shown if line.startswith("store-") and "worker" not in line]
                assert listed[0].startswith("store-199 ")  # what is published most
                assert f"… and {200 - len(listed)} more stores" in shown
                assert any("more holds" in line for line in shown)


def test_top_on_a_terminal_ends_after_count(name: str) -> None:
    """With --count it ends by itself, with the last figures on the screen."""
    with Writer(name, initial={"n": 0}):
        done = ran("top", name, "--count", "2", "--interval", "0.05", terminal=(24, 80))
        assert done.code == 0
        assert done.out.count("pub/s") == 2
        assert f"{name}" in plain_text(done.out)
        assert "pub/s" in ran("top", name, "--count", "1", "--interval", "0.05", terminal=(24, 80), TERM="dumb").out
