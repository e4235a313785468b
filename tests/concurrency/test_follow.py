"""Followers as real processes: what changes in a source arrives, what is wrong does not, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from processes import Child, Link, objects_of, until

import shmcow
from shmcow import CodecMismatchError, MsgPack, Raw, Reader, Writer
from shmcow.feed import Directory, Event, File, Origin, follow, poll
from shmcow.store import attach

pytest.importorskip("watchfiles", reason="needs watchfiles: pip install 'shmcow[feed]'")

Spawn = Callable[..., Child]


class Config(msgspec.Struct, frozen=True):
    timeout: float


def feeding(link: Link, make: Callable[[], Origin], name: str, options: dict[str, Any]) -> None:
    """A child that follows, and sends each event."""
    follow(make(), name, on_event=lambda event: link.send(tuple(event)), **options)


def heard(child: Child, *kinds: str) -> Event:
    """The child's next event of one of these kinds."""
    while True:
        event = Event(*child.recv())
        if event.kind in kinds:
            return event


def ended(child: Child, number: int = signal.SIGTERM) -> None:
    """End a follower by a signal: it says so, and exits with 0."""
    child.signal(number)
    heard(child, "ended")
    child.done()


def replaced(path: Path, text: str) -> None:
    """Put another file in a file's place."""
    other = path.with_name(f".{path.name}.new")
    other.write_text(text)
    os.replace(other, path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("timeout = 1.0")
    return path


@pytest.fixture
def followed(spawn: Spawn, config: Path, name: str) -> Child:
    """A follower of `config` that has published version 1. Nothing but the watch tells it of a change."""
    child = spawn(feeding, lambda: File(config, every=3600.0), name, {"type": Config})
    assert heard(child, "published").version == 1
    return child


def test_every_way_to_change_a_file_arrives(followed: Child, config: Path, name: str, tmp_path: Path) -> None:
    """Written in place, renamed over, removed and made again, a symlink in its place; comments make no version."""
    with Reader(name, type=Config) as r:
        config.write_text("timeout = 2.0")
        assert heard(followed, "published").version == 2
        replaced(config, "timeout = 3.0")
        assert heard(followed, "published").version == 3
        replaced(config, "# the same\ntimeout = 3.0")
        config.unlink()
        assert heard(followed, "failed").error == f"{config}: No such file or directory"
        assert r.get() == Config(3.0)
        config.write_text("timeout = 4.0")
        assert heard(followed, "published").version == 4
        (tmp_path / "other.toml").write_text("timeout = 5.0")
        (tmp_path / ".link").symlink_to("other.toml")
        os.replace(tmp_path / ".link", config)
        assert heard(followed, "published").version == 5
        (tmp_path / "other.toml").write_text("timeout = 6.0")
        assert heard(followed, "published").version == 6
        assert r.get() == Config(6.0)
        assert r.snapshot().source == str(config)
    ended(followed)


def test_a_bad_file_leaves_the_last_good_version_in_service(followed: Child, config: Path, name: str) -> None:
    """It is told with its place, counted, kept in the state, and over as soon as the file is good."""
    with Reader(name, type=Config) as r:
        for text, words in (
            ("timeout = = 1", "line 1, column 11"),
            ("timeout = 'x'", "Expected `float`"),
            ("", "empty"),
        ):
            replaced(config, text)
            event = heard(followed, "failed")
            assert words in event.error
            assert (event.version, r.get()) == (1, Config(1.0))
        found = shmcow.describe(name).feed
        assert found is not None
        assert (found.failures, found.failures_in_a_row, found.running) == (3, 3, True)
        assert "is empty" in found.last_error
        replaced(config, "timeout = 1.0")
        assert heard(followed, "recovered").version == 1
        found = until(lambda: shmcow.describe(name).feed, "the state")
        assert (found.failures, found.failures_in_a_row, found.publishes) == (3, 0, 1)
        stale = r.staleness()
        assert stale is not None
        assert stale < time.time() - found.started_at
    ended(followed)


def test_symlinks_that_are_swapped_anywhere_on_the_path_arrive(spawn: Spawn, tmp_path: Path, name: str) -> None:
    """As deployments do it (`current`), and as Kubernetes does in the volume of a ConfigMap (`..data`)."""

    def state(folder: Path, number: int) -> None:
        made = folder / f"..{number}"
        made.mkdir(parents=True)
        (made / "app.toml").write_text(f"timeout = {number}.0")
        (folder / "..tmp").symlink_to(made.name)
        os.replace(folder / "..tmp", folder / "..data")

    volume, release = tmp_path / "volume", tmp_path / "releases"
    state(volume, 1)
    (volume / "app.toml").symlink_to("..data/app.toml")
    (release / "1").mkdir(parents=True)
    (release / "1/app.toml").write_text("timeout = 1.0")
    (tmp_path / "current").symlink_to("releases/1")
    sources: list[Callable[[], Origin]] = [
        lambda: File(volume / "app.toml", every=3600.0),
        lambda: Directory(volume, every=3600.0, parse=True),
        lambda: File(tmp_path / "current/app.toml", every=3600.0),
    ]
    names = [f"{name}-{k}" for k in range(3)]
    children = [spawn(feeding, make, store, {}) for make, store in zip(sources, names, strict=True)]
    for child in children:
        assert heard(child, "published").version == 1
    for number in (2, 3):
        state(volume, number)
        (release / f"{number}").mkdir()
        (release / f"{number}/app.toml").write_text(f"timeout = {number}.0")
        (tmp_path / ".new").symlink_to(f"releases/{number}")
        os.replace(tmp_path / ".new", tmp_path / "current")
        for child in children:
            assert heard(child, "published").version == number
    values = []
    for child, store in zip(children, names, strict=True):
        with Reader(store) as r:
            values.append(r.get())
        ended(child)
        shmcow.destroy(store)
    assert values == [{"timeout": 3.0}, {"app": {"timeout": 3.0}}, {"timeout": 3.0}]


def test_sighup_reads_the_source_again_and_undoes_a_change_by_hand(followed: Child, config: Path, name: str) -> None:
    """What somebody else publishes stays while the source does not change, until it is asked for."""
    with Writer(name, type=Config) as w:
        w.publish(Config(9.0))
        os.utime(config)
        os.kill(followed.pid, signal.SIGHUP)
        assert heard(followed, "published").version == 3
        assert w.snapshot().value == Config(1.0)
        os.kill(followed.pid, signal.SIGHUP)
        assert heard(followed, "unchanged").version == 3
    ended(followed, signal.SIGINT)


def test_a_killed_follower_is_replaced_and_the_counts_go_on(spawn: Spawn, config: Path, name: str) -> None:
    """SIGKILL drops the feed lock; the next one goes on with the state, and publishes nothing that is there already."""
    first = spawn(feeding, lambda: File(config), name, {})
    heard(first, "published")
    second = spawn(feeding, lambda: File(config), name, {})
    with pytest.raises(AssertionError, match=rf"FollowerBusyError: store {name} is fed already, by pid {first.pid} "):
        second.recv()
    first.kill()
    found = until(lambda: (s := shmcow.describe(name).feed) and not s.running and s, "its last thread dies")
    assert (found.pid, found.contacts) == (first.pid, 1)
    third = spawn(feeding, lambda: File(config), name, {})
    assert heard(third, "unchanged").version == 1
    now = until(lambda: (s := shmcow.describe(name).feed) and s.contacts == 2 and s, "its state")
    assert (now.running, now.pid, now.publishes, now.failures) == (True, third.pid, 1, 0)
    ended(third)


def test_killed_at_any_moment_the_state_is_whole(spawn: Spawn, name: str) -> None:
    """Followers that write their state as fast as they can are killed; each next one takes over at once."""

    def hurry(link: Link, store: str) -> None:
        from shmcow.feed.lock import Feed

        feed = Feed(store, "a source", None)
        link.send("fed")
        while True:
            feed.contact()
            feed.succeed(True)

    with Writer(name, initial=1):
        before = 0
        for _ in range(10):
            child = spawn(hurry, name)
            assert child.recv() == "fed"
            for _ in range(200):
                found = shmcow.describe(name).feed
                assert found is not None
                assert not found.damaged
                assert found.contacts - found.publishes == 0
                assert found.publishes >= before
                before = found.publishes
            child.kill()
            assert not attach(name).feeding()
    assert before > 0


def test_an_ended_follower_leaves_only_the_store(followed: Child, name: str, tmp_path: Path) -> None:
    """No lock, no temporary file, no marker; the store is at rest."""
    ended(followed)
    assert len(objects_of(name)) == 4
    assert not attach(name).feeding()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]


