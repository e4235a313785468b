"""``shmcow watch``: each new version, for people, scripts and commands; and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from test_cli import environment, refused, run

sys.path.append(str(Path(__file__).parents[1] / "concurrency"))

from processes import WATCHDOG, until
from sleepers import until_asleep

from shmcow import Bundle, IPTable, MsgPack, Raw, Reader, StoreNotFoundError, Table, WaitTimeoutError, Writer, inspect
from shmcow.events import Event, Events

PUBLISHER = (
    "import sys, shmcow\nwith shmcow.Writer(sys.argv[1]) as writer:\n"
    "    print(flush=True)\n    while True:\n        writer.publish({'n': writer.version + 1})"
)


class Watching(subprocess.Popen[str]):
    """A command that watches a store, with pipes for its output."""

    def __init__(self, *arguments: str, **more: Any) -> None:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        super().__init__([sys.executable, "-m", "shmcow", "watch", *arguments], text=True, env=environment(), **pipes)

    def line(self) -> list[str]:
        """Return the cells of the next line: it comes at once, though the output is a pipe."""
        assert self.stdout is not None
        return self.stdout.readline().rstrip("\n").split("\t")

    def said(self) -> str:
        """Return the next line on stderr."""
        assert self.stderr is not None
        return self.stderr.readline()

    def until_asleep(self) -> None:
        """Return when it sleeps until the store changes."""
        until_asleep(1, self.pid)


@contextmanager
def watching(*arguments: str, **more: Any) -> Iterator[Watching]:
    with Watching(*arguments, **more) as process:
        watchdog = threading.Timer(WATCHDOG, process.kill)  # whoever reads its output must not wait for ever
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def ended(process: Watching) -> tuple[int, str, str]:
    assert process.stdout is not None
    assert process.stderr is not None
    out = process.stdout.read()  # and not communicate(), which does not see what line() has read ahead
    err = process.stderr.read()
    return process.wait(60), out, err


def test_watch_prints_the_current_version_and_each_new_one(name: str) -> None:
    """A line each, at once also in a pipe; --count ends it."""
    with Writer(name, initial={"n": 1, "password": "p-1"}) as writer:
        with watching(name, "--count", "3") as process:
            version, when, who, message, value = process.line()
            assert (version, message, json.loads(value)) == ("1", "initial", {"n": 1, "password": "********"})
            assert when == inspect.describe(name).generations[0].published_at.isoformat()  # type: ignore[union-attr]
            assert who
            process.until_asleep()
            writer.publish({"n": 2}, author="ann", message="tab\there")
            assert process.line()[2:] == ["ann", "tab\\there", '{"n":2}']
            process.until_asleep()
            writer.publish({"n": 3})
            assert process.line()[0] == "3"
            assert ended(process) == (0, "", "")
        done = run("watch", name, "--count", "1", "--json")
        told = json.loads(done.stdout)
        assert (told["schema"], told["name"], told["version"], told["value"]) == (1, name, 3, {"n": 3})
        assert told["epoch"] == inspect.describe(name).epoch
        assert run("watch", name, "--count", "1", "-o", "jsonl").stdout == done.stdout
        table = run("watch", name, "--count", "1", "-o", "table").stdout
        assert table.split()[0] == "3"
        assert table.endswith('{"n":3}\n')


def test_watch_of_a_part_prints_when_that_changes(name: str) -> None:
    """Other changes are not printed; a part that goes and comes back is; without --skip-current the first is, too."""
    with Writer(name, initial={"a": {"x": 1}, "b": 0}) as writer:
        with watching(name, "a.x", "--skip-current") as process:
            process.until_asleep()
            for value in ({"a": {"x": 1}, "b": 2}, {"a": {"x": 1.0}, "b": 2}, {"a": {}}, {"a": {"x": 1}}):
                writer.publish(value)
                process.until_asleep()
            assert [process.line()[::4] for _ in range(3)] == [["3", "1.0"], ["4", "-"], ["5", "1"]]
            assert "version 4: the value has no part 'a.x'" in process.said()
            writer.publish({"a": {"x": None}})
            assert process.line()[::4] == ["6", "null"]
        done = run("watch", name, "a.y", "--json", "--count", "1")
        assert json.loads(done.stdout)["missing"] is True
        assert "known keys: x" in done.stderr
        assert "dots" in refused(2, "watch", name, "a..x")


def test_watch_of_tables_and_parts_of_a_bundle(name: str) -> None:
    """A part that was not published anew is no change, a table is told and not printed, and none is held by it."""
    codec = Bundle(config=MsgPack(), users=Table(key=int), geo=IPTable(), raw=Raw())
    first: Any = {"config": {"secret": "p-1"}, "users": {7: "ann"}, "geo": [("::/0", 1)], "raw": b"x"}
    with Writer(name, codec=codec, initial=first) as writer:
        done = run("watch", name, "--count", "1")
        assert "<TableView of 1 row, keys of int>" in done.stdout
        assert "<1 byte>" in done.stdout
        assert "p-1" not in done.stdout
        with watching(name, "geo") as process, watching(name, "users.7") as other:
            assert process.line()[4] == '"<IPTableView of 1 row>"'
            assert other.line()[4] == '"ann"'
            for watcher in (process, other):
                watcher.until_asleep()
            writer.publish_parts(config={})
            writer.publish_parts(users={7: "bob", 8: "eve"}, geo=[("::/0", 2)])
            assert process.line()[::4] == ["3", '"<IPTableView of 1 row>"']
            assert other.line()[::4] == ["3", '"bob"']
            for watcher in (process, other):
                watcher.until_asleep()
            assert {process.held for process in inspect.readers(name).processes} == {((3, 3),)}


def test_watch_runs_a_command_with_the_value(name: str) -> None:
    """Its input is the value as ``get`` prints it, masked as there; it knows name and version; its failure is told."""
    with Writer(name, initial={"n": 1, "token": "p-1"}) as writer:
        arguments = (name, "--exec", "cat; echo $SHMCOW_NAME $SHMCOW_VERSION; test $SHMCOW_VERSION != 2")
        with watching(*arguments, "--count", "2") as process:
            assert process.line() == ['{"n":1,"token":"********"}']
            assert process.line() == [f"{name} 1"]
            assert "masked" in process.said()
            writer.publish({"n": 2})
            assert process.line() == ['{"n":2}']
            code, out, err = ended(process)
            assert (code, out) == (0, f"{name} 2\n")
            assert err == "shmcow: the command for version 2 ended with 1\n"
        writer.publish({"text": "as it is", "big": "x" * 1_000_000, "token": "p-1"})
        done = run("watch", name, "text", "--count", "1", "--exec", "cat")
        assert (done.stdout, done.stderr) == ("as it is\n", "")
        done = run("watch", name, "token", "--redact", "", "--count", "1", "--exec", "cat", "--json")
        assert (done.stdout, done.stderr) == ('"p-1"\n', "")
        done = run("watch", name, "big", "--count", "1", "--exec", "exec 0<&-; kill -9 $$")  # does not read it
        assert (done.returncode, done.stderr) == (0, "shmcow: the command for version 3 ended by signal 9\n")


def test_watch_survives_the_store(name: str) -> None:
    """A store that is destroyed is waited for, and its successor's versions follow: both are said."""
    with Writer(name, initial={"n": 1}) as writer, watching(name, "--count", "3") as process:
        assert process.line()[4] == '{"n":1}'
        process.until_asleep()
        writer.destroy()
        assert process.said() == f"shmcow: store {name} was destroyed: waiting for a new one\n"
        with Writer(name, initial={"n": 10}) as second:
            assert process.said() == f"shmcow: store {name} was created again: its versions start anew\n"
            assert process.line()[::4] == ["1", '{"n":10}']
            second.publish({"n": 11})
            assert process.line()[::4] == ["2", '{"n":11}']
            assert ended(process) == (0, "", "")


