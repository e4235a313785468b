"""``shmcow rollback``, ``drop`` and ``rm``: what they print, ask, refuse, and how they exit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_helpers import NOBODY, answered, as_user, holding, until
from test_cli import refused, run

import shmcow
from shmcow import Raw, Reader, Writer
from shmcow.cli import app

SHM = Path("/dev/shm")


def versions(name: str) -> list[int]:
    return [generation.version for generation in shmcow.describe(name).generations]


def objects(name: str) -> list[str]:
    return [entry for entry in os.listdir(SHM) if entry == f"shmcow.{name}" or entry.startswith(f"shmcow.{name}.")]


@pytest.fixture
def three(name: str) -> str:
    """A store with three versions, and no writer alive."""
    with Writer(name, initial={"n": 1}) as writer:
        writer.publish({"n": 2})
        writer.publish({"n": 3}, message="up \x1b[2J")
    return name


# ---- rollback ----


def test_rollback_prints_the_new_version(three: str) -> None:
    """To the version before, or to the one asked for; who and why are kept; JSON is an object with `version`."""
    done = run("rollback", three)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
    done = run("rollback", three, "--to", "3", "--message", "why", "--author", "ann", "--expected", "4", "-o", "json")
    assert json.loads(done.stdout) == {"schema": 1, "name": three, "version": 5}
    with Reader(three) as reader:
        snapshot = reader.snapshot()
        assert (snapshot.value, snapshot.message, snapshot.author) == ({"n": 3}, "why", "ann")
        assert snapshot.source == "shmcow rollback"
        assert reader.at(4).value == {"n": 2}
        assert reader.at(4).message == "roll back from 3 to 2"
    assert answered("", "rollback", three, "--json") == (
        0,
        f'{{\n  "schema": 1,\n  "version": 6,\n  "name": "{three}"\n}}\n',
    )


def test_rollback_that_cannot_be_done_changes_nothing(three: str) -> None:
    """Each reason has its code: conflict, gone, nothing before it, no store, busy, another user's, damaged."""
    assert "expected version 1" in refused(4, "rollback", three, "--expected", "1")
    assert "version 9" in refused(3, "rollback", three, "--to", "9")
    assert "no store" in refused(3, "rollback", f"{three}-not")
    refused(2, "rollback", three, "--to", "0")
    with Writer(three) as writer, writer.edit():
        assert "lock" in refused(7, "rollback", three)
    # the edit published; the version before it is damaged now
    report = shmcow.describe(three)
    path = SHM / f"shmcow.{three}.{report.epoch}.{report.generations[1].segments[0]}"
    path.chmod(0o600)
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    refused(6, "rollback", three)
    assert shmcow.describe(three).version == 4
    if os.geteuid() == 0:
        code, told = as_user(NOBODY, "rollback", three)
        assert code == 5, told
        assert shmcow.describe(three).version == 4


