"""``shmcow doctor`` and ``inspect.diagnose``: each thing that can be wrong is found, and told with its fix."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import NOBODY, answered, as_user, holding, killed
from test_cli import environment, refused, run

import shmcow
from shmcow import Bundle, MsgPack, Raw, Reader, Writer, segments
from shmcow.cli import app
from shmcow.inspect import Finding, diagnose
from shmcow.machine import check_directory, check_limits, check_logind, removes_ipc

SHM = Path("/dev/shm")
OTHER = "0123456789abcdef" * 2  # an epoch


def found(name: str) -> dict[str, Finding]:
    """What is wrong with one store, by check; each finding says what to do."""
    mine = [finding for finding in diagnose(name) if finding.store == name]
    assert all(finding.fix for finding in mine)
    return {finding.check: finding for finding in mine}


def path_of(name: str, what: object) -> Path:
    return SHM / f"shmcow.{name}.{shmcow.describe(name).epoch}.{what}"


def shop(name: str) -> Writer[Any]:
    codec = Bundle(config=MsgPack(), blob=Raw())
    return Writer(name, codec=codec, initial={"config": {"a": 1}, "blob": b"x" * (2 << 20)}, verify=True)


def test_healthy_store_has_no_findings(name: str) -> None:
    """Nothing to tell, in each form: exit 0, and nothing is written."""
    with shop(name) as writer, holding(name, 1):
        writer.publish_parts(config={"a": 2})
        before = shmcow.describe(name), sorted(entry for entry in os.listdir(SHM) if name in entry)
        assert found(name) == {}
        done = run("doctor", name)
        assert [line for line in done.stdout.splitlines() if "\tNone\t" not in line and name in line] == []
        assert json.loads(run("doctor", name, "--json").stdout)["schema"] == 1
        assert (shmcow.describe(name), sorted(entry for entry in os.listdir(SHM) if name in entry)) == before


def test_problems_are_told_in_each_form_and_exit_1(name: str) -> None:
    """Level, store, check, what was found and the fix; the same in all forms."""
    with Writer(name, initial=1):
        pass
    lock = path_of(name, "lock")
    lock.chmod(0o644)
    done = run("doctor", name)
    assert (done.returncode, done.stderr) == (1, "")
    (row,) = [line.split("\t") for line in done.stdout.splitlines() if name in line]
    assert row[:3] == ["problem", name, "permissions"]
    assert row[4] == f"chmod 0600 {lock}"
    done = run("doctor", name, "-o", "json")
    assert done.returncode == 1
    (entry,) = [item for item in json.loads(done.stdout)["findings"] if item["store"] == name]
    assert (entry["level"], entry["check"], entry["fix"]) == ("problem", "permissions", row[4])
    lines = run("doctor", name, "-o", "jsonl").stdout.splitlines()
    assert name in [json.loads(line)["store"] for line in lines]
    code, seen = answered("", "doctor")
    assert code == 1
    assert f"problem  {name}: {lock} has the mode 0644" in seen
    assert f"  fix: chmod 0600 {lock}\n" in seen
    lock.chmod(0o600)
    assert found(name) == {}


def test_forced_version_is_told(name: str) -> None:
    """Until another one is current."""
    with Writer(name, type=int, initial=1) as writer:
        with Writer(name, force=True) as other:
            other.publish("text")
        warning = found(name)["forced"]
        assert (warning.level, warning.fix) == ("warning", f"shmcow rollback {name}, or publish again with the type")
        assert "current version 2 was published with --force, without a type" in warning.what
        writer.rollback()
        assert "forced" not in found(name)


def test_no_findings_are_told(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe, too: on stderr."""
    with Writer(name, initial=1):
        monkeypatch.setattr("shmcow.inspect.diagnose", lambda _: [])
        assert app.run(["doctor", name]) == 0
        assert capsys.readouterr() == ("", "shmcow: nothing wrong was found\n")


def test_what_is_not_there_exits_3(name: str) -> None:
    """A typing error is no healthy store."""
    assert "nothing else of that name" in refused(3, "doctor", name)
    refused(2, "doctor", "a/b")


def test_lost_files_and_owners_are_told(name: str) -> None:
    """Lock file, holds file, and what belongs to somebody else."""
    with Writer(name, initial=1):
        pass
    holds, lock = path_of(name, "holds"), path_of(name, "lock")
    holds.unlink()
    assert "nobody knows who holds what" in found(name)["holds"].what
    with Writer(name) as writer:
        writer.reclaim()
    assert found(name) == {}
    if os.geteuid() == 0:
        os.chown(holds, NOBODY, NOBODY)
        assert f"belongs to user {NOBODY}" in found(name)["owner"].what
        os.chown(holds, 0, 0)
    lock.unlink()
    problem = found(name)["lock"]
    assert problem.level == "problem"
    assert "its older versions are lost" in problem.what
    lock.mkdir()
    assert "no regular file" in found(name)["lock"].what
    lock.rmdir()


