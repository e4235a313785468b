"""`shmcow follow`: what it takes for which source, what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import until
from test_cli import environment

import shmcow
from shmcow import IPTable, Reader, Table
from shmcow.cli.app import run

pytest.importorskip("watchfiles", reason="needs watchfiles: pip install 'shmcow[feed]'")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command; whoever lives at the end of the test is killed."""
    started = []

    def popen(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "shmcow", "follow", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment(),
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run it in this process, where it must end with exit code 2 before anything is made."""
    assert run(["follow", *arguments]) == 2
    return capsys.readouterr().err


def test_it_feeds_until_sigterm_and_leaves_the_store(start: Start, tmp_path: Path, name: str) -> None:
    """One JSON object for each event; exit code 0; a second follower gets 4 and the first one's pid."""
    (tmp_path / "config.toml").write_text("timeout = 1.0")
    process = start("config.toml", name, "--json", "--save", "saved.shmcow", "--author", "ops", "--retain", "2")
    events: list[dict[str, Any]] = [json.loads(line(process)) for _ in range(2)]
    assert [(event["kind"], event["version"], event["source"]) for event in events] == [
        ("following", 0, str(tmp_path / "config.toml")),
        ("published", 1, str(tmp_path / "config.toml")),
    ]
    second = start("config.toml", name)
    out, err = second.communicate()
    assert (second.returncode, out) == (4, "")
    assert f"is fed already, by pid {process.pid} " in err
    (tmp_path / "config.toml").write_text("timeout = = 1")
    event = json.loads(line(process))
    assert (event["kind"], event["version"]) == ("failed", 1)
    assert event["error"] == "config.toml, line 1, column 11: TOML is malformed: Invalid value"
    process.send_signal(signal.SIGTERM)
    assert json.loads(line(process))["kind"] == "ended"
    assert process.wait() == 0
    report = shmcow.describe(name)
    assert (report.retain, report.generations[0].author) == (2, "ops")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "saved.shmcow"]


def test_a_function_is_asked_again_and_again(start: Start, tmp_path: Path, name: str) -> None:
    """MODULE:FUNCTION, imported from the current directory as well; in a pipe tab-separated values."""
    (tmp_path / "discovery.py").write_text(
        "answers = [{'a': 1}, {'a': 1}, {'a': 2}]\n"
        "def ask():\n    return answers.pop(0) if len(answers) > 1 else answers[0]\n"
    )
    process = start("discovery:ask", name, "--every", "0.01", "--jitter", "0")
    rows = [line(process).rstrip("\n").split("\t")[1:] for _ in range(3)]
    assert rows == [["following", "0", "-"], ["published", "1", "-"], ["published", "2", "-"]]
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    with Reader(name) as r:
        assert r.get() == {"a": 2}
        assert r.snapshot().source == "discovery:ask"


def test_directories_and_tables_are_sources(start: Start, tmp_path: Path, name: str) -> None:
    """With the options that `publish` has for a CSV."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.json").write_text("[1]")
    (tmp_path / "geo.csv").write_text("network,site\n10.0.0.0/8,x\n")
    (tmp_path / "rows.csv").write_text("code;name\n1;one\n")
    tables = ["rows.csv", f"{name}-t", "--key", "code", "--key-type", "int", "--delimiter", ";"]
    processes = [
        start("d", name, "--parse"),
        start("geo.csv", f"{name}-g", "--ip", "--key", "network"),
        start(*tables),
    ]
    for process in processes:
        assert [line(process).split("\t")[1] for _ in range(2)] == ["following", "published"]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    codecs = {name: None, f"{name}-g": IPTable(str), f"{name}-t": Table(key=int, value=str)}
    values: list[Any] = []
    for store, codec in codecs.items():
        reader: Reader[Any] = Reader(store) if codec is None else Reader(store, codec=codec)  # type: ignore[arg-type]
        with reader as r:
            values.append(r.get() if codec is None else r.get()["10.1.1.1" if "g" in store[-1] else 1])
        if codec is not None:
            shmcow.destroy(store)
    assert values == [{"a": [1]}, "x", "one"]


def test_what_is_not_there_yet_is_waited_for(start: Start, tmp_path: Path, name: str) -> None:
    """A file that does not exist is a failure that ends when it comes."""
    process = start("later.json", name)
    assert line(process).split("\t")[1] == "following"
    assert line(process).rstrip("\n").split("\t")[1:3] == ["failed", "0"]
    (tmp_path / "later.json").write_text("[1]")
    assert line(process).split("\t")[1:3] == ["published", "1"]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_wrong_usage_is_told_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Options of another kind of source, sources that nobody can tell, functions that are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    assert "does not say what it is: give --format" in refused(capsys, "there", name)
    assert "--key is for csv, and a.json is a file" in refused(capsys, "a.json", name, "--key", "x")
    assert "--debounce is for file and directory" in refused(capsys, "os:getpid", name, "--debounce", "1")
    assert "--timeout is for function" in refused(capsys, "d", name, "--timeout", "1")
    assert "--parse is for directory" in refused(capsys, "a.json", name, "--parse")
    assert "a table needs --key" in refused(capsys, "a.csv", name)
    assert "cannot import nothing_there" in refused(capsys, "nothing_there:f", name)
    assert "has no nothing_there" in refused(capsys, "os:nothing_there", name)
    assert "expected a callable" in refused(capsys, "os:sep", name)
    assert "is no function" in refused(capsys, "a.json", name, "--validate", "os:sep")
    assert "every is more than 0" in refused(capsys, "a.json", name, "--every", "0")
    assert not os.path.exists(f"/dev/shm/shmcow.{name}")


def test_store_with_a_type_asks_for_it_and_ends(start: Start, tmp_path: Path, name: str) -> None:
    """Exit code 6, with the option to give; with it the follower goes on from what is there."""
    (tmp_path / "shop.py").write_text("import msgspec\n\nclass Config(msgspec.Struct, frozen=True):\n    a: int\n")
    (tmp_path / "a.json").write_text('{"a": 1}')
    process = start("a.json", name, "--type", "shop:Config")
    assert [line(process).split("\t")[1] for _ in range(2)] == ["following", "published"]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    (tmp_path / "a.json").write_text('{"a": 2}')
    process = start("a.json", name, "--every", "0.01")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert [row.split("\t")[1] for row in out.splitlines()] == ["following", "failed"]
    assert err == (
        f"shmcow: version 1 of store {name} was published as shop.Config, and this follower has no type to check "
        "values with: give --type shop:Config (--force publishes all the same)\n"
    )
    process = start("a.json", name, "--type", "shop:Config")
    assert [line(process).split("\t")[1:3] for _ in range(2)] == [["following", "1"], ["published", "2"]]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_without_watchfiles_it_says_what_to_install(tmp_path: Path, name: str) -> None:
    """One line, exit code 2; a callable does not need it."""
    code = (
        "import sys; sys.modules['watchfiles'] = None\n"
        "from shmcow.feed import File, poll\n"
        "poll(int)\n"
        "from shmcow.cli import app; sys.exit(app.run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "follow", "a.json", name],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'shmcow[feed]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ended_output_ends_it(start: Start, tmp_path: Path, name: str) -> None:
    """Whoever read its lines has gone: the next one ends it, and the feed lock is free."""
    (tmp_path / "a.json").write_text("1")
    process = start("a.json", name)
    assert process.stdout is not None
    line(process)
    line(process)
    process.stdout.close()
    (tmp_path / "a.json").write_text("2")
    assert process.wait() == 141
    found = until(lambda: shmcow.describe(name).feed, "the state")
    assert not found.running
