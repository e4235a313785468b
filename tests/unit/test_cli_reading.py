"""``shmcow ls``, ``stat``, ``history``, ``get``: what they print to people, scripts and programs, and how they exit."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_cli import environment, refused, run

import shmcow
from shmcow import Bundle, IPTable, MsgPack, Raw, Reader, Table, Writer

HOSTILE = "up \x1b[2J and \u202e down"
VALUE = {"hosts": ["a", "b"], "password": "hunter2", "deep": {"api_key": "k", "text": HOSTILE}, "n": 3}


def on_terminal(*arguments: str, columns: int = 200) -> str:
    """Run a command with a terminal for its output; return what reached it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shmcow", *arguments]
    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env=environment() | {"NO_COLOR": "1", "COLUMNS": str(columns)}
    ) as done:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # the terminal's other end was closed
            pass
        assert done.wait(60) == 0, seen
    os.close(ours)
    return seen.decode().replace("\r\n", "\n")


@pytest.fixture
def store(name: str) -> Iterator[str]:
    with Writer(name, initial={"hosts": ["a"]}) as writer:
        writer.publish(VALUE, message=HOSTILE, author="ann", source="a test")
        yield name


@pytest.fixture
def bundle(name: str) -> Iterator[str]:
    codec = Bundle(config=MsgPack(), geo=IPTable(str), users=Table(key=int, value=str), names=Table(key=str, value=str))
    first: Any = {"config": {"a": [1]}, "geo": [("8.8.8.0/24", "US")], "users": {7: "ann"}, "names": {"a.b": "dots"}}
    with Writer(name, codec=codec, initial=first):
        yield name


def rows(*arguments: str) -> list[list[str]]:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("\t") for line in done.stdout.splitlines()]


