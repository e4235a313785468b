"""Files, directories and callables as sources: what is read, what is refused, and that nothing ever waits."""

from __future__ import annotations

import contextlib
import datetime
import functools
import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import shmcow
from shmcow import IPTable, MsgPack, Table, ValidationError, feed
from shmcow.feed import UNCHANGED, Content, Directory, File, Origin, Rows, SourceError, Wake, poll
from shmcow.feed.paths import names_on, open_regular, read_all, signature

pytest.importorskip("watchfiles", reason="needs watchfiles: pip install 'shmcow[feed]'")
STORE = "no-store-of-that-name"


class Config(msgspec.Struct, frozen=True):
    timeout: float = 1.0
    hosts: tuple[str, ...] = ()


@pytest.fixture
def wake() -> Wake:
    return Wake()


@pytest.fixture
def sources() -> Iterator[Callable[[Any], Any]]:
    """Close what a test opens."""
    with contextlib.ExitStack() as stack:

        def opened(origin: Any) -> Any:
            stack.callback(origin.close)
            return origin

        yield opened


def made(content: Content | None, type_: Any = None) -> Any:
    """The value of a content, rows taken."""
    assert content is not None
    with contextlib.ExitStack() as stack:
        codec, value = content.make(STORE, type_, stack)
        return dict(value) if isinstance(codec, Table) else list(value) if isinstance(codec, IPTable) else value


# ---- files ----


@pytest.mark.parametrize(
    ("suffix", "text", "value"),
    [
        ("json", '{"timeout": 2.5}', {"timeout": 2.5}),
        ("toml", "timeout = 2.5", {"timeout": 2.5}),
        ("yaml", "timeout: 2.5", {"timeout": 2.5}),
        ("bin", "", b""),
    ],
)
def test_a_file_is_read_as_its_suffix_says(
    tmp_path: Path, wake: Wake, sources: Callable[[Any], Any], suffix: str, text: str, value: Any
) -> None:
    """The parsers are those of `shmcow publish`."""
    path = tmp_path / f"config.{suffix}"
    path.write_text(text)
    file = sources(File(path))
    assert isinstance(file, Origin)
    assert made(file.fetch(None, wake)) == value


def test_a_file_fits_its_type_or_says_where_not(tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]) -> None:
    """Errors have the file, the line and the column, or the path in the value."""
    path = tmp_path / "config.toml"
    file = sources(File(path))
    path.write_text("timeout = 2")
    assert made(file.fetch(None, wake), Config) == Config(2.0)
    path.write_text("a = 1\ntimeout = = 3")
    with pytest.raises(ValidationError, match=rf"{path}, line 2, column 11: TOML is malformed"):
        made(file.fetch(None, wake), Config)
    path.write_text("timeout = 'soon'")
    with pytest.raises(ValidationError, match=r"config.toml does not fit .*Config: Expected `float`.*\$\.timeout"):
        made(file.fetch(None, wake), Config)
    path.write_text("")
    with pytest.raises(ValidationError, match=r"config\.toml is empty: is it being written"):
        made(file.fetch(None, wake), Config)


def test_tables_come_out_of_csv(tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]) -> None:
    """Of keys, of networks, packed or not; errors name the line."""
    path = tmp_path / "rows.csv"
    path.write_text("code,name\nde,Germany\nfr,France\n")
    file = sources(File(path, rows=Rows(key=("code",))))
    assert made(file.fetch(None, wake)) == {"de": "Germany", "fr": "France"}
    path.write_text("code,name\nde,Germany\nfr\n")
    with pytest.raises(ValidationError, match="line 3"):
        made(file.fetch(None, wake))
    networks = tmp_path / "networks.csv.gz"
    networks.write_bytes(gzip.compress(b"network,site\n10.0.0.0/8,a\n"))
    file = sources(File(networks, rows=Rows(key=("network",), ip=True)))
    assert [row[-1] for row in made(file.fetch(None, wake))] == ["a"]