def test_damage_is_found(name: str) -> None:
    """The current version is read whole, also above a megabyte; older ones must have their segments."""
    with shop(name) as writer:
        writer.publish_parts(config={"a": 2})
        (older,) = [g.segments for g in shmcow.describe(name).generations if g.version == 1]
        path_of(name, older[0]).unlink()
        problem = found(name)["segments"]
        assert "version 1" in problem.what
        assert problem.fix == f"shmcow drop {name} 1"
        blob = path_of(name, older[1])
        blob.chmod(0o640)
        assert "it can be written" in found(name)["permissions"].what
        with blob.open("r+b") as file:
            file.seek(1_500_000)
            file.write(b"y")
        assert "CRC" in found(name)["current"].what
        assert run("doctor", name).returncode == 1
        blob.unlink()
        assert "missing" in found(name)["current"].what
    with (SHM / f"shmcow.{name}").open("r+b") as header:
        header.seek(1024 + 700)
        header.write(b"\xff" * 8)
    assert "version 1 is damaged" in found(name)["entry"].what


def test_header_that_is_none_is_told(name: str) -> None:
    """Damaged, of another program, or moved: and it hides no other store."""
    header = SHM / f"shmcow.{name}"
    header.write_bytes(b"x" * 99_328)
    problem = found(name)["header"]
    assert f"shmcow rm --force {name}" in problem.fix
    done = run("doctor", name)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    header.unlink()


def test_leftovers_and_removed_headers_are_told(name: str) -> None:
    """Orphans and half-destroyed stores are for `gc`; a header removed under its readers is for the publisher."""
    orphan = SHM / f"shmcow.{name}.{OTHER}.lock"
    orphan.write_bytes(b"")
    assert found(name) == {}  # a store may be in the making
    os.utime(orphan, (1, 1))
    assert found(name)["leftovers"].fix == f"shmcow gc {name}"
    orphan.unlink()
    with Writer(name, initial=1):
        pass
    killed("writer = Writer(name); segments.unlink_segment = die; writer.destroy()", name)
    assert "half-destroyed" in found(name)["leftovers"].what
    assert run("gc", name).returncode == 0
    with Writer(name, initial=1), holding(name, 0) as reader:
        (SHM / f"shmcow.{name}").unlink()
        problem = found(name)["header"]
        assert f"pid {reader.pid}" in problem.what
        assert "publish again" in problem.fix
    assert run("gc", name, "--older-than", "0").returncode == 0


def test_stopped_processes_are_told(name: str) -> None:
    """A stopped reader that holds an old version, and a stopped writer in its turn."""
    with Writer(name, initial=1) as writer, holding(name, 1) as reader:
        reader.stop()
        assert found(name) == {}  # it holds the current version
        writer.publish(2)
        problem = found(name)["stopped"]
        assert f"pid {reader.pid}" in problem.what
        assert "holds version 1" in problem.what
        assert f"kill -CONT {reader.pid}" in problem.fix
    program = (
        "import os, signal, sys\nfrom shmcow import Writer\n"
        "Writer(sys.argv[1]).update(lambda old: os.kill(os.getpid(), signal.SIGSTOP) or 3)\n"
    )
    stopped = subprocess.Popen([sys.executable, "-c", program, name], env=environment())
    try:
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)
        problem = found(name)["stopped"]
        assert f"pid {stopped.pid}" in problem.what
        assert "writer lock" in problem.what
    finally:
        stopped.kill()
        stopped.wait()


