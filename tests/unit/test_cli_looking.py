"""Every command that reads: in a pipe, on a terminal, as another user, on damaged, busy, many and huge stores."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_runs import STRANGER, Done, files_of, plain_text, ran, reads
from test_cli import environment
from test_corruption import ENTRY, Damaged

sys.path.append(str(Path(__file__).parents[1] / "concurrency"))

from processes import SHM, Child, Link
from users import needs_root

from shmcow import Raw, Reader, Writer, destroy

HOSTILE = "up \x1b[2J\x9b2J\r\x07 and \u202e down"
SEEN = "up \\x1b[2J\\x9b2J\\r\\x07 and \\u202e down"


@pytest.fixture
def hostile(name: str) -> Iterator[str]:
    """A store of two versions for everybody, with control characters wherever a text may stand."""
    with Writer(name, initial={"n": 1, HOSTILE: "a"}, mode=0o644) as writer:
        writer.publish({"n": 2, HOSTILE: HOSTILE}, message=HOSTILE, author=HOSTILE, source=HOSTILE)
        yield name


@pytest.fixture
def hostile_reader(hostile: str) -> Iterator[int]:
    """A process that holds its version, and whose command line has control characters."""
    program = f"import sys; from shmcow import Reader; s = Reader({hostile!r}).snapshot().hold(); print(1, flush=True)"
    command = [sys.executable, "-c", f"{program}; sys.stdin.read()", HOSTILE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process.pid


def expected(command: list[str]) -> int:
    return 1 if command[0] == "diff" else 0


def steers(text: str) -> list[str]:
    """Return what in a text could steer a terminal."""
    return sorted({char for char in text if not char.isprintable() and char not in "\n\t"})


def test_looking_changes_nothing_and_steers_no_terminal(hostile: str, hostile_reader: int) -> None:
    """In a pipe and on a terminal: no control character gets through, and every file is as it was."""
    before = files_of(hostile)
    for command in reads(hostile):
        piped = ran(*command)
        assert (piped.code, piped.err) == (expected(command), ""), command
        assert steers(piped.out) == [], command
        shown = ran(*command, terminal=(40, 300))
        assert shown.code == expected(command), shown
        assert steers(plain_text(shown.out)) == [], command
        if command[0] in ("history", "watch", "stat"):
            assert SEEN in piped.out
            assert SEEN[:18] in plain_text(shown.out)
        if command[0] in ("readers", "top"):
            assert SEEN in piped.out
            assert str(hostile_reader) in shown.out
        if command[0] != "wait":
            assert piped.out != shown.out
            assert piped.out.count("\n") >= 1
    assert files_of(hostile) == before


def test_colours_are_for_terminals_unless_the_environment_says(hostile: str, hostile_reader: int) -> None:
    """NO_COLOR takes colours away on a terminal, FORCE_COLOR gives them to a pipe; JSON is never coloured."""
    assert hostile_reader
    colour = re.compile(r"\x1b\[[0-9;]*m")
    painted = []
    for command in reads(hostile):
        shown = ran(*command, terminal=(40, 200)).out
        assert not re.search(r"\x1b\[[\d;]*[34]\d", ran(*command, terminal=(40, 200), NO_COLOR="1").out), command
        assert not colour.search(ran(*command).out), command
        if colour.search(shown):
            painted.append(command[0])
            assert colour.search(ran(*command, FORCE_COLOR="1").out), command
        if command[0] != "wait":
            json.loads(ran(*command, "--json").out)
    assert {"ls", "history", "diff", "readers", "top"} <= set(painted)


@needs_root
def test_looking_needs_no_permission_to_write(hostile: str) -> None:
    """Another user who may read sees all there is; and who may not is told so, with exit code 5."""
    before = files_of(hostile)
    for command in reads(hostile):
        done = ran(*command, user=STRANGER)
        assert done.code == expected(command), (command, done)
        assert hostile in done.out or command[0] in ("history", "get", "diff", "readers", "watch", "wait")
    assert files_of(hostile) == before
    private = f"{hostile}-private"
    try:
        with Writer(private, initial={"n": 1}) as writer:
            writer.publish({"n": 2})
        for command in reads(private):
            done = ran(*command, user=STRANGER)
            listed = command[0] in ("ls", "top")
            assert done.code == (0 if listed else 5), (command, done)
            assert f"shmcow.{private}" in (done.out if listed else done.err), (command, done)
            assert "Traceback" not in done.err
    finally:
        destroy(private)


# ---- damage ----


@pytest.fixture
def damaged(name: str) -> Iterator[Damaged]:
    with Writer(name) as writer:
        for n in range(1, 4):
            writer.publish({"n": n})
    yield Damaged(name)
    for entry in os.listdir(SHM):
        if entry.startswith(f"shmcow.{name}"):
            (SHM / entry).unlink()


def _identity(store: Damaged) -> None:
    store.flip(store.header, 0, 1)


def _entry(store: Damaged) -> None:
    store.flip(store.header, store.entry_at(3) + ENTRY["pid"][0], 1)


def _old_entry(store: Damaged) -> None:
    store.flip(store.header, store.entry_at(2) + ENTRY["pid"][0], 1)


def _footer(store: Damaged) -> None:
    path = store.segments[3]
    store.flip(path, path.stat().st_size - 1, 1)


def _payload(store: Damaged) -> None:
    store.flip(store.segments[3], 0, 0xFF)


def _segment(store: Damaged) -> None:
    store.segments[3].unlink()


def _holds(store: Damaged) -> None:
    Path(store.prefix + "holds").unlink()


def _short(store: Damaged) -> None:
    os.truncate(store.segments[3], 10)


# What still works, and how; the other commands that read exit with 6 and say why. One that follows waits for better.
LISTED = {"ls": 0, "top": 0}
CURRENT_BAD = LISTED | {"stat": 0, "history": 0, "readers": 0, "wait": 0, "watch": 7}
WELL = CURRENT_BAD | {"get": 0, "diff": 1, "watch": 0}
DAMAGE: list[tuple[Callable[[Damaged], None], dict[str, int]]] = [
    (_identity, LISTED),
    (_entry, CURRENT_BAD),
    (_old_entry, WELL),
    (_footer, CURRENT_BAD),
    (_payload, CURRENT_BAD),
    (_segment, CURRENT_BAD),
    (_short, CURRENT_BAD),
    (_holds, WELL),
]


@pytest.mark.parametrize(("damage", "codes"), DAMAGE, ids=[damage.__name__[1:] for damage, _ in DAMAGE])
def test_looking_at_a_damaged_store(damaged: Damaged, damage: Callable[[Damaged], None], codes: dict[str, int]) -> None:
    """What can be read is shown, what cannot is told with its exit code, and nothing is changed."""
    damage(damaged)
    before = files_of(damaged.name)
    found = {}
    for command in reads(damaged.name, "0.1"):
        done = ran(*command)
        found[command[0]] = done.code
        assert "Traceback" not in done.err
        assert done.code in (0, 1) or done.err.startswith("shmcow: "), done
        if command[0] in ("ls", "top"):
            (line,) = [line for line in done.out.splitlines() if damaged.name in line.split("\t")]
            told = damage is _identity or (damage is _holds and command[0] == "top")
            assert (line.split("\t")[-1] not in ("", "-")) == told
    assert found == {command[0]: codes.get(command[0], 6) for command in reads(damaged.name)}
    assert files_of(damaged.name) == before


# ---- busy, many, huge ----


def _publishing(link: Link, name: str) -> None:
    """Publish as fast as possible until told to end."""
    with Writer(name) as writer:
        link.send("publishes")
        while not link.poll():
            writer.publish({"version": writer.version})


def test_looking_at_a_store_that_is_published_all_the_time(name: str) -> None:
    """Each command answers as at rest, and `top` tells how fast it is."""
    with Writer(name, initial={"version": 0}) as writer:
        writer.publish({"version": 1})
        child = Child(_publishing, name)
        try:
            assert child.recv() == "publishes"
            for command in reads(name):
                for terminal in (None, (24, 100)):
                    done = ran(*command, terminal=terminal)
                    assert done.code == expected(command), (command, done)
            now = ran("top", name, "--count", "1", "--interval", "0.3").out.split("\t")
            assert float(now[5]) > 20
            assert now[12] == "\n"
            child.send("end")
            child.done()
        finally:
            child.end()


@pytest.fixture
def many(name: str) -> Iterator[list[str]]:
    names = [f"{name}-{n:03}" for n in range(200)]
    try:
        for each in names:
            with Writer(each, initial={"n": 1}) as writer:
                writer.publish({"n": 2})
        yield names
    finally:
        for each in names:
            destroy(each)


def test_looking_among_200_stores(many: list[str]) -> None:
    """All are listed for scripts; on a terminal `top` shows what fits, and says how many more there are."""
    name = many[100]
    for command in reads(name):
        assert ran(*command).code == expected(command)
    assert {line.split("\t")[0] for line in ran("ls").out.splitlines()} >= set(many)
    assert plain_text(ran("ls", terminal=(24, 100)).out).count(name[:-3]) == 200
    lines = ran("top", "--count", "1", "--interval", "0.05").out.splitlines()
    assert {line.split("\t")[1] for line in lines} >= set(many)
    screen = plain_text(ran("top", "--count", "1", "--interval", "0.05", terminal=(24, 100)).out)
    assert re.search(r"… and 1\d\d more stores", screen)
    assert screen.count("\n") < 30


def test_looking_at_huge_values(name: str) -> None:
    """Texts of 10 MB and lists of 100,000 items: whole for scripts where asked for, bounded for people."""
    long, items = "x" * 10_000_000, list(range(100_000))
    with Writer(name, initial={"long": long, "items": items}, retain=2) as writer:
        writer.publish({"long": long + "y", "items": [-n for n in items]})
        for command in reads(name):
            if command[0] != "get":
                shown = ran(*command, terminal=(24, 100))
                assert shown.code == expected(command)
                assert len(shown.out) < 200_000, command
        different = ran("diff", name, terminal=(24, 100)).out
        assert "more differences are not shown" in different
        assert "100,000 changed" in different
        assert ran("diff", name, "-o", "jsonl", "--limit", "5").out.count("\n") == 5
        assert json.loads(ran("get", name, "items").out) == [-n for n in items]
        assert ran("get", name, "long").out == long + "y\n"
        assert ran("get", name, "items.99999", terminal=(24, 100)).out == "-99999\n"
        line = ran("watch", name, "items", "--count", "1", terminal=(24, 100)).out
        assert len(line) <= 102


def test_looking_at_bytes_and_nothing(name: str) -> None:
    """A store of raw bytes, and one without a version, have something to say to each command."""
    with Writer(name, codec=Raw()) as writer:
        codes = {command[0]: ran(*command, "--timeout", "0").code if command[0] in ("wait", "watch") else
                 ran(*command).code for command in reads(name)}  # fmt: skip
        assert codes == {
            "ls": 0, "stat": 0, "history": 0, "get": 3, "diff": 3, "readers": 0, "top": 0, "watch": 7, "wait": 7
        }  # fmt: skip
        writer.publish(b"\x1b[2J" * 1000)
        writer.publish(b"\x1b[2K" * 1000)
        for command in reads(name):
            done = ran(*command, terminal=(24, 100))
            assert done.code == expected(command)
            assert steers(plain_text(done.out)) == [], command
        with Reader(name) as reader:
            assert bytes(reader.get()) == b"\x1b[2K" * 1000


def test_done_says_what_was_printed(name: str) -> None:
    """The helper of these tests is no worse than the real executable."""
    with Writer(name, initial={"n": 1}):
        command = [sys.executable, "-m", "shmcow", "get", name]
        real = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        assert ran("get", name) == Done(real.returncode, real.stdout, real.stderr)
        assert ran("get", f"{name}-no").code == 3
