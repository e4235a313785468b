"""Bad input: each a specific error that says what to do; the current version stays, and nothing is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import JSON, MsgPack, Raw, Reader, Writer

SHM = Path("/dev/shm")


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0
    hosts: tuple[str, ...] = ()


class Mutable(msgspec.Struct):
    x: int = 0


@dataclasses.dataclass
class MutableData:
    x: int = 0


class Outer(msgspec.Struct, frozen=True):
    inner: dict[str, list[Mutable]]


class OuterData(msgspec.Struct, frozen=True):
    pair: tuple[int, MutableData]


class Loop(msgspec.Struct, frozen=True):
    again: Loop | None = None
    bad: Mutable | None = None


def objects(name: str) -> list[str]:
    return sorted(
        entry for entry in os.listdir(SHM) if entry == f"shmcow.{name}" or entry.startswith(f"shmcow.{name}.")
    )


def no_store_has(prefix: str) -> bool:
    return not any(entry.startswith(f"shmcow.{prefix}") for entry in os.listdir(SHM))


# ---- names ----


BAD_NAMES = ["", " ", "a b", "a.b", "a/b", "../x", "a\n", "a\0b", "ä", "a:b", "x" * 65, "x" * 1_000_000, "\udc80", "."]


@pytest.mark.parametrize("bad", BAD_NAMES, ids=lambda bad: repr(bad[:8]))
@pytest.mark.parametrize("call", [Writer, Reader, shmcow.describe, shmcow.destroy])
def test_bad_names_are_refused_with_the_rule(call: Callable[[str], Any], bad: str) -> None:
    """A name with other characters, or too long, is a ValueError of readable length."""
    with pytest.raises(ValueError, match=r"bad store name .*expected 1 to 64 of the characters") as caught:
        call(bad)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", [None, 5, b"bytes", ["a"], Path("x")])
@pytest.mark.parametrize("call", [Writer, Reader, shmcow.describe, shmcow.destroy])
def test_names_of_other_types_are_refused(call: Callable[[Any], Any], bad: object) -> None:
    """A name that is no str is a TypeError that says what it is."""
    with pytest.raises(TypeError, match="store's name is a str, found"):
        call(bad)


def test_longest_name_works(name: str) -> None:
    """64 characters are allowed, and a name is not a prefix of another's objects."""
    long = (name + "_" + "x" * 64)[:64]
    try:
        with Writer(long, initial=1), Writer(name, initial=2) as w:
            assert Reader(long).get() == 1
            w.destroy()
            assert Reader(long).get() == 1
    finally:
        shmcow.destroy(long)


# ---- values ----


class Opaque:
    pass


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


UNENCODABLE = [
    (Opaque(), r"`\$` \(.*Opaque\)"),
    ({"a": [1, Opaque()]}, r"`\$.*a.*1.*Opaque"),
    (1 << 64, "cannot encode"),
    (-(1 << 63) - 1, "cannot encode"),
    (lambda: 1, "cannot encode"),
    (1j, "cannot encode"),
    (endless(), "nested too deeply|recursion"),
    (deep(5000), "nested too deeply|recursion"),
    ("\ud800", "cannot encode"),
    (Writer, "cannot encode"),
]


@pytest.mark.parametrize(("value", "words"), UNENCODABLE, ids=range(len(UNENCODABLE)))
def test_unencodable_values_change_nothing(name: str, value: object, words: str) -> None:
    """A value that cannot be encoded is a ValidationError that says where; nothing is created for it."""
    with pytest.raises(shmcow.ValidationError, match=words):
        Writer(name, codec=MsgPack(), initial=value)
    assert objects(name) == []
    with Writer(name, initial="good") as w:
        before = objects(name)
        for call in (lambda: w.publish(value), lambda: w.update(lambda _: value), lambda: w.swap(value)):
            with pytest.raises(shmcow.ValidationError, match=words):
                call()
        assert (w.version, objects(name)) == (1, before)
        assert Reader(name).get() == "good"
        assert shmcow.describe(name).counters["refused"] == 3
        assert w.publish("next") == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1.0, float("-inf")]}])