def test_unchanged_content_is_unchanged_whatever_the_times(
    tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]
) -> None:
    """A touch, a rewrite of the same bytes, a rename of a copy: the tag stays; None asks for it in any case."""
    path = tmp_path / "a.json"
    path.write_text("1")
    file = sources(File(path))
    tag = file.fetch(None, wake).tag
    os.utime(path)
    assert file.fetch(tag, wake) is None
    (tmp_path / "b.json").write_text("1")
    os.replace(tmp_path / "b.json", path)
    assert file.fetch(tag, wake) is None
    assert file.fetch(None, wake).tag == tag
    path.write_text("2")
    assert file.fetch(tag, wake).tag != tag


def test_only_a_file_whose_times_are_old_is_not_read_again(
    tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]
) -> None:
    """Two changes within one tick of the clock look the same; a look at a file that rests costs a stat."""
    path = tmp_path / "a.json"
    path.write_text("1")
    file = sources(File(path))
    tag = file.fetch(None, wake).tag
    file._max_bytes = 0  # from here on reading it fails
    with pytest.raises(SourceError, match="more than 0 bytes"):
        file.fetch(tag, wake)
    file._seen = signature(path.stat()), tag  # as if its times had been old when it was read
    assert file.fetch(tag, wake) is None
    with pytest.raises(SourceError, match="more than 0 bytes"):
        file.fetch(None, wake)


# ---- hostile files ----


def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]
) -> None:
    """FIFOs, sockets, devices, directories, behind symlinks, too: an error that says what it is."""
    path = tmp_path / "config.json"
    file = sources(File(path))
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for target, words in [
            (tmp_path / "fifo", "is a FIFO"),
            (tmp_path / "socket", "is a socket"),
            (Path("/dev/zero"), "is a device"),
            (Path("/dev/tty"), "is a device"),
            (tmp_path, "is a directory"),
        ]:
            path.unlink(missing_ok=True)
            path.symlink_to(target)
            with pytest.raises(SourceError, match=f"config.json {words}"):
                file.fetch(None, wake)


def test_missing_unreadable_and_circular_paths_are_os_errors(
    tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]
) -> None:
    """Each as the system says it."""
    path = tmp_path / "config.json"
    file = sources(File(path))
    with pytest.raises(FileNotFoundError):
        file.fetch(None, wake)
    path.symlink_to(path)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        file.fetch(None, wake)
    path.unlink()
    path.symlink_to("nothing/there")
    with pytest.raises(FileNotFoundError):
        file.fetch(None, wake)
    path.unlink()
    path.symlink_to("/proc/self/mem")  # a regular file that cannot be read
    with pytest.raises(OSError, match=r"Input/output error: '.*config.json'"):
        file.fetch(None, wake)


