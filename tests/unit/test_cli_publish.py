"""``shmcow publish``, ``unset`` and ``set``: run as the real executable, in each form, with each way to fail."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_cli import environment, refused, run

import shmcow
from shmcow import Bundle, MsgPack, Raw, Reader, Table, Writer
from shmcow.cli import app, paths
from shmcow.cli.exits import PathNotFoundError
from shmcow.cli.hints import type_option
from shmcow.cli.inputs import opened
from shmcow.errors import CodecMismatchError, ValidationError

SHOP = """
import msgspec
from shmcow import Bundle, MsgPack, Table

class Limits(msgspec.Struct, frozen=True):
    max: int
    min: int = 0

class Country(msgspec.Struct, frozen=True):
    name: str
    pop: int

PARTS = Bundle(limits=MsgPack(Limits), names=Table(key=str, value=str))
LIMITS = MsgPack(Limits)
NUMBER = 7

def no_shrink(old, new):
    if old is not None and len(new) < len(old):
        raise ValueError(f"{len(old)} before, {len(new)} now")
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of types; the command runs in it."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # --type adds the folder
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    return tmp_path


def put(name: str, content: object) -> str:
    data = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(data if isinstance(data, bytes) else msgspec.json.encode(data))
    return name


def value(name: str) -> Any:
    with Reader(name) as reader:
        return reader.snapshot().copy()