def test_json_refuses_what_it_has_no_notation_for(name: str, value: object) -> None:
    """JSON would turn NaN into null: refused, with the path and the way out."""
    with Writer(name, codec=JSON(), initial=1) as w:
        with pytest.raises(shmcow.ValidationError, match="no NaN and no infinity; use None there, or the MsgPack"):
            w.publish(value)
        assert w.version == 1


@pytest.mark.parametrize("value", ["text", 5, None, [b"x"], memoryview(b"abcd")[::2]])
def test_raw_refuses_what_is_no_bytes(name: str, value: object) -> None:
    """Raw takes C-contiguous buffers."""
    with Writer(name, codec=Raw(), initial=b"x") as w:
        with pytest.raises(shmcow.ValidationError, match=r"expected bytes-like|C-contiguous"):
            w.publish(value)  # type: ignore[arg-type]
        assert w.version == 1


WRONG = [
    (float, "fast", r"Expected `float`, got `str`"),
    (Config, {"timeout": "x"}, r"Expected `float`, got `str` - at `\$\.timeout`"),
    (Config, [1.0], r"expected a value of the type .*Config, found list"),
    (Config, None, r"expected a value of the type .*Config, found None"),
    (dict[str, list[int]], {"a": [1, "b"]}, r"Expected `int`, got `str` - at `\$\[\.\.\.\]\[1\]`"),
    (tuple[int, str], (1,), r"length"),
    (list[int], {1}, None),
]


@pytest.mark.parametrize("codec", [MsgPack, JSON])
@pytest.mark.parametrize(("type_", "value", "words"), WRONG, ids=range(len(WRONG)))
def test_values_of_a_wrong_type_are_refused_with_their_path(
    name: str, codec: type, type_: Any, value: object, words: str | None
) -> None:
    """What the type does not fit is refused before anybody sees it; what encodes the same is taken."""
    with Writer(name, codec=codec(type_)) as w:
        if words is None:
            assert w.publish(value) == 1
            return
        with pytest.raises(shmcow.ValidationError, match=words):
            w.publish(value)
        assert w.version == 0
        assert len(objects(name)) == 3


# ---- types ----


@pytest.mark.parametrize(
    ("type_", "path"),
    [
        (Mutable, "Mutable"),
        (MutableData, "MutableData"),
        (list[Mutable], r"Mutable"),
        (Outer, r"inner"),
        (OuterData, r"pair"),
        (Loop, r"bad"),
        (Config | list[Mutable], "Mutable"),
    ],
)
@pytest.mark.parametrize("make", [Writer, Reader])
def test_mutable_types_are_refused_with_the_path_of_the_field(
    name: str, make: Callable[..., Any], type_: Any, path: str
) -> None:
    """A Struct or dataclass that is not frozen is named, with the way to it and the ways out."""
    for arguments in ({"type": type_}, {"codec": MsgPack(type_)}, {"codec": JSON(type_)}):
        with pytest.raises(shmcow.ValidationError, match=path) as caught:
            make(name, **arguments)
        assert "frozen=True" in str(caught.value)
        assert "freeze=False" in str(caught.value)
    assert objects(name) == []


@pytest.mark.parametrize("type_", [Opaque(), 5, "Config", list["Nowhere"], set[list[int] | dict[str, int]] | list[int]])  # type: ignore[name-defined]  # noqa: F821
@pytest.mark.parametrize("make", [Writer, Reader])
def test_unsupported_types_are_refused_when_made(name: str, make: Callable[..., Any], type_: Any) -> None:
    """What msgspec cannot decode to is a ValidationError (or it can, and then it works)."""
    with contextlib.suppress(shmcow.ValidationError):
        made = make(name, type=type_)
        made.close()
        shmcow.destroy(name) if objects(name) else None
    assert objects(name) == []


# ---- numbers ----


@pytest.mark.parametrize(
    "wrong",
    [-1, -0.001, float("nan"), float("inf"), 1e300, 10**400, "5", None, True, [1]],
    ids=lambda wrong: str(wrong)[:9],
)
def test_wrong_lock_timeouts_are_refused(name: str, wrong: Any) -> None:
    """A time-out that is no number of seconds is refused before anything is made."""
    with pytest.raises((ValueError, TypeError), match="lock_timeout is a number of seconds"):
        Writer(name, initial=1, lock_timeout=wrong)
    assert objects(name) == []
    with Writer(name, initial=1):
        with pytest.raises((ValueError, TypeError), match="lock_timeout is a number of seconds"):
            shmcow.destroy(name, lock_timeout=wrong)
        assert Reader(name).get() == 1