def test_a_store_that_is_removed_is_made_again(followed: Child, config: Path, name: str) -> None:
    """By the next look, with what the source has."""
    shmcow.destroy(name)
    os.kill(followed.pid, signal.SIGHUP)
    assert heard(followed, "published").version == 1
    for file in objects_of(name):
        os.unlink(f"/dev/shm/{file}")
    replaced(config, "timeout = 7.0")
    assert heard(followed, "published").version == 1
    found = until(lambda: shmcow.describe(name).feed, "its state")
    assert (found.publishes, found.running) == (1, True)
    with Reader(name, type=Config) as r:
        assert r.get() == Config(7.0)
    ended(followed)


def test_a_store_that_is_destroyed_while_its_source_is_bad_is_filled_again(
    spawn: Spawn, config: Path, name: str
) -> None:
    """What was published before the store went is not taken for what the new one has."""
    child = spawn(feeding, lambda: File(config, every=0.05), name, {"type": Config})
    heard(child, "published")
    config.rename(config.with_suffix(".away"))
    heard(child, "failed")
    shmcow.destroy(name)
    until(lambda: heard(child, "failed").version == 0, "it is made again")
    config.with_suffix(".away").rename(config)
    assert heard(child, "published").version == 1
    ended(child)


def test_a_store_that_is_destroyed_while_a_callable_is_asked_is_filled_again(name: str) -> None:
    """The same answer is published in the new store."""
    stop, events = threading.Event(), []

    def ask() -> int:
        if len([event for event in events if event.kind == "published"]) == 1:
            with contextlib.suppress(shmcow.StoreNotFoundError, shmcow.StoreDestroyedError):
                shmcow.destroy(name)
        return 5

    def hear(event: Event) -> None:
        events.append(event)
        if [each.kind for each in events].count("published") == 2:
            stop.set()

    thread = threading.Thread(
        target=follow, args=(poll(ask, every=0.02), name), kwargs={"stop": stop, "on_event": hear}
    )
    thread.start()
    thread.join(20.0)
    stop.set()
    thread.join()
    with Reader(name) as r:
        assert r.get() == 5