def test_large_files_are_refused(tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]) -> None:
    """By their size before they are read, and by what is read; also what is large when it is unpacked."""
    path = tmp_path / "a.json"
    file = sources(File(path, max_bytes=1000))
    with path.open("wb") as large:
        large.truncate(1 << 40)
    with pytest.raises(SourceError, match=r"more than 1,000 bytes.*max_bytes"):
        file.fetch(None, wake)
    path.write_bytes(b" " * 999 + b"7")
    assert made(file.fetch(None, wake)) == 7
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(b"a,b\n" * 100) + gzip.compress(b"a,b\n" * 10_000))
    bomb = sources(File(packed, max_bytes=2000, rows=Rows(key=(0,))))
    with pytest.raises(SourceError, match="more than 2,000 bytes when it is unpacked"):
        made(bomb.fetch(None, wake))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("laughs.yaml", b"a: &a [x, x, x, x, x, x, x, x]\n", "aliases repeat more than ten times"),
        ("circle.yaml", b"a: &a [*a]\n", "an alias leads into the value"),
        ("object.yaml", b"!!python/object/apply:os.system ['true']\n", "malformed"),
        ("deep.json", b"[" * 100_000, "nested too deeply|malformed"),
        ("deep.yaml", b"[" * 600, "nested too deeply"),
        ("deep.toml", b"a = " + b"[" * 100_000, "nested too deeply"),
        ("half.json", b'{"timeout": 2.5, "hosts": ["a', "JSON is malformed"),
        ("latin.json", b'{"a": "\xff"}', "no UTF-8"),
        ("zeros.json", bytes(100), "malformed"),
        ("half.msgpack", b"\x93\x01", "ends in the middle"),
        ("not.mmdb", b"hello", ""),
    ],
)
def test_hostile_documents_are_validation_errors(
    name: str, data: bytes, words: str, tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]
) -> None:
    """Bombs, circles, objects, depth, halves: an error in words, never a crash."""
    if name == "laughs.yaml":
        last = b"a"
        for letter in (b"%c" % k for k in range(ord("b"), ord("l"))):
            data += b"%s: &%s [%s]\n" % (letter, letter, b", ".join([b"*" + last] * 8))
            last = letter
    path = tmp_path / name
    path.write_bytes(data)
    content = sources(File(path)).fetch(None, wake)
    if name == "not.mmdb":
        pytest.importorskip("maxminddb", reason="needs maxminddb: pip install 'shmcow[mmdb]'")
        with contextlib.ExitStack() as stack:
            codec, value = content.make(STORE, None, stack)
            with pytest.raises(ValidationError):
                shmcow.publishing.proved(codec, value)
        return
    with pytest.raises(ValidationError, match=words):
        made(content)


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path: Path) -> None:
    """Half of the old and half of the new is neither."""
    path = tmp_path / "a.json"
    path.write_text("[1, 2, 3]")
    fd = open_regular(str(path))
    try:
        assert read_all(fd, "it", 100)[0] == b"[1, 2, 3]"
        os.lseek(fd, 4, os.SEEK_SET)  # as if the beginning had been read before it was cut
        with pytest.raises(SourceError, match="it is being written"):
            read_all(fd, "it", 100)
    finally:
        os.close(fd)


# ---- where to look for changes ----


def test_every_symlink_on_a_path_is_watched(tmp_path: Path) -> None:
    """Those of the way, those that they point to, and the file; not what lies beside them."""
    root = tmp_path.resolve()
    (root / "releases/1").mkdir(parents=True)
    (root / "releases/1/app.toml").touch()
    (root / "current").symlink_to("releases/1")
    (root / "etc").mkdir()
    (root / "etc/app.toml").symlink_to("../current/app.toml")
    names = names_on(str(root / "etc/app.toml"))
    assert names.names == {str(root / part) for part in ("etc/app.toml", "current", "releases/1/app.toml")}
    assert names.directories == (str(root), str(root / "etc"), str(root / "releases/1"))
    assert names.concern(str(root / "current"))
    assert not names.concern(str(root / "other"))
    (root / "releases/1/app.toml").unlink()
    assert str(root / "releases/1/app.toml") in names_on(str(root / "etc/app.toml")).names


def test_a_missing_path_is_waited_for_where_it_would_be(tmp_path: Path) -> None:
    """The first name that is missing is the one to wait for; a circle ends."""
    root = tmp_path.resolve()
    assert names_on(str(root / "a/b/c.toml"))[:3] == ((str(root),), {str(root / "a")}, "")
    (root / "loop").symlink_to("loop")
    assert names_on(str(root / "loop/x")).names == {str(root / "loop")}


def test_all_names_in_a_directory_count(tmp_path: Path) -> None:
    """For a directory as a source, and its own name in the one above."""
    root = tmp_path.resolve()
    names = names_on(str(root))
    assert names.inside == str(root)
    assert names.concern(str(root / "anything"))
    assert names.names == {str(root)}


# ---- directories ----


