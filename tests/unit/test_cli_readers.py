"""``shmcow readers`` and ``shmcow wait``: who reads, who is behind, and a gate for deployments."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli import environment, refused, run
from test_cli_reading import on_terminal, rows

sys.path.append(str(Path(__file__).parents[1] / "concurrency"))

from processes import Child, Link, until
from sleepers import until_asleep
from users import STRANGER, needs_root

from shmcow import Raw, Reader, WaitTimeoutError, Writer, gate, inspect
from shmcow.cli import app


def _reader(link: Link, name: str) -> None:
    """Do as the parent says: "get", a version to hold, or "release"."""
    reader = Reader(name)
    held: list[Any] = []
    while True:
        asked = link.recv()
        if asked == "get":
            reader.get()
        elif asked == "release":
            held.clear()
        else:
            held.append(reader.at(asked).hold())
        link.send("done")


def _reading(link: Link, name: str) -> None:
    """Read a thousand times a second until told to end."""
    reader = Reader(name)
    reader.get()
    link.send("reads")
    while not link.poll():
        reader.get()
        time.sleep(0.001)


def _publishing(link: Link, name: str) -> None:
    """Publish as fast as possible until told to end."""
    with Writer(name) as writer:
        link.send("publishes")
        while not link.poll():
            writer.publish({"version": writer.version})


def waiting(*arguments: str) -> subprocess.Popen[str]:
    """Start a command, and return when it sleeps until the store changes."""
    command = [sys.executable, "-m", "shmcow", "wait", *arguments]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    until_asleep(1, done.pid)
    return done


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# ---- readers ----


def test_readers_tell_who_reads_and_how_far_behind(name: str, spawn: Callable[..., Child]) -> None:
    """Each process with what it has seen, holds and maps, the most behind first; the dead do not count."""
    with Writer(name, codec=Raw(), initial=b"x" * 10_000, retain=8) as writer:
        holder, stopped, idle, dead = (spawn(_reader, name) for _ in range(4))
        for child in (holder, stopped, dead):
            child.ask("get")
        holder.ask(1)
        stopped.stop()
        dead.kill()
        for number in range(2, 5):
            writer.publish(b"%d" % number)
        holder.ask("get")
        found = rows("readers", name)
        assert [row[0] for row in found] == sorted([str(holder.pid), str(stopped.pid)], key=int)
        shown = {row[0]: row[1:] for row in found}
        assert shown[str(stopped.pid)][1:5] == ["stopped", "3", "1", "1"]  # a view is a hold
        assert shown[str(holder.pid)][1:5] == ["running", "3", "4", "1,4"]
        assert os.path.basename(sys.executable) in shown[str(holder.pid)][-1]
        report = inspect.readers(name)
        assert (report.version, report.hidden) == (4, None)
        by_pid = {process.pid: process for process in report.processes}
        assert by_pid[holder.pid].held == ((1, 1), (4, 4))
        assert (by_pid[holder.pid].uid, by_pid[holder.pid].user) == (os.geteuid(), shown[str(holder.pid)][0])
        mapped = {pid: process.mapped_bytes or 0 for pid, process in by_pid.items()}
        assert mapped[holder.pid] >= mapped[stopped.pid] + 4096  # one segment more
        assert mapped[stopped.pid] >= 10_000
        assert {int(row[0]): int(row[-2]) for row in found} == mapped
        done = run("readers", name, "--json")
        told = json.loads(done.stdout)
        assert (told["schema"], told["version"], told["hidden"]) == (1, 4, None)
        assert [item["pid"] for item in told["processes"]] == [int(row[0]) for row in found]
        lines = [json.loads(line) for line in run("readers", name, "-o", "jsonl").stdout.splitlines()]
        assert lines == [{"schema": 1, **item} for item in told["processes"]]
        idle.ask("get")
        assert [process.pid for process in inspect.readers(name).processes][-1] == idle.pid  # not behind


def test_readers_of_a_service_fit_a_page(name: str, spawn: Callable[..., Child]) -> None:
    """64 workers are 64 lines under a head, in a table for people."""
    with Writer(name, initial={"n": 1}) as writer:
        workers = [spawn(_reader, name) for _ in range(64)]
        for child in workers:
            child.ask("get")
        writer.publish({"n": 2})
        for child in workers[:40]:
            child.ask("get")
        head, *lines = on_terminal("readers", name).splitlines()
        assert head.split() == ["pid", "user", "state", "behind", "seen", "held", "mapped", "command"]
        assert len(lines) == 64
        assert [line.split()[3] for line in lines] == ["1"] * 24 + ["0"] * 40
        assert {int(line.split()[0]) for line in lines[:24]} == {child.pid for child in workers[40:]}


def test_readers_while_versions_are_published_as_fast_as_possible(name: str, spawn: Callable[..., Child]) -> None:
    """Whoever reads is listed, and nobody is invented."""
    with Writer(name, initial={"version": 0}):
        pids = set()
        for _ in range(3):
            child = spawn(_reading, name)
            assert child.recv() == "reads"
            pids.add(child.pid)
        writer = spawn(_publishing, name)
        assert writer.recv() == "publishes"
        for _ in range(8):
            report = inspect.readers(name)
            assert {process.pid for process in report.processes} <= pids
            assert report.hidden is None
            assert all(process.behind >= 0 for process in report.processes)
        assert {int(row[0]) for row in rows("readers", name)} <= pids
        writer.stop()
        assert {process.pid for process in inspect.readers(name).processes} == pids


def _look(link: Link, name: str) -> None:
    """Run the command as another user, who may read the store; send what it printed and how it ended."""
    from shmcow.cli import app, readers, wait  # noqa: F401 - another user may not be able to read where they lie

    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    STRANGER.become()
    code = app.run(["readers", name, "--json"])
    link.send((code, sys.stdout.getvalue(), sys.stderr.getvalue()))
    code = app.run(["wait", name, "--readers-at", "2", "--timeout", "0"])
    link.send((code, sys.stderr.getvalue()))


@needs_root
def test_readers_that_may_not_be_looked_into_are_told_of(name: str, spawn: Callable[..., Child]) -> None:
    """Another user cannot see who they are; that they are there, and what they hold, is said."""
    with Writer(name, initial={"n": 1}, mode=0o644) as writer:
        children = [spawn(_reader, name) for _ in range(2)]
        for child in children:
            child.ask("get")
        children[0].ask(1)
        writer.publish({"n": 2})
        children[0].ask("get")
        stranger = spawn(_look, name)
        code, out, err = stranger.recv()
        told = json.loads(out)
        assert (code, told["processes"]) == (0, [])
        assert told["hidden"] == {"processes": 2, "held": [[1, 1]], "seen": [[1, 1], [2, 2]]}
        assert told["refused"] >= 2
        assert "2 more processes read it that this user may not look into (versions: they hold 1 and" in err
        code, err = stranger.recv()
        assert code == 7
        assert "by processes that this user may not look into" in err
        stranger.done()


def test_readers_of_nothing(name: str) -> None:
    """No store is exit 3, a damaged one 6, one without readers an empty list; and looking leaves no trace."""
    assert name in refused(3, "readers", name)
    with Writer(name, initial={"n": 1}):
        before = inspect.describe(name)
        done = run("readers", name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert inspect.describe(name) == before
    path = Path(f"/dev/shm/shmcow.{name}-bad")
    path.write_bytes(b"x" * 100)
    try:
        assert "not that of a store" in refused(6, "readers", f"{name}-bad")
    finally:
        path.unlink()


def test_stopped_writer_and_dead_one_do_not_hide_the_readers(name: str, spawn: Callable[..., Child]) -> None:
    """Looking takes no lock."""
    with Writer(name, initial={"version": 0}), Reader(name) as reader:
        writer = spawn(_publishing, name)  # before this process reads: a child that goes on with its reader counts
        assert writer.recv() == "publishes"
        reader.get()
        writer.stop()
        assert [row[0] for row in rows("readers", name)] == [str(os.getpid())]
        writer.kill()
        assert [row[0] for row in rows("readers", name)] == [str(os.getpid())]


# ---- wait ----


def test_wait_until_a_version_is_published(name: str) -> None:
    """It sleeps until then; at a time-out the exit code is 7, and what is current is told."""
    with Writer(name, initial={"n": 1}) as writer:
        assert run("wait", name, "--version", "1").returncode == 0
        assert "version 3 of store" in refused(7, "wait", name, "--version", "3", "--timeout", "0")
        process = waiting(name, "--version", "3")
        writer.publish({"n": 2})
        until_asleep(1, process.pid)
        writer.publish({"n": 3})
        assert ended(process) == (0, "", "")
        process = waiting(name, "--version", "9")
        writer.destroy()
        code, _, err = ended(process)
        assert code == 3
        assert "destroyed" in err


def test_wait_for_a_store_that_does_not_exist_yet(name: str) -> None:
    """With --create-wait only; and the time-out counts for that as well."""
    assert "no store" in refused(3, "wait", name, "--version", "1")
    assert "no store" in refused(7, "wait", name, "--version", "1", "--create-wait", "--timeout", "0.05")
    command = [sys.executable, "-m", "shmcow", "wait", name, "--version", "2", "--create-wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    with Writer(name, initial={"n": 1}) as writer:
        until_asleep(1, process.pid)
        writer.publish({"n": 2})
        assert ended(process) == (0, "", "")


def test_gate_opens_when_the_last_reader_moves_on(name: str, spawn: Callable[..., Child]) -> None:
    """A holder, a stopped process and an idle one are behind, as asked; who is, is told; a killed one is not."""
    with Writer(name, initial={"n": 1}) as writer:
        holder, stopped, idle = (spawn(_reader, name) for _ in range(3))
        holder.ask(1)
        stopped.ask(1)
        idle.ask("get")
        stopped.stop()
        writer.publish({"n": 2})
        arguments = (name, "--readers-at", "2")
        told = refused(7, "wait", *arguments, "--timeout", "0")
        assert f"pid {holder.pid} (" in told
        assert f"pid {stopped.pid} (" in told
        assert "stopped)" in told
        assert f"pid {idle.pid} (" not in told
        process = subprocess.Popen([sys.executable, "-m", "shmcow", "wait", *arguments], env=environment())
        holder.ask("release")
        stopped.kill()
        assert process.wait(60) == 0
        told = refused(7, "wait", *arguments, "--seen", "--timeout", "0")
        assert f"seen last version 1 by pid {idle.pid} (" in told
        assert "only 0 of 1 expected readers" in refused(7, "wait", *arguments, "--min-readers", "1", "--timeout", "0")
        idle.ask("get")
        assert run("wait", *arguments, "--seen", "--min-readers", "1").returncode == 0
        told = refused(7, "wait", *arguments, "--min-readers", "2", "--timeout", "0")
        assert (
            f"only 1 of 2 expected readers of store {name} have read version 2 or a later one: pid {idle.pid}" in told
        )


def test_gate_names_each_process_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Who holds a version has seen it, too."""
    with Writer(name, initial=b"1", codec=Raw()) as writer, Reader(name) as reader:
        view = reader.get()
        writer.publish(b"2")
        assert app.run(["wait", name, "--readers-at", "2", "--seen", "--timeout", "0"]) == 7
        told = capsys.readouterr().err
        assert "held version 1 by" in told
        assert told.count("pid ") == 1
        del view