def test_a_reload_of_a_bad_source_is_not_forgotten(followed: Child, config: Path, name: str) -> None:
    """It happens when the source is good again."""
    with Writer(name, type=Config) as w:
        w.publish(Config(9.0))
    good = config.read_text()
    config.write_text("timeout = ")
    heard(followed, "failed")
    os.kill(followed.pid, signal.SIGHUP)
    heard(followed, "failed")
    replaced(config, good)
    assert heard(followed, "published").version == 3
    ended(followed)


def test_a_store_that_is_lost_is_restored_while_the_source_is_down(spawn: Spawn, tmp_path: Path, name: str) -> None:
    """Not only when the follower starts."""
    down = tmp_path / "down"

    def ask() -> int:
        if down.exists():
            raise ConnectionError("the registry is down")
        return 3

    child = spawn(feeding, lambda: poll(ask, every=0.02), name, {"save": tmp_path / "saved"})
    heard(child, "published")
    until((tmp_path / "saved").exists, "the file")
    down.touch()
    heard(child, "failed")
    shmcow.destroy(name)
    assert heard(child, "restored").version == 1
    with Reader(name) as r:
        assert r.get() == 3
    ended(child)


def test_a_file_that_cannot_be_saved_does_not_slow_the_feed(tmp_path: Path, name: str) -> None:
    """The pause grows with the failures of the source only."""
    stop, times = threading.Event(), []

    def ask() -> int:
        times.append(time.monotonic())
        if len(times) == 9:
            stop.set()
        return 3

    follow(poll(ask, every=0.05, jitter=0.0), name, save=tmp_path / "none" / "saved", stop=stop)
    assert times[-1] - times[0] < 5.0  # doubling, it would be 12 s
    assert shmcow.describe(name).feed.last_error.startswith("saving to ")  # type: ignore[union-attr]