@pytest.mark.parametrize("wrong", [-1, -0.001, float("nan"), 10**400, "5", [1], True], ids=lambda wrong: str(wrong)[:9])
def test_wrong_wait_timeouts_are_refused(name: str, wrong: Any) -> None:
    """wait_unused() refuses what is no number of seconds, held or not."""
    with Writer(name, initial=1) as w:
        w.publish(2)
        with pytest.raises((ValueError, TypeError), match="timeout is a number of seconds"):
            w.wait_unused(1, timeout=wrong)


@pytest.mark.parametrize("argument", ["retain", "max_total_bytes"])
@pytest.mark.parametrize("wrong", [-1, 1 << 63, 1 << 200, 1.5, "4", True, float("nan")])
def test_wrong_counts_are_refused(name: str, argument: str, wrong: Any) -> None:
    """`retain` and `max_total_bytes` are whole numbers from 0."""
    with pytest.raises(ValueError, match=f"{argument} is a whole number, 0 or more"):
        Writer(name, **{argument: wrong})
    assert objects(name) == []


@pytest.mark.parametrize("wrong", [-1, 1 << 48, 1 << 100])
def test_versions_out_of_range_are_refused(name: str, wrong: int) -> None:
    """A number that can be no version is a ValueError that names the argument."""
    with Writer(name, initial=1) as w:
        for call, what in [
            (lambda: w.publish(2, expected=wrong), "expected"),
            (lambda: w.rollback(to=wrong), "to"),
            (lambda: w.wait_unused(wrong), "version"),
        ]:
            with pytest.raises(ValueError, match=f"{what} is a version, [01] to \\d+, found {wrong}"):
                call()
        assert w.version == 1


@pytest.mark.parametrize("wrong", ["1", 1.0, True, [1]])
def test_versions_of_other_types_are_refused(name: str, wrong: Any) -> None:
    """A version is an int."""
    with Writer(name, initial=1) as w:
        for call in (lambda: w.publish(2, expected=wrong), lambda: w.rollback(to=wrong), lambda: w.wait_unused(wrong)):
            with pytest.raises(TypeError, match="is a version, an int, found"):
                call()
        assert w.version == 1


def test_type_and_codec_exclude_each_other(name: str) -> None:
    """A codec has its type."""
    with pytest.raises(ValueError, match="not both"):
        Writer(name, type=Config, codec=MsgPack(Config))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="codec object such as"):
        Writer(name, codec="json")  # type: ignore[call-overload]
    assert objects(name) == []


# ---- update, edit ----


def publishing_inside(w: Writer[Any]) -> dict[str, Callable[[], object]]:
    return {
        "publish": lambda: w.publish({"a": 2}),
        "update": lambda: w.update(lambda old: old),
        "patch": lambda: w.patch(a=2),
        "edit": lambda: w.edit().__enter__(),
        "swap": lambda: w.swap({"a": 2}),
        "rollback": lambda: w.rollback(to=1),
        "reclaim": w.reclaim,
        "destroy": w.destroy,
    }


@pytest.mark.parametrize("what", ["publish", "update", "patch", "edit", "swap", "rollback", "reclaim", "destroy"])
def test_function_of_update_may_not_take_another_turn(name: str, what: str) -> None:
    """A turn inside a turn of the same Writer is refused at once, and says to return the value."""
    with Writer(name, initial={"a": 1}) as w:
        call = publishing_inside(w)[what]

        def function(old: Any) -> Any:
            call()
            return old

        with pytest.raises(shmcow.WriterBusyError, match="return the new value instead of publishing it"):
            w.update(function)
        with pytest.raises(shmcow.WriterBusyError, match="already inside a turn"), w.edit():
            call()
        assert w.version == 1
        assert w.publish({"a": 3}) == 2


