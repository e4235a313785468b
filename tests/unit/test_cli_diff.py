"""``shmcow diff`` and ``shmcow.inspect.diff``: what changed, in values, bundles and tables."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_runs import STRANGER, ran
from test_cli import environment, refused, run
from test_cli_reading import HOSTILE
from users import needs_root

from shmcow import JSON, MMDB, Arrays, Bundle, IPTable, MsgPack, Raw, Reader, Table, Writer, inspect
from shmcow.cli import paths
from shmcow.codecs import Codec
from shmcow.differ import changes, path_text
from shmcow.errors import DecodeError, NotPublishedError, VersionGoneError

OLD = {"hosts": ["a", "b"], "password": "one", "deep": {"n": 1, "a.b": 1, "gone": None}, "text": "same"}
NEW = {"hosts": ["new", "a", "b"], "password": "two", "deep": {"n": 1.0, "a.b": 2}, "text": "same", "more": HOSTILE}


def found(old: Any, new: Any) -> list[tuple[str, str, Any, Any]]:
    return [(change.kind, change.where, change.old, change.new) for change in changes(old, new)]


# ---- plain values ----


def test_changes_of_plain_values() -> None:
    """Dicts by key, whole subtrees where one side has none; equal only if the type is."""
    assert found(OLD, NEW) == [
        ("added", "hosts.0", None, "new"),
        ("changed", "password", "one", "two"),
        ("changed", "deep.n", 1, 1.0),
        ("changed", "/deep/a.b", 1, 2),
        ("removed", "deep.gone", None, None),
        ("added", "more", None, HOSTILE),
    ]
    assert found({"a": {"b": [1]}}, {}) == [("removed", "a", {"b": [1]}, None)]
    assert found(1, [1]) == [("changed", "", 1, [1])]
    assert found({"a": 1}, [1]) == [("changed", "", {"a": 1}, [1])]


@pytest.mark.parametrize("value", [1, 0, True, 1.0, "1", b"1", None, [], {}, [1], [True], {1: 1}, {True: 1}, {"1": 1}])
def test_only_the_same_is_equal(value: Any) -> None:
    """1, 1.0 and True differ, also as keys and in lists; not-a-number equals itself."""
    others = [1, 0, True, 1.0, "1", b"1", None, [], {}, [1], [True], {1: 1}, {True: 1}, {"1": 1}]
    equal = [other for other in others if not found(value, other)]
    assert [(type(other), repr(other)) for other in equal] == [(type(value), repr(value))]
    assert not found({"a": [value, float("nan")]}, {"a": [value, float("nan")]})


def test_what_is_inserted_into_a_list_is_not_a_change_of_the_rest() -> None:
    """Also in the middle of 100,000 items, with others removed and changed; nested changes have the new index."""
    old: list[Any] = [{"id": n, "name": f"n{n}"} for n in range(100_000)]
    new = [dict(item) for item in old]
    new[60_000]["name"] = "other"
    del new[70_000]
    new.insert(50, {"id": -1})
    new.append("last")
    assert found(old, new) == [
        ("added", "50", None, {"id": -1}),
        ("changed", "60001.name", "n60000", "other"),
        ("removed", "70000", {"id": 70_000, "name": "n70000"}, None),
        ("added", "100000", None, "last"),
    ]


def test_changes_of_lists_lead_from_one_to_the_other() -> None:
    """Whatever the lists: without what was removed, and with what was added and changed, the old one is the new one."""
    chance = random.Random(4)
    for _ in range(5000):
        old = [chance.randrange(6) for _ in range(chance.randrange(9))]
        new = [chance.randrange(6) for _ in range(chance.randrange(9))]
        kinds: dict[str, dict[int, Any]] = {"added": {}, "removed": {}, "changed": {}}
        for change in changes(old, new):
            kinds[change.kind][change.path[0]] = change
        kept = iter(item for index, item in enumerate(old) if index not in kinds["removed"])
        made = []
        for index in range(len(new)):
            if index in kinds["added"]:
                made.append(kinds["added"][index].new)
                continue
            item = next(kept)
            change = kinds["changed"].get(index)
            assert change is None or change.old == item
            made.append(item if change is None else change.new)
        assert made == new, (old, new)
        assert not list(kept)


def test_values_that_are_nested_deeply_are_compared() -> None:
    """A value that was decoded is not too deep for this; one that msgspec would not decode is refused."""
    old: Any = 0
    new: Any = 1
    for _ in range(200):
        old, new = {"a": [old]}, {"a": [new]}
    (change,) = changes(old, new)
    assert (len(change.path), change.old, change.new) == (400, 0, 1)
    for _ in range(20_000):
        old, new = [old], [new]
    with pytest.raises(DecodeError, match="too deeply"):
        list(changes(old, new))


@pytest.mark.parametrize("path", [("a", "0"), ("a.b",), ("",), ("/x",), ("a/b", "~", "x"), ("a", "", "b"), ("x", "/")])
def test_paths_are_those_of_get(path: tuple[str, ...]) -> None:
    """What is printed, parsed again, names the same part."""
    assert paths.parse_path(path_text(path)) == path
    assert path_text((*path, 7)).endswith("7")


# ---- stores ----


@pytest.fixture
def store(name: str) -> Iterator[str]:
    with Writer(name, initial=OLD) as writer:
        writer.publish(NEW)
        yield name


def test_diff_prints_what_changed(store: str) -> None:
    """For scripts, people and programs; 1 is the exit code, and 0 when there is no difference."""
    done = run("diff", store)
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[:4] == [
        ["added", "hosts.0", "-", '"new"'],
        ["changed", "password", '"********"', '"********"'],
        ["changed", "deep.n", "1", "1.0"],
        ["changed", "/deep/a.b", "1", "2"],
    ]
    assert json.loads(lines[-1][3]) == HOSTILE
    assert HOSTILE not in done.stdout
    done = run("diff", store, "1", "2", "--json", "--limit", "2", "--redact", "")
    told = json.loads(done.stdout)
    assert [told[key] for key in ("schema", "old_version", "new_version", "added", "removed", "changed", "more")] == [
        1, 1, 2, 2, 1, 3, 4,
    ]  # fmt: skip
    assert told["changes"] == [
        {"change": "added", "path": "hosts.0", "steps": ["hosts", 0], "new": "new"},
        {"change": "changed", "path": "password", "steps": ["password"], "old": "one", "new": "two"},
    ]
    assert done.stderr == "shmcow: 4 more differences are not shown (--limit 0 shows all)\n"
    done = run("diff", store, "2", "1", "-o", "jsonl", "--limit", "0")
    assert [json.loads(line)["change"] for line in done.stdout.splitlines()].count("removed") == 2
    done = run("diff", store, "2", "2", "-o", "table")
    assert (done.returncode, done.stdout) == (0, f"{store}: version 2 -> 2\nno difference\n")


def on_terminal(*arguments: str, **variables: str) -> str:
    """Run a command with a terminal for its output, by the tool that is made for it; return what reached it."""
    line = " ".join([sys.executable, "-m", "shmcow", *arguments])
    environ = {key: value for key, value in environment().items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        env=environ | variables,
    )
    assert done.returncode == 1, done
    return done.stdout.replace("\r\n", "\n")


def test_diff_for_people_has_colours_and_is_short(name: str) -> None:
    """Marks and colours on a terminal, none with NO_COLOR; long values are cut to where they differ."""
    with Writer(name, initial={"long": "x" * 5000 + "1", "a": 1}) as writer:
        writer.publish({"long": "x" * 5000 + "2", "b": HOSTILE})
        seen = on_terminal("diff", name)
        assert "\x1b[32m+ b: " in seen
        assert "\x1b[31m- a: 1" in seen
        assert "\x1b[33m~ long: …" in seen
        assert 'x1" -> …' in seen
        assert "\x1b[2J" not in seen
        assert max(len(line) for line in seen.splitlines()) < 300
        seen = on_terminal("diff", name, NO_COLOR="1")
        assert "\x1b" not in seen
        assert f"{name}: version 1 -> 2" in seen
        assert "1 added, 1 removed, 1 changed" in seen
        forced = subprocess.run(
            [sys.executable, "-m", "shmcow", "diff", name],
            capture_output=True, text=True, timeout=60, env=environment() | {"FORCE_COLOR": "1"},
        )  # fmt: skip
        assert "\x1b[31m- a: 1" in forced.stdout


def test_diff_of_a_bundle_does_not_decode_what_is_shared(name: str) -> None:
    """Parts are compared one by one, and those with the same segment not at all; each change can be got."""
    codec = Bundle(
        config=MsgPack(), geo=IPTable(), users=Table(key=int), names=Table(key=str), bytes=Table(key=bytes), big=Raw()
    )
    geo = [("10.0.0.0/8", "site"), ("10.1.0.0/16", "lab"), ("192.0.2.1", "192.0.2.9", "x"), ("2001:db8::/32", "six")]
    first: Any = {
        "config": {"a": 1},
        "geo": geo,
        "users": {7: {"n": 1}, 8: "b"},
        "names": {"a.b": 1, "/c": 1, "": 1, "x": 1},
        "bytes": {b"k": 1},
        "big": b"x",
    }
    second = first | {
        "config": {"a": 2},
        "geo": [("10.0.0.0/8", "SITE"), ("10.0.0.0/9", "half"), *geo[2:3], ("2001:db8::/32", "six"), ("::1", "me")],
        "users": {8: "b", 7: {"n": True}, 9: "c"},
        "names": {"a.b": 2, "/c": 2, "": 2, "y": 2},
        "bytes": {b"k": 2},
    }
    with Writer(name, codec=codec, initial=first) as writer:
        writer.publish(second)
        difference = inspect.diff(name)
        listed = [(change.kind, change.where, change.old, change.new) for change in difference]
        assert listed == [
            ("changed", "config.a", 1, 2),
            ("changed", "geo.10.0.0.0/8", "site", "SITE"),
            ("added", "geo.10.0.0.0/9", None, "half"),
            ("removed", "geo.10.1.0.0/16", "lab", None),
            ("added", "geo.::1/128", None, "me"),
            ("changed", "users.7", {"n": 1}, {"n": True}),
            ("added", "users.9", None, "c"),
            ("changed", "names.a.b", 1, 2),
            ("changed", "names./c", 1, 2),
            ("changed", "/names/", 1, 2),
            ("removed", "names.x", 1, None),
            ("added", "names.y", None, 2),
            ("changed", "bytes.k", 1, 2),
        ]
        assert list(difference) == list(inspect.diff(name))  # it can be walked again
        from shmcow.cli.get import find

        with Reader(name, freeze=False) as reader:
            for kind, where, old, new in listed:
                assert kind == "added" or find(reader.at(1).value, where) == old, where
                assert kind == "removed" or find(reader.at(2).value, where) == new, where
        writer.publish_parts(config={"a": 3})
        assert [change.where for change in inspect.diff(name)] == ["config.a"]
        writer.rollback(to=2)
        assert not list(inspect.diff(name, 2))
        (big,) = (path for path in Path("/dev/shm").glob(f"shmcow.{name}.*") if _holds(path, b"x"))
        with big.open("r+b") as segment:
            segment.write(b"y")  # its checksum is wrong now: whoever looks into it says so
        assert len(list(inspect.diff(name, 1, 2))) == len(listed)
        assert json.loads(run("diff", name, "3", "--json").stdout)["changes"][0]["path"] == "config.a"


def _holds(path: Path, first: bytes) -> bool:
    number = path.name.rsplit(".", 1)[-1]
    return number.isdigit() and path.read_bytes()[:2] == first + b"\0"


def test_diff_of_bytes_files_and_arrays(name: str) -> None:
    """Bytes are equal or not: sizes and digests; arrays by name; and parts that come and go."""
    import numpy as np

    with Writer(name, codec=Raw(), initial=b"one") as writer:
        writer.publish(b"other")
        (change,) = inspect.diff(name)
        assert (change.where, change.old.what, change.old.size_bytes, change.new.size_bytes) == ("", "raw", 3, 5)
        assert change.old.digest != change.new.digest
        seen = run("diff", name, "-o", "table").stdout
        assert f"~ (the value): <raw, 3 bytes, {change.old.digest[:12]}…> -> <raw, 5 bytes, " in seen
        writer.destroy()
    first = {"a": np.arange(5), "b": np.zeros((2, 2), order="F"), "c": np.zeros(3)}
    second = {"a": np.arange(5), "b": np.zeros((2, 2)), "d": np.zeros(3)}
    with Writer(name, codec=Arrays(), initial=first) as writer:
        writer.publish(second)
        listed = [(change.kind, change.where) for change in inspect.diff(name)]
        assert listed == [("changed", "b"), ("removed", "c"), ("added", "d")]
        writer.destroy()
    with Writer(name, codec=JSON(), initial={"a": [1]}) as writer:
        writer.publish({"a": [1, 2]})
        assert found_in(name) == [("added", "a.1", None, 2)]


def test_diff_of_parts_that_come_and_go(name: str) -> None:
    """A new part of a bundle is added as a whole; the other way round it is removed."""
    with Writer(name, codec=Bundle(a=MsgPack()), initial={"a": 1}) as first:
        with Writer(name, codec=Bundle(a=MsgPack(), b=MsgPack(), t=Table(key=str))) as second:
            second.publish({"a": 1, "b": [1], "t": {"x": 1, "y": 2}})
        plain, table = inspect.diff(name)
        assert (plain.kind, plain.where, plain.new) == ("added", "b", [1])
        assert (table.kind, table.where, table.new.what, table.new.rows) == ("added", "t", "table", 2)
        assert [change.kind for change in inspect.diff(name, 2, 1)] == ["removed", "removed"]
        assert "+ t: <table, 2 rows, " in run("diff", name, "-o", "table").stdout
        del first


def found_in(name: str) -> list[tuple[str, str, Any, Any]]:
    return [(change.kind, change.where, change.old, change.new) for change in inspect.diff(name)]


def test_diff_of_what_only_a_program_can_decode(name: str, tmp_path: Path) -> None:
    """A codec of one's own, and a MaxMind DB file, are bytes."""

    class Own(Codec[Any]):
        name = "own"

        def encode(self, value: Any) -> list[Any]:
            return [msgspec.json.encode(value)]

        def decode(self, view: memoryview) -> Any:
            return msgspec.json.decode(view)

    with Writer(name, codec=Own(), initial=1) as writer:
        writer.publish(2)
        ((_, _, old, new),) = found_in(name)
        assert (old.what, new.size_bytes) == ("own", 1)
        assert run("diff", name).returncode == 1
        writer.destroy()
    mmdb_writer = pytest.importorskip("mmdb_writer", reason="pip install mmdb-writer")
    from netaddr import IPSet

    with Writer(name, codec=MMDB()) as files:
        for country in ("US", "CA"):
            database = mmdb_writer.MMDBWriter(ip_version=4, database_type="test")
            database.insert_network(IPSet(["8.8.8.0/24"]), {"country": country})
            database.to_db_file(str(tmp_path / "x.mmdb"))
            files.publish(tmp_path / "x.mmdb")
        ((_, _, old, _),) = found_in(name)
        assert old.what == "mmdb"