def test_the_saved_version_is_restored_before_the_source_is_reached(spawn: Spawn, tmp_path: Path, name: str) -> None:
    """A store that is lost with a reboot has its last good version again although the source is down."""
    saved, down = tmp_path / "saved.shmcow", tmp_path / "down"

    def ask() -> dict[str, int]:
        if down.exists():
            raise ConnectionError("the registry is down")
        return {"backends": 3}

    options = {"save": saved, "type": dict[str, int]}
    first = spawn(feeding, lambda: poll(ask, every=0.01), name, options)
    heard(first, "published")
    until(saved.exists, "the file")
    ended(first)
    shmcow.destroy(name)
    down.touch()
    second = spawn(feeding, lambda: poll(ask, every=0.01), name, options)
    assert heard(second, "restored").version == 1
    with Reader(name, type=dict[str, int]) as r:
        assert r.get() == {"backends": 3}
        assert heard(second, "failed").error == "ConnectionError: the registry is down"
        assert r.staleness() == float("inf")
        down.unlink()
        assert heard(second, "unchanged", "recovered").version == 1
        until(lambda: r.staleness() != float("inf"), "it is good")
    ended(second)
    shmcow.destroy(name)
    saved.write_bytes(saved.read_bytes()[:-1])
    third = spawn(feeding, lambda: poll(ask, every=0.01), name, options)
    failed = heard(third, "failed")
    assert failed.error.startswith(f"restoring {saved}: ")
    assert "truncated" in failed.error
    assert heard(third, "published").version == 1
    ended(third)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved.shmcow"]


def test_a_file_that_cannot_be_saved_is_a_failure_and_no_reason_to_stop(
    spawn: Spawn, tmp_path: Path, config: Path, name: str
) -> None:
    """The version is published; the state says what is wrong; it is saved when that is possible."""
    saved = tmp_path / "saved.shmcow"
    saved.write_text("somebody's notes")
    child = spawn(feeding, lambda: File(config, every=0.02), name, {"save": saved})
    assert heard(child, "published").version == 1
    assert "no export of a store" in heard(child, "failed").error
    saved.unlink()
    until(lambda: saved.exists() and saved.stat().st_size > 100, "the file")
    ended(child)


def test_a_callable_is_asked_again_and_a_hanging_one_does_not_stop_the_end(spawn: Spawn, name: str) -> None:
    """New answers are published; exceptions, wrong types and hangs are told; SIGTERM ends it all the same."""

    def answers() -> Callable[[], Any]:
        kept: list[Any] = [{"a": 1}, {"a": 1}, ZeroDivisionError("of mine"), {"a": "x"}, {"a": 2}]

        def ask() -> Any:
            if not kept:
                threading.Event().wait()
            answer = kept.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask

    child = spawn(feeding, lambda: poll(answers(), every=0.01, timeout=0.05), name, {"type": dict[str, int]})
    assert heard(child, "published").version == 1
    assert heard(child, "failed").error == "ZeroDivisionError: of mine"
    assert "Expected `int`, got `str`" in heard(child, "failed").error
    assert heard(child, "published").version == 2
    assert "it hangs" in heard(child, "failed").error
    ended(child)