def as_json(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_ls_lists_stores_for_scripts_people_and_programs(store: str) -> None:
    """One line a store: version, bytes, versions alive, readers, owner, mode; the same in all forms."""
    report = shmcow.describe(store)
    with Reader(store) as reader:
        reader.get()
        (line,) = [row for row in rows("ls") if row[0] == store]
        assert line[1] == "2"
        assert line[3:6] == [str(report.total_bytes), "2", "1"]
        assert line[7:] == ["0600", "-"]
        (entry,) = [item for item in as_json("ls")["stores"] if item["name"] == store]
        assert (entry["readers"], entry["problem"], entry["report"]["version"]) == (1, None, 2)
        seen = on_terminal("ls").splitlines()
    columns = ["name", "version", "published", "bytes", "versions", "readers", "owner", "mode"]
    assert seen[0].split() in (columns, [*columns, "problem"])  # (others may have stores here, and problems)
    (shown,) = [line.split() for line in seen if line.startswith(store)]
    assert shown[1] == "2"
    assert "8.2 kB" in " ".join(shown)
    lines = run("ls", "-o", "jsonl").stdout.splitlines()
    assert store in [json.loads(line)["name"] for line in lines]


def test_ls_goes_on_beside_a_damaged_store(store: str) -> None:
    """A store that cannot be read is listed with its problem, and does not hide the others."""
    bad = f"{store}-bad"
    path = Path(f"/dev/shm/shmcow.{bad}")
    path.write_bytes(b"x" * 100)
    try:
        found = {row[0]: row for row in rows("ls")}
        assert "not that of a store" in found[bad][-1]
        assert found[store][-1] == "-"
        (entry,) = [item for item in as_json("ls")["stores"] if item["name"] == bad]
        assert entry["report"] is None
        assert "not that of a store" in entry["problem"]
        assert "problem" in on_terminal("ls").splitlines()[0]
        refused(6, "stat", bad)
        refused(6, "get", bad)
    finally:
        path.unlink()


def test_history_lists_the_versions_that_can_be_opened(store: str) -> None:
    """Newest first, with who and why; a held version is marked."""
    with Reader(store).at(1):
        newest, oldest = rows("history", store)
        assert [item["held_by"] for item in as_json("stat", store)["generations"]] == [[], [os.getpid()]]
    assert newest[0:2] == ["2", "current"]
    assert newest[3:] == [str(shmcow.describe(store).generations[0].size_bytes), "ann", str(os.getpid()), "-", "-",
                          "a test", "up \\x1b[2J and \\u202e down"]  # fmt: skip
    assert (oldest[0:2], oldest[6]) == (["1", "held"], str(os.getpid()))
    found = as_json("history", store)
    assert found["schema"] == 1
    assert [item["version"] for item in found["versions"]] == [2, 1]
    assert found["versions"][0]["message"] == HOSTILE
    seen = on_terminal("history", store)
    assert "\x1b[2J" not in seen
    assert "current" in seen


def test_stat_tells_everything_about_a_store(store: str) -> None:
    """Settings, counters and room, then the versions; as JSON what describe() says."""
    lines = dict(row for row in rows("stat", store) if len(row) == 2)
    assert (lines["name"], lines["version"], lines["mode"], lines["published"]) == (store, "2", "0600", "2")
    assert int(lines["shm_total_bytes"]) >= int(lines["shm_free_bytes"]) > 0
    found = as_json("stat", store)
    assert found["counters"]["published"] == 2
    assert len(found["generations"]) == 2
    seen = on_terminal("stat", store)
    assert "4 older versions" in seen
    assert "2 published" in seen


def test_get_prints_values_and_parts(store: str) -> None:
    """JSON for values, plain text for a text; an older version with --at."""
    assert json.loads(run("get", store).stdout)["hosts"] == ["a", "b"]
    assert run("get", store, "hosts.1").stdout == "b\n"
    assert run("get", store, "hosts.1", "-o", "json").stdout == '"b"\n'
    assert run("get", store, "/deep/text").stdout == HOSTILE + "\n"
    assert run("get", store, "n").stdout == "3\n"
    assert json.loads(run("get", store, "--at", "1").stdout) == {"hosts": ["a"]}
    seen = on_terminal("get", store)
    assert json.loads(seen)["deep"]["text"] == HOSTILE
    assert "\x1b" not in seen
    assert "\u202e" not in seen
    assert "\x1b" not in on_terminal("get", store, "deep.text")


def test_get_masks_what_has_a_telling_name(store: str) -> None:
    """Wherever it stands, also asked for by name; not in raw bytes, and not when told so."""
    assert "hunter2" not in run("get", store).stdout
    assert run("get", store, "password").stdout == "********\n"
    assert json.loads(run("get", store, "deep").stdout)["api_key"] == "********"
    assert run("get", store, "password", "--redact", "").stdout == "hunter2\n"
    assert run("get", store, "n", "--redact", "^n$").stdout == "********\n"
    assert "regular expression" in refused(2, "get", store, "--redact", "[")


def test_get_raw_writes_the_payload(store: str) -> None:
    """The very bytes, also into a pipe."""
    command = [sys.executable, "-m", "shmcow", "get", store, "--raw"]
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment(), check=True)
    assert msgspec.msgpack.decode(done.stdout) == VALUE


def test_get_looks_up_in_tables_and_parts(bundle: str) -> None:
    """The first step names a bundle's part; of a table the rest is the key, dots and all."""
    assert run("get", bundle, "geo.8.8.8.8").stdout == "US\n"
    assert run("get", bundle, "/geo/8.8.8.8").stdout == "US\n"
    assert run("get", bundle, "users.7").stdout == "ann\n"
    assert run("get", bundle, "names.a.b").stdout == "dots\n"
    assert run("get", bundle, "config.a.0").stdout == "1\n"
    assert json.loads(run("get", bundle).stdout)["geo"] == {"8.8.8.0/24": "US"}
    assert "no '9.9.9.9'" in refused(3, "get", bundle, "geo.9.9.9.9")
    assert "no IP address" in refused(2, "get", bundle, "geo.nine")
    assert "is no key" in refused(2, "get", bundle, "users.ann")
    assert "the parts are config, geo" in refused(3, "get", bundle, "zoo")
    assert "several parts" in refused(2, "get", bundle, "--raw")
    assert "no part 'zoo'" in refused(3, "get", bundle, "zoo", "--raw")
    command = [sys.executable, "-m", "shmcow", "get", bundle, "config", "-o", "raw"]
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment(), check=True)
    assert msgspec.msgpack.decode(done.stdout) == {"a": [1]}


def test_reading_commands_say_what_is_not_there(store: str) -> None:
    """Exit code 3, and what there is."""
    for command in ("get", "stat", "history"):
        assert "no store" in refused(3, command, "t-no-such-store").lower()
    assert "was never published" in refused(3, "get", store, "--at", "9")
    assert "indexes 0 to 1" in refused(3, "get", store, "hosts.2")
    refused(2, "get", "bad/name")
    with Writer(f"{store}-empty", codec=Raw()) as empty:
        assert "no version" in refused(3, "get", f"{store}-empty")
        assert run("history", f"{store}-empty").stdout == ""
        assert ["version", "0"] in rows("stat", f"{store}-empty")
        empty.destroy()