def called(code: int, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Run a command in this process, which saves its start; return what it printed."""
    assert app.run(list(arguments)) == code, capsys.readouterr()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out, printed.err


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="acts as another user; needs root: run as root, as .ci/run does"
)


def as_stranger(*commands: list[str]) -> tuple[list[int], str]:
    """Run commands as a user who owns nothing, in this folder; return how they exit, and what they print."""
    # The modules are imported first: this user may not be able to read where they lie.
    code = (
        "import os, sys; from shmcow.cli import app, export, import_, publish; import msgspec.json, shutil\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); os.umask(0)\n"
        f"codes = [app.run(arguments) for arguments in {commands!r}]\n"
        "print(*codes, file=sys.stderr)"
    )
    Path(".").chmod(0o755)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment())
    assert "Traceback" not in ran.stderr, ran.stderr
    return [int(word) for word in ran.stderr.splitlines()[-1].split()], ran.stdout


# ---- publish ----


@pytest.mark.usefixtures("shop")
def test_publish_makes_the_store_and_prints_the_version(name: str) -> None:
    """Numbers on stdout, words on stderr; who, why and from what are kept; JSON says more."""
    put("c.json", {"a": 1})
    made = run("publish", name, "c.json", "--message", "why", "--author", "ann", "--mode", "640")
    assert (made.returncode, made.stdout, made.stderr) == (0, "1\n", f"made the store {name}\n")
    with Reader(name) as reader:
        snapshot = reader.snapshot()
        said = snapshot.value, snapshot.message, snapshot.author, snapshot.source
        assert said == ({"a": 1}, "why", "ann", "shmcow publish c.json")
    assert shmcow.describe(name).mode == 0o640
    piped = run("publish", name, "-", "--expected", "1", "-o", "json", input='{"a": 2}')
    assert piped.stderr == ""
    assert json.loads(piped.stdout) == {
        "schema": 1,
        "version": 2,
        "changed": True,
        "created": False,
        "dry_run": False,
        "size_bytes": 4,
        "codec": "msgpack",
        "type_name": "",
    }
    assert value(name) == {"a": 2}


@pytest.mark.usefixtures("shop")
def test_publish_only_what_changed_and_only_as_a_trial(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--if-changed prints the current version; --dry-run says what would happen; neither publishes."""
    put("c.json", {"a": 1})
    out, err = called(0, capsys, "publish", name, "c.json", "--dry-run")
    assert out == f"would publish version 1 of {name}: 4 B of msgpack, and make the store\n"
    assert err == ""
    assert name not in shmcow.list_stores()
    called(0, capsys, "publish", name, "c.json")
    assert called(0, capsys, "publish", name, "c.json", "--if-changed") == (
        "1\n",
        f"nothing changed: version 1 of {name} has these bytes\n",
    )
    out, _ = called(0, capsys, "publish", name, "c.json", "--if-changed", "--dry-run")
    assert "would publish nothing" in out
    out, err = called(0, capsys, "publish", name, "c.json", "--dry-run", "--json")
    assert (json.loads(out)["version"], json.loads(out)["dry_run"], err) == (2, True, "")
    _, err = called(4, capsys, "publish", name, "c.json", "--dry-run", "--expected", "7")
    assert "expected version 7" in err
    assert shmcow.describe(name).version == 1


@pytest.mark.usefixtures("shop")
def test_publish_takes_each_format(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the file's suffix, or as told."""
    put("a.toml", "[db]\nsize = 3\n")
    put("b.msgpack", msgspec.msgpack.encode({"db": 4}))
    put("c.txt", '{"db": 5}')
    for arguments, wanted in (
        (["a.toml"], {"db": {"size": 3}}),
        (["b.msgpack"], {"db": 4}),
        (["c.txt", "--format", "json"], {"db": 5}),
    ):
        called(0, capsys, "publish", name, *arguments)
        assert value(name) == wanted
    _, err = called(6, capsys, "publish", name, "c.txt", "--format", "raw")
    assert "the codec 'msgpack', found 'raw'" in err
    assert "--force" in err
    called(0, capsys, "publish", name, "c.txt", "--format", "raw", "--force")
    with Reader(name) as reader:
        assert bytes(reader.get()) == b'{"db": 5}'
        assert reader.snapshot().source == "shmcow publish c.txt (forced)"


def test_publish_takes_yaml_or_says_what_to_install(
    name: str, shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyYAML is optional."""
    put("a.yaml", "db: {size: 3}\n")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "yaml", None)
        _, err = called(2, capsys, "publish", name, "a.yaml")
        assert "pip install 'shmcow[yaml]'" in err
    pytest.importorskip("yaml", reason="needs PyYAML: pip install 'shmcow[yaml]'")
    called(0, capsys, "publish", name, "a.yaml")
    assert value(name) == {"db": {"size": 3}}
    put("a.yaml", "a: 1\nb: [1\n")
    _, err = called(9, capsys, "publish", name, str(shop / "a.yaml"))
    assert "a.yaml, line 3, column 1: YAML is malformed" in err


@pytest.mark.usefixtures("shop")
def test_publish_makes_tables_of_csv(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and values by column, with a type of the values, and with the kind of keys that the store has."""
    put("t.csv", "code,name,pop\n1,Germany,80\n2,France,60\n")
    called(0, capsys, "publish", name, "t.csv", "--key", "code", "--key-type", "int", "--type", "shop:Country")
    called(0, capsys, "publish", name, "t.csv", "--key", "code", "--type", "shop:Country", "--if-changed")
    assert run("get", name, "2").stdout == '{"name":"France","pop":60}\n'
    assert shmcow.describe(name).version == 1
    _, err = called(6, capsys, "publish", name, "t.csv", "--key", "code")
    assert "shop.Country" in err
    assert "--type" in err
    put("t.csv", "code,name,pop\n1,Germany,80\n1,France,60\n")
    _, err = called(9, capsys, "publish", name, "t.csv", "--key", "code", "--type", "shop:Country")
    assert "line 3 of t.csv: row 2: the key 1 is repeated" in err
    for arguments, told in (
        (["t.csv"], "--key"),
        (["t.csv", "--key", "code", "--delimiter", "::"], "one character"),
        (["shop.py", "--format", "json", "--key", "a"], "--key is for CSV"),
    ):
        assert told in called(2, capsys, "publish", name, *arguments)[1]


@pytest.mark.usefixtures("shop")
def test_publish_makes_ip_tables_of_csv(name: str) -> None:
    """Out of a pipe, too."""
    text = "network;cc\n1.1.1.0/24;AU\n8.8.8.0-8.8.8.255;US\n"
    arguments = ("publish", name, "-", "--format", "csv", "--ip", "--key", "network", "--delimiter", ";")
    assert run(*arguments, input=text).stdout == "1\n"
    assert run("get", name, "8.8.8.8").stdout == "US\n"
    bad = run(*arguments, input=text + "9.9.9.1/24;XX\n")
    assert bad.returncode == 9
    assert "line 4 of standard input (9.9.9.1/24): " in bad.stderr


@pytest.mark.usefixtures("shop")
def test_publish_takes_a_maxmind_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is."""
    pytest.importorskip("maxminddb", reason="needs maxminddb: pip install 'shmcow[mmdb]'")
    writer = pytest.importorskip("mmdb_writer", reason="needs mmdb_writer: pip install mmdb_writer")
    netaddr = pytest.importorskip("netaddr", reason="comes with mmdb_writer")
    made = writer.MMDBWriter(4, "Test")
    made.insert_network(netaddr.IPSet(["1.1.1.0/24"]), {"cc": "AU"})
    made.to_db_file("g.mmdb")
    called(0, capsys, "publish", name, "g.mmdb")
    assert run("get", name, "1.1.1.1").stdout == '{"cc":"AU"}\n'
    put("g.mmdb", b"no such file")
    _, err = called(9, capsys, "publish", name, "g.mmdb")
    assert "MaxMind" in err


@pytest.mark.usefixtures("shop")
def test_typed_store_asks_for_its_type(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a writer refuses is refused: exit 6 without the type, 9 where it does not fit; --force is recorded."""
    put("l.json", {"max": 3})
    called(0, capsys, "publish", name, "l.json", "--type", "shop:Limits")
    _, err = called(6, capsys, "publish", name, "l.json")
    assert "published as shop.Limits" in err
    assert "--type" in err
    called(6, capsys, "publish", name, "l.json", "--dry-run")
    put("bad.json", {"max": "many"})
    _, err = called(9, capsys, "publish", name, "bad.json", "--type", "shop:Limits")
    assert "$.max" in err
    put("bad.json", {"max": 3, "mxi": 4})
    _, err = called(9, capsys, "publish", name, "bad.json", "--type", "shop:Limits")
    assert "no field 'mxi'" in err
    put("c.json", {"name": "x", "pop": 1})
    _, err = called(6, capsys, "publish", name, "c.json", "--type", "shop:Country", "--dry-run")
    assert "cannot be read as shop.Country" in err
    called(0, capsys, "publish", name, "c.json", "--type", "shop:Country", "--dry-run", "--force")
    called(6, capsys, "set", name, "max", "1")
    assert shmcow.describe(name).version == 1
    called(0, capsys, "publish", name, "bad.json", "--force")
    assert shmcow.describe(name).generations[0].source == "shmcow publish bad.json (forced)"
    called(0, capsys, "publish", name, "l.json", "--type", "shop:Limits")
    called(0, capsys, "set", name, "max", '"x"', "--force")
    assert shmcow.describe(name).generations[0].source == "shmcow set (forced)"


@pytest.mark.usefixtures("shop")
def test_bundle_is_published_from_one_document(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With a codec object where parts have types."""
    put("b.json", {"limits": {"max": 3}, "names": {"de": "Germany"}})
    called(0, capsys, "publish", name, "b.json", "--type", "shop:PARTS")
    called(0, capsys, "publish", name, "b.json", "--type", "shop:PARTS", "--if-changed")
    assert shmcow.describe(name).version == 1
    assert run("get", name, "names.de").stdout == "Germany\n"
    _, err = called(6, capsys, "publish", name, "b.json", "--type", "shop:Limits")
    assert "'bundle'" in err


@pytest.mark.usefixtures("shop")
def test_validators_of_the_user_are_asked(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Any function of a module, with the old value and the new one."""
    put("c.json", [1, 2])
    check = ("--validate", "shop:no_shrink")
    called(0, capsys, "publish", name, "c.json", *check)
    put("c.json", [1])
    for more in ((), ("--dry-run",)):
        _, err = called(9, capsys, "publish", name, "c.json", *check, *more)
        assert "refused by no_shrink: ValueError: 2 before, 1 now" in err
    called(2, capsys, "publish", name, "c.json", "--validate", "shop:nothing")
    called(2, capsys, "publish", name, "c.json", "--validate", "shop:NUMBER")
    assert shmcow.describe(name).version == 1


@pytest.mark.usefixtures("shop")
def test_what_is_wrong_with_a_file_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Line and column; usage errors for a name that leads nowhere; no store is made."""
    put("bad.json", '{"a": 1,\n "b": }')
    put("bad\x1b[2J.toml", "a = \n")
    for arguments, code, told in (
        (["bad.json"], 9, "bad.json, line 2, column 7: JSON is malformed"),
        (["bad\x1b[2J.toml"], 9, r"bad\x1b[2J.toml, line 1, column 5: TOML is malformed"),
        (["no.json"], 2, "no.json: No such file"),
        ([".", "--format", "json"], 2, "Is a directory"),
        (["x" * 300 + ".json"], 2, "name too long"),
        (["bad.zip"], 2, "--format json|toml"),
        (["bad.json", "--mode", "777"], 2, "only the owner writes"),
        (["bad.json", "--mode", "9"], 2, "--mode"),
        (["bad.json", "--group", "no-such-group"], 2, "no group"),
    ):
        out, err = called(code, capsys, "publish", name, *arguments)
        assert out == ""
        assert told in err
        assert "\x1b" not in err
    put("good.json", "1")
    assert "no store" in called(3, capsys, "publish", name, "good.json", "--no-create")[1]
    assert "no store" in called(3, capsys, "publish", name, "good.json", "--expected", "3")[1]
    assert name not in shmcow.list_stores()


def test_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cron does it."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Exception, match="is closed"), opened("-"):
        pass


@pytest.mark.usefixtures("shop")
def test_busy_and_full_stores_have_their_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """7 where another writer does not end, 8 where there is no room, and the value stays."""
    put("big.bin", b"x" * 50_000)
    put("c.bin", b"y")
    with Writer(name, codec=Raw(), initial=b"x", max_total_bytes=20_000) as writer:
        called(8, capsys, "publish", name, "big.bin")
        called(8, capsys, "publish", name, "big.bin", "--dry-run")
        with writer._turn(recreate=False):
            called(0, capsys, "publish", name, "c.bin", "--dry-run")
            assert "lock" in called(7, capsys, "publish", name, "c.bin")[1]
        assert bytes(writer.snapshot().value) == b"x"


@needs_root
@pytest.mark.usefixtures("shop")
def test_store_of_another_user_exits_5(name: str) -> None:
    """For a trial, too; and a file that may not be read."""
    put("c.json", "1")
    Path("secret.json").write_text("1")
    Path("secret.json").chmod(0o600)
    with Writer(name, initial=1, mode=0o644):
        arguments = [
            ["publish", name, "c.json"],
            ["publish", name, "c.json", "--dry-run"],
            ["publish", name, "secret.json"],
        ]
        assert as_stranger(*arguments) == ([5, 5, 5], "")


@pytest.mark.usefixtures("shop")
def test_large_input_shows_a_bar_on_a_terminal_only(name: str) -> None:
    """On stderr, drawn by rich; in a pipe nothing."""
    size = 9 << 20
    with open("big.bin", "wb") as file:
        file.truncate(size)
    command = [sys.executable, "-m", "shmcow", "publish", name, "big.bin"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment() | {"TERM": "xterm"}) as ran:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # the other end was closed
            pass
        assert ran.stdout is not None
        assert ran.stdout.read() == b"1\n"
        assert ran.wait(60) == 0
    os.close(ours)
    assert b"reading big.bin" in seen
    assert run(*command[3:]).stderr == ""


# ---- unset, and set's JSON ----


def test_unset_removes_keys_and_items(name: str) -> None:
    """One part goes, the rest stays; the same options as set."""
    with Writer(name, initial={"a": {"b": [1, 2, 3]}, "c": 1, 8080: "web"}):
        first = run("unset", name, "a.b.1", "--message", "because", "--author", "me")
        assert (first.returncode, first.stdout, first.stderr) == (0, "2\n", "")
        assert json.loads(run("unset", name, "c", "-o", "json").stdout) == {"schema": 1, "version": 3}
        assert run("unset", name, "8080", "--json").stdout == '{"schema":1,"version":4}\n'
        assert json.loads(run("set", name, "d", "-5", "--json").stdout) == {"schema": 1, "version": 5}
        assert value(name) == {"a": {"b": [1, 3]}, "d": -5}
        oldest = shmcow.describe(name).generations[-2]
        assert (oldest.message, oldest.author, oldest.source) == ("because", "me", "shmcow unset")
        assert "known keys: a, d" in refused(3, "unset", name, "zoo")


@pytest.mark.usefixtures("shop")
def test_unset_of_a_field_is_its_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If it has one; without the type nothing is changed."""
    put("l.json", {"max": 3, "min": 2})
    called(0, capsys, "publish", name, "l.json", "--type", "shop:Limits")
    assert "--type" in called(6, capsys, "unset", name, "min")[1]
    called(0, capsys, "unset", name, "min", "--type", "shop:Limits")
    assert value(name) == {"max": 3, "min": 0}
    assert "max" in called(9, capsys, "unset", name, "max", "--type", "shop:Limits")[1]
    called(0, capsys, "unset", name, "max", "--force")
    assert value(name) == {"min": 0}


def test_concurrent_unsets_lose_nothing(name: str) -> None:
    """Each removes its own key."""
    with Writer(name, initial={f"k{n}": n for n in range(6)} | {"keep": 1}):
        command = [sys.executable, "-m", "shmcow", "unset", name]
        running = [subprocess.Popen([*command, f"k{n}"], stdout=subprocess.PIPE, env=environment()) for n in range(6)]
        assert sorted(int(process.communicate(timeout=60)[0]) for process in running) == list(range(2, 8))
        assert value(name) == {"keep": 1}


def test_removing_leaves_the_old_value_alone() -> None:
    """Values are shared; a new one is made."""
    old = {"a": [{"b": 1}, 2], "c": {"d": 2}}
    assert paths.removed(old, ("a", "0", "b")) == {"a": [{}, 2], "c": {"d": 2}}
    assert paths.removed(old, ("a", "0")) == {"a": [2], "c": {"d": 2}}
    assert old == {"a": [{"b": 1}, 2], "c": {"d": 2}}
    for steps in (("a", "2"), ("zoo",), ("c", "d", "e")):
        with pytest.raises(PathNotFoundError):
            paths.removed(old, steps)


def test_bundle_keeps_its_parts(name: str) -> None:
    """Inside a part a key can go; the part itself cannot."""
    codec = Bundle(config=MsgPack(), groups=Table(key=str, value=int))
    with Writer(name, codec=codec, initial={"config": {"a": 1}, "groups": {}}) as writer:
        view = writer.snapshot().value
        assert paths.removed_typed(view, ("config", "a"), codec).config == {}
        with pytest.raises(ValidationError, match="cannot be removed"):
            paths.removed_typed(view, ("config",), codec)
        with pytest.raises(PathNotFoundError):
            paths.removed_typed(view, ("zoo",), codec)
        del view


@pytest.mark.usefixtures("shop")
def test_an_empty_download_does_not_empty_a_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without its header is refused; one with a header and no rows is an empty table."""
    called(0, capsys, "publish", name, put("t.csv", "k,v\na,1\n"), "--key", "k")
    assert "it is empty" in called(9, capsys, "publish", name, put("t.csv", ""), "--key", "k")[1]
    assert run("get", name, "a").stdout == "1\n"
    called(0, capsys, "publish", name, put("t.csv", "k,v\n"), "--key", "k")
    shmcow.destroy(name)


@pytest.mark.usefixtures("shop")
def test_documents_that_parsers_trip_over(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of thousands of digits, and tags that do not fit, are the file's fault."""
    files = [("x.json", "9" * 5000), ("x.toml", "x = " + "9" * 5000)]
    files += [("x.yaml", text) for text in ("!!int ''", "!!bool x", "!!timestamp x", "9" * 5000)]
    for path, text in files:
        assert path in called(9, capsys, "publish", name, put(path, text))[1]
    called(2, capsys, "publish", name, "/proc/self/mem", "--format", "raw")
    for arguments in (("publish", name, "x.json", "--expected"), ("export", name, "f.x", "--at")):
        called(2, capsys, *arguments, "9" * 30)
    assert name not in shmcow.list_stores()


@pytest.mark.usefixtures("shop")
def test_code_that_is_named_and_ends_the_process(name: str) -> None:
    """sys.exit() in it must not look as if the value had been published."""
    put("ends.py", "import sys; sys.exit(0)")
    put("checks.py", "import sys\ndef check(old, new): sys.exit(0)\n")
    put("x.json", "{}")
    assert "SystemExit" in refused(2, "publish", name, "x.json", "--type", "ends:X")
    assert "sys.exit(0)" in refused(9, "publish", name, "x.json", "--validate", "checks:check")


def test_type_does_not_replace_what_is_installed(shop: Path, name: str) -> None:
    """In a folder such as /tmp a file of somebody's must not be imported for a module of Python's."""
    (shop / "tomllib.py").write_text("raise SystemExit('not this one')")
    (shop / "x.toml").write_text("a = 1")
    root = environment()["PYTHONPATH"].split(os.pathsep)[0]
    code = "import sys; del sys.path[0]\n"
    code += "from shmcow.cli.app import run\n"
    code += f"sys.exit(run(['publish', {name!r}, 'x.toml', '--type', 'builtins:dict', '--dry-run']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=shop, env=os.environ | {"PYTHONPATH": root}
    )
    assert done.returncode == 0, done.stderr


def test_set_does_not_quote_a_secret(name: str) -> None:
    """A text without quotes is the commonest mistake, and stderr ends in logs."""
    with Writer(name, initial={"db": {"password": "old"}}):
        assert "hunter2" not in refused(2, "set", name, "db.password", "hunter2")


# ---- parts of a bundle that have a type ----


@pytest.fixture
def parts(name: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bundle of a typed config, a typed table and plain values."""
    monkeypatch.syspath_prepend(str(shop))
    import shop as module  # type: ignore[import-not-found]

    codec = Bundle(limits=MsgPack(module.Limits), names=Table(key=str, value=str), extra=MsgPack())
    with Writer(name, codec=codec, initial={"limits": module.Limits(3), "names": {"a": "b"}, "extra": {"k": 1}}):
        return name


@pytest.mark.parametrize("given", ["shop:Limits", "shop:LIMITS", "shop:PARTS"])
def test_typed_part_is_changed_with_its_type(parts: str, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its class, its codec or the whole Bundle: only that part is published, and a value that does not fit is not."""
    assert called(0, capsys, "set", parts, "limits.max", "4", "--type", given)[0] == "2\n"
    assert called(0, capsys, "set", parts, "limits", '{"max": 5, "min": 2}', "--type", given)[0] == "3\n"
    assert called(0, capsys, "unset", parts, "limits.min", "--type", given)[0] == "4\n"
    assert value(parts)["limits"] == {"max": 5, "min": 0}
    assert "$.max" in called(9, capsys, "set", parts, "limits.max", '"many"', "--type", given)[1]
    assert "max, min" in called(3, capsys, "set", parts, "limits.nope", "1", "--type", given)[1]
    report = shmcow.describe(parts)
    assert report.version == 4
    assert len({item.segments[1:] for item in report.generations}) == 1
    import shop as module

    whole = Bundle(limits=MsgPack(module.Limits), names=Table(key=str, value=str), extra=MsgPack())
    with Writer(parts, codec=whole) as writer:
        writer.publish_parts(names={"c": "d"})
    with Reader(parts, codec=whole, on_bad="raise") as reader:
        assert (reader.get().limits, dict(reader.get().names)) == (module.Limits(5), {"c": "d"})


def test_plain_part_beside_typed_ones_needs_no_type(parts: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And what the store says of its type stays; a typed part without its type is refused, with what to type."""
    before = shmcow.describe(parts).generations[0].type_name
    called(0, capsys, "set", parts, "extra.k", "2")
    assert shmcow.describe(parts).generations[0].type_name == before
    for command in (("set", parts, "limits.max", "4"), ("unset", parts, "limits.min")):
        told = called(6, capsys, *command)[1]
        assert "part 'limits' of store" in told
        assert "--type shop:Limits (--force" in told
    # A part that lost its check may not look checked afterwards.
    with (
        Writer(parts, codec=Bundle(limits=MsgPack())) as writer,
        pytest.raises(CodecMismatchError, match="with a type"),
    ):
        writer.publish_parts(limits={"max": 1})
    assert "names is of the codec 'table'" in called(3, capsys, "set", parts, "names.a", "1", "--force")[1]
    called(0, capsys, "set", parts, "limits.max", "many", "--string", "--force")
    assert shmcow.describe(parts).generations[0].source == "shmcow set (forced)"
    assert value(parts)["limits"] == {"max": "many", "min": 0}


@pytest.mark.usefixtures("shop")
def test_codec_object_is_taken_by_set(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As by publish; a table is refused before anything is said about VALUE."""
    called(0, capsys, "publish", name, put("l.json", {"max": 3}), "--type", "shop:LIMITS")
    called(0, capsys, "set", name, "max", "4", "--type", "shop:LIMITS")
    assert value(name) == {"max": 4, "min": 0}
    assert "give --type shop:Limits (" in called(6, capsys, "set", name, "max", "5")[1]
    called(0, capsys, "publish", name, put("t.bin", b"x"), "--force")
    told = called(6, capsys, "set", name, "a", "no json")[1]
    assert "the codec 'raw'" in told


@pytest.mark.parametrize(
    ("published", "typed"),
    [
        ("app_config.Config", "--type app_config:Config"),
        ("shop.config.Outer.Inner", "--type shop.config:Outer.Inner"),
        ("str", "--type builtins:str"),
        ("IPTable[str]", "--type builtins:str"),
        ("Table[int, shop.Country]", "--type shop:Country"),
        ("dict[str, int]", "--type MODULE:NAME, a class or codec object for dict[str, int]"),
        ("__main__.Config", "--type MODULE:NAME, a class or codec object for __main__.Config"),
    ],
)
def test_type_is_told_as_it_is_typed(published: str, typed: str) -> None:
    """Ready to paste where the name says enough."""
    assert type_option(published) == typed


# ---- more of publish ----


@pytest.mark.usefixtures("shop")
def test_publish_limits_a_new_store(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One that exists keeps its limits, and that is said."""
    limits = ("--retain", "1", "--max-total-bytes", "50000")
    called(0, capsys, "publish", name, put("c.json", 1), *limits)
    report = shmcow.describe(name)
    assert (report.retain, report.max_total_bytes) == (1, 50000)
    assert "keeps its limits" in called(0, capsys, "publish", name, "c.json", "--retain", "9")[1]
    assert shmcow.describe(name).retain == 1
    called(2, capsys, "publish", name, "c.json", "--retain", "-1")


@pytest.mark.usefixtures("shop")
def test_header_that_was_not_expected_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns by number mean no header, unless --header says so."""
    put("t.csv", "code,cc\n1,DE\n")
    put("ip.csv", "network,cc\n1.1.1.0/24,AU\n")
    told = "(a header? name the column, or give --header)"
    assert told in called(9, capsys, "publish", name, "t.csv", "--key", "0", "--key-type", "int")[1]
    assert told in called(9, capsys, "publish", name, "ip.csv", "--ip")[1]
    assert told not in called(9, capsys, "publish", name, "ip.csv", "--ip", "--no-header")[1]
    called(0, capsys, "publish", name, "ip.csv", "--ip", "--header")


@pytest.mark.usefixtures("shop")
def test_usage_is_shown_for_wrong_usage_only(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not there, a package that is missing, nobody to ask, no key of a table: one line, exit 2."""
    put("a.yaml", "a: 1\n")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "yaml", None)
        assert called(2, capsys, "publish", name, "a.yaml")[1].startswith("shmcow: ")
    assert called(2, capsys, "publish", name, "no.json")[1] == "shmcow: no.json: No such file or directory\n"
    put("ip.csv", "network,cc\n1.1.1.0/24,AU\n")
    called(0, capsys, "publish", name, "ip.csv", "--ip", "--key", "network")
    told = called(2, capsys, "get", name, "nonsense")[1]
    assert told.startswith("shmcow: 'nonsense' is no key of this table")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "Usage" not in called(2, capsys, "rm", name)[1]
    assert "Usage" in called(2, capsys, "publish", name, "ip.csv", "--nope")[1]
    missing = f"there is no store {name}-2 (no /dev/shm/shmcow.{name}-2)"
    assert missing in called(3, capsys, "publish", f"{name}-2", "ip.csv", "--ip", "--header", "--no-create")[1]
