"""The ``shmcow`` command and ``shmcow set``: what they print and how they exit, run as the real executable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import Bundle, MsgPack, Raw, Reader, Writer
from shmcow.cli import exits, paths
from shmcow.cli.exits import PathNotFoundError

ROOT = Path(shmcow.__file__).parents[1]

SHOP = """
import msgspec

class Pool(msgspec.Struct, frozen=True, omit_defaults=True):
    size: int = 4
    wait: float = 1.0

class Config(msgspec.Struct, frozen=True, rename="camel"):
    max_items: int
    pool: Pool
    hosts: tuple[str, ...] = ()
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def run(*arguments: str, cwd: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shmcow", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, env=environment(), **more)


def refused(code: int, *arguments: str, cwd: Path | None = None) -> str:
    """Run a command that must fail with this code and a message only; return the message."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def typed(name: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(shop))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    import shop as module  # type: ignore[import-not-found]

    with Writer(name, type=module.Config, initial=module.Config(3, module.Pool())):
        return name


def value(name: str) -> Any:
    with Reader(name) as reader:
        return reader.snapshot().copy()


# ---- the command itself ----


def test_help_names_every_command_and_version_is_the_packages() -> None:
    """``--help`` is a page with every command; ``--version`` prints one line."""
    from shmcow.cli.app import COMMANDS

    page = run("--help")
    assert page.returncode == 0
    assert all(f"  {name} " in page.stdout for name in COMMANDS)
    version = run("--version")
    assert (version.returncode, version.stdout) == (0, f"shmcow {shmcow.__version__}\n")


@pytest.mark.parametrize("arguments", [["sett"], ["set"], ["set", "x"], ["set", "a b", "p", "1"], ["--nope"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    """A command, option or argument that does not exist is a usage error."""
    assert "Error" in refused(2, *arguments)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_extra_is_told_in_one_line(missing: str, tmp_path: Path) -> None:
    """Without click or rich the command names the extra to install, and exits 2."""
    code = f"import sys; sys.modules[{missing!r}] = None; from shmcow.cli.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'shmcow[cli]'" in done.stderr


def test_library_imports_neither_click_nor_rich() -> None:
    """Workers never pay for the command line."""
    code = "import sys, shmcow; sys.exit(bool({'click', 'rich', 'shmcow.cli'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_bug_of_ours_exits_70_and_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """An exception that nobody foresaw is called a bug, and shown with ``--debug`` only."""
    from shmcow.cli import app
    from shmcow.cli import set as set_module

    def broken(*_: object) -> None:
        raise ZeroDivisionError("\x1b[2Jdone")

    monkeypatch.setattr(set_module, "check_codec", broken)
    assert app.run(["set", name, "a", "1"]) == 70
    told = capsys.readouterr().err
    assert "bug in shmcow" in told
    assert "Traceback" not in told
    assert "\x1b" not in told
    assert app.run(["--debug", "set", name, "a", "1"]) == 70
    assert "Traceback" in capsys.readouterr().err
    assert app.run(["set", name, "a", "1", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (shmcow.StoreNotFoundError(), 3),
        (shmcow.NotPublishedError(), 3),
        (shmcow.VersionGoneError(), 3),
        (shmcow.StoreDestroyedError(), 3),
        (shmcow.VersionConflictError(1, 2), 4),
        (shmcow.NotOwnerError(), 5),
        (PermissionError(), 5),
        (shmcow.IncompatibleStoreError(), 6),
        (shmcow.CodecMismatchError(), 6),
        (shmcow.DecodeError(), 6),
        (shmcow.CorruptSegmentError(), 6),
        (shmcow.WriterBusyError(), 7),
        (shmcow.WaitTimeoutError(), 7),
        (shmcow.OutOfSharedMemoryError("full"), 8),
        (OSError(28, "full"), 8),
        (shmcow.ValidationError(), 9),
        (KeyError("ours"), None),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: int | None) -> None:
    """The codes are documented, and scripts rely on them."""
    assert exits.exit_code(error) == code


def test_every_shmcow_error_has_an_exit_code() -> None:
    """A new error class needs a decision; ClosedError is a bug of the command line."""
    for known in vars(shmcow.errors).values():
        if isinstance(known, type) and issubclass(known, shmcow.ShmcowError) and not known.__name__.startswith("_"):
            made = known.__new__(known)
            assert (exits.exit_code(made) is None) == (known in (shmcow.ShmcowError, shmcow.ClosedError)), known


# ---- set ----


def test_set_prints_the_new_version_and_keeps_the_rest(name: str) -> None:
    """One part changes; why and who are kept with the version."""
    with Writer(name, initial={"a": {"b": [1, 2, {"c": 0}]}, "keep": "me"}):
        done = run("set", name, "a.b.2.c", '{"x": null}', "--message", "because", "--author", "me")
        assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
        with Reader(name) as reader:
            snapshot = reader.snapshot()
            assert snapshot.value == {"a": {"b": [1, 2, {"c": {"x": None}}]}, "keep": "me"}
            assert (snapshot.message, snapshot.author, snapshot.source) == ("because", "me", "shmcow set")


def test_set_takes_text_negative_numbers_new_keys_and_pointers(name: str) -> None:
    """A VALUE may look like an option, and a key may have dots."""
    with Writer(name, initial={"hosts": ["a", "b"], "a.b": 1, 8080: "web"}):
        for arguments in (
            ("hosts.1", "c", "--string"),
            ("low", "-5"),
            ("/a.b", "2"),
            ("new key", '"é"'),
            ("8080", '"api"'),
        ):
            assert run("set", name, *arguments).returncode == 0
        assert value(name) == {"hosts": ["a", "c"], "a.b": 2, 8080: "api", "low": -5, "new key": "é"}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("hosts.2", "indexes 0 to 1"),
        ("hosts.-1", "indexes 0 to 1"),
        ("db.pool.size", "known keys: hosts, timeout"),
        ("timeout.x", "has no parts"),
        ("/hosts/x", "indexes 0 to 1"),
    ],
)
def test_path_that_does_not_exist_exits_3_and_says_what_does(name: str, path: str, told: str) -> None:
    """Only the last key of a path may be new; nothing is published otherwise."""
    with Writer(name, initial={"hosts": ["a", "b"], "timeout": 1}) as writer:
        assert told in refused(3, "set", name, path, "1")
        assert writer.version == 1


def test_set_of_a_store_that_does_not_exist_exits_3_and_makes_none(name: str) -> None:
    """A typing error in a name must not create a store."""
    assert name in refused(3, "set", name, "a", "1")
    assert name not in shmcow.list_stores()


def test_set_of_an_empty_store_exits_3(name: str) -> None:
    """There is nothing to change a part of."""
    with Writer(name):
        assert "no version has been published" in refused(3, "set", name, "a", "1")


def test_value_that_is_no_json_says_how_to_write_it(name: str) -> None:
    """The message shows the value quoted, and names --string."""
    with Writer(name, initial={}):
        told = refused(2, "set", name, "banner", "hi")
        assert "'\"hi\"'" in " ".join(told.split())
        assert "--string" in told
        refused(2, "set", name, "a..b", "1")


def test_set_changes_a_part_of_a_bundle(name: str) -> None:
    """The first step is the part; the others keep their segments, and a part that is not there is named."""
    codec = Bundle(config=MsgPack(), blob=Raw())
    with Writer(name, codec=codec, initial={"config": {"a": {"b": 1}}, "blob": b"x"}) as writer:
        assert run("set", name, "config.a.b", "2").returncode == 0
        assert writer.snapshot().value.config == {"a": {"b": 2}}
        assert run("set", name, "config", "7").returncode == 0
        assert writer.snapshot().value._asdict() == {"config": 7, "blob": b"x"}
        assert len({generation.segments[1] for generation in shmcow.describe(name).generations}) == 1
        assert "known keys: config, blob" in refused(3, "set", name, "zoo", "1")
        assert "part 'blob'" in refused(9, "set", name, "blob", "1")
        assert "no parts" in refused(3, "set", name, "blob.a", "1")


def test_set_in_a_store_of_another_codec_exits_6(name: str) -> None:
    """Raw bytes and tables are published by programs, and the message says so."""
    with Writer(name, codec=Raw(), initial=b"bytes"):
        assert "the codec 'raw', and only values of msgpack and json" in refused(6, "set", name, "a", "1")


def test_something_else_of_that_name_exits_6(name: str) -> None:
    """A file that is no store is not touched."""
    path = Path(f"/dev/shm/shmcow.{name}")
    path.write_bytes(b"something else" * 100)
    try:
        assert name in refused(6, "set", name, "a", "1")
        assert path.read_bytes() == b"something else" * 100
    finally:
        path.unlink()


def test_busy_writer_exits_7(name: str) -> None:
    """The writer lock is waited for, not stolen."""
    with Writer(name, initial={}) as writer, writer.edit():
        assert "lock" in refused(7, "set", name, "a", "1")


def test_full_store_exits_8(name: str) -> None:
    """No room: the current version stays."""
    with Writer(name, initial={}, max_total_bytes=10_000) as writer:
        refused(8, "set", name, "a", "x" * 20_000, "--string")
        assert writer.version == 1


def test_number_that_no_codec_takes_exits_9(name: str) -> None:
    """What a writer refuses, the command refuses."""
    with Writer(name, initial={"n": 1}) as writer:
        refused(9, "set", name, "n", "123456789012345678901234567890")
        assert writer.version == 1


def test_typed_store_asks_for_its_type(typed: str) -> None:
    """Without the type nobody could check the value."""
    told = refused(6, "set", typed, "maxItems", "4")
    assert "shop.Config" in told
    assert "--type" in told


def test_typed_set_checks_fields_and_values(typed: str, shop: Path) -> None:
    """Paths are those of the stored form; what the type does not know or take is refused."""

    def with_type(*arguments: str) -> tuple[str, ...]:
        return ("set", typed, *arguments, "--type", "shop:Config")

    assert run(*with_type("maxItems", "4"), cwd=shop).stdout == "2\n"
    assert run(*with_type("pool.size", "9"), cwd=shop).stdout == "3\n"
    assert run(*with_type("hosts", '["a"]'), cwd=shop).stdout == "4\n"
    assert run(*with_type("hosts.0", "b", "--string"), cwd=shop).stdout == "5\n"
    assert run(*with_type("pool.size", "4"), cwd=shop).stdout == "6\n"
    assert value(typed) == {"maxItems": 4, "pool": {}, "hosts": ["b"]}
    assert run(*with_type("pool.size", "4"), cwd=shop).stdout == "7\n"  # its default, which is not stored
    assert "size, wait" in refused(3, *with_type("pool.siez", "9"), cwd=shop)
    assert "maxItems" in refused(3, *with_type("max_items", "9"), cwd=shop)
    assert "$.maxItems" in refused(9, *with_type("maxItems", '"many"'), cwd=shop)


@pytest.mark.parametrize(
    ("given", "told"),
    [("shop", "module:Class"), ("nowhere:X", "nowhere"), ("shop:Nope", "Nope"), ("broken:X", "ZeroDivisionError")],
)
def test_type_that_cannot_be_imported_exits_2(typed: str, shop: Path, given: str, told: str) -> None:
    """Whatever is wrong with --type is a usage error."""
    (shop / "broken.py").write_text("1 / 0")
    assert told in refused(2, "set", typed, "maxItems", "1", "--type", given, cwd=shop)


def test_concurrent_sets_lose_nothing(name: str) -> None:
    """Eight processes that set a key each end with eight keys."""
    with Writer(name, initial={}) as writer:
        command = [sys.executable, "-m", "shmcow", "set", name]
        running = [
            subprocess.Popen([*command, f"k{n}", str(n)], stdout=subprocess.PIPE, text=True, env=environment())
            for n in range(8)
        ]
        printed = sorted(int(process.communicate(timeout=60)[0]) for process in running)
        assert printed == list(range(2, 10))
        assert writer.version == 9
        assert value(name) == {f"k{n}": n for n in range(8)}


# ---- paths ----


@pytest.mark.parametrize(
    ("text", "steps"),
    [("a", ("a",)), ("a.0.b", ("a", "0", "b")), ("/a.b/c~1d/~01", ("a.b", "c/d", "~1")), ("/", ("",))],
)
def test_paths_are_dotted_or_json_pointers(text: str, steps: tuple[str, ...]) -> None:
    """Both name the same steps."""
    assert paths.parse_path(text) == steps


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b"])
def test_empty_step_is_refused(text: str) -> None:
    """A dotted path has no empty steps."""
    with pytest.raises(ValueError, match="dots"):
        paths.parse_path(text)


def test_replacing_leaves_the_old_value_alone() -> None:
    """Values are shared; a new one is made."""
    old = {"a": [{"b": 1}], "c": {"d": 2}}
    new = paths.replaced(old, ("a", "0", "b"), 5)
    assert old == {"a": [{"b": 1}], "c": {"d": 2}}
    assert new == {"a": [{"b": 5}], "c": {"d": 2}}
    assert new["c"] is old["c"]


def test_new_key_among_whole_numbers_is_a_number() -> None:
    """A table by number stays one."""
    assert paths.replaced({1: "a"}, ("2",), "b") == {1: "a", 2: "b"}
    assert paths.replaced({}, ("2",), "b") == {"2": "b"}


def test_array_like_struct_is_set_by_index() -> None:
    """Its stored form is a list."""

    class Point(msgspec.Struct, frozen=True, array_like=True):
        x: int
        y: int

    codec = shmcow.MsgPack(Point)
    assert paths.replaced_typed(Point(1, 2), ("1",), 7, codec) == Point(1, 7)
    with pytest.raises(PathNotFoundError, match="indexes 0 to 1"):
        paths.replaced_typed(Point(1, 2), ("2",), 7, codec)
