"""``shmcow demo``: the real executable in a pipe and on a terminal, with its processes and all that it must remove."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmcow
from shmcow import Writer
from shmcow.cli.demo import children
from shmcow.cli.demo.verdict import Verdict

ROOT = Path(shmcow.__file__).parents[1]
WATCHDOG = 90.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "shmcow", *arguments]


def environment() -> dict[str, str]:
    kept = {key: text for key, text in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TERM": "xterm"}


def processes(store: str) -> list[int]:
    """Return the pids of all processes that have a store's name among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.name.isdigit() and store.encode() in arguments and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def assert_nothing_left(store: str) -> None:
    assert processes(store) == []
    assert [entry for entry in os.listdir("/dev/shm") if entry.startswith(f"shmcow.{store}")] == []


class Demo:
    """A demo that runs, and the text that it has printed."""

    def __init__(self, store: str, seconds: float, *more: str, terminal: bool = False, **extra: str) -> None:
        self.store = store
        self.text = ""
        out, given = pty.openpty() if terminal else os.pipe()
        arguments = command("demo", "--seconds", str(seconds), "--store", store, *more)
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=given,
            stderr=given,
            env=environment() | {"COLUMNS": "100"} | extra,
        )
        os.close(given)
        self._out = out

    def read_until(self, done: Callable[[str], object]) -> None:
        """Read on until the text satisfies ``done``."""
        deadline = time.monotonic() + WATCHDOG
        while not done(self.text):
            assert time.monotonic() < deadline, self.text
            assert self._read(), self.text

    def finish(self) -> int:
        """Read the rest; return the exit code."""
        while self._read():
            pass
        return self.process.wait(WATCHDOG)

    def _read(self) -> bool:
        try:
            data = os.read(self._out, 1 << 16)
        except OSError as exc:
            if exc.errno != errno.EIO:  # how a terminal ends
                raise
            data = b""
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(WATCHDOG)
        os.close(self._out)


@pytest.fixture
def start(name: str) -> Iterator[Callable[..., Demo]]:
    running: list[Demo] = []

    def starter(seconds: float, *more: str, terminal: bool = False, **extra: str) -> Demo:
        running.append(Demo(name, seconds, *more, terminal=terminal, **extra))
        return running[-1]

    yield starter
    for demo in running:
        demo.close()


def test_demo_in_a_pipe_plays_its_script_and_the_verdict_holds(start: Callable[..., Demo], name: str) -> None:
    """Plain lines: rows, both kills and what became of them, the rival, the verdict; nothing is left."""
    demo = start(3)
    assert demo.finish() == 0, demo.text
    assert "\x1b" not in demo.text
    assert f"in another terminal: shmcow set {name} banner '\"hi\"'" in demo.text
    assert re.search(r"worker 4  pid \d+  version \d+  [\d,]+ ns/get  seen after [\d.]+ ms  [\d,]+ gets", demo.text)
    assert re.search(r"writer \d+ killed \(SIGKILL\) in mid-publish, 4\.0 of 8\.0 MB", demo.text)
    assert "recovered 1 half-done version, 0 bytes of it left" in demo.text
    assert re.search(r"worker 2 killed \(SIGKILL\) holding version \d+, \d+ newer", demo.text)
    assert re.search(r"the next publish reclaimed version \d+", demo.text)
    assert re.search(r"worker 2 replaced by pid \d+", demo.text)
    assert re.search(r"Manager: [\d,]+ ns, [\d,]+ times as long", demo.text)
    assert "verdict: torn 0 · lost 0 · went back 0 · left in /dev/shm 0" in demo.text
    assert_nothing_left(name)


def test_demo_on_a_terminal_has_a_row_for_each_worker(start: Callable[..., Demo], name: str) -> None:
    """The live screen shows the rows and ends with the verdict; Ctrl-C is not needed."""
    demo = start(3, "--workers", "2", terminal=True)
    assert demo.finish() == 0, demo.text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", demo.text)
    for worker in ("1", "2"):
        assert re.search(rf"\r?\n{worker} +\d+ +\d+ +[\d,]+ +[\d.]+ ms +[\d,]+ +nobody has set me yet", plain), plain
    assert "verdict: torn 0" in plain
    assert_nothing_left(name)