def test_function_of_update_may_not_publish_through_another_writer(name: str) -> None:
    """Another Writer of the same store waits for `lock_timeout` and says that this process holds the lock."""
    with Writer(name, initial=1) as w, Writer(name, lock_timeout=0.05) as other:
        with pytest.raises(shmcow.WriterBusyError, match=r"not free within 0\.05 s: this very process holds it"):
            w.update(lambda _: other.publish(2))
        assert w.version == 1
        assert other.publish(3) == 2


def test_function_of_update_may_publish_in_another_store(name: str) -> None:
    """Turns of different stores have nothing to do with each other."""
    try:
        with Writer(name, initial=1) as w, Writer(name + "2") as other:
            assert w.update(lambda old: other.publish(old) + 1) == 2
            assert (w.snapshot().value, other.snapshot().value) == (2, 1)
    finally:
        shmcow.destroy(name + "2")


def test_function_of_update_may_read(name: str) -> None:
    """Reading inside a turn is fine, for readers take no lock."""
    with Writer(name, initial=1) as w:
        r = Reader(name)
        assert w.update(lambda old: old + r.get() + w.snapshot().value + w.version) == 2
        assert r.get() == 4


def test_function_of_update_must_return_the_new_value(name: str) -> None:
    """None is taken for a forgotten return."""
    with Writer(name, initial={"a": 1}) as w:
        with pytest.raises(shmcow.ValidationError, match=r"returned None: it must return the new value"):
            w.update(lambda _: None)
        assert w.version == 1
        with pytest.raises(TypeError):
            w.update(lambda old: old.update(a=2))
        assert w.snapshot().value == {"a": 1}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, RecursionError])
def test_function_of_update_that_raises_changes_nothing(name: str, error: type[BaseException]) -> None:
    """Its exception passes as it is, and the writer lock is free again."""

    def function(_: Any) -> Any:
        raise error("mine")

    with Writer(name, initial=1) as w, Writer(name, lock_timeout=0) as other:
        with pytest.raises(error, match="mine"):
            w.update(function)
        assert w.version == 1
        assert other.publish(2) == 2


@pytest.mark.parametrize("function", [None, 5, "f"])
def test_update_with_no_function(name: str, function: Any) -> None:
    """What cannot be called is a TypeError, and the lock is free again."""
    with Writer(name, initial=1) as w:
        with pytest.raises(TypeError):
            w.update(function)
        assert w.publish(2) == 2


def test_function_of_update_that_forks(name: str) -> None:
    """The child that returns from the function is refused, and the parent publishes."""
    told, tell = os.pipe()
    with Writer(name, initial=1) as w:
        children = []

        def function(old: int) -> int:
            children.append(os.fork())
            return old + 1

        try:
            version = w.update(function)
        except BaseException as exc:
            if children and children[0] == 0:
                os.write(tell, f"{type(exc).__name__}: {exc}".encode())
                os._exit(0)
            raise
        if children[0] == 0:
            os._exit(1)
        os.close(tell)
        with os.fdopen(told) as answer:
            said = answer.read()
        assert os.waitpid(children[0], 0)[1] == 0
        assert "WriterBusyError" in said
        assert "forked inside a turn" in said
        assert (version, w.snapshot().value) == (2, 2)
        assert w.publish(3) == 3


def test_two_threads_one_writer(name: str) -> None:
    """Another thread of the process waits for its turn, and says so when it takes too long."""
    with Writer(name, initial=1, lock_timeout=0.05) as w:
        errors: list[Exception] = []

        def publish() -> None:
            try:
                w.publish(2)
            except shmcow.WriterBusyError as exc:
                errors.append(exc)

        def function(old: int) -> int:
            thread = threading.Thread(target=publish)
            thread.start()
            thread.join(60)
            return old + 10

        assert w.update(function) == 2
        assert len(errors) == 1
        assert "another thread of this process is publishing" in str(errors[0])


# ---- a store's name that exists as something else ----


def make_directory(path: Path) -> None:
    path.mkdir()


def make_dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_empty(path: Path) -> None:
    path.touch()


def make_short(path: Path) -> None:
    path.write_bytes(b"shmcow\r\n")