def test_diff_of_100_000_rows_is_bounded(name: str) -> None:
    """So many lines are printed, and how many more there are is said; all are counted."""
    with Writer(name, codec=Table(key=int, value=str), initial=dict.fromkeys(range(100_000), "old")) as writer:
        writer.publish({n: "new" if n % 2 else "old" for n in range(1, 100_001)})
        done = run("diff", name)
        assert done.returncode == 1
        assert done.stdout.count("\n") == 1000
        assert done.stdout.startswith('removed\t0\t"old"\t-\nchanged\t1\t"old"\t"new"\n')
        assert "49,002 more differences" in done.stderr
        assert sum(1 for _ in inspect.diff(name)) == 50_002


def test_diff_needs_two_versions(name: str) -> None:
    """No store, no version, none before the current one, none of that number: exit 3, and why."""
    assert "no store" in refused(3, "diff", name)
    with Writer(name, retain=0) as writer:
        assert "no version" in refused(3, "diff", name)
        with pytest.raises(NotPublishedError):
            inspect.diff(name)
        writer.publish(1)
        assert "nothing to compare it with" in refused(3, "diff", name)
        writer.publish(2)
        with pytest.raises(VersionGoneError, match="before 2"):
            inspect.diff(name)
        assert "version 1 of store" in refused(3, "diff", name, "1")
        refused(2, "diff", name, "1", "2", "--redact", "[")