def test_what_is_published_by_hand_stays_while_the_source_says_the_same(spawn: Spawn, name: str) -> None:
    """A rollback is not undone by the next look at a source that did not change."""
    child = spawn(feeding, lambda: poll(lambda: {"a": 1}, every=0.01), name, {})
    assert heard(child, "published").version == 1
    with Writer(name) as w:
        w.publish({"a": 9})
        before = shmcow.describe(name).feed
        assert before is not None
        until(lambda: (s := shmcow.describe(name).feed) and s.contacts > before.contacts + 3, "it is asked again")
        assert (w.version, w.snapshot().value) == (2, {"a": 9})
    ended(child)


def test_validators_decide_and_a_refused_value_can_come_later(spawn: Spawn, config: Path, name: str) -> None:
    """What they refuse is a failure of the feed."""

    def no_less(old: Config | None, new: Config) -> None:
        if old is not None and new.timeout < old.timeout:
            raise ValueError("it went down")

    child = spawn(feeding, lambda: File(config, every=3600.0), name, {"type": Config, "validators": [no_less]})
    assert heard(child, "published").version == 1
    config.write_text("timeout = 0.5")
    assert "it went down" in heard(child, "failed").error
    config.write_text("timeout = 1.5")
    assert heard(child, "published").version == 2
    ended(child)


@pytest.mark.parametrize("who", ["a validator", "a type"])
def test_code_that_exits_refuses_a_value_and_ends_no_follower(spawn: Spawn, config: Path, name: str, who: str) -> None:
    """sys.exit() in a check is a failure of the feed; the next value that is good is published."""

    class Checked(msgspec.Struct, frozen=True):
        timeout: float

        def __post_init__(self) -> None:
            if who == "a type" and self.timeout == 2.0:
                sys.exit("too long")

    def check(_old: Checked | None, new: Checked) -> None:
        if new.timeout == 2.0:
            sys.exit("too long")

    options = {"type": Checked, "validators": [check] if who == "a validator" else []}
    child = spawn(feeding, lambda: File(config, every=3600.0), name, options)
    assert heard(child, "published").version == 1
    config.write_text("timeout = 2.0")
    assert heard(child, "failed").error == "the type or a validator called sys.exit('too long')"
    config.write_text("timeout = 3.0")
    assert heard(child, "published").version == 2
    ended(child)


def looking(path: Path) -> Origin:
    return File(path, every=0.01)


def answering(_: Path) -> Origin:
    return poll(lambda: {"timeout": 1.0}, every=0.01)


# What the store has, what is given to the follower, its source, and what it says.
MISFITS: dict[str, tuple[Any, Any, Any, Callable[[Path], Origin], str]] = {
    "no type": (
        MsgPack(Config),
        Config(5.0),
        None,
        looking,
        "this follower has no type to check values with",
    ),
    "another type": (MsgPack(dict[str, str]), {"timeout": "x"}, dict[str, float], looking, "cannot be read as dict"),
    "another codec": (Raw(), b"x", None, looking, "is published with the codec 'raw'"),
    "a callable's value": (Raw(), b"x", None, answering, "is published with the codec 'raw'"),
}


@pytest.mark.parametrize(("codec", "there", "type_", "make", "words"), MISFITS.values(), ids=MISFITS)
def test_a_source_that_cannot_follow_from_what_is_there_ends_the_follower(
    config: Path, name: str, codec: Any, there: Any, type_: Any, make: Callable[[Path], Origin], words: str
) -> None:
    """No retry can mend it: it is told in the feed's state, too, and the feed lock is free."""
    events: list[Event] = []
    stop = threading.Event()

    def told(event: Event) -> None:
        events.append(event)
        if len(events) > 3:  # it goes on: let it fail, not hang
            stop.set()

    with Writer(name, codec=codec, initial=there) as w:
        with pytest.raises(CodecMismatchError, match=re.escape(words)):
            follow(make(config), name, type=type_, stop=stop, on_event=told)
        assert w.version == 1
    assert [event.kind for event in events] == ["following", "failed"]
    found = shmcow.describe(name).feed
    assert found is not None
    assert found.last_error == events[-1].error[: len(found.last_error)]
    assert not attach(name).feeding()


