"""``shmcow export`` and ``import``: run as the real executable, there and back, and with files that are damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from test_cli import environment, run
from test_cli_publish import as_stranger, called, needs_root, put, shop, value  # noqa: F401

import shmcow
from shmcow import Bundle, IPTable, MsgPack, Raw, Table, Writer


@pytest.mark.usefixtures("shop")
def test_export_and_import_after_a_cold_start(name: str) -> None:
    """The whole way of a backup: the version's number on stdout, words on stderr, and JSON for programs."""
    with Writer(name, mode=0o640, initial={"a": 1}) as writer:
        writer.publish({"a": 2}, message="why", author="ann")
        saved = run("export", name, "f.shmcow")
        assert (saved.returncode, saved.stdout) == (0, "2\n")
        assert saved.stderr == f"saved version 2 of {name}, 4 B, to f.shmcow\n"
        told = json.loads(run("export", name, "old.shmcow", "--at", "1", "--json").stdout)
        assert told == {"schema": 1, "version": 1, "file": "old.shmcow", "size_bytes": 4}
        writer.destroy()
    restored = run("import", name, "f.shmcow")
    assert (restored.returncode, restored.stdout, restored.stderr) == (0, "1\n", f"made the store {name}\n")
    report = shmcow.describe(name)
    assert (report.mode, report.generations[0].message, report.generations[0].author) == (0o640, "why", "ann")
    assert report.generations[0].source.startswith(f"import of {name} version 2, ")
    again = json.loads(run("import", name, "old.shmcow", "--expected", "1", "-o", "json", "--message", "m").stdout)
    assert (again["version"], again["changed"], again["created"]) == (2, True, False)
    assert (again["exported"]["store"], again["exported"]["version"]) == (name, 1)
    assert value(name) == {"a": 1}
    assert run("history", name).stdout.split("\n")[0].endswith("\tm")


@pytest.mark.usefixtures("shop")
def test_import_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial, only what changed, conflicts, no creation; the mode of a new store."""
    with Writer(name, initial=1):
        called(0, capsys, "export", name, "f.shmcow")
        called(0, capsys, "export", name, "f.shmcow")
        assert called(0, capsys, "import", name, "f.shmcow", "--if-changed")[0] == "1\n"
        assert "would publish version 2" in called(0, capsys, "import", name, "f.shmcow", "--dry-run")[0]
        called(4, capsys, "import", name, "f.shmcow", "--expected", "7")
    shmcow.destroy(name)
    called(3, capsys, "import", name, "f.shmcow", "--no-create")
    called(3, capsys, "export", name, "g.shmcow")
    called(0, capsys, "import", name, "f.shmcow", "--mode", "644")
    assert shmcow.describe(name).mode == 0o644
    called(3, capsys, "export", name, "g.shmcow", "--at", "9")
    assert not Path("g.shmcow").exists()


@pytest.mark.usefixtures("shop")
def test_files_that_cannot_be_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 6 for one that is damaged, 2 for a wrong name; nothing else is overwritten."""
    with Writer(name, codec=Raw(), initial=b"payload" * 10) as writer:
        called(0, capsys, "export", name, "f.shmcow")
        good = Path("f.shmcow").read_bytes()
        for content, told in (
            (good[:-1], "truncated: it has"),
            (good[:40], "truncated: it ends in its header"),
            (good.replace(b"payload", b"PAYLOAD", 1), "checksum"),
            (b"x" + good, "no export"),
            (b"", "no export"),
        ):
            put("bad.shmcow", content)
            for more in ((), ("--dry-run",), ("--force",)):
                out, err = called(6, capsys, "import", name, "bad.shmcow", *more)
                assert out == ""
                assert told in err
        put("config.json", "{}")
        for arguments, told in (
            (["import", name, "no"], "No such file"),
            (["import", name, "."], "Is a directory"),
            (["export", name, "no/x"], "No such file"),
            (["export", name, "."], "no regular file"),
            (["export", name, "config.json"], "no export"),
        ):
            assert told in " ".join(called(2, capsys, *arguments)[1].split())
        assert writer.version == 1
    assert Path("config.json").read_text() == "{}"