def test_diff_holds_what_it_compares_and_lets_go(name: str) -> None:
    """Both versions stay openable as long as the Difference lives."""
    with Writer(name, initial={"n": 0}, retain=1) as writer:
        writer.publish({"n": 1})
        difference = inspect.diff(name)
        for number in range(2, 10):
            writer.publish({"n": number})
        assert [change.new for change in difference] == [1]
        assert [item.version for item in inspect.describe(name).generations if item.marked] == [1, 2][::-1]
        del difference
        assert not [item.version for item in inspect.describe(name).generations if item.marked]


def test_diff_while_versions_are_published_as_fast_as_possible(name: str) -> None:
    """Each diff is of two whole versions, the one after the other, also where only few are kept."""
    code = (
        "import sys, shmcow\nwith shmcow.Writer(sys.argv[1], retain=1) as writer:\n"
        "    print(flush=True)\n    while True:\n        writer.publish({'n': writer.version + 1, 'same': 1})"
    )
    with Writer(name, initial={"n": 1, "same": 1}, retain=1) as writer:
        writer.publish({"n": 2, "same": 1})
        command = [sys.executable, "-c", code, name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as publisher:
            try:
                assert publisher.stdout is not None
                publisher.stdout.readline()
                for _ in range(100):
                    difference = inspect.diff(name)
                    (change,) = difference
                    assert (change.path, change.old, change.new) == (
                        ("n",), difference.old_version, difference.new_version,
                    )  # fmt: skip
                assert run("diff", name).returncode == 1
            finally:
                publisher.kill()


def test_diff_of_a_damaged_part_goes_on_with_the_rest(name: str) -> None:
    """What cannot be decoded is compared as bytes; that, and why, is said, and the exit code is 6."""
    codec = Bundle(bad=MsgPack(), good=MsgPack())
    with Writer(name, codec=codec, initial={"bad": {"x": "before"}, "good": {"n": 1}}) as writer:
        writer.publish({"bad": {"x": "after!"}, "good": {"n": 2}})
        (path,) = (path for path in Path("/dev/shm").glob(f"shmcow.{name}.*") if b"after!" in path.read_bytes())
        with path.open("r+b") as segment:
            segment.seek(segment.read().index(b"after!"))
            segment.write(b"AFTER")
        done = run("diff", name)
        assert done.returncode == 6
        bad, good = (line.split("\t") for line in done.stdout.splitlines())
        assert bad[:3] == ["changed", "bad", '{"x":"before"}']
        assert json.loads(bad[3])["what"] == "msgpack"
        assert good == ["changed", "good.n", "1", "2"]
        assert "part 'bad' has the CRC" in done.stderr
        assert "only its bytes were compared" in done.stderr
        assert json.loads(run("diff", name, "--json").stdout)["problems"]


def test_diff_writes_nothing_and_ends_quietly_in_a_closed_pipe(store: str) -> None:
    """No version, no marker that stays; `head` that has seen enough ends it without a word."""
    before = inspect.describe(store)
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "shmcow", "diff", store]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=60, env=environment())
    os.close(theirs)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
    assert inspect.describe(store) == before