def make_text(path: Path) -> None:
    path.write_bytes(b"this is no store\n" * 6000)


def make_zeros(path: Path) -> None:
    path.write_bytes(bytes(shmcow._core.HEADER_BYTES))  # type: ignore[attr-defined]


def make_huge(path: Path) -> None:
    with path.open("wb") as made:
        made.truncate(1 << 40)


SOMETHING_ELSE = [
    make_directory,
    make_dangling,
    make_link,
    make_loop,
    make_fifo,
    make_socket,
    make_empty,
    make_short,
    make_text,
    make_zeros,
    make_huge,
]


@pytest.fixture
def occupied(name: str, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A header's path that something else has, in place and untouched before and after."""
    path = SHM / f"shmcow.{name}"
    request.param(path)
    before = path.lstat()
    yield path
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    shutil.rmtree(path) if stat.S_ISDIR(after.st_mode) else path.unlink()


@pytest.mark.parametrize("occupied", SOMETHING_ELSE, indirect=True, ids=lambda make: make.__name__)
def test_name_that_is_something_else(name: str, occupied: Path) -> None:
    """Everybody who opens it gets an IncompatibleStoreError with the path and the way out; it is left alone."""
    for call in (
        lambda: Writer(name),
        lambda: Writer(name, initial=1),
        lambda: Reader(name).get(),
        lambda: Reader(name).snapshot(),
        lambda: Reader(name).at(1),
        lambda: shmcow.describe(name),
        lambda: shmcow.destroy(name),
    ):
        with pytest.raises(shmcow.IncompatibleStoreError) as caught:
            call()
        said = str(caught.value)
        assert str(occupied) in said
        assert "use another name" in said
        assert "move it away" in said or "remove it" in said
    assert Reader(name, default=5).get() == 5
    assert Reader(name).version == 0
    assert objects(name) == [occupied.name]


@pytest.mark.parametrize("make", SOMETHING_ELSE, ids=lambda make: make.__name__)
def test_store_that_is_replaced_by_something_else(name: str, make: Callable[[Path], None]) -> None:
    """Readers keep the last good value, writers say what they found; no crash, and the newcomer is left alone."""
    path = SHM / f"shmcow.{name}"
    with Writer(name, initial="good") as w:
        r = Reader(name)
        assert r.get() == "good"
        path.unlink()
        make(path)
        try:
            for _ in range(5000):
                assert r.get() == "good"
            assert isinstance(r.problem, shmcow.ShmcowError)
            with pytest.raises(shmcow.StoreDestroyedError, match="replaced from outside"):
                w.update(lambda old: old)
            with pytest.raises(shmcow.IncompatibleStoreError):
                w.publish("x")
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        assert w.publish("again") == 1
        r.refresh()
        assert r.get() == "again"


@pytest.mark.parametrize("what", ["lock", "holds"])
@pytest.mark.parametrize("make", [make_directory, make_dangling, make_fifo, make_text], ids=lambda make: make.__name__)
def test_object_that_is_something_else(name: str, make: Callable[[Path], None], what: str) -> None:
    """A lock or holds file that was replaced: reading goes on, writing is refused or repaired, and nothing hangs."""
    with Writer(name, initial="good") as w:
        epoch = w.snapshot().epoch
        path = SHM / f"shmcow.{name}.{epoch}.{what}"
        path.unlink()
        make(path)
        try:
            assert Reader(name).get() == "good"
            with contextlib.suppress(shmcow.ShmcowError):
                w.publish("next")
            assert Reader(name).get() in ("good", "next")
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


@pytest.mark.parametrize("make", [make_directory, make_dangling, make_fifo, make_text], ids=lambda make: make.__name__)
def test_segment_name_that_is_taken(name: str, make: Callable[[Path], None]) -> None:
    """What lies where the next segment belongs makes one publish fail or is swept; it is never followed."""
    with Writer(name, initial="good") as w:
        path = SHM / f"shmcow.{name}.{w.snapshot().epoch}.2"
        make(path)
        try:
            with contextlib.suppress(shmcow.ShmcowError):
                w.publish("next")
            assert Reader(name).get() in ("good", "next")
            w.publish("after")
            assert Reader(name).get() == "after"
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