@pytest.mark.usefixtures("shop")
def test_import_asks_for_the_type(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the file's type is not the store's; --force is recorded."""
    put("l.json", {"max": 3})
    called(0, capsys, "publish", name, "l.json", "--type", "shop:Limits")
    other = f"{name}-b"
    with Writer(other, initial={"max": 7}) as writer:
        called(0, capsys, "export", other, "f.shmcow")
        _, err = called(6, capsys, "import", name, "f.shmcow")
        assert "shop.Limits" in err
        assert "--type" in err
        assert "--force" in err
        called(0, capsys, "import", name, "f.shmcow", "--type", "shop:Limits")
        assert value(name) == {"max": 7}
        called(6, capsys, "import", name, "f.shmcow", "--type", "shop:Country")
        called(0, capsys, "import", name, "f.shmcow", "--force")
        assert shmcow.describe(name).generations[0].source.endswith("(forced)")
        writer.destroy()


@pytest.mark.usefixtures("shop")
def test_bundle_with_tables_comes_back(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each part with its codec, looked up as before; then only what changed."""
    codec = Bundle(config=MsgPack(), geo=IPTable(str), users=Table(key=int, value=str))
    first = {"config": {"a": [1]}, "geo": [("8.8.8.0/24", "US")], "users": {7: "ann"}}
    with Writer(name, codec=codec, initial=first) as writer:
        called(0, capsys, "export", name, "f.shmcow")
        writer.destroy()
    called(0, capsys, "import", name, "f.shmcow")
    assert run("get", name, "geo.8.8.8.8").stdout == "US\n"
    assert run("get", name, "users.7").stdout == "ann\n"
    called(0, capsys, "import", name, "f.shmcow", "--if-changed")
    with Writer(name, codec=codec) as writer:
        assert writer.publish_parts(config={"a": 2}) == 2


@pytest.mark.usefixtures("shop")
def test_export_of_a_damaged_store_says_what_is_wrong(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A version whose bytes were overwritten is no backup; another one still is."""
    with Writer(name, initial={"a": 1}) as writer:
        writer.publish({"a": 2})
        report = shmcow.describe(name)
        with open(f"/dev/shm/shmcow.{name}.{report.epoch}.{report.generations[0].segments[0]}", "r+b") as segment:
            segment.write(b"\xff")
        assert "CRC" in called(6, capsys, "export", name, "f.shmcow")[1]
        assert not Path("f.shmcow").exists()
        assert called(0, capsys, "export", name, "f.shmcow", "--at", "1")[0] == "1\n"


@needs_root
@pytest.mark.usefixtures("shop")
def test_reader_of_another_user_exports_and_may_not_import(name: str) -> None:
    """Export needs no write permission and no living writer, and writes nothing there; import is the owner's."""
    code = f"import os, shmcow; shmcow.Writer({name!r}, mode=0o644, initial={{'a': 1}}); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == -9
    before = shmcow.describe(name)
    folder = Path("theirs")
    folder.mkdir()
    folder.chmod(0o777)
    codes, printed = as_stranger(
        ["export", name, "theirs/f"], ["import", name, "theirs/f"], ["export", name, "no"], ["import", "x", "theirs/g"]
    )
    assert (codes, printed) == ([0, 5, 5, 2], "1\n")
    assert shmcow.describe(name) == before
    assert (folder / "f").stat().st_mode & 0o777 == 0o600
    assert msgspec.msgpack.encode({"a": 1}) in (folder / "f").read_bytes()


@pytest.mark.usefixtures("shop")
def test_names_that_are_long_or_no_utf8(name: str) -> None:
    """A name may have 255 bytes, of any kind, and JSON tells it all the same."""
    with Writer(name, initial=1):
        assert run("export", name, "\u6f22" * 85).returncode == 0
        done = run("export", name, "f\udcff.x", "--json")
        assert json.loads(done.stdout)["file"] == "f\\xff.x"


@needs_root
@pytest.mark.usefixtures("shop")
def test_export_into_a_folder_that_cannot_be_listed(name: str) -> None:
    """Whoever may write into it, and not read it, has exported: the exit code says so."""
    Path("drop").mkdir()
    Path("drop").chmod(0o733)
    with Writer(name, mode=0o644, initial=1):
        assert as_stranger(["export", name, "drop/f.x"])[0] == [0]
    assert Path("drop/f.x").exists()