def test_values_that_json_has_not_are_shown(name: str) -> None:
    """Keys of MessagePack that are no texts, bytes and times are written somehow, and never are a bug of ours."""
    with Writer(name, initial={1: {None: 1}, "b": b"\xff"}) as writer:
        writer.publish({1: {None: {None: 2}}, "b": b"\xfe", None: {(1, 2): 3}})
        for form in ("table", "json"):
            done = run("diff", name, "-o", form)
            assert (done.returncode, done.stderr) == (1, ""), form
        assert run("get", name).returncode == 0


def test_masks_reach_into_bundles_and_tables(name: str) -> None:
    """A telling name is masked wherever it stands: in a part, in a table's row, or as a key."""
    codec = Bundle(config=MsgPack(), t=Table(key=str), geo=IPTable())
    value: Any = {"config": {"password": "p-1"}, "t": {"token": "p-2", "x": {"secret": "p-3"}}, "geo": []}
    with Writer(name, codec=codec, initial=value) as writer:
        writer.publish(
            {
                "config": {"password": "p-4"},
                "t": {"token": "p-5", "x": {"secret": "p-6"}},
                "geo": [("::/0", {"api_key": "p-7"})],
            }
        )
        outputs = [run("diff", name, "-o", form).stdout for form in ("tsv", "json")]
        outputs += [run("get", name).stdout]
        assert all("p-" not in output and "********" in output for output in outputs), outputs
        assert "p-7" in run("diff", name, "--redact", "").stdout


def test_diff_of_a_damaged_header_is_told(name: str) -> None:
    """What cannot be read is said, with the exit code of that."""
    path = Path(f"/dev/shm/shmcow.{name}-bad")
    path.write_bytes(b"x" * 100)
    try:
        assert "cannot be used" in refused(6, "diff", f"{name}-bad")
    finally:
        os.unlink(path)


@needs_root
def test_diff_of_another_users_store_is_refused(name: str) -> None:
    """A store that is its owner's only exits 5, and nothing of it is shown."""
    with Writer(name, initial={"n": "p-1"}) as writer:
        writer.publish({"n": "p-2"})
        done = ran("diff", name, user=STRANGER)
    assert (done.code, done.out) == (5, "")
    assert "mode= and group=" in done.err
