"""``shmcow gc`` and ``shmcow.garbage``: what crashes leave behind goes, and what anybody may be using stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_helpers import NOBODY, as_user, holding, killed
from test_cli import environment, refused, run
from test_cli_reading import on_terminal

import shmcow
from shmcow import Raw, Reader, Writer
from shmcow.cli import app
from shmcow.garbage import Garbage, collect, garbage, unlink_all

SHM = Path("/dev/shm")
OTHER = "0123456789abcdef" * 2  # an epoch


def objects(name: str) -> list[str]:
    return sorted(
        entry for entry in os.listdir(SHM) if entry == f"shmcow.{name}" or entry.startswith(f"shmcow.{name}.")
    )


def versions(name: str) -> list[int]:
    return [generation.version for generation in shmcow.describe(name).generations]


def prefix(name: str) -> str:
    return f"shmcow.{name}.{shmcow.describe(name).epoch}."


def make(name: str, *whats: str, age: float = 0.0, epoch: str = OTHER) -> list[Path]:
    """Make objects of a store as a process would that was killed right after."""
    made = [SHM / f"shmcow.{name}.{epoch}.{what}" for what in whats]
    for path in made:
        path.write_bytes(b"x" * 5000 if path.suffix[1:].isdigit() else b"")
        path.chmod(0o600 if path.suffix == ".lock" else 0o400)
        os.utime(path, (time.time() - age, time.time() - age))
    return made


def only(found: list[Garbage]) -> Garbage:
    (item,) = found
    return item


# ---- in a store ----


def test_what_a_killed_writer_left_is_told_and_collected(name: str) -> None:
    """A half-built version, and a segment that no version lists; in each form, and then it is gone."""
    with Writer(name, initial=1):
        pass
    assert garbage(name) == []
    killed("writer = Writer(name); segments.make = die; writer.publish('x' * 9000)", name)
    stray = SHM / f"{prefix(name)}999"
    stray.write_bytes(b"x" * 5000)
    before = objects(name)
    half, segment = garbage(name)
    assert (half.what, half.version, half.files, half.kept) == ("half-done", 2, (), "")
    assert (segment.what, segment.files, segment.size_bytes) == ("segment", (stray.name,), 8192)
    rows = [line.split("\t") for line in run("gc", name, "--dry-run").stdout.splitlines()]
    assert [row[:4] for row in rows] == [[name, "would go", "half-done", "2"], [name, "would go", "segment", "-"]]
    lines = run("gc", name, "--dry-run", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["half-done", "segment"]
    assert "its writer ended before it was filled" in on_terminal("gc", name, "--dry-run")
    assert objects(name) == before
    done = run("gc", name, "--json")
    assert done.stderr == "shmcow: 8.2 kB freed\n"
    found = json.loads(done.stdout)
    assert found["schema"] == 1
    assert [item["collected"] for item in found["garbage"]] == [True, True]
    assert not stray.exists()
    assert versions(name) == [1]
    done = run("gc", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "shmcow: nothing to collect\n")


def test_versions_go_when_nobody_holds_them_any_more(name: str) -> None:
    """Beyond `retain`, and only these; who holds one is named."""
    with Writer(name, initial=1, retain=1) as writer, holding(name, 1) as first:
        with holding(name, 1):
            pass
        writer.publish(2)
        with Reader(name) as reader, reader.at(2):
            writer.publish(3)
            writer.publish(4)
        assert versions(name) == [4, 3, 2, 1]
        kept, gone = collect(name)
        assert (kept.version, kept.collected) == (1, False)
        assert f"pid {first.pid}" in kept.kept
        assert (gone.version, gone.collected, gone.size_bytes) == (2, True, 4096)
        assert versions(name) == [4, 3, 1]
        assert first.ask("at") == "there"
    done = run("gc", name)
    assert done.stdout.split("\t")[:4] == [name, "collected", "version", "1"]
    assert versions(name) == [4, 3]


def test_writer_at_work_is_not_taken_for_a_dead_one(name: str) -> None:
    """What it is building is no garbage, and the rest waits for it."""
    with Writer(name, initial=1):
        pass
    program = (
        "import os, signal, sys\nfrom shmcow import Writer, segments\nwriter = Writer(sys.argv[1])\n"
        "make = segments.make\n"
        "def slow(name):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return make(name)\n"
        "segments.make = slow\nwriter.publish(2)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, name], env=environment())
    try:
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED)
        assert [g.state for g in shmcow.describe(name).generations] == ["building", "held"]
        assert garbage(name) == []
        stray = SHM / f"{prefix(name)}999"
        stray.write_bytes(b"")
        done = run("gc", name, "--lock-timeout", "0.05")
        assert done.stdout.split("\t")[:3] == [name, "kept", "segment"]
        assert f"pid {writer.pid}" in done.stdout
        assert "nothing to collect, 1 left alone" in done.stderr
        assert stray.exists()
        writer.send_signal(signal.SIGCONT)
        assert writer.wait(60) == 0
        assert only(collect(name)).collected
        assert versions(name) == [2, 1]
    finally:
        writer.kill()
        writer.wait()


def test_store_without_its_lock_file_is_left_alone(name: str) -> None:
    """A turn would end it: that is for a person to decide."""
    with Writer(name, initial=1):
        pass
    lock = SHM / f"{prefix(name)}lock"
    lock.unlink()
    stray = SHM / f"{prefix(name)}999"
    stray.write_bytes(b"")
    item = only(collect(name))
    assert not item.collected
    assert "lost its lock file" in item.kept
    with Reader(name) as reader:
        assert reader.get() == 1
    stray.unlink()


def test_damaged_entry_keeps_what_nobody_can_judge(name: str) -> None:
    """Segments that no readable entry lists may be those of the damaged one."""
    with Writer(name, initial=1) as writer:
        writer.publish(2)
    stray = SHM / f"{prefix(name)}999"
    stray.write_bytes(b"")
    with (SHM / f"shmcow.{name}").open("r+b") as header:
        header.seek(1024 + 700)
        header.write(b"\xff" * 8)
    found = collect(name)
    assert [item.collected for item in found] == [False] * len(found)
    assert "the entry of version 1 is damaged" in found[-1].kept
    assert stray.exists()
    stray.unlink()


def test_objects_of_a_former_store_go(name: str) -> None:
    """Beside a store of that name nobody reads them."""
    with Writer(name, initial=1):
        made = make(name, "lock", "holds", "7")
        item = only(collect(name))
        assert (item.collected, sorted(item.files)) == (True, sorted(path.name for path in made))
        assert not any(path.exists() for path in made)
        with Reader(name) as reader:
            assert reader.get() == 1


def test_half_destroyed_store_is_finished(name: str) -> None:
    """Whoever destroyed it was killed: the rest goes."""
    with Writer(name, initial=1, codec=None):
        pass
    killed("writer = Writer(name); segments.unlink_segment = die; writer.destroy()", name)
    assert shmcow.describe(name).version == -1
    item = only(garbage(name))
    assert (item.what, len(item.files), item.kept) == ("store", 4, "")
    assert run("gc", name).returncode == 0
    assert objects(name) == []
    assert run("gc", name).stdout == ""


# ---- without a store ----


def test_store_in_the_making_is_left_alone_until_it_is_old(name: str) -> None:
    """Lock and holds files come before the header: a minute later nobody is making it any more."""
    make(name, "lock", "holds", age=30)
    done = run("gc", name)
    assert done.stdout.split("\t")[:3] == [name, "kept", "epoch"]
    assert "in the making" in done.stdout
    assert len(objects(name)) == 2
    make(name, "lock", "holds", age=61)
    assert only(garbage(name)).why == "whoever was creating the store ended before it was done"
    assert only(collect(name)).collected
    assert objects(name) == []
    make(name, "lock")
    done = run("gc", name, "--older-than", "0")
    assert "collected" in done.stdout
    assert "destroyed" in done.stdout
    assert objects(name) == []


def test_store_whose_header_was_removed_stays_while_it_is_used(name: str) -> None:
    """By a reader with a marker, or by a writer in its turn; then it goes."""
    writer = Writer(name, initial={"n": 1})
    header = SHM / f"shmcow.{name}"
    with holding(name, 0) as reader:
        header.unlink()
        item = only(collect(name, min_age=0))
        assert (item.what, item.why, item.collected) == ("epoch", "the store's header was removed", False)
        assert f"processes use it still by pid {reader.pid}" in item.kept
        assert len(objects(name)) == 3
    writer.close()
    with Writer(f"{name}-2", initial={"n": 1}) as other:
        edit = other.edit()
        edit.__enter__()
        away = SHM / f"shmcow.{name}-away"
        (SHM / f"shmcow.{name}-2").rename(away)
        try:
            assert "its writer lock is held" in only(garbage(f"{name}-2", min_age=0)).kept
            assert "its writer lock is held" in only(collect(f"{name}-2", min_age=0)).kept
        finally:
            away.rename(SHM / f"shmcow.{name}-2")
        edit.__exit__(None, None, None)
        assert other.version == 2
        other.destroy()
    del other, edit
    assert only(collect(name)).kept  # too young
    assert only(collect(name, min_age=0)).collected
    assert objects(name) == []


def test_header_that_cannot_be_read_keeps_everything(name: str) -> None:
    """Nobody knows what is in use: `doctor` tells, and `rm --force` removes."""
    made = make(name, "lock", "holds", "1", age=1000)
    header = SHM / f"shmcow.{name}"
    header.write_bytes(b"x" * 100)
    item = only(collect(name))
    assert "nobody knows what is in use" in item.kept
    assert all(path.exists() for path in made)
    assert len(unlink_all(name)) == 4
    assert objects(name) == []
    with pytest.raises(shmcow.StoreNotFoundError):
        unlink_all(name)


def test_creators_and_collectors_do_not_disturb_each_other(name: str) -> None:
    """A store that is made while somebody collects, and takes even the youngest for garbage, is made all the same."""
    program = (
        "import sys\nfrom shmcow import garbage\nprint('ready', flush=True)\n"
        "while True:\n    garbage.collect(sys.argv[1], min_age=0)\n"
    )
    collector = subprocess.Popen(
        [sys.executable, "-c", program, name], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert collector.stdout is not None
        assert collector.stdout.readline() == "ready\n"
        for n in range(150):
            with Writer(name, codec=Raw(), initial=b"%d" % n) as writer:
                writer.publish(b"second %d" % n)
                with Reader(name, codec=Raw()) as reader:
                    assert bytes(reader.get()) == b"second %d" % n
                writer.destroy()
        assert collector.poll() is None
    finally:
        collector.kill()
        collector.communicate()
    collect(name, min_age=0)
    assert objects(name) == []


def test_all_stores_are_looked_at_without_a_name(name: str) -> None:
    """Also those that are no store any more; what is not ours is not there."""
    make(name, "lock", age=1000)
    names = [item.store for item in garbage()]
    assert name in names
    rows = [json.loads(line) for line in run("gc", "--dry-run", "-o", "jsonl").stdout.splitlines()]
    assert name in [row["store"] for row in rows]
    assert only(collect(name)).collected


def test_another_users_objects_are_left_alone(name: str) -> None:
    """Told where they can be seen, and refused where not."""
    if os.geteuid() != 0:
        pytest.skip("acts as another user; needs root: run as root")
    with Writer(name, initial=1) as writer:
        code, told = as_user(NOBODY, "gc", name)
        assert code == 5, told
        assert name not in as_user(NOBODY, "gc", "--dry-run")[1]
        writer.destroy()
    with Writer(name, initial=1, mode=0o644):
        (stray,) = make(name, "999", epoch=shmcow.describe(name).epoch)
        code, told = as_user(NOBODY, "gc", name)
        assert (code, "it belongs to user 0" in told) == (0, True), told
        assert stray.exists()
        stray.unlink()
    (lock,) = make(f"{name}-2", "lock", age=1000)
    code, told = as_user(NOBODY, "gc", f"{name}-2")
    assert (code, "it belongs to user 0" in told) == (0, True), told
    (holds,) = make(f"{name}-2", "holds", age=1000)
    os.chown(holds, NOBODY, NOBODY)
    assert as_user(NOBODY, "rm", f"{name}-2", "--force", "--yes")[0] == 5
    assert lock.exists()
    assert holds.exists()  # all of it or nothing
    os.chown(lock, NOBODY, NOBODY)
    assert as_user(NOBODY, "gc", f"{name}-2")[0] == 0
    assert not lock.exists()


def test_wrong_use_of_gc_exits_2(name: str) -> None:
    """A negative age or a bad name is a usage error."""
    refused(2, "gc", "--older-than", "-1")
    refused(2, "gc", "a/b")
    with pytest.raises(ValueError, match="min_age"):
        garbage(name, min_age=-1)
    with pytest.raises(ValueError, match="lock_timeout"):
        collect(name, lock_timeout=-1)


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300", "-1"])
def test_seconds_that_are_none_are_a_wrong_usage(name: str, seconds: str) -> None:
    """Before anything is done, too: `drop --wait nan` dropped first."""
    with shmcow.Writer(name, initial=1) as writer:
        writer.publish(2)
        for arguments in (("gc", name, "--older-than"), ("gc", name, "--lock-timeout"), ("drop", name, "1", "--wait")):
            assert run(*arguments, seconds, *(["--yes"] if arguments[0] == "drop" else [])).returncode == 2
        assert [item.version for item in shmcow.describe(name).generations] == [2, 1]


def test_rm_force_leaves_a_directory(name: str) -> None:
    """shmcow never made it, and does not look into it."""
    path = Path("/dev/shm") / f"shmcow.{name}"
    path.mkdir()
    try:
        done = run("rm", name, "--yes", "--force")
        assert (done.returncode, "is a directory" in done.stderr) == (6, True)
    finally:
        path.rmdir()


def test_gc_of_what_is_not_there_exits_3(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error is not all well; the library collects nothing, quietly."""
    for more in ((), ("--dry-run",)):
        assert app.run(["gc", name, *more]) == 3
        assert f"there is no store {name}, and nothing else of that name" in capsys.readouterr().err
    assert collect(name) == []