def test_room_is_compared_with_need(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more version must fit: else a problem; all that are to be retained should: else a warning."""
    with Writer(name, codec=Raw(), initial=b"x" * 1_000_000, retain=3) as writer:
        writer.publish(b"y" * 1_000_000)
        assert found(name) == {}
        for free, told in ((2_500_000, "5 versions of 1,000,000 bytes need 5,000,000"), (10_000, "before their time")):
            monkeypatch.setattr(segments, "room", lambda free=free: (free, 64_000_000))
            problem = found(name)["room"]
            assert (problem.level, told in problem.what) == ("warning", True)
            assert "--shm-size" in problem.fix
        with Reader(name, codec=Raw()).at(1):
            problem = found(name)["room"]
            assert (problem.level, "finds no room" in problem.what) == ("problem", True)
    with Writer(name, max_total_bytes=1_500_000):
        assert "do not fit" in found(name)["quota"].what


def test_full_table_is_told(name: str) -> None:
    """From 60 versions on the oldest is soon forced out."""
    with Writer(name, initial=1, retain=62) as writer:
        for n in range(61):
            writer.publish(n)
        assert "62 of 64 places" in found(name)["table"].what


def test_limits_of_processes_are_told(name: str) -> None:
    """Of this process for writing, and of readers for mapping and descriptors."""
    with Writer(name, codec=Raw(), initial=b"x" * 1_000_000):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        command = [sys.executable, "-m", "shmcow", "doctor", name, "--json"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard)),
        )
        assert done.returncode == 1
        assert "RLIMIT_FSIZE" in done.stdout
        with holding(name, 1) as reader:
            used = int(Path(f"/proc/{reader.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(reader.pid, resource.RLIMIT_AS, (used + 10_000, resource.RLIM_INFINITY))
            assert f"pid {reader.pid}" in found(name)["limits"].what
            resource.prlimit(reader.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            resource.prlimit(reader.pid, resource.RLIMIT_NOFILE, (12, 4096))
            assert "RLIMIT_NOFILE" in found(name)["limits"].what
            assert found(name)["limits"].store == name
    assert list(check_limits(os.getpid(), 1, "me")) == []


def test_directory_must_be_shared_memory_for_all(tmp_path: Path) -> None:
    """On a disk, without its sticky bit, or not there at all."""
    tmp_path.chmod(0o777)
    checks = {finding.check: finding for finding in check_directory(str(tmp_path))}
    assert "0777" in checks["directory"].what
    if "filesystem" not in checks:
        pytest.skip("the temporary directory lies in memory: run with --basetemp on a disk")
    assert "not tmpfs" in checks["filesystem"].what
    (missing,) = check_directory(str(tmp_path / "none"))
    assert missing.level == "problem"


@pytest.mark.parametrize(
    ("files", "removes"),
    [
        ({}, None),
        ({"run/systemd/system/x": ""}, True),
        ({"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=no\n"}, True),
        ({"etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, False),
        ({"usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC = off\n"}, False),
        ({"etc/systemd/logind.conf": "[Other]\nRemoveIPC=no\n"}, True),
        (
            {
                "etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n",
                "usr/lib/systemd/logind.conf.d/50-a.conf": "[Login]\nRemoveIPC=yes\n",
            },
            True,
        ),
        (
            {
                "usr/lib/systemd/logind.conf.d/50-a.conf": "[Login]\nRemoveIPC=yes\n",
                "etc/systemd/logind.conf.d/50-a.conf": "[Login]\nRemoveIPC=no\n",
            },
            False,
        ),
        (
            {
                "etc/systemd/logind.conf.d/10-a.conf": "[Login]\nRemoveIPC=yes\n",
                "run/systemd/logind.conf.d/20-b.conf": "[Login]\nRemoveIPC=no\n",
            },
            False,
        ),
    ],
)
def test_logind_is_read_as_systemd_reads_it(tmp_path: Path, files: dict[str, str], removes: bool | None) -> None:
    """The first file, then the drop-ins by name, of which the nearest place's counts; yes is built in."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert removes_ipc(tmp_path) is removes
    told = list(check_logind({0: "a", 33: "b", 1000: "c"}, running=True, root=tmp_path))
    assert [finding.store for finding in told] == (["c"] if removes else [])
    assert list(check_logind({1000: "c"}, root=tmp_path)) == (told if "run/systemd/system/x" in files else [])


def test_other_users_stores_are_no_problem(name: str) -> None:
    """What may not be looked into is a warning: exit 0. What may be read is looked at without any right to write."""
    if os.geteuid() != 0:
        pytest.skip("acts as another user; needs root: run as root")
    with Writer(name, initial=1) as writer:
        code, told = as_user(NOBODY, "doctor", name, "-o", "jsonl")
        (finding,) = [item for item in map(json.loads, told.splitlines()) if item["store"] == name]
        assert (finding["level"], finding["check"]) == ("warning", "permissions")
        assert code == 0, told
        writer.destroy()
    with Writer(name, initial=1, mode=0o644):
        path_of(name, "lock").chmod(0o644)
        code, told = as_user(NOBODY, "doctor", name)
        assert (code, "0600" in told) == (1, True)