def test_versions_that_cannot_be_opened_are_told_with_those_that_can(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never published is not reclaimed; and there may be nothing to go back to."""

    def told(*arguments: str) -> str:
        assert app.run(list(arguments)) == 3
        return capsys.readouterr().err

    with Writer(name, initial=0, retain=2) as writer:
        for n in range(5):
            writer.publish(n)
        never = f"version 77 of store {name} was never published: 6 is current; can be opened: 4 to 6\n"
        for arguments in (("get", name, "--at", "77"), ("diff", name, "4", "77"), ("rollback", name, "--to", "77")):
            assert told(*arguments) == f"shmcow: {never}"
        assert told("drop", name, "77", "--yes") == f"shmcow: {never}"
        for arguments in (("get", name, "--at", "2"), ("rollback", name, "--to", "2"), ("diff", name, "2", "6")):
            assert "version 2 of store" in (said := told(*arguments))
            assert "reclaimed or dropped; can be opened: 4 to 6 (" in said
        writer.drop(5)
        said = told("rollback", name)
        assert "version 5 of store" in said
        assert "can be opened: 4, 6" in said
        assert "name the one to go back to" in said
        writer.drop(4)
        assert f"there is no earlier version of store {name} to go back to" in (said := told("rollback", name))
        assert f"can be opened: 6 (shmcow history {name})" in said


# ---- drop ----


def test_drop_asks_on_a_terminal_and_needs_yes_in_a_pipe(three: str) -> None:
    """No answer, no drop; --dry-run says what it would do."""
    before = versions(three)
    assert "--yes" in refused(2, "drop", three, "1")
    done = run("drop", three, "1", "--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"would drop version 1 of store {three}: 4.1 kB\n", "")
    code, seen = answered("n", "drop", three, "1")
    assert code == 130
    assert "nothing was done" in seen
    found = json.loads(run("drop", three, "1", "--dry-run", "--json").stdout)
    assert (found["dropped"], found["version"], found["size_bytes"]) == (False, 1, 4096)
    assert versions(three) == before
    code, seen = answered("y", "drop", three, "1")
    assert code == 0
    assert "dropped version 1\n" in seen
    done = run("drop", three, "2", "--yes")
    assert (done.returncode, done.stdout) == (0, "dropped\t2\t4096\n")
    assert versions(three) == [3]
    assert "2 of store" in refused(3, "drop", three, "2", "--yes")


def test_drop_of_the_current_version_is_refused(three: str) -> None:
    """A conflict, which says what to do first; a version or store that is not there has another code."""
    told = refused(4, "drop", three, "3", "--yes")
    assert "publish another value first" in told
    assert f"shmcow rollback {three}" in told
    refused(3, "drop", three, "9", "--yes")
    refused(3, "drop", f"{three}-not", "1", "--yes")
    refused(2, "drop", three, "x", "--yes")
    assert versions(three) == [3, 2, 1]
    if os.geteuid() == 0:
        assert as_user(NOBODY, "drop", three, "1", "--yes")[0] == 5
        assert versions(three) == [3, 2, 1]


def test_drop_says_who_holds_the_version_and_waits_for_them(name: str) -> None:
    """Holders, readers with a copy, and versions that share it are told; the names go at once all the same."""
    with Writer(name, initial={"password": "hunter2"}) as writer, holding(name, 0) as reader:
        writer.publish({})
        writer.rollback(1)
        writer.publish({})
        with holding(name, 1) as holder:
            done = run("drop", name, "1", "--dry-run")
            assert "leave what version 3 shares with it" in done.stdout
            assert f"until they let go: pid {holder.pid} (" in done.stdout
            assert f"until they read again: pid {reader.pid} (" in done.stdout
            assert "hunter2" not in done.stdout
            assert versions(name) == [4, 3, 2, 1]
            done = run("drop", name, "1", "--yes", "--json")
            found = json.loads(done.stdout)
            assert (found["dropped"], found["held"], found["holders"]) == (True, True, [holder.pid])
            assert (found["shared_with"], found["seen_by"]) == ([3], [reader.pid])
            assert f"it goes when let go: pid {holder.pid}" in done.stderr
            assert holder.ask("read")
            assert versions(name) == [4, 3, 2]
            with Reader(name) as other, pytest.raises(shmcow.VersionGoneError):
                other.at(1)
        with holding(name, 3) as holder:
            done = run("drop", name, "3", "--yes", "--wait", "0.01")
            assert done.returncode == 7
            assert str(holder.pid) in done.stderr
            assert versions(name) == [4, 2]
        assert run("drop", name, "2", "--yes", "--wait", "60").returncode == 0


# ---- rm ----


def test_rm_says_who_reads_the_store_and_asks(three: str) -> None:
    """Readers keep their value; nothing goes without a yes."""
    with holding(three, 1) as holder:
        assert "--yes" in refused(2, "rm", three)
        done = run("rm", three, "--dry-run")
        lines = done.stdout.splitlines()
        assert lines[0] == f"would remove store {three}: 3 versions, 12.3 kB"
        assert lines[1].startswith(f"would leave a reader with its last value: pid {holder.pid} (")
        assert (len(lines), done.stderr) == (2, "")
        assert answered("n", "rm", three)[0] == 130
        if os.geteuid() == 0:
            code, told = as_user(NOBODY, "rm", three, "--yes")
            assert (code, three in told) == (5, True)
        assert shmcow.describe(three).version == 3
        code, seen = answered("y", "rm", three)
        assert code == 0
        assert f"pid {holder.pid}" in seen
        assert objects(three) == []
        assert holder.ask("read")
    assert "no store" in refused(3, "rm", three, "--yes")
    assert "nothing else of that name" in refused(3, "rm", three, "--yes", "--force")


def test_rm_of_what_is_no_usable_store_needs_force(name: str) -> None:
    """A damaged header keeps `rm` from looking; --force unlinks every object of that name, and of no other."""
    with Writer(name, initial=1), Writer(f"{name}-2", codec=Raw(), initial=b"") as other:
        path = SHM / f"shmcow.{name}"
        path.write_bytes(b"x" * 99_328)
        assert "--force" in refused(6, "rm", name, "--yes")
        dry = run("rm", name, "--force", "--dry-run").stdout.splitlines()
        assert sorted(dry) == sorted(f"would unlink {SHM}/{entry}" for entry in objects(name))
        assert len(dry) == 4
        assert run("rm", name, "--force", "--yes").returncode == 0
        assert objects(name) == []
        assert len(objects(f"{name}-2")) == 4
        other.destroy()


def test_rm_waits_for_writers_unless_forced(name: str) -> None:
    """The lock of a writer in its turn is not stolen; --force tells it that the store has ended."""
    with Writer(name, initial={"n": 1}) as writer, Reader(name) as reader:
        assert reader.get() == {"n": 1}
        edit = writer.edit()
        draft = edit.__enter__()
        assert "lock" in refused_with(7, "rm", name, "--yes")
        assert run("rm", name, "--yes", "--force").returncode == 0
        assert objects(name) == []
        draft["n"] = 2
        with pytest.raises(shmcow.StoreDestroyedError):
            edit.__exit__(None, None, None)
        assert objects(name) == []
        assert reader.get() == {"n": 1}
        with Writer(name, initial={"n": 3}):
            until(lambda: reader.refresh() or reader.get() == {"n": 3}, "the new store")


def refused_with(code: int, *arguments: str) -> str:
    """Run a command that says what it will do, and then must fail with this code."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    return done.stderr