def test_a_directory_is_a_dict_of_its_files(tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]) -> None:
    """Texts as they are; hidden names and directories are left out; documents are parsed if asked for."""
    (tmp_path / "timeout").write_text("2.5\n")
    (tmp_path / "app.json").write_text('{"a": [1]}')
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "sub").mkdir()
    assert made(sources(Directory(tmp_path)).fetch(None, wake)) == {"timeout": "2.5\n", "app.json": '{"a": [1]}'}
    parsed = sources(Directory(tmp_path, parse=True))
    assert made(parsed.fetch(None, wake)) == {"timeout": "2.5\n", "app": {"a": [1]}}
    (tmp_path / "app.json").write_text("{")
    with pytest.raises(ValidationError, match=r"app.json, line 1, column \d+: JSON is malformed"):
        parsed.fetch(None, wake)


def test_documents_in_a_directory_keep_what_json_lacks(
    tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]
) -> None:
    """Infinity, dates, bytes and keys that are numbers are those of a file; with a type no infinity becomes null."""
    (tmp_path / "a.toml").write_text("most = inf\nday = 2026-01-02T00:00:00Z")
    (tmp_path / "b.yaml").write_text("1: !!binary aGk=")
    directory = sources(Directory(tmp_path, parse=True))
    content = directory.fetch(None, wake)
    day = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    assert made(content) == {"a": {"most": float("inf"), "day": day}, "b": {1: b"hi"}}
    with pytest.raises(SourceError, match=r"\$\.a\.most is inf or nan"):
        made(content, dict[str, dict[str, Any]])
    (tmp_path / "a.toml").write_text("day = 2026-01-02T00:00:00Z")
    (tmp_path / "b.yaml").unlink()
    typed = made(directory.fetch(None, wake), dict[str, dict[str, datetime.datetime]])
    assert typed == {"a": {"day": day}}


def test_names_that_are_no_utf8_end_no_follower(tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]) -> None:
    """Whose name it is does not matter: beside the file, of the file, on its path; as a key it is refused."""
    path = tmp_path / "a.json"
    path.write_text("1")
    beside = sources(File(path))
    assert made(beside.fetch(None, wake)) == 1
    other = os.fsencode(tmp_path) + b"/\xff.json"
    with open(other, "w") as file:
        file.write("2")
    beside.wait(10.0, wake)
    with pytest.raises(SourceError, match=r"a file whose name is no UTF-8: .*udcff"):
        sources(Directory(tmp_path)).fetch(None, wake)
    assert made(sources(File(os.fsdecode(other))).fetch(None, wake)) == 2
    os.mkdir(os.fsencode(tmp_path) + b"/\xfe")
    os.rename(other, os.fsencode(tmp_path) + b"/\xfe/b.json")
    assert made(sources(File(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe/b.json"))).fetch(None, wake)) == 2


def test_a_long_debounce_waits_for_rest_and_not_at_the_end(
    tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]
) -> None:
    """A file rests as long as is asked for; who ends the follower waits a moment."""
    path = tmp_path / "a.json"
    path.write_text("1")
    begin = time.monotonic()
    patient = sources(File(path, debounce=30.0))
    patient.fetch(None, wake)
    threading.Timer(0.1, path.write_text, ["2"]).start()
    threading.Timer(0.5, wake.stop).start()
    patient.wait(60.0, wake)
    assert 0.3 < time.monotonic() - begin < 10.0
    source = sources(File(path, debounce=0.3))
    source.fetch(None, wake)
    path.write_text("3")
    begin = time.monotonic()
    source.wait(60.0, Wake())
    assert time.monotonic() - begin > 0.25


def test_a_mounted_config_map_is_read_from_one_state(tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]) -> None:
    """The names lead through `..data`; that is resolved once, so that a swap in the middle does not mix two states."""
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        for key in "ab":
            (tmp_path / f"..{number}" / key).write_text(str(number))
    (tmp_path / "..data").symlink_to("..1")
    for key in "ab":
        (tmp_path / key).symlink_to(f"..data/{key}")
    directory = sources(Directory(tmp_path))
    content = directory.fetch(None, wake)
    assert made(content) == {"a": "1", "b": "1"}

    def swap_after_first(fd: int, name: str, most: int, read: Any = directory._read_file) -> Any:
        data = read(fd, name, most)
        if name == "a":
            (tmp_path / "..new").symlink_to("..2")
            os.replace(tmp_path / "..new", tmp_path / "..data")
        return data

    directory._read_file = swap_after_first
    assert directory.fetch(content.tag, wake) is None
    assert made(directory.fetch(content.tag, wake)) == {"a": "2", "b": "2"}


def test_hostile_directories_are_refused(tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]) -> None:
    """Empty, missing, circular, with a FIFO, too large, no text, a file: each in words."""
    directory = sources(Directory(tmp_path / "d", max_bytes=100))

    def says(kind: type[BaseException], words: str) -> None:
        with pytest.raises(kind, match=words):
            directory.fetch(None, wake)

    says(FileNotFoundError, "No such file")
    (tmp_path / "d").mkdir()
    says(SourceError, "d/ is empty: is it mounted yet")
    (tmp_path / "d/fifo").symlink_to("../f")
    says(SourceError, "fifo is a symlink that leads nowhere")
    os.mkfifo(tmp_path / "f")
    says(SourceError, "d/fifo is a FIFO")
    (tmp_path / "d/fifo").unlink()
    (tmp_path / "d/loop").symlink_to("loop")
    says(OSError, "Too many levels")
    (tmp_path / "d/loop").unlink()
    (tmp_path / "d/a").write_bytes(b"x" * 60)
    (tmp_path / "d/b").write_bytes(b"x" * 60)
    says(SourceError, "d/b has more than 40 bytes")
    (tmp_path / "d/b").write_bytes(b"good\n\xff")
    says(SourceError, "d/b, line 2: it is no UTF-8")
    os.rename(tmp_path / "d", tmp_path / "e")
    (tmp_path / "d").touch()
    says(NotADirectoryError, "Not a directory")