@pytest.mark.parametrize(
    ("terminal", "variable", "text"),
    [
        (True, "NO_COLOR", "1"),
        (True, "TERM", "dumb"),
        (False, "FORCE_COLOR", "1"),
        (False, "PYTHONIOENCODING", "ascii"),
    ],
)
def test_plain_lines_wherever_a_live_screen_would_not_do(
    start: Callable[..., Demo], terminal: bool, variable: str, text: str
) -> None:
    """Escapes go to a terminal that wants them only, and a poor encoding is no error."""
    demo = start(60, "--workers", "1", terminal=terminal, **{variable: text})
    demo.read_until(lambda text: "-- " in text and "publish" in text)
    demo.process.send_signal(signal.SIGINT)
    assert demo.finish() == 130, demo.text
    assert not re.search(r"\x1b\[[0-9;?]*[A-HJKh-l]", demo.text)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_ends_the_demo_and_removes_everything(
    start: Callable[..., Demo], name: str, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and its kin leave no process and no name."""
    demo = start(60)
    demo.read_until(lambda text: "workers read" in text)
    demo.process.send_signal(number)
    assert demo.finish() == code, demo.text
    assert_nothing_left(name)


def test_reader_of_the_output_that_goes_away_ends_the_demo(name: str) -> None:
    """``shmcow demo | head`` leaves nothing behind either."""
    arguments = command("demo", "--seconds", "60", "--store", name)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"shmcow demo")
        process.stdout.close()
        assert process.wait(WATCHDOG) != 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert_nothing_left(name)


def test_children_of_a_killed_demo_end_and_the_next_demo_removes_its_store(
    start: Callable[..., Demo], name: str
) -> None:
    """SIGKILL lets nobody tidy up: the children see their input end, the store is removed by the next demo."""
    demo = start(60)
    demo.read_until(lambda text: "workers read" in text)
    demo.process.kill()
    demo.finish()
    deadline = time.monotonic() + WATCHDOG
    while processes(name):
        assert time.monotonic() < deadline, processes(name)
        time.sleep(0.02)
    again = start(2)
    assert again.finish() == 0, again.text
    assert f"removed the store {name}" in again.text
    assert_nothing_left(name)


def test_store_of_that_name_is_left_alone(start: Callable[..., Demo], name: str) -> None:
    """Somebody's own store is not the demo's to use: it takes the next name, and says so."""
    with Writer(name, initial={"mine": True}) as writer:
        demo = start(2)
        assert demo.finish() == 0, demo.text
        assert f"a store named {name} exists already: this demo uses {name}-2" in demo.text
        assert f"shmcow set {name}-2 banner" in demo.text
        assert writer.snapshot().value == {"mine": True}
        assert writer.version == 1


def test_second_demo_beside_a_first_takes_another_name(start: Callable[..., Demo], name: str) -> None:
    """A demo that lives holds a version of its store, which tells others to keep off."""
    first = start(60)
    first.read_until(lambda text: "workers read" in text)
    second = start(2)
    assert second.finish() == 0, second.text
    assert f"this demo uses {name}-2" in second.text
    first.process.send_signal(signal.SIGINT)
    assert first.finish() == 130


def test_set_flips_every_row(start: Callable[..., Demo], name: str) -> None:
    """What the demo invites people to do works, and control characters do not reach the terminal."""
    demo = start(60)
    demo.read_until(lambda text: "workers read" in text)
    arguments = command("set", name, "banner", "\x1b[2Jhi there", "--string")
    subprocess.run(arguments, check=True, env=environment(), stdout=subprocess.DEVNULL)
    demo.read_until(lambda text: "banner set: on all 4 workers" in text)
    flipped = len(demo.text)
    demo.read_until(lambda text: text[flipped:].count("banner: \\x1b[2Jhi there") >= 4)
    rows = re.findall(r"worker (\d) .* banner: (.*)", demo.text[flipped:])
    assert {banner for _, banner in rows} == {"\\x1b[2Jhi there"}
    assert {worker for worker, _ in rows} == {"1", "2", "3", "4"}
    demo.process.send_signal(signal.SIGINT)
    assert demo.finish() == 130


def test_torn_value_makes_the_demo_fail(start: Callable[..., Demo], name: str) -> None:
    """The verdict counts: a value whose elements differ, published on purpose, is found and exits 1."""
    demo = start(4)
    demo.read_until(lambda text: "workers read" in text)
    subprocess.run(command("set", name, "stamps.3", "0"), check=True, env=environment(), stdout=subprocess.DEVNULL)
    assert demo.finish() == 1, demo.text
    assert re.search(r"verdict: torn [1-9]", demo.text)
    assert_nothing_left(name)


def test_checker_counts_what_must_not_happen() -> None:
    """Torn, lost and older values are each found; the same object is checked once."""

    def stamped(stamp: int) -> dict[str, object]:
        return {"stamps": [stamp] * children.ELEMENTS}

    checker = children._Checker()
    value = stamped(5)
    assert checker.check(value, 5)
    assert not checker.check(value, 5)
    assert (checker.torn, checker.lost, checker.back) == (0, 0, 0)
    checker.check(stamped(4), 3)
    assert (checker.torn, checker.lost, checker.back) == (0, 0, 1)
    checker.check(stamped(6), 7)
    assert (checker.torn, checker.lost, checker.back) == (0, 1, 1)
    torn = stamped(8)
    torn["stamps"] = [8] * (children.ELEMENTS - 1) + [7]
    checker.check(torn, 0)
    assert (checker.torn, checker.lost, checker.back) == (1, 1, 1)


def test_verdict_of_nothing_does_not_hold() -> None:
    """No reads, no proof."""
    assert not Verdict().holds
    assert Verdict(reads=1).holds
    for wrong in ("torn", "lost", "back", "left"):
        assert not Verdict(reads=1, **{wrong: 1}).holds
    assert not Verdict(reads=1, trouble=["something"]).holds