def test_watch_begins_before_the_store_exists(name: str) -> None:
    """With --create-wait only; --timeout ends it with exit code 7, whatever it waits for."""
    assert "no store" in refused(3, "watch", name)
    refused(3, "watch", name, "--skip-current")
    assert "time to watch" in refused(7, "watch", name, "--create-wait", "--timeout", "0.1")
    with watching(name, "--create-wait", "--skip-current", "--count", "1") as process:
        with Writer(name) as writer:
            process.until_asleep()
            writer.publish({"n": 1})
            assert process.line()[::4] == ["1", '{"n":1}']
            assert ended(process)[0] == 0
        done = run("watch", name, "--timeout", "0.1")
        assert (done.returncode, done.stdout.count("\n")) == (7, 1)


def test_watch_tells_of_a_version_that_cannot_be_used(name: str) -> None:
    """It is said once, and the next version is printed; so is a store whose newest version is damaged at the start."""
    with Writer(name, initial={"n": "before"}) as writer:
        (path,) = (path for path in Path("/dev/shm").glob(f"shmcow.{name}.*") if b"before" in path.read_bytes())
        with path.open("r+b") as segment:
            segment.seek(segment.read().index(b"before"))
            segment.write(b"BEFORE")
        with watching(name, "--count", "1") as process:
            assert "has the CRC" in process.said()
            process.until_asleep()
            writer.publish({"n": 2})
            assert process.line()[::4] == ["2", '{"n":2}']
            assert ended(process) == (0, "", "")
    bad = Path(f"/dev/shm/shmcow.{name}-bad")
    bad.write_bytes(b"x" * 100)
    try:
        refused(6, "watch", f"{name}-bad")
    finally:
        bad.unlink()