def test_a_directory_that_never_rests_is_given_up_for_now(
    tmp_path: Path, wake: Wake, sources: Callable[[Any], Any]
) -> None:
    """Each look finds it changed; that is an error, not an endless loop."""
    (tmp_path / "a").write_text("1")
    directory = sources(Directory(tmp_path))

    def changed(fd: int, name: str, most: int, read: Any = directory._read_file) -> Any:
        data = read(fd, name, most)
        (tmp_path / "a").write_text("1" * (len(data) + 1))
        return data

    directory._read_file = changed
    with pytest.raises(SourceError, match="is being changed"):
        directory.fetch(None, wake)


# ---- callables ----


def test_a_callable_is_asked_each_time(wake: Wake) -> None:
    """What it returns is the value, of whatever codec the follower has; UNCHANGED is no new content."""
    answers = iter([{"a": 1}, UNCHANGED])
    origin = poll(lambda: next(answers), every=5.0)
    assert isinstance(origin, Origin)
    content = origin.fetch(None, wake)
    assert content is not None
    assert made(content) == {"a": 1}
    with contextlib.ExitStack() as stack:
        assert isinstance(content.make(STORE, dict[str, int], stack)[0], MsgPack)
    assert origin.fetch(content.tag, wake) is None


def test_what_was_not_published_is_not_unchanged(wake: Wake) -> None:
    """A callable that says UNCHANGED means its last answer, which comes again where the store has not got it."""
    answers = iter([1, 2, UNCHANGED, UNCHANGED, UNCHANGED])
    origin = poll(lambda: next(answers), every=5.0)
    first, second = origin.fetch(None, wake), origin.fetch(None, wake)
    assert first is not None
    assert second is not None
    assert made(origin.fetch(first.tag, wake)) == 2
    assert made(origin.fetch(None, wake)) == 2
    assert origin.fetch(second.tag, wake) is None