def test_a_mismatch_that_comes_later_is_a_failure_like_others(followed: Child, config: Path, name: str) -> None:
    """Somebody else publishes another type by force: the follower goes on as soon as that is undone."""
    with Writer(name, type=dict[str, str], force=True) as w:
        w.publish({"timeout": "long"})
    config.write_text("timeout = 2.0")
    assert "cannot be read as" in heard(followed, "failed").error
    with Writer(name, type=Config, force=True) as w:
        w.publish(Config(1.0))
    followed.signal(signal.SIGHUP)
    assert heard(followed, "published").version == 4
    ended(followed)


def test_a_mismatch_in_the_source_itself_is_asked_again(name: str) -> None:
    """What a callable cannot read elsewhere is no mismatch of the store that is fed."""
    answers: list[Any] = [CodecMismatchError("of another store"), {"a": 1}]
    stop = threading.Event()

    def ask() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def told(event: Event) -> None:
        if event.kind == "published":
            stop.set()

    follow(poll(ask, every=0.01), name, stop=stop, on_event=told)
    with Reader(name) as r:
        assert r.get() == {"a": 1}


def test_a_thread_follows_until_its_event_is_set(config: Path, name: str) -> None:
    """Beside other threads, without touching signal handlers; what ends it is an Event."""
    stop, events = threading.Event(), []
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    thread = threading.Thread(
        target=follow, args=(File(config), name), kwargs={"stop": stop, "on_event": events.append}
    )
    thread.start()
    until(lambda: any(event.kind == "published" for event in events), "it is published")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == handlers
    config.write_text("timeout = 2.5")
    until(lambda: len([event for event in events if event.kind == "published"]) == 2, "the next one is")
    stop.set()
    thread.join()
    assert events[-1].kind == "ended"


def test_handlers_that_were_there_before_come_back(config: Path, name: str) -> None:
    """In the main thread; what an event's receiver raises ends the follower, and lets go of everything."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]

    def fail(event: Event) -> None:
        if event.kind == "published":
            os.kill(os.getpid(), signal.SIGHUP)
            raise LookupError("no more")

    with pytest.raises(LookupError, match="no more") as failed:
        follow(File(config), name, on_event=fail)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
    assert not attach(name).feeding(), failed  # whose traceback keeps the follower's frames


def test_an_origin_of_ones_own_needs_five_names(name: str) -> None:
    """The protocol is all that the follower asks for."""
    from shmcow.feed import Content, Wake, document

    class Revisions:
        description, every, jitter = "revisions", 0.01, 0.0
        closed = 0

        def __init__(self) -> None:
            self.asked: list[str | None] = []

        def fetch(self, known: str | None, wake: Wake) -> Content | None:
            self.asked.append(known)
            revision = f"r{len(self.asked)}"
            if len(self.asked) == 4:
                wake.stop()
            return None if len(self.asked) == 2 else document(b'{"n": 1}', "json", where="it", tag=revision)

        def wait(self, seconds: float | None, wake: Wake) -> None:
            wake.wait(seconds)

        def close(self) -> None:
            self.closed += 1

    origin = Revisions()
    follow(origin, name, type=dict[str, int])
    assert origin.asked == [None, "r1", "r1", "r3"]
    assert origin.closed == 1
    with Reader(name) as r:
        assert r.snapshot().version == 1


def test_from_the_file_to_another_process(
    followed: Child, config: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    """Measure how long it takes from a file's replacement to a reader that has the new value; nothing is asserted."""
    took = []
    with Reader(name, type=Config) as r:
        snapshot = r.snapshot()
        for number in range(20):
            start = time.monotonic()
            replaced(config, f"timeout = {number + 2}.0")
            snapshot = r.wait(after=snapshot, timeout=120)
            took.append(time.monotonic() - start)
            assert snapshot.value == Config(number + 2.0)
    record_property("file_to_reader_ms", round(statistics.median(took) * 1000, 1))
    print(f"file to reader: median {statistics.median(took) * 1000:.1f} ms, worst {max(took) * 1000:.1f} ms")
    ended(followed)