def test_watch_ends_as_any_tool(name: str) -> None:
    """Ctrl-C is 130 and no traceback, also while a command runs; a reader of its output that has gone, SIGPIPE's."""
    with Writer(name, initial={"n": 1}) as writer:
        with watching(name) as process:
            process.line()
            process.until_asleep()
            process.send_signal(signal.SIGINT)
            code, out, err = ended(process)
            assert (code, out, err.strip()) == (130, "", "")
        with watching(name, "--exec", "echo $$; exec sleep 1000") as process:
            (pid,) = process.line()
            process.send_signal(signal.SIGINT)
            code, out, err = ended(process)
            assert (code, out, err.strip()) == (130, "", "")
            until(lambda: not Path(f"/proc/{pid}").exists(), "the command ends, too")
        with watching(name) as process:
            process.line()
            assert process.stdout is not None
            process.stdout.close()
            writer.publish({"n": 2})
            assert process.wait(60) == 128 + signal.SIGPIPE
            assert process.stderr is not None
            assert process.stderr.read() == ""


def test_idle_watch_ends_when_its_output_is_lost(name: str) -> None:
    """Though nothing is published: as in a pipe to head."""
    with Writer(name, initial={"n": 1}), watching(name) as process:
        process.line()
        process.until_asleep()
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(WATCHDOG) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_watch_for_people_is_a_line_each(name: str) -> None:
    """On a terminal a line is as wide as that, and nothing steers it."""
    with Writer(
        name,
        initial={"long": "x" * 1000, "a": 1},
    ) as writer:
        writer.publish({"a": "\x1b[2J", "long": "x" * 1000}, message="\x1b]0;title\x07", author="ann")
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "shmcow", "watch", name, "--count", "1"]
        with subprocess.Popen(command, stdout=theirs, env=environment() | {"COLUMNS": "70"}) as process:
            os.close(theirs)
            seen = os.read(ours, 65536).decode()
            assert process.wait(60) == 0
        os.close(ours)
        assert seen.startswith("   2  ")
        assert "  ann  \\x1b]0;title\\x07  " in seen
        assert "\x1b" not in seen
        assert len(seen.rstrip()) == 70
        assert seen.rstrip().endswith("…")


def _publishing(name: str) -> subprocess.Popen[bytes]:
    publisher = subprocess.Popen([sys.executable, "-c", PUBLISHER, name], stdout=subprocess.PIPE, env=environment())
    stdout: IO[bytes] | None = publisher.stdout
    assert stdout is not None
    stdout.readline()
    return publisher


def test_watch_of_versions_published_as_fast_as_possible(name: str) -> None:
    """Versions only grow, each with its own value; the newest is printed when the publisher is stopped or killed."""
    with Writer(name, initial={"n": 1}):
        with _publishing(name) as publisher, watching(name) as process:
            try:
                last = 0
                for _ in range(300):
                    version, *_, value = process.line()
                    assert int(version) > last
                    assert json.loads(value) == {"n": int(version)}
                    last = int(version)
                os.kill(publisher.pid, signal.SIGSTOP)
                until(lambda: "T" in Path(f"/proc/{publisher.pid}/stat").read_text().rpartition(")")[2], "it stops")
                newest = inspect.describe(name).version
                while last < newest:
                    last = int(process.line()[0])
            finally:
                publisher.kill()
        assert last == newest


# ---- the library's part ----


def test_events_are_told_one_by_one(name: str) -> None:
    """Versions, the end of the store, its successor; and the time-out counts from the start."""
    with pytest.raises(StoreNotFoundError), Reader(name) as reader:
        next(Events(reader))
    with Writer(name, initial=1) as writer, Reader(name, on_bad="raise") as reader:
        events = Events(reader, timeout=60)
        first = next(events)
        assert (first.kind, first.snapshot.version, first.anew) == ("version", 1, False)  # type: ignore[union-attr]
        writer.publish(2)
        assert next(events).snapshot.value == 2  # type: ignore[union-attr]
        writer.destroy()
        gone = next(events)
        assert (gone.kind, gone.snapshot) == ("destroyed", None)
        with Writer(name, initial=3) as again:
            event = next(events)
            assert (event.kind, event.anew) == ("version", True)
            again.publish(4)
            assert next(events) == Event("version", reader.snapshot(), False)
            with pytest.raises(WaitTimeoutError, match="is up"):
                list(Events(reader, timeout=0.05))
            reader.close()
            assert list(events) == []