def test_a_callable_is_asked_at_its_times_and_no_sooner(wake: Wake) -> None:
    """The call that was answered does not end the pause after it; a reload does, and so does a late answer."""
    origin = poll(lambda: 1, every=60.0)
    for _ in range(3):
        made(origin.fetch(None, wake))
        begin = time.monotonic()
        origin.wait(0.1, wake)
        assert time.monotonic() - begin >= 0.1
    wake.reload()
    origin.wait(None, wake)
    assert wake.take_reload()
    go = threading.Event()
    late = poll(go.wait, timeout=0.02)
    with pytest.raises(SourceError, match="has not answered"):
        late.fetch(None, wake)
    go.set()
    late.wait(None, wake)
    assert made(late.fetch(None, wake)) is True


def test_what_a_callable_is_called_with_is_not_in_its_description() -> None:
    """The description is kept in the store, and the arguments may be secret."""
    assert poll(functools.partial(functools.partial(print, "hunter2"), end="hunter3")).description == "builtins:print"
    assert "hunter" not in poll(Asks("hunter2")).description


class Asks:
    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __call__(self) -> str:
        return self.secret

    def __repr__(self) -> str:
        return f"Asks({self.secret})"


def test_a_bad_answer_is_an_error(wake: Wake) -> None:
    """None, an exception, an exit, UNCHANGED before there was anything."""

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SourceError, match="returned None: return the value"):
        poll(lambda: None).fetch(None, wake)
    with pytest.raises(ZeroDivisionError):
        poll(lambda: 1 // 0).fetch(None, wake)
    with pytest.raises(SourceError, match="ended with SystemExit: 3"):
        poll(leave).fetch(None, wake)
    with pytest.raises(SourceError, match="UNCHANGED, and nothing of it was published"):
        poll(lambda: UNCHANGED).fetch(None, wake)


def test_a_callable_that_hangs_is_told_and_its_late_answer_taken(wake: Wake) -> None:
    """It is not called a second time meanwhile; who ends the follower does not wait for it."""
    go, calls = threading.Event(), []

    def hang() -> int:
        calls.append(1)
        go.wait()
        return 7

    origin = poll(hang, timeout=0.02)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"has not answered for \d+\.\d s: it hangs"):
            origin.fetch(None, wake)
    wake.stop()
    patient = poll(hang, timeout=3600.0)
    with pytest.raises(SourceError):
        patient.fetch(None, wake)
    go.set()
    assert made(origin.fetch(None, Wake())) == 7
    assert len(calls) == 2
    origin.close()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: poll(3), TypeError),  # type: ignore[arg-type]
        (lambda: poll(int, every=0), ValueError),
        (lambda: poll(int, every=float("nan")), ValueError),
        (lambda: poll(int, jitter=2), ValueError),
        (lambda: poll(int, timeout=0), ValueError),
        (lambda: File("a.unknown"), ValueError),
        (lambda: File("a.json", format="xml"), ValueError),
        (lambda: File("a.json", every=0), ValueError),
        (lambda: File("a.json", debounce=-1), ValueError),
        (lambda: File("a.json", debounce=61), ValueError),
        (lambda: File("a.json", max_bytes=0), ValueError),
        (lambda: Directory(".", max_bytes=True), ValueError),
        (lambda: feed.follow("a.json", "name"), TypeError),  # type: ignore[arg-type]
        (lambda: feed.follow(poll(int), "name", type=int, codec=MsgPack(int)), TypeError),
        (lambda: feed.follow(poll(int), "bad name"), ValueError),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], error: type[Exception]) -> None:
    """Before anything is made."""
    with pytest.raises(error):
        make()


# ---- what to sleep on ----


def test_wake_ends_a_sleep_from_any_thread() -> None:
    """Stop and reload are seen; a reload once; an event of somebody else's, too."""
    wake = Wake()
    thread = threading.Thread(target=wake.reload)
    thread.start()
    wake.wait(None)
    thread.join()
    assert wake.is_set()
    assert not wake.stopping
    assert wake.take_reload()
    assert not wake.is_set()
    wake.wait(0.0)
    event = threading.Event()
    other = Wake(event)
    threading.Thread(target=event.set).start()
    other.wait(None)
    assert other.stopping