def test_wait_says_what_to_wait_for(name: str) -> None:
    """Neither or both of the two, options that belong to the other, and impossible numbers are usage errors."""
    with Writer(name, initial={"n": 1}):
        assert "--version N, or --readers-at N" in refused(2, "wait", name)
        assert "give only one of" in refused(2, "wait", name, "--version", "1", "--readers-at", "1")
        assert "go with --readers-at" in refused(2, "wait", name, "--version", "1", "--seen")
        assert "number of seconds" in refused(2, "wait", name, "--version", "1", "--timeout", "nan")
        assert "range" in refused(2, "wait", name, "--version", str(1 << 64))


def test_gate_calls_check_what_they_are_given(name: str) -> None:
    """A library call refuses what the command line refuses."""
    with Writer(name, initial={"n": 1}):
        assert gate.wait_version(name, 1) == 1
        with pytest.raises(WaitTimeoutError, match="1 is current"):
            gate.wait_version(name, 2, timeout=0.01)
        with pytest.raises(ValueError, match="min_readers"):
            gate.wait_readers(name, 1, min_readers=-1)
        with pytest.raises(WaitTimeoutError, match="only 0 of 2 expected readers"):
            gate.wait_readers(name, 1, timeout=0, min_readers=2)


def test_wait_ends_quietly_when_interrupted(name: str) -> None:
    """Ctrl-C is no traceback."""
    with Writer(name, initial={"n": 1}):
        process = waiting(name, "--version", "2")
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
        assert (code, out, err.strip()) == (130, "", "")


def test_all_states_are_told(name: str, spawn: Callable[..., Child]) -> None:
    """A process that a signal stopped goes on as running."""
    with Writer(name, initial={"n": 1}):
        child = spawn(_reader, name)
        child.ask("get")
        child.stop()
        assert [process.state for process in inspect.readers(name).processes] == ["stopped"]
        child.go_on()
        until(lambda: [process.state for process in inspect.readers(name).processes] == ["running"], "it runs")