def test_reading_commands_write_nothing(store: str) -> None:
    """No version, no marker, no object in shared memory: the same before and after."""
    before = shmcow.describe(store), sorted(os.listdir("/dev/shm"))
    for arguments in (["ls"], ["stat", store], ["history", store], ["get", store]):
        assert run(*arguments).returncode == 0
    names = [entry for entry in sorted(os.listdir("/dev/shm")) if store in entry]
    assert (shmcow.describe(store), names) == (before[0], [entry for entry in before[1] if store in entry])


def test_output_into_a_closed_pipe_ends_quietly(store: str) -> None:
    """As any Unix tool when `head` has seen enough."""
    program = f"exec {sys.executable} -m shmcow get {store}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; ({program}) | true"], capture_output=True, timeout=60, env=environment()
    )
    assert done.stderr == b""


def test_a_name_anywhere_on_the_way_masks(name: str) -> None:
    """What is asked for by its path is masked as in the whole value; so is a key of bytes."""
    with Writer(name, initial={"password": ["p1"], "db": {"secret": {"x": "p1"}}, "a": {"api.key-token": 1}}) as writer:
        for path in ("password.0", "/password/0", "db.secret.x", "/db/secret/x", "/a/api.key-token"):
            assert run("get", name, path).stdout == "********\n", path
        assert run("get", name, "password.0", "--redact", "").stdout == "p1\n"
        writer.publish({b"password": "p1"})
        assert "p1" not in run("get", name).stdout + run("watch", name, "--count", "1", "--json").stdout


def test_lines_of_json_are_for_terminals_and_encodings_too(name: str) -> None:
    """No control character of a message is in JSON lines; an encoding without a character gets JSON's escape."""
    with Writer(name) as writer:
        writer.publish({"e": "\xe9\U0001f600"}, message="\x9b31m\u202e")
        for command in (["history", name, "-o", "jsonl"], ["ls", "-o", "jsonl"]):
            assert not set("\x9b\u202e") & set(run(*command).stdout)
        done = subprocess.run(
            [sys.executable, "-m", "shmcow", "get", name],
            capture_output=True,
            check=True,
            env=environment() | {"PYTHONIOENCODING": "ascii"},
        )
        assert json.loads(done.stdout) == {"e": "\xe9\U0001f600"}


def test_what_is_too_deep_or_too_long_is_no_bug_of_ours(name: str) -> None:
    """Nesting that Python cannot walk through, and numbers that it does not read."""
    value: Any = 1
    for _ in range(700):
        value = {"a": value}
    with Writer(name, initial=[1]) as writer:
        refused(3, "get", name, "9" * 5000)
        refused(3, "set", name, "9" * 5000, "1")
        writer.publish(value)
        for command in ("get", "watch", "diff"):
            assert "nested too deeply" in refused(6, command, name)


def test_closed_and_full_streams(name: str) -> None:
    """Nobody who closes a stream is told of a bug, and the exit code is right where stderr is full."""
    with Writer(name, initial=1):
        for rest, code in ((f"get {name} >&-", 0), (f"rm {name} <&-", 2), ("get nosuch 2>/dev/full", 3)):
            done = subprocess.run(
                ["sh", "-c", f"{sys.executable} -m shmcow {rest}"], capture_output=True, text=True, env=environment()
            )
            assert done.returncode == code, (rest, done.stderr)
            assert "bug" not in done.stderr


def test_shell_reads_empty_cells(name: str) -> None:
    """One that is empty is a dash: a shell's read takes several tabs for one."""
    with Writer(name, initial=1) as writer:
        writer.publish(2, source="s" * 100)
        loop = "while IFS=$(printf '\\t') read -r a b c d e f g h i j; do echo $a $h $j; done"
        script = f"{sys.executable} -m shmcow history {name} | {loop}"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env=environment())
        assert done.stdout == "2 - -\n1 - initial\n"
        # A source is cut, not wrapped: a version is one line on a narrow terminal, too.
        assert len(on_terminal("history", name, columns=80).splitlines()) == 3
